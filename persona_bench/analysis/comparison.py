"""The figures of all runs in a results folder, drawn anew from their tables: each run's own, and models side by side.

A pure function of the tables and run.json files: no date but that of the runs, so the same tables give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from persona_bench.analysis.coverage import coverage_figure, coverage_table
from persona_bench.analysis.figures.draw import draw_all, verdict_matrix
from persona_bench.analysis.figures.drawing import (
    GREY,
    MARKERS,
    Caption,
    all_traits,
    drawing_style,
    flat_text,
    named_traits,
    new_figure,
    put_foot,
    save,
    trait_colours,
)
from persona_bench.analysis.runs import Run, read_runs
from persona_bench.analysis.tables.files import write_tables
from persona_bench.analysis.tables.tradeoff import SCORED_SHARE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DRAWN = ("png", "pdf")
COMPARISON = "comparison"
COVERAGE = "coverage"


def draw_results(results: Path, out: Path, say: Callable[[str], None] | None = None) -> list[Path]:
    """Draw every figure of every run into one folder, and remove figures there that no table stands behind any more.

    Args:
        results: the results folder.
        out: is made where it does not exist; only its .png and .pdf files and coverage.csv are touched.
        say: told which run is drawn.

    Returns:
        The files, `<model>-<preset>-<figure>`, `comparison-<preset>-<figure>` and `coverage`, a PNG and a PDF each, and
        `coverage.csv`.
    """
    runs = read_runs(results)
    drawn: list[Path] = []
    for run in runs:
        if say is not None:
            say(f"drawing {run.model}, preset {run.preset}")
        drawn += draw_all(run.tables, out, run.caption, prefix=f"{run.stem}-")
    coverage = _coverage(runs)
    drawn += write_tables({COVERAGE: coverage}, out)
    with drawing_style():
        for name, figure in _comparisons(runs):
            drawn += save(figure, out / name)
        if (coverage["verdict"] != "not run").any():
            drawn += save(
                coverage_figure(coverage, _caption(runs).line(f"{len(coverage)} verdicts of {len(runs)} runs")),
                out / COVERAGE,
            )
    kept = {path.name for path in drawn}
    for path in sorted(out.iterdir()):
        if path.suffix.lstrip(".") in DRAWN and path.name not in kept:
            path.unlink()
    return drawn


def _comparisons(runs: Sequence[Run]) -> Iterator[tuple[str, Figure]]:
    """Of every preset that several models ran: verdicts by model and claim, steering and monitoring by model."""
    for preset in sorted({run.preset for run in runs}):
        some = [run for run in runs if run.preset == preset]
        if len(some) < 2:
            continue
        yield f"{COMPARISON}-{preset}-claims", _verdicts(some)
        for name, panels in (("steering", _steering), ("monitoring", _monitoring)):
            figure = panels(some)
            if figure is not None:
                yield f"{COMPARISON}-{preset}-{name}", figure


def _coverage(runs: Sequence[Run]) -> pd.DataFrame:
    """Every verdict of every run, whatever its preset."""
    told = [
        ({"model": run.model, "preset": run.preset, "grader": run.caption.grader, **run.facts}, run.tables["claims"])
        for run in runs
    ]
    return coverage_table(told)


def _caption(runs: Sequence[Run]) -> Caption:
    """What the runs share, and all of what they do not."""

    def joined(values: Sequence[str]) -> str:
        return ", ".join(dict.fromkeys(values))

    seeds = {run.caption.seed for run in runs}
    return Caption(
        joined([run.model for run in runs]),
        joined([run.preset for run in runs]),
        joined([run.caption.grader for run in runs]),
        joined(sorted(run.caption.date for run in runs)),
        seeds.pop() if len(seeds) == 1 else None,
    )


def _verdicts(runs: Sequence[Run]) -> Figure:
    parts = [run.tables["claims"].assign(model=run.model) for run in runs]
    claims = pd.concat(parts)
    several = claims["trait"].nunique() > 1
    columns = claims["model"] + ("\n" + claims["trait"] if several else "")
    return verdict_matrix(claims.assign(column=columns), _caption(runs), order=list(dict.fromkeys(columns)))


def _steering(runs: Sequence[Run]) -> Figure | None:
    """Change in trait score against relative dose at the chosen layer: a panel a model, a colour a trait."""
    lines = [(run, _chosen_line(run)) for run in runs]
    lines = [(run, line) for run, line in lines if len(line)]
    if not lines:
        return None
    figure = new_figure(4.4, width=2.6 * len(lines) + 0.6)
    panels = list(np.atleast_1d(figure.subplots(1, len(lines), sharex=True, sharey=True)))
    colours = _colours(runs)
    for axes, (run, line) in zip(panels, lines, strict=True):
        axes.axhline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
        for index, trait in enumerate(named_traits(line)):
            for vector, dashes in (("persona", "-"), ("random", "--")):
                part = line[(line["trait"] == trait) & (line["vector"] == vector)].sort_values("relative_dose")
                if part.empty:
                    continue
                colour = colours[trait] if vector == "persona" else GREY
                _errors(axes, part, "relative_dose", "difference", colour, dashes, index, trait, vector)
        axes.set_title(flat_text(run.model, 28), color="black")
        axes.set_xlabel("relative dose |αv| / |h|")
    panels[0].set_ylabel("change in trait score (points)")
    _shared_legend(figure, panels)
    n = int(sum(line["n"].sum() for _, line in lines))
    note = (
        "At each trait's chosen layer, report half, where half of the answers or more have a score. "
        "Bars: 95 % intervals, bootstrapped by question."
    )
    put_foot(figure, _caption([run for run, _ in lines]).line(n), note)
    return figure


def _errors(
    axes: Any, part: pd.DataFrame, x: str, y: str, colour: str, dashes: str, index: int, trait: str, vector: str
) -> None:
    value, low, high = (part[f"{y}{end}"].astype(float).to_numpy() for end in ("", "_low", "_high"))
    axes.errorbar(
        part[x].astype(float),
        value,
        yerr=np.clip(np.stack([value - low, high - value]), 0, None),
        color=colour,
        linestyle=dashes,
        marker=MARKERS[index % len(MARKERS)],
        markersize=5,
        capsize=2.5,
        linewidth=1.5,
        label=flat_text(trait) if vector == "persona" else "random vectors",
    )


def _chosen_line(run: Run) -> pd.DataFrame:
    """The report-half cells at each trait's chosen layer, with the random ones of the layer nearest to it.

    As for the choice, a cell where too few of the answers have a score says nothing: two would set the scale for all.
    """
    cells, choice = run.tables["steering"], run.tables["steering_choice"]
    report = cells[(cells["half"] == "report") & (cells["n_scored"] >= SCORED_SHARE * cells["n"])]
    report = report.dropna(subset=["difference"])
    parts = [report.iloc[:0]]
    for _, chosen in choice[(choice["sign"] == "positive") & choice["layer"].notna()].iterrows():
        for vector in ("persona", "random"):
            part = report[(report["trait"] == chosen["trait"]) & (report["vector"] == vector)]
            distance = (part["layer"].astype(float) - float(chosen["layer"])).abs()
            # Controls are run at fewer layers than the vector is.
            parts.append(part[distance == (0 if vector == "persona" else distance.min())])
    return pd.concat(parts)


def _monitoring(runs: Sequence[Run]) -> Figure | None:
    """Pearson r of the last prompt token with the trait score by trait and condition, overall and within."""
    parts = [(run, _main_rows(run)) for run in runs]
    parts = [(run, rows) for run, rows in parts if len(rows)]
    if not parts:
        return None
    every = pd.concat([rows for _, rows in parts])
    names = sorted(set(zip(every["trait"], every["condition"], strict=True)))
    figure = new_figure(1.8 + 0.42 * len(names), width=2.6 * len(parts) + 1.4)
    panels = list(np.atleast_1d(figure.subplots(1, len(parts), sharey=True)))
    colours = _colours(runs)
    for axes, (run, rows) in zip(panels, parts, strict=True):
        axes.axvline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
        for _, row in rows.iterrows():
            y = names.index((row["trait"], row["condition"]))
            for column, shift, filled in (("r", -0.13, True), ("r_within", 0.13, False)):
                if pd.isna(row[column]):
                    continue
                value, low, high = (float(row[f"{column}{end}"]) for end in ("", "_low", "_high"))
                axes.errorbar(
                    [value],
                    [y + shift],
                    xerr=[[max(value - low, 0)], [max(high - value, 0)]],
                    color=colours[row["trait"]],
                    marker="o",
                    markerfacecolor=colours[row["trait"]] if filled else "white",
                    markersize=6,
                    capsize=2.5,
                    linestyle="none",
                )
        axes.set_xlim(-1.03, 1.03)
        axes.set_title(flat_text(run.model, 28), color="black")
        axes.set_xlabel("Pearson r")
    labels = [
        flat_text(trait) if c == "ladder" else f"{flat_text(trait)},\n{c.replace('_', ' ')}" for trait, c in names
    ]
    panels[0].set_yticks(range(len(names)), labels)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    n = int(sum(rows["n"].sum() for _, rows in parts))
    note = "Filled: overall. Open: within conditions. Report half, chosen layer, last prompt token. Bars: 95 %."
    put_foot(figure, _caption(runs).line(f"{n} points"), note)
    return figure


def _main_rows(run: Run) -> pd.DataFrame:
    rows = run.tables["monitoring"]
    return rows[
        (rows["half"] == "report")
        & (rows["direction"] == "persona")
        & (rows["signal"] == "prompt_last")
        & (rows["chosen_layer"].astype(str) == "True")
    ].dropna(subset=["r"])


def _colours(runs: Sequence[Run]) -> dict[str, str]:
    return trait_colours(sorted({trait for run in runs for trait in all_traits(run.tables)}))


def _shared_legend(figure: Figure, panels: Sequence[Any]) -> None:
    """One legend for all panels, with what each of them shows."""
    shown = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    # What is steered comes first, its controls after.
    labels = sorted(shown, key=lambda label: "random" in label)
    handles = [shown[label] for label in labels]
    columns = min(4, 2 * len(panels), len(labels))
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)
