"""Linear layers that carry an adapter, with a gradient of their own: the products in the dtype of the weights.

peft computes the adapter's part in float32, and converts and adds its way there and back, which on a processor takes
as long as the layer itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn


def use_own_products(adapted: Any) -> None:
    """Let every linear layer that peft has given an adapter compute as `_AdaptedLinear`."""
    from peft.tuners.lora import Linear

    for module in adapted.modules():
        if isinstance(module, Linear):
            cast(Any, module).forward = _forward_of(module)


def _forward_of(module: Any) -> Callable[[Tensor], Tensor]:
    (name,) = module.active_adapters
    base, a, b, scale = module.get_base_layer(), module.lora_A[name], module.lora_B[name], module.scaling[name]
    # Of GPT-2's kind, whose weight is (in, out).
    turned = not isinstance(base, nn.Linear)

    def forward(x: Tensor) -> Tensor:
        weight = base.weight.T if turned else base.weight
        return cast(Tensor, _AdaptedLinear.apply(x, weight, base.bias, a.weight, b.weight, scale))  # type: ignore[no-untyped-call]

    return forward


class _AdaptedLinear(torch.autograd.Function):
    """x W^T + bias + scale * (x A^T) B^T for frozen W, whose products are in the dtype of x and W.

    A and B are held, and get their gradients, in float32.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low, high = a.to(x.dtype), (b * scale).to(x.dtype)
        between = rows @ low.T
        out = nn.functional.linear(rows, weight, bias).addmm_(between, high.T)
        ctx.save_for_backward(rows, weight, low, high, between)
        ctx.scale = scale
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        rows, weight, low, high, between = ctx.saved_tensors
        grad = gradients[0].reshape(-1, gradients[0].shape[-1])
        to_between = grad @ high
        to_rows = None
        if ctx.needs_input_grad[0]:
            to_rows = (grad @ weight).addmm_(to_between, low).view(*gradients[0].shape[:-1], -1)
        to_a = (to_between.T @ rows).float()
        to_b = (grad.T @ between).float() * ctx.scale
        return to_rows, None, None, to_a, to_b, None
