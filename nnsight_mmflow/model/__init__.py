"""The graph: one loaded model, and how it runs prompts with patterns."""
