"""The rules of the claims about the method's stated limits; what each computes stands in `definitions.claims_limits`.

Each gives what is to be compared, or why nothing can be. Rules whose verdict is no matter of bounds alone say it
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.grouping import Draw, log_names, paired, scored, single
from persona_bench.analysis.tables.hard_cases import judged_right, paired_cases
from persona_bench.analysis.tables.method import beside_full, best_of, detectors, same_dose, shows
from persona_bench.analysis.tables.monitoring import monitoring_points
from persona_bench.analysis.tables.steering import choose_steering, control_of, steering_table
from persona_bench.analysis.verdicts.bound import Bound
from persona_bench.analysis.verdicts.finetuning import Ruling
from persona_bench.definitions.claims import Claim

if TYPE_CHECKING:
    from persona_bench.analysis.samples.frames import Samples

__all__ = [
    "INDUCES",
    "METHOD_RULES",
    "NEED_NO_VECTOR",
    "TWO_MODELS",
    "VAGUE",
    "Evidence",
    "halves_agree",
    "measured",
    "share_not_supported",
]

TWO_MODELS = "S1-two-models"
VAGUE = "S3-vague-description"
INDUCES = "C1-steering-induces"
NEED_NO_VECTOR = ("S1-two-models", "S2-trait-named-beforehand", "S4-inducible-by-prompt", "J2-judge-misreads")
"""Decided without a vector of the trait itself."""
MIN_SHOWING = 10
"""Responses of the report half that must show the trait, and as many that must not, for S2."""
NO_EFFECT = 5.0
"""Points under which a vector does nothing, for S4."""


@dataclass(frozen=True)
class Evidence:
    """What a rule may look at.

    Attributes:
        samples: what was measured.
        tables: as `build_tables` gives them.
        layers: trait -> chosen layer.
        draw: how to resample.
        verdicts: of the claims decided before, by claim and trait.
    """

    samples: Samples
    tables: Mapping[str, pd.DataFrame]
    layers: Mapping[str, float]
    draw: Draw
    verdicts: Mapping[tuple[str, str], str]


Rule = Callable[[Evidence, Claim, str], Ruling]


def measured(samples: Samples, trait: str) -> bool:
    """Whether `stated_limits` read the responses of a trait; of every trait of the run, for "all"."""
    return bool((samples.readings["trait"] == trait).any()) or (trait == "all" and len(samples.readings) > 0)


def share_not_supported(claim: Claim, verdicts: Sequence[tuple[str, str]]) -> tuple[str, st.Estimate, str]:
    """S1, from the final verdicts of the run: (verdict, the share with its Wilson interval, reason).

    Args:
        claim: S1.
        verdicts: (claim id, verdict) of every row.
    """
    nine = {f"C{number}" for number in range(1, 10)}
    decided = [v for name, v in verdicts if name.split("-")[0] in nine and v in ("supported", "contradicted")]
    share = st.wilson(sum(verdict != "supported" for verdict in decided), len(decided))
    said = f"{sum(verdict != 'supported' for verdict in decided)} of {len(decided)} decided verdicts are not supported"
    if len(decided) < claim.min_n:
        return "not testable", replace(share, value=math.nan, low=math.nan, high=math.nan), (
            f"{len(decided)} verdicts of C1 to C9 are supported or contradicted, needed {claim.min_n}"
        )  # fmt: skip
    bound = Bound("share", share, 1, claim.threshold)
    verdict = "supported" if bound.clear else "contradicted" if bound.broken else "inconclusive"
    return verdict, share, f"{said}: {bound}"


def _untestable(reason: str, frame: pd.DataFrame | None = None, **n: int) -> Ruling:
    return Ruling(reason=reason, counts=n, log="" if frame is None else log_names(frame))


# --- named traits -----------------------------------------------------------------------------------------------------


def _named_beforehand(evidence: Evidence, claim: Claim, trait: str) -> Ruling:
    mine = evidence.samples.readings[evidence.samples.readings["trait"] == trait]
    found = detectors(mine, trait, evidence.draw)
    if not any(item.of(trait) == "other" for item in found):
        return _untestable("no other trait of the run has a vector", mine)
    label = shows(mine[mine["half"] == "report"].drop_duplicates(["question_id", "pair", "side", "epoch"]))
    counts = {"responses that show the trait": int((label == 1).sum()), "others": int((label == 0).sum())}
    if few := [f"{name} {n}" for name, n in counts.items() if n < MIN_SHOWING]:
        reason = f"too few on the report half: {', '.join(few)}, needed {MIN_SHOWING}"
        return _untestable(reason, mine, scored=sum(counts.values()))
    best, control = best_of(found, trait, "other"), best_of(found, trait, "random")
    if best is None or math.isnan(best.report.low):
        half = "select" if best is None else "report"
        return _untestable(f"the responses of the {half} half all show the trait, or none does", mine)
    if control is None:
        return _untestable("no random direction to compare with", mine)
    of = f"{counts['responses that show the trait']} responses against {counts['others']}"
    seen = Bound(f"AUROC of {best.direction} at layer {best.layer:g}, {of},", best.report, -1, claim.threshold)
    beyond = Bound("minus a random direction's, whichever way round,", st.excess_area(best.report, control.report), 1)
    p = st.area_p(best.report, claim.threshold)
    verdict = "supported" if seen.clear else "inconclusive"
    if seen.broken and beyond.clear:
        verdict, p = "contradicted", max(p, st.bootstrap_p(beyond.estimate))
    return Ruling((seen, beyond), verdict=verdict, p=p, counts={"scored responses": best.report.n}, log=log_names(mine))


def _vague_description(evidence: Evidence, claim: Claim, trait: str) -> Ruling:
    made = evidence.samples.variants[evidence.samples.variants["trait"] == trait]
    vague = made[made["vector"] == "vague"]
    if vague.empty:
        about = evidence.samples.sensitivity
        about = about[(about["trait"] == trait) & (about["setting"] == "vague")]
        if about.empty:
            return Ruling(ran=False, reason="no vague descriptions of this trait were run")
        row = about.iloc[0]
        kept = f"{row['n_positive']:g} positive and {row['n_negative']:g} negative responses"
        return _untestable(f"the vague descriptions give no vector: {kept} pass the filter", about)
    if evidence.verdicts.get((INDUCES, trait)) != "supported":
        return _untestable("the full vector does not steer (C1-steering-induces is not supported)", vague)
    choice = _choice(evidence.tables["steering_choice"], trait)
    cells = beside_full(evidence.samples, trait)
    cells = cells[cells["half"] == "report"]
    at = float(choice["layer"]), float(choice["relative_dose"])
    full, other = (same_dose(cells, name, *at) for name in ("persona", "vague"))
    if full.empty or other.empty:
        missing = "full" if full.empty else "vague"
        return Ruling(ran=False, reason=f"the {missing} vector was not run at the chosen layer and dose")
    gap = paired(scored(full), full, scored(other), other, evidence.draw, "claims", VAGUE, trait)
    counts = {"full": int(scored(full).notna().sum()), "vague": int(scored(other).notna().sum())}
    bound = Bound(f"full minus vague at relative dose {at[1]:.2g}", gap, 1, claim.threshold)
    return Ruling((bound,), counts=counts, log=log_names(pd.concat([full, other])))


def _choice(choices: pd.DataFrame, trait: str) -> pd.Series:
    found: pd.Series = choices[(choices["trait"] == trait) & (choices["sign"] == "positive")].iloc[0]
    return found


# --- inducible traits -------------------------------------------------------------------------------------------------


def _inducible(evidence: Evidence, claim: Claim, trait: str) -> Ruling:
    gate = evidence.tables["inducibility"]
    gate = gate[gate["trait"] == trait]
    if gate.empty:
        return Ruling(ran=False, reason="trait_elicitation has no samples of this trait")
    if bool(gate["induced"].iloc[0]):
        row = gate.iloc[0]
        spread = f"{row['difference']:.3g} [{row['difference_low']:.3g}, {row['difference_high']:.3g}]"
        return _untestable(f"the trait is induced by prompting: positive minus negative instructions {spread}", gate)
    why = f"not induced: {gate['reason'].iloc[0]}"
    steering, unfiltered = evidence.samples.steering, evidence.samples.variants
    own = steering[steering["trait"] == trait]
    if not (own["vector"] == "persona").any():
        raw = unfiltered[(unfiltered["trait"] == trait)]
        own = raw[raw["vector"].isin(["raw", "random", "none"])].replace({"vector": {"raw": "persona"}})
        if not (own["vector"] == "persona").any():
            return Ruling(ran=False, reason=f"{why}; no unfiltered vector was steered with")
        why += "; steered with the vector of all responses, unfiltered"
    choice = _choice(choose_steering(steering_table(own, evidence.draw)), trait)
    if choice["reason"]:
        return _untestable(f"{why}; {choice['reason']}", own)
    report = single(own[own["half"] == "report"])
    steered = same_dose(report, "persona", float(choice["layer"]), float(choice["relative_dose"]))
    control = control_of(report, float(choice["layer"]), float(choice["relative_dose"]))
    if steered.empty or control.empty:
        missing = "the chosen cell" if steered.empty else "a random-vector control of this dose"
        return _untestable(f"{why}; {missing} was not run on the report half", own)
    beyond = paired(scored(steered), steered, scored(control), control, evidence.draw, "claims", claim.id, trait)
    counts = {"steered": int(scored(steered).notna().sum()), "random control": int(scored(control).notna().sum())}
    log = log_names(pd.concat([steered, control]))
    if beyond.low > claim.threshold:
        verdict, p = "contradicted", st.bootstrap_p(beyond, claim.threshold)
    else:
        nothing = beyond.low <= claim.threshold <= beyond.high and beyond.high < NO_EFFECT
        verdict, p = "supported" if nothing else "inconclusive", st.bootstrap_p(beyond, NO_EFFECT)
    bound = Bound(f"{why}; change in trait score to the random control", beyond, -1, NO_EFFECT)
    return Ruling((bound,), verdict=verdict, p=p, counts=counts, log=log)


# --- how it was evaluated ---------------------------------------------------------------------------------------------


def _single_turn(evidence: Evidence, claim: Claim, trait: str) -> Ruling:
    """Points as in C3; questions and scripts are resampled each by themselves, as they have nothing in common."""
    if trait not in evidence.layers:
        return _untestable("no layer was chosen, neither with the vector nor by steering")
    parts, rs = {}, {}
    for condition, name in (("ladder", "single turns"), ("drift", "turns of drifting conversations")):
        points = monitoring_points(evidence.samples, trait, "persona", evidence.layers[trait], condition=condition)
        points = points[points["half"] == "report"].dropna(subset=["trait_score", "value"])
        if points.empty:
            return _untestable(f"no {name} were run")
        rng = evidence.draw.rng("claims", claim.id, trait, condition)
        rs[name] = st.pearson(
            points["value"], points["trait_score"], points["question_id"], rng=rng, resamples=evidence.draw.resamples
        )
        parts[name] = points
    counts = {name: len(points) for name, points in parts.items()}
    log = "; ".join(sorted({log_names(points) for points in parts.values()}))
    for name, r in rs.items():
        if math.isnan(r.low):
            return Ruling(reason=f"the trait score or the projection does not vary over {name}", counts=counts, log=log)
    first, second = rs.values()
    gap = st.of_draws(
        first.value - second.value,
        first.draws - second.draws,
        n=min(first.n, second.n),
        n_clusters=min(first.n_clusters, second.n_clusters),
        bounds=(-2, 2),
    )
    what = f"r over single turns {first.value:.2f} minus r over drifting turns {second.value:.2f}"
    return Ruling((Bound(what, gap, 1, claim.threshold),), counts=counts, log=log)


def _twenty_questions(evidence: Evidence, claim: Claim, trait: str) -> Ruling:
    own = evidence.samples.steering[evidence.samples.steering["trait"] == trait]
    if own.empty:
        return Ruling(ran=False, reason="trait_steering has no samples of this trait")
    found = halves_agree(own, evidence.draw, claim.id, trait)
    counts = {"cells on both halves": found.n}
    if found.n >= claim.min_n and math.isnan(found.low):
        return Ruling(reason="the effects of the cells do not differ", counts=counts, log=log_names(own))
    return Ruling((Bound("rank correlation", found, -1, claim.threshold),), counts=counts, log=log_names(own))


def halves_agree(steering: pd.DataFrame, draw: Draw, *key: object) -> st.Estimate:
    """Spearman's correlation over cells of their effects on the select half and on the report half.

    Questions of each half are resampled by themselves. That adds noise of its own to every effect, which pulls the
    correlation of noisy effects towards 0; the draws are shifted so that their median is the estimate.

    Args:
        steering: the answers of one trait.
        draw: how to resample.
        key: names the stream.

    Returns:
        With `n` the cells that have an effect on both halves.
    """
    effects = {half: _effects(steering[steering["half"] == half]) for half in ("select", "report")}
    cells = sorted(set(effects["select"].index) & set(effects["report"].index))
    nothing = st.Estimate(math.nan, math.nan, math.nan, len(cells))
    if len(cells) < st.MIN_CONDITION_POINTS:
        return nothing
    rng, values, drawn, clusters = draw.rng("claims", *key), [], [], []
    for half in ("select", "report"):
        by_question = effects[half].loc[cells]
        known = by_question.notna().to_numpy().astype(float)
        weights = st.draw_clusters(by_question.shape[1], draw.resamples, rng)
        mean = by_question.mean(axis=1).to_numpy()
        sums, sizes = weights @ by_question.fillna(0.0).to_numpy().T, weights @ known.T
        # A cell that a resample has no answer of keeps its effect.
        drawn.append(np.where(sizes > 0, sums / np.maximum(sizes, 1), mean))
        values.append(mean)
        clusters.append(by_question.shape[1])
    value = float(_rank_r(values[0][None], values[1][None])[0])
    draws = _rank_r(drawn[0], drawn[1])
    shifted = np.clip(draws - np.nanmedian(draws) + value, -1, 1) if np.isfinite(draws).any() else draws
    return st.of_draws(value, shifted, n=len(cells), n_clusters=min(clusters), bounds=(-1, 1))


def _effects(steering: pd.DataFrame) -> pd.DataFrame:
    """`(cells, questions)`: mean trait score minus the unsteered one, NaN without a score; cells without any go."""
    by_cell = ["vector", "setting", "layers", "layer", "coefficient"]
    means = steering.assign(score=scored(steering), coefficient=steering["coefficient"].astype(float).round(9))
    wide = means.pivot_table(index=by_cell, columns="question_id", values="score", aggfunc="mean", dropna=True)
    if wide.empty or "none" not in wide.index.get_level_values("vector"):
        return wide.iloc[:0]
    plain = wide.xs("none", level="vector").iloc[0]
    changes: pd.DataFrame = wide[wide.index.get_level_values("vector") != "none"] - plain
    return changes.dropna(how="all")


def _rank_r(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Spearman's correlation row by row, NaN where a row does not vary."""
    from scipy.stats import rankdata

    a, b = (rankdata(part, axis=1) for part in (first, second))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    return st.ratio((a * b).sum(axis=1), np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1)))


# --- the judge --------------------------------------------------------------------------------------------------------


def _judge_misreads(evidence: Evidence, claim: Claim, trait: str) -> Ruling:
    table = evidence.tables["judge"]
    used = table[(table["trait"] == trait) & (table["half"] == "report") & table["chosen"].astype(bool)]
    if used.empty:
        return Ruling(ran=False, reason="the judge in use was not checked on labelled answers")
    mine = [frame[frame["trait"] == trait] for frame in (evidence.samples.judge, evidence.samples.twins)]
    pairs = paired_cases(*mine)
    for column in ("grader", "method"):
        pairs = pairs[pairs[column] == used[column].iloc[0]]
    if pairs.empty:
        return _untestable("no hard case of the trait was judged beside a twin", used)
    found = judged_right(pairs, evidence.draw, "claims", claim.id, trait)
    right, gap = (found["twin_right"].value, found["hard_right"].value), found["difference"]
    what = f"twins right {right[0]:.2f} minus hard cases right {right[1]:.2f}"
    left_out = len(pairs) - gap.n
    what += f" ({left_out} of {len(pairs)} pairs left out without a score)" if left_out else ""
    return Ruling((Bound(what, gap, 1, claim.threshold),), counts={"pairs": gap.n}, log=log_names(pairs))


METHOD_RULES: Mapping[str, Rule] = {
    "S2-trait-named-beforehand": _named_beforehand,
    VAGUE: _vague_description,
    "S4-inducible-by-prompt": _inducible,
    "S5-single-turn": _single_turn,
    "S6-twenty-questions": _twenty_questions,
    "J2-judge-misreads": _judge_misreads,
}
"""Every claim about the method but S1, which rests on the verdicts of the others."""
