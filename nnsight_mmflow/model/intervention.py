"""What `graph.trace` and `graph.generate` take."""


class Intervention:
    """An intervention, by name alone: graphs run them, and what they are is said in `mmf.Pattern`, their one base."""
