"""Evals shared among processes: the same samples as in one, logs of either found by the other, a death said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from inspect_ai.log import EvalLog

from evals.mmlu_preservation import mmlu_preservation
from persona_bench import pipeline
from persona_bench.analysis.samples.collect import read_logs
from persona_bench.errors import PersonaBenchError, RunError
from persona_bench.pipeline.pool import Pool
from tests.conftest import tiny_vector

if TYPE_CHECKING:
    from persona_bench.pipeline.pool import Planned

STAGE = "mmlu"
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


def answers(logs: dict[str, EvalLog]) -> dict[str, list[tuple[str, object]]]:
    return {
        name: sorted((str(sample.id), str(sample.scores)) for sample in log.samples or []) for name, log in logs.items()
    }


def ids(work: pipeline.Run) -> dict[str, str]:
    return {name: log.eval.eval_id for name, log in read_logs(work.folder / "logs" / STAGE).items()}


def test_shared_evals_are_those_of_one_process_and_each_finds_the_others_logs(tmp_path: Path, _saved: Path) -> None:
    said: list[str] = []
    alone, shared = (started(tmp_path / name, _saved, said) for name in ("alone", "shared"))
    alone._eval_set(STAGE, planned(tmp_path))
    expected = answers(read_logs(alone.folder / "logs"))
    assert len(expected) == 2 and all(len(found) >= 60 for found in expected.values())

    with closing(Pool(shared.settings, shared.folder, 2, said.append)) as shared.pool:
        shared._eval_set(STAGE, planned(tmp_path))
        assert answers(read_logs(shared.folder / "logs")) == expected
        assert [line for line in said if line.startswith("mmlu: 2 of 2 evals done, mmlu_preservation-")]

    # What one process left is not done again by several ...
    before = ids(alone)
    with closing(Pool(alone.settings, alone.folder, 2, said.append)) as alone.pool:
        alone._eval_set(STAGE, planned(tmp_path))
    assert ids(alone) == before and not list((alone.folder / "logs" / STAGE).glob("*.eval"))

    # ... nor what several left, by one.
    before, shared.pool = ids(shared), None
    shared._eval_set(STAGE, planned(tmp_path))
    assert ids(shared) == before


def test_what_an_eval_raises_and_a_process_that_dies_are_said(tmp_path: Path, _saved: Path) -> None:
    said: list[str] = []
    work = started(tmp_path / "run", _saved, said)
    (good, *_) = planned(tmp_path)
    gone = partial(mmlu_preservation, trait="evil", vector=str(tmp_path / "gone.safetensors"), layers="2")
    with closing(Pool(work.settings, work.folder, 1, said.append)) as pool:
        with pytest.raises(PersonaBenchError, match=r"gone\.safetensors"):
            pool.evaluate(STAGE, {"mmlu/gone": gone})
        pool.evaluate(STAGE, {"mmlu/good": good})
        assert len(read_logs(work.folder / "logs")) == 1, "a process outlives an eval that failed"

        (process,) = (pool._workers._processes or {}).values()
        threading.Timer(0.5, os.kill, (process.pid, signal.SIGSTOP)).start()
        threading.Timer(1.0, os.kill, (process.pid, signal.SIGKILL)).start()
        with pytest.raises(RunError, match="fewer --processes"):
            pool.evaluate(STAGE, {f"mmlu/again-{number}": good for number in range(20)})


def test_processes_end_with_the_run(tmp_path: Path, _saved: Path) -> None:
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom persona_bench import pipeline\n"
        "from persona_bench.pipeline.pool import Pool\n"
        f"settings = pipeline.Settings(model={str(_saved)!r}, grader='mockllm/model')\n"
        f"pool = Pool(settings, Path({str(tmp_path)!r}), 1, print)\n"
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
