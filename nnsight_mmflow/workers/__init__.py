"""Processes that hold a model each and measure a prompt at a time."""
