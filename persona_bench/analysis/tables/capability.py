"""Capability under steering: accuracy and margins on multiple-choice benchmarks, paired with the unsteered model.

A cell is one benchmark, way of answering, number of examples, and steering; it stands once for all its questions
(`group` "all") and once for each group of subjects that its source knows.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.grouping import Draw, Row, groups, log_names, spread, with_interval
from persona_bench.analysis.samples.frames import CELL

__all__ = ["EVERY", "FAMILY", "capability_rows", "first_above_chance", "mcnemar", "paired", "share_right", "unsteered"]

EVERY = "all"
"""The group of all questions."""
FAMILY = ("benchmark", "scoring", "shots", "source")
"""Cells that differ in none of these are compared with one another."""
_CELL = ("trait", "vector", "setting", "layer", "layers", "coefficient")
_QUESTION = ["source", "question_id"]
CAPABILITY_TABLES: Mapping[str, tuple[str, ...]] = {
    "mmlu": (
        *("trait", *CELL, "benchmark", "scoring", "shots", "source", "group"),
        *("n", "n_no_answer", "n_too_long", "n_unscored", "chance", "above_chance"),
        *(*with_interval("accuracy", "difference"), "n_paired", "mcnemar_p"),
        *(*with_interval("margin", "margin_difference"), "log"),
    ),
}
"""Columns of the tables, in the order of the CSV files."""
CAPABILITY_SORT: Mapping[str, tuple[str, ...]] = {
    "mmlu": ("benchmark", "scoring", "shots", "group", "trait", "vector", "setting", "layer", "layers", "coefficient"),
}
"""Columns by which the rows are sorted."""


def capability_rows(mmlu: pd.DataFrame, draw: Draw) -> list[Row]:
    """The rows of the table `mmlu`.

    `n` questions have a right or wrong answer, `n_no_answer` of them wrong because the model named no option; beyond
    them come `n_too_long` for the model's context and `n_unscored`. Where only true answers are known (scoring
    `likelihood`) there is no accuracy, and `margin` is their mean log-likelihood per token.
    """
    rows: list[Row] = []
    for family, everything in groups(mmlu, *FAMILY):
        for group, part in _by_group(everything):
            plain = unsteered(part)
            base = share_right(plain)
            for key, cell in groups(part, *_CELL):
                name = ("mmlu", *family.values(), group, *key.values())
                row = {**family, **key, "group": group, "log": log_names(cell), **_outcomes(cell)}
                row["relative_dose"] = float(cell["relative_dose"].astype(float).mean())
                row["chance"] = _chance(cell)
                row["above_chance"] = above_chance(base, _chance(plain))
                margin = st.mean(
                    cell["margin"].astype(float),
                    cell["question_id"],
                    rng=draw.rng(*name, "margin"),
                    resamples=draw.resamples,
                )
                row |= spread("accuracy", share_right(cell)) | spread("margin", margin)
                if not _is_plain(cell).all():
                    change, pairs = paired(cell, plain, "correct", draw.rng(*name), draw.resamples)
                    finer, _ = paired(cell, plain, "margin", draw.rng(*name, "margin change"), draw.resamples)
                    row |= spread("difference", change) | spread("margin_difference", finer)
                    row |= {"n_paired": len(pairs), "mcnemar_p": mcnemar(pairs)}
                rows.append(row)
    return rows


def _by_group(family: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    yield EVERY, family
    for key, part in groups(family[family["group"] != EVERY], "group"):
        yield str(key["group"]), part


def _outcomes(cell: pd.DataFrame) -> Row:
    status = cell["status"].value_counts()
    too_long, unscored = (int(status.get(name, 0)) for name in ("too_long", "unscored"))
    return {
        "n": len(cell) - too_long - unscored,
        "n_no_answer": int(status.get("no_answer", 0)),
        "n_too_long": too_long,
        "n_unscored": unscored,
    }


def _is_plain(mmlu: pd.DataFrame) -> pd.Series:
    # A prompt that works on the trait steers with no vector either.
    return (mmlu["vector"] == "none") & (mmlu["setting"] == "none")


def unsteered(mmlu: pd.DataFrame) -> pd.DataFrame:
    """The answers of the model as it is."""
    found: pd.DataFrame = mmlu[_is_plain(mmlu)]
    return found


def share_right(part: pd.DataFrame) -> st.Estimate:
    """Accuracy with Wilson's interval; NaN where nothing can be right."""
    correct = part["correct"].astype(float)
    return st.wilson(int(correct.sum()), int(correct.notna().sum()), n_unscored=int(correct.isna().sum()))


def _chance(part: pd.DataFrame) -> float:
    """Mean chance level of the questions; NaN without any."""
    return float(part["chance"].astype(float).mean()) if len(part) else math.nan


def above_chance(base: st.Estimate, chance: float) -> bool:
    """Whether an unsteered interval lies above the chance level; not where either is unknown."""
    return bool(base.low > chance)


def first_above_chance(table: pd.DataFrame) -> tuple[str, int] | None:
    """(scoring, shots) that a verdict about MMLU rests on, by the rule written beforehand.

    Fewer examples first, letter before cloze: the first whose unsteered interval lies above chance; None if none does.

    Args:
        table: the table `mmlu`.
    """
    plain = unsteered(table[(table["benchmark"] == "mmlu") & (table["group"] == EVERY)])
    able = plain[plain["accuracy_low"].astype(float) > plain["chance"].astype(float)]
    order = [(int(shots), way) for shots in sorted(able["shots"].unique()) for way in ("letter", "cloze")]
    found = {(int(row["shots"]), str(row["scoring"])) for _, row in able.iterrows()}
    return next(((way, shots) for shots, way in order if (shots, way) in found), None)


def paired(
    part: pd.DataFrame, plain: pd.DataFrame, column: str, rng: np.random.Generator, resamples: int
) -> tuple[st.Estimate, pd.DataFrame]:
    """The change of a column on the questions that have it in both, and those pairs as `steered` and `plain`."""
    pairs = (
        part.rename(columns={column: "steered"})[[*_QUESTION, "steered"]]
        .merge(plain.rename(columns={column: "plain"})[[*_QUESTION, "plain"]], on=_QUESTION)
        .dropna(subset=["steered", "plain"])
    )
    ids = pairs["source"].astype(str) + "/" + pairs["question_id"].astype(str)
    steered, base = pairs["steered"].astype(float), pairs["plain"].astype(float)
    return st.paired_difference(steered, ids, base, ids, rng=rng, resamples=resamples), pairs


def mcnemar(pairs: pd.DataFrame) -> float:
    """Exact McNemar p value of the pairs of right and wrong that `paired` gives; NaN without pairs."""
    if pairs.empty:
        return math.nan
    steered, plain = pairs["steered"].astype(float), pairs["plain"].astype(float)
    return st.mcnemar_exact(int((steered > plain).sum()), int((plain > steered).sum()))
