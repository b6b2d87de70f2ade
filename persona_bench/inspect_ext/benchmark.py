"""Timing of scoring questions behind shared examples against scoring each as a whole, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from persona_bench.inspect_ext.provider import PersonaAPI
from persona_bench.inspect_ext.requests import ScoreItem
from persona_bench.models.engine import Engine
from persona_bench.models.rows import Row

SLICE = 25  # questions timed at a time
SAMPLED = 5  # of which so many are also scored as a whole


def measure_sharing(
    model: str, questions: Sequence[Sequence[ScoreItem]], repeats: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Seconds to score questions with what they share prefilled once, and each row as a whole, and their ratio.

    The shared side begins every round with nothing kept, so that prefilling the examples is part of its time. Rows as
    a whole are a sample of each slice, and their time is scaled by the number of tokens. Every round times both on a
    slice before the next, so that a slow spell of the machine hits both alike; a slice's figure is its fastest round.

    Args:
        model: as `loading.load` takes it.
        questions: the items of each, examples before all of them.
        repeats: rounds.
        say: told about progress.
    """
    api = PersonaAPI(model)
    rows = [[api.score_row(item) for item in items] for items in questions]
    slices = [rows[start : start + SLICE] for start in range(0, len(rows), SLICE)]
    plain = [[replace(row, shared_prefix=0, shared_root=0) for row in _flat(part[:SAMPLED])] for part in slices]
    whole: list[list[float]] = [[] for _ in slices]
    shared: list[list[float]] = [[] for _ in slices]
    apart, kept = 0.0, 0
    for index in range(repeats):
        engine, other = Engine(api.loaded), Engine(api.loaded)
        for place, (part, alone) in enumerate(zip(slices, plain, strict=True)):
            say(f"examples, round {index + 1} of {repeats}: question {place * SLICE} of {len(rows)}")
            seconds, found = _timed(engine, _flat(part))
            shared[place].append(seconds)
            seconds, expected = _timed(other, alone)
            whole[place].append(seconds)
            apart = max(apart, float(np.abs(found[: len(expected)] - expected).max()))
        kept = engine.prefill_tokens
    tokens = [sum(row.n_given for row in _flat(part)) for part in slices]
    scaled = sum(
        min(seconds) * total / sum(row.n_given for row in alone)
        for seconds, total, alone in zip(whole, tokens, plain, strict=True)
    )
    return {
        "questions": len(rows),
        "rows": sum(map(len, rows)),
        "tokens": {"whole": sum(tokens), "shared": kept},
        "seconds": {"whole, scaled to all tokens": scaled, "shared": sum(map(min, shared))},
        "seconds_by_slice_and_round": {"whole, sampled": whole, "shared": shared},
        "largest_difference": apart,
        "ratio": scaled / sum(map(min, shared)),
    }


def _flat(rows: Sequence[Sequence[Row]]) -> list[Row]:
    return [row for group in rows for row in group]


def _timed(engine: Engine, rows: Sequence[Row]) -> tuple[float, np.ndarray]:
    began = time.perf_counter()
    results = engine.run(rows)
    seconds = time.perf_counter() - began
    return seconds, np.concatenate([[*r.continuation_logprobs, *r.alternative_logprobs] for r in results])
