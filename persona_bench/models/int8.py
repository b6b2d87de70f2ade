"""Linear layers in 8-bit integers, for passes that are read and not continued.

Weights are scaled by output channel and inputs by token (W8A8, symmetric), so that a token's result depends on no
other token: the integer product is exact, and batches stay bit-equal to rows alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 127


def is_fast() -> bool:
    """Whether this processor multiplies 8-bit integers faster than bfloat16 (VNNI or AMX)."""
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


class Int8Linear(nn.Module):
    """A linear layer whose product is taken in 8-bit integers; the result has the input's dtype."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scales = _scales(weight)
        self.weight = (weight / scales).round_().to(torch.int8).t()
        self.scales = scales[:, 0]
        self.bias = None if linear.bias is None else linear.bias.detach().float()

    def forward(self, inputs: Tensor) -> Tensor:
        """`(..., d_in)` to `(..., d_out)`."""
        rows = inputs.reshape(-1, inputs.shape[-1])
        scales = _scales(rows)
        product = torch._int_mm(torch.mul(rows, 1 / scales).round_().to(torch.int8), self.weight)
        outputs = torch.mul(product, scales).mul_(self.scales)
        if self.bias is not None:
            outputs += self.bias
        return outputs.to(inputs.dtype).view(*inputs.shape[:-1], -1)


def _scales(rows: Tensor) -> Tensor:
    """Of each row, the float32 value of one step: `(n, 1)`."""
    return rows.abs().amax(1, keepdim=True).float().clamp_min(1e-30) / LARGEST
