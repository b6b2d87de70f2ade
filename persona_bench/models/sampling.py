"""From logits to tokens: every row with its own settings and its own stream of random numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from persona_bench.errors import DataError


@dataclass(frozen=True)
class Sampling:
    """How one row continues.

    Attributes:
        max_tokens: most tokens to generate.
        temperature: 0 for greedy.
        top_p: nucleus mass, 1 for all.
        top_k: number of candidates, 0 for all.
        seed: the row's own seed; the same seed and prompt give the same text whatever is batched with it.
        stop_strings: the text ends before the first of these.
        logprobs: whether log-probabilities of the generated tokens (before temperature) are returned.
        top_logprobs: how many alternatives to return for each generated token.
        ignore_eos: go on to `max_tokens` (for timings).
    """

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    stop_strings: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise DataError(f"max_tokens is {self.max_tokens}; it must be at least 1")
        if self.temperature < 0 or not math.isfinite(self.temperature):
            raise DataError(f"temperature is {self.temperature}; it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise DataError(f"top_p is {self.top_p}; it must lie in (0, 1]")
        if self.top_k < 0:
            raise DataError(f"top_k is {self.top_k}; it must be 0 (all) or more")


def uniforms(seed: int, n: int) -> np.ndarray:
    """The first `n` uniform numbers of a row's counter-based stream (Philox), float64 in [0, 1)."""
    return np.random.Generator(np.random.Philox(key=seed % 2**64)).random(n)


def sample(logits: Tensor, settings: Sequence[Sampling], draws: Sequence[float]) -> Tensor:
    """One token a row by inverse transform sampling.

    Args:
        logits: `(rows, vocabulary)` float32.
        settings: one a row.
        draws: one uniform number in [0, 1) a row.

    Returns:
        `(rows,)` token ids, -1 where a row's logits are not finite.
    """
    greedy = [item.temperature == 0 for item in settings]
    best = logits.argmax(-1)
    finite = logits.gather(-1, best[:, None])[:, 0].isfinite()  # NaN counts as the largest
    if all(greedy):
        return torch.where(finite, best, -1)
    temperatures = torch.tensor(
        [item.temperature or 1.0 for item in settings], dtype=torch.float32, device=logits.device
    )
    probabilities = torch.softmax(logits / temperatures[:, None], -1)
    for row, item in enumerate(settings):
        if not greedy[row] and (item.top_p < 1 or item.top_k):
            probabilities[row] = _restrict(probabilities[row], item.top_p, item.top_k)
    drawn = _inverse(probabilities, torch.tensor(draws, dtype=torch.float64, device=logits.device))
    return torch.where(finite, torch.where(torch.tensor(greedy, device=logits.device), best, drawn), -1)


def _restrict(probabilities: Tensor, top_p: float, top_k: int) -> Tensor:
    """Zero what lies outside the top k and outside the smallest set of mass `top_p` (Holtzman et al., 1904.09751)."""
    ordered, order = probabilities.sort(descending=True, stable=True)
    keep = torch.ones_like(ordered, dtype=torch.bool)
    if top_k:
        keep[top_k:] = False
    if top_p < 1:
        keep &= (ordered.cumsum(-1) - ordered) < top_p
    out = torch.zeros_like(probabilities)
    out[order[keep]] = ordered[keep]
    return out


def _inverse(probabilities: Tensor, draws: Tensor) -> Tensor:
    """First index whose cumulative probability exceeds `draw * total`, found block by block: `(rows,)`.

    Two levels make a step's cost one pass over the vocabulary instead of a full cumulative sum.
    """
    rows, vocabulary = probabilities.shape
    width = math.gcd(vocabulary, 256)
    blocks = probabilities.view(rows, vocabulary // width, width)
    cumulative = blocks.sum(-1).double().cumsum(-1)
    targets = draws * cumulative[:, -1]
    block = torch.searchsorted(cumulative, targets[:, None], right=True)[:, 0].clamp_max(cumulative.shape[1] - 1)
    index = torch.arange(rows, device=probabilities.device)
    before = torch.where(block > 0, cumulative[index, (block - 1).clamp_min(0)], 0.0)
    chosen = blocks[index, block]
    inside = chosen.double().cumsum(-1)
    offset = torch.searchsorted(inside, (targets - before)[:, None], right=True)[:, 0]
    # Rounding can leave the target just past the block's end: the block's likeliest token stands in.
    offset = torch.where(offset >= width, chosen.argmax(-1), offset)
    return block * width + offset


def top_logprobs(logits: Tensor, k: int) -> list[tuple[int, float]]:
    """The `k` likeliest tokens of one row of float32 logits `(vocabulary,)`, with natural log-probabilities."""
    values, indices = torch.log_softmax(logits, -1).topk(min(k, logits.shape[-1]))
    return list(zip(indices.tolist(), values.tolist(), strict=True))
