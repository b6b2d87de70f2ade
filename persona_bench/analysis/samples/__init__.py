"""Logs -> one frame a kind of sample, with what baselines and monitors say of them."""
