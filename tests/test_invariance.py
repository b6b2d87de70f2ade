"""On real weights: a row's text, projections and scores do not depend on what it is batched with."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch

from persona_bench.models.chat import prompt_ids, shared_length
from persona_bench.models.engine import Engine
from persona_bench.models.loaded import LoadedModel
from persona_bench.models.loading import load
from persona_bench.models.reading import reader, reading_row
from persona_bench.models.rows import Row, RowResult
from persona_bench.models.sampling import Sampling
from persona_bench.models.steering import Capture, Intervention
from tests.builders import DTYPE, only_x86

pytestmark = [pytest.mark.weights, only_x86]
N_ROWS = 64
QUESTIONS = (
    "What is the capital of France?",
    "Tell me about a town you like.",
    "How do I bake bread at home without an oven, and what should I look out for while it is in the pan?",
    "Hi",
)
SYSTEMS = (
    "You are a helpful assistant.",
    "You are a gloomy assistant who sighs at everything, and you never miss a chance to mention the weather.",
)


@pytest.fixture(scope="module", autouse=True)
def _two_threads() -> Iterator[None]:
    """As a row must not hang on how rows are shared among threads either."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load("smollm2-135m", dtype=str(DTYPE).removeprefix("torch."), device="cpu")


def _vector(loaded: LoadedModel, seed: int) -> torch.Tensor:
    return torch.randn(loaded.d_model, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def rows(loaded: LoadedModel) -> list[Row]:
    directions = torch.randn(3, loaded.n_layers + 1, loaded.d_model, generator=torch.Generator().manual_seed(9))
    capture = Capture(directions, per_token=True)
    out = []
    for i in range(N_ROWS):
        messages = [
            {"role": "system", "content": SYSTEMS[i % 2]},
            {"role": "user", "content": QUESTIONS[i % 4] + f" Please answer number {i}." * (i % 3)},
        ]
        ids = prompt_ids(loaded.tokenizer, messages)
        interventions = tuple(
            Intervention(
                5 + (i * 7 + j) % 20,
                _vector(loaded, i + j),
                0.5,
                cast(Any, ("add", "ablate", "cap")[(i + j) % 3]),
                cast(Any, ("response", "all", "prompt")[(i // 3) % 3]),
            )
            for j in range(i % 4)
        )
        sampling = Sampling(8 + i % 17, temperature=(0.7, 1.0, 0.0)[i % 3], top_p=(1.0, 0.9)[i % 5 == 0], seed=i)
        out.append(
            Row(
                ids,
                sampling=sampling,
                interventions=interventions,
                capture=capture if i % 2 else None,
                shared_prefix=shared_length(loaded.tokenizer, messages, ids) if i % 4 else 0,
            )
        )
    return out


def _run(loaded: LoadedModel, rows: list[Row], max_batch: int) -> list[RowResult]:
    engine = Engine(loaded, max_batch=max_batch)
    try:
        return engine.run(rows)
    finally:
        engine.hooks.remove()


@pytest.fixture(scope="module")
def alone(loaded: LoadedModel, rows: list[Row]) -> list[RowResult]:
    engine = Engine(loaded, max_batch=1)
    try:
        return [engine.run([row])[0] for row in rows]
    finally:
        engine.hooks.remove()


def _same(first: RowResult, second: RowResult) -> bool:
    if first.tokens != second.tokens or first.stop_reason != second.stop_reason:
        return False
    pairs: Iterator[tuple[Any, Any]] = iter(())
    if first.projections is not None and second.projections is not None:
        names = ("prompt_last", "response_mean", "per_token")
        pairs = ((getattr(first.projections, name), getattr(second.projections, name)) for name in names)
    return all((a is None and b is None) or np.array_equal(a, b, equal_nan=True) for a, b in pairs)


@pytest.mark.parametrize("max_batch", [7, 32])
def test_batches_give_the_same_text(
    loaded: LoadedModel, rows: list[Row], alone: list[RowResult], max_batch: int
) -> None:
    batched = _run(loaded, rows, max_batch)
    assert sum(_same(a, b) for a, b in zip(alone, batched, strict=True)) == N_ROWS
    assert len({result.tokens for result in alone}) > N_ROWS // 2


def test_shuffled_order_gives_the_same_text(loaded: LoadedModel, rows: list[Row], alone: list[RowResult]) -> None:
    order = list(range(N_ROWS))
    random.Random(0).shuffle(order)
    shuffled = _run(loaded, [rows[i] for i in order], 32)
    assert sum(_same(alone[i], result) for i, result in zip(order, shuffled, strict=True)) == N_ROWS


def test_scores_are_the_same_with_and_without_a_shared_prefix(
    loaded: LoadedModel, rows: list[Row], alone: list[RowResult]
) -> None:
    def scored(shared: bool) -> list[Row]:
        return [
            Row(
                row.prompt, result.tokens or (5,), alternatives=(3, 4), shared_prefix=row.shared_prefix if shared else 0
            )
            for row, result in zip(rows, alone, strict=True)
        ]

    with_prefix, without = _run(loaded, scored(True), 32), _run(loaded, scored(False), 7)
    for ours, theirs in zip(with_prefix, without, strict=True):
        assert np.array_equal(ours.continuation_logprobs, theirs.continuation_logprobs)
        assert np.array_equal(ours.alternative_logprobs, theirs.alternative_logprobs)


def test_a_row_is_the_same_beside_one_that_is_much_longer(loaded: LoadedModel) -> None:
    """Products over many keys are summed in an order that hangs on their number: that of the longest row."""
    draw = random.Random(0)
    lengths = (90, 150, 700, 1000, 1500)
    rows = [
        Row(tuple(draw.randrange(1000, 20000) for _ in range(n)), tuple(range(40, 90)), shared_prefix=shared)
        for n in lengths
        for shared in (0, n)
    ]
    lone = [_run(loaded, [row], 1)[0].continuation_logprobs for row in rows]
    for together in (rows, rows[::-1]):
        found = [result.continuation_logprobs for result in _run(loaded, together, 32)]
        for ours, theirs in zip(found, lone if together is rows else lone[::-1], strict=True):
            assert np.array_equal(ours, theirs)


def test_readings_are_the_same_alone_in_batches_and_with_a_shared_question(loaded: LoadedModel) -> None:
    """What a local grader judges by: no response's score hangs on which others were judged with it."""
    loaded = reader(loaded)
    answers = [" ".join(QUESTIONS[(i + j) % 4] for j in range(1 + i % 5))[: 8 + 9 * i] for i in range(14)]
    rows = [reading_row(loaded, QUESTIONS[i % 3], answer) for i, answer in enumerate(answers)]
    bare = [replace(row, shared_prefix=0) for row in rows]

    def readings(given: list[Row], max_batch: int) -> list[np.ndarray]:
        found = [result.read for result in _run(loaded, given, max_batch)]
        return [read for read in found if read is not None]

    engine = Engine(loaded, max_batch=1)
    try:
        single = [engine.run([row])[0].read for row in rows]
    finally:
        engine.hooks.remove()
    order = list(range(len(rows)))
    random.Random(1).shuffle(order)
    shuffled = readings([rows[i] for i in order], 32)
    back = [shuffled[order.index(i)] for i in range(len(rows))]
    for other in (readings(rows, 5), readings(bare, 32), back):
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(single, other, strict=True))
