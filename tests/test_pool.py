"""Evals shared among processes: the same samples as in one, logs of either found by the other, a death said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, wait
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from inspect_ai.log import EvalLog

from evals.mmlu_preservation import mmlu_preservation
from evals.trait_elicitation import trait_elicitation
from persona_bench import pipeline
from persona_bench.analysis.samples.collect import read_logs
from persona_bench.errors import PersonaBenchError, RunError
from persona_bench.pipeline import pool as pool_module
from persona_bench.pipeline.pool import Pool
from tests.conftest import tiny_vector

if TYPE_CHECKING:
    from persona_bench.pipeline.pool import Planned

pytestmark = pytest.mark.weights


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two spin for each other on a model as small as this one.
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def started(folder: Path, model: Path, said: list[str]) -> pipeline.Run:
    settings = pipeline.Settings(model=str(model), grader="mockllm/model", evals=("mmlu_preservation",))
    work = pipeline.Run(settings, folder, said.append)
    work.load()
    return work


def planned(folder: Path) -> list[Planned]:
    made = []
    for trait in ("evil", "sycophancy"):
        path = folder / f"{trait}.safetensors"
        vector = tiny_vector(trait=trait)
        vector.save(path)
        made.append(partial(mmlu_preservation, trait=trait, vector=str(path), vector_sha256=vector.hash, layers="2"))
    return made


def answers(logs: dict[str, EvalLog]) -> dict[str, list[tuple[str, str]]]:
    return {
        name: sorted((str(sample.id), str(sample.scores)) for sample in log.samples or []) for name, log in logs.items()
    }


def ids(logs: dict[str, EvalLog]) -> dict[str, str]:
    return {name: log.eval.eval_id for name, log in logs.items()}


def test_shared_evals_are_those_of_one_process_and_each_finds_the_others_logs(tmp_path: Path, _saved: Path) -> None:
    said: list[str] = []
    work = started(tmp_path / "run", _saved, said)
    alone, shared = work.folder / "logs" / "alone", work.folder / "logs" / "shared"
    work._eval_set("alone", planned(tmp_path))
    before = read_logs(alone)
    assert len(before) == 2 and all(len(found) >= 60 for found in answers(before).values())

    with closing(Pool(partial(pipeline.Run, work.settings, work.folder, str), 2, said.append)) as work.pool:
        work._eval_set("shared", planned(tmp_path))
        made = read_logs(shared)
        assert answers(made) == answers(before) and not ids(made).items() & ids(before).items()
        assert any(line.startswith("shared: 2 of 2 evals done, mmlu_preservation-") for line in said)
        # What one process left, several do not do again ...
        work._eval_set("alone", planned(tmp_path))
        assert ids(read_logs(alone)) == ids(before) and not list(alone.glob("*.eval"))

    # ... nor one what several left.
    work.pool = None
    work._eval_set("shared", planned(tmp_path))
    assert ids(read_logs(shared)) == ids(made)


def test_what_an_eval_raises_and_a_process_that_dies_are_said(
    tmp_path: Path, _saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled: list[Any] = []

    def first_done(waiting: Any, *how: Any) -> tuple[set[Any], Any]:
        """As where the others are not told yet that the process died."""
        done, rest = wait(waiting, *how)
        return set(list(done)[:1]), rest

    said: list[str] = []
    work = started(tmp_path / "run", _saved, said)
    (good, *_) = planned(tmp_path)
    gone = partial(mmlu_preservation, trait="evil", vector=str(tmp_path / "gone.safetensors"), layers="2")
    with closing(Pool(partial(pipeline.Run, work.settings, work.folder, str), 1, said.append)) as pool:
        with pytest.raises(PersonaBenchError, match=r"gone\.safetensors"):
            pool.evaluate("mmlu", {"mmlu/gone": gone})
        pool.evaluate("mmlu", {"mmlu/good": good})
        assert len(read_logs(work.folder / "logs")) == 1, "a process outlives an eval that failed"

        (process,) = (pool._workers._processes or {}).values()
        monkeypatch.setattr(Future, "cancel", cancelled.append)
        monkeypatch.setattr(pool_module, "wait", first_done)
        threading.Timer(0.5, os.kill, (process.pid, signal.SIGSTOP)).start()
        threading.Timer(1.0, os.kill, (process.pid, signal.SIGKILL)).start()
        with pytest.raises(RunError, match="fewer --processes"):
            pool.evaluate("mmlu", {f"mmlu/again-{number}": good for number in range(20)})
        # The executor gives all of them the error in its own time, and fails itself at one cancelled meanwhile.
        assert not cancelled


def test_processes_end_with_the_run(tmp_path: Path, _saved: Path) -> None:
    code = (
        "import os, time\nfrom functools import partial\nfrom pathlib import Path\nfrom persona_bench import pipeline\n"
        "from persona_bench.pipeline.pool import Pool\n"
        f"settings = pipeline.Settings(model={str(_saved)!r}, grader='mockllm/model')\n"
        f"pool = Pool(partial(pipeline.Run, settings, Path({str(tmp_path)!r}), str), 1, print)\n"
        "pool._workers.submit(os.getpid).add_done_callback(lambda found: print(found.result(), flush=True))\n"
        "time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        process = int(run.stdout.readline())
        run.kill()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{process}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{process}").exists()


def test_a_run_needs_a_process(tmp_path: Path, _saved: Path) -> None:
    settings = pipeline.Settings(model=str(_saved), grader="mockllm/model")
    with pytest.raises(RunError, match="0 processes"):
        pipeline.run(settings, tmp_path, str, processes=0)
    assert not list(tmp_path.iterdir())


def test_the_longest_evals_are_begun_first(tmp_path: Path, _saved: Path) -> None:
    begun: list[str] = []

    class Watched:
        def evaluate(self, _what: str, shared: dict[str, Planned]) -> None:
            begun.extend(make.keywords["preset"] for make in shared.values())

    work = started(tmp_path / "run", _saved, [])
    work.pool = Watched()  # type: ignore[assignment]
    short, long = (partial(trait_elicitation, trait="evil", preset=preset) for preset in ("quick", "standard"))
    for order in ([short, long], [long, short]):
        work._eval_set("elicitation", order)
    assert begun == ["standard", "quick"] * 2
