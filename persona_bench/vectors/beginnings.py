"""Which beginnings of token sequences are worth a pass of their own: those that enough sequences have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

Tokens = tuple[int, ...]

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
