"""How well scores agree with labels or with careful readers: AUROC, balanced accuracy, clear pairs, kappa."""

import numpy as np
from numpy.typing import ArrayLike

from persona_bench.analysis.statistics.resampling import (
    RESAMPLES,
    Estimate,
    FloatArray,
    IntArray,
    count,
    draw_clusters,
    estimate,
    nothing,
    ratio,
    valid,
)

CLEAR_GAP = 75.0
"""Two answers are a clear pair if careful readers put them at least this many points apart."""


def auroc(
    scores: ArrayLike, labels: ArrayLike, clusters: ArrayLike, *, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Estimate:
    """Area under the ROC curve: the share of (positive, negative) pairs in the right order, ties counting half.

    The Mann-Whitney form (Hanley & McNeil 1982, Radiology 143:29-36).

    Args:
        scores: shape `(n,)`; NaN means unscored.
        labels: 1 positive, 0 negative, NaN neither; shape `(n,)`.
        clusters: the question of each.
        rng: source of the resampling.
        resamples: number of bootstrap resamples.
    """
    (s, y), codes, unscored = valid(clusters, scores, labels)
    positive, negative = y == 1, y == 0
    n_clusters = count(codes)
    if not positive.any() or not negative.any():
        return nothing(unscored, n=s.size, n_clusters=n_clusters)
    wins = (np.sign(s[positive][:, None] - s[negative][None, :]) + 1) / 2
    p_one, n_one = _one_hot(codes[positive], n_clusters), _one_hot(codes[negative], n_clusters)
    table = p_one.T @ wins @ n_one
    weights = draw_clusters(n_clusters, resamples, rng)
    pairs = (weights @ p_one.sum(axis=0)) * (weights @ n_one.sum(axis=0))
    draws = ratio(((weights @ table) * weights).sum(axis=1), pairs)
    return estimate(float(wins.mean()), draws, n=s.size, n_unscored=unscored, n_clusters=n_clusters, bounds=(0, 1))


def balanced_accuracy(
    scores: ArrayLike,
    labels: ArrayLike,
    clusters: ArrayLike,
    *,
    rng: np.random.Generator,
    threshold: float = 50.0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Mean of sensitivity and specificity, where a score at or over the threshold means "trait shown".

    Args:
        scores: shape `(n,)`, 0..100; NaN means unscored.
        labels: 1 positive, 0 negative, NaN neither; shape `(n,)`.
        clusters: the question of each.
        rng: source of the resampling.
        threshold: the cut, in points of 0..100.
        resamples: number of bootstrap resamples.
    """
    (s, y), codes, unscored = valid(clusters, scores, labels)
    positive, negative = y == 1, y == 0
    n_clusters = count(codes)
    if not positive.any() or not negative.any():
        return nothing(unscored, n=s.size, n_clusters=n_clusters)
    right = (s >= threshold) == positive
    columns = np.stack(
        [
            np.bincount(codes, weights=part.astype(float), minlength=n_clusters)
            for part in (right & positive, positive, right & negative, negative)
        ],
        axis=1,
    )
    value = float(_balanced(columns.sum(axis=0)[None, :])[0])
    weights = draw_clusters(n_clusters, resamples, rng)
    return estimate(
        value, _balanced(weights @ columns), n=s.size, n_unscored=unscored, n_clusters=n_clusters, bounds=(0, 1)
    )


def pairwise_agreement(
    scores: ArrayLike,
    levels: ArrayLike,
    clusters: ArrayLike,
    *,
    rng: np.random.Generator,
    min_gap: float = CLEAR_GAP,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Share of clear pairs of answers to one question that the judge puts in the right order, ties counting half.

    The paper checks its judge in this way (appendix B: 94.7 % agreement of its judge with people on pairs of answers
    that lie far apart). `n` is the number of answers, as elsewhere, not of pairs.

    Args:
        scores: shape `(n,)`; NaN means unscored.
        levels: what careful readers said, 0..100, shape `(n,)`.
        clusters: the question of each; only answers to the same question are paired.
        rng: source of the resampling.
        min_gap: a pair is clear if its levels lie at least this far apart.
        resamples: number of bootstrap resamples.
    """
    (s, level), codes, unscored = valid(clusters, scores, levels)
    n_clusters = count(codes)
    clear = (codes[:, None] == codes[None, :]) & (level[:, None] - level[None, :] >= min_gap)
    if not clear.any():
        return nothing(unscored, n=s.size, n_clusters=n_clusters)
    wins = (np.sign(s[:, None] - s[None, :]) + 1) / 2
    right = np.bincount(codes, weights=(wins * clear).sum(axis=1), minlength=n_clusters)
    pairs = np.bincount(codes, weights=clear.sum(axis=1), minlength=n_clusters)
    weights = draw_clusters(n_clusters, resamples, rng)
    draws = ratio(weights @ right, weights @ pairs)
    value = float(right.sum() / pairs.sum())
    return estimate(value, draws, n=s.size, n_unscored=unscored, n_clusters=n_clusters, bounds=(0, 1))


def weighted_kappa(
    scores: ArrayLike, levels: ArrayLike, clusters: ArrayLike, *, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Estimate:
    """Cohen's kappa with quadratic weights, of scores rounded to the five levels 0, 25, 50, 75, 100.

    1 - observed / expected squared disagreement (Cohen 1968, Psychological Bulletin 70:213-220).

    Args:
        scores: 0..100, shape `(n,)`; NaN means unscored.
        levels: 0..100, shape `(n,)`.
        clusters: the question of each.
        rng: source of the resampling.
        resamples: number of bootstrap resamples.
    """
    (s, level), codes, unscored = valid(clusters, scores, levels)
    n_clusters = count(codes)
    if not s.size:
        return nothing(unscored)
    a, b = np.floor(s / 25 + 0.5), np.floor(level / 25 + 0.5)
    columns = np.stack(
        [np.bincount(codes, weights=part, minlength=n_clusters) for part in (a**0, a, b, a * a, b * b, a * b)], axis=1
    )
    weights = draw_clusters(n_clusters, resamples, rng)
    value = float(_kappa(columns.sum(axis=0)[None, :])[0])
    draws = _kappa(weights @ columns)
    return estimate(value, draws, n=s.size, n_unscored=unscored, n_clusters=n_clusters, bounds=(-1, 1))


def _one_hot(codes: IntArray, n_clusters: int) -> FloatArray:
    return np.eye(n_clusters)[codes]


def _balanced(columns: FloatArray) -> FloatArray:
    return (ratio(columns[:, 0], columns[:, 1]) + ratio(columns[:, 2], columns[:, 3])) / 2


def _kappa(sums: FloatArray) -> FloatArray:
    """Of rows (n, sum a, sum b, sum a^2, sum b^2, sum ab): expected disagreement pairs every a with every b."""
    n, a, b, aa, bb, ab = sums.T
    observed = aa + bb - 2 * ab
    expected = aa + bb - ratio(2 * a * b, n)
    return 1 - ratio(observed, expected)
