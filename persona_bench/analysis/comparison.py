"""The figures of all runs in a results folder, drawn anew from their tables: each run's own, and models side by side.

A pure function of the tables and run.json files: no date but that of the runs, so the same tables give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from persona_bench.analysis.coverage import RUN, coverage_figure, coverage_table
from persona_bench.analysis.figures.draw import draw_all, verdict_matrix
from persona_bench.analysis.figures.drawing import (
    GREY,
    Caption,
    all_traits,
    drawing_style,
    flat_text,
    named_traits,
    new_figure,
    put_foot,
    save,
    trait_colours,
    trait_markers,
)
from persona_bench.analysis.figures.evidence import HOLLOW, draw_joined, judge_passes
from persona_bench.analysis.figures.monitoring import condition_words
from persona_bench.analysis.grouping import groups, single
from persona_bench.analysis.runs import Run, read_runs
from persona_bench.analysis.tables.files import write_tables
from persona_bench.analysis.tables.tradeoff import enough_scores

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
            say(f"drawing {run.model}, preset {run.scope}")
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
        for name, panels in (("claims", _verdicts), ("steering", _steering), ("monitoring", _monitoring)):
            figure = panels(some)
            if figure is not None:
                yield f"{COMPARISON}-{preset}-{name}", figure


def _coverage(runs: Sequence[Run]) -> pd.DataFrame:
    """Every verdict of every run, whatever its preset."""
    told = [
        ({**{name: getattr(run, name) for name in RUN}, "grader": run.caption.grader, **run.facts}, run.claims)
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
        joined([run.scope for run in runs]),
        joined([run.caption.grader for run in runs]),
        joined(sorted(run.caption.date for run in runs)),
        seeds.pop() if len(seeds) == 1 else None,
    )


def _verdicts(runs: Sequence[Run]) -> Figure | None:
    """Verdicts by model and claim, of claims that one of the models ran."""
    parts = [run.tables["claims"].assign(model=f"{run.model}, {run.part}" if run.part else run.model) for run in runs]
    claims = pd.concat(parts)
    claims = claims[claims["verdict"] != "not run"]
    if claims.empty:
        return None
    several = claims["trait"].nunique() > 1
    columns = claims["model"] + ("\n" + claims["trait"] if several else "")
    return verdict_matrix(claims.assign(column=columns), _caption(runs), order=list(dict.fromkeys(columns)))


def _steering(runs: Sequence[Run]) -> Figure | None:
    """Change in trait score against relative dose at chosen layers: a panel a model, a trait a colour and marker."""
    lines = [(run, _chosen_lines(run)) for run in runs]
    lines = [(run, line) for run, line in lines if len(line)]
    if not lines:
        return None
    figure = new_figure(4.8, width=2.6 * len(lines) + 0.6)
    panels = list(np.atleast_1d(figure.subplots(1, len(lines), sharex=True, sharey=True)))
    colours = _colours(runs)
    shown = sorted({trait for _, line in lines for trait in named_traits(line)})
    markers = trait_markers(shown)
    # Traits are set apart a little, as they share doses and would hide each other's intervals.
    step = 0.03 * max(float(line["relative_dose"].abs().max()) for _, line in lines)
    for axes, (run, line) in zip(panels, lines, strict=True):
        axes.axhline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
        for key, part in groups(line, "trait", "vector"):
            trait = key["trait"]
            shift = step * (shown.index(trait) - (len(shown) - 1) / 2)
            if key["vector"] == "persona":
                _change(axes, part, shift, colours[trait], "-", markers[trait], 6)
            else:
                _change(axes, part, shift, GREY, "--", ".", 4)
        axes.set_title(flat_text(run.model, 28), color="black")
        axes.set_xlabel("relative dose |αv| / |h|")
    panels[0].set_ylabel("change in trait score (points)")
    for trait in shown:
        panels[0].plot([], [], color=colours[trait], marker=markers[trait], label=flat_text(trait))
    panels[0].plot([], [], color=GREY, marker=".", markersize=4, linestyle="--", label="random vectors")
    _shared_legend(figure, panels)
    n = int(sum(line["n"].sum() for _, line in lines))
    note = (
        "Report half. Each sign at its own chosen layer (random vectors: at the nearest), where half of the answers or "
        "more have a score; hollow: a chosen cell with fewer. Dose 0: no steering, no change. "
        f"{_left_out(runs, 'steering')}Bars: 95 % intervals, bootstrapped by question."
    )
    put_foot(figure, _caption([run for run, _ in lines]).line(n), note)
    return figure


def _change(axes: Any, part: pd.DataFrame, shift: float, colour: str, dashes: str, marker: str, size: float) -> None:
    """One line through the change of 0 at dose 0, its points `shift` beside their doses."""
    unsteered = {"relative_dose": 0.0, "difference": 0.0, "firm": True}
    points = pd.concat([part.assign(_at=part["relative_dose"] + shift), pd.DataFrame([{**unsteered, "_at": 0.0}])])
    points = points.sort_values("relative_dose")
    firm = points["firm"].to_numpy(dtype=bool)
    draw_joined(axes, points["_at"], points["difference"], firm, color=colour, linestyle=dashes, linewidth=1.5)
    for _, point in points[points["relative_dose"] != 0].iterrows():
        value = point["difference"]
        axes.errorbar(
            [point["_at"]],
            [value],
            yerr=[[max(value - point["difference_low"], 0)], [max(point["difference_high"] - value, 0)]],
            color=colour,
            marker=marker,
            markersize=size,
            markerfacecolor=colour if point["firm"] else HOLLOW,
            capsize=2.0,
            linewidth=1.0,
        )


def _chosen_lines(run: Run) -> pd.DataFrame:
    """The report-half cells of each trait and sign at the layer chosen for it, with the random ones nearest to it.

    A trait whose judge may not decide a claim has none. As for the choice, a cell where too few of the answers have a
    score says nothing, and two would set the scale for all: of these the chosen ones alone are kept, not `firm`.
    """
    cells, choice = single(run.tables["steering"]), run.tables["steering_choice"]
    report = cells[cells["half"] == "report"].dropna(subset=["difference"]).assign(firm=enough_scores)
    report = report.assign(**{name: report[name].astype(float) for name in ("relative_dose", "layer", "coefficient")})
    parts = [report.iloc[:0]]
    for _, chosen in choice[choice["layer"].notna()].iterrows():
        if not judge_passes(run.tables, chosen["trait"]):
            continue
        side = 1 if chosen["sign"] == "positive" else -1
        own = report[(report["trait"] == chosen["trait"]) & (side * report["relative_dose"] > 0)]
        at = own[(own["vector"] == "persona") & (own["layer"] == float(chosen["layer"]))]
        parts.append(at[at["firm"] | np.isclose(at["coefficient"], float(chosen["coefficient"]))])
        random = own[(own["vector"] == "random") & own["firm"]]
        # Controls are run at fewer layers than the vector is.
        distance = (random["layer"] - float(chosen["layer"])).abs()
        parts.append(random[distance == distance.min()])
    return pd.concat(parts)


def _left_out(runs: Sequence[Run], table: str) -> str:
    """Which traits of a table have a judge that may not decide about them, and of which models if not of all."""
    words = []
    for trait in sorted({trait for run in runs for trait in named_traits(run.tables[table])}):
        held = [run for run in runs if trait in named_traits(run.tables[table])]
        shut = [run.model for run in held if not judge_passes(run.tables, trait)]
        if shut:
            words.append(flat_text(trait) + (f" ({', '.join(shut)})" if len(shut) < len(held) else ""))
    return f"Left out, as the judge does not pass its gate: {', '.join(words)}. " if words else ""


def _monitoring(runs: Sequence[Run]) -> Figure | None:
    """Pearson r of the last prompt token with the trait score by trait and condition, overall and within."""
    parts = [(run, _main_rows(run)) for run in runs]
    parts = [(run, rows) for run, rows in parts if len(rows)]
    if not parts:
        return None
    every = pd.concat([rows for _, rows in parts])
    found = set(zip(every["trait"], every["condition"], strict=True))
    # The paper's own condition comes first.
    names = sorted(found, key=lambda name: (name[0], name[1] != "ladder", name[1]))
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
    labels = [f"{flat_text(trait)},\n{condition_words(condition)}" for trait, condition in names]
    panels[0].set_yticks(range(len(names)), labels)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    n = int(sum(rows["n"].sum() for _, rows in parts))
    note = (
        "Filled: overall. Open: within conditions. Report half, chosen layer, last prompt token. "
        f"{_left_out(runs, 'monitoring')}Bars: 95 %."
    )
    put_foot(figure, _caption(runs).line(f"{n} points"), note)
    return figure


def _main_rows(run: Run) -> pd.DataFrame:
    """The rows that the claims on monitoring are about, of traits whose judge may decide them."""
    rows = run.tables["monitoring"]
    rows = rows[rows["trait"].isin([trait for trait in named_traits(rows) if judge_passes(run.tables, trait)])]
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
