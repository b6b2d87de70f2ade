"""Hard cases beside their twins: is the judge misled where an answer is hard to read, and right where it is plain?

A twin is an unmistakable answer to the same question on the same side of the cut, so that neither the question nor the
trait's level stands behind a difference. Hard cases are those of the labelled set, and some that were written for this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.grouping import Draw, Row, groups, log_names, spread, with_interval
from persona_bench.definitions.outcomes import TRAIT_CUT
from persona_bench.definitions.traits import TWIN

ANSWERS = ("clear", "graded", "model")
"""Kinds of labelled answers that mark no hard case."""
EVERY = "all"
"""Every kind of hard case together."""
HARD_CASE_TABLES: Mapping[str, tuple[str, ...]] = {
    "hard_cases": (
        *("trait", "grader", "method", "kind", "n", "n_left_out"),
        *(*with_interval("twin_right", "hard_right", "difference"), "log"),
    ),
}
"""Columns of the tables: a row a judge and kind; `n` pairs have a score on both sides, `n_left_out` have not."""
HARD_CASE_SORT: Mapping[str, tuple[str, ...]] = {
    "hard_cases": ("trait", "grader", "method", "kind"),
}
"""Columns by which the rows are sorted."""


def paired_cases(judge: pd.DataFrame, twins: pd.DataFrame) -> pd.DataFrame:
    """A row a hard case of the report half that has a twin: `hard` and `twin`, 1 where judged right, NaN without score.

    Args:
        judge: the sample frame of labelled answers.
        twins: that of the twins and of the hard cases written beside them.
    """
    every = pd.concat([part for part in (judge, twins) if len(part)] or [judge])
    every = every[(every["half"] == "report") & ~every["kind"].isin(ANSWERS)]
    level = every["level"].astype(float)
    said = every["trait_score"].astype(float).where(every["status"].isin(["scored", "incoherent"]))
    right = ((said >= TRAIT_CUT) == (level > TRAIT_CUT)).astype(float).where(said.notna())
    every = every.assign(right=right, side=np.sign(level - TRAIT_CUT))
    # An answer in the middle is on no side.
    every = every[every["side"] != 0]
    keys = ["trait", "grader", "method", "question_id", "side"]
    is_twin = every["kind"] == TWIN
    twin = every[is_twin].groupby(keys)["right"].mean().rename("twin").reset_index()
    return every[~is_twin].rename(columns={"right": "hard"}).merge(twin, on=keys)


def judged_right(pairs: pd.DataFrame, draw: Draw, *key: object) -> dict[str, st.Estimate]:
    """Shares of twins and of hard cases judged right, and the first minus the second, over pairs with both scores."""
    both = pairs.dropna(subset=["twin", "hard"])
    values = {"twin_right": both["twin"], "hard_right": both["hard"], "difference": both["twin"] - both["hard"]}
    return {
        name: st.mean(
            found.astype(float),
            both["question_id"],
            # One stream for all three: the same questions are drawn.
            rng=draw.rng("hard cases", *key),
            resamples=draw.resamples,
            bounds=(-1, 1) if name == "difference" else (0, 1),
        )
        for name, found in values.items()
    }


def hard_case_rows(judge: pd.DataFrame, twins: pd.DataFrame, draw: Draw) -> Iterator[Row]:
    """Rows of the table `hard_cases`."""
    pairs = paired_cases(judge, twins)
    for key, part in groups(pd.concat([pairs, pairs.assign(kind=EVERY)]), "trait", "grader", "method", "kind"):
        found = judged_right(part, draw, *key.values())
        n = found["difference"].n
        row: Row = {**key, "n": n, "n_left_out": len(part) - n, "log": log_names(part)}
        for name, estimate in found.items():
            row |= spread(name, estimate)
        yield row
