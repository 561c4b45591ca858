"""What callers hand over, looked at before anything runs."""
