"""Means and shares, and the differences of two."""

import math

import numpy as np
from numpy.typing import ArrayLike

from persona_bench.analysis.statistics.resampling import (
    CONFIDENCE,
    RESAMPLES,
    Estimate,
    Interval,
    count,
    draw_clusters,
    estimate,
    nothing,
    valid,
)


def mean(
    values: ArrayLike,
    clusters: ArrayLike,
    *,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """Mean of the finite values.

    Args:
        values: shape `(n,)`; NaN means unscored.
        clusters: the question of each value, shape `(n,)`.
        rng: source of the resampling.
        resamples: number of bootstrap resamples.
        bounds: the scale of the values, which the interval does not leave.
    """
    kept, codes, unscored = valid(clusters, values)
    (x,) = kept
    n_clusters = count(codes)
    if not n_clusters:
        return nothing(unscored)
    sums = np.bincount(codes, weights=x, minlength=n_clusters)
    sizes = np.bincount(codes, minlength=n_clusters).astype(float)
    weights = draw_clusters(n_clusters, resamples, rng)
    draws = (weights @ sums) / (weights @ sizes)
    return estimate(float(x.mean()), draws, n=x.size, n_unscored=unscored, n_clusters=n_clusters, bounds=bounds)


def paired_difference(
    first: ArrayLike,
    first_clusters: ArrayLike,
    second: ArrayLike,
    second_clusters: ArrayLike,
    *,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Mean over questions of (mean of the first cell - mean of the second cell).

    Only questions with a valid value in both cells count, each with the same weight. `n` counts the valid values of
    the first cell on those questions, `n_unscored` the missing ones of the first cell.

    Args:
        first: values of the first cell, shape `(n,)`; NaN means unscored.
        first_clusters: the question of each.
        second: values of the cell that is subtracted, shape `(m,)`.
        second_clusters: the question of each.
        rng: source of the resampling.
        resamples: number of bootstrap resamples.
    """
    a, a_unscored = _cluster_means(first, first_clusters)
    b, _ = _cluster_means(second, second_clusters)
    common = sorted(a.keys() & b.keys())
    if not common:
        return nothing(a_unscored)
    differences = np.array([a[c][0] - b[c][0] for c in common])
    weights = draw_clusters(len(common), resamples, rng)
    draws = (weights @ differences) / len(common)
    n = sum(a[c][1] for c in common)
    return estimate(float(differences.mean()), draws, n=n, n_unscored=a_unscored, n_clusters=len(common))


def change(new: Interval, old: Interval) -> Interval:
    """The difference of two independent estimates, new minus old, from their intervals alone.

    Each end adds the squared distances of the two estimates to the ends that matter (MOVER; Zou & Donner 2008,
    Statistics in Medicine 27:1693-1702), so intervals may be lopsided, as those of a correlation are.
    """
    value = new.value - old.value
    low = value - math.hypot(new.value - new.low, old.high - old.value)
    return Interval(value, low, value + math.hypot(new.high - new.value, old.value - old.low))


def wilson(successes: int, n: int, *, n_unscored: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """Wilson's score interval for a share (Wilson 1927, JASA 22:209-212).

    Args:
        successes: number of hits.
        n: number of trials; with 0 all is NaN.
        n_unscored: trials left out, carried along.
        confidence: of the interval.
    """
    if n <= 0:
        return nothing(n_unscored)
    from scipy import special

    z = float(special.ndtri(0.5 + confidence / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At either end the interval begins there; rounding would leave it a hair away.
    low = max(0.0, centre - half) if successes else 0.0
    high = min(1.0, centre + half) if successes < n else 1.0
    return Estimate(share, low, high, n, n_unscored, n)


def _cluster_means(values: ArrayLike, clusters: ArrayLike) -> tuple[dict[str, tuple[float, int]], int]:
    """Question -> (mean, number of valid values), and the number of missing values."""
    array, names = np.asarray(values, dtype=float), np.asarray(clusters).astype(str)
    keep = np.isfinite(array)
    unique, codes = np.unique(names[keep], return_inverse=True)
    sums = np.bincount(codes, weights=array[keep], minlength=len(unique))
    sizes = np.bincount(codes, minlength=len(unique))
    means = {str(u): (float(s / k), int(k)) for u, s, k in zip(unique, sums, sizes, strict=True)}
    return means, int((~keep).sum())
