"""The method itself, tested: traits that nobody named or prompts induce, other descriptions, other ways of averaging.

Columns of the sample frames and tables, and how the one becomes the other. What the numbers mean for the stated limits
is decided in `verdicts.method`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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
    paired,
    scored,
    spread,
    with_interval,
)
from persona_bench.analysis.samples.frames import CELL, METHOD_SAMPLES, Samples
from persona_bench.definitions.outcomes import TRAIT_CUT
from persona_bench.vectors.extraction import MIN_KEPT

OTHER, RANDOM = "trait:", "random:"
"""Before the name of another trait, and before the number of a random direction."""
FALSE_ALARM = 0.01
METHOD_TABLES: Mapping[str, tuple[str, ...]] = {
    "left_out": (
        *("trait", "direction", "layer", "half", "sign", "chosen", "n", "n_unscored", "n_positive", "n_negative"),
        *(*with_interval("auroc"), "threshold_1", *with_interval("tpr_1", "fpr_1"), "log"),
    ),
    "inducibility": (
        *("trait", *COUNTS, *with_interval("refusal_rate", "trait_score", "difference"), "kept_positive"),
        *("kept_negative", "needed", "induced", "reason", "log"),
    ),
    "variants": (
        *("trait", *CELL, "half", *COUNTS, "n_questions"),
        *(*with_interval("trait_score", "coherence", "refusal_rate", "difference", "below_full", "slope"), "log"),
    ),
    "sensitivity": (
        *("trait", "aspect", "setting", "layer", "n_draws", "n_positive", "n_negative"),
        *(*with_interval("cosine"), "norm_ratio", "log"),
    ),
}
METHOD_SORT: Mapping[str, tuple[str, ...]] = {
    "left_out": ("trait", "half", "direction", "layer"),
    "inducibility": ("trait",),
    "variants": ("trait", "half", "vector", "setting", "layer", "coefficient"),
    "sensitivity": ("trait", "aspect", "layer", "n_positive", "setting"),
}


def method_rows(samples: Samples, draw: Draw) -> dict[str, list[Row]]:
    """The rows of every table, by table."""
    return {
        "left_out": list(_left_out_rows(samples.readings, draw)),
        "inducibility": [induced_row(part, key["trait"], draw) for key, part in groups(samples.elicitation, "trait")],
        "variants": list(_variant_rows(samples, draw)),
        "sensitivity": list(_sensitivity_rows(samples.sensitivity)),
    }


# --- traits that nobody named -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Detector:
    """One direction as a detector of responses that show a trait.

    Attributes:
        direction: `trait:NAME` or `random:K`.
        layer: where it is read.
        sign: +1 if responses that show the trait lie further along it on the select half, else -1: a shift is seen
            whichever way it goes.
        select: AUROC on the select half, with that sign; NaN where it holds no response of one kind.
        report: AUROC on the report half, with that sign.
        values: the signed projections, by response.
    """

    direction: str
    layer: float
    sign: int
    select: float
    report: st.Estimate
    values: pd.Series

    def of(self, trait: str) -> Literal["own", "other", "random"]:
        """Whose direction it is, when this trait is to be seen."""
        if self.direction.startswith(RANDOM):
            return "random"
        return "own" if self.direction == f"{OTHER}{trait}" else "other"


def shows(frame: pd.DataFrame) -> pd.Series:
    """1 for a response with a trait score of at least 50, 0 for one under it, NaN without a score."""
    score = scored(frame)
    return (score >= TRAIT_CUT).astype(float).where(score.notna())


def detectors(readings: pd.DataFrame, trait: str, draw: Draw) -> list[Detector]:
    """Every direction as a detector of one trait; all are resampled alike, so that they can be compared."""
    mine = readings[readings["trait"] == trait]
    found = []
    for key, part in groups(mine, "direction", "layer"):
        label, select, report = shows(part), part["half"] == "select", part["half"] == "report"
        values, ids = part["projection"].astype(float), part["question_id"]

        def area(use: pd.Series, side: int, values: pd.Series = values, label: pd.Series = label,
                 ids: pd.Series = ids) -> st.Estimate:  # fmt: skip
            rng = draw.rng("left out", trait)
            return st.auroc(side * values[use], label[use], ids[use], rng=rng, resamples=draw.resamples)

        seen = area(select, 1).value
        sign = -1 if seen < 0.5 else 1
        found.append(
            Detector(
                str(key["direction"]),
                float(key["layer"]),
                sign,
                seen if sign > 0 else 1 - seen,
                area(report, sign),
                sign * values,
            )
        )
    return found


def best_of(found: Sequence[Detector], trait: str, kind: str) -> Detector | None:
    """The best on the select half among the other traits' vectors, or among the random directions."""
    some = [item for item in found if item.of(trait) == kind and not math.isnan(item.select)]
    return max(some, key=lambda item: item.select, default=None)


def _left_out_rows(readings: pd.DataFrame, draw: Draw) -> Iterator[Row]:
    for trait in sorted({str(name) for name in readings["trait"]}):
        found = detectors(readings, trait, draw)
        best = [best_of(found, trait, kind) for kind in ("other", "random")]
        mine = readings[readings["trait"] == trait]
        for item in found:
            part = mine.loc[item.values.index]
            for half in ("select", "report"):
                use = part["half"] == half
                label, values = shows(part)[use], item.values[use]
                row: Row = {"trait": trait, "direction": item.direction, "layer": item.layer, "half": half}
                row |= {"sign": item.sign, "chosen": item in best, "n": int(use.sum()), "log": log_names(part)}
                row |= {"n_unscored": int(label.isna().sum())}
                row |= {"n_positive": int((label == 1).sum()), "n_negative": int((label == 0).sum())}
                if half == "select":
                    yield row | {"auroc": item.select}
                    continue
                row |= spread("auroc", item.report)
                quiet = item.values[(part["half"] == "select") & (shows(part) == 0)]
                cut = float(np.quantile(quiet, 1 - FALSE_ALARM, method="higher")) if len(quiet) else math.nan
                row["threshold_1"] = cut
                if not math.isnan(cut):
                    for kind, name in ((1.0, "tpr_1"), (0.0, "fpr_1")):
                        some = label == kind
                        alarm = (values[some] > cut).astype(float)
                        row |= mean_row(name, alarm, part[use][some], draw, "left out", trait, bounds=(0, 1))
                yield row


# --- traits that prompts do not induce --------------------------------------------------------------------------------


def induced_row(elicitation: pd.DataFrame, trait: str, draw: Draw) -> Row:
    """Whether prompting induces a trait, and the gate's words where it does not.

    It does if responses to instructions for the trait score higher than those to instructions against it (95 %
    interval), and enough of them pass the filter for a vector to be made.

    Args:
        elicitation: the samples of this trait.
        trait: its name.
        draw: how to resample; the interval is that of the table of elicitation.
    """
    positive, negative = (elicitation[elicitation["side"] == side] for side in ("positive", "negative"))
    row: Row = {"trait": trait, **counts(positive), "needed": MIN_KEPT, "log": log_names(elicitation)}
    answered = row["n"] - row["n_unscored"]
    row |= spread("refusal_rate", st.wilson(row["n_refusal"], answered, n_unscored=row["n_unscored"]))
    row |= mean_row("trait_score", scored(positive), positive, draw, "elicitation", trait, "positive", bounds=SCORE)
    gap = paired(scored(positive), positive, scored(negative), negative, draw, "elicitation", trait)
    row |= spread("difference", gap)
    row |= {f"kept_{name}": int(part["kept"].astype(bool).sum())
            for name, part in (("positive", positive), ("negative", negative))}  # fmt: skip
    reasons = []
    if not gap.low > 0:
        reasons.append(
            f"positive minus negative instructions {gap.value:.3g} [{gap.low:.3g}, {gap.high:.3g}]"
            if not math.isnan(gap.value)
            else "no question has a scored response on both sides"
        )
    if row["kept_positive"] < MIN_KEPT:
        dropped = positive["drop_reason"].fillna("").astype(str)
        tally = ", ".join(f"{n} {reason}" for reason, n in sorted(dropped[dropped != ""].value_counts().items()))
        reasons.append(f"{row['kept_positive']} of {row['n']} responses told to show it pass the filter, {MIN_KEPT} "
                       f"are needed (dropped: {tally})")  # fmt: skip
    return row | {"induced": not reasons, "reason": "; ".join(reasons)}


# --- vectors made otherwise -------------------------------------------------------------------------------------------


def beside_full(samples: Samples, trait: str) -> pd.DataFrame:
    """Answers under vectors made otherwise, and under the run's own and none at the same layer, on the same half."""
    made = samples.variants[samples.variants["trait"] == trait]
    own = samples.steering[
        (samples.steering["trait"] == trait) & (samples.steering["setting"].isin(["none", "single"]))
    ]
    at = (own["vector"] == "none") | ((own["vector"] == "persona") & own["layer"].isin(made["layer"].unique()))
    parts = [made]
    for half in sorted({str(name) for name in made["half"]}):
        # A variant that brings an unsteered cell of its own is compared with that.
        if not ((made["half"] == half) & (made["vector"] == "none")).any():
            parts.append(own[at & (own["half"] == half) & (own["relative_dose"].astype(float) >= 0)])
    columns = list(METHOD_SAMPLES["variants"])
    return pd.concat([part[columns] for part in parts if len(part)]) if len(made) else made


def _variant_rows(samples: Samples, draw: Draw) -> Iterator[Row]:
    for trait in sorted({str(name) for name in samples.variants["trait"]}):
        for half, family in groups(beside_full(samples, trait), "half"):
            plain = family[family["vector"] == "none"]
            for key, lines in groups(family, "vector", "layer"):
                slope = dose_slope(lines, plain, draw, trait, *half.values(), *key.values())
                for cell, part in groups(lines, "setting", "layers", "coefficient"):
                    dose = float(part["relative_dose"].astype(float).mean())
                    row: Row = {"trait": trait, **half, **key, **cell, "relative_dose": dose, **counts(part)}
                    name = ("variants", trait, *half.values(), *key.values(), *cell.values())
                    row |= {"n_questions": int(part.loc[scored(part).notna(), "question_id"].astype(str).nunique())}
                    row |= mean_row("trait_score", scored(part), part, draw, *name, bounds=SCORE)
                    row |= mean_row("coherence", part["coherence"], part, draw, *name, bounds=SCORE)
                    refusals = st.wilson(row["n_refusal"], row["n"] - row["n_unscored"], n_unscored=row["n_unscored"])
                    row |= spread("refusal_rate", refusals) | {"log": log_names(part)}
                    if key["vector"] != "none":
                        row |= spread("difference", paired(scored(part), part, scored(plain), plain, draw, *name))
                        row |= spread("slope", slope)
                    full = same_dose(family, "persona", float(key["layer"]), dose)
                    if len(full) and key["vector"] not in ("none", "persona"):
                        row |= spread("below_full", paired(scored(full), full, scored(part), part, draw, *name, "full"))
                    yield row


def same_dose(cells: pd.DataFrame, vector: str, layer: float, dose: float) -> pd.DataFrame:
    """The answers under a vector at a layer and relative dose."""
    same: pd.DataFrame = cells[
        (cells["vector"] == vector)
        & (cells["layer"].astype(float) == layer)
        & np.isclose(cells["relative_dose"].astype(float), dose)
    ]
    return same


def dose_slope(steered: pd.DataFrame, plain: pd.DataFrame, draw: Draw, *key: object) -> st.Estimate:
    """Points of trait score a unit of relative dose, the unsteered answers at dose 0 among them."""
    both = pd.concat([steered, plain])
    dose = both["relative_dose"].astype(float)
    return st.slope(dose, scored(both), both["question_id"], rng=draw.rng("slope", *key), resamples=draw.resamples)


# --- sensitivity ------------------------------------------------------------------------------------------------------


def _sensitivity_rows(sensitivity: pd.DataFrame) -> Iterator[Row]:
    """The mean over draws, and between which values 95 % of the draws lie; a single vector has no such span."""
    for key, part in groups(sensitivity, "trait", "aspect", "setting", "layer"):
        cosine = part["cosine"].astype(float)
        valid = cosine.dropna()
        several = len(valid) > 1
        yield {
            **key,
            "n_draws": len(valid),
            "n_positive": int(part["n_positive"].astype(float).mean()),
            "n_negative": int(part["n_negative"].astype(float).mean()),
            "cosine": float(valid.mean()) if len(valid) else math.nan,
            "cosine_low": float(np.quantile(valid, 0.025)) if several else math.nan,
            "cosine_high": float(np.quantile(valid, 0.975)) if several else math.nan,
            "norm_ratio": float(part["norm_ratio"].astype(float).mean()) if len(valid) else math.nan,
            "log": log_names(part),
        }
