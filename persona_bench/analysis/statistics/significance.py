"""P values: McNemar's test, Holm's correction, and an estimate against a threshold."""

import math
from collections.abc import Sequence

import numpy as np

from persona_bench.analysis.statistics.controls import excess
from persona_bench.analysis.statistics.resampling import FEW_CLUSTERS, FLAT, Estimate

_TAIL_DRAWS = 10
"""With fewer draws than this beyond a threshold, the tail share is read off a normal fit to the draws."""


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
    if spread <= FLAT * max(1.0, abs(estimate.value)):
        return 1.0 if abs(estimate.value - threshold) <= FLAT else min(1.0, 2.0 * 0.5**c)
    beyond = min(int((draws <= threshold).sum()), int((draws >= threshold).sum()))
    z = -abs(float(special.ndtri(min(0.5, (beyond + 1) / (draws.size + 1)))))
    z_normal = -abs(estimate.value - threshold) / spread
    if beyond < _TAIL_DRAWS:
        z = min(z, z_normal)
    elif c < FEW_CLUSTERS:
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
