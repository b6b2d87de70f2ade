"""Rows whose activations overflow are told so, and leave nothing behind for those that come after."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from persona_bench.errors import ModelError
from persona_bench.models.engine import Engine
from persona_bench.models.rows import Reading, Row
from persona_bench.models.sampling import Sampling
from persona_bench.models.steering import Capture, Intervention
from tests.builders import tiny

FAR = (Intervention(2, torch.full((32,), 3e38), coefficient=3.0),)
"""Beyond what float32 holds."""
LONG, SHORT = tuple(range(3, 60)), (5, 6, 7)
DIRECTIONS = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
ASKED = {
    "greedy": Row(LONG, sampling=Sampling(5, temperature=0.0, ignore_eos=True)),
    "sampled": Row(LONG, sampling=Sampling(5, ignore_eos=True)),
    "captured": Row(LONG, sampling=Sampling(1, ignore_eos=True), capture=Capture(DIRECTIONS, per_token=True)),
    "scored": Row(LONG, (8, 9)),
    "alternatives": Row(LONG, alternatives=(8, 9)),
    "read": Row(LONG, reading=Reading((2, 4), ((1, 9),))),
    "products": Row(LONG, reading=Reading((3,), directions=DIRECTIONS)),
    "means": Row(LONG, (8, 9), hidden_means=True),
}


@pytest.mark.parametrize("name", ASKED)
@pytest.mark.parametrize("positions", ["all", "response"])
def test_it_is_told_and_the_others_are_as_they_were(name: str, positions: str) -> None:
    if positions == "response" and name == "read":
        pytest.skip("what is read lies before the response")
    calm = [Row(SHORT, sampling=Sampling(6, seed=seed, ignore_eos=True)) for seed in range(4)]
    expected = [result.tokens for result in Engine(tiny(), max_batch=4).run(calm)]
    engine = Engine(tiny(), max_batch=4)
    acting = tuple(replace(item, positions=positions) for item in FAR)
    bad = replace(ASKED[name], interventions=acting)
    # Alone in every slot first, then beside others, then with others after it in all slots.
    failed = [engine.submit(bad) for _ in range(4)]
    while engine.busy:
        engine.step()
    mixed = [engine.submit(row) for row in (calm[0], bad, calm[1], calm[2], calm[3])]
    while engine.busy:
        engine.step()
    failed.append(mixed.pop(1))
    for future in failed:
        with pytest.raises(ModelError, match=r"not finite .* smaller coefficient"):
            future.result()
    assert [future.result().tokens for future in mixed] == expected
    assert [result.tokens for result in engine.run(calm)] == expected


def test_a_model_that_overflows_by_itself_is_named() -> None:
    loaded = tiny()
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight[50] = float("inf")
    for row in (
        Row((3, 50, 4), sampling=Sampling(3, ignore_eos=True)),
        Row((3, 50, 4, 5), sampling=Sampling(3, ignore_eos=True), shared_prefix=3),
        Row((3, 50, 4, 5), reading=Reading((2,), ((3, 4),)), shared_prefix=3),
    ):
        with pytest.raises(ModelError, match=r"not finite in float32; its weights may be broken"):
            Engine(loaded).run([row])
    assert len(Engine(loaded).run([Row((3, 4), sampling=Sampling(3, ignore_eos=True))])[0].tokens) == 3
