"""Causal tracing and its estimate: which clean activations bring an answer back."""
