"""Weights to tokens and activations. Torch, no Inspect."""

from persona_bench.models.memory import KERNELS, keep_kernels

keep_kernels(KERNELS, KERNELS)
