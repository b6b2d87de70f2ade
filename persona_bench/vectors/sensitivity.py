"""How much a vector depends on the method's own choices: the same readings averaged in other ways.

Every row is one other vector with its cosine to the one of the run (or, of splits, to the other half). All follow from
the readings of one pass, so no choice is mixed up with other responses, but for other descriptions and questions.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from persona_bench.definitions.outcomes import FILTERS, UNFILTERED, AnyFilter, Filter
from persona_bench.vectors.extraction import Rollout, drop_reasons
from persona_bench.vectors.readings import POSITIONS, Readings

SMALLEST = 4
"""The learning curve begins at so many responses a side."""
SAME_NUMBER = ", same number"
"""After the name of a description: as many of the run's own responses, drawn at random."""
EACH_OTHER = ", each other"
"""After the name of several descriptions or question sets: every two of them."""
_MEMBER = {"description": "pair", "questions": "question_id"}
"""What of a response says which description or question it belongs to."""
Row = dict[str, Any]


def kept_by(items: Sequence[Rollout], rule: AnyFilter) -> np.ndarray:
    """Which responses a filter keeps, `(n,)` bool."""
    return np.array([not reason for reason in drop_reasons(items, rule)], bool)


def sensitivity_rows(
    readings: Readings, refusal: np.ndarray, rule: Filter, layer: int, draws: int, rng: np.random.Generator
) -> list[Row]:
    """The rows of every choice that the readings of one trait decide.

    Args:
        readings: of all its responses.
        refusal: the refusal direction at that layer, `(d_model,)`: what unfiltered positives may be made of.
        rule: the run's filter.
        layer: the chosen one, among those read.
        draws: random subsets for each number of responses, and random splits.
        rng: of subsets and splits.

    Returns:
        Rows with aspect, setting, layer, draw, n_positive, n_negative, cosine (NaN where a side is empty) and
        norm_ratio (to the run's vector, or to the other half).
    """
    kept, positive = kept_by(readings.items, rule), _positive(readings.items)
    reference = _direction(readings.at(layer), kept, positive)
    rows = list(_of_filters(readings, layer, positive, reference, refusal))
    for other in readings.layers:
        own = _direction(readings.at(other), kept, positive)
        rows.append(_row("layer", str(other), other, kept, positive, own, reference))
        rows += [
            _row("position", name, other, kept, positive, _direction(readings.at(other, name), kept, positive), own)
            for name in POSITIONS
        ]
    if not _both(kept, positive):
        return rows
    hidden = readings.at(layer)
    rows += _of_numbers(hidden, layer, kept, positive, reference, draws, rng)
    rows += _of_splits(readings.items, hidden, layer, kept, positive, draws, rng)
    return rows


def group_rows(
    aspect: str,
    readings: Readings,
    full: Readings,
    groups: Mapping[str, Sequence[Collection[int]]],
    rule: Filter,
    layer: int,
    draws: int,
    rng: np.random.Generator,
) -> list[Row]:
    """The vector of each group of descriptions or question sets against the run's, and of each against each other.

    Beside it stand subsets of the run's own responses of that size.

    Fewer responses alone turn a vector: what a description or a set of questions does is the distance between `NAME`
    and `NAME, same number`.

    Args:
        aspect: description or questions, which says what the members of a group are: the `pair` of a response (which is
            the number of its description), or its `question_id`.
        readings: of the responses under other descriptions, or to other questions.
        full: of the run's own responses.
        groups: name -> what is compared with each other in it, each as the ids that belong to it.
        rule: the run's filter.
        layer: the chosen one.
        draws: random subsets.
        rng: of the subsets.
    """
    whole, of_whole = kept_by(full.items, rule), _positive(full.items)
    hidden = full.at(layer)
    reference = _direction(hidden, whole, of_whole)
    passed, positive = kept_by(readings.items, rule), _positive(readings.items)
    member = np.array([getattr(item, _MEMBER[aspect]) for item in readings.items], int)
    told = readings.at(layer)
    rows: list[Row] = []
    for name, parts in groups.items():
        of_part = [passed & np.isin(member, list(ids)) for ids in parts]
        for draw, (first, second) in enumerate(combinations(of_part, 2)):
            rows.append(_split(aspect, f"{name}{EACH_OTHER}", told, layer, first, second, positive, draw))
        kept = np.logical_or.reduce(of_part)
        own = _direction(told, kept, positive)
        rows.append(_row(aspect, name, layer, kept, positive, own, reference))
        if not _both(kept, positive) or not _both(whole, of_whole):
            continue
        sizes = [min(int((kept & side).sum()), int((whole & mine).sum()))
                 for side, mine in ((positive, of_whole), (~positive, ~of_whole))]  # fmt: skip
        for draw in range(draws):
            some = _subset(whole, of_whole, sizes[0], sizes[1], rng)
            direction = _direction(hidden, some, of_whole)
            rows.append(_row(aspect, f"{name}{SAME_NUMBER}", layer, some, of_whole, direction, reference, draw))
    return rows


def _of_filters(
    readings: Readings, layer: int, positive: np.ndarray, reference: np.ndarray | None, refusal: np.ndarray
) -> Iterator[Row]:
    rules: tuple[AnyFilter, ...] = (*FILTERS, UNFILTERED)
    for name in rules:
        kept = kept_by(readings.items, name)
        own = _direction(readings.at(layer), kept, positive)
        yield _row("filter", name, layer, kept, positive, own, reference)
        yield _row("refusal", name, layer, kept, positive, own, refusal)


def _of_numbers(
    hidden: np.ndarray,
    layer: int,
    kept: np.ndarray,
    positive: np.ndarray,
    reference: np.ndarray | None,
    draws: int,
    rng: np.random.Generator,
) -> Iterator[Row]:
    """The learning curve: random subsets of as many responses on either side, and at last all of them."""
    most = min(int((kept & positive).sum()), int((kept & ~positive).sum()))
    n = SMALLEST
    while n < most:
        for draw in range(draws):
            some = _subset(kept, positive, n, n, rng)
            own = _direction(hidden, some, positive)
            yield _row("responses", str(n), layer, some, positive, own, reference, draw)
        n *= 2
    yield _row("responses", "all", layer, kept, positive, _direction(hidden, kept, positive), reference)


def _of_splits(
    items: Sequence[Rollout],
    hidden: np.ndarray,
    layer: int,
    kept: np.ndarray,
    positive: np.ndarray,
    draws: int,
    rng: np.random.Generator,
) -> Iterator[Row]:
    """Halves against each other: what another seed of the rollouts would have given, with half as many responses."""
    epoch = np.array([item.epoch for item in items])
    if len(set(epoch)) > 1:
        odd = kept & (epoch % 2 == 1)
        yield _split("seed", "odd against even rollouts", hidden, layer, odd, kept & ~odd, positive)
    for draw in range(draws):
        sizes = [int((kept & side).sum()) // 2 for side in (positive, ~positive)]
        half = _subset(kept, positive, sizes[0], sizes[1], rng)
        yield _split("seed", "random halves", hidden, layer, half, kept & ~half, positive, draw)


def _split(
    aspect: str,
    setting: str,
    hidden: np.ndarray,
    layer: int,
    one: np.ndarray,
    other: np.ndarray,
    positive: np.ndarray,
    draw: int = 0,
) -> Row:
    first, second = (_direction(hidden, part, positive) for part in (one, other))
    return _row(aspect, setting, layer, one, positive, first, second, draw)


def _positive(items: Sequence[Rollout]) -> np.ndarray:
    return np.array([item.side == "positive" for item in items], bool)


def _both(kept: np.ndarray, positive: np.ndarray) -> bool:
    return bool((kept & positive).any() and (kept & ~positive).any())


def _subset(
    kept: np.ndarray, positive: np.ndarray, n_positive: int, n_negative: int, rng: np.random.Generator
) -> np.ndarray:
    """So many of the kept responses of each side, drawn without putting back."""
    some = np.zeros(len(kept), bool)
    for side, n in ((positive, n_positive), (~positive, n_negative)):
        some[rng.choice(np.flatnonzero(kept & side), n, replace=False)] = True
    return some


def _direction(hidden: np.ndarray, kept: np.ndarray, positive: np.ndarray) -> np.ndarray | None:
    """Mean of the kept positive minus that of the kept negative responses; None where a side is empty."""
    if not _both(kept, positive):
        return None
    difference: np.ndarray = hidden[kept & positive].mean(axis=0) - hidden[kept & ~positive].mean(axis=0)
    return difference


def _row(
    aspect: str,
    setting: str,
    layer: int,
    kept: np.ndarray,
    positive: np.ndarray,
    own: np.ndarray | None,
    other: np.ndarray | None,
    draw: int = 0,
) -> Row:
    cosine, ratio = math.nan, math.nan
    if own is not None and other is not None:
        lengths = float(np.linalg.norm(own)), float(np.linalg.norm(other))
        if min(lengths) > 0:
            cosine, ratio = float(own @ other) / (lengths[0] * lengths[1]), lengths[0] / lengths[1]
    return {
        "aspect": aspect,
        "setting": setting,
        "layer": layer,
        "draw": draw,
        "n_positive": int((kept & positive).sum()),
        "n_negative": int((kept & ~positive).sum()),
        "cosine": cosine,
        "norm_ratio": ratio,
    }
