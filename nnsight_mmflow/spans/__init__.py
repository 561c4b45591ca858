"""Which positions are what: names, expressions, pixels, edges. No model."""
