"""Decoding steps that are recorded: the same numbers, whatever is recorded when."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from persona_bench.models import decoding
from persona_bench.models.decoding import Decoding, Step
from persona_bench.models.engine import Engine
from persona_bench.models.rows import Row
from persona_bench.models.sampling import Sampling
from persona_bench.models.steering import Capture, Intervention
from tests.builders import tiny
from tests.test_steering import ANSWER, PROMPT, vector


class Again:
    """Stands for CUDA graphs: a step is run again, on the tensors that it was recorded with."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, step: Step) -> Step:
        self.recorded += 1
        step()

        def again() -> tuple[torch.Tensor, torch.Tensor | None]:
            self.replayed += 1
            return step()

        return again


def rows(n: int = 24, tokens: int = 12) -> list[Row]:
    """Rows of many lengths, some steered, each with one of two sets of directions or none."""
    sets = [torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    items: tuple[tuple[Intervention, ...], ...] = (
        (),
        (Intervention(2, vector(1), 1.7),),
        (Intervention(3, vector(2), operation="ablate", positions="all"),),
        (Intervention(1, vector(4), 0.5, "add", "prompt"), Intervention(4, vector(5), -0.8)),
    )
    made = []
    for number in range(n):
        given: dict[str, Any] = {"interventions": items[number % 4]}
        if number % 5:
            given["capture"] = Capture(sets[number % 2], per_token=True)
        prompt = PROMPT + ANSWER[: number % 4]
        made.append(Row(prompt, sampling=Sampling(2 + number % tokens, 0.9, seed=number, ignore_eos=True), **given))
    return made


def recording(again: Any, max_batch: int = 8) -> Engine:
    engine = Engine(tiny(), max_batch=max_batch)
    engine._decoding = Decoding(engine.loaded, engine.hooks, again)
    return engine


def test_recorded_steps_give_the_same_numbers() -> None:
    again = Again()
    asked = rows()
    expected = Engine(tiny(), max_batch=8).run(asked)
    engine = recording(again)
    for _ in range(2):  # the second time what was recorded the first time serves
        for ours, theirs in zip(engine.run(asked), expected, strict=True):
            assert ours.tokens == theirs.tokens and ours.stop_reason == theirs.stop_reason
            assert (ours.projections is None) == (theirs.projections is None)
            if ours.projections is not None and theirs.projections is not None:
                assert np.array_equal(ours.projections.per_token, theirs.projections.per_token, equal_nan=True)
    assert again.recorded > 1 and again.replayed > 2 * again.recorded


def test_a_step_is_recorded_once_it_has_come_often_enough() -> None:
    again = Again()
    engine = recording(again)
    row = Row(PROMPT, sampling=Sampling(decoding.SEEN_FIRST + 1, 0.0, ignore_eos=True))
    engine.run([row])  # the first token comes of the prefill
    assert (again.recorded, again.replayed) == (0, 0)
    engine.run([row])
    assert (again.recorded, again.replayed) == (1, decoding.SEEN_FIRST)


def test_a_recording_is_not_used_when_its_keys_and_values_have_moved() -> None:
    again = Again()
    engine = recording(again)
    short = [Row(PROMPT, sampling=Sampling(8, 0.9, seed=seed, ignore_eos=True)) for seed in range(4)]
    longer = [Row(PROMPT * 9, sampling=Sampling(8, 0.9, seed=seed, ignore_eos=True)) for seed in range(4)]
    for asked in (short, longer, short):
        expected = [result.tokens for result in Engine(tiny(), max_batch=8).run(asked)]
        assert [result.tokens for result in engine.run(asked)] == expected
    assert again.recorded > 1


def test_a_model_that_cannot_be_recorded_runs_on(caplog: pytest.LogCaptureFixture) -> None:
    tried = []

    def refuse(step: Step) -> Step:
        tried.append(step)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    asked = rows()
    expected = [result.tokens for result in Engine(tiny(), max_batch=8).run(asked)]
    with caplog.at_level(logging.WARNING):
        assert [result.tokens for result in recording(refuse).run(asked)] == expected
    assert len(tried) == 1 and "cannot be recorded" in caplog.text and "and more" not in caplog.text


def test_few_recordings_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MOST", 1)
    again = Again()
    engine = recording(again)
    asked = rows()
    expected = [result.tokens for result in Engine(tiny(), max_batch=8).run(asked)]
    assert [result.tokens for result in engine.run(asked)] == expected
    assert len(engine._decoding._held) == 1 and again.recorded > 1
