"""Patterns swept over anything: layers, heads, strengths, spans, budgets."""
