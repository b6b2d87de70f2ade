"""Key-value slots and the attention that reads them: a row's result never depends on what it is batched with.

Three choices make that true, bit for bit, on x86 processors in the dtype they compute in (`tests/test_invariance.py`
holds it on real weights): every slot is padded on the right, with the key length rounded up to a multiple of `KV_STEP`,
so vectorised kernels see whole vectors whatever the neighbours' lengths; query heads that share a key head are folded
into one matrix product whose rows are computed alike whatever their number, which fused attention kernels do not
promise; and values are summed over `key_block` keys at a time, as a product over more of them is summed in an order
that hangs on their number.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from persona_bench.errors import ModelError

ATTENTION_NAME = "persona_bench"
KV_STEP = 32
FEWEST_ROWS = 4  # of a product in float32: BLAS takes other kernels for fewer
DENSE = 5 / 3  # positions of whole slots for each one needed, up to which reading them takes less time than a copy
POSITIONS = {"position_ids", "cache_position"}  # tensors that attention may be given and need not read
QUERY_STEP = 128  # queries at a time: keys after all of them are left out; with half as many a pass takes 5 % longer


@dataclass
class Frame:
    """Where the rows of one forward pass live and what each may see.

    Attributes:
        low: first slot of the rows.
        positions: `(rows, tokens)`, the position of each input token in its row.
        earliest, latest: the first and the last of the rows' start positions.
        n_tokens: input tokens of each row.
        uniform_start: the common start position when all rows start at the same one, else None.
        whole: positions of a slot where all are read, as they lie densely only so; else 0.
    """

    low: int
    positions: Tensor
    earliest: int
    latest: int
    n_tokens: int
    uniform_start: int | None
    whole: int = 0
    _masks: dict[tuple[int | None, torch.dtype], Tensor] = field(default_factory=dict)

    @property
    def kv_length(self) -> int:
        """How many cache positions are read, a multiple of `KV_STEP`."""
        return self.reach(self.n_tokens)

    def reach(self, n_tokens: int) -> int:
        """How many of them the first `n_tokens` input tokens of any row may see, rounded up to `KV_STEP`; or all."""
        return self.whole or round_up(self.latest + n_tokens)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """Additive mask `(rows, 1, tokens, kv_length)`: causal, and within `window` keys where one is set."""
        if (window, dtype) not in self._masks:
            keys = torch.arange(self.kv_length, device=self.positions.device)
            queries = self.positions[:, :, None]
            hidden = keys > queries
            if window is not None:
                hidden = hidden | (keys <= queries - window)
            zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._masks[window, dtype] = zeros.masked_fill_(hidden, float("-inf"))[:, None]
        return self._masks[window, dtype]


class _Active(threading.local):
    """The frames of the forward passes that a thread is in."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []


_active = _Active()


def round_up(length: int) -> int:
    """The smallest multiple of `KV_STEP` that is at least `length`."""
    return -(-length // KV_STEP) * KV_STEP


class SlotCache:
    """Keys and values of up to `n_slots` rows, each in its own right-padded slot.

    Speaks as much of the transformers cache protocol as decoder blocks use (`update`, `get_seq_length`). The rows of
    a forward pass are always a contiguous range of slots, so reading them copies nothing.
    """

    def __init__(self, n_layers: int, n_slots: int, capacity: int) -> None:
        self.n_slots = n_slots
        self.capacity = round_up(capacity)
        self._keys: list[Tensor | None] = [None] * n_layers
        self._values: list[Tensor | None] = [None] * n_layers
        self._frame: Frame | None = None

    @contextmanager
    def frame(self, low: int, starts: list[int], n_tokens: int, device: torch.device) -> Iterator[Frame]:
        """Make rows `low .. low + len(starts) - 1` current for one forward pass of `n_tokens` input tokens each."""
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(n_tokens, device=device)
        uniform = starts[0] if len(set(starts)) == 1 else None
        needed = max(starts) + min(n_tokens, QUERY_STEP)
        whole = self.capacity if device.type == "cpu" and self.capacity <= DENSE * needed else 0
        with self.current(Frame(low, positions, min(starts), max(starts), n_tokens, uniform, whole)) as frame:
            yield frame

    @contextmanager
    def current(self, frame: Frame) -> Iterator[Frame]:
        """Make a frame current for one forward pass."""
        self._frame = frame
        _active.frames.append(frame)
        try:
            yield frame
        finally:
            _active.frames.pop()
            self._frame = None

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store `(rows, kv_heads, tokens, head_dim)` at the frame's positions and return what the rows may read."""
        frame = self._frame
        assert frame is not None
        stored_keys, stored_values = self._layer(layer_idx, keys, values)
        rows, _heads, tokens, _dim = keys.shape
        high = frame.low + rows
        if frame.uniform_start is not None:
            end = frame.uniform_start + tokens
            stored_keys[frame.low : high, :, frame.uniform_start : end] = keys
            stored_values[frame.low : high, :, frame.uniform_start : end] = values
        else:
            index = torch.arange(frame.low, high, device=keys.device)[:, None]
            stored_keys[index, :, frame.positions] = keys.transpose(1, 2)
            stored_values[index, :, frame.positions] = values.transpose(1, 2)
        return (
            stored_keys[frame.low : high, :, : frame.kv_length],
            stored_values[frame.low : high, :, : frame.kv_length],
        )

    def _layer(self, layer_idx: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        stored_keys, stored_values = self._keys[layer_idx], self._values[layer_idx]
        if stored_keys is None or stored_values is None:
            # Zeros, not empty memory: a masked NaN would still poison the product with the values.
            shape = (self.n_slots, keys.shape[1], self.capacity)
            stored_keys = keys.new_zeros((*shape, keys.shape[3]))
            stored_values = values.new_zeros((*shape, values.shape[3]))
            self._keys[layer_idx], self._values[layer_idx] = stored_keys, stored_values
        return stored_keys, stored_values

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        """Start position of the current frame (only asked for by models that were not given position ids)."""
        return 0 if self._frame is None else int(self._frame.positions[0, 0])

    def grow(self, capacity: int) -> None:
        """Make room for rows of up to `capacity` positions, keeping what is stored."""
        added = round_up(capacity) - self.capacity
        self.capacity += added
        for stored in (self._keys, self._values):
            for layer, tensor in enumerate(stored):
                if tensor is not None:
                    stored[layer] = torch.nn.functional.pad(tensor, (0, 0, 0, added))

    def move(self, moves: Mapping[int, int], length: int) -> None:
        """Copy the first `length` positions of slots over others, `moves` by source; no slot is both."""
        if not moves:
            return
        for stored in (*self._keys, *self._values):
            if stored is not None:
                stored[list(moves.values()), :, :length] = stored[list(moves), :, :length]

    def clear(self, slot: int) -> None:
        """Set all of a slot to zero: hidden positions that are not finite would still reach the row that comes next."""
        for stored in (*self._keys, *self._values):
            if stored is not None:
                stored[slot].zero_()

    def read(self, slot: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """Copies of the first `length` keys and values of a slot, per layer `(kv_heads, length, head_dim)`."""
        return [
            (keys[slot, :, :length].clone(), values[slot, :, :length].clone())
            for keys, values in zip(self._keys, self._values, strict=True)
            if keys is not None and values is not None
        ]

    def write(self, low: int, high: int, prefix: list[tuple[Tensor, Tensor]]) -> None:
        """Place one prefix (as returned by `read`) at the start of slots `low .. high - 1`."""
        for layer, (keys, values) in enumerate(prefix):
            self._place(layer, low, high, keys, values)

    def _place(self, layer: int, low: int, high: int, keys: Tensor, values: Tensor) -> None:
        stored_keys, stored_values = self._layer(layer, keys[None], values[None])
        stored_keys[low:high, :, : keys.shape[1]] = keys
        stored_values[low:high, :, : values.shape[1]] = values


class PassingCache(SlotCache):
    """Keys and values of rows that are only read, of one layer at a time: the next one takes the place of the last.

    A pass then takes the memory of a layer instead of that of all.
    """

    def __init__(self, n_slots: int, capacity: int) -> None:
        super().__init__(1, n_slots, capacity)
        self._prefixes: list[tuple[int, int, list[tuple[Tensor, Tensor]]]] = []

    def write(self, low: int, high: int, prefix: list[tuple[Tensor, Tensor]]) -> None:
        """Have slots `low .. high - 1` start with one prefix (as returned by `SlotCache.read`) at every layer."""
        self._prefixes.append((low, high, prefix))

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """As `SlotCache.update`; every layer writes the same places, so that those between stay zero."""
        for stored, new in ((self._keys, keys), (self._values, values)):
            if (held := stored[0]) is not None and (held.shape[1], held.shape[3]) != (new.shape[1], new.shape[3]):
                stored[0] = None  # layers of another shape
        for low, high, prefix in self._prefixes:
            self._place(0, low, high, *prefix[layer_idx])
        return super().update(keys, values, 0)


def slot_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention over the current frame, registered with transformers as `persona_bench`.

    Args:
        module: the attention module that calls.
        query: `(rows, heads, tokens, head_dim)`.
        key: `(rows, kv_heads, kv_length, head_dim)`.
        value: `(rows, kv_heads, kv_length, head_dim)`.
        attention_mask: unused; the frame knows who sees what.
        scaling: factor on the scores, default `head_dim ** -0.5`.
        dropout: unused, the engine never trains.
        softcap: Gemma-2-style cap on the scores.
        sliding_window: how many keys a query sees, None for all.
        s_aux: `(heads,)`, GPT-OSS's attention sinks: the score of one more key, whose value is zero.
        others: what else a model hands its attention; of tensors only positions are known to change no score.

    Returns:
        `(rows, tokens, heads, head_dim)` and None in the place of attention weights.

    Raises:
        ModelError: the model's attention depends on a tensor that is not known here.
        RuntimeError: if called outside the engine, where no frame is set.
    """
    unknown = [name for name, value in others.items() if isinstance(value, Tensor) and name not in POSITIONS]
    if unknown:
        raise ModelError(
            f"{type(module).__name__} hands its attention {', '.join(unknown)}, which the engine does not read; "
            "use another model"
        )
    if not _active.frames:
        raise RuntimeError(
            "this model's attention belongs to the persona-bench engine; call model.set_attn_implementation('sdpa') "
            "before using it directly"
        )
    rows, heads, tokens, dim = query.shape
    kv_heads = key.shape[1]
    frame = _active.frames[-1]
    mask = frame.mask(sliding_window, query.dtype)
    scale = dim**-0.5 if scaling is None else scaling
    group = heads // kv_heads
    if query.device.type != "cpu" and softcap is None and s_aux is None:
        return _fused(query, key, value, mask, scale, group).transpose(1, 2), None
    # A power of two rounds nothing off, so that scores need no float32 of their own; the sums in softmax are float32.
    exact = softcap is None and math.frexp(scale)[0] == 0.5
    scaled = query * scale if exact else query
    parts = []
    for first in range(0, tokens, QUERY_STEP):
        last = min(first + QUERY_STEP, tokens)
        n, reach = last - first, frame.reach(last)
        # Keys before all of these queries are hidden from none of them, unless a window hides them.
        seen = frame.earliest + first if sliding_window is None else 0
        folded = scaled[:, :, first:last].reshape(rows, kv_heads, group * n, dim)
        # A product with keys or values that do not lie densely would copy them element by element.
        scores = _product(folded, key[:, :, :reach].contiguous().transpose(2, 3))
        scores = scores if exact else scores.float().mul_(scale)
        if softcap is not None:
            scores = scores.div_(softcap).tanh_().mul_(softcap)
        scores = scores.view(rows, kv_heads, group, n, reach)
        scores[..., seen:].add_(mask[:, :, None, first:last, seen:reach])
        weights = _softmax(scores, s_aux).to(query.dtype).reshape(rows, kv_heads, group * n, reach)
        parts.append(_weighted(weights, value[:, :, :reach]).reshape(rows, heads, n, -1).transpose(1, 2))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1), None


def _fused(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, group: int) -> Tensor:
    """Attention in torch's fused kernels, `(rows, heads, tokens, head_dim)`.

    With a mask they take as many key heads as query heads; asked to share key heads, torch falls back to plain
    products, which copy keys and values for each query head. A single query a row folds the query heads of a key head
    into its rows instead, and copies nothing.
    """
    attend = partial(torch.nn.functional.scaled_dot_product_attention, scale=scale)
    rows, heads, tokens, dim = query.shape
    if tokens == 1 and group > 1:
        folded = query.reshape(rows, heads // group, group, dim)
        return attend(folded, key, value, attn_mask=mask.expand(-1, -1, group, -1)).reshape(rows, heads, 1, dim)
    if group > 1:
        key, value = (item.repeat_interleave(group, 1) for item in (key, value))
    return attend(query, key, value, attn_mask=mask)


def _softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Weights of the keys from scores `(rows, kv_heads, group, queries, keys)`; sinks `(heads,)` take a part."""
    if sinks is None:
        return torch.softmax(scores, -1)
    # A step of keys that all but the first are hidden, so that kernels see whole vectors here too.
    more = scores.new_full((*scores.shape[:-1], KV_STEP), float("-inf"))
    more[..., 0] = sinks.view(1, *scores.shape[1:3], 1)
    return torch.softmax(torch.cat((scores, more), -1), -1)[..., : scores.shape[-1]]


def key_block(dtype: torch.dtype) -> int:
    """Of how many keys one product sums the values; float32 ones are left to BLAS, which parts longer sums anew."""
    return 128 if dtype == torch.float32 else 1024


def _weighted(weights: Tensor, value: Tensor) -> Tensor:
    """The product `(rows, kv_heads, queries, head_dim)`, to which keys of weight 0 after the last one add nothing."""
    keys, block = weights.shape[-1], key_block(value.dtype)
    if keys <= block:
        return _product(weights, value.contiguous())
    total = _product(weights[..., :block], value[:, :, :block]).float()
    for first in range(block, keys, block):
        last = first + block
        total += _product(weights[..., first:last], value[:, :, first:last])
    return total.to(value.dtype)


def _product(rows: Tensor, others: Tensor) -> Tensor:
    """`rows @ others`, every row the same whatever their number."""
    n = rows.shape[-2]
    if rows.dtype != torch.float32 or n >= FEWEST_ROWS:
        return torch.matmul(rows, others)
    return torch.matmul(torch.nn.functional.pad(rows, (0, 0, 0, FEWEST_ROWS - n)), others)[..., :n, :]


def register() -> None:
    """Make `persona_bench` known to transformers as an attention implementation (idempotent)."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, slot_attention)
