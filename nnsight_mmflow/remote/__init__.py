"""Where traces run, and what servers say."""
