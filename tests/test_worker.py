"""The worker gets on while other threads are busy, and its lanes share rows without changing what they give."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from persona_bench.errors import DataError
from persona_bench.models.engine import Engine
from persona_bench.models.rows import Row
from persona_bench.models.sampling import Sampling
from persona_bench.models.worker import LANES, SWITCH_SECONDS, Worker
from tests.builders import only_x86, tiny
from tests.test_projection import in_use


@pytest.fixture(params=[1, 2, 5])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def rows(n: int) -> list[Row]:
    """Of three beginnings and several lengths, each with a seed of its own."""
    return [
        Row(
            tuple(range(3, 3 + 4 * (i % 3 + 1))) + (20 + i % 50,) * (i % 7),
            sampling=Sampling(3 + i % 5, seed=i, ignore_eos=True),
            shared_prefix=4 * (i % 3 + 1),
        )
        for i in range(n)
    ]


@only_x86
def test_lanes_give_what_one_engine_gives(threads: int) -> None:
    alone = Engine(in_use("llama"))
    expected = [result.tokens for result in alone.run(rows(300))]
    worker, loaded = Worker(), in_use("llama")
    engine = worker.engine(loaded, max_batch=16)
    with worker._changed:  # lanes wait until all are shared out
        futures = [future for row in rows(300) for future in worker.submit(engine, [row])]
    assert [future.result(timeout=60).tokens for future in futures] == expected
    done = [own.decoded_tokens for own in worker._shared[engine]]
    assert {own.max_batch for own in worker._shared[engine]} == {16 // min(threads, LANES)}
    assert len(done) == min(threads, LANES) and min(done) > max(done) / 3
    counts = list[int]()
    later = threading.Thread(target=lambda: counts.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert counts == [threads] == [torch.get_num_threads()], "lanes took the threads of others"


def test_rows_that_begin_alike_share_a_lane_until_it_has_much_more_to_do() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        worker, loaded = Worker(), tiny()
        engine = worker.engine(loaded, max_batch=64)
        with worker._changed:  # lanes wait meanwhile
            futures, loads = [], []
            for n in (4, 40):
                alike = [Row((5, 1, 2, 9 + i), alternatives=(4,), shared_prefix=3) for i in range(n)]
                futures += worker.submit(engine, alike)
                loads.append(sorted(own.load for own in worker._shared[engine]))
        assert loads == [[0, 4], [18, 26]]
        assert all(len(future.result(timeout=60).alternative_logprobs) == 1 for future in futures)
    finally:
        torch.set_num_threads(before)


def test_a_row_that_does_not_fit_is_refused_and_the_lanes_go_on(threads: int) -> None:
    worker = Worker()
    engine = worker.engine(tiny())
    with pytest.raises(DataError, match="empty prompt"):
        worker.submit(engine, [Row((), alternatives=(4,))])
    (future,) = worker.submit(engine, [Row((1, 2, 3), alternatives=(4,))])
    assert future.result(timeout=60).stop_reason == "scored"
    assert torch.get_num_threads() == threads


def test_lanes_end_after_their_step(threads: int) -> None:
    worker = Worker()
    engine = worker.engine(tiny())
    endless = Row((1, 2, 3), sampling=Sampling(200, ignore_eos=True))
    futures = worker.submit(engine, [endless] * 64)
    worker.end()
    assert len(worker._lanes) == min(threads, LANES) and not any(lane.is_alive() for lane in worker._lanes)
    assert not all(future.done() for future in futures)


HELPERS = """
import os, time
import torch
from persona_bench.models.memory import end_helpers
n_threads = lambda: len(os.listdir("/proc/self/task"))
torch.set_num_threads(4)
before = n_threads()
torch.randn(1000, 1000).square().sum()
print(n_threads() - before)
end_helpers()
deadline = time.monotonic() + 10
while n_threads() > before and time.monotonic() < deadline:
    time.sleep(0.01)
print(n_threads() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads where Linux lists them")
def test_helpers_of_openmp_end() -> None:
    done = subprocess.run([sys.executable, "-c", HELPERS], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == ["3", "0"]


@pytest.mark.parametrize("before", [0.005, 1e-5])
def test_no_thread_keeps_the_interpreter_for_long_once_a_worker_serves(before: float) -> None:
    held = sys.getswitchinterval()
    sys.setswitchinterval(before)
    try:
        worker = Worker()
        row = Row((1, 2, 3), sampling=Sampling(4, temperature=0.0, ignore_eos=True))
        (future,) = worker.submit(worker.engine(tiny("llama")), [row])
        assert len(future.result(timeout=60).tokens) == 4
        assert sys.getswitchinterval() == pytest.approx(min(before, SWITCH_SECONDS))
    finally:
        sys.setswitchinterval(held)
