"""Attention maps: which position reads which, in each head, exactly."""
