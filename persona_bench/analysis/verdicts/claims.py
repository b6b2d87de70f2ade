"""Claims to verdicts: each rule of definitions/claims.py, the judge gate, and Holm's correction over the run."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.finding import Finding
from persona_bench.analysis.grouping import Draw
from persona_bench.analysis.samples.frames import Samples
from persona_bench.analysis.tables.finetuning import of_kind
from persona_bench.analysis.tables.vectors import chosen_layers, vector_warnings
from persona_bench.analysis.verdicts.capability import CAPABILITY_RULES
from persona_bench.analysis.verdicts.decision import Rule, Run, decide, too_few, untestable
from persona_bench.analysis.verdicts.finetuning import FINETUNING_RULES, Ruling
from persona_bench.analysis.verdicts.flagging import FLAGGING_RULES
from persona_bench.analysis.verdicts.judge import JUDGE_RULES, gate
from persona_bench.analysis.verdicts.limits import LIMIT_RULES
from persona_bench.analysis.verdicts.method import (
    INDUCES,
    METHOD_RULES,
    NEED_NO_VECTOR,
    TWO_MODELS,
    VAGUE,
    Evidence,
    measured,
    share_not_supported,
)
from persona_bench.analysis.verdicts.monitoring import MONITORING_RULES
from persona_bench.analysis.verdicts.steering import STEERING_RULES
from persona_bench.analysis.verdicts.vectors import VECTOR_RULES
from persona_bench.definitions.claims import (
    ALPHA,
    CLAIMS,
    MIN_QUESTIONS,
    Claim,
)

__all__ = ["CLAIM_COLUMNS", "DECIDED", "VERDICTS", "by_the_interval_alone", "judge_claims", "weakness"]

CLAIM_COLUMNS = (
    *("claim", "trait", "statement", "paper_value", "estimate", "ci_low", "ci_high", "n"),
    *("verdict", "reason", "p_holm", "log", "warning"),
)
VERDICTS = ("supported", "contradicted", "inconclusive", "not testable", "not run")
DECIDED = VERDICTS[:2]
_ALONE = "by the interval alone"


_PENDING = Finding("not run", "it rests on the verdicts of the other claims")
"""Stands for S1 until those are final."""


def judge_claims(
    samples: Samples,
    tables: Mapping[str, pd.DataFrame],
    *,
    seed: int = 0,
    resamples: int = st.RESAMPLES,
    traits: Sequence[str] | None = None,
    no_vector: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """A verdict on every claim for every trait that it is about; one for the model where it is about that.

    First come the reasons why a claim cannot be tested (nothing was run, the judge fails its gate, too few samples,
    and what each rule names), then the rule itself, then Holm's correction over all tests of the run: a claim that
    its interval supports or contradicts stays so only with an adjusted p value under 0.05.

    Args:
        samples: what was measured; intervals are computed anew, as tables hold no draws.
        tables: as `build_tables` gives them; judge, elicitation, steering_choice, mmlu and vectors are read.
        seed: of the resampling.
        resamples: bootstrap resamples for each interval.
        traits: the traits of the run; by default those that occur in the samples.
        no_vector: trait -> why no vector could be made, which leaves what needs one untestable.

    Returns:
        One row a claim and trait with `CLAIM_COLUMNS`. `n` counts the valid samples (points, for a correlation;
        labelled answers, for the judge) behind the estimate.
    """
    layers = chosen_layers(tables["vectors"], tables["steering_choice"])
    run = Run(samples, tables, layers, seed, resamples)
    names = samples.traits if traits is None else sorted(traits)
    pairs = [(claim, trait) for claim in CLAIMS for trait in claim.rows(names)]
    findings: dict[tuple[str, str], Finding] = {}
    for claim, trait in pairs:
        found = _find(run, claim, trait, (no_vector or {}).get(trait, ""), findings)
        findings[claim.id, trait] = found
    adjusted = st.holm([finding.p for finding in findings.values()])
    finals = [_after_holm(found, p) for found, p in zip(findings.values(), adjusted, strict=True)]
    finals = _resting_on_verdicts(pairs, finals)
    warnings = vector_warnings(tables["vectors"])
    rows = []
    for (claim, trait), final, p_holm in zip(pairs, finals, adjusted, strict=True):
        values = (final.estimate, final.low, final.high, final.n, final.verdict, final.reason, p_holm, final.log)
        rows.append((claim.id, trait, claim.statement, claim.paper_value(trait), *values, warnings.get(trait, "")))
    return pd.DataFrame(rows, columns=list(CLAIM_COLUMNS))


def _find(
    run: Run,
    claim: Claim,
    trait: str,
    no_vector: str,
    before: Mapping[tuple[str, str], Finding] | None = None,
) -> Finding:
    if claim.id in METHOD_RULES or claim.id == TWO_MODELS:
        return _of_method(run, claim, trait, no_vector, before or {})
    if claim.id in LIMIT_RULES:
        return _limit(run, claim, trait, no_vector)
    unmet = _unmet(run, claim, trait, no_vector)
    if unmet is not None:
        return unmet
    if claim.id in _RULES:
        return _RULES[claim.id](run, claim, trait)
    return _ruled(run, claim, trait)


def _unmet(run: Run, claim: Claim, trait: str, no_vector: str) -> Finding | None:
    """What keeps a claim from being put to its rule."""
    if claim.missing:
        return Finding("not run", f"not implemented: it would need {claim.missing}")
    frame = {
        "trait_steering": run.samples.steering,
        "trait_monitoring": run.samples.monitoring[run.samples.monitoring["condition"] == claim.condition],
        "mmlu_preservation": run.samples.mmlu,
        "trait_elicitation": run.samples.vectors,
        "judge_validity": run.samples.judge,
        "preventative_steering": of_kind(run.samples.finetuning, "trait"),
        "data_flagging": run.samples.flagging,
    }[claim.eval]
    # An eval without samples of any trait, where some have a vector, was not asked for.
    asked = not frame.empty or run.samples.vectors.empty
    if no_vector and asked and claim.eval != "judge_validity":
        return untestable(f"no vector: {no_vector}")
    if not (frame["trait"] == trait).any():
        under = f" under {claim.condition}" if claim.condition else ""
        return Finding("not run", f"{claim.eval} has no samples of this trait{under}")
    shut = gate(run, trait) if claim.judged else ""
    return untestable(f"judge gate: {shut}") if shut else None


def _limit(run: Run, claim: Claim, trait: str, no_vector: str) -> Finding:
    found = LIMIT_RULES[claim.id](run.samples, claim, trait, Draw(run.seed, run.resamples))
    if no_vector and not run.samples.scenes.empty:
        return untestable(f"no vector: {no_vector}")
    shut = gate(run, trait) if claim.judged and found.verdict != "not run" else ""
    return untestable(f"judge gate: {shut}") if shut else found


def _ruled(run: Run, claim: Claim, trait: str) -> Finding:
    return _decided(claim, _RULINGS[claim.id](run.samples, claim, trait, Draw(run.seed, run.resamples)))


def _decided(claim: Claim, found: Ruling) -> Finding:
    if not found.ran:
        return Finding("not run", found.reason, log=found.log)
    if found.reason:
        return untestable(found.reason, n=min(found.counts.values(), default=0), log=found.log)
    questions = min((bound.estimate.n_clusters for bound in found.bounds), default=MIN_QUESTIONS)
    counts = dict(found.counts)
    if found.bounds:
        counts["on the questions compared"] = found.bounds[0].estimate.n
    few = too_few(claim, counts, questions, found.log)
    if few or not found.verdict:
        return few or decide(found.bounds, found.log)
    main, reason = found.bounds[0].estimate, "; ".join(str(bound) for bound in found.bounds)
    return Finding(found.verdict, reason, main.value, main.low, main.high, main.n, found.p, found.log)


def _of_method(
    run: Run, claim: Claim, trait: str, no_vector: str, before: Mapping[tuple[str, str], Finding]
) -> Finding:
    if not measured(run.samples, trait):
        return Finding("not run", "stated_limits has no samples of this trait")
    if claim.id == TWO_MODELS:
        return _PENDING
    if no_vector and claim.id not in NEED_NO_VECTOR:
        return untestable(f"no vector: {no_vector}")
    shut = gate(run, trait) if claim.judged else ""
    if shut:
        return untestable(f"judge gate: {shut}")
    verdicts = {key: found.verdict for key, found in before.items()}
    evidence = Evidence(run.samples, run.tables, run.layers, Draw(run.seed, run.resamples), verdicts)
    return _decided(claim, METHOD_RULES[claim.id](evidence, claim, trait))


def _resting_on_verdicts(pairs: Sequence[tuple[Claim, str]], finals: Sequence[Finding]) -> list[Finding]:
    """What rests on other claims' final verdicts: S3 needs a full vector that steers, S1 counts C1 to C9."""
    verdicts = {(claim.id, trait): found.verdict for (claim, trait), found in zip(pairs, finals, strict=True)}
    out = []
    for (claim, trait), found in zip(pairs, finals, strict=True):
        after = found
        if claim.id == VAGUE and found.verdict in VERDICTS[:3] and verdicts.get((INDUCES, trait)) != "supported":
            after = untestable(f"the full vector does not steer ({INDUCES} is not supported)", n=found.n, log=found.log)
        if found is _PENDING:
            verdict, share, reason = share_not_supported(claim, [(name, v) for (name, _), v in verdicts.items()])
            after = Finding(verdict, reason, share.value, share.low, share.high, share.n)
        out.append(after)
    return out


def _after_holm(found: Finding, p_holm: float) -> Finding:
    """A test whose adjusted p value is not under the level is inconclusive, whatever its interval says."""
    if found.verdict not in DECIDED or math.isnan(p_holm) or p_holm < ALPHA:
        return found
    why = f"{found.verdict} {_ALONE}, p = {p_holm:.2g} after Holm's correction"
    if found.p >= ALPHA:
        why = f"the test does not agree with the interval, p = {found.p:.2g} before any correction"
    return replace(found, verdict="inconclusive", reason=f"{found.reason}; {why}")


def by_the_interval_alone(reason: str) -> str:
    """`supported` or `contradicted` where a verdict's reason says that Holm's correction took this away, else ''."""
    before, found, _ = reason.rpartition(f" {_ALONE}, p = ")
    return before.rpartition(" ")[2] if found else ""


def weakness(row: pd.Series, older: bool) -> str:
    """Why a decided verdict decides less than it says, or which one Holm's correction took back; else "".

    Args:
        row: of claims.csv.
        older: whether the rule was amended after the run.
    """
    if row["verdict"] in DECIDED:
        # Without one the estimate alone decided: cosines of runs that kept no questions of a vector.
        return "older rule" if older else "no interval" if math.isnan(row["ci_low"]) else ""
    alone = by_the_interval_alone(str(row["reason"]))
    return f"{alone} by the interval alone" if alone else ""


_RULINGS = {**FINETUNING_RULES, **FLAGGING_RULES}

_RULES: Mapping[str, Rule] = {
    **STEERING_RULES,
    **MONITORING_RULES,
    **CAPABILITY_RULES,
    **VECTOR_RULES,
    **JUDGE_RULES,
}
