"""What a rule finds about one claim and trait, before Holm's correction."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """A verdict with its reason and the numbers behind it.

    Attributes:
        verdict: one of `verdicts.VERDICTS`.
        reason: in words, with the bounds it was decided by.
        estimate: the claim's statistic, in its units.
        low: lower end of its 95 % interval.
        high: upper end.
        n: valid samples behind it.
        p: of the rule's test, two-sided; NaN where none was made.
        log: the logs it comes from, joined by "; ".
    """

    verdict: str
    reason: str
    estimate: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    p: float = math.nan
    log: str = ""
