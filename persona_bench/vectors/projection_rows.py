"""Projections of a transcript's tokens -> rows of a table: by transcript, by message or by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from persona_bench.vectors.table_file import Column, Value
from persona_bench.vectors.transcripts import Transcript

COLUMNS = ("index", "layer", "prompt_last", "prompt_avg", "response_avg")
TRACE_COLUMNS = ("position", "message", "role", "token", "direction", "projection")
_OWN_COLUMNS: dict[str, tuple[Column, ...]] = {
    "transcript": tuple(Column(name, "number") for name in COLUMNS[2:]),
    "message": (
        Column("message", "integer"),
        Column("role", "text"),
        Column("n_tokens", "integer"),
        *(Column(name, "number") for name in ("mean", "last", "before")),
    ),
    "token": (
        Column("message", "integer"),
        Column("role", "text"),
        Column("position", "integer"),
        Column("token", "text"),
        Column("projection", "number"),
    ),
}
BY = tuple(_OWN_COLUMNS)
Texts = Callable[[int], str]


def columns(by: str, with_direction: bool) -> list[Column]:
    """The columns of a table by transcript, message or token, with or without one for the direction."""
    index, layer, direction = Column("index", "integer"), Column("layer", "integer"), Column("direction", "text")
    return [index, layer, *([direction] if with_direction else []), *_OWN_COLUMNS[by]]


def rows(
    item: Transcript, products: np.ndarray, layers: Sequence[int], directions: Sequence[str], by: str, text: Texts
) -> Iterator[tuple[Value, ...]]:
    """Rows of one transcript, by layer and direction.

    Args:
        item: the transcript, with its messages located unless rows are by transcript.
        products: `(n_tokens, n_directions, n_layers)`, the projection of every token, NaN where there is none.
        layers: of the last axis.
        directions: of the middle axis; where there is only one it is not in the rows.
        by: one of `BY`.
        text: token id -> its text.
    """
    made = {"transcript": _by_transcript, "message": _by_message, "token": _by_token}[by](item, products, text)
    for place, layer in enumerate(layers):
        for which, name in enumerate(directions):
            head = (item.index, layer, name) if len(directions) > 1 else (item.index, layer)
            for named, values in made:
                yield (*head, *named, *values[:, which, place].tolist())


def trace_rows(
    item: Transcript, products: np.ndarray, directions: Sequence[str], text: Texts
) -> tuple[tuple[Value, ...], ...]:
    """Rows of `TRACE_COLUMNS` of one transcript; `products` is `(n_tokens, n_directions)`."""
    owners = _owners(item)
    return tuple(
        (position, *_owner(item, owners[position]), text(token), name, float(value))
        for position, (token, values) in enumerate(zip(item.ids, products, strict=True))
        for name, value in zip(directions, values, strict=True)
    )


# What stands in a row besides its layer and direction, and the numbers: `(n_numbers, n_directions, n_layers)`.
_Made = list[tuple[tuple[Value, ...], np.ndarray]]


def _by_transcript(item: Transcript, products: np.ndarray, _text: Texts) -> _Made:
    prompt, response = products[: item.n_prompt], products[item.n_prompt :]
    return [((), np.stack([_at(prompt, len(prompt) - 1), _mean(prompt), _mean(response)]))]


def _by_message(item: Transcript, products: np.ndarray, _text: Texts) -> _Made:
    made: _Made = []
    for number, (role, (start, stop)) in enumerate(zip(item.roles, item.places, strict=True)):
        monitored = role == "assistant" and start < stop
        values = (
            _mean(products[start:stop]),
            _at(products, stop - 1 if start < stop else -1),
            _at(products, start - 1 if monitored else -1),
        )
        made.append(((number, role, stop - start), np.stack(values)))
    return made


def _by_token(item: Transcript, products: np.ndarray, text: Texts) -> _Made:
    owners = _owners(item)
    return [
        ((*_owner(item, owners[position]), position, text(token)), products[position][None])
        for position, token in enumerate(item.ids)
    ]


def _owners(item: Transcript) -> np.ndarray:
    """The number of the message each token is part of, -1 for what the template adds."""
    owners = np.full(len(item.ids), -1)
    for number, (start, stop) in enumerate(item.places):
        free = owners[start:stop] < 0
        owners[start:stop][free] = number
    return owners


def _owner(item: Transcript, number: int) -> tuple[Value, Value]:
    return (int(number), item.roles[number]) if number >= 0 else (None, None)


def _mean(values: np.ndarray) -> np.ndarray:
    empty = np.full(values.shape[1:], np.nan)
    return values.mean(0, dtype=np.float64) if len(values) else empty


def _at(values: np.ndarray, position: int) -> np.ndarray:
    return values[position] if position >= 0 else np.full(values.shape[1:], np.nan)
