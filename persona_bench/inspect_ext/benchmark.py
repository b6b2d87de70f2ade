"""Timing of scoring questions behind shared examples against scoring each as a whole, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from persona_bench.inspect_ext.provider import PersonaAPI
from persona_bench.inspect_ext.requests import ScoreItem
from persona_bench.models.engine import Engine, Row

SLICE = 25  # items timed at a time


def measure_sharing(model: str, items: Sequence[ScoreItem], repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds to score items with the prefixes they share prefilled once, with every row as a whole, and their ratio.

    The shared side starts each round without anything kept, so that prefilling the examples is part of its time. Every
    round goes through the items in slices and times both on a slice before the next, so that a slow spell of the
    machine hits both alike. A slice's figure is its fastest round, a variant's the sum of them.

    Args:
        model: as `loading.load` takes it.
        items: what to score, examples before every question.
        repeats: rounds.
        say: told about progress.
    """
    api = PersonaAPI(model)
    rows = [api.score_row(item) for item in items]
    whole = [replace(row, shared_prefix=0, shared_root=0) for row in rows]
    engines = {"shared": Engine(api.loaded), "whole": Engine(api.loaded)}
    starts = range(0, len(rows), SLICE)
    seconds: dict[str, list[list[float]]] = {name: [[] for _ in starts] for name in engines}
    apart = 0.0
    for index in range(repeats):
        engines["shared"] = Engine(api.loaded)
        for place, start in enumerate(starts):
            say(f"examples, round {index + 1} of {repeats}: item {start} of {len(rows)}")
            found = {}
            for name, given in (("shared", rows), ("whole", whole)):
                began = time.perf_counter()
                found[name] = _numbers(engines[name], given[start : start + SLICE])
                seconds[name][place].append(time.perf_counter() - began)
            apart = max(apart, float(np.abs(found["shared"] - found["whole"]).max()))
    total = {name: sum(map(min, slices)) for name, slices in seconds.items()}
    return {
        "items": len(rows),
        "tokens_whole": sum(row.n_given for row in rows),
        "tokens_shared": engines["shared"].prefill_tokens,
        "seconds": total,
        "largest_difference": apart,
        "ratios": {"whole / shared examples": total["whole"] / total["shared"]},
    }


def _numbers(engine: Engine, rows: Sequence[Row]) -> np.ndarray:
    results = engine.run(rows)
    return np.concatenate([np.concatenate([r.continuation_logprobs, r.alternative_logprobs]) for r in results])
