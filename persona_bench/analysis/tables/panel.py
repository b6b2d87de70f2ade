"""How far the graders of a panel agree with one another on the responses that all of them judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations

import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.grouping import Draw, Row, groups, log_names, mean_row, scored, spread, with_interval

PANEL_TABLES: Mapping[str, tuple[str, ...]] = {
    "judge_panel": (
        *("trait", "eval", "first", "second", "n", "n_unscored", *with_interval("same_outcome"), "n_scored"),
        *(*with_interval("spearman", "kappa", "difference"), "log"),
    ),
}
"""Columns of the tables, in the order of the CSV files."""
PANEL_SORT: Mapping[str, tuple[str, ...]] = {
    "judge_panel": ("trait", "eval", "first", "second"),
}
"""Columns by which the rows are sorted."""


def panel_rows(panel: pd.DataFrame, draw: Draw) -> Iterator[Row]:
    """One row an eval, trait and pair of graders.

    `same_outcome` is the share of responses that both gave the same outcome, out of those that neither failed on. The
    other measures are over responses that both scored: rank correlation, quadratically weighted kappa, and the mean
    difference in trait score, first minus second (points of 0..100).

    Args:
        panel: the sample frame of that name.
        draw: how to resample.
    """
    for key, part in groups(panel, "trait", "eval"):
        graders = sorted({str(name) for name in part["member"]})
        by_grader = {name: part[part["member"] == name].set_index("sample_id") for name in graders}
        for first, second in combinations(graders, 2):
            yield {**key, **_pair(by_grader[first], by_grader[second], draw, (*key.values(), first, second))} | {
                "first": first,
                "second": second,
                "log": log_names(part),
            }


def _pair(first: pd.DataFrame, second: pd.DataFrame, draw: Draw, name: tuple[object, ...]) -> Row:
    common = first.index.intersection(second.index)
    a, b = first.loc[common], second.loc[common]
    working = (a["status"] != "unscored") & (b["status"] != "unscored")
    same = (a["status"] == b["status"]).astype(float)[working]
    row: Row = {"n": int(working.sum()), "n_unscored": int((~working).sum())}
    row |= mean_row("same_outcome", same, a[working], draw, "panel", *name, bounds=(0, 1))
    x, y, ids = scored(a), scored(b), a["question_id"]
    row["n_scored"] = int((x.notna() & y.notna()).sum())
    for column, statistic in (("spearman", st.spearman), ("kappa", st.weighted_kappa)):
        row |= spread(column, statistic(x, y, ids, rng=draw.rng("panel", *name, column), resamples=draw.resamples))
    return row | mean_row("difference", x - y, a, draw, "panel", *name)
