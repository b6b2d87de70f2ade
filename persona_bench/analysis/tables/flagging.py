"""Flagging before training: whole sets against what training on them did, single samples as a detector is judged.

A training set's measure is the mean over its samples of a scalar projection at the layer chosen for the trait; its
outcomes are those of the model trained on it plainly: the shift of the last prompt token along the vector, and the
trait score. A sample is positive if it comes from a version with mistakes or trait in it, negative if from `normal`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.detection import average_precision, precision_recall, recall_at
from persona_bench.analysis.grouping import (
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
from persona_bench.analysis.samples.frames import control_columns
from persona_bench.analysis.tables.finetuning import BASE, NORMAL, PLAIN, of_kind, shifts_of
from persona_bench.definitions.claims import claim
from persona_bench.definitions.families.family import TRAIT_FAMILIES
from persona_bench.definitions.flagging import MEASURES

if TYPE_CHECKING:
    from persona_bench.analysis.samples.frames import Samples

SHARES = (0.01, 0.05, 0.20)
"""Of positives in a mixture."""
FALSE_ALARMS = 0.01
OUTCOMES = ("shift", "trait_score")
SET_CLAIMS: Mapping[tuple[str, str], str] = {
    ("difference", "shift"): "D1-difference-tells-shift",
    ("difference", "trait_score"): "D2-difference-tells-trait",
    ("response", "trait_score"): "D3-raw-projection",
    ("response_minus_prompt", "trait_score"): "D4-no-generation-needed",
}
"""(measure, outcome) -> the claim about their correlation."""
DIFFERENCE, JUDGE, BOTH, RANDOM_DIRECTION = "difference", "judge", "judge and difference", "random direction"
CLASSIFIER, PERPLEXITY, RANDOM_NUMBERS = "text classifier", "perplexity", "random numbers"
DETECTORS = (*MEASURES, JUDGE, BOTH, CLASSIFIER, PERPLEXITY, RANDOM_DIRECTION, RANDOM_NUMBERS)
FITTED = (BOTH, CLASSIFIER)
"""Detectors that were fitted on the select half, and are judged on the report half alone."""


def fitted(detector: str, family: str) -> bool:
    """Whether a detector has seen answers of the select half: on those of a trait, a local judge is calibrated."""
    return detector in FITTED or (detector == JUDGE and family in TRAIT_FAMILIES)


BINS = 24
GRID = np.linspace(0, 1, 41)


_AT = tuple(f"average_precision_{round(100 * share):02d}" for share in SHARES)

FLAGGING_TABLES: Mapping[str, tuple[str, ...]] = {
    "flagging_sets": (
        *("trait", "family", "version", "layer", "n", "n_measured", *with_interval(*MEASURES)),
        *(*(f"random_{measure}" for measure in MEASURES), *with_interval("shift", "trait_score"), "log"),
    ),
    "flagging_correlation": (
        *(
            "trait",
            "measure",
            "outcome",
            "n_sets",
            *with_interval("r"),
            "r_random",
            "n_random",
            *with_interval("excess"),
            "paper",
            "log",
        ),
    ),
    "flagging_samples": (
        *("trait", "family", "version", "detector", "half", "n_positive", "n_negative", "n_missing", "n_questions"),
        *(*with_interval("auroc", "excess_random", *_AT, "recall_1"), "log"),
    ),
    "flagging_curves": ("trait", "family", "version", "detector", "share", "recall", "precision"),
    "flagging_values": ("trait", "family", "version", "measure", "low", "high", "count"),
    "flagging_causal": (
        *("pool", "trait", "pick", "n_picked", "difference", "made_of"),
        *("n", "n_scored", "n_refusal", "n_incoherent", "n_unscored"),
        *(*with_interval("trait_score", "to_random", "to_base", "coherence"), "log"),
    ),
}
"""The columns of the tables."""

FLAGGING_SORT: Mapping[str, tuple[str, ...]] = {
    "flagging_sets": ("trait", "family", "version"),
    "flagging_correlation": ("trait", "outcome", "measure"),
    "flagging_samples": ("trait", "family", "version", "half", "detector"),
    "flagging_curves": ("trait", "family", "version", "detector", "share", "recall"),
    "flagging_values": ("trait", "family", "version", "measure", "low"),
    "flagging_causal": ("pool", "trait", "pick"),
}


def flagging_rows(samples: Samples, draw: Draw) -> dict[str, list[Row]]:
    """The rows of every table of data flagging."""
    flagged = samples.flagging
    return {
        "flagging_sets": list(_set_rows(samples, draw)),
        "flagging_correlation": list(_correlation_rows(samples, draw)),
        "flagging_samples": list(_sample_rows(flagged, draw)),
        "flagging_curves": list(_curve_rows(flagged, draw)),
        "flagging_values": list(_value_rows(flagged)),
        "flagging_causal": list(_causal_rows(samples, draw)),
    }


# --- whole sets -------------------------------------------------------------------------------------------------------


def _outcomes(samples: Samples, trait: str) -> pd.DataFrame:
    """(family, version) -> mean shift and trait score of the model trained on it plainly, with the first seed."""
    moved = _first_seed(shifts_of(samples.shifts, trait, trait, arm=PLAIN))
    spoken = _first_seed(of_kind(samples.finetuning, "trait", arm=PLAIN, trait=trait))
    keys = ["family", "version"]
    return pd.DataFrame(
        {
            "shift": moved["shift"].astype(float).groupby([moved[key] for key in keys]).mean(),
            "trait_score": scored(spoken).groupby([spoken[key] for key in keys]).mean(),
        }
    )


def _first_seed(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["seed"] == rows["seed"].min()] if len(rows) else rows


def set_points(samples: Samples, trait: str, measure: str, outcome: str) -> pd.DataFrame:
    """One row a training set: `value` of a measure and `outcome`.

    Args:
        samples: with `flagging` and the frames of finetuning.
        trait: whose vector and score are meant.
        measure: a column of the frame `flagging`, one of `control_columns` too.
        outcome: one of `OUTCOMES`.
    """
    rows = samples.flagging
    rows = rows[(rows["kind"] == "set") & (rows["trait"] == trait)]
    value = rows[measure].astype(float).groupby([rows["family"], rows["version"]]).mean()
    points = pd.DataFrame({"value": value, "outcome": _outcomes(samples, trait)[outcome]}).dropna().reset_index()
    return points.assign(set=points["family"].astype(str) + "-" + points["version"].astype(str))


def set_correlation(points: pd.DataFrame, draw: Draw, trait: str, outcome: str) -> st.Estimate:
    """Pearson's r over training sets, which are what is resampled; the same are drawn for every measure."""
    rng = draw.rng("flagging", trait, outcome)
    return st.pearson(points["value"], points["outcome"], points["set"], rng=rng, resamples=draw.resamples)


def random_set_strength(samples: Samples, trait: str, measure: str, outcome: str, draw: Draw) -> st.Estimate:
    """The mean absolute r of a measure along the random directions; NaN where there is none."""
    found = [set_points(samples, trait, column, outcome) for column in _controls(samples.flagging, measure)]
    if not found:
        return st.of_draws(math.nan, np.empty(0), n=0, n_clusters=0)
    return st.strength_of_controls([set_correlation(points, draw, trait, outcome) for points in found])


def _controls(flagged: pd.DataFrame, measure: str) -> list[str]:
    """The columns of a measure along the random directions that were measured; older logs have one."""
    return [column for column in control_columns(measure) if flagged[column].notna().any()]


def _set_rows(samples: Samples, draw: Draw) -> Iterator[Row]:
    sets = samples.flagging[samples.flagging["kind"] == "set"]
    for key, part in groups(sets, "trait", "family", "version"):
        trait, where = str(key["trait"]), {"family": key["family"], "version": key["version"]}
        name = ("flagging sets", *key.values())
        row = {**key, "layer": part["layer"].iloc[0], "n": len(part), "n_measured": int(part["difference"].count())}
        for measure in MEASURES:
            row |= mean_row(measure, part[measure], part, draw, *name)
            row[f"random_{measure}"] = float(part[control_columns(measure)[0]].astype(float).mean())
        moved = _first_seed(shifts_of(samples.shifts, trait, trait, arm=PLAIN, **where))
        spoken = _first_seed(of_kind(samples.finetuning, "trait", arm=PLAIN, trait=trait, **where))
        row |= mean_row("shift", moved["shift"], moved, draw, *name)
        row |= mean_row("trait_score", scored(spoken), spoken, draw, *name, bounds=SCORE)
        yield {**row, "log": log_names(pd.concat([part[["log"]], spoken[["log"]]]))}


def _correlation_rows(samples: Samples, draw: Draw) -> Iterator[Row]:
    sets = samples.flagging[samples.flagging["kind"] == "set"]
    for trait in sorted(set(sets["trait"].astype(str))):
        for outcome in OUTCOMES:
            for measure in MEASURES:
                points = set_points(samples, trait, measure, outcome)
                if points.empty:
                    continue
                r = set_correlation(points, draw, trait, outcome)
                random = random_set_strength(samples, trait, measure, outcome, draw)
                about = SET_CLAIMS.get((measure, outcome))
                yield {
                    **{"trait": trait, "measure": measure, "outcome": outcome, "n_sets": len(points)},
                    **spread("r", r),
                    "r_random": random.value,
                    "n_random": len(_controls(sets, measure)),
                    **spread("excess", st.excess_strength(r, random)),
                    "paper": claim(about).paper_value(trait) if about else "",
                    "log": log_names(sets[sets["trait"] == trait]),
                }


# --- single samples ---------------------------------------------------------------------------------------------------


def mixture(flagged: pd.DataFrame, trait: str, family: str, version: str) -> pd.DataFrame:
    """The samples of a family's version (`label` 1) and of its normal counterpart (0), with every detector's score.

    Where a detector has no number for a sample (the judge failed or saw a refusal, the text was too long), it is NaN.
    """
    rows = flagged[(flagged["kind"] == "sample") & (flagged["trait"] == trait) & (flagged["family"] == family)]
    rows = rows[rows["version"].isin([NORMAL, version])].sort_values("sample_id")
    rows = rows.assign(label=(rows["version"] == version).astype(float))
    one = control_columns(DIFFERENCE)[0]
    for name, column in ((RANDOM_DIRECTION, one), (CLASSIFIER, "classifier"), (PERPLEXITY, "loss")):
        rows[name] = rows[column]
    rows[RANDOM_NUMBERS] = st.stream(0, "random numbers", family, version).random(len(rows))
    rows = rows.astype({name: float for name in DETECTORS if name != BOTH})
    rows[BOTH] = _together(rows)
    return rows


def _together(rows: pd.DataFrame) -> pd.Series:
    """Judge and projection difference by a logistic regression on the select half; NaN where it cannot be fitted."""
    from persona_bench.inspect_ext.calibration import logistic

    values = rows[[JUDGE, DIFFERENCE]]
    known = values.notna().all(axis=1)
    select = known & (rows["half"] == "select")
    found = pd.Series(math.nan, index=rows.index)
    if rows.loc[select, "label"].nunique() == 2:
        weights, bias = logistic(values[select].to_numpy(float), rows.loc[select, "label"].to_numpy(float), 1.0)
        found[known] = values[known].to_numpy(float) @ weights + bias
    return found


def area(rows: pd.DataFrame, detector: str, draw: Draw, *key: object) -> st.Estimate:
    """AUROC of a detector over a mixture, resampled by question; one key means the same resamples."""
    ids = rows["question_id"]
    return st.auroc(rows[detector], rows["label"], ids, rng=draw.rng(*key), resamples=draw.resamples)


def area_beyond_random(rows: pd.DataFrame, detector: str, draw: Draw, *key: object) -> st.Estimate:
    """How far a detector's AUROC lies above the mean of the random directions', over samples that all have.

    The sign of a random direction means nothing: its better way round counts.
    """
    columns = _controls(rows, DIFFERENCE)
    known = rows[rows[[detector, *columns]].notna().all(axis=1)]
    if not columns:
        return st.of_draws(math.nan, np.empty(0), n=0, n_clusters=0)
    own, *random = (area(known, name, draw, *key) for name in (detector, *columns))
    return st.excess(own, st.area_of_controls(random))


def _mixtures(flagged: pd.DataFrame) -> Iterator[tuple[Row, pd.DataFrame]]:
    single = flagged[flagged["kind"] == "sample"]
    for key, part in groups(single, "trait", "family", "version"):
        if key["version"] != NORMAL and len(part):
            yield key, mixture(flagged, str(key["trait"]), str(key["family"]), str(key["version"]))


def _sample_rows(flagged: pd.DataFrame, draw: Draw) -> Iterator[Row]:
    for key, rows in _mixtures(flagged):
        for half in ("all", "report"):
            part = rows if half == "all" else rows[rows["half"] == half]
            for detector in DETECTORS:
                if rows[detector].isna().all() or (half == "all" and fitted(detector, str(key["family"]))):
                    continue
                name = ("flagging", *key.values(), half)
                scores, labels, ids = part[detector], part["label"], part["question_id"]
                shares = {
                    column: average_precision(
                        scores, labels, ids, share, rng=draw.rng(*name, column), resamples=draw.resamples
                    )
                    for column, share in zip(_AT, SHARES, strict=True)
                }
                recall = recall_at(
                    scores, labels, ids, FALSE_ALARMS, rng=draw.rng(*name, "recall"), resamples=draw.resamples
                )
                valid = part[scores.notna()]
                row: Row = {**key, "detector": detector, "half": half}
                row |= {
                    "n_positive": int((valid["label"] == 1).sum()),
                    "n_negative": int((valid["label"] == 0).sum()),
                    "n_missing": len(part) - len(valid),
                    "n_questions": valid["question_id"].nunique(),
                }
                row |= spread("auroc", area(part, detector, draw, *name, "auroc"))
                row |= spread("excess_random", area_beyond_random(part, detector, draw, *name, "auroc"))
                for column, found in shares.items():
                    row |= spread(column, found)
                yield {**row, **spread("recall_1", recall), "log": log_names(part)}


def _curve_rows(flagged: pd.DataFrame, draw: Draw) -> Iterator[Row]:
    """Precision by recall on the report half, where every detector can be compared."""
    for key, rows in _mixtures(flagged):
        part = rows[rows["half"] == "report"]
        for detector in DETECTORS:
            for share in SHARES:
                found = precision_recall(part[detector], part["label"], share, GRID)
                if np.isfinite(found).any():
                    for recall, precision in zip(GRID, found, strict=True):
                        at = {"share": share, "recall": float(recall), "precision": float(precision)}
                        yield {**key, "detector": detector, **at}


def _value_rows(flagged: pd.DataFrame) -> Iterator[Row]:
    """Histograms of every measure, the versions of a family in the same bins."""
    single = flagged[flagged["kind"] == "sample"]
    for key, part in groups(single, "trait", "family"):
        for measure in MEASURES:
            values = part[measure].astype(float)
            known = values[values.notna()]
            if known.empty:
                continue
            low, high = float(known.min()), float(known.max())
            edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
            for version, own in part.groupby("version", sort=True):
                found = np.histogram(own[measure].astype(float).dropna(), edges)[0]
                for n, left, right in zip(found, edges[:-1], edges[1:], strict=True):
                    at = {"low": float(left), "high": float(right), "count": int(n)}
                    yield {**key, "version": version, "measure": measure, **at}


# --- trained on what was flagged --------------------------------------------------------------------------------------


def base_answers(samples: Samples, trait: str) -> pd.DataFrame:
    """The answers of the model before any training."""
    return of_kind(samples.finetuning, "trait", arm=BASE, trait=trait)


def _causal_rows(samples: Samples, draw: Draw) -> Iterator[Row]:
    for key, part in groups(samples.flagging_trained, "pool", "trait", "pick"):
        frame = samples.flagging_trained
        same = frame[(frame["pool"] == key["pool"]) & (frame["trait"] == key["trait"])]
        random, base = same[same["pick"] == "random"], base_answers(samples, str(key["trait"]))
        name = ("flagging trained", *key.values())
        row = {**key, **counts(part), **{c: part[c].iloc[0] for c in ("n_picked", "difference", "made_of")}}
        row |= mean_row("trait_score", scored(part), part, draw, *name, bounds=SCORE)
        row |= mean_row("coherence", part["coherence"], part, draw, *name, bounds=SCORE)
        for column, other in (("to_random", random), ("to_base", base)):
            row |= spread(column, paired(scored(part), part, scored(other), other, draw, *name, column))
        yield {**row, "log": log_names(part)}
