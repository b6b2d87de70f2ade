"""Correlations over all points and inside conditions, slopes, and cosines of vectors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from persona_bench.analysis.statistics.resampling import (
    CONFIDENCE,
    FLAT,
    RESAMPLES,
    Estimate,
    FloatArray,
    IntArray,
    Interval,
    count,
    draw_clusters,
    estimate,
    nothing,
    ratio,
    valid,
)

MIN_CONDITION_SD = 1.0
"""The paper leaves a condition out of the within-condition correlation if its scores' SD is under 1 (of 100)."""
MIN_CONDITION_POINTS = 3
"""A correlation over two points is always 1 or -1 and says nothing."""


@dataclass(frozen=True)
class WithinCondition:
    """The mean within-condition correlation.

    Attributes:
        estimate: the mean of r over the conditions that count, with its interval.
        n_conditions: conditions that count.
        n_left_out: conditions left out because the scores (or the predictor) hardly vary or are too few.
    """

    estimate: Estimate
    n_conditions: int
    n_left_out: int


def pearson(
    x: ArrayLike, y: ArrayLike, clusters: ArrayLike, *, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Estimate:
    """Pearson's r over all points, resampled by question.

    Args:
        x: predictor, shape `(n,)`.
        y: outcome, shape `(n,)`; a point counts where both are finite.
        clusters: the question of each point.
        rng: source of the resampling.
        resamples: number of bootstrap resamples.
    """
    (a, b), codes, unscored = valid(clusters, x, y)
    n_clusters = count(codes)
    if a.size < MIN_CONDITION_POINTS:
        return nothing(unscored, n=a.size, n_clusters=n_clusters)
    moments = _moments(_standard(a), _standard(b), codes, np.zeros_like(codes), 1)
    value = _r_of(moments.sum(axis=0))[0]
    weights = draw_clusters(n_clusters, resamples, rng)
    draws = _r_of(np.tensordot(weights, moments, axes=1))[:, 0]
    return estimate(float(value), draws, n=a.size, n_unscored=unscored, n_clusters=n_clusters, bounds=(-1, 1))


def within_condition_r(
    x: ArrayLike,
    y: ArrayLike,
    conditions: ArrayLike,
    clusters: ArrayLike,
    *,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    min_sd: float = MIN_CONDITION_SD,
) -> WithinCondition:
    """Mean over conditions of Pearson's r inside the condition (the paper's monitoring section).

    A condition is left out if the SD of its outcome (with n - 1) is under `min_sd`, if its predictor is constant, or
    if it has fewer than three points. The rule is applied anew in every resample, as it is part of the statistic.

    Args:
        x: predictor, shape `(n,)`.
        y: outcome in points of 0..100, shape `(n,)`.
        conditions: the condition (system prompt) of each point.
        clusters: the question of each point.
        rng: source of the resampling.
        resamples: number of bootstrap resamples.
        min_sd: smallest SD of the outcome, in points.
    """
    names = np.unique(np.asarray(conditions).astype(str))
    (a, b), codes, unscored, groups = _valid_with_groups(clusters, conditions, names, x, y)
    n_clusters = count(codes)
    if not n_clusters:
        return WithinCondition(nothing(unscored), 0, len(names))
    scale = float(b.std()) or 1.0
    moments = _moments(_standard(a), _standard(b), codes, groups, len(names))
    full = _r_of(moments.sum(axis=0), min_sd=min_sd / scale)
    n_conditions = int(np.isfinite(full).sum())
    weights = draw_clusters(n_clusters, resamples, rng)
    draws = _nanmean(_r_of(np.tensordot(weights, moments, axes=1), min_sd=min_sd / scale))
    value = float(_nanmean(full[None, :])[0])
    used = np.isfinite(full)[groups]
    mean_r = estimate(value, draws, n=int(used.sum()), n_unscored=unscored, n_clusters=n_clusters, bounds=(-1, 1))
    return WithinCondition(mean_r, n_conditions, len(names) - n_conditions)


def spearman(
    x: ArrayLike, y: ArrayLike, clusters: ArrayLike, *, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Estimate:
    """Spearman's rank correlation, with mid-ranks for ties, ranked anew in every resample.

    Args:
        x: shape `(n,)`.
        y: shape `(n,)`; a point counts where both are finite.
        clusters: the question of each point.
        rng: source of the resampling.
        resamples: number of bootstrap resamples.
    """
    (a, b), codes, unscored = valid(clusters, x, y)
    n_clusters = count(codes)
    if a.size < MIN_CONDITION_POINTS:
        return nothing(unscored, n=a.size, n_clusters=n_clusters)
    value = _weighted_rank_r(a, b, np.ones((1, a.size)))[0]
    weights = draw_clusters(n_clusters, resamples, rng)[:, codes]
    draws = _weighted_rank_r(a, b, weights)
    return estimate(float(value), draws, n=a.size, n_unscored=unscored, n_clusters=n_clusters, bounds=(-1, 1))


def slope(
    x: ArrayLike, y: ArrayLike, clusters: ArrayLike, *, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Estimate:
    """Least-squares slope of y on x, resampled by question.

    Args:
        x: shape `(n,)`.
        y: shape `(n,)`; a point counts where both are finite.
        clusters: the question of each point.
        rng: source of the resampling.
        resamples: number of bootstrap resamples.
    """
    (a, b), codes, unscored = valid(clusters, x, y)
    n_clusters = count(codes)
    if a.size < MIN_CONDITION_POINTS:
        return nothing(unscored, n=a.size, n_clusters=n_clusters)
    moments = _moments(a - a.mean(), b - b.mean(), codes, np.zeros_like(codes), 1)[:, 0]
    weights = draw_clusters(n_clusters, resamples, rng)
    value, draws = _slope_of(moments.sum(axis=0)[None, :])[0], _slope_of(weights @ moments)
    return estimate(float(value), draws, n=a.size, n_unscored=unscored, n_clusters=n_clusters)


def jackknife_cosine(value: float, left_out: Sequence[ArrayLike], n_questions: int) -> Interval:
    """A cosine with its 95 % interval by the jackknife (Miller 1974, Biometrika 61:1-15), on Fisher's scale.

    Not resampled with replacement: a repeated question makes a vector noisier and its cosines smaller, so that the
    draws would not lie about the value. The interval is that of vectors made of as many questions.

    Args:
        value: the cosine on the full sample.
        left_out: for each independent set of questions behind it, the cosine without each of its questions in turn.
        n_questions: the fewest that a mean behind it rests on, from which Student's t comes.

    Returns:
        The value and its interval, which is NaN without a set, with fewer than two questions, or where a question
        cannot be left out.
    """
    from scipy import special

    sets = [np.arctanh(np.clip(np.asarray(part, dtype=float), -1 + FLAT, 1 - FLAT)) for part in left_out]
    if not sets or n_questions < 2 or not np.isfinite(value):
        return Interval(value, float("nan"), float("nan"))
    variance = sum((part.size - 1) * float(part.var()) for part in sets)
    half = -float(special.stdtrit(n_questions - 1, (1 - CONFIDENCE) / 2)) * math.sqrt(variance)
    middle = float(np.arctanh(np.clip(value, -1 + FLAT, 1 - FLAT)))
    return Interval(value, math.tanh(middle - half), math.tanh(middle + half))


def _slope_of(moments: FloatArray) -> FloatArray:
    """Of rows (n, sum x, sum y, sum xx, sum yy, sum xy); NaN where x does not vary."""
    n, sx, sy, sxx, _, sxy = moments.T
    spread = sxx - sx * sx / n
    return ratio(sxy - sx * sy / n, np.where(spread > FLAT * n, spread, 0.0))


def _valid_with_groups(
    clusters: ArrayLike, groups: ArrayLike, names: NDArray[np.str_], *columns: ArrayLike
) -> tuple[list[FloatArray], IntArray, int, IntArray]:
    arrays = [np.asarray(column, dtype=float) for column in columns]
    keep = np.logical_and.reduce([np.isfinite(array) for array in arrays])
    kept, codes, unscored = valid(clusters, *columns)
    return kept, codes, unscored, np.searchsorted(names, np.asarray(groups).astype(str)[keep]).astype(np.int64)


def _standard(values: FloatArray) -> FloatArray:
    """Centre and scale, so that sums of squares do not cancel; correlations do not change."""
    spread = float(values.std())
    # A constant column keeps a spread of rounding errors, which scaling would blow up into a fake variance.
    flat = spread <= FLAT * max(1.0, float(np.abs(values).max()))
    centred = values - values.mean()
    return np.zeros_like(values) if flat else centred / spread


def _moments(x: FloatArray, y: FloatArray, codes: IntArray, groups: IntArray, n_groups: int) -> FloatArray:
    """Sums of 1, x, y, xx, yy, xy per question and condition: `(n_clusters, n_groups, 6)`."""
    sums: FloatArray = np.zeros((count(codes), n_groups, 6))
    np.add.at(sums, (codes, groups), np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1))
    return sums


def _r_of(moments: FloatArray, min_sd: float = 0.0) -> FloatArray:
    """Pearson's r from sums `(..., 6)`; NaN where a column is constant, too short, or y's SD is under `min_sd`."""
    n, sx, sy, sxx, syy, sxy = np.moveaxis(moments, -1, 0)
    enough = n >= MIN_CONDITION_POINTS
    size = np.where(enough, n, MIN_CONDITION_POINTS)
    vx, vy = sxx - sx * sx / size, syy - sy * sy / size
    varied = enough & (vx > FLAT * size) & (vy > FLAT * size) & (vy / (size - 1) >= min_sd**2)
    product = np.where(varied, vx * vy, 1.0)
    r = (sxy - sx * sy / size) / np.sqrt(product)
    return np.where(varied, np.clip(r, -1, 1), np.nan)


def _nanmean(values: FloatArray) -> FloatArray:
    """Mean over the last axis of what is finite; NaN, without a warning, where nothing is."""
    finite = np.isfinite(values)
    return ratio(np.where(finite, values, 0.0).sum(axis=-1), finite.sum(axis=-1).astype(float))


def _weighted_rank_r(x: FloatArray, y: FloatArray, weights: FloatArray) -> FloatArray:
    """Pearson's r of mid-ranks, where each point stands as often as its weight says; weights `(resamples, n)`."""
    a, b = _weighted_ranks(x, weights), _weighted_ranks(y, weights)
    total = weights.sum(axis=1, keepdims=True)
    a = a - (weights * a).sum(axis=1, keepdims=True) / total
    b = b - (weights * b).sum(axis=1, keepdims=True) / total
    va, vb = (weights * a * a).sum(axis=1), (weights * b * b).sum(axis=1)
    return ratio((weights * a * b).sum(axis=1), np.sqrt(va * vb))


def _weighted_ranks(values: FloatArray, weights: FloatArray) -> FloatArray:
    unique, inverse = np.unique(values, return_inverse=True)
    tied = weights @ np.eye(len(unique))[inverse]
    middle = np.cumsum(tied, axis=1) - tied + (tied + 1) / 2
    ranks: FloatArray = middle[:, inverse]
    return ranks
