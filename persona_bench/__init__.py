"""A reproducible benchmark suite for persona vectors, built on Inspect."""

from pathlib import Path

CALLED_FROM = Path.cwd()
"""The folder at the first import: Inspect imports this package before it goes to that of any task's file."""
