"""The vectors: norms and doses by layer, warnings, and the layer that is used."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pandas as pd

VECTOR_TABLES: Mapping[str, tuple[str, ...]] = {
    "vectors": (
        *("trait", "layer", "norm", "residual_norm", "dose_per_unit"),
        *("refusal_cosine", "refusal_cosine_low", "refusal_cosine_high"),
        *("n_positive", "n_negative", "warning", "chosen", "vector_id"),
    ),
    "cosines": ("trait", "other", "layer", "cosine", "cosine_low", "cosine_high", "width"),
}
"""Columns of the tables, in the order of the CSV files."""
VECTOR_SORT: Mapping[str, tuple[str, ...]] = {
    "vectors": ("trait", "layer", "vector_id"),
    "cosines": ("trait", "other", "layer"),
}
"""Columns by which the rows are sorted."""


def vector_table(vectors: pd.DataFrame) -> pd.DataFrame:
    """The table `vectors`: relative dose per unit of coefficient beside the norms."""
    residual = vectors["residual_norm"].astype(float)
    dose = vectors["norm"].astype(float) / residual.where(residual > 0)
    return vectors.assign(dose_per_unit=dose)[list(VECTOR_TABLES["vectors"])]


def vector_warnings(vectors: pd.DataFrame) -> dict[str, str]:
    """Trait -> the warning its vector carries, for vectors that carry one (from the vector frame or table)."""
    return {str(row["trait"]): str(row["warning"]) for _, row in vectors.iterrows() if row["warning"]}


def chosen_layers(vectors: pd.DataFrame, choice: pd.DataFrame) -> dict[str, float]:
    """Trait -> the layer used for monitoring: the one marked in the vector frame, else the steering choice."""
    layers = {}
    for _, row in choice[choice["sign"] == "positive"].iterrows():
        if not math.isnan(row["layer"]):
            layers[str(row["trait"])] = float(row["layer"])
    for _, row in vectors[vectors["chosen"].astype(bool)].iterrows():
        layers[str(row["trait"])] = float(row["layer"])
    return layers
