"""What is asked: traits, claims, presets. No torch, no Inspect."""
