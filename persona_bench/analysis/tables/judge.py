"""The judge on labelled answers: right how often, by half, source and kind of answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
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
    spread,
    with_interval,
)
from persona_bench.definitions.claims import GATE_AUROC, GATE_BALANCED_ACCURACY, claim
from persona_bench.definitions.outcomes import COHERENCE_CUT, TRAIT_CUT

BASELINE = "baseline"
"""Stands for the grader in the rows of the trivial judges that every judge is compared with."""
ALL = "all"
"""Stands for the trait in rows about the answers of all traits together."""
GATE_MIN_SCORED = claim("J-judge-valid").min_n
"""A judge that scored fewer labelled answers of the report half decides no claim."""
JUDGE_TABLES: Mapping[str, tuple[str, ...]] = {
    "judge": (
        *("trait", "grader", "method", "half", "source", *COUNTS),
        *with_interval("auroc", "balanced_accuracy", "spearman", "pairwise", "kappa"),
        *("passes", "chosen", "log"),
    ),
    "judge_cases": (
        *("trait", "grader", "method", "kind", *COUNTS, "mean_level"),
        *with_interval("trait_score", "right", "auroc"),
        "log",
    ),
    "judge_outcomes": (
        *("trait", "grader", "source", "outcome", "n", "n_unscored", "n_positive"),
        *with_interval("auroc", "found", "mistaken"),
        "log",
    ),
}
"""Columns of the tables, in the order of the CSV files."""
JUDGE_SORT: Mapping[str, tuple[str, ...]] = {
    "judge": ("trait", "source", "grader", "method", "half"),
    "judge_cases": ("trait", "kind", "grader", "method"),
    "judge_outcomes": ("trait", "outcome", "source", "grader"),
}
"""Columns by which the rows are sorted."""


def judge_rows(judge: pd.DataFrame, draw: Draw, used: Mapping[str, str]) -> list[Row]:
    """Labelled answers: over 50 is positive, under 50 negative; 50 itself counts for rank, pairs and kappa only.

    `source` is `written` or `model` (real responses), and `all`, on which the gate stands, for both together. A judge
    that gave too few of them a score passes nothing, however right it was about those.
    """
    rows: list[Row] = []
    everything = judge.assign(source="all")
    for key, part in groups(pd.concat([judge, everything]), "trait", "grader", "method", "half", "source"):
        score, level, ids = _said(part), part["level"].astype(float), part["question_id"]
        label, name = _label(level), ("judge", *key.values())
        row = {**key, **counts(part), "n": len(part), "log": log_names(part), "chosen": False}
        for column, statistic, against in (
            ("auroc", st.auroc, label),
            ("balanced_accuracy", st.balanced_accuracy, label),
            ("spearman", st.spearman, level),
            ("pairwise", st.pairwise_agreement, level),
            ("kappa", st.weighted_kappa, level),
        ):
            use = against.notna()
            found = statistic(score[use], against[use], ids[use], rng=draw.rng(*name, column), resamples=draw.resamples)
            row |= spread(column, found)
        right = row["auroc"] >= GATE_AUROC and row["balanced_accuracy"] >= GATE_BALANCED_ACCURACY
        row["passes"] = right and row["n_scored"] >= GATE_MIN_SCORED
        rows.append(row)
    for trait in {row["trait"] for row in rows}:
        mine = [row for row in rows if row["trait"] == trait and row["grader"] != BASELINE]
        if mine:
            grader, method = _judge_in_use([row for row in mine if row["source"] == "all"], used.get(trait))
            for row in mine:
                row["chosen"] = row["grader"] == grader and row["method"] == method and row["source"] == "all"
    return rows


def case_rows(judge: pd.DataFrame, draw: Draw) -> list[Row]:
    """The report half by kind of answer: the hard cases of the labelled set, and `model` for real responses.

    `right` is the share on the right side of the cut, out of the answers that have a score and a level other than 50.
    """
    rows: list[Row] = []
    for key, part in groups(judge[judge["half"] == "report"], "trait", "grader", "method", "kind"):
        score, level = _said(part), part["level"].astype(float)
        label, name = _label(level), ("judge case", *key.values())
        known = score.notna() & label.notna()
        right = int(((score >= TRAIT_CUT) == (label == 1))[known].sum())
        row = {**key, **counts(part), "mean_level": float(level.mean()), "log": log_names(part)}
        row |= mean_row("trait_score", score, part, draw, *name, bounds=SCORE)
        row |= spread("right", st.wilson(right, int(known.sum())))
        area = st.auroc(
            score[known], label[known], part["question_id"][known], rng=draw.rng(*name), resamples=draw.resamples
        )
        rows.append(row | spread("auroc", area))
    return rows


def outcome_rows(judge: pd.DataFrame, draw: Draw) -> list[Row]:
    """What the judge says besides the trait, on the report half: is an answer incoherent, is it a refusal?

    An answer is the one where its readers give it a coherence under the cut, and no refusal; the other where they say
    so. `auroc` is of the judge's coherence; `found` is the share of those answers that get the outcome, `mistaken` that
    of the others. Coherence is no matter of a trait, so that all answers together stand beside each trait's.
    """
    report = judge[(judge["half"] == "report") & (judge["grader"] != BASELINE) & judge["fluency"].notna()]
    everything = report.assign(trait=ALL)
    rows: list[Row] = []
    for key, part in groups(pd.concat([report, everything]), "trait", "grader", "source"):
        refuses = part["refuses"].astype(bool)
        of_coherence = part[~refuses]
        garbled = of_coherence["fluency"].astype(float) < COHERENCE_CUT
        area = st.auroc(
            -of_coherence["coherence"].astype(float),
            garbled.astype(float),
            of_coherence["question_id"],
            rng=draw.rng("judge outcomes", *key.values()),
            resamples=draw.resamples,
        )
        rows.append({**key, **_outcome("incoherent", of_coherence, garbled), **spread("auroc", area)})
        rows.append({**key, **_outcome("refusal", part, refuses), **spread("auroc", st.wilson(0, 0))})
    return rows


def _outcome(outcome: str, part: pd.DataFrame, positive: pd.Series) -> Row:
    """How often answers that are one, and that are none, are called so; what the judge failed on counts for neither."""
    judged = part["status"] != "unscored"
    said = part["status"] == outcome
    row: Row = {
        "outcome": outcome,
        "n": len(part),
        "n_unscored": int((~judged).sum()),
        "n_positive": int(positive.sum()),
    }
    for column, among in (("found", positive & judged), ("mistaken", ~positive & judged)):
        row |= spread(column, st.wilson(int(said[among].sum()), int(among.sum())))
    return {**row, "log": log_names(part)}


def _said(judge: pd.DataFrame) -> pd.Series:
    """What the judge said of the trait, of incoherent answers too; NaN where it said nothing (refusal, failure)."""
    return judge["trait_score"].astype(float).where(judge["status"].isin(["scored", "incoherent"]))


def _label(level: pd.Series) -> pd.Series:
    return pd.Series(np.where(level > TRAIT_CUT, 1.0, np.where(level < TRAIT_CUT, 0.0, np.nan)), index=level.index)


def _judge_in_use(rows: Sequence[Row], method: str | None) -> tuple[str, str]:
    """Grader and method the gate is about: the one the run names, else the best on the calibrate half, else by name."""
    named = [row for row in rows if row["method"] == method]
    if method is not None and not named:
        return "", method
    named = named or list(rows)
    calibrated = [row for row in named if row["half"] == "calibrate" and not math.isnan(row["auroc"])]
    best = min(calibrated or named, key=lambda row: (-row["auroc"] if calibrated else 0, row["grader"], row["method"]))
    return best["grader"], best["method"]
