"""What runs inside a trace: it travels to servers by value, and imports torch, transformers and nnsight alone."""
