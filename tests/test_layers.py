"""The engine's layers give the bits of transformers' own, whatever passes through them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm

from persona_bench.models import layers
from persona_bench.models.engine import Engine
from persona_bench.models.layers import GATE, PackedLinear, SlimGate, SlimNorm, accelerated, replace_layers
from persona_bench.models.loaded import LoadedModel, prepare
from persona_bench.models.loading import default_dtype, load
from persona_bench.models.rows import Row, RowResult
from persona_bench.models.sampling import Sampling
from persona_bench.models.steering import Capture
from tests.builders import tiny

pytestmark = pytest.mark.skipif(
    default_dtype(torch.device("cpu")) is not torch.bfloat16,
    reason="the layers are for bfloat16, which this processor does not compute in",
)
SHAPES = ((576, 576), (192, 576), (1536, 576), (576, 1536), (128, 896), (4864, 896), (896, 4864), (1536, 8960))
"""Outputs and inputs of the linear layers of SmolLM2-135M, Qwen2.5-0.5B and (the last) 1.5B."""


def _noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32).bfloat16()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("d_out", "d_in"), SHAPES)
def test_packed_weights_give_the_same_bits_for_any_number_of_rows(d_out: int, d_in: int, bias: bool) -> None:
    linear = nn.Linear(d_in, d_out, bias=bias).bfloat16().requires_grad_(False)
    linear.weight.copy_(_noise(d_out, d_in) * 0.04)
    packed, inputs = PackedLinear(linear), _noise(700, d_in, seed=1)
    with torch.inference_mode():
        whole = linear(inputs)
        for n in (2, 3, 17, 64, 129, 700):
            assert torch.equal(packed(inputs[:n]), linear(inputs[:n])), n
            assert torch.equal(packed(inputs[:n]), whole[:n]), n
        assert torch.equal(packed(inputs.view(7, 100, d_in)), whole.view(7, 100, d_out))
        assert torch.equal(packed(inputs[::2]), linear(inputs[::2].contiguous()))


@pytest.mark.parametrize("kind", [LlamaRMSNorm, Qwen2RMSNorm])
@pytest.mark.parametrize("shape", [(64, 1, 576), (3, 50, 896), (2, 1536)])
def test_the_slim_norm_gives_the_same_bits_and_leaves_its_input(kind: Any, shape: tuple[int, ...]) -> None:
    norm = kind(shape[-1], eps=1e-5).bfloat16().requires_grad_(False)
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

    held = nn.ModuleList([OddRMSNorm(8).bfloat16(), Gemma2RMSNorm(8).bfloat16(), LlamaRMSNorm(8).bfloat16()])
    replace_layers(held, layers._slim)
    assert [type(layer).__name__ for layer in held] == ["OddRMSNorm", "Gemma2RMSNorm", "SlimNorm"]


@pytest.mark.parametrize("kind", [LlamaMLP, Qwen2MLP])
@pytest.mark.parametrize("shape", [(64, 1, 96), (3, 50, 96)])
def test_the_slim_gate_gives_the_same_bits_and_leaves_its_input(kind: Any, shape: tuple[int, ...]) -> None:
    config = LlamaConfig(hidden_size=96, intermediate_size=256)
    held = nn.ModuleList([kind(config).bfloat16().requires_grad_(False)])
    mlp: Any = held[0]
    for seed, name in enumerate(GATE):
        mlp.get_submodule(name).weight.copy_(_noise(*mlp.get_submodule(name).weight.shape, seed=seed))
    hidden = _noise(*shape, seed=3)
    before = hidden.clone()
    replace_layers(held, layers._slim)
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
    held = nn.ModuleList([OddMLP(config), LlamaMLP(gelu), LlamaMLP(config)]).bfloat16()
    replace_layers(held, layers._slim)
    assert [type(layer).__name__ for layer in held] == ["OddMLP", "LlamaMLP", "SlimGate"]


def _tiny(dtype: torch.dtype) -> LoadedModel:
    return prepare(tiny("llama").model.to(dtype), None, name="tiny", weights_hash="0" * 64)


def test_the_model_itself_keeps_its_layers_and_shares_its_weights() -> None:
    loaded = _tiny(torch.bfloat16)
    made = accelerated(loaded)
    assert accelerated(loaded) is made and made is not loaded
    assert {type(layer) for layer in loaded.model.modules()} & {PackedLinear, SlimGate, SlimNorm} == set()
    own, its = loaded.model.model.layers[0].mlp.up_proj, made.blocks[0].mlp.up_proj  # type: ignore[union-attr]
    assert type(own) is nn.Linear and isinstance(its, PackedLinear) and its.weight is own.weight


def test_other_dtypes_and_weights_too_large_for_the_machine_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = _tiny(torch.float32)
    assert accelerated(wide) is wide
    monkeypatch.setattr(layers, "MEMORY_SHARE", 0)
    kinds = {type(layer) for layer in accelerated(_tiny(torch.bfloat16)).model.modules()}
    assert {SlimNorm, SlimGate} <= kinds and nn.Linear in kinds and PackedLinear not in kinds


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load("smollm2-135m", dtype="bfloat16", device="cpu")


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

    assert [told(result) for result in ours] == [told(result) for result in theirs]
