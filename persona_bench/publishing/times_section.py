"""How long the published runs took, stage by stage, as their run.json says."""

from __future__ import annotations

from collections.abc import Sequence

from persona_bench.analysis.report.markdown import md
from persona_bench.analysis.runs import Run
from persona_bench.pipeline.settings import STAGES
from persona_bench.publishing.words import label, table

NOTHING = "No published run holds the times of all its stages yet; every `run.json` holds those of its own."


def text(runs: Sequence[Run]) -> str:
    """A column a run that was made on one machine, a row a stage, in minutes."""
    whole = [run for run in runs if set(STAGES) <= set(_seconds(run))]
    if not whole:
        return NOTHING
    rows = [[md(stage), *(_minutes(_seconds(run)[stage]) for run in whole)] for stage in STAGES]
    rows.append(["all", *(f"{sum(_seconds(run).values()) / 3600:.1f} hours" for run in whole)])
    return table(["minutes", *(f"{md(label(run))}; {_where(run)}" for run in whole)], rows)


def _seconds(run: Run) -> dict[str, float]:
    return {str(stage): float(seconds) for stage, seconds in run.held.get("timings", {}).items()}


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f}" if seconds >= 60 else "under 1"


def _where(run: Run) -> str:
    """The device and what of the machine was at work on it."""
    machine, told = run.held.get("machine", {}), [md(run.held["weights"]["model"]["device"])]
    told += [f"{machine[name]} {name}" for name in ("threads", "processes") if machine.get(name, 1) > 1]
    return ", ".join(told)
