"""Vectors -> sample frames: norms and cosines by layer, with what other questions would have made of the cosines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.functional import cosine_similarity

from persona_bench.analysis import statistics as st
from persona_bench.analysis.grouping import spread
from persona_bench.vectors.question_sums import QuestionSums
from persona_bench.vectors.vector import PersonaVector

_Parts = Mapping[str, tuple[np.ndarray, int]]
"""Trait -> its vector without each question in turn, `(questions, n_layers + 1, d_model)`, and how many it rests on."""


def vector_rows(
    vectors: Sequence[PersonaVector], chosen: Mapping[str, int], sums: Mapping[str, QuestionSums]
) -> dict[str, list[dict[str, Any]]]:
    """The rows of the frames `vectors` and `cosines`.

    Args:
        vectors: of a run's traits.
        chosen: trait -> the layer it is used at.
        sums: trait -> what its vector is made of; cosines with a vector that has none have no interval.
    """
    parts = {trait: (made.left_out(), made.n_questions) for trait, made in sums.items()}
    ordered = sorted(vectors, key=lambda item: item.trait)
    return {
        "vectors": [row for item in ordered for row in _by_layer(item, chosen.get(item.trait), parts)],
        "cosines": [
            row for item in ordered for other in vectors if other is not item for row in _pair(item, other, parts)
        ],
    }


def _by_layer(vector: PersonaVector, chosen: int | None, parts: _Parts) -> Iterator[dict[str, Any]]:
    cosines, counts = vector.refusal_cosines().numpy(), vector.provenance["counts"]
    # The refusal direction is of fixed texts.
    fixed = vector.directions.get("refusal")
    behind = [] if fixed is None or vector.trait not in parts else [(parts[vector.trait], fixed)]
    found = _intervals(cosines, behind)
    for layer in range(1, vector.n_layers + 1):
        yield {
            "trait": vector.trait,
            "layer": layer,
            "norm": float(vector.directions["persona"][layer].norm()),
            "residual_norm": vector.residual_norm(layer),
            **spread("refusal_cosine", found[layer]),
            "n_positive": counts["positive"]["kept"],
            "n_negative": counts["negative"]["kept"],
            "warning": vector.provenance["warning"],
            "chosen": layer == chosen,
            "vector_id": vector.hash[:16],
        }


def _pair(vector: PersonaVector, other: PersonaVector, parts: _Parts) -> Iterator[dict[str, Any]]:
    """Two traits' persona directions at every layer that is steered; each trait has questions of its own."""
    ours, theirs = (item.directions["persona"] for item in (vector, other))
    known = vector.trait in parts and other.trait in parts
    behind = [(parts[vector.trait], theirs), (parts[other.trait], ours)] if known else []
    found = _intervals(cosine_similarity(ours, theirs, dim=1).numpy(), behind)
    for layer in range(1, vector.n_layers + 1):
        yield {
            "trait": vector.trait,
            "other": other.trait,
            "layer": layer,
            **spread("cosine", found[layer]),
            "width": ours.shape[1],
        }


def _intervals(cosines: np.ndarray, behind: Sequence[tuple[tuple[np.ndarray, int], Tensor]]) -> list[st.Interval]:
    """Each layer's cosine; `behind` holds, for each vector that was sampled, its parts and what it is held against."""
    left_out = [_cosines(without, fixed.numpy()) for (without, _), fixed in behind]
    fewest = min((n for (_, n), _ in behind), default=0)
    return [
        st.jackknife_cosine(float(cosine), [part[:, layer] for part in left_out], fewest)
        for layer, cosine in enumerate(cosines)
    ]


def _cosines(some: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosines along the last axis, NaN where one is zero."""
    lengths = np.linalg.norm(some, axis=-1) * np.linalg.norm(other, axis=-1)
    with np.errstate(invalid="ignore"):
        found: np.ndarray = (some * other).sum(axis=-1) / np.where(lengths > 0, lengths, np.nan)
    return found
