"""How well a score finds a few positives among many negatives, whatever the mixture it was measured on.

A mixture with a given share of positives is had by weights: the positives that there are stand for that share, the
negatives for the rest. So 1 % can be told from 50 positives and 50 negatives, which no draw of single samples can do.
Rates of true and false alarms do not hang on the share; precision does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from persona_bench.analysis import statistics as st
from persona_bench.analysis.statistics import FloatArray

__all__ = ["average_precision", "precision_recall", "recall_at"]


def average_precision(
    scores: ArrayLike,
    labels: ArrayLike,
    clusters: ArrayLike,
    share: float,
    *,
    rng: np.random.Generator,
    resamples: int = st.RESAMPLES,
) -> st.Estimate:
    """Mean precision over the positives, at the threshold that each of them sets (area under precision-recall steps).

    Args:
        scores: shape `(n,)`; a sample counts where score and label are finite.
        labels: 1 positive, 0 negative.
        clusters: the question of each.
        share: of positives in the mixture, 0..1; also what scores that know nothing get.
        rng: source of the resampling.
        resamples: number of bootstrap resamples.
    """
    return _resampled(scores, labels, clusters, lambda true, false: _average(true, false, share), rng, resamples)


def recall_at(
    scores: ArrayLike,
    labels: ArrayLike,
    clusters: ArrayLike,
    false_alarms: float,
    *,
    rng: np.random.Generator,
    resamples: int = st.RESAMPLES,
) -> st.Estimate:
    """Highest share of the positives that a threshold finds with at most so many of the negatives.

    Under 100 negatives, 1 % of them means none at all.

    Args:
        scores: shape `(n,)`; a sample counts where score and label are finite.
        labels: 1 positive, 0 negative.
        clusters: the question of each.
        false_alarms: share of the negatives, 0..1.
        rng: source of the resampling.
        resamples: number of bootstrap resamples.
    """

    def at(true: FloatArray, false: FloatArray) -> FloatArray:
        found: FloatArray = np.where(false <= false_alarms + 1e-12, true, 0.0).max(axis=1)
        return np.where(np.isfinite(true[:, -1]) & np.isfinite(false[:, -1]), found, np.nan)

    return _resampled(scores, labels, clusters, at, rng, resamples)


def precision_recall(scores: ArrayLike, labels: ArrayLike, share: float, grid: ArrayLike) -> FloatArray:
    """Precision at each recall of a grid: at the highest threshold that finds as many; NaN without both classes."""
    s, y, _ = _valid(scores, labels, np.zeros(len(np.asarray(scores))))
    wanted = np.asarray(grid, float)
    if not (y == 1).any() or not (y == 0).any():
        return np.full(wanted.shape, np.nan)
    true, false = _rates(s, y, np.zeros(len(s), np.int64), np.ones((1, 1)))
    place = np.searchsorted(true[0], np.clip(wanted, 1e-9, 1.0) - 1e-12)
    precision: FloatArray = _precision(true, false, share)[0][place]
    return precision


def _valid(scores: ArrayLike, labels: ArrayLike, clusters: ArrayLike) -> tuple[FloatArray, FloatArray, FloatArray]:
    s, y = np.asarray(scores, float), np.asarray(labels, float)
    keep = np.isfinite(s) & np.isfinite(y)
    return s[keep], y[keep], np.asarray(clusters).astype(str)[keep]


def _resampled(
    scores: ArrayLike,
    labels: ArrayLike,
    clusters: ArrayLike,
    statistic: Callable[[FloatArray, FloatArray], FloatArray],
    rng: np.random.Generator,
    resamples: int,
) -> st.Estimate:
    s, y, ids = _valid(scores, labels, clusters)
    names, codes = np.unique(ids, return_inverse=True)
    if not (y == 1).any() or not (y == 0).any():
        return st.of_draws(float("nan"), np.empty(0), n=len(s), n_clusters=len(names))
    value = statistic(*_rates(s, y, codes, np.ones((1, len(names)))))[0]
    draws = statistic(*_rates(s, y, codes, st.draw_clusters(len(names), resamples, rng)))
    return st.of_draws(float(value), draws, n=len(s), n_clusters=len(names), bounds=(0, 1))


def _rates(
    scores: FloatArray, labels: FloatArray, codes: np.ndarray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """True and false alarms at each distinct score, from the highest on: `(resamples, n_scores)` each."""
    distinct, place = np.unique(-scores, return_inverse=True)

    def rate(label: int) -> FloatArray:
        table = np.zeros((weights.shape[1], len(distinct)))
        np.add.at(table, (codes[labels == label], place[labels == label]), 1.0)
        counts = weights @ table
        return st.ratio(np.cumsum(counts, axis=1), counts.sum(axis=1, keepdims=True) + np.zeros_like(counts))

    return rate(1), rate(0)


def _precision(true: FloatArray, false: FloatArray, share: float) -> FloatArray:
    return st.ratio(share * true, share * true + (1 - share) * false)


def _average(true: FloatArray, false: FloatArray, share: float) -> FloatArray:
    steps = np.diff(true, axis=1, prepend=0.0)
    # Before the first alarm there is no precision, and no step either.
    precision = np.where(steps > 0, _precision(true, false, share), 0.0)
    total: FloatArray = (steps * precision).sum(axis=1)
    return np.where(np.isfinite(false[:, -1]), total, np.nan)
