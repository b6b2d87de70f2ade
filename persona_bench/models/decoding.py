"""One token more for every row: the pass of a decoding step, on a GPU recorded once and then replayed.

A step of a small model is a thousand kernels or more, which a processor takes several times as long to launch as the
GPU to run. As a CUDA graph they are launched at once. What a graph reads and writes stays where it was recorded, so
tokens and positions are copied to it, while interventions and keys and values have places of their own anyway.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from persona_bench.errors import first_line
from persona_bench.models.attention import Frame, SlotCache
from persona_bench.models.loaded import LoadedModel
from persona_bench.models.steering import ResidualHooks

logger = logging.getLogger(__name__)

SEEN_FIRST = 3  # times that a kind of step is run before it is recorded, which takes as long as a few of them
MOST = 48  # recordings that are held
WIDTHS = (2, 4, 8, 16, 32, 64, 96, 128, 192, 256)  # rows of a recording; fewer are filled up
REACH_STEP = 128  # so are the keys that it reads

Step = Callable[[], tuple[Tensor, Tensor | None]]
Key = tuple[int, int, int, tuple[object, ...]]
"""Rows, keys, which directions, and which layers are steered how."""


@dataclass(frozen=True)
class _Recording:
    """A step that can be run again: `(2, rows)` tokens and positions go into `inputs`, then `again` gives results."""

    inputs: Tensor
    directions: Tensor | None
    again: Step


class Decoding:
    """Runs decoding steps of one model.

    Args:
        loaded: the model.
        hooks: on its blocks; the rows of a step stand in the first slots.
        record: makes of a step one that gives the same and can be run again whenever its inputs change; None never
            records. By default CUDA graphs on a GPU, and None elsewhere.
    """

    def __init__(self, loaded: LoadedModel, hooks: ResidualHooks, record: Callable[[Step], Step] | None = None) -> None:
        self._loaded, self._hooks = loaded, hooks
        self._record = record or (CudaGraphs(loaded.device) if loaded.device.type == "cuda" else None)
        self._seen: Counter[Key] = Counter()
        self._held: OrderedDict[Key, _Recording] = OrderedDict()
        self._cache: tuple[SlotCache, int] | None = None

    def run(
        self, cache: SlotCache, tokens: list[int], starts: list[int], directions: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Final hidden states `(rows, d_model)`, and projections `(n_layers + 1, rows, k)` if there are directions.

        What it returns is overwritten by the next step.

        Args:
            cache: of the rows, which stand in its first slots.
            tokens: each row's last one.
            starts: its position.
            directions: `(n_layers + 1, k, d_model)`.
        """
        if self._record is None:
            return self._plain(cache, tokens, starts, directions)
        if self._cache is None or self._cache[0] is not cache or self._cache[1] != cache.capacity:
            self.forget()
            self._cache = (cache, cache.capacity)
        width = min(next((n for n in WIDTHS if n >= len(tokens)), cache.n_slots), cache.n_slots)
        reach = min(-(-(max(starts) + 1) // REACH_STEP) * REACH_STEP, cache.capacity)
        key: Key = (width, reach, id(directions), self._hooks.signature())
        recording = self._held.get(key)
        if recording is None:
            self._seen[key] += 1
            if self._seen[key] <= SEEN_FIRST:
                return self._plain(cache, tokens, starts, directions)
            recording = self._make(cache, width, reach, directions, tokens, starts)
            if recording is None:
                return self._plain(cache, tokens, starts, directions)
            self._held[key] = recording
            if len(self._held) > MOST:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        recording.inputs.copy_(_inputs(tokens, starts, width, recording.inputs.device))
        hidden, projections = recording.again()
        rows = len(tokens)
        return hidden[:rows], None if projections is None else projections[:, :rows]

    def forget(self) -> None:
        """Hold no recording: their keys and values are gone."""
        self._held.clear()
        self._seen.clear()
        self._cache = None

    def _plain(
        self, cache: SlotCache, tokens: list[int], starts: list[int], directions: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        with cache.frame(0, starts, 1, self._loaded.device) as frame:
            ids = torch.tensor(tokens, device=self._loaded.device)
            return self._pass(cache, ids[:, None], frame.positions, directions)

    def _pass(
        self, cache: SlotCache, ids: Tensor, positions: Tensor, directions: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        self._hooks.begin(0, len(ids), None, directions)
        try:
            output = self._loaded.decoder(input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True)
        finally:
            self._hooks.end()
        return output.last_hidden_state[:, 0], self._hooks.decode_projections

    def _make(
        self,
        cache: SlotCache,
        width: int,
        reach: int,
        directions: Tensor | None,
        tokens: list[int],
        starts: list[int],
    ) -> _Recording | None:
        """A recording, or None where the model's pass cannot be recorded, which is then not tried again."""
        assert self._record is not None
        inputs = _inputs(tokens, starts, width, self._loaded.device)

        def step() -> tuple[Tensor, Tensor | None]:
            # A frame of its own each time: its masks are made on the way.
            with cache.current(Frame(0, inputs[1][:, None], 0, reach - 1, 1, None)) as frame:
                return self._pass(cache, inputs[0][:, None], frame.positions, directions)

        try:
            return _Recording(inputs, directions, self._record(step))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            first = first_line(error)
            logger.warning(
                "Decoding steps of %s cannot be recorded, and are run one by one: %s", self._loaded.name, first
            )
            self._record = None
            return None


def _inputs(tokens: list[int], starts: list[int], width: int, device: torch.device) -> Tensor:
    """`(2, width)`; rows that only fill up write to the first position of slots that are free."""
    padding = [0] * (width - len(tokens))
    return torch.tensor([tokens + padding, starts + padding], device=device)


class CudaGraphs:
    """Records steps as CUDA graphs, which share one pool of memory, as no result outlives the next step.

    Args:
        device: where the steps are run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None

    def __call__(self, step: Step) -> Step:
        """Run a step once and record it.

        Raises:
            RuntimeError: it cannot be recorded; it waits for the GPU, say.
        """
        with torch.cuda.device(self._device):
            # Libraries choose their kernels in the first run, which must not be on the stream that others use.
            ours, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(ours)
            with torch.cuda.stream(side):
                step()
            ours.wait_stream(side)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                found = step()

        def again() -> tuple[Tensor, Tensor | None]:
            with torch.cuda.device(self._device):
                graph.replay()
            return found

        return again
