"""The main job end to end on a tiny random model: resumable, reproducible, and honest about a judge at random."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

RUN = """
import dataclasses, sys
from pathlib import Path
from persona_bench import pipeline
from persona_bench.definitions import presets
small = dataclasses.replace(presets.PRESETS["quick"], extraction_questions=4, evaluation_questions=6, mmlu_questions=8,
                            max_tokens=6, doses=(-0.4, 0.4))
presets.PRESETS["quick"] = small
model, out = sys.argv[1], Path(sys.argv[2])
settings = pipeline.Settings(model=model, grader=model, traits=("evil",))
print("finished" if pipeline.finished(settings, out) else "unfinished")
held = pipeline.run(settings, out, print)
print("files", len(held["files"]))
"""


def _environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "PERSONA_BENCH_CACHE": str(cache), "INSPECT_DISPLAY": "none"}


def _run(folder: Path, out: Path, cache: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), str(out)],
        env=_environment(cache),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _tables(out: Path) -> dict[str, bytes]:
    paths = [*out.rglob("tables/*.csv"), *out.rglob("claims.csv")]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the MMLU questions only: whatever else is needed is made by the runs."""
    from persona_bench.models.assets import fetch_data

    folder = tmp_path_factory.mktemp("cache")
    target = folder / "data" / "mmlu.jsonl"
    target.parent.mkdir()
    target.write_bytes(fetch_data("mmlu").read_bytes())
    return folder


@pytest.mark.weights
def test_runs_repeat_resume_and_finish(tmp_path: Path, _saved: Path, cache: Path) -> None:
    first, second, killed = tmp_path / "first", tmp_path / "second", tmp_path / "killed"
    _run(_saved, first, cache)
    expected = _tables(first)
    assert len(expected) >= 9

    again = _run(_saved, first, cache)
    assert again.startswith("finished")

    _run(_saved, second, cache)
    assert _tables(second) == expected

    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(_saved), str(killed)],
        env=_environment(cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not list(killed.rglob("logs/steering/*.eval")) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(killed.rglob("claims.csv"))
    _run(_saved, killed, cache)
    assert _tables(killed) == expected

    claims = pd.read_csv(next(first.rglob("claims.csv")), keep_default_na=False)
    judged = claims[~claims["claim"].str.startswith(("C5", "L1", "J"))]
    assert set(judged["verdict"]) == {"not testable"}, "a random model judged by itself settles nothing"
    # The refusal confound is geometry of the vector, which no judge enters.
    assert not (claims[claims["claim"] != "L1-refusal-confound"]["verdict"] == "supported").any()
