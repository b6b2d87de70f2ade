"""A reproducible benchmark suite for persona vectors, built on Inspect."""
