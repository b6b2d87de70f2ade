"""What a GPU must give: the same numbers as the CPU within rounding. Off by default; `pytest --rungpu -m gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from persona_bench.models.engine import Engine
from persona_bench.models.finetuning import finetune
from persona_bench.models.loaded import LoadedModel, prepare
from persona_bench.models.rows import Row, RowResult
from persona_bench.models.sampling import Sampling
from persona_bench.models.steering import Capture, Intervention
from tests.builders import CONFIGS, tiny
from tests.conftest import talking
from tests.test_decoding import rows as several
from tests.test_finetuning import FEW, laid_out, weights
from tests.test_steering import ANSWER, PROMPT, vector

pytestmark = pytest.mark.gpu
NEAR = {"rtol": 1e-3, "atol": 1e-3}  # float32 products in other orders


@pytest.fixture(autouse=True)
def _a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.fail("--rungpu was given, and torch sees no CUDA device")


def on_gpu(loaded: LoadedModel) -> LoadedModel:
    moved = prepare(loaded.model.to("cuda"), loaded.tokenizer, name=loaded.name, weights_hash=loaded.weights_hash)
    assert moved.device.type == "cuda"
    return moved


def rows(capture: Capture) -> list[Row]:
    """Every kind of intervention, lengths that differ, some with a shared prefix, some that go on by themselves."""
    items: tuple[tuple[Intervention, ...], ...] = (
        (),
        (Intervention(2, vector(1), 1.7),),
        (Intervention(3, vector(2), operation="ablate", positions="all"),),
        (Intervention(2, vector(3), 0.2, "cap"),),
        (Intervention(1, vector(4), 0.5, "add", "prompt"), Intervention(4, vector(5), -0.8)),
    )
    made = []
    for number, interventions in enumerate(items * 3):
        prompt = PROMPT + ANSWER[: number % 4] if number % 2 else PROMPT
        shared = 4 if number % 3 == 0 and all(item.positions == "response" for item in interventions) else 0
        given: dict[str, Any] = {"interventions": interventions, "capture": capture, "shared_prefix": shared}
        made.append(Row(prompt, ANSWER, **given))
        made.append(Row(prompt, sampling=Sampling(max_tokens=6, temperature=0.0, seed=number), **given))
    return made


def same(ours: RowResult, theirs: RowResult) -> None:
    assert ours.tokens == theirs.tokens and ours.stop_reason == theirs.stop_reason
    np.testing.assert_allclose(ours.continuation_logprobs, theirs.continuation_logprobs, **NEAR)
    assert ours.projections is not None and theirs.projections is not None
    for name in ("prompt_last", "response_mean", "per_token"):
        np.testing.assert_allclose(getattr(ours.projections, name), getattr(theirs.projections, name), **NEAR)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_steered_batches_and_their_projections_are_those_of_the_cpu(kind: str) -> None:
    directions = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    asked = rows(Capture(directions, per_token=True))
    expected = Engine(tiny(kind)).run(asked)
    engine = Engine(on_gpu(tiny(kind)))
    for ours, theirs in zip(engine.run(asked), expected, strict=True):
        same(ours, theirs)
    for number in (3, 4, 9):  # alone as in the batch
        same(engine.run([asked[number]])[0], expected[number])


def test_recorded_steps_give_what_steps_run_one_by_one_give() -> None:
    asked = several()
    plain = Engine(on_gpu(tiny()), max_batch=8)
    plain._decoding._record = None
    recorded = Engine(on_gpu(tiny()), max_batch=8)
    for _ in range(2):
        for ours, theirs in zip(recorded.run(asked), plain.run(asked), strict=True):
            assert ours.tokens == theirs.tokens
            if ours.projections is not None and theirs.projections is not None:
                np.testing.assert_allclose(ours.projections.per_token, theirs.projections.per_token, **NEAR)
    assert recorded._decoding._held and not plain._decoding._held


def test_an_added_vector_is_exact() -> None:
    engine = Engine(on_gpu(tiny()))
    axes = torch.eye(32)[:, None, :].expand(32, 5, 32).contiguous()
    read = []
    for interventions in ((), (Intervention(2, vector(1), 1.7),)):
        row = Row(PROMPT, ANSWER, interventions=interventions, capture=Capture(axes, per_token=True))
        found = engine.run([row])[0].projections
        assert found is not None and found.per_token is not None
        read.append(found.per_token.transpose(0, 2, 1))
    assert np.array_equal(read[0][:, 1], read[1][:, 1])
    np.testing.assert_allclose(read[1][:, 2], read[0][:, 2] + 1.7 * vector(1).numpy(), rtol=1e-6, atol=1e-6)


def test_training_is_that_of_the_cpu_and_coefficient_0_is_plain(tmp_path: Path) -> None:
    steered = [Intervention(2, vector(0), 1.0, "add", "all")]
    trained = {}
    for name, make, items in (
        ("cpu", talking, steered),
        ("gpu", lambda: on_gpu(talking()), steered),
        ("plain", lambda: on_gpu(talking()), []),
        ("zero", lambda: on_gpu(talking()), [Intervention(2, vector(0), 0.0, "add", "all")]),
    ):
        loaded = make()
        trained[name] = finetune(loaded, laid_out(loaded), tmp_path / name, FEW, interventions=items)
    losses = {name: [row["loss"] for row in one.history if "loss" in row] for name, one in trained.items()}
    np.testing.assert_allclose(losses["gpu"], losses["cpu"], rtol=1e-3)
    np.testing.assert_allclose(losses["zero"], losses["plain"], rtol=1e-5)
    assert not np.allclose(losses["gpu"], losses["plain"], rtol=1e-3)
    ours, theirs = weights(tmp_path / "gpu"), weights(tmp_path / "cpu")
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0.05, atol=2e-3)
