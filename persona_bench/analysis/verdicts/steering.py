"""The rules of the claims about steering at inference."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from persona_bench.analysis import statistics as st
from persona_bench.analysis.finding import Finding
from persona_bench.analysis.grouping import in_common, log_names, scored, single
from persona_bench.analysis.tables.steering import control_of
from persona_bench.analysis.verdicts.bound import Bound
from persona_bench.analysis.verdicts.decision import Rule, Run, decide, too_few, untestable
from persona_bench.analysis.verdicts.judge import coherence_gate
from persona_bench.definitions.claims import (
    TRAIT_FLOOR,
    Claim,
)


@dataclass(frozen=True)
class _Cells:
    """The samples of the report half that a steering claim compares."""

    steered: pd.DataFrame
    plain: pd.DataFrame
    control: pd.DataFrame

    @property
    def log(self) -> str:
        return log_names(pd.concat([self.steered, self.plain, self.control]))


def _cells(run: Run, trait: str, sign: str) -> _Cells | Finding:
    """The chosen cell on the report half with its controls, or why there is none."""
    choice = run.tables["steering_choice"]
    chosen = choice[(choice["trait"] == trait) & (choice["sign"] == sign)].iloc[0]
    if math.isnan(chosen["layer"]):
        return untestable(str(chosen["reason"]))
    frame = run.samples.steering
    report = single(frame[(frame["trait"] == trait) & (frame["half"] == "report")])
    at_cell = (report["layer"] == chosen["layer"]) & np.isclose(
        report["coefficient"].astype(float), chosen["coefficient"]
    )
    steered = report[(report["vector"] == "persona") & at_cell]
    plain = report[report["vector"] == "none"]
    if steered.empty or plain.empty:
        missing = "the chosen cell" if steered.empty else "the unsteered cell"
        return Finding("not run", f"{missing} was not run on the report half")
    control = control_of(report, float(chosen["layer"]), float(chosen["relative_dose"]))
    return _Cells(steered, plain, control)


def _change(run: Run, a: pd.DataFrame, b: pd.DataFrame, *key: str, column: str = "") -> st.Estimate:
    """Paired difference a - b in the trait score, or in another column; `key` names the stream."""
    first, second = (part[column].astype(float) if column else scored(part) for part in (a, b))
    rng = run.rng("steering", *key, column)
    return st.paired_difference(first, a["question_id"], second, b["question_id"], rng=rng, resamples=run.resamples)


def _in_common(steered: pd.DataFrame, others: Mapping[str, pd.DataFrame], column: str = "") -> dict[str, int]:
    """Valid values of each cell on the questions that it has in common with the steered one."""
    found: dict[str, int] = {}
    for name, other in others.items():
        first, second = (part[column].astype(float) if column else scored(part) for part in (steered, other))
        both = in_common(first, steered, second, other)
        found |= {f"steered beside {name}": both[0], f"{name} beside steered": both[1]}
    return found


def _against_control(run: Run, claim: Claim, trait: str, cells: _Cells, sign: str) -> Finding:
    """The change in trait score, to unsteered and to the random control.

    The second is the difference of the two differences to unsteered, as the unsteered mean cancels.
    """
    side = 1 if sign == "positive" else -1
    if cells.control.empty:
        return untestable("no random-vector control of this dose was run on the report half", log=cells.log)
    effect = _change(run, cells.steered, cells.plain, trait, sign)
    beyond = _change(run, cells.steered, cells.control, trait, sign)
    counts = _in_common(cells.steered, {"unsteered": cells.plain, "random control": cells.control})
    few = too_few(claim, counts, min(effect.n_clusters, beyond.n_clusters), cells.log)
    if few:
        return few
    bounds = [
        Bound("to unsteered", effect, side, claim.threshold),
        Bound("to the random control", beyond, side, claim.threshold),
    ]
    return decide(bounds, cells.log)


def _steering_induces(run: Run, claim: Claim, trait: str) -> Finding:
    elicitation = run.tables["elicitation"]
    prompted = elicitation[(elicitation["trait"] == trait) & (elicitation["side"] == "positive")]
    # Without elicitation samples (a vector from elsewhere) there is nothing to hold against the claim.
    if not prompted.empty and not prompted["difference_low"].iloc[0] > 0:
        row = prompted.iloc[0]
        spread = f"{row['difference']:.3g} [{row['difference_low']:.3g}, {row['difference_high']:.3g}]"
        return untestable(f"trait not induced by prompting: positive minus negative instructions {spread}")
    cells = _cells(run, trait, "positive")
    return cells if isinstance(cells, Finding) else _against_control(run, claim, trait, cells, "positive")


def _steering_suppresses(run: Run, claim: Claim, trait: str) -> Finding:
    cells = _cells(run, trait, "negative")
    if isinstance(cells, Finding):
        return cells
    floor = float(scored(cells.plain).mean())
    if floor < TRAIT_FLOOR:
        n = int(scored(cells.plain).notna().sum())
        reason = f"unsteered trait score {floor:.2g} is under {TRAIT_FLOOR:g}: nothing to suppress"
        return untestable(reason, n=n, log=cells.log)
    return _against_control(run, claim, trait, cells, "negative")


def _steering_costs_coherence(run: Run, claim: Claim, trait: str) -> Finding:
    cells = _cells(run, trait, "positive")
    if isinstance(cells, Finding):
        return cells
    log = log_names(pd.concat([cells.steered, cells.plain]))
    effect = _change(run, cells.steered, cells.plain, trait, "positive", column="coherence")
    counts = _in_common(cells.steered, {"unsteered": cells.plain}, "coherence")
    if shut := coherence_gate(run, trait):
        return untestable(f"judge gate: {shut}", n=effect.n, log=log)
    few = too_few(claim, counts, effect.n_clusters, log)
    return few or decide([Bound("change in coherence", effect, -1, claim.threshold)], log)


STEERING_RULES: Mapping[str, Rule] = {
    "C1-steering-induces": _steering_induces,
    "C2-steering-suppresses": _steering_suppresses,
    "C6-steering-costs-coherence": _steering_costs_coherence,
}
