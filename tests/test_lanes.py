"""Engines side by side: the same bits as one alone, and an error or an interrupt that ends all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from persona_bench.errors import DataError
from persona_bench.models import lanes
from persona_bench.models.engine import Engine
from persona_bench.models.lanes import Lanes, n_lanes
from persona_bench.models.rows import Row
from persona_bench.models.sampling import Sampling
from persona_bench.vectors.projection import project_transcripts
from persona_bench.vectors.transcripts import read_transcripts
from tests.builders import only_x86
from tests.conftest import talking, tiny_vector
from tests.test_projection import conversation, in_use, written


@pytest.fixture(params=[2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@only_x86
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_side_by_side_and_alone_are_bit_equal(
    kind: str, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written(tmp_path / "in.jsonl", [conversation(i) for i in range(40)])
    loaded, unit = in_use(kind), tiny_vector().directions["persona"][None]
    found, told = [], list[str]()
    for least in (10**6, 16):
        monkeypatch.setattr(lanes, "LANE_TOKENS", least)
        engine = Engine(loaded, token_budget=64)
        chunks = read_transcripts(source, loaded.tokenizer, located=False)
        passed = project_transcripts(engine, chunks, unit, (1, 3), told.append)
        found.append({item.index: products for item, products in passed})
        assert bool(engine.prefill_tokens) == (least > 16)
    assert list(found[0]) == list(found[1]) == list(range(40))
    assert all(np.array_equal(found[0][index], found[1][index]) for index in found[0])
    assert told[-1] == "40 transcripts" and torch.get_num_threads() == threads


def test_each_has_its_threads_and_its_modules_on_the_same_weights(threads: int) -> None:
    engine, together = Engine(talking()), threading.Barrier(threads, timeout=60)

    def task(own: Engine) -> tuple[Engine, int]:
        together.wait()
        return own, torch.get_num_threads()

    side_by_side = Lanes(engine)
    assert side_by_side.n == n_lanes(torch.device("cpu")) == threads and n_lanes(torch.device("cuda")) == 1
    found = side_by_side.run([task] * threads)
    assert [n for _, n in found] == [1] * threads and torch.get_num_threads() == threads
    engines = [own for own, _ in found]
    assert len({id(own.loaded.blocks[0]) for own in (engine, *engines)}) == threads + 1
    for name, weight in engine.loaded.model.named_parameters():
        assert all(own.loaded.model.get_parameter(name) is weight for own in engines)
    assert side_by_side.run([lambda own: own]) == [engine] and side_by_side.run([]) == []


@only_x86
def test_weights_are_laid_out_once_for_all(threads: int) -> None:
    engine = Engine(in_use())
    Lanes(engine).run([lambda own: own.run([Row((1, 2, 3), alternatives=(4,))])] * threads)
    layer: Any = engine.loaded.blocks[0].get_submodule("mlp.up_proj")
    assert len(layer._layout) == 1 and engine.prefill_tokens == 0


def endless(own: Engine) -> None:
    """Runs until it is halted; hundreds of passes a second."""
    while True:
        own.run([Row((1, 2, 3), sampling=Sampling(50, ignore_eos=True))])


def test_an_error_ends_all(threads: int) -> None:
    side_by_side = Lanes(Engine(talking()))

    def fails(_own: Engine) -> None:
        time.sleep(0.2)
        raise DataError("this one")

    with pytest.raises(DataError, match="this one"):
        side_by_side.run([endless, fails])
    assert torch.get_num_threads() == threads and not lane_threads()
    assert side_by_side.run([lambda own: own.busy] * 2) == [False, False]


def test_an_interrupt_ends_all(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        time.sleep(0.2)
        assert lane_threads()
        raise KeyboardInterrupt

    monkeypatch.setattr(lanes, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Lanes(Engine(talking())).run([endless, endless])
    assert torch.get_num_threads() == threads and not lane_threads()


def lane_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("persona-bench-lane")]
