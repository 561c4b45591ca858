"""Activations of a data set, on disk or in memory, and linear probes of them."""
