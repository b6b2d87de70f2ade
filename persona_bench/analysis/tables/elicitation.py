"""Responses to instructions that bring the trait out, or keep it in: scores, and what the filter kept."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.grouping import (
    COUNTS,
    SCORE,
    Draw,
    Row,
    counts,
    groups,
    log_names,
    mean_row,
    paired,
    scored,
    spread,
    with_interval,
)

_DROP_REASONS = ("score", "coherence", "refusal", "length", "unscored")
ELICITATION_TABLES: Mapping[str, tuple[str, ...]] = {
    "elicitation": (
        *("trait", "side", *COUNTS),
        *with_interval("trait_score", "coherence"),
        *("kept", "dropped_score", "dropped_coherence", "dropped_refusal", "dropped_length", "dropped_unscored"),
        *with_interval("difference"),
        *("difference_p", "log"),
    ),
}
"""Columns of the tables, in the order of the CSV files."""
ELICITATION_SORT: Mapping[str, tuple[str, ...]] = {
    "elicitation": ("trait", "side"),
}
"""Columns by which the rows are sorted."""


def elicitation_rows(elicitation: pd.DataFrame, draw: Draw) -> list[Row]:
    """The rows of the table `elicitation`; the positive side has the difference to the negative one."""
    rows: list[Row] = []
    for key, part in groups(elicitation, "trait", "side"):
        reasons = part["drop_reason"].fillna("").astype(str)
        row = {**key, **counts(part), "log": log_names(part), "kept": int(part["kept"].astype(bool).sum())}
        row |= {f"dropped_{reason}": int((reasons == reason).sum()) for reason in _DROP_REASONS}
        row |= mean_row("trait_score", scored(part), part, draw, "elicitation", *key.values(), bounds=SCORE)
        row |= mean_row("coherence", part["coherence"], part, draw, "elicitation", *key.values(), bounds=SCORE)
        if key["side"] == "positive":
            other = elicitation[(elicitation["trait"] == key["trait"]) & (elicitation["side"] == "negative")]
            gap = paired(scored(part), part, scored(other), other, draw, "elicitation", key["trait"])
            row |= {**spread("difference", gap), "difference_p": st.bootstrap_p(gap)}
        rows.append(row)
    return rows
