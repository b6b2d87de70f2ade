"""The rules of the claims about monitoring."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.finding import Finding
from persona_bench.analysis.grouping import log_names
from persona_bench.analysis.tables.monitoring import POSITION, TEXT, monitoring_points
from persona_bench.analysis.verdicts.bound import Bound
from persona_bench.analysis.verdicts.decision import Rule, Run, decide, too_few, untestable
from persona_bench.definitions.claims import (
    Claim,
)


def _report_points(run: Run, claim: Claim, trait: str, direction: str) -> pd.DataFrame:
    layer = 0.0 if direction.startswith(TEXT) else run.layers.get(trait, math.nan)
    points = monitoring_points(run.samples, trait, direction, layer, condition=claim.condition)
    return points[points["half"] == "report"].dropna(subset=["trait_score", "value"])


def _overall_r(run: Run, points: pd.DataFrame, trait: str) -> st.Estimate:
    """Resampled alike for every direction of a trait, so that they can be compared."""
    ids = points["question_id"]
    rng = run.rng("monitoring", trait)
    return st.pearson(points["value"], points["trait_score"], ids, rng=rng, resamples=run.resamples)


def _watched(run: Run, claim: Claim, trait: str) -> pd.DataFrame | Finding:
    """The points of the persona direction on the report half, if they are enough."""
    if trait not in run.layers:
        return untestable("no layer was chosen, neither with the vector nor by steering")
    points = _report_points(run, claim, trait, "persona")
    if points.empty:
        return Finding("not run", f"no scored projection at layer {run.layers[trait]:g} on the report half")
    few = too_few(claim, {"points": len(points)}, points["question_id"].nunique(), log_names(points))
    return few or points


def _monitoring_overall(run: Run, claim: Claim, trait: str) -> Finding:
    points = _watched(run, claim, trait)
    if isinstance(points, Finding):
        return points
    r = _overall_r(run, points, trait)
    controls = _controls(run, claim, trait, "random", points)
    if not controls:
        return untestable("no projection on a random direction to compare with", n=len(points), log=log_names(points))
    random = max(controls, key=lambda found: abs(found.value))
    if math.isnan(r.low):
        return untestable("the trait score or the projection does not vary", n=len(points), log=log_names(points))
    bounds = [
        Bound("r", r, 1, claim.threshold),
        Bound("r minus the random direction's", st.excess_strength(r, random), 1),
    ]
    return decide(bounds, log_names(points))


def _controls(run: Run, claim: Claim, trait: str, kind: str, points: pd.DataFrame) -> list[st.Estimate]:
    """The correlations of every direction of a kind over the same points."""
    directions = run.samples.projections["direction"].astype(str)
    names = sorted(name for name in directions.unique() if name.startswith(kind) and name != POSITION)
    parts = [_report_points(run, claim, trait, name) for name in names]
    found = [_overall_r(run, part, trait) for part in parts if len(part) == len(points)]
    return [item for item in found if not math.isnan(item.low)]


def _monitoring_beats_text(run: Run, claim: Claim, trait: str) -> Finding:
    points = _watched(run, claim, trait)
    if isinstance(points, Finding):
        return points
    readers = _controls(run, claim, trait, TEXT, points)
    r = _overall_r(run, points, trait)
    if math.isnan(r.low) or not readers:
        missing = "no text-only baseline" if not readers else "the trait score or the projection does not vary"
        return untestable(missing, n=len(points), log=log_names(points))
    excess = st.excess_strength(r, max(readers, key=lambda found: abs(found.value)))
    return decide([Bound("r minus the best text-only baseline's", excess, 1, claim.threshold)], log_names(points))


def _monitoring_within(run: Run, claim: Claim, trait: str) -> Finding:
    points = _watched(run, claim, trait)
    if isinstance(points, Finding):
        return points
    within = _within_r(run, points, "within", trait)
    if math.isnan(within.estimate.low):
        return _nothing_within(claim, points, within.n_left_out)
    what = f"mean r within {_RUNG[claim.condition]}s"
    found = decide([Bound(what, within.estimate, 1, claim.threshold)], log_names(points))
    total = within.n_conditions + within.n_left_out
    return replace(found, reason=f"{found.reason} ({within.n_conditions} of {total} vary enough)")


def _monitoring_mostly_between(run: Run, claim: Claim, trait: str) -> Finding:
    points = _watched(run, claim, trait)
    if isinstance(points, Finding):
        return points
    # The same stream for both, so that their resamples are paired.
    within, r = _within_r(run, points, "monitoring", trait), _overall_r(run, points, trait)
    excess = st.excess_strength(replace(r, value=abs(r.value), draws=np.abs(r.draws)), within.estimate)
    if math.isnan(within.estimate.low) or math.isnan(excess.low):
        return _nothing_within(claim, points, within.n_left_out)
    return decide([Bound("absolute r minus that within system prompts", excess, 1, claim.threshold)], log_names(points))


def _within_r(run: Run, points: pd.DataFrame, *key: str) -> st.WithinCondition:
    return st.within_condition_r(
        points["value"],
        points["trait_score"],
        points["rung"],
        points["question_id"],
        rng=run.rng(*key),
        resamples=run.resamples,
    )


def _nothing_within(claim: Claim, points: pd.DataFrame, n_left_out: int) -> Finding:
    reason = f"the scores vary within no {_RUNG[claim.condition]} ({n_left_out} left out)"
    return untestable(reason, n=len(points), log=log_names(points))


_RUNG = {"ladder": "system prompt", "many_shot": "example count"}
"""One rung of a condition, before a plural s."""

MONITORING_RULES: Mapping[str, Rule] = {
    "C3-monitoring-overall": _monitoring_overall,
    "C4-monitoring-within": _monitoring_within,
    "M1-monitoring-beats-text": _monitoring_beats_text,
    "C8-many-shot-overall": _monitoring_overall,
    "C9-many-shot-within": _monitoring_within,
    "L2-monitoring-mostly-between": _monitoring_mostly_between,
}
