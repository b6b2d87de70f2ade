"""Transcripts -> scalar projections on directions of a persona vector, by teacher forcing and in constant memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from torch import Tensor

from persona_bench.errors import DataError, VectorError
from persona_bench.files import read_jsonl
from persona_bench.models.engine import Engine
from persona_bench.models.lanes import Lanes
from persona_bench.models.rows import Reading, Row, RowResult
from persona_bench.vectors.beginnings import MOST_TOKENS, Tokens, part, pass_beginnings, shared_beginnings
from persona_bench.vectors.projection_rows import BY, COLUMNS, TRACE_COLUMNS, columns, rows, trace_rows
from persona_bench.vectors.table_file import Value, check_table_path, table_file
from persona_bench.vectors.transcripts import Transcript, read_transcripts
from persona_bench.vectors.vector import PersonaVector

__all__ = ["BY", "COLUMNS", "TRACE_COLUMNS", "Projected", "project_file", "project_transcripts", "trace_layer"]

NAMED = 10  # transcripts that do not fit are all counted, and this many of them named
SAY_SECONDS = 5.0


@dataclass(frozen=True)
class Projected:
    """What became of a file of transcripts.

    Attributes:
        n: how many it held.
        overlong: how many of them are longer than the model's context; their rows hold no numbers.
        named: the first of those, by line.
        unplaced: messages of which the model's chat template left nothing (not counted by transcript).
        trace: the tokens of the transcript that was asked for, rows of `TRACE_COLUMNS`.
    """

    n: int
    overlong: int = 0
    named: tuple[str, ...] = ()
    unplaced: int = 0
    trace: tuple[tuple[Value, ...], ...] = ()


def project_file(
    engine: Engine,
    vector: PersonaVector,
    source: Path,
    target: Path,
    layer: int | Sequence[int] | None = None,
    *,
    directions: Sequence[str] = ("persona",),
    by: str = "transcript",
    trace: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> Projected:
    """Project every transcript of a JSONL file and write a table, `.csv` or `.parquet`.

    Values are scalar projections h . v / |v|, as if the model had been given the conversation without its last
    message and had answered with that. Rows come by transcript, layer and direction; with more than one direction
    there is a column `direction`. What they hold depends on `by`:

    - `transcript`: the last prompt token's, the prompt's mean and the response's mean.
    - `message`: the mean over the message's own tokens, the last of them, and, for an assistant message, the token
      before the first: the last prompt token of that turn, where the paper monitors (section 3.3).
    - `token`: every token; `message` and `role` are empty for what the chat template adds.

    Args:
        engine: of the model the vector was made for.
        vector: holds the directions.
        source: JSONL, `{"messages": [...]}` a line; may be larger than memory.
        target: the table to write.
        layer: one or several 1-based layers; None for all where a direction is not zero.
        directions: names that `PersonaVector.direction` takes.
        by: `transcript`, `message` or `token`.
        trace: number (from 0) of the transcript whose tokens are also returned, at `trace_layer`.
        progress: told about progress.

    Raises:
        VectorError: a layer or direction that the vector does not have, a direction that is zero at a layer asked for,
            or a vector for a model of another shape.
        DataError: the input is broken, the output cannot be written, or the transcript to trace is not there or does
            not fit the model's context.
    """
    vector.check_shape(engine.hooks.n_layers, engine.hooks.d_model)
    if by not in BY:
        raise DataError(f"cannot project by {by!r}; choose one of {', '.join(BY)}")
    check_table_path(target)
    names = tuple(dict.fromkeys(directions))
    layers = _layers(vector, layer, names)
    unit = torch.stack([torch.nn.functional.normalize(vector.direction(name), dim=-1) for name in names])
    nowhere = ~unit[:, list(layers)].any(dim=-1).numpy()  # (n_directions, n_layers): no direction to project on
    if trace is not None:
        _check_is_there(source, trace)
    text = _token_text(engine)
    n = n_overlong = n_unplaced = 0
    named: list[str] = []
    traced: tuple[tuple[Value, ...], ...] = ()
    with table_file(target, columns(by, len(names) > 1)) as write:
        chunks = read_transcripts(source, engine.loaded.tokenizer, located=by != "transcript" or trace is not None)
        for item, found in project_transcripts(engine, chunks, unit, layers, progress):
            products = np.where(nowhere, np.float32(np.nan), found) if nowhere.any() else found
            write(rows(item, products, layers, names, by, text))
            n += 1
            n_unplaced += item.unplaced
            overlong = len(item.ids) > engine.loaded.max_length
            n_overlong += overlong
            if overlong and len(named) < NAMED:
                named.append(f"{item.where} ({len(item.ids)} tokens)")
            if item.index == trace:
                if overlong:
                    raise DataError(
                        f"{item.where}: {len(item.ids)} tokens do not fit the model's context of "
                        f"{engine.loaded.max_length}, so there is nothing to plot; choose another transcript"
                    )
                traced = trace_rows(item, products[:, :, layers.index(trace_layer(vector, layers))], names, text)
        if trace is not None and not traced:
            raise DataError(f"{source} has no transcript {trace}: it holds {n}, counted from 0")
    return Projected(n, n_overlong, tuple(named), n_unplaced, traced)


def project_transcripts(
    engine: Engine,
    chunks: Iterator[list[Transcript]],
    directions: Tensor,
    layers: Sequence[int],
    progress: Callable[[str], None] | None = None,
) -> Iterator[tuple[Transcript, np.ndarray]]:
    """Each transcript with the scalar products of its tokens, `(n_tokens, n_directions, n_layers)` float32.

    One pass a transcript, in batches of like length. It ends at the last layer asked for, never runs the vocabulary
    projection and keeps no residual stream; what several transcripts of a chunk begin with is passed once. On a
    processor a chunk is parted among engines side by side (`models.lanes`). On an x86 CPU none of that changes a bit of
    the residual stream; the products with directions round by the shape of their pass. Transcripts longer than the
    model's context have NaN for every token.

    Args:
        engine: of the model.
        chunks: as `read_transcripts` gives them; a chunk is in memory at a time.
        directions: `(n_directions, n_layers + 1, d_model)` float32, unit vectors for scalar projections.
        layers: 1-based layers.
        progress: told how many transcripts are done, after each chunk and at most every few seconds.
    """
    reading = Reading(tuple(layers), directions=directions)
    lanes, say = Lanes(engine), _Progress(progress)
    known: dict[Tokens, np.ndarray] = {(): np.zeros((0, len(directions), len(layers)), np.float32)}
    for chunk in chunks:
        fitting = {item.index: item.ids for item in chunk if len(item.ids) <= engine.loaded.max_length}
        shares = part(fitting, lanes.n, lanes.tokens)
        passed = lanes.run(
            [
                partial(_pass, share, MOST_TOKENS // len(shares), reading, known, partial(say, lane))
                for lane, share in enumerate(shares)
            ]
        )
        known = {beginning: seen for lane in passed for beginning, seen in lane[0].items()} or known
        products = {index: found for lane in passed for index, found in lane[1].items()}
        for item in chunk:
            if len(item.ids) > engine.loaded.max_length:
                # A view that takes no memory, however long the transcript.
                yield item, np.broadcast_to(np.float32(np.nan), (len(item.ids), len(directions), len(layers)))
                continue
            beginning, result = products.pop(item.index)
            yield item, _with_products(known[beginning], result)
        say.add(len(chunk))


def _pass(
    sequences: dict[int, Tokens],
    most_tokens: int,
    reading: Reading,
    known: dict[Tokens, np.ndarray],
    say: Callable[[int], None],
    engine: Engine,
) -> tuple[dict[Tokens, np.ndarray], dict[int, tuple[Tokens, RowResult]]]:
    """What the beginnings that sequences share show; and for each sequence its beginning and what was read after it."""
    shared = shared_beginnings(list(sequences.values()), most_tokens)
    found = pass_beginnings(engine, shared, lambda *_: reading, _with_products, known)
    rows = [
        Row(ids, reading=reading, shared_prefix=len(own))
        for ids, own in zip(sequences.values(), shared.of, strict=True)
    ]
    return found, dict(zip(sequences, zip(shared.of, engine.run(rows, say), strict=True), strict=True))


def _with_products(before: np.ndarray, result: RowResult, _n: int = 0) -> np.ndarray:
    """The products `(n_tokens, n_directions, n_layers)` with those of the tokens after them."""
    assert result.products is not None
    return np.concatenate([before, result.products])


def trace_layer(vector: PersonaVector, layers: Sequence[int]) -> int:
    """The layer of a trace: the first asked for where the vector is not zero, or the middle one where all are."""
    held = [layer for layer in layers if bool(vector.directions["persona"][layer].any())] or layers
    return held[0] if len(held) < vector.n_layers else max(1, vector.n_layers // 2)


def _layers(vector: PersonaVector, layer: int | Sequence[int] | None, names: Sequence[str]) -> tuple[int, ...]:
    asked = () if layer is None else (layer,) if isinstance(layer, int) else tuple(dict.fromkeys(layer))
    for each in asked:
        for name in names:
            vector.check_direction(each, name)
    if asked:
        return asked
    whole = torch.stack([vector.direction(name) for name in names])
    held = tuple(layer for layer in range(1, vector.n_layers + 1) if bool(whole[:, layer].any()))
    if not held:
        raise VectorError(f"{', '.join(names)} of the {vector.trait} vector is zero at every layer; make it again")
    return held


def _check_is_there(source: Path, number: int) -> None:
    """Refuse to trace a transcript that a file does not hold before all of it is projected; pipes are read once."""
    if source.is_file() or number < 0:
        n = sum(1 for _ in islice(read_jsonl(source), max(number, 0) + 1))
        if not 0 <= number < n:
            raise DataError(f"{source} has no transcript {number}: it holds {n}, counted from 0")


def _token_text(engine: Engine) -> Callable[[int], str]:
    @cache
    def text(token: int) -> str:
        return str(engine.loaded.tokenizer.decode([token]))

    return text


class _Progress:
    """Tells how many transcripts are done: after each chunk, and within one every few seconds at most."""

    def __init__(self, tell: Callable[[str], None] | None) -> None:
        self._tell, self._before, self._told = tell, 0, time.monotonic()
        self._lanes: dict[int, int] = {}
        self._lock = Lock()

    def __call__(self, lane: int, n: int) -> None:
        with self._lock:
            self._lanes[lane] = n
            if time.monotonic() - self._told >= SAY_SECONDS:
                self._say(self._before + sum(self._lanes.values()))

    def add(self, n: int) -> None:
        """A chunk of `n` is done."""
        self._before += n
        self._lanes.clear()
        self._say(self._before)

    def _say(self, n: int) -> None:
        if self._tell is not None:
            self._tell(f"{n} transcripts")
        self._told = time.monotonic()
