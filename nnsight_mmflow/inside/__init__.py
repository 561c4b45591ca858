"""What runs inside a trace: it travels to servers by value, and imports torch, numpy, transformers and nnsight alone."""
