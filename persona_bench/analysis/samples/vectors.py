"""Vectors -> sample frames: norms and cosines by layer, with what other questions would have made of the cosines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch.nn.functional import cosine_similarity

from persona_bench.analysis import statistics as st
from persona_bench.analysis.grouping import spread
from persona_bench.vectors.question_sums import QuestionSums
from persona_bench.vectors.vector import PersonaVector

LeftOut = Mapping[str, np.ndarray]
"""Trait -> its vector without each question in turn, `(n_questions, n_layers + 1, d_model)`."""


def vector_rows(
    vectors: Sequence[PersonaVector], chosen: Mapping[str, int], sums: Mapping[str, QuestionSums]
) -> dict[str, list[dict[str, Any]]]:
    """The rows of the frames `vectors` and `cosines`.

    Args:
        vectors: of a run's traits.
        chosen: trait -> the layer it is used at.
        sums: trait -> what its vector is made of; cosines with a vector that has none have no interval.
    """
    left_out = {vector.trait: sums[vector.trait].left_out() for vector in vectors if vector.trait in sums}
    ordered = sorted(vectors, key=lambda item: item.trait)
    return {
        "vectors": [row for item in ordered for row in _by_layer(item, chosen.get(item.trait), left_out)],
        "cosines": [
            row for item in ordered for other in vectors if other is not item for row in _pair(item, other, left_out)
        ],
    }


def _by_layer(vector: PersonaVector, chosen: int | None, left_out: LeftOut) -> Iterator[dict[str, Any]]:
    cosines, counts = vector.refusal_cosines().numpy(), vector.provenance["counts"]
    # The refusal direction is of fixed texts.
    without = left_out.get(vector.trait) if "refusal" in vector.directions else None
    sets = [] if without is None else [_cosines(without, vector.directions["refusal"].numpy())]
    for layer in range(1, vector.n_layers + 1):
        yield {
            "trait": vector.trait,
            "layer": layer,
            "norm": float(vector.directions["persona"][layer].norm()),
            "residual_norm": vector.residual_norm(layer),
            **_interval("refusal_cosine", cosines, sets, layer),
            "n_positive": counts["positive"]["kept"],
            "n_negative": counts["negative"]["kept"],
            "warning": vector.provenance["warning"],
            "chosen": layer == chosen,
            "vector_id": vector.hash[:16],
        }


def _pair(vector: PersonaVector, other: PersonaVector, left_out: LeftOut) -> Iterator[dict[str, Any]]:
    """Two traits' persona directions at every layer that is steered; each trait has questions of its own."""
    ours, theirs = (item.directions["persona"] for item in (vector, other))
    known = vector.trait in left_out and other.trait in left_out
    pairs = ((vector.trait, theirs), (other.trait, ours)) if known else ()
    sets = [_cosines(left_out[trait], fixed.numpy()) for trait, fixed in pairs]
    cosines = cosine_similarity(ours, theirs, dim=1).numpy()
    for layer in range(1, vector.n_layers + 1):
        yield {
            "trait": vector.trait,
            "other": other.trait,
            "layer": layer,
            **_interval("cosine", cosines, sets, layer),
            "width": ours.shape[1],
        }


def _interval(name: str, cosines: np.ndarray, sets: Sequence[np.ndarray], layer: int) -> dict[str, float]:
    return spread(name, st.jackknife_cosine(float(cosines[layer]), *(part[:, layer] for part in sets)))


def _cosines(some: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosines along the last axis, NaN where one is zero."""
    lengths = np.linalg.norm(some, axis=-1) * np.linalg.norm(other, axis=-1)
    with np.errstate(invalid="ignore"):
        found: np.ndarray = (some * other).sum(axis=-1) / np.where(lengths > 0, lengths, np.nan)
    return found
