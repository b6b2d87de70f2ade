"""Weights to tokens and activations. Torch, no Inspect."""

import os

# oneDNN and torch each keep a compiled kernel for every shape they meet, 1,024 of 0.2 MB: a long scan meets that many.
for _cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "128")
