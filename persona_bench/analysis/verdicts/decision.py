"""What the rules share: what they may look at, what keeps a claim from being tested, bounds to a verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.finding import Finding
from persona_bench.analysis.samples.frames import Samples
from persona_bench.analysis.verdicts.bound import Bound
from persona_bench.definitions.claims import (
    MIN_QUESTIONS,
    Claim,
)


@dataclass(frozen=True)
class Run:
    """What every rule may look at.

    Attributes:
        samples: what was measured.
        tables: as `build_tables` gives them.
        layers: trait -> chosen layer.
        seed: of the resampling.
        resamples: bootstrap resamples for each interval.
    """

    samples: Samples
    tables: Mapping[str, pd.DataFrame]
    layers: Mapping[str, float]
    seed: int
    resamples: int

    def rng(self, *key: object) -> np.random.Generator:
        """A random stream of the claims' own, one a key."""
        return st.stream(self.seed, "claims", *key)


Rule = Callable[[Run, Claim, str], Finding]


def untestable(reason: str, *, n: int = 0, log: str = "") -> Finding:
    """What a claim gets that cannot be put to its rule."""
    return Finding("not testable", reason, n=n, log=log)


def too_few(claim: Claim, counts: Mapping[str, int], questions: int, log: str) -> Finding | None:
    """Whether any of `counts` is under what the claim needs, or there are too few questions to resample."""
    short = [f"{name} {n}" for name, n in counts.items() if n < claim.min_n]
    if short:
        n = min(counts.values())
        return untestable(f"too few valid samples: {', '.join(short)}, needed {claim.min_n}", n=n, log=log)
    if questions < MIN_QUESTIONS:
        n = min(counts.values())
        return untestable(f"too few questions in common: {questions}, needed {MIN_QUESTIONS}", n=n, log=log)
    return None


def decide(bounds: Sequence[Bound], log: str) -> Finding:
    """All parts clear: supported; any part on the other side: contradicted; else inconclusive.

    Support needs every part, so its p value is the largest (intersection-union test, Berger 1982, Technometrics
    24:295-300); contradiction needs only one, so its p value is the smallest, times the number of parts.
    """
    main = bounds[0].estimate
    p_values = [st.bootstrap_p(bound.estimate, bound.threshold) for bound in bounds]
    if all(bound.clear for bound in bounds):
        verdict, p, reason = "supported", max(p_values), "; ".join(str(bound) for bound in bounds)
    elif any(bound.broken for bound in bounds):
        broken = [(st.bootstrap_p(bound.estimate, bound.breaks_at), bound) for bound in bounds if bound.broken]
        verdict, p = "contradicted", min(1.0, len(bounds) * min(p for p, _ in broken))
        reason = "; ".join(str(bound) for _, bound in broken)
    else:
        verdict, p = "inconclusive", max(p_values)
        reason = "the interval spans the threshold: " + "; ".join(str(b) for b in bounds if not b.clear)
    return Finding(verdict, reason, main.value, main.low, main.high, main.n, p, log)
