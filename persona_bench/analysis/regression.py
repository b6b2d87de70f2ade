"""Is this vector as good as the last one? Measurements of one vector -> checks, by fixed rules.

Without a baseline a measurement is held against a fixed bound: it is `worse` if its whole 95 % interval lies on the bad
side. What makes a vector one, that it tells its trait better than a random direction, must be shown in one of two ways
that need no judge: where neither interval clears its bound, both are `worse`. These two ways were chosen after seeing
what they and others gave on two vectors and two random directions of SmolLM2-135M, so those do not confirm them.

With a baseline, a measurement is also `worse` if the whole 95 % interval of its difference to the baseline's lies on
the bad side. That interval is made of the two intervals as if their questions had been drawn independently: paired
ones are narrower, but answer only for these questions, and would call a vector worse that was extracted anew with
another seed. An unchanged vector is never worse than itself.

What cannot be measured is `not testable`, with the reason, and never passes for good.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from persona_bench.analysis import statistics as st
from persona_bench.errors import DataError
from persona_bench.files import write_atomic
from persona_bench.vectors.extraction import MAX_REFUSAL_COSINE

FORMAT: Literal["persona-bench-check/1"] = "persona-bench-check/1"
MAX_BYTES = 2**24
MIN_COSINE = 0.5
"""Under this cosine with the baseline's vector the two share less than a quarter of their variance."""
MAX_SHARE = 0.5
"""A single coordinate with more than this share of the squared norm makes a vector of one neuron."""

Status = Literal["good", "worse", "inconclusive", "not testable"]


@dataclass(frozen=True)
class Rule:
    """How one measurement is judged.

    Attributes:
        id: short name, in tables, JUnit and baselines.
        what: what is measured, with its unit.
        side: +1 if more is better, -1 if less is.
        bound: what the value is held against, with a baseline or without.
        shown: whether it is one of those of which one at least must clear its bound.
        compared: whether it is held against the baseline too. A number that is not sampled has no interval, so no
            tolerance either, and is held against its bound alone.
    """

    id: str
    what: str
    side: int
    bound: float
    shown: bool = False
    compared: bool = True


RULES: tuple[Rule, ...] = (
    Rule("norms", "layers whose direction is zero, or lies in a single coordinate", -1, 0.0, compared=False),
    Rule(
        "refusal cosine",
        "cosine with refusal at the layer: along it, steering makes refuse",
        -1,
        MAX_REFUSAL_COSINE,
        compared=False,
    ),
    Rule("baseline cosine", "cosine with the baseline's vector at the layer", 1, MIN_COSINE, compared=False),
    Rule("separation", "projection of responses told to show the trait minus told not to, beyond random", 1, 0.0, True),
    Rule("labelled answers", "projection of answers with the trait minus without, beyond random", 1, 0.0, True),
    Rule("steering slope", "trait score points a unit of relative dose", 1, 0.0),
    Rule("steering beyond random", "that slope minus the random vectors'", 1, 0.0),
    Rule("coherence", "coherence steered minus unsteered (points)", 1, -25.0),
    Rule("monitoring r", "Pearson r, last prompt token against trait score, ladder", 1, 0.0),
    Rule("monitoring beyond random", "r minus the median |r| of random directions", 1, 0.0),
    Rule("MMLU", "accuracy steered minus unsteered (share)", 1, -0.1),
)
"""In the order in which they are shown."""


@dataclass(frozen=True)
class Measure:
    """One measurement; without an interval (`low` and `high` are the value) it was not sampled.

    Attributes:
        value: NaN where it could not be taken.
        low: lower end of the 95 % interval.
        high: upper end.
        n: valid observations.
        reason: why it could not be taken, else "".
    """

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    n: int = 0
    reason: str = ""

    @classmethod
    def of(cls, estimate: st.Estimate, lacking: str = "too few valid samples for an interval") -> Measure:
        """From an estimate; not testable, with this reason, where it has no interval."""
        if math.isnan(estimate.low):
            return cls(n=estimate.n, reason=lacking)
        return cls(estimate.value, estimate.low, estimate.high, estimate.n)

    @classmethod
    def exact(cls, value: float, n: int, reason: str = "") -> Measure:
        """A number that is not sampled."""
        return cls(n=n, reason=reason) if math.isnan(value) else cls(value, value, value, n)

    @property
    def interval(self) -> st.Interval:
        """Without its counts."""
        return st.Interval(self.value, self.low, self.high)


@dataclass(frozen=True)
class Check:
    """One line of the result."""

    rule: Rule
    measure: Measure
    status: Status
    message: str
    baseline: Measure | None = None


class _Held(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _HeldMeasure(_Held):
    value: float = Field(allow_inf_nan=False)
    low: float = Field(allow_inf_nan=False)
    high: float = Field(allow_inf_nan=False)
    n: int = Field(ge=0)


class Baseline(_Held):
    """What a later vector is compared with.

    Attributes:
        format: of the file.
        trait: name of the trait.
        trait_hash: of its texts: other questions cannot be compared.
        weights_hash: of the model.
        grader: who judged, "none" for nobody.
        preset: sizes.
        seed: of sampling and resampling.
        layer: where everything was measured.
        vector_hash: content hash of the baseline's vector.
        direction: its direction at that layer, base64 of little-endian float32: compact, and enough for a cosine.
        measures: by rule; what was not testable is left out.
    """

    format: Literal["persona-bench-check/1"]
    trait: str
    trait_hash: str
    weights_hash: str
    grader: str
    preset: str
    seed: int
    layer: int = Field(ge=1)
    vector_hash: str
    direction: str
    measures: dict[str, _HeldMeasure]

    @classmethod
    def load(cls, path: Path) -> Baseline:
        """Read a file written by `save`.

        Raises:
            DataError: it is missing, too large, or not such a file.
        """
        try:
            if path.stat().st_size > MAX_BYTES:
                raise DataError(f"baseline {path} is larger than {MAX_BYTES} bytes; is it a baseline?")
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"cannot read baseline {path}: {error}; make one with --write-baseline") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise DataError(f"baseline {path}: {where}: {first['msg']}; make one with --write-baseline") from error

    def save(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises:
            DataError: it cannot be written.
        """
        write_atomic(path, json.dumps(self.model_dump(), indent=1, sort_keys=True) + "\n")

    def fit(self, path: Path, **facts: Any) -> None:
        """Refuse a baseline of something else.

        Args:
            path: of the file, for the message.
            facts: field -> what this check has.

        Raises:
            DataError: naming the first field that differs.
        """
        for name, value in facts.items():
            held = getattr(self, name)
            if held != value:
                raise DataError(
                    f"baseline {path} is of another {name.replace('_', ' ')}: {held!r}, this check has {value!r}; "
                    "check with the same one, or write a new baseline"
                )

    @property
    def array(self) -> np.ndarray:
        """The baseline's direction at the layer, `(d_model,)`.

        Raises:
            DataError: it is no such array.
        """
        try:
            values = np.frombuffer(base64.b64decode(self.direction, validate=True), dtype="<f4")
        except (binascii.Error, ValueError) as error:
            raise DataError(f"the baseline's direction is broken ({error}); make one with --write-baseline") from error
        if not values.size or not np.isfinite(values).all():
            raise DataError("the baseline's direction is empty or not finite; make one with --write-baseline")
        return values


def packed(direction: np.ndarray) -> str:
    """A direction as a baseline holds it."""
    return base64.b64encode(np.asarray(direction, dtype="<f4").tobytes()).decode()


def held_measures(measures: Mapping[str, Measure]) -> dict[str, _HeldMeasure]:
    """The measurements that a later check can be compared with."""
    kept = {name: item for name, item in measures.items() if not item.reason and name != "baseline cosine"}
    return {name: _HeldMeasure(value=m.value, low=m.low, high=m.high, n=m.n) for name, m in kept.items()}


def judge_measures(measures: Mapping[str, Measure], baseline: Baseline | None = None) -> list[Check]:
    """Every measurement against its rule, in the order of `RULES`; those that were not taken are left out."""
    held = {} if baseline is None else baseline.measures
    checks = [_check(rule, measures[rule.id], held.get(rule.id)) for rule in RULES if rule.id in measures]
    ways = [item for item in checks if item.rule.shown and item.status != "not testable"]
    # Worse than the baseline's is still something: what is asked here is whether an interval clears its bound.
    if any(item.measure.low > item.rule.bound for item in ways):
        return checks
    return [_unshown(item) if item in ways else item for item in checks]


def _unshown(check: Check) -> Check:
    """A check that was to show a vector better than random, and did not, where no other did."""
    parts = [part for part in (check.message, "nothing shows the vector to be better than random ones") if part]
    return replace(check, status="worse", message="; ".join(parts))


def _check(rule: Rule, measure: Measure, held: _HeldMeasure | None) -> Check:
    old = None if held is None else Measure(held.value, held.low, held.high, held.n)
    if measure.reason:
        return Check(rule, measure, "not testable", measure.reason, old)
    complaints: list[str] = []
    doubts: list[str] = []
    if _beyond(measure.high if rule.side > 0 else measure.low, rule.bound, rule.side):
        complaints.append(f"{_shown(measure.interval)} lies on the wrong side of {rule.bound:g}")
    elif _beyond(measure.low if rule.side > 0 else measure.high, rule.bound, rule.side):
        doubts.append(f"{_shown(measure.interval)} spans {rule.bound:g}")
    if old is not None and rule.compared:
        moved = st.change(measure.interval, old.interval)
        if _beyond(moved.high if rule.side > 0 else moved.low, 0.0, rule.side):
            complaints.append(f"changed by {_shown(moved)} from the baseline's {old.value:.3g}")
    if complaints:
        return Check(rule, measure, "worse", "; ".join(complaints), old)
    return Check(rule, measure, "inconclusive" if doubts else "good", "; ".join(doubts), old)


def _beyond(end: float, bound: float, side: int) -> bool:
    """Whether an end of an interval lies on the bad side of a bound."""
    return end * side < bound * side


def _shown(interval: st.Interval) -> str:
    if interval.low == interval.high:
        return f"{interval.value:.3g}"
    return f"{interval.value:.3g} [{interval.low:.3g}, {interval.high:.3g}]"


def exit_code(checks: Sequence[Check]) -> int:
    """0 as good, 1 worse, 2 if what must be shown could not be tested."""
    if any(item.status == "worse" for item in checks):
        return 1
    return 0 if any(item.rule.shown and item.status != "not testable" for item in checks) else 2


@dataclass(frozen=True)
class Outcome:
    """A finished check, as it is shown and written.

    Attributes:
        title: vector and model.
        facts: what was measured with what, name -> text.
        checks: in order.
    """

    title: str
    facts: Mapping[str, str]
    checks: Sequence[Check] = field(default_factory=tuple)

    @property
    def code(self) -> int:
        """The exit code."""
        return exit_code(self.checks)

    @property
    def verdict(self) -> str:
        """In a sentence."""
        names = {status: [c.rule.id for c in self.checks if c.status == status] for status in ("worse", "not testable")}
        said = {0: "as good", 1: f"worse: {', '.join(names['worse'])}", 2: "could not be checked"}[self.code]
        untested = f"; not testable: {', '.join(names['not testable'])}" if names["not testable"] else ""
        return said + untested

    def rows(self) -> list[tuple[str, ...]]:
        """(check, value with interval, n, baseline, status, message), as text."""
        return [
            (
                item.rule.id,
                "–" if item.measure.reason else _shown(item.measure.interval),
                str(item.measure.n),
                "–" if item.baseline is None else _shown(item.baseline.interval),
                item.status,
                item.message,
            )
            for item in self.checks
        ]

    def as_dict(self) -> dict[str, Any]:
        """For tests and other programs."""
        return {"title": self.title, "verdict": self.verdict, "checks": [asdict(item) for item in self.checks]}
