"""Inspect evals: one thin folder each, no mathematics."""
