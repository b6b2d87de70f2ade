"""Directions in the residual stream and what is measured with them. Torch, no Inspect."""
