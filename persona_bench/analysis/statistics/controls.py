"""Statistics of controls and of random directions, and how far one of interest lies beyond them."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from persona_bench.analysis.statistics.resampling import CONFIDENCE, Estimate, estimate, nothing

_DIRECTION_CONFIDENCE = 0.999
"""A gate that let one random direction in forty pass would be none."""


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
        return nothing(0, n=own.size, n_clusters=own.size)
    from scipy import special

    beyond, means, k = own - other.mean(axis=1), other.mean(axis=0), other.shape[1]
    by_question = float(beyond.std(ddof=1)) / math.sqrt(own.size) * special.stdtrit(own.size - 1, (1 + CONFIDENCE) / 2)
    by_direction = (
        float(means.std(ddof=1)) * math.sqrt(1 + 1 / k) * special.stdtrit(k - 1, (1 + _DIRECTION_CONFIDENCE) / 2)
    )
    value, half = float(beyond.mean()), math.hypot(by_question, by_direction)
    return Estimate(value, value - half, value + half, own.size, 0, own.size)


def excess_strength(first: Estimate, second: Estimate) -> Estimate:
    """How much more strongly one predictor correlates than a control whose sign means nothing: r - abs(r_control).

    Both must come from the same questions and from the same stream, so that their draws are paired. The absolute
    value favours the control, which makes the comparison careful.

    Args:
        first: the correlation of the predictor.
        second: the correlation of the control.
    """
    if first.draws.size != second.draws.size or first.n_clusters != second.n_clusters:
        return nothing(first.n_unscored)
    return estimate(
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
        return nothing(first.n_unscored)
    return estimate(
        first.value - second.value,
        first.draws - second.draws,
        n=first.n,
        n_unscored=first.n_unscored,
        n_clusters=first.n_clusters,
    )


def _mean_of(found: Sequence[Estimate]) -> Estimate:
    if len({(one.draws.size, one.n_clusters) for one in found}) > 1:
        return nothing(sum(one.n_unscored for one in found))
    return estimate(
        float(np.mean([one.value for one in found])),
        np.mean([one.draws for one in found], axis=0),
        n=found[0].n,
        n_unscored=found[0].n_unscored,
        n_clusters=found[0].n_clusters,
    )
