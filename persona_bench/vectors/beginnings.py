"""Which beginnings of token sequences are worth a pass of their own, as several have them in common; and that pass."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TypeVar

from persona_bench.models.engine import Engine
from persona_bench.models.rows import Reading, Row, RowResult

Tokens = tuple[int, ...]
Seen = TypeVar("Seen")

LEAST = 8  # tokens by which a beginning must be longer than the one it stands on
MOST_TOKENS = 2**14  # in all beginnings of one lot of sequences, whose keys and values are held together


@dataclass(frozen=True)
class Shared:
    """Beginnings of some sequences.

    Attributes:
        stands_on: beginning -> the longest other one that it begins with, or (); a beginning after what it stands on.
        of: for each sequence, in their order, the longest beginning that it has, or ().
    """

    stands_on: dict[Tokens, Tokens]
    of: tuple[Tokens, ...]

    def levels(self) -> Iterator[list[Tokens]]:
        """The beginnings in lots, each after all that its own stand on."""
        done: set[Tokens] = {()}
        left = dict(self.stands_on)
        while left:
            level = [one for one, below in left.items() if below in done]
            yield level
            done.update(level)
            left = {one: below for one, below in left.items() if one not in done}


def pass_beginnings(
    engine: Engine,
    shared: Shared,
    reading: Callable[[Tokens, Tokens], Reading],
    add: Callable[[Seen, RowResult, int], Seen],
    known: Mapping[Tokens, Seen],
) -> dict[Tokens, Seen]:
    """What each beginning shows, passed once unless it is known; the engine keeps its keys and values.

    Args:
        engine: of the model.
        shared: the beginnings.
        reading: beginning and what it stands on -> what is read of the tokens after that.
        add: what a beginning stands on shows, the result of that reading, number of tokens read -> what it shows.
        known: of the empty beginning, and of any others.
    """
    found = {one: known[one] for one in ((), *shared.stands_on) if one in known}
    for level in shared.levels():
        new = [one for one in level if one not in found]
        below = [shared.stands_on[one] for one in new]
        rows = [
            Row(one, reading=reading(one, under), shared_prefix=len(under), kept=True)
            for one, under in zip(new, below, strict=True)
        ]
        for one, under, result in zip(new, below, engine.run(rows), strict=True):
            found[one] = add(found[under], result, len(one) - len(under))
    return found


def shared_beginnings(sequences: Sequence[Tokens], most_tokens: int = MOST_TOKENS) -> Shared:
    """The beginnings that at least two sequences have, none of them a whole sequence.

    Those of most sequences come first, until they hold `most_tokens`.
    """
    order = sorted(range(len(sequences)), key=sequences.__getitem__)
    ordered = [sequences[place] for place in order]
    nodes = sorted(_nodes(ordered), key=lambda node: (node[1] - node[2], node[0], node[1]))
    stands_on: dict[Tokens, Tokens] = {}
    of: list[Tokens] = [()] * len(ordered)
    left = most_tokens
    for length, first, last in nodes:
        # Nodes are nested and a wider one comes before those in it, so all sequences of this one have the same by now.
        below = of[first]
        if length - len(below) < LEAST or length > left:
            continue
        one = ordered[first][:length]
        stands_on[one] = below
        of[first:last] = [one] * (last - first)
        left -= length
    return Shared(stands_on, tuple(of[place] for place in sorted(range(len(order)), key=order.__getitem__)))


def part(sequences: Mapping[int, Tokens], n: int, least: int) -> list[dict[int, Tokens]]:
    """Sequences in `n` shares that take about as long, fewer where a share would have less than `least` tokens to pass.

    Those that begin alike stay together, as what they have in common is passed once a share.
    """
    ordered = sorted(sequences, key=sequences.__getitem__)
    before = ((), *(sequences[index] for index in ordered))
    new = [
        len(sequences[index]) - _agree(below, sequences[index]) for below, index in zip(before, ordered, strict=False)
    ]
    passed = list(accumulate(new))
    n = max(1, min(n, passed[-1] // least)) if passed else 0
    cuts = [bisect_left(passed, passed[-1] * place / n) for place in range(n)]
    return [
        {index: sequences[index] for index in ordered[first:last]} for first, last in pairwise([*cuts, len(ordered)])
    ]


def _nodes(ordered: Sequence[Tokens]) -> Iterator[tuple[int, int, int]]:
    """(length, first, last) of every stretch of sorted sequences that share a longer beginning than with others."""
    open_: list[tuple[int, int]] = []
    for place, length in enumerate([*(_agree(a, b) for a, b in pairwise(ordered)), 0], 1):
        first = place - 1
        while open_ and open_[-1][0] > length:
            longer, first = open_.pop()
            yield longer, first, place
        if length and (not open_ or open_[-1][0] < length):
            open_.append((length, first))


def _agree(a: Tokens, b: Tokens) -> int:
    """How many tokens two sequences begin with in common, at least one of each left over."""
    most = min(len(a), len(b)) - 1
    return next((place for place in range(most) if a[place] != b[place]), max(most, 0))
