"""What is asked of the engine and what it gives: a row, its state on the way, its result."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from torch import Tensor

from persona_bench.models.sampling import Sampling, uniforms
from persona_bench.models.steering import Capture, Intervention

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


class Job:
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
        self.overflowed = False
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
        """Given tokens after the shared prefix."""
        return len(self.given) - len(self.prefix)

    @property
    def depth(self) -> int:
        """The last layer this row needs where it needs nothing above it, else 0: no layer is the last one needed."""
        row = self.row
        more = row.continuation or row.alternatives or row.sampling or row.capture or row.hidden_means
        return 0 if more or row.reading is None else max(row.reading.layers)

    @property
    def room(self) -> int:
        """Positions that it may take in the cache."""
        return len(self.given) + self.budget + 1

    def check_finite(self) -> None:
        """Set `overflowed` where something that was gathered is not finite; embeddings are never captured (NaN)."""
        captured = [*self.response, *(item for item in (self.prompt_last, self.prompt_mean) if item is not None)]
        gathered = [item[:, 1:] for item in captured] + [np.array(self.scores)]
        gathered += [item for item in (self.read, self.products, self.hidden) if item is not None]
        self.overflowed |= not all(np.isfinite(item).all() for item in gathered)

    def finish(self) -> None:
        """Resolve the future with what was gathered."""
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
