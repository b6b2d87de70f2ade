"""What sequences begin with in common: found wherever it is worth a pass, and never a whole sequence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some

from persona_bench.vectors import beginnings
from persona_bench.vectors.beginnings import LEAST, part, shared_beginnings

HEAD, ASKED = tuple(range(100, 120)), tuple(range(200, 210))


def test_a_head_and_the_questions_that_stand_on_it() -> None:
    rows = [HEAD + ASKED + (n,) for n in range(3)] + [HEAD + (7, n) for n in range(3)] + [(1, 2, 3)]
    found = shared_beginnings(rows)
    assert found.stands_on == {HEAD: (), HEAD + ASKED: HEAD}
    assert list(found.of) == [HEAD + ASKED] * 3 + [HEAD] * 3 + [()]
    assert list(found.levels()) == [[HEAD], [HEAD + ASKED]]


def test_equal_sequences_leave_each_a_token() -> None:
    found = shared_beginnings([HEAD, HEAD, HEAD + (1,)])
    assert set(found.of) == {HEAD[:-1]} and list(found.stands_on) == [HEAD[:-1]]


def test_those_of_most_sequences_come_first_where_room_is_scarce() -> None:
    rows = [HEAD + (n,) for n in range(5)] + [ASKED + (n,) for n in range(2)]
    assert list(shared_beginnings(rows, len(HEAD)).stands_on) == [HEAD]
    assert list(shared_beginnings(rows, len(ASKED)).stands_on) == [ASKED]
    assert not shared_beginnings(rows, LEAST - 1).stands_on and not shared_beginnings([]).of


@given(some.lists(some.lists(some.integers(0, 1), min_size=1, max_size=12).map(tuple), max_size=12))
def test_every_sequence_has_its_longest_shared_beginning(rows: list[tuple[int, ...]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beginnings, "LEAST", 1)
        found = shared_beginnings(rows)
    for row, own in zip(rows, found.of, strict=True):
        longest = max((n for n in range(len(row)) if sum(len(x) > n and x[:n] == row[:n] for x in rows) > 1), default=0)
        assert own == row[:longest]
    for one, below in found.stands_on.items():
        assert one[: len(below)] == below and len(below) < len(one) and (not below or below in found.stands_on)


@given(some.lists(some.lists(some.integers(0, 2), min_size=1, max_size=9).map(tuple), max_size=30), some.integers(1, 5))
def test_shares_hold_every_sequence_once_in_order(rows: list[tuple[int, ...]], n: int) -> None:
    shares = part(dict(enumerate(rows)), n, 4)
    assert sorted(index for share in shares for index in share) == list(range(len(rows)))
    inside = [row for share in shares for row in share.values()]
    assert inside == sorted(rows)
    assert len(shares) == (max(1, min(n, _new(inside) // 4)) if rows else 0)
    for share in shares:
        longest = max(map(len, rows))
        assert abs(_new(list(share.values())) - _new(inside) / len(shares)) <= 3 * longest


def _new(ordered: list[tuple[int, ...]]) -> int:
    """Tokens after what a sequence has in common with the one before it, and at least one of each."""
    total = 0
    for below, row in zip([(), *ordered], ordered, strict=False):
        most = min(len(below), len(row)) - 1
        total += len(row) - next((place for place in range(most) if below[place] != row[place]), max(most, 0))
    return total
