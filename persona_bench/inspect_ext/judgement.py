"""One response judged: its outcome, how several graders' judgements become one, and what of it a log holds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import cast

from inspect_ai.scorer import Score

from persona_bench.definitions.outcomes import COHERENCE_CUT, OUTCOMES


@dataclass(frozen=True)
class Judgement:
    """One response judged by one grader or by a panel.

    Attributes:
        status: one of `OUTCOMES`.
        trait: 0..100, NaN unless scored.
        coherence: 0..100, NaN unless scored or incoherent.
        method: the method behind `trait`.
        reason: why it is unscored, else "".
        raw_trait: what the grader said of the trait in an incoherent response, NaN otherwise.
        panel: with several graders, each one's name, outcome and trait score (None without one).
    """

    status: str
    trait: float = math.nan
    coherence: float = math.nan
    method: str = ""
    reason: str = ""
    raw_trait: float = math.nan
    panel: tuple[tuple[str, str, float | None], ...] = field(default=())


def measured(trait: float, coherence: float, method: str) -> Judgement:
    """Scored, or incoherent where coherence is under the cut; a coherence that is not known (NaN) cuts nothing."""
    if coherence < COHERENCE_CUT:
        return Judgement("incoherent", coherence=coherence, method=method, raw_trait=trait)
    return Judgement("scored", trait, coherence, method)


def merge(names: Sequence[str], judgements: Sequence[Judgement]) -> Judgement:
    """A panel's judgement: the outcome that most of its working graders give, numbers averaged over those who gave it.

    A grader that failed has no vote; if half of the panel or more failed, the response is unscored. Of outcomes with
    the same number of votes the one that gives no score wins (incoherent over refusal over scored), so that a divided
    panel never makes a number.
    """
    panel = tuple(
        (name, item.status, item.trait if item.status == "scored" else None)
        for name, item in zip(names, judgements, strict=True)
    )
    working = [item for item in judgements if item.status != "unscored"]
    method = "panel of " + ", ".join(dict.fromkeys(item.method for item in working if item.method))
    if 2 * len(working) <= len(judgements):
        reasons = "; ".join(dict.fromkeys(item.reason for item in judgements if item.reason))
        return Judgement(
            "unscored",
            method="panel",
            reason=f"{len(judgements) - len(working)} of {len(judgements)} graders failed: {reasons}",
            panel=panel,
        )
    votes = Counter(item.status for item in working)
    status = max(votes, key=lambda name: (votes[name], OUTCOMES.index(name)))
    agreeing = [item for item in working if item.status == status]
    return Judgement(
        status,
        _mean([item.trait for item in agreeing]),
        _mean([item.coherence for item in agreeing]),
        method,
        raw_trait=_mean([item.raw_trait for item in agreeing]),
        panel=panel,
    )


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def as_score(result: Judgement, answer: str) -> Score:
    """A judgement as an Inspect score: numbers and the outcome as 0 or 1 each in its value, the rest as metadata."""
    value: dict[str, float] = {"trait": result.trait, "coherence": result.coherence}
    value |= {name: float(result.status == name) for name in OUTCOMES if name != "scored"}
    metadata = {key: found for key, found in asdict(result).items() if key in ("status", "method", "reason")}
    if not math.isnan(result.raw_trait):
        metadata["raw_trait"] = result.raw_trait
    if result.panel:
        metadata["panel"] = [list(item) for item in result.panel]
    return Score(
        value=dict(value),
        answer=answer,
        explanation=result.reason or None,
        metadata=metadata,
    )


def as_turn_scores(results: Sequence[Judgement], answers: Sequence[str]) -> Score:
    """The judgements of a conversation's responses as one score: means over the turns, and every turn as metadata.

    `refusal`, `incoherent` and `unscored` are shares of the turns.
    """
    scores = [as_score(result, answer) for result, answer in zip(results, answers, strict=True)]
    values = [cast(dict[str, float], score.value) for score in scores]
    return Score(
        value={key: _mean([value[key] for value in values]) for key in values[0]},
        answer=answers[-1],
        metadata={
            "status": "scored" if any(result.status == "scored" for result in results) else results[-1].status,
            "method": results[-1].method,
            "turns": [{"value": value, **(score.metadata or {})} for value, score in zip(values, scores, strict=True)],
        },
    )
