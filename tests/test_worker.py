"""The worker gets on while other threads of the process are busy."""

from __future__ import annotations

import sys

import pytest

from persona_bench.models.rows import Row
from persona_bench.models.sampling import Sampling
from persona_bench.models.worker import SWITCH_SECONDS, Worker
from tests.builders import tiny


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
