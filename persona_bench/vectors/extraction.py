"""Judged rollouts -> a persona vector: keep what passes the filter, average, subtract (paper section 2.2)."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from persona_bench.definitions.outcomes import COHERENCE_CUT, TRAIT_CUT, UNFILTERED, AnyFilter, Filter
from persona_bench.definitions.traits import Trait, load_refusals
from persona_bench.errors import ExtractionError
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.engine import Engine
from persona_bench.models.rows import Row
from persona_bench.vectors.question_sums import QuestionSums
from persona_bench.vectors.vector import PersonaVector

MIN_KEPT = 8
MAX_REFUSAL_COSINE = 0.5
CHUNK = 64


@dataclass(frozen=True)
class Rollout:
    """One judged response.

    Attributes:
        side: `positive` or `negative`.
        pair: which instruction pair.
        question_id: which question.
        epoch: which rollout of it.
        messages: the conversation before the response, as (role, content).
        response: the response's text.
        status: one of `OUTCOMES`.
        trait_score: 0..100, NaN unless scored or incoherent.
        coherence: 0..100, NaN unless scored or incoherent.
    """

    side: str
    pair: int
    question_id: int
    epoch: int
    messages: tuple[tuple[str, str], ...]
    response: str
    status: str
    trait_score: float
    coherence: float

    @property
    def key(self) -> tuple[int, int, int]:
        """What a positive and a negative response must share to be a pair."""
        return (self.pair, self.question_id, self.epoch)


def drop_reasons(rollouts: Sequence[Rollout], rule: AnyFilter) -> list[str]:
    """Why each rollout is dropped, "" for those kept.

    `stated` is the filter in the paper's text: a positive response is kept with a trait score above 50, a negative
    one below 50, each on its own. `coded` is the one in its released code: positive at least 50, negative below 50,
    coherence at least 50 on both, and a response is kept only if its partner (same instruction pair, question and
    rollout) passes too.

    Incoherent responses pass the first, which does not mention coherence, and never the second. `unfiltered` drops
    empty responses alone.

    Reasons: `refusal`, `unscored`, `length` (an empty response), `score`, `coherence`, `partner`.
    """
    if rule == UNFILTERED:
        return ["" if item.response.strip() else "length" for item in rollouts]
    own = [_own_reason(item, rule) for item in rollouts]
    if rule == "stated":
        return own
    passed = {(item.key, item.side) for item, reason in zip(rollouts, own, strict=True) if not reason}
    other = {"positive": "negative", "negative": "positive"}
    return [
        reason or ("" if (item.key, other[item.side]) in passed else "partner")
        for item, reason in zip(rollouts, own, strict=True)
    ]


def _own_reason(item: Rollout, rule: Filter) -> str:
    if item.status in ("refusal", "unscored"):
        return item.status
    if not item.response.strip():
        return "length"
    positive = item.side == "positive"
    high_enough = item.trait_score > TRAIT_CUT if rule == "stated" else item.trait_score >= TRAIT_CUT
    if not (high_enough if positive else item.trait_score < TRAIT_CUT):
        return "score"
    if rule == "coded" and not item.coherence >= COHERENCE_CUT:
        return "coherence"
    return ""


class _Mean:
    """A running mean in float64: memory does not grow with what is added."""

    def __init__(self) -> None:
        self.total: np.ndarray | float = 0.0
        self.n = 0

    def add(self, value: np.ndarray) -> None:
        self.total = self.total + value.astype(np.float64)
        self.n += 1

    @property
    def value(self) -> np.ndarray:
        return np.asarray(self.total) / max(self.n, 1)


def extract(
    engine: Engine,
    trait: Trait,
    rollouts: Sequence[Rollout],
    *,
    rule: AnyFilter = "stated",
    seed: int = 0,
    provenance: dict[str, Any] | None = None,
    sums: QuestionSums | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PersonaVector:
    """Make the vector of a trait: mean residual stream of kept positive minus kept negative responses, at every layer.

    One teacher-forced pass over the kept responses; only running means are held.

    Args:
        engine: the model the rollouts came from.
        trait: the trait they were judged for.
        rollouts: judged responses.
        rule: the filter, see `drop_reasons`.
        seed: of the shuffled-label control.
        provenance: further facts to store (logs, grader).
        sums: takes what each kept response adds to the vector, by question.
        progress: told (done, total) responses.

    Raises:
        ExtractionError: fewer than 8 responses a side pass the filter; the message shows the pass rates.
    """
    reasons = drop_reasons(rollouts, rule)
    kept = [item for item, reason in zip(rollouts, reasons, strict=True) if not reason]
    counts = _counts(rollouts, reasons)
    for side in ("positive", "negative"):
        if counts[side]["kept"] < MIN_KEPT:
            rates = "; ".join(f"{name}: {_rate(counts[name])}" for name in ("positive", "negative"))
            raise ExtractionError(
                f"too few responses pass filter '{rule}' for {trait.name}, {MIN_KEPT} a side are needed ({rates}); "
                "the model may not show the trait when told to, or the judge may not see it: "
                "try more rollouts, another filter or another grader"
            )
    # The shuffled labels keep the sizes of the sides.
    sides = np.array([item.side == "positive" for item in kept])
    shuffled = np.random.default_rng(seed).permutation(sides)
    means = {(name, side): _Mean() for name in ("label", "shuffled") for side in (True, False)}
    norms = _Mean()
    tokenizer = engine.loaded.tokenizer
    for start in range(0, len(kept), CHUNK):
        rows = [_row(tokenizer, item.messages, item.response) for item in kept[start : start + CHUNK]]
        for offset, result in enumerate(engine.run(rows)):
            assert result.hidden_means is not None and result.hidden_norms is not None
            index = start + offset
            means["label", bool(sides[index])].add(result.hidden_means)
            means["shuffled", bool(shuffled[index])].add(result.hidden_means[2])
            norms.add(result.hidden_norms)
            if sums is not None:
                sums.add(kept[index].question_id, kept[index].side, result.hidden_means[2])
        if progress is not None:
            progress(min(start + CHUNK, len(kept)), len(kept))
    difference = means["label", True].value - means["label", False].value
    directions = {
        "persona": difference[2],
        "prompt_last": difference[0],
        "prompt_avg": difference[1],
        "shuffled": means["shuffled", True].value - means["shuffled", False].value,
        "refusal": refusal_direction(engine),
    }
    vector = PersonaVector(
        trait=trait.name,
        directions={name: torch.tensor(value, dtype=torch.float32) for name, value in directions.items()},
        residual_norms=torch.tensor(norms.value, dtype=torch.float32),
        negative_mean=torch.tensor(means["label", False].value[2], dtype=torch.float32),
    )
    cosine = vector.refusal_cosines()[1:]
    worst = int(cosine.argmax()) + 1
    warning = ""
    if float(cosine[worst - 1]) > MAX_REFUSAL_COSINE:
        warning = (
            f"the {trait.name} vector points along refusal (cosine {float(cosine[worst - 1]):.2f} at layer {worst}): "
            "steering with it may make the model refuse rather than show the trait"
        )
    if sums is not None:
        sums.hash = vector.hash
    return replace(
        vector,
        provenance={
            **(provenance or {}),
            "model": engine.loaded.name,
            "weights_hash": engine.loaded.weights_hash,
            "weights_source": engine.loaded.source,
            "dtype": str(engine.loaded.dtype).removeprefix("torch."),
            "trait_hash": trait.hash,
            "filter": rule,
            "seed": seed,
            "counts": counts,
            "warning": warning,
            "versions": {name: version(name) for name in ("torch", "transformers")}
            | {"python": platform.python_version()},
        },
    )


def differing(vector: PersonaVector, log_ids: Sequence[str], trait: Trait, rule: AnyFilter) -> str:
    """What else than this a vector was made with, "" for nothing; what its file does not name is taken for the same.

    Args:
        vector: made by `extract`.
        log_ids: of the responses.
        trait: with its texts.
        rule: the filter.
    """
    held = vector.provenance
    if held.get("log_ids") != list(log_ids):
        return "other responses"
    if held.get("filter", rule) != rule:
        return f"filter '{held['filter']}', not '{rule}'"
    return "" if held.get("trait_hash", trait.hash) == trait.hash else "other texts of the trait"


def refusal_direction(engine: Engine) -> np.ndarray:
    """Mean residual stream of refusing minus complying responses to the same questions: `(n_layers + 1, d_model)`."""
    return refusal_and_norms(engine)[0]


def refusal_and_norms(engine: Engine) -> tuple[np.ndarray, np.ndarray]:
    """The refusal direction, and `(n_layers + 1,)` mean |h_l| over the tokens of the complying responses."""
    pairs = load_refusals()
    tokenizer = engine.loaded.tokenizer
    refusing, complying = (
        [_row(tokenizer, (("user", pair.question),), getattr(pair, side)) for pair in pairs]
        for side in ("refusing", "complying")
    )
    means, norms = [_Mean(), _Mean()], _Mean()
    for index, result in enumerate(engine.run([*refusing, *complying])):
        assert result.hidden_means is not None and result.hidden_norms is not None
        means[index >= len(pairs)].add(result.hidden_means[2])
        if index >= len(pairs):
            norms.add(result.hidden_norms)
    difference: np.ndarray = means[0].value - means[1].value
    return difference, norms.value


def _row(tokenizer: Any, messages: Sequence[tuple[str, str]], response: str) -> Row:
    prompt = prompt_ids(tokenizer, [{"role": role, "content": content} for role, content in messages])
    return Row(prompt, response_ids(tokenizer, response), hidden_means=True)


def _counts(rollouts: Sequence[Rollout], reasons: Sequence[str]) -> dict[str, dict[str, int]]:
    out: dict[str, dict[str, int]] = {}
    for side in ("positive", "negative"):
        tally = Counter(reason or "kept" for item, reason in zip(rollouts, reasons, strict=True) if item.side == side)
        out[side] = {"kept": 0, **dict(sorted(tally.items()))}
    return out


def _rate(counts: dict[str, int]) -> str:
    total = sum(counts.values())
    dropped = ", ".join(f"{n} {reason}" for reason, n in counts.items() if reason != "kept")
    return f"{counts['kept']} of {total} kept" + (f", dropped: {dropped}" if dropped else "")
