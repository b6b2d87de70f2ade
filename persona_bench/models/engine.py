"""Batched generation, scoring and capture: one loop, in which every row keeps its own settings.

Rows wait, are admitted into free slots (a prefill), decode together one token a step, and leave when they finish; a
waiting row then takes the place. A prompt prefix that rows share is prefilled once and kept. Because a row's numbers
never depend on its neighbours (see `attention`), none of that scheduling can change a result.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
import torch
from torch import Tensor

from persona_bench.errors import DataError, ModelError
from persona_bench.models.attention import PassingCache, SlotCache
from persona_bench.models.capturing import DeepEnoughError, PrefillReader, end_at, no_embedding, position_masks
from persona_bench.models.decoding import Decoding
from persona_bench.models.layers import accelerated
from persona_bench.models.loaded import LoadedModel
from persona_bench.models.prefixes import PrefixStore
from persona_bench.models.rows import Job, Reading, Row, RowResult
from persona_bench.models.sampling import sample, top_logprobs
from persona_bench.models.steering import ResidualHooks

logger = logging.getLogger(__name__)

SLOTS, PREFILL_TOKENS = 64, 2048
GPU_SLOTS, GPU_PREFILL_TOKENS = 256, 16384  # more rows take a GPU little longer
MIN_WIDTH = 2  # a matrix product with a single row takes another kernel, with another rounding
LENGTH_STEP = 64  # rows to decode together whose lengths differ by less are batched as if they were alike
PASSED_STEP = 512  # so are others, that attend to the longest among them once
LONE_ROWS = 16  # passes of fewer rows, and of few tokens, are filled with shorter rows rather than left small
STACKS = 8  # sets of capture directions that are kept together
HEAD_ROWS = 256  # rows of the vocabulary projection done at once, to bound its float32 copy


def _like(job: Job) -> tuple[object, ...]:
    """Sorts rows so that those that share a pass well are neighbours.

    Rows that are only read leave no slot behind, so what is new of them counts; others also by the length of the whole.
    """
    step = LENGTH_STEP if job.row.sampling is not None else PASSED_STEP
    return job.depth, 0 if job.depth else len(job.given) // step, job.suffix, job.prefix


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
        self.token_budget, self.prefix_bytes = token_budget or tokens, prefix_bytes
        self.prefill_tokens = 0
        self.decoded_tokens = 0
        self._inbox: deque[Job] = deque()
        self._waiting: list[Job] = []
        self._active: list[Job] = []
        self._cache: SlotCache | None = None
        self._prefixes = PrefixStore(prefix_bytes)
        self._directions: list[Tensor] = []
        self._stacks: OrderedDict[tuple[int, ...], tuple[list[Tensor], Tensor]] = OrderedDict()
        self._offsets: dict[int, int] = {}
        self._stacked: Tensor | None = None
        self.hooks = ResidualHooks(self.loaded.blocks, loaded.d_model, self.max_batch + 1, loaded.device)
        self._decoding = Decoding(self.loaded, self.hooks)
        self._halted = threading.Event()

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
        job = Job(row, limit)
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
        """Run rows to the end and return their results in order; `on_done` is told how many are finished.

        Raises:
            InterruptedError: after `halt`.
            What `submit` raises.
        """
        futures = [self.submit(row) for row in rows]
        done = 0
        while self.busy:
            if self._halted.is_set():
                raise InterruptedError("this engine was halted")
            self.step()
            if on_done is not None:
                finished = sum(future.done() for future in futures)
                if finished != done:
                    done = finished
                    on_done(done)
        return [future.result() for future in futures]

    def halt(self) -> None:
        """From another thread: end a run after the step that it is at. The engine is of no use afterwards."""
        self._halted.set()

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

    def _reset(self) -> list[Job]:
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
        except Exception:
            for job in chunk:
                if job not in self._active:
                    job.reset()
                    self._inbox.append(job)
            raise

    def _take(self, free: int) -> list[Job]:
        chunk: list[Job] = []
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

    def _cache_for(self, depth: int, low: int, rows: int, reach: int, kept: bool) -> tuple[SlotCache, int]:
        """The cache of a prefill and its first slot there.

        That of rows that are only read is no larger than they are, and holds no more layers than are `kept`.
        """
        if not depth:
            return self._ensure_room(reach), low
        return SlotCache(depth, rows, reach) if kept else PassingCache(rows, reach), 0

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
            cache, first = self._cache_for(depth, low, len(chunk), max(starts) + max(MIN_WIDTH, width), True)
            self._write_prefixes(cache, first, [roots[prefix] for prefix in chunk], depth)
            suffixes = [prefix[start:] for prefix, start in zip(chunk, starts, strict=True)]
            hidden = self._forward(cache, first, low, starts, suffixes, None, depth)
            if hidden.numel():
                last = torch.tensor([len(suffix) - 1 for suffix in suffixes], device=hidden.device)
                if not hidden[torch.arange(len(chunk), device=hidden.device), last].isfinite().all():
                    raise self._overflow()
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

    def _prefill(self, chunk: list[Job]) -> None:
        chunk.sort(key=lambda job: job.prefix)
        low, depth = len(self._active), chunk[0].depth
        starts = [len(job.prefix) for job in chunk]
        reach = max(starts) + max(MIN_WIDTH, *(job.suffix for job in chunk))
        cache, first = self._cache_for(depth, low, len(chunk), reach, any(job.keeps for job in chunk))
        for index, job in enumerate(chunk):
            self.hooks.occupy(low + index, job.row.interventions)
        self._write_prefixes(cache, first, [job.prefix for job in chunk], depth)
        hidden = self._forward(cache, first, low, starts, [job.given[len(job.prefix) :] for job in chunk], chunk)
        self._score(chunk, hidden)
        for index, job in enumerate(chunk):
            job.length = len(job.given)
            job.check_finite()
            if job.keeps and not job.overflowed:
                prompt = job.row.prompt
                self._prefixes.put(prompt, cache.read(first + index, len(prompt)), {prompt})
        self._first_tokens(chunk, hidden)
        # Rows that go on keep the slots in front; hooks and cache follow.
        staying = low
        for index, job in enumerate(chunk):
            slot = low + index
            if job.overflowed or (not job.draining and (job.stop != "scored" or job.row.sampling is None)):
                self.hooks.vacate(slot)
                self._finish(job, cache, first + index)
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
        jobs: list[Job] | None,
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
            masks = position_masks(jobs, starts, width).to(device)
            reader = PrefillReader(jobs, starts, self.hooks, device)
        self.prefill_tokens += sum(len(given) for given in inputs)
        with cache.frame(first, starts, width, device) as frame:
            self.hooks.begin(low, low + rows, masks, None)
            if reader is not None and reader.wanted:
                self.hooks.reader = reader
            elif depth:
                self.hooks.reader = partial(end_at, depth)
            try:
                output = self.loaded.decoder(
                    input_ids=tokens.to(device),
                    # What only fills a row up may lie beyond the context, where positions mean other things or none.
                    position_ids=frame.positions.clamp(max=self.loaded.max_length - 1),
                    past_key_values=cache,
                    use_cache=True,
                )
                hidden: Tensor = output.last_hidden_state
            except DeepEnoughError:
                hidden = torch.empty(0, device=device)  # these rows ask for nothing that is made of it
            finally:
                self.hooks.end()
        if reader is not None:
            reader.deliver()
        return hidden

    def _score(self, chunk: list[Job], hidden: Tensor) -> None:
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

    def _first_tokens(self, chunk: list[Job], hidden: Tensor) -> None:
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
                job.response.append(no_embedding(values[index, low : low + capture.directions.shape[0]]))

    def _leave(self, finished: set[int]) -> None:
        assert self._cache is not None
        for index in sorted(finished):
            self._active[index].check_finite()
            self._finish(self._active[index], self._cache, index)
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

    def _finish(self, job: Job, cache: SlotCache, slot: int) -> None:
        """Give a job its result, or tell it that its activations overflowed and leave nothing of them in its slot."""
        if job.overflowed:
            cache.clear(slot)
            job.future.set_exception(self._overflow(bool(job.row.interventions)))
        else:
            job.finish()

    def _overflow(self, steered: bool = False) -> ModelError:
        dtype = str(self.loaded.dtype).removeprefix("torch.")
        said = f"activations of {self.loaded.name} are not finite in {dtype}"
        if steered:
            return ModelError(f"{said} under steering; take a smaller coefficient")
        hint = "its weights may be broken" if dtype == "float32" else "load it in another dtype"
        return ModelError(f"{said}; {hint}")

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

    def _sample(self, jobs: list[Job], logits: Tensor) -> list[int]:
        """Give each job its next token; returns which of them are finished and need no further pass."""
        settings = [job.row.sampling for job in jobs if job.row.sampling is not None]
        chosen = sample(logits, settings, [float(job.draws[job.n_sampled]) for job in jobs]).tolist()
        finished = []
        for index, (job, options, token) in enumerate(zip(jobs, settings, chosen, strict=True)):
            if token < 0:
                job.overflowed = True
                finished.append(index)
                continue
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

    def _cut_at_stop(self, job: Job, stops: tuple[str, ...]) -> bool:
        tail = self.loaded.tokenizer.decode(job.tokens[-(8 + max(map(len, stops))) :])
        return any(stop in tail for stop in stops)


def _log_total(logits: Tensor) -> Tensor:
    """Log of the summed exponentials of each row; overwrites `logits`, which may be large."""
    top = logits.amax(-1, keepdim=True)
    return logits.sub_(top).exp_().sum(-1).log_() + top[:, 0]
