"""Layers that give the same bits in less time on a processor; the engine runs every model on them.

- A product of bfloat16 matrices first lays the weights out for its kernel, at every call. Laid out once, a decoding
  step of few rows takes half the time and a large pass some 5 % less.
- The RMS norm of transformers makes five tensors of the residual stream's size; three are enough.

Results are equal bit for bit (`tests/test_layers.py`), so nothing but time hangs on which layers a model runs on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from persona_bench.models.loaded import LoadedModel, find_blocks, shallow_copy
from persona_bench.models.loading import default_dtype

MEMORY_SHARE = 1 / 8  # of the machine's memory: weights that would take more once again are not packed
ROWS = 64  # for which the layout is chosen

_made: WeakKeyDictionary[LoadedModel, LoadedModel] = WeakKeyDictionary()
_making = threading.Lock()


class PackedLinear(nn.Module):
    """A bfloat16 linear layer on weights laid out for the processor; its `weight` and `bias` stay what they were."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        # Made when it is first needed, as a pass may end before this layer; one for all copies of the layer.
        self._layout: list[Tensor] = []

    def forward(self, inputs: Tensor) -> Tensor:
        """`(..., d_in)` to `(..., d_out)`."""
        if not self._layout:
            with _making:
                if not self._layout:
                    self._layout.append(torch.ops.mkldnn._reorder_linear_weight(self.weight.detach(), ROWS))
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(inputs, self._layout[0], self.bias, "none", [], "")
        return outputs


class SlimNorm(nn.Module):
    """The RMS norm of Llama and its like on bfloat16, with its sums in float32 (1910.07467)."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon

    def forward(self, hidden: Tensor) -> Tensor:
        """`(..., d)` to `(..., d)`."""
        wide = hidden.float()
        scale = (wide * wide).mean(-1, keepdim=True).add_(self.variance_epsilon).rsqrt_()
        return wide.mul_(scale).to(hidden.dtype).mul_(self.weight)


def accelerated(loaded: LoadedModel) -> LoadedModel:
    """The model on such layers, sharing its weights, made once; the model itself where it is, or none would help."""
    if any(isinstance(layer, PackedLinear | SlimNorm) for layer in loaded.model.modules()):
        return loaded
    on_cpu = loaded.device.type == "cpu" and loaded.dtype == default_dtype(loaded.device) == torch.bfloat16
    if not on_cpu or not torch.backends.mkldnn.enabled:
        return loaded
    with _making:
        if loaded not in _made:
            _made[loaded] = _with_such_layers(loaded)
        return _made[loaded]


def _with_such_layers(loaded: LoadedModel) -> LoadedModel:
    model: Any = shallow_copy(loaded.model)
    if _linear_bytes(model) <= MEMORY_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        replace_linears(model, PackedLinear)
    replace_layers(model, _slim)
    return replace(loaded, model=model, blocks=list(find_blocks(model)))


def _linear_bytes(model: nn.Module) -> int:
    linears = [layer for layer in model.modules() if type(layer) is nn.Linear]
    return sum(layer.weight.numel() * layer.weight.element_size() for layer in linears)


def _slim(layer: Any) -> nn.Module | None:
    """What stands for a layer if it is an RMS norm of the usual kind: names alike hide formulas that differ."""
    if not (type(layer).__name__.endswith("RMSNorm") and hasattr(layer, "variance_epsilon")):
        return None
    slim = SlimNorm(layer)
    probe = torch.randn(4, *layer.weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    with torch.inference_mode():
        return slim if torch.equal(slim(probe.bfloat16()), layer(probe.bfloat16())) else None


def replace_linears(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Put what `make` makes of each linear layer inside a module in its place."""
    replace_layers(module, lambda layer: make(layer) if type(layer) is nn.Linear else None)


def replace_layers(module: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put what `make` makes of a layer inside a module in its place, where it makes something."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if (made := make(child)) is not None:
                setattr(parent, name, made)
