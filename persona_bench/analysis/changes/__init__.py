"""Two runs side by side: what of their verdicts and tables is the same, and what changed."""
