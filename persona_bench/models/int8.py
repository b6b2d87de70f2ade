"""Linear layers in 8-bit integers, for passes that are read and not continued.

Weights are scaled by output channel and inputs by token (W8A8, symmetric), so that a token's result depends on no
other token: the integer product is exact, and batches stay bit-equal to rows alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

LARGEST = 127
ROWS = 256  # scaled at a time: what is made on the way stays in the processor's caches


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
        n, d_out = len(rows), self.weight.shape[1]
        scales = torch.empty(n, 1, dtype=torch.float32)
        integers = torch.empty(rows.shape, dtype=torch.int8)
        outputs = torch.empty(n, d_out, dtype=inputs.dtype)
        parts = [slice(start, start + ROWS) for start in range(0, n, ROWS)]
        for part in parts:
            scales[part] = _scales(rows[part])
            integers[part] = torch.mul(rows[part], 1 / scales[part]).round_()
        product = torch._int_mm(integers, self.weight)
        for part in parts:
            scaled = torch.mul(product[part], scales[part]).mul_(self.scales)
            outputs[part] = scaled if self.bias is None else scaled.add_(self.bias)
        return outputs.view(*inputs.shape[:-1], d_out)


def _scales(rows: Tensor) -> Tensor:
    """Of each row, the float32 value of one step: `(n, 1)`."""
    return rows.abs().amax(1, keepdim=True).float().clamp_min(1e-30) / LARGEST
