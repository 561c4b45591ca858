"""Knockout curves: where in depth information flows from one span to another."""
