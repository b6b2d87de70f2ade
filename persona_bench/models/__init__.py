"""Weights to tokens and activations. Torch, no Inspect."""
