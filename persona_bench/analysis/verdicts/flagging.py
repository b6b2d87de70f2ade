"""The rules of the claims about data: whole sets, single samples, and real conversations that were trained on.

What each computes stands in the registry (`definitions.claims_data`), thresholds and least numbers too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.grouping import Draw, log_names, paired, scored
from persona_bench.analysis.tables.finetuning import NORMAL
from persona_bench.analysis.tables.flagging import (
    BOTH,
    DIFFERENCE,
    JUDGE,
    SET_CLAIMS,
    area,
    area_beyond_random,
    base_answers,
    mixture,
    random_set_strength,
    set_correlation,
    set_points,
)
from persona_bench.analysis.verdicts.bound import Bound
from persona_bench.analysis.verdicts.finetuning import (
    MIN_SCORE_SD,
    STRONGEST,
    Rule,
    Ruling,
    beside_random,
    not_acquired,
)
from persona_bench.definitions.claims import Claim
from persona_bench.definitions.flagging import FILTER_CUT, PICKS

if TYPE_CHECKING:
    from persona_bench.analysis.samples.frames import Samples

__all__ = ["FLAGGING_RULES"]

OPINIONS = "opinions"


def _untestable(found: Ruling, reason: str) -> Ruling:
    return Ruling(reason=reason, counts=found.counts or {"samples": 0}, log=found.log)


# --- whole sets -------------------------------------------------------------------------------------------------------


def _sets(samples: Samples, claim: Claim, trait: str, draw: Draw, *, measure: str, outcome: str) -> Ruling:
    points = set_points(samples, trait, measure, outcome)
    rows = samples.flagging[(samples.flagging["kind"] == "set") & (samples.flagging["trait"] == trait)]
    found = Ruling(counts={"training sets": len(points)}, log=log_names(rows))
    if points.empty:
        return Ruling(reason="no model that was trained on a measured set has been measured", ran=False, log=found.log)
    if len(points) < claim.min_n:
        return found
    if points["outcome"].std() < MIN_SCORE_SD:
        spread = f"SD {points['outcome'].std():.2g}, needed {MIN_SCORE_SD:g}"
        return _untestable(found, f"the outcomes hardly differ between training sets ({spread})")
    r = set_correlation(points, draw, trait, outcome)
    beyond = st.excess_strength(r, random_set_strength(samples, trait, measure, outcome, draw))
    if math.isnan(r.low) or math.isnan(beyond.low):
        return _untestable(found, "the measure, or that of a random direction, does not vary between training sets")
    return replace(found, bounds=beside_random(r, beyond, claim.threshold))


# --- single samples ---------------------------------------------------------------------------------------------------


def _cells(rows: pd.DataFrame) -> dict[str, int]:
    return {"normal samples": int((rows["label"] == 0).sum()), "inducing samples": int((rows["label"] == 1).sum())}


def _separable(samples: Samples, claim: Claim, trait: str, draw: Draw) -> Ruling:
    rows = mixture(samples.flagging, trait, trait, STRONGEST)
    rows = rows[rows[DIFFERENCE].notna()]
    if not {NORMAL, STRONGEST} <= set(rows["version"]):
        return _untestable(Ruling(), "no training set of the trait with normal counterparts was flagged")
    key = ("flagging", trait, trait, STRONGEST, "all")
    own, beyond = (found(rows, DIFFERENCE, draw, *key, "auroc") for found in (area, area_beyond_random))
    bounds = (
        Bound("AUROC", own, 1, claim.threshold),
        # Only the first part can contradict: random directions that do as well leave it open.
        Bound("AUROC minus the random directions'", beyond, 1, limit=-math.inf),
    )
    return Ruling(bounds, counts=_cells(rows), log=log_names(rows))


def _opinions(samples: Samples, trait: str, draw: Draw, *detectors: str, half: str = "") -> tuple[pd.DataFrame, Ruling]:
    """The samples that all of the detectors have a number for, or why there are none, or none that carry the trait."""
    rows = mixture(samples.flagging, trait, OPINIONS, STRONGEST)
    if not {NORMAL, STRONGEST} <= set(rows["version"]):
        return rows, _untestable(Ruling(), "no labelled opinions data for the trait was flagged")
    if missing := not_acquired(samples, trait, draw, OPINIONS):
        return rows, _untestable(Ruling(log=log_names(rows)), f"these need not carry the trait: {missing}")
    rows = rows[rows["half"] == half] if half else rows
    same = rows[rows[list(detectors)].notna().all(axis=1)]
    if same.empty:
        return same, _untestable(Ruling(log=log_names(rows)), "no sample has a number by every detector")
    return same, Ruling(counts=_cells(same), log=log_names(same))


def _better(samples: Samples, claim: Claim, trait: str, draw: Draw, *, best: str, other: str) -> Ruling:
    rows, found = _opinions(samples, trait, draw, best, other)
    if found.reason:
        return found
    first, second = (area(rows, name, draw, "claims", claim.id, trait) for name in (best, other))
    what = f"AUROC of {best} {first.value:.2f} minus {other} {second.value:.2f}"
    return replace(found, bounds=(Bound(what, st.excess(first, second), 1, claim.threshold),))


def _both(samples: Samples, claim: Claim, trait: str, draw: Draw) -> Ruling:
    """The better one is taken anew in every resample."""
    rows, found = _opinions(samples, trait, draw, BOTH, JUDGE, DIFFERENCE, half="report")
    if found.reason:
        return found
    areas = {name: area(rows, name, draw, "claims", claim.id, trait) for name in (BOTH, JUDGE, DIFFERENCE)}
    both, *single = areas.values()
    if any(one.draws.size != both.draws.size for one in single):
        return found
    more = st.of_draws(
        both.value - max(one.value for one in single),
        both.draws - np.max([one.draws for one in single], axis=0),
        n=both.n,
        n_clusters=both.n_clusters,
    )
    seen = ", ".join(f"{name} {one.value:.2f}" for name, one in areas.items())
    return replace(found, bounds=(Bound(f"AUROC ({seen}), both minus the better one,", more, 1, claim.threshold),))


# --- real conversations -----------------------------------------------------------------------------------------------


def _ordered(samples: Samples, claim: Claim, trait: str, draw: Draw, *, pool: str) -> Ruling:
    flagged = samples.flagging[(samples.flagging["kind"] == "corpus") & (samples.flagging["trait"] == trait)]
    if flagged.empty:
        return _untestable(Ruling(), "no corpus of real conversations is at hand; give one with `--corpus FILES`")
    trained = samples.flagging_trained
    trained = trained[(trained["pool"] == pool) & (trained["trait"] == trait)]
    found = Ruling(counts={"samples": len(flagged)}, log=log_names(pd.concat([flagged[["log"]], trained[["log"]]])))
    missing = [pick for pick in PICKS if not (trained["pick"] == pick).any()]
    if missing and pool == "passed":
        n = int((flagged["judge"].astype(float) <= FILTER_CUT).sum())
        return _untestable(found, f"the filter leaves too few samples: {n} of {len(flagged)}")
    if missing:
        return Ruling(reason=f"no model was trained on the {', '.join(missing)} samples", ran=False, log=found.log)
    unmoved = _unmoved(samples, trained, trait, draw)
    if unmoved:
        return _untestable(found, unmoved)
    parts = {pick: trained[(trained["pick"] == pick) & (trained["half"] == "report")] for pick in PICKS}

    def more(high: str, low: str) -> Bound:
        first, second, key = parts[high], parts[low], ("claims", claim.id, trait, low)
        change = paired(scored(first), first, scored(second), second, draw, *key)
        return Bound(f"{high} minus {low}", change, 1, claim.threshold)

    bounds = (more("top", "random"), more("random", "bottom"))
    valid = {f"answers after {pick}": int(scored(part).notna().sum()) for pick, part in parts.items()}
    return Ruling(bounds, counts=valid, log=found.log)


def _unmoved(samples: Samples, trained: pd.DataFrame, trait: str, draw: Draw) -> str:
    """Why there is nothing to order: on the select half, no training changes the trait against the base."""
    base = base_answers(samples, trait)
    base = base[base["half"] == "select"]
    if base.empty:
        return "the model before training has no answers of the select half"
    seen = []
    for pick in PICKS:
        part = trained[(trained["pick"] == pick) & (trained["half"] == "select")]
        change = paired(scored(part), part, scored(base), base, draw, "claims", "flagging base", trait, pick)
        if change.low > 0 or change.high < 0:
            return ""
        seen.append(f"{pick} {change.value:.3g} [{change.low:.3g}, {change.high:.3g}]")
    return f"no training changes the trait against the base (select half): {', '.join(seen)}"


def _filtered(samples: Samples, claim: Claim, trait: str, draw: Draw) -> Ruling:
    """As the claim about all samples, which must be testable."""
    first = _ordered(samples, claim, trait, draw, pool="corpus")
    return first if first.reason else _ordered(samples, claim, trait, draw, pool="passed")


FLAGGING_RULES: Mapping[str, Rule] = {
    **{name: partial(_sets, measure=measure, outcome=outcome) for (measure, outcome), name in SET_CLAIMS.items()},
    "D5-samples-separable": _separable,
    "D6-real-data-ordered": partial(_ordered, pool="corpus"),
    "D7-survives-filtering": _filtered,
    "D8-filter-best": partial(_better, best=JUDGE, other=DIFFERENCE),
    "D9-difference-best": partial(_better, best=DIFFERENCE, other=JUDGE),
    "D10-both-best": _both,
}
"""Claim -> rule."""
