"""`persona-bench finetune` end to end on a tiny model, and the arms it trains under."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from persona_bench.cli import main
from persona_bench.errors import VectorError
from persona_bench.models.engine import Engine
from persona_bench.models.loading import load
from persona_bench.models.rows import Row
from persona_bench.models.worker import WORKER
from persona_bench.pipeline import model_spec
from persona_bench.vectors import arms
from tests.conftest import one_line, talking, tiny_vector
from tests.test_projection import conversation, written


def command(folder: Path, *more: Any) -> Result:
    fixed = ["finetune", "--model", folder, "--dtype", "float32", "--rank", 4, "--alpha", 8, "--lr", 1e-2]
    return CliRunner().invoke(
        main, [str(item) for item in [*fixed, "--accumulation", 2, *more]], catch_exceptions=False
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return written(tmp_path / "d.jsonl", [conversation(i) for i in range(10)])


@pytest.fixture
def vector(tmp_path: Path) -> Path:
    tiny_vector().save(tmp_path / "evil.safetensors")
    return tmp_path / "evil.safetensors"


def test_steered_training_leaves_an_adapter_a_history_and_a_figure(
    folder: Path, data: Path, vector: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    steered = ("--data", data, "--out", out, "--steer", vector, "--layer", 2, "--coef", 0.5)
    done = command(folder, *steered, "--plot", tmp_path / "t.png")
    assert done.exit_code == 0, done.output
    assert f"persona/{folder}+{out}" in done.output and "step 3 of 3: loss" in done.output
    with (out / "training.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"] and rows[0]["loss"] == ""
    assert all(float(row["projection:evil"]) for row in rows)
    assert (tmp_path / "t.png").stat().st_size > 5000 and (tmp_path / "t.pdf").exists()
    record = json.loads((out / "training.json").read_text())
    assert [item[:4] for item in record["interventions"]] == [["add", 2, 0.5, "all"]]
    base, tuned = load(str(folder), dtype="float32"), load(f"{folder}+{out}", dtype="float32")
    row = Row((1, 20, 30), (40, 50))
    first, second = (Engine(model).run([row])[0].continuation_logprobs for model in (base, tuned))
    assert not (first == second).any()
    again = command(folder, *steered)
    assert again.exit_code == 0 and "held this training already" in again.output
    other = command(folder, *steered[:-1], 0.7)
    assert other.exit_code == 2 and "trained otherwise" in other.output
    assert model_spec(f"{folder}+{out}") == f"persona/{folder}+{out}"


def test_provider_answers_as_the_adapter_and_lets_it_go(folder: Path, data: Path, tmp_path: Path) -> None:
    import asyncio
    import gc
    import weakref

    from inspect_ai.model import GenerateConfig, get_model

    out = tmp_path / "out"
    assert command(folder, "--data", data, "--out", out, "--epochs", 30).exit_code == 0
    said = {}
    for name in (str(folder), f"{folder}+{out}"):
        model = get_model(f"persona/{name}", dtype="float32", memoize=False)
        output = asyncio.run(model.generate("What is rain?", config=GenerateConfig(temperature=0, max_tokens=12)))
        said[name] = output.completion
        held = model.api.loaded  # type: ignore[attr-defined]
        number, alive = id(held), weakref.ref(held)
        del held
        asyncio.run(model.api.aclose())
        gc.collect()
        # `model` is still here, as Inspect keeps it: only its weights are gone.
        assert (number in WORKER._engines) == (alive() is not None) == (name == str(folder))
        again = asyncio.run(model.generate("What is rain?", config=GenerateConfig(temperature=0, max_tokens=12)))
        assert again.completion == output.completion
        asyncio.run(model.api.aclose())
    assert "It is" in said[f"{folder}+{out}"] and "It is" not in said[str(folder)]


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (("--steer", "VECTOR", "--layer", 9), "outside 1..4"),
        (("--steer", "VECTOR", "--direction", "none"), "no direction"),
        (("--steer", "VECTOR", "--positions", "some"), "unknown positions"),
        (("--steer", "OTHER"), "another model"),
        (("--ablate", "none.safetensors"), "none.safetensors"),
        (("--incremental",), "--steer"),
        (("--lr", 0), "learning rate"),
        (("--dtype", "float16"), "float16"),
        (("--plot", "t.svg"), ".png"),
    ],
)
def test_what_cannot_be_is_one_line_and_leaves_nothing(
    folder: Path, data: Path, vector: Path, tmp_path: Path, more: tuple[Any, ...], part: str
) -> None:
    tiny_vector(6, 16).save(tmp_path / "other.safetensors")
    named = {"VECTOR": vector, "OTHER": tmp_path / "other.safetensors"}
    done = command(folder, "--data", data, "--out", tmp_path / "out", *(named.get(item, item) for item in more))
    assert done.exit_code == 2 and part in done.output and len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_vector_of_other_weights_is_refused() -> None:
    loaded = talking()
    arms.check_model(tiny_vector(provenance={"weights_hash": loaded.weights_hash}), loaded)
    with pytest.raises(VectorError) as error:
        arms.check_model(tiny_vector(provenance={"weights_hash": "f" * 64, "model": "other"}), loaded)
    one_line(error, "other", "extract it anew")


def test_incremental_steps_sum_to_the_vector_and_random_has_its_norm() -> None:
    made = tiny_vector()
    steps = arms.interventions(made, (1, 3, 4), 2.0, incremental=True)
    assert torch.allclose(sum(step.vector for step in steps), made.directions["persona"][4], atol=1e-5)
    assert torch.equal(steps[0].vector, made.directions["persona"][1])
    assert {(step.coefficient, step.positions) for step in steps} == {(2.0, "all")}
    (noise,) = arms.interventions(made, (2,), direction="random:0")
    assert float(noise.vector.norm()) == pytest.approx(float(made.directions["persona"][2].norm()), rel=1e-5)
    term = arms.penalty(made, 3, 4.0)
    assert float(term.direction.norm()) == pytest.approx(1 / float(made.residual_norms[3]), rel=1e-5)
    assert arms.watch(replace(talking()), [], {}) is None
