"""Layers that take less time on a processor and compute every row alike; the engine runs every model on them.

- A product of bfloat16 matrices first lays the weights out for its kernel, at every call. Laid out once, a decoding
  step of few rows takes half the time and a large pass some 5 % less.
- Torch multiplies float32 matrices with BLAS, whose last bits hang on the number of rows. The kernels that multiply
  bfloat16 ones (oneDNN's) take float32 too: a row's bits are the same among any others, and where measured, on AVX2,
  products of 64 rows take half the time and those of 2,048 four fifths.
- The RMS norm of transformers makes five tensors of the residual stream's size; three are enough. Its gated
  feed-forward layer makes four of its width; two are.

Results are equal bit for bit (`tests/test_layers.py`) but for products in float32, which are rounded otherwise.
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from persona_bench.models.loaded import LoadedModel, find_blocks, shallow_copy
from persona_bench.models.loading import default_dtype

MEMORY_SHARE = 1 / 8  # of the machine's memory: weights that would take more once again are not packed
ROWS = 64  # for which the layout is chosen
GATE = ("gate_proj", "up_proj", "down_proj")

_made: WeakKeyDictionary[LoadedModel, LoadedModel] = WeakKeyDictionary()
_making = threading.Lock()


class DirectLinear(nn.Module):
    """A linear layer multiplied by oneDNN; its `weight` and `bias` stay what they were."""

    def __init__(self, linear: nn.Linear | Conv1D) -> None:
        super().__init__()
        self.weight, self.bias, self.turned = linear.weight, linear.bias, isinstance(linear, Conv1D)

    def forward(self, inputs: Tensor) -> Tensor:
        """`(..., d_in)` to `(..., d_out)`, each of two rows or more the same whatever the others are."""
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._weights(), self.bias, "none", [], "")
        return outputs

    def _weights(self) -> Tensor:
        """`(d_out, d_in)`."""
        return self.weight.detach().t() if self.turned else self.weight.detach()


class PackedLinear(DirectLinear):
    """The same on weights that are laid out for the processor once, which takes their memory once again."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        # Made when it is first needed, as a pass may end before this layer; one for all copies of the layer.
        self._layout: list[Tensor] = []

    def _weights(self) -> Tensor:
        if not self._layout:
            with _making:
                if not self._layout:
                    self._layout.append(torch.ops.mkldnn._reorder_linear_weight(super()._weights(), ROWS))
        return self._layout[0]


class SlimNorm(nn.Module):
    """The RMS norm of Llama and its like, with its sums in float32 (1910.07467)."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """`(..., d)` to `(..., d)`."""
        wide = hidden.float()
        scale = (wide * wide).mean(-1, keepdim=True).add_(self.variance_epsilon).rsqrt_()
        scaled = wide * scale if wide is hidden else wide.mul_(scale)
        return scaled.to(hidden.dtype).mul_(self.weight)


class SlimGate(nn.Module):
    """The gated feed-forward layer of Llama and its like (2002.05202), in two tensors of its width instead of four."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, hidden: Tensor) -> Tensor:
        """`(..., d)` to `(..., d)`; for inference, as no gradient goes through what is written over."""
        gated = nn.functional.silu(self.gate_proj(hidden), inplace=True)
        outputs: Tensor = self.down_proj(gated.mul_(self.up_proj(hidden)))
        return outputs


def accelerated(loaded: LoadedModel) -> LoadedModel:
    """The model on such layers, sharing its weights, made once; the model itself where it is, or none would help."""
    if any(isinstance(layer, DirectLinear | SlimNorm | SlimGate) for layer in loaded.model.modules()):
        return loaded
    # Elsewhere than on x86 torch builds oneDNN on other libraries.
    x86 = loaded.device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64")
    if not x86 or loaded.dtype != default_dtype(loaded.device) or not torch.backends.mkldnn.enabled:
        return loaded
    with _making:
        if loaded not in _made:
            _made[loaded] = _with_such_layers(loaded)
        return _made[loaded]


def _with_such_layers(loaded: LoadedModel) -> LoadedModel:
    model: Any = shallow_copy(loaded.model)
    if _linear_bytes(model) <= MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        replace_linears(model, PackedLinear)
    elif loaded.dtype == torch.float32:  # torch multiplies bfloat16 with the same kernels
        replace_linears(model, DirectLinear)
    if loaded.dtype == torch.float32:
        replace_layers(model, lambda layer: DirectLinear(layer) if isinstance(layer, Conv1D) else None)
    replace_layers(model, partial(_slim, dtype=loaded.dtype))
    return replace(loaded, model=model, blocks=list(find_blocks(model)))


def _linear_bytes(model: nn.Module) -> int:
    linears = [layer for layer in model.modules() if type(layer) is nn.Linear]
    return sum(layer.weight.numel() * layer.weight.element_size() for layer in linears)


def _slim(layer: Any, dtype: torch.dtype) -> nn.Module | None:
    """What stands for a norm or a feed-forward layer of the usual kind: names alike hide formulas that differ."""
    draw = torch.Generator().manual_seed(0)
    if type(layer).__name__.endswith("RMSNorm") and hasattr(layer, "variance_epsilon"):
        width, probed = layer.weight.shape[-1], layer
    elif type(layer).__name__.endswith("MLP") and all(hasattr(layer, name) for name in GATE):
        # On small weights: those of the layer are laid out when they are first used, which may be never.
        width, probed = 8, shallow_copy(layer)
        for name in GATE:
            small = nn.Linear(width, width, bias=False, dtype=dtype, device="cpu")
            small.weight.data = torch.randn(width, width, generator=draw).to(dtype)
            setattr(probed, name, small)
    else:
        return None
    make = SlimNorm if probed is layer else SlimGate
    probe = torch.randn(4, width, generator=draw, dtype=torch.float32).to(dtype)
    with torch.inference_mode():
        return make(layer) if torch.equal(make(probed)(probe), probed(probe)) else None


def replace_linears(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Put what `make` makes of each linear layer inside a module in its place."""
    replace_layers(module, lambda layer: make(layer) if type(layer) is nn.Linear else None)


def replace_layers(module: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put what `make` makes of a layer inside a module in its place, where it makes something."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if (made := make(child)) is not None:
                setattr(parent, name, made)
