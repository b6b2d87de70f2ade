"""Estimates with their intervals, and the drawing of whole questions behind them."""

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RESAMPLES = 2000
CONFIDENCE = 0.95
FEW_CLUSTERS = 10
"""With fewer questions than this, percentile intervals are widened to Student's t."""
FLAT = 1e-12
"""A variance under this (of standardised values) is rounding error: the values are constant."""


@dataclass(frozen=True)
class Estimate:
    """A statistic with its 95 % interval.

    Attributes:
        value: the statistic on the full sample; NaN where nothing is valid, never 0.
        low: lower end of the interval; NaN with fewer than two questions.
        high: upper end of the interval; NaN with fewer than two questions.
        n: valid observations that entered.
        n_unscored: observations left out because a value was missing.
        n_clusters: questions that entered; the unit that was resampled.
        draws: the resampled statistic, shape `(resamples,)`; empty where there is no bootstrap.
    """

    value: float
    low: float
    high: float
    n: int
    n_unscored: int = 0
    n_clusters: int = 0
    draws: FloatArray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval and nothing else, as a file may hold it."""

    value: float
    low: float
    high: float


def stream(seed: int, *key: object) -> np.random.Generator:
    """A random generator of its own for one named estimate.

    The generator depends on the seed and the name only, so adding a row to a table leaves the other rows' intervals
    as they were.

    Args:
        seed: the run's seed, >= 0.
        key: what names the estimate, for example table, trait and layer.
    """
    digest = hashlib.sha256("\x1f".join(str(part) for part in key).encode()).digest()
    words = [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4)]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


def draw_clusters(n_clusters: int, resamples: int, rng: np.random.Generator) -> FloatArray:
    """How often each question is drawn in each resample: `(resamples, n_clusters)`."""
    return rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=resamples).astype(float)


def of_draws(
    value: float,
    draws: FloatArray,
    *,
    n: int,
    n_clusters: int,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """An estimate whose draws were made elsewhere, from several statistics resampled together.

    Args:
        value: the statistic on the full sample.
        draws: the resampled statistic, shape `(resamples,)`; NaN where it has no value.
        n: valid observations.
        n_clusters: questions; of several kinds, the fewest.
        bounds: the scale of the statistic, which the interval does not leave.
    """
    return estimate(value, draws, n=n, n_unscored=0, n_clusters=n_clusters, bounds=bounds)


def estimate(
    value: float,
    draws: FloatArray,
    *,
    n: int,
    n_unscored: int,
    n_clusters: int,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Put the interval to a value; the draws that are not finite (say, no positives in them) are left out."""
    low, high = _interval(value, draws, n_clusters)
    low, high = max(low, bounds[0]), min(high, bounds[1])
    if math.isnan(value):
        low = high = float("nan")
    return Estimate(value, low, high, int(n), int(n_unscored), int(n_clusters), draws)


def _interval(value: float, draws: FloatArray, n_clusters: int) -> tuple[float, float]:
    """Expanded percentile interval; NaN with one question, or where most resamples could not be evaluated."""
    finite = draws[np.isfinite(draws)]
    if n_clusters < 2 or 2 * finite.size < draws.size or not finite.size:
        return float("nan"), float("nan")
    from scipy import special

    widen = math.sqrt(n_clusters / (n_clusters - 1))
    quantile = float(special.stdtrit(n_clusters - 1, (1 - CONFIDENCE) / 2))
    tail = float(special.ndtr(widen * quantile))
    low, high = (float(end) for end in np.quantile(finite, [tail, 1 - tail]))
    if n_clusters < FEW_CLUSTERS:
        half = -quantile * widen * float(finite.std())
        low, high = min(low, value - half), max(high, value + half)
    return low, high


def nothing(n_unscored: int, *, n: int = 0, n_clusters: int = 0) -> Estimate:
    """An estimate that has no value, only what it counts."""
    nan = float("nan")
    return Estimate(nan, nan, nan, int(n), int(n_unscored), int(n_clusters))


def valid(clusters: ArrayLike, *columns: ArrayLike) -> tuple[list[FloatArray], IntArray, int]:
    """The rows where every column is finite, the question of each as 0..C-1, and the number of rows dropped."""
    arrays = [np.asarray(column, dtype=float) for column in columns]
    keep = np.logical_and.reduce([np.isfinite(array) for array in arrays])
    codes = np.unique(np.asarray(clusters).astype(str)[keep], return_inverse=True)[1]
    return [array[keep] for array in arrays], codes.astype(np.int64), int((~keep).sum())


def count(codes: IntArray) -> int:
    """How many questions the codes 0..C-1 name."""
    return int(codes.max()) + 1 if codes.size else 0


def ratio(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """Elementwise quotient, NaN, without a warning, where the lower part is not above 0."""
    safe = np.where(bottom > 0, bottom, 1.0)
    return np.where(bottom > 0, top / safe, np.nan)
