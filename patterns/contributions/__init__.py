"""What a position takes from each source token, and what that must be compared with."""
