"""Intervals and tests: bootstraps clustered by question, Wilson, McNemar, Holm.

Every estimate resamples whole questions, because answers to one question are not independent of each other. The
resampling is written as a weight matrix `(resamples, n_clusters)` that counts how often each question was drawn, so
that every statistic is a few matrix products over per-question sums.

Intervals are expanded percentile intervals (Hesterberg 2015, "What Teachers Should Know About the Bootstrap", The
American Statistician 69:371-386, https://doi.org/10.1080/00031305.2015.1089789): plain percentile intervals are too
narrow when there are few questions, so the tail shares are widened to
``Phi(sqrt(C / (C - 1)) * t_{C-1}^{-1}(alpha / 2))`` for C questions. With fewer than ten questions percentiles
stay too narrow even so (88 % coverage with five, simulated), and each end is the farther one of the expanded percentile
and of Student's t with the bootstrap standard error. The p values use the same corrections, so an interval and its
p value agree on which side of a threshold an estimate lies.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

RESAMPLES = 2000
CONFIDENCE = 0.95
MIN_CONDITION_SD = 1.0
"""The paper leaves a condition out of the within-condition correlation if its scores' SD is under 1 (of 100)."""
MIN_CONDITION_POINTS = 3
"""A correlation over two points is always 1 or -1 and says nothing."""
CLEAR_GAP = 75.0
"""Two answers are a clear pair if careful readers put them at least this many points apart."""
_TAIL_DRAWS = 10
"""With fewer draws than this beyond a threshold, the tail share is read off a normal fit to the draws."""
_FEW_CLUSTERS = 10
"""With fewer questions than this, percentile intervals are widened to Student's t."""
_DIRECTION_CONFIDENCE = 0.999
"""A gate that let one random direction in forty pass would be none."""
_FLAT = 1e-12
"""A variance under this (of standardised values) is rounding error: the values are constant."""

__all__ = [
    "CLEAR_GAP",
    "CONFIDENCE",
    "MIN_CONDITION_POINTS",
    "MIN_CONDITION_SD",
    "RESAMPLES",
    "Estimate",
    "Interval",
    "WithinCondition",
    "area_loss_p",
    "area_of_controls",
    "area_p",
    "auroc",
    "balanced_accuracy",
    "beyond_random",
    "bootstrap_p",
    "change",
    "draw_clusters",
    "excess",
    "excess_area",
    "excess_strength",
    "holm",
    "jackknife_cosine",
    "mcnemar_exact",
    "mean",
    "of_draws",
    "paired_difference",
    "pairwise_agreement",
    "pearson",
    "ratio",
    "slope",
    "spearman",
    "stream",
    "strength_of_controls",
    "weighted_kappa",
    "wilson",
    "within_condition_r",
]


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
    kept, codes, unscored = _valid(clusters, values)
    (x,) = kept
    n_clusters = _count(codes)
    if not n_clusters:
        return _nothing(unscored)
    sums = np.bincount(codes, weights=x, minlength=n_clusters)
    sizes = np.bincount(codes, minlength=n_clusters).astype(float)
    weights = draw_clusters(n_clusters, resamples, rng)
    draws = (weights @ sums) / (weights @ sizes)
    return _estimate(float(x.mean()), draws, n=x.size, n_unscored=unscored, n_clusters=n_clusters, bounds=bounds)


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
        return _nothing(a_unscored)
    differences = np.array([a[c][0] - b[c][0] for c in common])
    weights = draw_clusters(len(common), resamples, rng)
    draws = (weights @ differences) / len(common)
    n = sum(a[c][1] for c in common)
    return _estimate(float(differences.mean()), draws, n=n, n_unscored=a_unscored, n_clusters=len(common))


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
    return _estimate(value, draws, n=n, n_unscored=0, n_clusters=n_clusters, bounds=bounds)


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

    sets = [np.arctanh(np.clip(np.asarray(part, dtype=float), -1 + _FLAT, 1 - _FLAT)) for part in left_out]
    if not sets or n_questions < 2 or not np.isfinite(value):
        return Interval(value, float("nan"), float("nan"))
    variance = sum((part.size - 1) * float(part.var()) for part in sets)
    half = -float(special.stdtrit(n_questions - 1, (1 - CONFIDENCE) / 2)) * math.sqrt(variance)
    middle = float(np.arctanh(np.clip(value, -1 + _FLAT, 1 - _FLAT)))
    return Interval(value, math.tanh(middle - half), math.tanh(middle + half))


def strength_of_controls(found: Sequence[Estimate]) -> Estimate:
    """How strongly controls whose sign means nothing correlate on average: mean of abs(r).

    Args:
        found: correlations of the same questions and from the same stream, at least one.
    """
    return _mean_of([replace(one, value=abs(one.value), draws=np.abs(one.draws)) for one in found])


def area_of_controls(found: Sequence[Estimate]) -> Estimate:
    """How well controls whose sign means nothing tell apart on average: mean AUROC, each its better way round.

    Args:
        found: AUROCs of the same questions and from the same stream, at least one.
    """
    better = [
        replace(one, value=max(one.value, 1 - one.value), draws=np.maximum(one.draws, 1 - one.draws)) for one in found
    ]
    return _mean_of(better)


def _mean_of(found: Sequence[Estimate]) -> Estimate:
    if len({(one.draws.size, one.n_clusters) for one in found}) > 1:
        return _nothing(sum(one.n_unscored for one in found))
    return _estimate(
        float(np.mean([one.value for one in found])),
        np.mean([one.draws for one in found], axis=0),
        n=found[0].n,
        n_unscored=found[0].n_unscored,
        n_clusters=found[0].n_clusters,
    )


def excess_strength(first: Estimate, second: Estimate) -> Estimate:
    """How much more strongly one predictor correlates than a control whose sign means nothing: r - abs(r_control).

    Both must come from the same questions and from the same stream, so that their draws are paired. The absolute
    value favours the control, which makes the comparison careful.

    Args:
        first: the correlation of the predictor.
        second: the correlation of the control.
    """
    if first.draws.size != second.draws.size or first.n_clusters != second.n_clusters:
        return _nothing(first.n_unscored)
    return _estimate(
        first.value - abs(second.value),
        first.draws - np.abs(second.draws),
        n=first.n,
        n_unscored=first.n_unscored,
        n_clusters=first.n_clusters,
    )


def excess_area(first: Estimate, second: Estimate) -> Estimate:
    """How far an AUROC lies above that of a control whose sign means nothing: the better way round counts.

    Both must come from the same questions and from the same stream, so that their draws are paired.

    Args:
        first: the AUROC of the detector.
        second: the AUROC of the control.
    """
    draws = np.maximum(second.draws, 1 - second.draws)
    return excess(first, replace(second, value=max(second.value, 1 - second.value), draws=draws))


def excess(first: Estimate, second: Estimate) -> Estimate:
    """The difference of two statistics that come from the same questions and the same stream, first minus second."""
    if first.draws.size != second.draws.size or first.n_clusters != second.n_clusters:
        return _nothing(first.n_unscored)
    return _estimate(
        first.value - second.value,
        first.draws - second.draws,
        n=first.n,
        n_unscored=first.n_unscored,
        n_clusters=first.n_clusters,
    )


def beyond_random(effects: ArrayLike, random: ArrayLike) -> Estimate:
    """How much more one direction does than a random one, with an interval over questions and over random directions.

    The value is the mean effect minus the mean effect of the random directions. A random direction has effects of its
    own, alike on every question, so questions alone would let it pass for more than random: each end of the interval
    adds, squared, half the 95 % interval of the mean over questions and half the 99.9 % prediction interval of one more
    random direction (Student's t both; combined as in `change`). So at most one random direction in 2,000 lies above.
    A bootstrap of so few questions would widen the part of the random directions too, of which there are many.

    Args:
        effects: of the direction, by question, shape `(n_questions,)`.
        random: of random directions on the same questions, shape `(n_questions, n_random)`.

    Returns:
        Without draws; no interval with fewer than two questions or two random directions.
    """
    own, other = np.asarray(effects, dtype=float), np.asarray(random, dtype=float)
    if own.size < 2 or other.shape[1] < 2:
        return _nothing(0, n=own.size, n_clusters=own.size)
    from scipy import special

    beyond, means, k = own - other.mean(axis=1), other.mean(axis=0), other.shape[1]
    by_question = float(beyond.std(ddof=1)) / math.sqrt(own.size) * special.stdtrit(own.size - 1, (1 + CONFIDENCE) / 2)
    by_direction = (
        float(means.std(ddof=1)) * math.sqrt(1 + 1 / k) * special.stdtrit(k - 1, (1 + _DIRECTION_CONFIDENCE) / 2)
    )
    value, half = float(beyond.mean()), math.hypot(by_question, by_direction)
    return Estimate(value, value - half, value + half, own.size, 0, own.size)


def change(new: Interval, old: Interval) -> Interval:
    """The difference of two independent estimates, new minus old, from their intervals alone.

    Each end adds the squared distances of the two estimates to the ends that matter (MOVER; Zou & Donner 2008,
    Statistics in Medicine 27:1693-1702), so intervals may be lopsided, as those of a correlation are.
    """
    value = new.value - old.value
    low = value - math.hypot(new.value - new.low, old.high - old.value)
    return Interval(value, low, value + math.hypot(new.high - new.value, old.value - old.low))


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
    (a, b), codes, unscored = _valid(clusters, x, y)
    n_clusters = _count(codes)
    if a.size < MIN_CONDITION_POINTS:
        return _nothing(unscored, n=a.size, n_clusters=n_clusters)
    moments = _moments(a - a.mean(), b - b.mean(), codes, np.zeros_like(codes), 1)[:, 0]
    weights = draw_clusters(n_clusters, resamples, rng)
    value, draws = _slope_of(moments.sum(axis=0)[None, :])[0], _slope_of(weights @ moments)
    return _estimate(float(value), draws, n=a.size, n_unscored=unscored, n_clusters=n_clusters)


def _slope_of(moments: FloatArray) -> FloatArray:
    """Of rows (n, sum x, sum y, sum xx, sum yy, sum xy); NaN where x does not vary."""
    n, sx, sy, sxx, _, sxy = moments.T
    spread = sxx - sx * sx / n
    return ratio(sxy - sx * sy / n, np.where(spread > _FLAT * n, spread, 0.0))


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
    (a, b), codes, unscored = _valid(clusters, x, y)
    n_clusters = _count(codes)
    if a.size < MIN_CONDITION_POINTS:
        return _nothing(unscored, n=a.size, n_clusters=n_clusters)
    moments = _moments(_standard(a), _standard(b), codes, np.zeros_like(codes), 1)
    value = _r_of(moments.sum(axis=0))[0]
    weights = draw_clusters(n_clusters, resamples, rng)
    draws = _r_of(np.tensordot(weights, moments, axes=1))[:, 0]
    return _estimate(float(value), draws, n=a.size, n_unscored=unscored, n_clusters=n_clusters, bounds=(-1, 1))


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
    n_clusters = _count(codes)
    if not n_clusters:
        return WithinCondition(_nothing(unscored), 0, len(names))
    scale = float(b.std()) or 1.0
    moments = _moments(_standard(a), _standard(b), codes, groups, len(names))
    full = _r_of(moments.sum(axis=0), min_sd=min_sd / scale)
    n_conditions = int(np.isfinite(full).sum())
    weights = draw_clusters(n_clusters, resamples, rng)
    draws = _nanmean(_r_of(np.tensordot(weights, moments, axes=1), min_sd=min_sd / scale))
    value = float(_nanmean(full[None, :])[0])
    used = np.isfinite(full)[groups]
    estimate = _estimate(value, draws, n=int(used.sum()), n_unscored=unscored, n_clusters=n_clusters, bounds=(-1, 1))
    return WithinCondition(estimate, n_conditions, len(names) - n_conditions)


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
    (a, b), codes, unscored = _valid(clusters, x, y)
    n_clusters = _count(codes)
    if a.size < MIN_CONDITION_POINTS:
        return _nothing(unscored, n=a.size, n_clusters=n_clusters)
    value = _weighted_rank_r(a, b, np.ones((1, a.size)))[0]
    weights = draw_clusters(n_clusters, resamples, rng)[:, codes]
    draws = _weighted_rank_r(a, b, weights)
    return _estimate(float(value), draws, n=a.size, n_unscored=unscored, n_clusters=n_clusters, bounds=(-1, 1))


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
    (s, y), codes, unscored = _valid(clusters, scores, labels)
    positive, negative = y == 1, y == 0
    n_clusters = _count(codes)
    if not positive.any() or not negative.any():
        return _nothing(unscored, n=s.size, n_clusters=n_clusters)
    wins = (np.sign(s[positive][:, None] - s[negative][None, :]) + 1) / 2
    p_one, n_one = _one_hot(codes[positive], n_clusters), _one_hot(codes[negative], n_clusters)
    table = p_one.T @ wins @ n_one
    weights = draw_clusters(n_clusters, resamples, rng)
    pairs = (weights @ p_one.sum(axis=0)) * (weights @ n_one.sum(axis=0))
    draws = ratio(((weights @ table) * weights).sum(axis=1), pairs)
    return _estimate(float(wins.mean()), draws, n=s.size, n_unscored=unscored, n_clusters=n_clusters, bounds=(0, 1))


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
    (s, y), codes, unscored = _valid(clusters, scores, labels)
    positive, negative = y == 1, y == 0
    n_clusters = _count(codes)
    if not positive.any() or not negative.any():
        return _nothing(unscored, n=s.size, n_clusters=n_clusters)
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
    return _estimate(
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
    (s, level), codes, unscored = _valid(clusters, scores, levels)
    n_clusters = _count(codes)
    clear = (codes[:, None] == codes[None, :]) & (level[:, None] - level[None, :] >= min_gap)
    if not clear.any():
        return _nothing(unscored, n=s.size, n_clusters=n_clusters)
    wins = (np.sign(s[:, None] - s[None, :]) + 1) / 2
    right = np.bincount(codes, weights=(wins * clear).sum(axis=1), minlength=n_clusters)
    pairs = np.bincount(codes, weights=clear.sum(axis=1), minlength=n_clusters)
    weights = draw_clusters(n_clusters, resamples, rng)
    draws = ratio(weights @ right, weights @ pairs)
    value = float(right.sum() / pairs.sum())
    return _estimate(value, draws, n=s.size, n_unscored=unscored, n_clusters=n_clusters, bounds=(0, 1))


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
    (s, level), codes, unscored = _valid(clusters, scores, levels)
    n_clusters = _count(codes)
    if not s.size:
        return _nothing(unscored)
    a, b = np.floor(s / 25 + 0.5), np.floor(level / 25 + 0.5)
    columns = np.stack(
        [np.bincount(codes, weights=part, minlength=n_clusters) for part in (a**0, a, b, a * a, b * b, a * b)], axis=1
    )
    weights = draw_clusters(n_clusters, resamples, rng)
    value = float(_kappa(columns.sum(axis=0)[None, :])[0])
    draws = _kappa(weights @ columns)
    return _estimate(value, draws, n=s.size, n_unscored=unscored, n_clusters=n_clusters, bounds=(-1, 1))


def _kappa(sums: FloatArray) -> FloatArray:
    """Of rows (n, sum a, sum b, sum a^2, sum b^2, sum ab): expected disagreement pairs every a with every b."""
    n, a, b, aa, bb, ab = sums.T
    observed = aa + bb - 2 * ab
    expected = aa + bb - ratio(2 * a * b, n)
    return 1 - ratio(observed, expected)


def wilson(successes: int, n: int, *, n_unscored: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """Wilson's score interval for a share (Wilson 1927, JASA 22:209-212).

    Args:
        successes: number of hits.
        n: number of trials; with 0 all is NaN.
        n_unscored: trials left out, carried along.
        confidence: of the interval.
    """
    if n <= 0:
        return _nothing(n_unscored)
    from scipy import special

    z = float(special.ndtri(0.5 + confidence / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Estimate(share, max(0.0, centre - half), min(1.0, centre + half), n, n_unscored, n)


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Exact two-sided McNemar test (McNemar 1947, Psychometrika 12:153-157), as a sign test on discordant pairs.

    Args:
        only_first: pairs right in the first condition only.
        only_second: pairs right in the second condition only.

    Returns:
        The p value; 1 where no pair is discordant.
    """
    from scipy import special

    # The binomial with one half is symmetric, so twice the smaller tail is the exact two-sided value.
    return min(1.0, 2.0 * float(special.bdtr(min(only_first, only_second), only_first + only_second, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values (Holm 1979, Scandinavian Journal of Statistics 6:65-70).

    Args:
        p_values: raw p values; NaN (no test) stays NaN and is not counted.

    Returns:
        Adjusted p values in the order given.
    """
    adjusted = [float("nan")] * len(p_values)
    tested = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    running = 0.0
    for rank, (p, i) in enumerate(tested):
        running = max(running, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = running
    return adjusted


def bootstrap_p(estimate: Estimate, threshold: float = 0.0) -> float:
    """Two-sided p value of an estimate against a threshold, from its bootstrap draws.

    The share of draws on the far side of the threshold becomes a z score, which is shrunk by sqrt((C - 1) / C) and
    read off Student's t with C - 1 degrees of freedom: the inverse of the expansion of the interval. Where fewer than
    ten draws lie beyond the threshold the share is too coarse (Holm would multiply its floor past 0.05), and z comes
    from a normal fit to the draws. Where all draws agree, the sign test over questions is the best that can be said.

    Args:
        estimate: with its draws.
        threshold: the value that the rule compares with.

    Returns:
        The p value, or NaN where the estimate has no interval.
    """
    draws = estimate.draws[np.isfinite(estimate.draws)]
    c = estimate.n_clusters
    if not draws.size or c < 2 or math.isnan(estimate.value) or math.isnan(estimate.low):
        return float("nan")
    from scipy import special

    spread = float(draws.std())
    if spread <= _FLAT * max(1.0, abs(estimate.value)):
        return 1.0 if abs(estimate.value - threshold) <= _FLAT else min(1.0, 2.0 * 0.5**c)
    beyond = min(int((draws <= threshold).sum()), int((draws >= threshold).sum()))
    z = -abs(float(special.ndtri(min(0.5, (beyond + 1) / (draws.size + 1)))))
    z_normal = -abs(estimate.value - threshold) / spread
    if beyond < _TAIL_DRAWS:
        z = min(z, z_normal)
    elif c < _FEW_CLUSTERS:
        z = max(z, z_normal)
    return min(1.0, 2.0 * float(special.stdtr(c - 1, z * math.sqrt((c - 1) / c))))


def area_p(area: Estimate, threshold: float) -> float:
    """Two-sided p value of an AUROC against a threshold: beyond it, near 0 or 1, by the spread at the threshold.

    There the draws of an AUROC hardly differ, however few questions there are, and say nothing of how an AUROC at
    the threshold varies. Spreads go with sqrt(A (1 - A)), as those of a share do, and are never taken for smaller than
    with ten independent pairs a question. So an AUROC of ten questions that is 0.9 in truth seldom seems surely higher
    (simulated in the tests), which by its draws alone happens several times as often as it should.

    Args:
        area: with its draws.
        threshold: the value that the rule compares with, between 0 and 1.
    """
    extreme = abs(area.value - 0.5) > abs(threshold - 0.5)
    return _p_at(area, threshold, _area_spread(area, threshold)) if extreme else bootstrap_p(area, threshold)


def area_loss_p(before: Estimate, after: Estimate, threshold: float) -> float:
    """The same for the loss of AUROC from one detector to another, `before` minus `after`, against a threshold.

    Both must come from the same questions and the same stream. At the threshold `after` lies that far under `before`.
    """
    loss = excess(before, after)
    if not loss.draws.size:
        return float("nan")
    lost = min(max(before.value - threshold, 0.0), 1.0)
    if not abs(after.value - 0.5) > abs(lost - 0.5):
        return bootstrap_p(loss, threshold)
    own, at = _area_spread(after, after.value), _area_spread(after, lost)
    spread = math.sqrt(max(float(np.nanvar(loss.draws)) - own * own, 0.0) + at * at)
    return _p_at(loss, threshold, spread)


def _area_spread(area: Estimate, at: float) -> float:
    """The standard error that an AUROC would have if its true value were `at`."""
    k = max(area.n_clusters, 1)
    value, true = (min(max(a, 1 / (8 * k)), 1 - 1 / (8 * k)) for a in (area.value, at))
    drawn = float(np.nanstd(area.draws)) if np.isfinite(area.draws).any() else 0.0
    unit = max(drawn / math.sqrt(value * (1 - value)), 1 / math.sqrt(10 * k))
    return unit * math.sqrt(true * (1 - true))


def _p_at(estimate: Estimate, threshold: float, spread: float) -> float:
    """The larger of the p value by the draws and of the one by a spread."""
    from scipy import special

    drawn, c = bootstrap_p(estimate, threshold), estimate.n_clusters
    if math.isnan(drawn):
        return drawn
    z = -abs(estimate.value - threshold) / spread * math.sqrt((c - 1) / c)
    return max(drawn, min(1.0, 2.0 * float(special.stdtr(c - 1, z))))


def _estimate(
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
    if n_clusters < _FEW_CLUSTERS:
        half = -quantile * widen * float(finite.std())
        low, high = min(low, value - half), max(high, value + half)
    return low, high


def _nothing(n_unscored: int, *, n: int = 0, n_clusters: int = 0) -> Estimate:
    nan = float("nan")
    return Estimate(nan, nan, nan, int(n), int(n_unscored), int(n_clusters))


def _valid(clusters: ArrayLike, *columns: ArrayLike) -> tuple[list[FloatArray], IntArray, int]:
    """The rows where every column is finite, the question of each as 0..C-1, and the number of rows dropped."""
    arrays = [np.asarray(column, dtype=float) for column in columns]
    keep = np.logical_and.reduce([np.isfinite(array) for array in arrays])
    codes = np.unique(np.asarray(clusters).astype(str)[keep], return_inverse=True)[1]
    return [array[keep] for array in arrays], codes.astype(np.int64), int((~keep).sum())


def _valid_with_groups(
    clusters: ArrayLike, groups: ArrayLike, names: NDArray[np.str_], *columns: ArrayLike
) -> tuple[list[FloatArray], IntArray, int, IntArray]:
    arrays = [np.asarray(column, dtype=float) for column in columns]
    keep = np.logical_and.reduce([np.isfinite(array) for array in arrays])
    kept, codes, unscored = _valid(clusters, *columns)
    return kept, codes, unscored, np.searchsorted(names, np.asarray(groups).astype(str)[keep]).astype(np.int64)


def _count(codes: IntArray) -> int:
    return int(codes.max()) + 1 if codes.size else 0


def draw_clusters(n_clusters: int, resamples: int, rng: np.random.Generator) -> FloatArray:
    """How often each question is drawn in each resample: `(resamples, n_clusters)`."""
    return rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=resamples).astype(float)


def _cluster_means(values: ArrayLike, clusters: ArrayLike) -> tuple[dict[str, tuple[float, int]], int]:
    """Question -> (mean, number of valid values), and the number of missing values."""
    array, names = np.asarray(values, dtype=float), np.asarray(clusters).astype(str)
    keep = np.isfinite(array)
    unique, codes = np.unique(names[keep], return_inverse=True)
    sums = np.bincount(codes, weights=array[keep], minlength=len(unique))
    sizes = np.bincount(codes, minlength=len(unique))
    means = {str(u): (float(s / k), int(k)) for u, s, k in zip(unique, sums, sizes, strict=True)}
    return means, int((~keep).sum())


def _standard(values: FloatArray) -> FloatArray:
    """Centre and scale, so that sums of squares do not cancel; correlations do not change."""
    spread = float(values.std())
    # A constant column keeps a spread of rounding errors, which scaling would blow up into a fake variance.
    flat = spread <= _FLAT * max(1.0, float(np.abs(values).max()))
    centred = values - values.mean()
    return np.zeros_like(values) if flat else centred / spread


def _moments(x: FloatArray, y: FloatArray, codes: IntArray, groups: IntArray, n_groups: int) -> FloatArray:
    """Sums of 1, x, y, xx, yy, xy per question and condition: `(n_clusters, n_groups, 6)`."""
    sums: FloatArray = np.zeros((_count(codes), n_groups, 6))
    np.add.at(sums, (codes, groups), np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1))
    return sums


def _r_of(moments: FloatArray, min_sd: float = 0.0) -> FloatArray:
    """Pearson's r from sums `(..., 6)`; NaN where a column is constant, too short, or y's SD is under `min_sd`."""
    n, sx, sy, sxx, syy, sxy = np.moveaxis(moments, -1, 0)
    enough = n >= MIN_CONDITION_POINTS
    size = np.where(enough, n, MIN_CONDITION_POINTS)
    vx, vy = sxx - sx * sx / size, syy - sy * sy / size
    varied = enough & (vx > _FLAT * size) & (vy > _FLAT * size) & (vy / (size - 1) >= min_sd**2)
    product = np.where(varied, vx * vy, 1.0)
    r = (sxy - sx * sy / size) / np.sqrt(product)
    return np.where(varied, np.clip(r, -1, 1), np.nan)


def _nanmean(values: FloatArray) -> FloatArray:
    """Mean over the last axis of what is finite; NaN, without a warning, where nothing is."""
    finite = np.isfinite(values)
    return ratio(np.where(finite, values, 0.0).sum(axis=-1), finite.sum(axis=-1).astype(float))


def ratio(top: FloatArray, bottom: FloatArray) -> FloatArray:
    """Elementwise quotient, NaN, without a warning, where the lower part is not above 0."""
    safe = np.where(bottom > 0, bottom, 1.0)
    return np.where(bottom > 0, top / safe, np.nan)


def _one_hot(codes: IntArray, n_clusters: int) -> FloatArray:
    return np.eye(n_clusters)[codes]


def _balanced(columns: FloatArray) -> FloatArray:
    return (ratio(columns[:, 0], columns[:, 1]) + ratio(columns[:, 2], columns[:, 3])) / 2


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
