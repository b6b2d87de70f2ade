"""Shared parts of the tables: groups of samples, their counts, and statistics as rows with intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from persona_bench.analysis import statistics as st

Row = dict[str, Any]
SCORE = (0.0, 100.0)
COUNTS = ("n", "n_scored", "n_refusal", "n_incoherent", "n_unscored")
"""The columns that say of how many responses each outcome was."""


def with_interval(*names: str) -> tuple[str, ...]:
    """The columns of statistics with their 95 % intervals: `x`, `x_low`, `x_high` for each name."""
    return tuple(f"{name}{end}" for name in names for end in ("", "_low", "_high"))


@dataclass(frozen=True)
class Draw:
    """How to resample: handed down so that every estimate gets a stream of its own."""

    seed: int
    resamples: int

    def rng(self, *key: object) -> np.random.Generator:
        """The stream of one named estimate."""
        return st.stream(self.seed, *key)


def scored(frame: pd.DataFrame) -> pd.Series:
    """The trait scores, NaN wherever the judge gave none or the answer is a refusal."""
    return frame["trait_score"].astype(float).where(frame["status"] == "scored")


def single(frame: pd.DataFrame) -> pd.DataFrame:
    """The unsteered rows and those steered at a single layer, among which layer and coefficient are chosen."""
    return frame[frame["setting"].isin(["none", "single"])]


def log_names(frame: pd.DataFrame) -> str:
    """The logs that a group of samples comes from, joined by "; "."""
    return "; ".join(sorted({str(name) for name in frame["log"].dropna()})) if "log" in frame else ""


def groups(frame: pd.DataFrame, *keys: str) -> Iterator[tuple[Row, pd.DataFrame]]:
    """Groups in sorted order, with their key as a dict; nothing for an empty frame."""
    if frame.empty:
        return
    for key, part in frame.groupby(list(keys), sort=True):
        values = key if isinstance(key, tuple) else (key,)
        yield dict(zip(keys, values, strict=True)), part


def halves(frame: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Each half by itself, and "all" where there is more than one."""
    halves = sorted({str(half) for half in frame["half"]})
    for half in halves:
        yield half, frame[frame["half"] == half]
    if len(halves) > 1:
        yield "all", frame


def counts(part: pd.DataFrame) -> Row:
    """How many samples there are, and how many of each outcome."""
    has_score = int(scored(part).notna().sum())
    refusals, incoherent = (int((part["status"] == name).sum()) for name in ("refusal", "incoherent"))
    return {
        "n": len(part),
        "n_scored": has_score,
        "n_refusal": refusals,
        "n_incoherent": incoherent,
        "n_unscored": len(part) - has_score - refusals - incoherent,
    }


def spread(name: str, estimate: st.Estimate | st.Interval) -> Row:
    """An estimate as three columns: value, lower and upper end."""
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def mean_row(
    name: str,
    values: pd.Series,
    part: pd.DataFrame,
    draw: Draw,
    *key: object,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Row:
    """The mean of a column with its interval, resampled by the question of `part`."""
    rng = draw.rng(*key, name)
    ids = part["question_id"]
    return spread(name, st.mean(values.astype(float), ids, rng=rng, resamples=draw.resamples, bounds=bounds))


def in_common(
    first: pd.Series, first_part: pd.DataFrame, second: pd.Series, second_part: pd.DataFrame
) -> tuple[int, int]:
    """How many values of each of two cells `paired` compares: those of questions with a value in both."""
    parts = [part["question_id"][values.notna()] for values, part in ((first, first_part), (second, second_part))]
    return int(parts[0].isin(set(parts[1])).sum()), int(parts[1].isin(set(parts[0])).sum())


def paired(
    first: pd.Series, first_part: pd.DataFrame, second: pd.Series, second_part: pd.DataFrame, draw: Draw, *key: object
) -> st.Estimate:
    """Mean difference of two cells, paired by question."""
    return st.paired_difference(
        first.astype(float),
        first_part["question_id"],
        second.astype(float),
        second_part["question_id"],
        rng=draw.rng(*key),
        resamples=draw.resamples,
    )
