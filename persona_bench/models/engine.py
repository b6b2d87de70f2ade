"""Batched generation, scoring and capture: one loop, in which every row keeps its own settings.

Rows wait, are admitted into free slots (a prefill), decode together one token a step, and leave when they finish; a
waiting row then takes the place. A prompt prefix that rows share is prefilled once and kept. Because a row's numbers
never depend on its neighbours (see `attention`), none of that scheduling can change a result.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from persona_bench.errors import DataError, ModelError
from persona_bench.models.attention import SlotCache
from persona_bench.models.decoding import Decoding
from persona_bench.models.layers import accelerated
from persona_bench.models.loaded import LoadedModel
from persona_bench.models.sampling import Sampling, sample, top_logprobs, uniforms
from persona_bench.models.steering import Capture, Intervention, ResidualHooks, project

logger = logging.getLogger(__name__)

SLOTS, PREFILL_TOKENS = 64, 2048
GPU_SLOTS, GPU_PREFILL_TOKENS = 256, 16384  # most of a step is launching kernels there, whatever the rows; not timed
MIN_WIDTH = 2  # a matrix product with a single row takes another kernel, with another rounding
LENGTH_STEP = 64  # rows whose lengths differ by less are batched as if they were alike
LONE_ROWS = 16  # passes of fewer rows, and of few tokens, are filled with shorter rows rather than left small
STACKS = 8  # sets of capture directions that are kept together
HEAD_ROWS = 256  # rows of the vocabulary projection done at once, to bound its float32 copy
StopReason = Literal["stop", "max_tokens", "model_length", "scored"]


@dataclass(frozen=True, eq=False)
class Reading:
    """Mean residual streams over stretches of the given tokens, and scalar products at every one of them.

    Attributes:
        layers: 1-based layers.
        spans: (start, stop) in tokens of prompt and continuation together; none may start inside the shared prefix.
        directions: `(n_directions, n_layers + 1, d_model)` float32, used as given; every token's residual stream after
            the shared prefix is multiplied with them, and not kept. Rows that share the tensor share the work.
    """

    layers: tuple[int, ...]
    spans: tuple[tuple[int, int], ...] = ()
    directions: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """One request.

    Attributes:
        prompt: token ids.
        continuation: token ids given after the prompt (teacher forcing); their log-probabilities are returned.
        alternatives: token ids whose log-probability as the next token is returned.
        sampling: how to generate after that, None to generate nothing.
        interventions: what happens to this row's residual stream.
        capture: which projections are returned.
        hidden_means: whether mean residual streams are returned (extraction).
        reading: which residual streams are returned besides. A pass whose rows want nothing else ends at the last
            layer read, and never runs the vocabulary projection.
        shared_prefix: how many leading prompt tokens other rows are likely to share; prefilled once and kept.
        shared_root: how many leading tokens of that prefix other prefixes are likely to begin with (the examples before
            many questions, each of which has a prefix of its own); also prefilled once and kept.
        kept: whether this prompt is the shared prefix of rows that come later, and is kept for them by its own pass.
    """

    prompt: tuple[int, ...]
    continuation: tuple[int, ...] = ()
    alternatives: tuple[int, ...] = ()
    sampling: Sampling | None = None
    interventions: tuple[Intervention, ...] = ()
    capture: Capture | None = None
    hidden_means: bool = False
    reading: Reading | None = None
    shared_prefix: int = 0
    shared_root: int = 0
    kept: bool = False

    @property
    def n_given(self) -> int:
        """Tokens of prompt and continuation."""
        return len(self.prompt) + len(self.continuation)


@dataclass(frozen=True, eq=False)
class Projections:
    """Projections of one row, float32, `(n_directions, n_layers + 1)` each, None where not asked for.

    `per_token` is `(n_response_tokens, n_directions, n_layers + 1)`. Row 0 of the layer axis is NaN.
    """

    prompt_last: np.ndarray | None = None
    prompt_mean: np.ndarray | None = None
    response_mean: np.ndarray | None = None
    per_token: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class RowResult:
    """What a row gave.

    Attributes:
        tokens: generated token ids without the end-of-sequence token.
        n_sampled: tokens sampled, the end-of-sequence token included.
        stop_reason: why generation ended; `scored` when nothing was to be generated.
        logprobs: natural log-probability of each token in `tokens`, if asked for.
        top_logprobs: for each token in `tokens`, the likeliest tokens with their log-probabilities, if asked for.
        continuation_logprobs: `(len(continuation),)` float32.
        alternative_logprobs: `(len(alternatives),)` float32.
        projections: if a capture was asked for.
        hidden_means: `(3, n_layers + 1, d_model)` float32: last prompt token, mean over the prompt, mean over the
            continuation; the paper's three positions (section 2.2). Layer 0 is the embedding.
        hidden_norms: `(n_layers + 1,)` float32, mean Euclidean norm over the continuation's tokens.
        read: `(n_spans, n_layers_read, d_model)` float32, as `Reading` asks.
        products: `(n_tokens, n_directions, n_layers_read)` float32, of every token given after the shared prefix, if
            `Reading` holds directions.
    """

    tokens: tuple[int, ...]
    n_sampled: int
    stop_reason: StopReason
    logprobs: tuple[float, ...] = ()
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()
    continuation_logprobs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    alternative_logprobs: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    projections: Projections | None = None
    hidden_means: np.ndarray | None = None
    hidden_norms: np.ndarray | None = None
    read: np.ndarray | None = None
    products: np.ndarray | None = None


class _Job:
    """A row on its way: its state from submission to result."""

    def __init__(self, row: Row, limit: int) -> None:
        self.row = row
        self.future: Future[RowResult] = Future()
        self.given = row.prompt + row.continuation
        self.budget = min(row.sampling.max_tokens, limit - len(self.given)) if row.sampling else 0
        untouched = not any(item.touches_prompt for item in row.interventions)
        self.keeps = row.kept and untouched
        prefix_allowed = (
            untouched and not row.hidden_means and not (row.capture is not None and row.capture.prompt_mean)
        )
        # The last prompt token is never part of a prefix: steering at response positions starts there.
        self.prefix = row.prompt[: min(row.shared_prefix, len(row.prompt) - 1)] if prefix_allowed else ()
        # A prefix adds at least one token of its own to its root.
        self.root = self.prefix[: min(row.shared_root, len(self.prefix) - 1)] if self.prefix else ()
        self.reset()

    def reset(self) -> None:
        """Forget all progress (after a batch that did not fit in memory)."""
        self.length = 0
        self.tokens: list[int] = []
        self.n_sampled = 0
        self.logprobs: list[float] = []
        self.top: list[tuple[tuple[int, float], ...]] = []
        self.draining = False
        self.stop: StopReason = "scored"
        self.draws = uniforms(self.row.sampling.seed, self.budget) if self.row.sampling else np.zeros(0)
        self.response: list[np.ndarray] = []
        self.prompt_last: np.ndarray | None = None
        self.prompt_mean: np.ndarray | None = None
        self.hidden: np.ndarray | None = None
        self.norms: np.ndarray | None = None
        self.read: np.ndarray | None = None
        self.products: np.ndarray | None = None
        self.scores: list[float] = []
        self.continuation_logprobs = np.zeros(0, np.float32)
        self.alternative_logprobs = np.zeros(0, np.float32)

    @property
    def suffix(self) -> int:
        return len(self.given) - len(self.prefix)

    @property
    def depth(self) -> int:
        """The last layer this row needs where it needs nothing above it, else 0: no layer is the last one needed."""
        row = self.row
        more = row.continuation or row.alternatives or row.sampling or row.capture or row.hidden_means
        return 0 if more or row.reading is None else max(row.reading.layers)

    @property
    def room(self) -> int:
        return len(self.given) + self.budget + 1

    def finish(self) -> None:
        capture = self.row.capture
        projections = None
        if capture is not None:
            stacked = np.stack(self.response) if self.response else None
            projections = Projections(
                prompt_last=self.prompt_last if capture.prompt_last else None,
                prompt_mean=self.prompt_mean,
                response_mean=stacked.mean(0) if capture.response_mean and stacked is not None else None,
                per_token=stacked if capture.per_token else None,
            )
        self.future.set_result(
            RowResult(
                tokens=tuple(self.tokens),
                n_sampled=self.n_sampled,
                stop_reason=self.stop,
                logprobs=tuple(self.logprobs),
                top_logprobs=tuple(self.top),
                continuation_logprobs=self.continuation_logprobs,
                alternative_logprobs=self.alternative_logprobs,
                projections=projections,
                hidden_means=self.hidden,
                hidden_norms=self.norms,
                read=self.read,
                products=self.products,
            )
        )


def _like(job: _Job) -> tuple[object, ...]:
    """Sorts rows so that those that share a pass well are neighbours.

    Rows that are only read leave no slot behind, so what is new of them counts; others also by the length of the whole.
    """
    return job.depth, 0 if job.depth else len(job.given) // LENGTH_STEP, job.suffix, job.prefix


class _PrefixStore:
    """Keys and values of shared prefixes, of the first layers or of all, least recently used dropped first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._held: OrderedDict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = OrderedDict()
        self._bytes = 0

    def holds(self, prefix: tuple[int, ...], n_layers: int) -> bool:
        """Whether a prefix is there, at least so many layers deep."""
        return len(self._held.get(prefix, ())) >= n_layers

    def get(self, prefix: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
        self._held.move_to_end(prefix)
        return self._held[prefix]

    def put(self, prefix: tuple[int, ...], layers: list[tuple[Tensor, Tensor]], needed: set[tuple[int, ...]]) -> None:
        self._bytes += _n_bytes(layers) - _n_bytes(self._held.pop(prefix, []))
        self._held[prefix] = layers
        for old in list(self._held):
            if self._bytes <= self.max_bytes:
                break
            if old not in needed:
                self._bytes -= _n_bytes(self._held.pop(old))

    def clear(self) -> None:
        self._held.clear()
        self._bytes = 0


def _n_bytes(layers: list[tuple[Tensor, Tensor]]) -> int:
    return sum(2 * keys.numel() * keys.element_size() for keys, _values in layers)


class Engine:
    """Generates and scores rows on one set of weights.

    Args:
        loaded: model, tokenizer and decoder blocks.
        max_batch: slots, the most rows in one forward pass; halved when a batch does not fit in memory. None: 64, on a
            GPU 256.
        token_budget: most tokens (rows times padded length) in one prefill. None: 2,048, on a GPU 16,384.
        prefix_bytes: memory for shared prefixes.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        max_batch: int | None = None,
        token_budget: int | None = None,
        prefix_bytes: int = 2**29,
    ) -> None:
        self.loaded = accelerated(loaded)
        slots, tokens = (GPU_SLOTS, GPU_PREFILL_TOKENS) if loaded.device.type == "cuda" else (SLOTS, PREFILL_TOKENS)
        self.max_batch = max(max_batch or slots, MIN_WIDTH)
        self.token_budget = token_budget or tokens
        self.prefill_tokens = 0
        self.decoded_tokens = 0
        self._inbox: deque[_Job] = deque()
        self._waiting: list[_Job] = []
        self._active: list[_Job] = []
        self._cache: SlotCache | None = None
        self._prefixes = _PrefixStore(prefix_bytes)
        self._directions: list[Tensor] = []
        self._stacks: OrderedDict[tuple[int, ...], tuple[list[Tensor], Tensor]] = OrderedDict()
        self._offsets: dict[int, int] = {}
        self._stacked: Tensor | None = None
        self.hooks = ResidualHooks(self.loaded.blocks, loaded.d_model, self.max_batch + 1, loaded.device)
        self._decoding = Decoding(self.loaded, self.hooks)

    # -- asking --------------------------------------------------------------------------------------------------

    def submit(self, row: Row) -> Future[RowResult]:
        """Queue a row; the future is resolved by later calls of `step` (from one thread at a time).

        Raises:
            DataError: the prompt is empty, or longer than the model's context.
            ModelError, VectorError: an intervention does not fit the model.
        """
        if not row.prompt:
            raise DataError("an empty prompt cannot be run; give at least one token")
        limit = self.loaded.max_length
        total = row.n_given
        if total + (row.sampling is not None) > limit:
            raise DataError(f"{total} tokens do not fit the model's context of {limit}; shorten the input")
        self.hooks.check(row.interventions)
        if row.reading is not None:
            self._check_reading(row.reading, total, row.shared_prefix)
        if row.capture is not None:
            self._check_directions(row.capture.directions)
        job = _Job(row, limit)
        self._inbox.append(job)
        return job.future

    def _check_reading(self, reading: Reading, total: int, shared: int) -> None:
        if not reading.layers or not all(1 <= layer <= self.hooks.n_layers for layer in reading.layers):
            raise ModelError(f"layers {reading.layers} cannot be read; choose some of 1..{self.hooks.n_layers}")
        for start, stop in reading.spans:
            if not shared <= start < stop <= total:
                raise ModelError(
                    f"tokens {start}..{stop} of a row of {total} that shares its first {shared} cannot be read"
                )
        if reading.directions is not None:
            self._check_directions(reading.directions)
            if shared >= total:
                raise ModelError(f"a row of {total} tokens that shares its first {shared} leaves none to be read")

    def _check_directions(self, directions: Tensor) -> None:
        shape = tuple(directions.shape)
        if shape[1:] != (self.hooks.n_layers + 1, self.hooks.d_model):
            raise ModelError(
                f"directions of shape {shape} do not fit this model; "
                f"(n, {self.hooks.n_layers + 1}, {self.hooks.d_model}) is needed"
            )

    def run(self, rows: Sequence[Row], on_done: Callable[[int], None] | None = None) -> list[RowResult]:
        """Run rows to the end and return their results in order; `on_done` is told how many are finished."""
        futures = [self.submit(row) for row in rows]
        done = 0
        while self.busy:
            self.step()
            if on_done is not None:
                finished = sum(future.done() for future in futures)
                if finished != done:
                    done = finished
                    on_done(done)
        return [future.result() for future in futures]

    def forget_prefixes(self) -> None:
        """Drop keys and values of shared prefixes, for which no row that is still to come has a use."""
        self._prefixes.clear()

    @property
    def busy(self) -> bool:
        """Whether any row waits or runs."""
        return bool(self._inbox or self._waiting or self._active)

    @property
    def load(self) -> int:
        """How many rows wait or run."""
        return len(self._inbox) + len(self._waiting) + len(self._active)

    @torch.inference_mode()
    def step(self) -> None:
        """Admit what fits and decode one token for every active row."""
        self._collect()
        try:
            free = self.max_batch - len(self._active)
            # Small refills waste prefill passes: wait until a quarter of the slots, or all that waits, can be filled.
            if self._waiting and (not self._active or free >= min(len(self._waiting), self.max_batch // 4)) and free:
                self._admit(free)
            if self._active:
                self._decode()
        except (torch.OutOfMemoryError, MemoryError) as error:
            self._shrink(error)
        except RuntimeError as error:
            if "can't allocate memory" not in str(error) and "not enough memory" not in str(error):
                self._fail(error)
                raise
            self._shrink(error)
        except Exception as error:
            self._fail(error)
            raise

    # -- memory and failure --------------------------------------------------------------------------------------

    def _collect(self) -> None:
        if not self._inbox:
            return
        while self._inbox:
            self._waiting.append(self._inbox.popleft())
        # Longest first (taken from the end of the list): rows of like length share a pass, those of one prefix touch.
        self._waiting.sort(key=_like)

    def _reset(self) -> list[_Job]:
        for slot in range(self.max_batch + 1):
            self.hooks.vacate(slot)
        self.hooks.end()
        jobs, self._active, self._cache = self._active, [], None
        self._decoding.forget()
        self._prefixes.clear()
        for job in jobs:
            job.reset()
        return jobs

    def _shrink(self, error: BaseException) -> None:
        if self.max_batch <= MIN_WIDTH and self.token_budget <= 64:
            self._fail(error)
            raise ModelError(
                "even the smallest batch does not fit in memory; use a smaller model, a shorter input or dtype bfloat16"
            ) from error
        self._inbox.extend(self._reset())
        self.max_batch = max(self.max_batch // 2, MIN_WIDTH)
        self.token_budget = max(self.token_budget // 2, 64)
        logger.warning("A batch did not fit in memory; going on with batches of at most %d rows.", self.max_batch)

    def _fail(self, error: BaseException) -> None:
        jobs = [*self._reset(), *self._waiting, *self._inbox]
        self._waiting.clear()
        self._inbox.clear()
        for job in jobs:
            if not job.future.done():
                job.future.set_exception(error)

    # -- prefill -------------------------------------------------------------------------------------------------

    def _admit(self, free: int) -> None:
        chunk = self._take(free)
        if not chunk:  # every request was cancelled
            return
        try:
            if not chunk[0].depth:
                self._ensure_room(max(job.room for job in chunk))
            self._prefill_prefixes({job.prefix: job.root for job in chunk if job.prefix}, free, chunk[0].depth)
            self._prefill(chunk)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError):
            for job in chunk:
                if job not in self._active:
                    job.reset()
                    self._inbox.append(job)
            raise

    def _take(self, free: int) -> list[_Job]:
        chunk: list[_Job] = []
        width = 0
        while self._waiting and len(chunk) < free:
            job = self._waiting[-1]
            width = max(width, job.suffix)
            if chunk and width * (len(chunk) + 1) > self.token_budget:
                break
            if chunk and job.depth != chunk[0].depth:
                break
            # A much shorter row would be padding for the most part; it fits a later pass better.
            large = len(chunk) >= LONE_ROWS or 4 * width * len(chunk) >= self.token_budget
            if large and 2 * job.suffix < width:
                break
            self._waiting.pop()
            if job.future.running() or job.future.set_running_or_notify_cancel():
                chunk.append(job)
        return chunk

    def _ensure_room(self, room: int) -> SlotCache:
        room += MIN_WIDTH
        if self._cache is None:
            self._cache = SlotCache(self.hooks.n_layers, self.max_batch + 1, room)
        elif room > self._cache.capacity:
            self._cache.grow(max(room, self._cache.capacity * 3 // 2))
        return self._cache

    def _cache_for(self, depth: int, low: int, rows: int, reach: int) -> tuple[SlotCache, int]:
        """The cache of a prefill and its first slot there.

        Rows that are only read keep nothing: their cache is no larger than they are and no deeper than they go.
        """
        return (SlotCache(depth, rows, reach), 0) if depth else (self._ensure_room(reach), low)

    def _prefill_prefixes(self, roots: dict[tuple[int, ...], tuple[int, ...]], free: int, depth: int) -> None:
        """Prefill the prefixes that are not held, `roots` by prefix; a root first, then what follows it."""
        n_layers = depth or self.hooks.n_layers
        missing = {prefix: root for prefix, root in roots.items() if not self._prefixes.holds(prefix, n_layers)}
        needed = {*roots, *missing.values()}
        new = {root for root in missing.values() if root and not self._prefixes.holds(root, n_layers)}
        self._prefill_stage({root: () for root in new}, needed, free, depth)
        self._prefill_stage(missing, needed, free, depth)

    def _prefill_stage(
        self,
        roots: dict[tuple[int, ...], tuple[int, ...]],
        needed: set[tuple[int, ...]],
        free: int,
        depth: int,
    ) -> None:
        def own(prefix: tuple[int, ...]) -> int:
            return len(prefix) - len(roots[prefix])

        waiting, low = sorted(roots, key=own), len(self._active)
        while waiting:
            chunk: list[tuple[int, ...]] = []
            while (
                waiting and len(chunk) < free and (not chunk or own(chunk[0]) * (len(chunk) + 1) <= self.token_budget)
            ):
                chunk.append(waiting.pop())
            chunk.sort(key=lambda prefix: roots[prefix])
            starts = [len(roots[prefix]) for prefix in chunk]
            width = max(map(own, chunk))
            cache, first = self._cache_for(depth, low, len(chunk), max(starts) + max(MIN_WIDTH, width))
            self._write_prefixes(cache, first, [roots[prefix] for prefix in chunk], depth)
            suffixes = [prefix[start:] for prefix, start in zip(chunk, starts, strict=True)]
            self._forward(cache, first, low, starts, suffixes, None, depth)
            for offset, prefix in enumerate(chunk):
                self._prefixes.put(prefix, cache.read(first + offset, len(prefix)), needed)

    def _write_prefixes(self, cache: SlotCache, first: int, prefixes: Sequence[tuple[int, ...]], depth: int) -> None:
        """Copy held prefixes into a cache's slots from `first` on; equal ones must stand together."""
        start = 0
        while start < len(prefixes):
            end = start + 1
            while end < len(prefixes) and prefixes[end] == prefixes[start]:
                end += 1
            if prefixes[start]:
                held = self._prefixes.get(prefixes[start])
                cache.write(first + start, first + end, held[:depth] if depth else held)
            start = end

    def _prefill(self, chunk: list[_Job]) -> None:
        chunk.sort(key=lambda job: job.prefix)
        low, depth = len(self._active), chunk[0].depth
        starts = [len(job.prefix) for job in chunk]
        reach = max(starts) + max(MIN_WIDTH, *(job.suffix for job in chunk))
        cache, first = self._cache_for(depth, low, len(chunk), reach)
        for index, job in enumerate(chunk):
            self.hooks.occupy(low + index, job.row.interventions)
        self._write_prefixes(cache, first, [job.prefix for job in chunk], depth)
        hidden = self._forward(cache, first, low, starts, [job.given[len(job.prefix) :] for job in chunk], chunk)
        self._score(chunk, hidden)
        for index, job in enumerate(chunk):
            job.length = len(job.given)
            if job.keeps:
                prompt = job.row.prompt
                self._prefixes.put(prompt, cache.read(first + index, len(prompt)), {prompt})
        self._first_tokens(chunk, hidden)
        # Rows that go on keep the slots in front; hooks and cache follow.
        staying = low
        for index, job in enumerate(chunk):
            slot = low + index
            if job.stop != "scored" or job.row.sampling is None:
                if not job.draining:
                    self.hooks.vacate(slot)
                    job.finish()
                    continue
            if slot != staying:
                cache.move({slot: staying}, job.length)
                self.hooks.move(slot, staying)
            self.hooks.enter_decoding(staying)
            self._active.append(job)
            staying += 1
        self._set_directions()

    def _forward(
        self,
        cache: SlotCache,
        first: int,
        low: int,
        starts: list[int],
        inputs: Sequence[Sequence[int]],
        jobs: list[_Job] | None,
        depth: int = 0,
    ) -> Tensor:
        """Prefill of right-padded rows: final hidden states `(rows, tokens, d_model)`; jobs' captures are taken.

        Keys and values go to a cache's slots from `first` on, interventions come from the hooks' slots from `low` on.
        The pass ends at layer `depth` where that is not 0, or at the last one that the jobs need.
        """
        rows, width = len(inputs), max(MIN_WIDTH, *(len(tokens) for tokens in inputs))
        device = self.loaded.device
        tokens = torch.zeros(rows, width, dtype=torch.long)
        for index, given in enumerate(inputs):
            tokens[index, : len(given)] = torch.tensor(given, dtype=torch.long)
        masks, reader = None, None
        if jobs is not None:
            masks = _position_masks(jobs, starts, width).to(device)
            reader = _Reader(jobs, starts, self.hooks, device)
        self.prefill_tokens += sum(len(given) for given in inputs)
        with cache.frame(first, starts, width, device) as frame:
            self.hooks.begin(low, low + rows, masks, None)
            if reader is not None and reader.wanted:
                self.hooks.reader = reader
            elif depth:
                self.hooks.reader = partial(_end_at, depth)
            try:
                output = self.loaded.decoder(
                    input_ids=tokens.to(device),
                    position_ids=frame.positions,
                    past_key_values=cache,
                    use_cache=True,
                )
                hidden: Tensor = output.last_hidden_state
            except _DeepEnoughError:
                hidden = torch.empty(0, device=device)  # these rows ask for nothing that is made of it
            finally:
                self.hooks.end()
        if reader is not None:
            reader.deliver()
        return hidden

    def _score(self, chunk: list[_Job], hidden: Tensor) -> None:
        """Log-probabilities of continuations and alternatives from the prefill's hidden states."""
        where: list[tuple[int, int]] = []
        for index, job in enumerate(chunk):
            first = len(job.row.prompt) - 1 - len(job.prefix)
            stop = first + len(job.row.continuation) + bool(job.row.alternatives)
            where += [(index, position) for position in range(first, stop)]
        if not where:
            return
        places = torch.tensor(where, device=hidden.device)
        states = hidden[places[:, 0], places[:, 1]]
        job_of = [item[0] for item in where]
        done: dict[int, int] = {}
        for begin in range(0, len(where), HEAD_ROWS):
            logits = self.loaded.head(states[begin : begin + HEAD_ROWS])
            targets: list[tuple[int, int]] = []
            for local, owner in enumerate(job_of[begin : begin + HEAD_ROWS]):
                offset = done.get(owner, 0)
                done[owner] = offset + 1
                continuation = chunk[owner].row.continuation
                wanted = continuation[offset : offset + 1] or chunk[owner].row.alternatives
                targets += [(local, token) for token in wanted]
            pairs = torch.tensor(targets, device=hidden.device)
            chosen = self.loaded.logits_at(states[begin + pairs[:, 0]], pairs[:, 1])
            values = (chosen - _log_total(logits)[pairs[:, 0]]).cpu().numpy()
            for (local, _token), value in zip(targets, values, strict=True):
                chunk[job_of[begin + local]].scores.append(value)
        for job in chunk:
            scores = np.array(job.scores, np.float32)
            job.continuation_logprobs = scores[: len(job.row.continuation)]
            job.alternative_logprobs = scores[len(job.row.continuation) :]

    def _first_tokens(self, chunk: list[_Job], hidden: Tensor) -> None:
        rows = [index for index, job in enumerate(chunk) if job.row.sampling is not None]
        if not rows:
            return
        last = [chunk[index].suffix - 1 for index in rows]
        states = hidden[torch.tensor(rows, device=hidden.device), torch.tensor(last, device=hidden.device)]
        self._sample([chunk[index] for index in rows], self.loaded.head(states))

    # -- decoding ------------------------------------------------------------------------------------------------

    def _decode(self) -> None:
        assert self._cache is not None
        jobs = self._active
        padding = [0] * (MIN_WIDTH - len(jobs))
        starts = [job.length for job in jobs] + padding
        cache = self._ensure_room(max(starts) + 1)
        hidden, projections = self._decoding.run(
            cache, [job.tokens[-1] for job in jobs] + padding, starts, self._stacked
        )
        if projections is not None:
            self._keep_projections(projections.permute(1, 2, 0).cpu().numpy())
        for job in jobs:
            job.length += 1
        going = [index for index, job in enumerate(jobs) if not job.draining]
        finished = {index for index, job in enumerate(jobs) if job.draining}
        if going:
            self.decoded_tokens += len(going)
            states = hidden[: len(jobs)]
            if len(going) < len(jobs):
                states = states[torch.tensor(going, device=hidden.device)]
            finished |= {
                going[index] for index in self._sample([jobs[index] for index in going], self.loaded.head(states))
            }
        self._leave(finished)

    def _keep_projections(self, values: np.ndarray) -> None:
        """`values` is `(rows, n_stacked_directions, n_layers + 1)`."""
        for index, job in enumerate(self._active):
            capture = job.row.capture
            if capture is not None and (capture.response_mean or capture.per_token):
                low = self._offsets[id(capture.directions)]
                job.response.append(_no_embedding(values[index, low : low + capture.directions.shape[0]]))

    def _leave(self, finished: set[int]) -> None:
        assert self._cache is not None
        for index in sorted(finished):
            self._active[index].finish()
            self.hooks.vacate(index)
        # Rows from the end take the places in front.
        n = len(self._active) - len(finished)
        moves = dict(
            zip(
                (index for index in range(n, len(self._active)) if index not in finished),
                (index for index in sorted(finished) if index < n),
                strict=True,
            )
        )
        self._cache.move(moves, max((self._active[source].length for source in moves), default=0))
        for source, target in moves.items():
            self.hooks.move(source, target)
            self._active[target] = self._active[source]
        del self._active[n:]
        if finished:
            self._set_directions()

    def _set_directions(self) -> None:
        """Stack the distinct direction sets of the active rows, so that one product serves them all."""
        wanted: dict[int, Tensor] = {}
        for job in self._active:
            capture = job.row.capture
            if capture is not None and (capture.response_mean or capture.per_token):
                wanted.setdefault(id(capture.directions), capture.directions)
        self._directions = [wanted[key] for key in sorted(wanted)]
        self._offsets = {}
        offset = 0
        for item in self._directions:
            self._offsets[id(item)] = offset
            offset += item.shape[0]
        self._stacked = self._stack(tuple(sorted(wanted)))

    def _stack(self, key: tuple[int, ...]) -> Tensor | None:
        """The active sets in one tensor, which is the same one whenever the same sets are active again."""
        if not key:
            return None
        if key not in self._stacks:
            stacked = torch.cat(self._directions).to(self.loaded.device, torch.float32).transpose(0, 1).contiguous()
            self._stacks[key] = (self._directions, stacked)
            if len(self._stacks) > STACKS:
                self._stacks.popitem(last=False)
        self._stacks.move_to_end(key)
        return self._stacks[key][1]

    def _sample(self, jobs: list[_Job], logits: Tensor) -> list[int]:
        """Give each job its next token; returns which of them are finished and need no further pass."""
        settings = [job.row.sampling for job in jobs if job.row.sampling is not None]
        chosen = sample(logits, settings, [float(job.draws[job.n_sampled]) for job in jobs]).tolist()
        finished = []
        for index, (job, options, token) in enumerate(zip(jobs, settings, chosen, strict=True)):
            job.n_sampled += 1
            if token in self.loaded.eos_ids and not options.ignore_eos:
                job.stop = "stop"
                finished.append(index)
                continue
            job.tokens.append(token)
            if options.logprobs:
                ranked = torch.log_softmax(logits[index], -1)
                job.logprobs.append(float(ranked[token]))
                job.top.append(tuple(top_logprobs(logits[index], options.top_logprobs)) if options.top_logprobs else ())
            if options.stop_strings and self._cut_at_stop(job, options.stop_strings):
                job.stop = "stop"
            elif job.n_sampled >= job.budget:
                job.stop = "max_tokens" if job.budget == options.max_tokens else "model_length"
            else:
                continue
            capture = job.row.capture
            # The last token was never an input: one more pass reads its residual stream.
            job.draining = capture is not None and (capture.response_mean or capture.per_token)
            if not job.draining:
                finished.append(index)
        return finished

    def _cut_at_stop(self, job: _Job, stops: tuple[str, ...]) -> bool:
        tail = self.loaded.tokenizer.decode(job.tokens[-(8 + max(map(len, stops))) :])
        return any(stop in tail for stop in stops)


class _DeepEnoughError(Exception):
    """Ends a pass at the last layer that its rows need; caught where the pass was begun."""


def _end_at(depth: int, layer: int, _hidden: Tensor) -> None:
    if layer == depth:
        raise _DeepEnoughError


@dataclass(frozen=True, eq=False)
class _Captured:
    """Tokens of one prefill that are projected on one set of directions.

    Attributes:
        captures: (row of the pass, job, what it asks for).
        lengths: how many tokens of each, in the same order.
        rows, tokens: of each captured token, where it is in the pass, `(n_tokens,)`.
        directions: `(n_directions, n_layers + 1, d_model)`.
        values: `(n_tokens, n_directions, n_layers + 1)`, on the model's device; one transfer brings all of a pass.
    """

    captures: list[tuple[int, _Job, Capture]]
    lengths: list[int]
    rows: Tensor
    tokens: Tensor
    directions: Tensor
    values: Tensor


class _Reader:
    """Takes what rows asked for from the residual streams of one prefill."""

    def __init__(self, jobs: list[_Job], starts: list[int], hooks: ResidualHooks, device: torch.device) -> None:
        self.jobs, self.starts, self.n_layers, self.device = jobs, starts, hooks.n_layers, device
        self.captures = [(index, job, job.row.capture) for index, job in enumerate(jobs) if job.row.capture is not None]
        self.means = [(index, job) for index, job in enumerate(jobs) if job.row.hidden_means]
        self.readings = [(index, job, job.row.reading) for index, job in enumerate(jobs) if job.row.reading is not None]
        every = range(self.n_layers + 1) if self.captures or self.means else ()
        self._layers = {*every, *(layer for _index, _job, reading in self.readings for layer in reading.layers)}
        self.wanted = bool(self._layers)
        self.depth = jobs[0].depth if len({job.depth for job in jobs}) == 1 else 0
        # Named, because loading other weights changes the default dtype of the process for a while.
        zeros = partial(torch.zeros, dtype=torch.float32, device=device)
        self._read = {
            index: torch.zeros(
                len(reading.spans), len(reading.layers), hooks.d_model, dtype=torch.float32, device=device
            )
            for index, _job, reading in self.readings
        }
        self._shared = self._sharing(device)
        self._products: dict[tuple[int, int], Tensor] = {}
        self._captured = self._capturing(zeros)
        self._hidden = {index: zeros(3, self.n_layers + 1, hooks.d_model) for index, _ in self.means}
        self._norms = {index: zeros(self.n_layers + 1) for index, _ in self.means}

    def _sharing(self, device: torch.device) -> list[tuple[Tensor, set[int], list[int]]]:
        """(directions, layers, rows of the pass) of each set of directions that readings hold."""
        shared: dict[int, tuple[Tensor, set[int], list[int]]] = {}
        for index, _job, reading in self.readings:
            if reading.directions is not None:
                held = shared.setdefault(id(reading.directions), (reading.directions.to(device), set(), []))
                held[1].update(reading.layers)
                held[2].append(index)
        return list(shared.values())

    def _capturing(self, zeros: Callable[..., Tensor]) -> list[_Captured]:
        """The tokens that are captured, by set of directions."""
        sets: dict[int, list[tuple[int, _Job, Capture]]] = {}
        for item in self.captures:
            sets.setdefault(id(item[2].directions), []).append(item)
        found = []
        for items in sets.values():
            spans = [self._span(index, job, capture) for index, job, capture in items]
            places = [(index, at) for (index, _, _), span in zip(items, spans, strict=True) for at in range(*span)]
            rows, tokens = torch.tensor(places, device=self.device).unbind(1)
            directions = items[0][2].directions.to(self.device)
            values = zeros(len(places), len(directions), self.n_layers + 1).fill_(math.nan)
            found.append(_Captured(items, [last - first for first, last in spans], rows, tokens, directions, values))
        return found

    def _span(self, index: int, job: _Job, capture: Capture) -> tuple[int, int]:
        prompt = len(job.row.prompt) - self.starts[index]
        return 0 if capture.prompt_mean else prompt - 1, len(job.given) - self.starts[index]

    def __call__(self, layer: int, hidden: Tensor) -> None:
        if layer in self._layers:
            self._read_layer(layer, hidden.float())
        if layer and layer == self.depth:
            raise _DeepEnoughError

    def _read_layer(self, layer: int, hidden: Tensor) -> None:
        if layer:
            for item in self._captured:
                item.values[:, :, layer] = project(hidden[item.rows, item.tokens], item.directions[:, layer])
        for index, job in self.means:
            prompt, total = len(job.row.prompt), len(job.given)
            out = self._hidden[index]
            out[0, layer] = hidden[index, prompt - 1]
            out[1, layer] = hidden[index, :prompt].mean(0)
            if total > prompt:
                out[2, layer] = hidden[index, prompt:total].mean(0)
                self._norms[index][layer] = hidden[index, prompt:total].norm(dim=-1).mean()
        for index, _job, reading in self.readings:
            if layer in reading.layers:
                shift = self.starts[index]
                for place, (first, last) in enumerate(reading.spans):
                    mean = hidden[index, first - shift : last - shift].mean(0)
                    self._read[index][place, reading.layers.index(layer)] = mean
        for place, (directions, layers, rows) in enumerate(self._shared):
            if layer in layers:
                whole = len(rows) == len(hidden)
                self._products[place, layer] = project(hidden if whole else hidden[rows], directions[:, layer])

    def deliver(self) -> None:
        for item in self._captured:
            everything, first = item.values.cpu().numpy(), 0
            for (_index, job, capture), n in zip(item.captures, item.lengths, strict=True):
                values, first = everything[first : first + n], first + n
                # The span starts at the row's first token for a mean over the prompt, else at the prompt's last one.
                prompt = n - len(job.row.continuation)
                job.prompt_last = values[prompt - 1].copy()  # a result outlives its pass
                if capture.prompt_mean:
                    job.prompt_mean = values[:prompt].mean(0)
                if capture.response_mean or capture.per_token:
                    job.response += list(values[prompt:])
        for index, job in self.means:
            job.hidden = self._hidden[index].cpu().numpy()
            job.norms = self._norms[index].cpu().numpy()
        for index, job, _reading in self.readings:
            job.read = self._read[index].cpu().numpy()
        for place, (_directions, layers, rows) in enumerate(self._shared):
            order = sorted(layers)
            # `(rows, tokens, n_directions, n_layers)`
            products = torch.stack([self._products[place, layer] for layer in order], -1).cpu().numpy()
            for index, values in zip(rows, products, strict=True):
                job, reading = self.jobs[index], self.jobs[index].row.reading
                assert reading is not None
                first, last = job.row.shared_prefix - self.starts[index], len(job.given) - self.starts[index]
                job.products = values[first:last, :, [order.index(layer) for layer in reading.layers]]


def _log_total(logits: Tensor) -> Tensor:
    """Log of the summed exponentials of each row; overwrites `logits`, which may be large."""
    top = logits.amax(-1, keepdim=True)
    return logits.sub_(top).exp_().sum(-1).log_() + top[:, 0]


def _no_embedding(values: np.ndarray) -> np.ndarray:
    out = values.copy()
    out[:, 0] = np.nan
    return out


def _position_masks(jobs: list[_Job], starts: list[int], width: int) -> Tensor:
    """`(3, rows, width, 1)` float32: where `response`, `prompt` and `all` interventions act."""
    position = torch.tensor(starts)[:, None] + torch.arange(width)
    prompts = torch.tensor([len(job.row.prompt) for job in jobs])[:, None]
    totals = torch.tensor([len(job.given) for job in jobs])[:, None]
    valid = position < totals
    return torch.stack([valid & (position >= prompts - 1), position < prompts, valid]).float()[..., None]
