"""The engine's layers give every row the same bits, and but for products in float32 those of transformers' own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm

from persona_bench.models import layers
from persona_bench.models.engine import Engine
from persona_bench.models.layers import (
    GATE,
    DirectLinear,
    PackedLinear,
    SlimGate,
    SlimNorm,
    accelerated,
    replace_layers,
)
from persona_bench.models.loaded import LoadedModel, prepare
from persona_bench.models.loading import load
from persona_bench.models.rows import Row, RowResult
from persona_bench.models.sampling import Sampling
from persona_bench.models.steering import Capture
from tests.builders import DTYPE, only_x86, tiny

pytestmark = only_x86
OTHER = torch.bfloat16 if DTYPE is torch.float32 else torch.float32
SHAPES = ((576, 576), (192, 576), (1536, 576), (576, 1536), (128, 896), (4864, 896), (896, 4864), (1536, 8960))
"""Outputs and inputs of the linear layers of SmolLM2-135M, Qwen2.5-0.5B and (the last) 1.5B."""


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).to(DTYPE)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("d_out", "d_in"), SHAPES)
def test_a_row_has_the_same_bits_among_any_number_of_rows(d_out: int, d_in: int, bias: bool) -> None:
    linear = nn.Linear(d_in, d_out, bias=bias).to(DTYPE).requires_grad_(False)
    linear.weight.copy_(_noise(d_out, d_in) * 0.04)
    inputs = _noise(700, d_in, seed=1)
    with torch.inference_mode():
        whole = PackedLinear(linear)(inputs)
        # Of 896 terms or so near 0.04, float32 keeps seven digits.
        torch.testing.assert_close(whole, linear(inputs), rtol=0, atol=1e-4 if DTYPE is torch.float32 else 0)
        for layer in [PackedLinear(linear)] + [DirectLinear(linear)] * (DTYPE is torch.float32):
            for n in (2, 3, 5, 7, 9, 17, 64, 129, 700):
                assert torch.equal(layer(inputs[:n]), whole[:n]), n
                assert torch.equal(layer(inputs[-n:]), whole[-n:]), n
            assert torch.equal(layer(inputs.view(7, 100, d_in)), whole.view(7, 100, d_out))
            assert torch.equal(layer(inputs[::2]), whole[::2])


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen2RMSNorm])
@pytest.mark.parametrize("shape", [(64, 1, 576), (3, 50, 896), (2, 1536)])
def test_the_slim_norm_gives_the_same_bits_and_leaves_its_input(kind: Any, shape: tuple[int, ...]) -> None:
    norm = kind(shape[-1], eps=1e-5).to(DTYPE).requires_grad_(False)
    norm.weight.copy_(_noise(shape[-1]))
    hidden = _noise(*shape, seed=2) * 30
    before = hidden.clone()
    with torch.inference_mode():
        assert torch.equal(SlimNorm(norm)(hidden), norm(hidden))
    assert torch.equal(hidden, before)


def test_a_norm_of_another_formula_stays_what_it_is() -> None:
    class OddRMSNorm(LlamaRMSNorm):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(hidden)

    held = nn.ModuleList([OddRMSNorm(8).to(DTYPE), Gemma2RMSNorm(8).to(DTYPE), LlamaRMSNorm(8).to(DTYPE)])
    replace_layers(held, slim)
    assert [type(layer).__name__ for layer in held] == ["OddRMSNorm", "Gemma2RMSNorm", "SlimNorm"]


@pytest.mark.parametrize("kind", [LlamaMLP, Qwen2MLP])
@pytest.mark.parametrize("shape", [(64, 1, 96), (3, 50, 96)])
def test_the_slim_gate_gives_the_same_bits_and_leaves_its_input(kind: Any, shape: tuple[int, ...]) -> None:
    config = LlamaConfig(hidden_size=96, intermediate_size=256)
    held = nn.ModuleList([kind(config).to(DTYPE).requires_grad_(False)])
    mlp: Any = held[0]
    for seed, name in enumerate(GATE):
        mlp.get_submodule(name).weight.copy_(_noise(*mlp.get_submodule(name).weight.shape, seed=seed))
    hidden = _noise(*shape, seed=3)
    before = hidden.clone()
    replace_layers(held, slim)
    assert isinstance(held[0], SlimGate) and held[0].up_proj is mlp.up_proj
    with torch.inference_mode():
        assert torch.equal(held[0](hidden), mlp(hidden))
    assert torch.equal(hidden, before)


def test_a_feed_forward_layer_of_another_formula_stays_what_it_is() -> None:
    class OddMLP(LlamaMLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gated: torch.Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) + self.up_proj(x))
            return gated

    config = LlamaConfig(hidden_size=64, intermediate_size=96)
    gelu = LlamaConfig(hidden_size=64, intermediate_size=96, hidden_act="gelu_pytorch_tanh")
    held = nn.ModuleList([OddMLP(config), LlamaMLP(gelu), LlamaMLP(config)]).to(DTYPE)
    replace_layers(held, slim)
    assert [type(layer).__name__ for layer in held] == ["OddMLP", "LlamaMLP", "SlimGate"]


def slim(layer: nn.Module) -> nn.Module | None:
    return layers._slim(layer, DTYPE)


def _tiny(dtype: torch.dtype) -> LoadedModel:
    return prepare(tiny("llama").model.to(dtype), None, name="tiny", weights_hash="0" * 64)


def test_the_model_itself_keeps_its_layers_and_shares_its_weights() -> None:
    loaded = _tiny(DTYPE)
    made = accelerated(loaded)
    assert accelerated(loaded) is made and made is not loaded
    assert {type(layer) for layer in loaded.model.modules()} & {PackedLinear, SlimGate, SlimNorm} == set()
    own, its = loaded.model.model.layers[0].mlp.up_proj, made.blocks[0].mlp.up_proj  # type: ignore[union-attr]
    assert type(own) is nn.Linear and isinstance(its, PackedLinear) and its.weight is own.weight


def test_other_dtypes_are_left_alone_and_large_weights_lie_as_they_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = _tiny(OTHER)
    assert accelerated(other) is other
    monkeypatch.setattr(layers, "MEMORY_SHARE", 0)
    kinds = {type(layer) for layer in accelerated(_tiny(DTYPE)).model.modules()}
    plain = DirectLinear if DTYPE is torch.float32 else nn.Linear
    assert {SlimNorm, SlimGate, plain} <= kinds and PackedLinear not in kinds


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load("smollm2-135m", dtype=str(DTYPE).removeprefix("torch."), device="cpu")


@pytest.mark.weights
def test_real_weights_say_the_same_on_both(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    directions = torch.randn(2, loaded.n_layers + 1, loaded.d_model, generator=torch.Generator().manual_seed(9))
    rows = [
        Row(
            tuple(range(100 + n, 110 + 3 * n)),
            sampling=Sampling(12, temperature=1.0, seed=n, logprobs=True),
            capture=Capture(directions, per_token=True),
        )
        for n in range(12)
    ]
    ours = Engine(loaded).run(rows)
    monkeypatch.setattr("persona_bench.models.engine.accelerated", lambda loaded: loaded)
    theirs = Engine(replace(loaded)).run(rows)

    def told(result: RowResult) -> tuple[Any, ...]:
        assert result.projections is not None and result.projections.per_token is not None
        return result.tokens, result.logprobs, result.projections.per_token.tobytes()

    if DTYPE is torch.bfloat16:
        assert [told(result) for result in ours] == [told(result) for result in theirs]
    # In float32 one rounding may sample another token, so that the texts part; before them are the prompts.
    for one, other in zip(ours, theirs, strict=True):
        first, second = (np.nan_to_num(result.projections.prompt_last) for result in (one, other))
        assert np.linalg.norm(first - second) <= 1e-3 * np.linalg.norm(second) > 0
