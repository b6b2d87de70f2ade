"""One part of a claim's rule: where an estimate should lie."""

from dataclasses import dataclass

from persona_bench.analysis import statistics as st


@dataclass(frozen=True)
class Bound:
    """`estimate` should lie on the `side` (+1 above, -1 below) of `threshold`.

    Attributes:
        what: is estimated, in words.
        estimate: with its interval.
        side: where the claim says.
        threshold: the whole interval beyond it clears the bound.
        limit: the whole interval on the other side of it breaks the bound; None where that is the threshold.
    """

    what: str
    estimate: st.Estimate
    side: int
    threshold: float = 0.0
    limit: float | None = None

    @property
    def clear(self) -> bool:
        """The whole interval lies where the claim says."""
        near = self.estimate.low if self.side > 0 else self.estimate.high
        return near * self.side > self.threshold * self.side

    @property
    def broken(self) -> bool:
        """The whole interval lies where the claim is wrong."""
        far = self.estimate.high if self.side > 0 else self.estimate.low
        return far * self.side < self.breaks_at * self.side

    @property
    def breaks_at(self) -> float:
        """What the interval must lie beyond to break the bound."""
        return self.threshold if self.limit is None else self.limit

    def __str__(self) -> str:
        e = self.estimate
        return f"{self.what} {e.value:.3g} [{e.low:.3g}, {e.high:.3g}] against {self.threshold:g}"
