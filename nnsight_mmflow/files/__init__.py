"""Files: written whole or not at all, read as users have them, one run at a time in a folder."""
