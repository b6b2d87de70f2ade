"""Interventions on the residual stream: permanent hooks on every decoder block whose buffers are all that changes.

Layer l = 1..n is the residual stream after l decoder blocks; its hook sits on `blocks[l - 1]`. Each slot of the batch
has its own entries in the buffers, so the rows of one forward pass may differ in everything; a slot with neutral
entries (add nothing, clamp to [-inf, inf]) passes through bit-equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from persona_bench.errors import ModelError, VectorError

Operation = Literal["add", "ablate", "cap"]
Positions = Literal["response", "prompt", "all"]
_CODES: dict[Positions, int] = {"response": 0, "prompt": 1, "all": 2}


@dataclass(frozen=True, eq=False)
class Intervention:
    """One change to the residual stream at one layer.

    Attributes:
        layer: 1..n_layers, the residual stream after that many decoder blocks.
        vector: `(d_model,)` float32, raw (not normalised).
        coefficient: for `add`, multiples of the raw vector (paper section 3.2: h <- h + alpha v); for `cap`, the
            largest projection allowed on the unit vector, in activation units (negate vector and coefficient for a
            floor); unused by `ablate`.
        operation: `add`, `ablate` (project the direction out) or `cap` (limit the projection).
        positions: `response` (the last prompt token, whose output is the first response token, and every token
            after it: what the paper's code does), `prompt` (every prompt token) or `all`.
    """

    layer: int
    vector: Tensor
    coefficient: float = 1.0
    operation: Operation = "add"
    positions: Positions = "response"

    def __post_init__(self) -> None:
        if self.operation not in ("add", "ablate", "cap"):
            raise VectorError(f"unknown operation {self.operation!r}; use add, ablate or cap")
        if self.positions not in _CODES:
            raise VectorError(f"unknown positions {self.positions!r}; use response, prompt or all")
        if self.vector.ndim != 1 or not bool(torch.isfinite(self.vector).all()):
            raise VectorError(f"an intervention at layer {self.layer} needs a finite vector of shape (d_model,)")
        if not math.isfinite(self.coefficient):
            raise VectorError(f"the coefficient at layer {self.layer} is {self.coefficient}; it must be finite")

    @property
    def touches_prompt(self) -> bool:
        """Whether tokens before the last prompt token are changed, so that a shared prefix cannot serve this row."""
        return self.positions != "response"


@dataclass(frozen=True, eq=False)
class Capture:
    """Which projections a row asks for; they are scalar products h . direction, taken after the interventions.

    Attributes:
        directions: `(n_directions, n_layers + 1, d_model)` float32, used as given (pass unit vectors for scalar
            projections); row 0 is never read.
        prompt_last: at the last prompt token.
        prompt_mean: averaged over the prompt tokens (the row then shares no prefix).
        response_mean: averaged over the response tokens, the ones generated or given as the continuation.
        per_token: at every response token.
    """

    directions: Tensor
    prompt_last: bool = True
    prompt_mean: bool = False
    response_mean: bool = True
    per_token: bool = False


class _Stage:
    """Buffers for the k-th intervention of each slot at one layer."""

    def __init__(self, n_slots: int, d_model: int, device: torch.device) -> None:
        self.add = torch.zeros(n_slots, 1, d_model, dtype=torch.float32, device=device)
        self.axis = torch.zeros(n_slots, 1, d_model, dtype=torch.float32, device=device)
        self.low = torch.full((n_slots, 1, 1), -math.inf, dtype=torch.float32, device=device)
        self.high = torch.full((n_slots, 1, 1), math.inf, dtype=torch.float32, device=device)
        self.code = torch.zeros(n_slots, dtype=torch.long, device=device)
        self.adding: set[int] = set()
        self.clamping: set[int] = set()

    def set(self, slot: int, intervention: Intervention) -> None:
        vector = intervention.vector.to(self.add.device, torch.float32)
        self.code[slot] = _CODES[intervention.positions]
        if intervention.operation == "add":
            self.add[slot, 0] = vector * intervention.coefficient
            self.adding.add(slot)
            return
        self.axis[slot, 0] = vector / vector.norm().clamp_min(torch.finfo(torch.float32).tiny)
        ablate = intervention.operation == "ablate"
        self.low[slot] = 0.0 if ablate else -math.inf
        self.high[slot] = 0.0 if ablate else intervention.coefficient
        self.clamping.add(slot)

    def clear(self, slot: int) -> None:
        if slot in self.adding:
            self.add[slot] = 0.0
            self.adding.discard(slot)
        if slot in self.clamping:
            self.axis[slot] = 0.0
            self.low[slot] = -math.inf
            self.high[slot] = math.inf
            self.clamping.discard(slot)

    def apply(self, hidden: Tensor, low: int, high: int, position_masks: Tensor | None) -> Tensor:
        """`hidden` is float32 `(rows, tokens, d_model)`; masks `(3, rows, tokens, 1)` by position code, or None."""
        rows = slice(low, high)
        mask = None
        if position_masks is not None:
            mask = position_masks[self.code[rows], torch.arange(high - low, device=hidden.device)]
        if self.adding:
            change = self.add[rows]
            hidden = hidden + (change if mask is None else change * mask)
        if self.clamping:
            axis = self.axis[rows]
            projection = (hidden * axis).sum(-1, keepdim=True)
            change = (projection.clamp(self.low[rows], self.high[rows]) - projection) * axis
            hidden = hidden + (change if mask is None else change * mask)
        return hidden


def project(hidden: Tensor, directions: Tensor) -> Tensor:
    """Scalar products of float32 `hidden` `(..., d_model)` with `directions` `(k, d_model)`: `(..., k)`.

    A sum over the last axis rather than a matrix product, because its rounding does not depend on how many rows
    there are (see `attention`).
    """
    return torch.stack([(hidden * direction).sum(-1) for direction in directions], -1)


class ResidualHooks:
    """The permanent hooks of one model: they steer, and hand residual streams, in the weights' dtype, to a reader.

    Attributes:
        n_layers: number of decoder blocks.
        d_model: width of the residual stream.
    """

    def __init__(self, blocks: Sequence[torch.nn.Module], d_model: int, n_slots: int, device: torch.device) -> None:
        self.n_layers, self.d_model, self.n_slots, self.device = len(blocks), d_model, n_slots, device
        self._stages: list[list[_Stage]] = [[] for _ in range(self.n_layers + 1)]
        self._active: list[bool] = [False] * (self.n_layers + 1)
        self._slots: dict[int, tuple[Intervention, ...]] = {}
        self._range = (0, 0)
        self._masks: Tensor | None = None
        self._enabled = False
        self._decode_directions: Tensor | None = None
        self.decode_projections: Tensor | None = None
        self.reader: Any = None
        self._handles = [
            blocks[0].register_forward_pre_hook(self._embedding_hook, with_kwargs=True),
            *(block.register_forward_hook(self._block_hook(i + 1)) for i, block in enumerate(blocks)),
        ]

    def remove(self) -> None:
        """Take the hooks off the model (for tests, and before a model is handed to something else)."""
        for handle in self._handles:
            handle.remove()

    # -- what the slots hold -------------------------------------------------------------------------------------

    def check(self, interventions: Sequence[Intervention]) -> None:
        """Refuse interventions that do not fit this model.

        Raises:
            ModelError: for a layer outside 1..n_layers.
            VectorError: for a vector of another width.
        """
        for item in interventions:
            if not 1 <= item.layer <= self.n_layers:
                raise ModelError(f"layer {item.layer} is outside 1..{self.n_layers} of this model; choose one inside")
            if item.vector.shape != (self.d_model,):
                raise VectorError(
                    f"a vector of width {item.vector.shape[0]} does not fit this model, whose residual stream is "
                    f"{self.d_model} wide; was it made for another model?"
                )

    def occupy(self, slot: int, interventions: tuple[Intervention, ...]) -> None:
        """Give a slot its interventions, applied at each layer in the order given."""
        self.vacate(slot)
        if not interventions:
            return
        used: dict[int, int] = {}
        for item in interventions:
            index = used.get(item.layer, 0)
            used[item.layer] = index + 1
            stages = self._stages[item.layer]
            if index == len(stages):
                stages.append(_Stage(self.n_slots, self.d_model, self.device))
            stages[index].set(slot, item)
            self._active[item.layer] = True
        self._slots[slot] = interventions

    def vacate(self, slot: int) -> None:
        """Make a slot neutral at every layer."""
        for layer in {item.layer for item in self._slots.pop(slot, ())}:
            for stage in self._stages[layer]:
                stage.clear(slot)
            self._active[layer] = any(stage.adding or stage.clamping for stage in self._stages[layer])

    def move(self, source: int, target: int) -> None:
        """Hand a slot's interventions to another slot."""
        interventions = self._slots.get(source, ())
        self.occupy(target, interventions)
        self.vacate(source)

    def enter_decoding(self, slot: int) -> None:
        """Drop what acts on the prompt only: the tokens that follow are response tokens."""
        interventions = self._slots.get(slot, ())
        if any(item.positions == "prompt" for item in interventions):
            self.occupy(slot, tuple(item for item in interventions if item.positions != "prompt"))

    def signature(self) -> tuple[object, ...]:
        """What a pass computes besides the model: which layers are steered, and by which operations."""
        return tuple(
            (layer, *((bool(stage.adding), bool(stage.clamping)) for stage in self._stages[layer]))
            for layer in range(1, self.n_layers + 1)
            if self._active[layer]
        )

    # -- one forward pass ----------------------------------------------------------------------------------------

    def begin(self, low: int, high: int, position_masks: Tensor | None, decode_directions: Tensor | None) -> None:
        """Prepare for a forward pass of slots `low .. high - 1`.

        Args:
            low: first slot.
            high: one past the last slot.
            position_masks: `(3, rows, tokens, 1)` float32, where each position code acts; None when decoding, where
                every remaining intervention acts.
            decode_directions: `(n_layers + 1, k, d_model)` float32 whose projections at the single new token are
                left in `decode_projections`, `(n_layers + 1, rows, k)`; None for none.
        """
        self._range, self._masks, self._enabled = (low, high), position_masks, True
        self._decode_directions = decode_directions
        self.decode_projections = (
            None
            if decode_directions is None
            else torch.zeros(
                self.n_layers + 1, high - low, decode_directions.shape[1], dtype=torch.float32, device=self.device
            )
        )

    def end(self) -> None:
        """Switch the hooks off until the next `begin`."""
        self._enabled, self.reader = False, None

    def _embedding_hook(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._enabled and self.reader is not None:
            hidden = args[0] if args else kwargs["hidden_states"]
            self.reader(0, hidden)

    def _block_hook(self, layer: int) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            steer = self._active[layer]
            if not self._enabled or not (steer or self._decode_directions is not None or self.reader is not None):
                return None
            hidden = output[0] if isinstance(output, tuple) else output
            if steer:
                low, high = self._range
                wide = hidden.float()
                for stage in self._stages[layer]:
                    wide = stage.apply(wide, low, high, self._masks)
                hidden = wide.to(hidden.dtype)
            if self._decode_directions is not None and self.decode_projections is not None:
                self.decode_projections[layer] = (hidden.float() * self._decode_directions[layer]).sum(-1)
            if self.reader is not None:
                self.reader(layer, hidden)
            if not steer:
                return None
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return hook
