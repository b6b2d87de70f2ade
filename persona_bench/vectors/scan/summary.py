"""What a scan found, in constant memory: means with intervals, histograms, the ends of each scale, a reference set."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from persona_bench.vectors.table_file import Value, table_rows

BINS = 40
HEAD = ("file", "row", "id", "status")
TEXTS = ("file", "id", "status")
Z95 = 1.959963984540054
"""Of the standard normal distribution: half of a 95 % interval of a mean over many samples."""


@dataclass
class Moments:
    """Count, mean and sum of squares of what was seen, merged a part at a time (Chan, Golub & LeVeque 1983)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: np.ndarray) -> None:
        """Take in float64 `(n,)` values."""
        if not values.size:
            return
        mean, total = float(values.mean()), self.n + values.size
        gap = mean - self.mean
        self.squares += float(((values - mean) ** 2).sum()) + gap * gap * self.n * values.size / total
        self.mean += gap * values.size / total
        self.n = total
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))

    @property
    def sd(self) -> float:
        """Standard deviation with n - 1; NaN under two values."""
        return math.sqrt(self.squares / (self.n - 1)) if self.n > 1 else math.nan

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.sd / math.sqrt(self.n) if self.n > 1 else math.nan


@dataclass
class _Ends:
    """The `n` highest and lowest rows, ties going to the earlier row."""

    n: int
    highest: list[tuple[float, int, tuple[Value, ...]]] = field(default_factory=list)
    lowest: list[tuple[float, int, tuple[Value, ...]]] = field(default_factory=list)

    def add(self, values: np.ndarray, rows: Sequence[tuple[Value, ...]], first: int) -> None:
        use = np.flatnonzero(np.isfinite(values))
        for heap, sign in ((self.highest, 1.0), (self.lowest, -1.0)):
            for place in use[np.argsort(-sign * values[use], kind="stable")[: self.n]]:
                item = (sign * float(values[place]), -(first + int(place)), rows[place][:3])
                if len(heap) < self.n:
                    heapq.heappush(heap, item)
                else:
                    heapq.heappushpop(heap, item)


def summarise(path: Path, values: Sequence[str], top: int) -> dict[str, Any]:
    """Summary of a scan's output, read twice: once for the moments and the ends, once for the histograms.

    Args:
        path: the output.
        values: the columns that are measured.
        top: how many of the highest and of the lowest samples are named.
    """
    names = (*HEAD, *values)
    places = {name: names.index(name) for name in values}
    moments = {name: Moments() for name in values}
    ends = {name: _Ends(top) for name in values}
    statuses: Counter[str] = Counter()
    first = 0
    for part in table_rows(path, names, TEXTS):
        statuses.update(str(row[3]) for row in part)
        for name, place in places.items():
            column = _column(part, place)
            moments[name].add(column[np.isfinite(column)])
            ends[name].add(column, part, first)
        first += len(part)
    edges = {name: _edges(found) for name, found in moments.items()}
    counts = {name: np.zeros(len(edges[name]) - 1, int) for name in values}
    for part in table_rows(path, names, TEXTS):
        for name, place in places.items():
            column = _column(part, place)
            counts[name] += np.histogram(column[np.isfinite(column)], edges[name])[0]
    return {
        "n": first,
        "statuses": dict(sorted(statuses.items())),
        "values": {
            name: {
                **described(moments[name]),
                "histogram": {"edges": edges[name].tolist(), "counts": counts[name].tolist()},
                "highest": _named(ends[name].highest, 1.0),
                "lowest": _named(ends[name].lowest, -1.0),
            }
            for name in values
        },
    }


def described(found: Moments) -> dict[str, Any]:
    """n, mean, its 95 % interval and SD, None where unknown; samples are taken as independent of one another."""
    half = Z95 * found.error
    ends = {"mean_low": found.mean - half, "mean_high": found.mean + half, "sd": found.sd}
    return {"n": found.n} | _known({"mean": found.mean if found.n else math.nan, **ends})


def compared(found: Moments, reference: Moments) -> dict[str, Any]:
    """Difference of two means with its 95 % interval (unequal variances, Welch 1947), in units and in reference SDs."""
    gap = found.mean - reference.mean if found.n and reference.n else math.nan
    half = Z95 * math.hypot(found.error, reference.error)
    return {"reference_n": reference.n} | _known(
        {
            "reference_mean": reference.mean if reference.n else math.nan,
            "difference": gap,
            "difference_low": gap - half,
            "difference_high": gap + half,
            "difference_in_reference_sd": gap / reference.sd if reference.sd else math.nan,
        }
    )


def _known(numbers: dict[str, float]) -> dict[str, float | None]:
    """Numbers as JSON has them: None where there is none."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def against_reference(summary: dict[str, Any], path: Path) -> None:
    """Add to a summary how its means differ from those of an earlier scan's output.

    Raises:
        DataError: the file is no such output, or lacks one of the columns.
    """
    names = list(summary["values"])
    moments = {name: Moments() for name in names}
    for part in table_rows(path, names):
        for place, name in enumerate(names):
            column = _column(part, place)
            moments[name].add(column[np.isfinite(column)])
    for name, found in summary["values"].items():
        squares = (found["sd"] or 0.0) ** 2 * max(found["n"] - 1, 0)
        found.update(compared(Moments(found["n"], found["mean"] or 0.0, squares), moments[name]))


def _column(part: Sequence[tuple[Value, ...]], place: int) -> np.ndarray:
    return np.array([math.nan if row[place] is None else row[place] for row in part], float)


def _edges(found: Moments) -> np.ndarray:
    if not found.n:
        return np.array([0.0, 1.0])
    spread = found.high - found.low
    return np.linspace(found.low, found.high if spread > 0 else found.low + 1.0, BINS + 1)


def _named(heap: list[tuple[float, int, tuple[Value, ...]]], sign: float) -> list[dict[str, Value]]:
    return [
        {"file": file, "row": row, "id": name, "value": sign * value}
        for value, _, (file, row, name) in sorted(heap, reverse=True)
    ]
