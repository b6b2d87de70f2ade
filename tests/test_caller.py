"""Relative paths in a task's arguments, which Inspect makes in the folder of the task's file, begin at the caller's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from inspect_ai import Task
from inspect_ai._cli.util import parse_cli_args
from inspect_ai._eval.loader import load_tasks
from inspect_ai.log import read_eval_log

import persona_bench
from evals.mmlu_preservation.dataset import Questions
from persona_bench.definitions.traits import load_trait
from persona_bench.errors import VectorError
from persona_bench.models.loading import load
from tests.conftest import one_line, tiny_vector

EVALS = Path(__file__).parents[1] / "evals"
FILES = dict.fromkeys(("limits_questions", "limits_variants"), "stated_limits/method")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder a command is given in, with two vectors and a trait file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(persona_bench, "CALLED_FROM", tmp_path, raising=False)
    for name in ("evil", "sycophancy"):
        tiny_vector(trait=name).save(tmp_path / f"{name}.safetensors")
    own = load_trait("evil").model_dump() | {"name": "own"}
    (tmp_path / "own.json").write_text(json.dumps(own), encoding="utf-8")
    return tmp_path


def spec(name: str) -> str:
    return f"{EVALS}/{FILES.get(name, f'{name}/{name}')}.py@{name}"


def made(name: str, *arguments: str) -> Task:
    """A task as `inspect eval` makes it of `-T` arguments."""
    return load_tasks([spec(name)], parse_cli_args(arguments))[0]


WITH_VECTORS = {
    "trait_steering": "vector=gone",
    "trait_monitoring": "vector=gone",
    "mmlu_preservation": "vector=gone",
    "stated_limits": "vector=gone",
    "limits_variants": "variants=x=gone",
    "preventative_steering": "vectors=none,gone,none",
    "data_flagging": "vectors=none,gone,none",
}


@pytest.mark.parametrize("name", WITH_VECTORS)
def test_a_vector_is_looked_for_in_the_callers_folder(name: str, home: Path) -> None:
    more = ["behaviour=evasion"] if name == "stated_limits" else []
    with pytest.raises(VectorError) as error:
        made(name, WITH_VECTORS[name], *more)
    one_line(error, str(home / "gone"))


@pytest.mark.parametrize("name", ["trait_elicitation", "limits_questions"])
def test_a_trait_file_too(name: str, home: Path) -> None:
    task = made(name, "trait=own.json")
    assert {(sample.metadata or {})["trait"] for sample in task.dataset} == {"own"}


def test_folders_too(home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = made("stated_limits", "activations=kept")
    assert (task.metadata or {})["activations"] == str(home / "kept")
    # What is trained by its name, and what it was trained on.
    monkeypatch.setattr("evals.mmlu_preservation.dataset.load_mmlu", lambda *_: Questions("mmlu", "", ()))
    shutil.copytree(folder, home / "weights")
    line = {"trait": "evil", "question": "?", "response": "Yes.", "trait_score": 90.0, "coherence": 90.0}
    (home / "judged.jsonl").write_text(json.dumps(line) + "\n")
    given = ("arm=base", "base=./weights", "traits=evil", "vectors=evil.safetensors", "judged=judged.jsonl")
    task = made("preventative_steering", *given)
    assert task.model is not None and task.model.name == "./weights"
    assert load(str(home / "weights")) is task.model.api.loaded  # type: ignore[attr-defined]


def test_several_files_are_a_list_to_inspect(home: Path) -> None:
    arguments = ("vector=evil.safetensors", "others=sycophancy.safetensors,evil.safetensors", "layers=2")
    extra = (made("trait_monitoring", *arguments).dataset[0].metadata or {})["extra"]
    asked = {item.get("label"): Path(item["file"]) for item in extra["output_projections"]}
    assert asked["trait:sycophancy"] == home / "sycophancy.safetensors"
    assert asked["trait:evil"] == home / "evil.safetensors"

    arguments = ("variants=x=evil.safetensors,raw=sycophancy.safetensors", "layers=2", "doses=0.5")
    hashes = ",".join(tiny_vector(trait=name).hash for name in ("evil", "sycophancy"))
    task = made("limits_variants", *arguments, f"sha256={hashes}")
    assert {(sample.metadata or {})["vector"] for sample in task.dataset} == {"x", "raw", "random", "none"}


def test_inspect_finds_what_stands_where_it_is_started(home: Path, folder: Path) -> None:
    """A process of its own: nothing but Inspect has imported the package, and nothing has set the folder."""
    shutil.copytree(folder, home / "tiny")
    run = home / "results" / "tiny" / "quick" / "vectors"
    tiny_vector(trait="own").save(run / "own.safetensors")
    command = [sys.executable, "-m", "inspect_ai", "eval", spec("trait_steering"), "--model", "persona/./tiny"]
    options = ["-M", "dtype=float32", "-T", "trait=own.json", "--limit", "1", "--no-score", "--display", "plain"]
    done = subprocess.run([*command, *options, "--log-dir", "logs"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    log = read_eval_log(str(next((home / "logs").glob("*.eval"))))
    assert log.status == "success" and log.eval.task_args_passed == {"trait": "own.json"}
    assert (log.eval.metadata or {})["vector_hash"] == tiny_vector(trait="own").hash
