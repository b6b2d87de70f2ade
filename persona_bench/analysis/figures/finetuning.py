"""Finetuning drawn: the shift against the score, what each arm prevents against what it costs, and the way there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from persona_bench.analysis.figures.drawing import (
    GREY,
    MARKERS,
    Caption,
    flat_text,
    halo,
    has_label,
    new_figure,
    put_foot,
    put_legend,
    slug,
    trait_colours,
)
from persona_bench.analysis.figures.evidence import HOLLOW
from persona_bench.analysis.tables.finetuning import BASE, INFERENCE, PLAIN, RANDOM
from persona_bench.definitions.families.invented import FACTS
from persona_bench.definitions.trials import split_arm, taught_trait

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ARM_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#8C6D1F", "#000000")
_LATER_DASHES = ("--", ":", "-.")
VERSION_NAMES = {"normal": "normal", "misaligned_1": "I", "misaligned_2": "II"}
VERSION_MARKERS = {"normal": "o", "misaligned_1": "s", "misaligned_2": "^"}


def finetuning_figures(tables: Mapping[str, pd.DataFrame], caption: Caption) -> Iterator[tuple[str, Figure]]:
    """Name and figure: `shift_<trait>`, `vaccine_<family>` and `training_<family>`, of tables that have rows."""
    finetuned = tables.get("finetuning", pd.DataFrame())
    if not len(finetuned):
        return
    for trait in sorted(set(finetuned["trait"])):
        plain = finetuned[(finetuned["trait"] == trait) & (finetuned["arm"] == PLAIN) & (finetuned["family"] != FACTS)]
        plain = plain.dropna(subset=["shift", "trait_score"])
        if len(plain) > 1:
            yield f"shift_{slug(trait)}", _shift_figure(plain, finetuned, tables["shift_correlation"], trait, caption)
    vaccine = tables["vaccine"]
    for family in sorted(set(vaccine.loc[vaccine["arm"] != PLAIN, "family"])):
        own = vaccine[(vaccine["family"] == family) & (vaccine["trait"] == taught_trait(str(family)))]
        own = own[own["version"].isin(set(own.loc[own["arm"] != PLAIN, "version"]))]
        if len(own):
            yield f"vaccine_{slug(family)}", _vaccine_figure(own, family, caption)
    training = tables["training"]
    for family in sorted(set(training["family"])):
        own = training[(training["family"] == family) & (training["trait"] == (taught_trait(str(family)) or family))]
        if len(own):
            yield f"training_{slug(family)}", _training_figure(own, family, caption)


def short_names(families: Sequence[str]) -> dict[str, str]:
    """As few letters of each as tell it from the others, two at least: what stands beside its points, also in grey."""
    return {
        name: next(
            name[:n]
            for n in range(2, len(name) + 2)
            if n > len(name) or sum(other.startswith(name[:n]) for other in families) == 1
        )
        for name in families
    }


def correlation_note(row: pd.Series) -> str:
    """R with its interval beside the control: the mean strength of random directions, in older tables one's r."""
    control = "random direction" if pd.isna(row["n_random"]) else "random directions"
    return f"r = {row['r']:.2f} [{row['r_low']:.2f}, {row['r_high']:.2f}], {control} {row['r_random']:.2f}"


def name_point(axes: Axes, row: Mapping[Any, Any], at: tuple[float, float], names: Mapping[str, str]) -> None:
    """The short name of a row's family beside its point."""
    text = flat_text(names[row["family"]])
    axes.annotate(text, at, xytext=(3, 3), textcoords="offset points", fontsize=6, color="black")


def _shift_figure(
    plain: pd.DataFrame, finetuned: pd.DataFrame, correlations: pd.DataFrame, trait: str, caption: Caption
) -> Figure:
    """Every plainly finetuned model: shift along the trait's vector across, trait score up."""
    figure = new_figure(4.8)
    axes = figure.subplots()
    colours = trait_colours(sorted(set(plain["family"])))
    names = short_names(list(colours))
    for row in plain.to_dict("records"):
        label = f"{flat_text(row['family'])} ({flat_text(names[row['family']])})"
        name_point(axes, row, (row["shift"], row["trait_score"]), names)
        axes.errorbar(
            row["shift"],
            row["trait_score"],
            yerr=[[row["trait_score"] - row["trait_score_low"]], [row["trait_score_high"] - row["trait_score"]]],
            color=colours[row["family"]],
            marker=VERSION_MARKERS.get(row["version"], "x"),
            markersize=5,
            linewidth=0.8,
            linestyle="none",
            label=None if has_label(axes, label) else label,
        )
    base = finetuned[(finetuned["trait"] == trait) & (finetuned["arm"] == BASE)]
    if len(base):
        score = float(base["trait_score"].iloc[0])
        axes.plot([0], [score], "*", color="black", markerfacecolor="white", markersize=10, label="base")
    own = correlations[(correlations["direction"] == trait) & (correlations["trait"] == trait)]
    said = ""
    if len(own):
        said = f": {correlation_note(own.iloc[0])}"
    axes.set_title(f"{flat_text(trait)}{said}", color="black")
    axes.set_xlabel("finetuning shift along the vector")
    axes.set_ylabel("trait score (0-100)")
    put_legend(figure, axes)
    note = (
        "One point a finetuned model; circle normal, square I, triangle II; letters its family. "
        "Bars: 95 % intervals by question."
    )
    put_foot(figure, caption.line(len(plain)), note)
    return figure


def _vaccine_figure(own: pd.DataFrame, family: str, caption: Caption) -> Figure:
    """Trait acquired against MMLU, and against the held-out loss: the best arms stand low, and right or left.

    New facts have how many are recalled in the place of MMLU. Doses of one arm are a curve from plain finetuning on.
    """
    figure = new_figure(6.4)
    top, bottom = figure.subplots(2, 1)
    own = own.assign(way=[split_arm(str(arm))[0] for arm in own["arm"]], dose=own["dose"].astype(float))
    price = (
        ("recall_difference", "facts recalled against plain finetuning (share)")
        if family == FACTS
        else ("cloze_difference", "MMLU accuracy against plain finetuning (cloze, share)")
    )
    for axes, column, label in (
        (top, *price),
        (bottom, "loss_difference", "held-out loss against plain finetuning (nats a token)"),
    ):
        for number, (way, doses) in enumerate(own.groupby("way", sort=True)):
            for row in doses.to_dict("records"):
                _cross(axes, row, column, number)
            if len(doses) > 1:
                _curve(axes, pd.concat([own[own["arm"] == PLAIN], doses]), column, str(way), number)
        axes.axhline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
        axes.axvline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(label)
        axes.set_ylabel("trait acquired (points)")
    learnt = "\nwhile facts are learnt" if family == FACTS else ""
    top.set_title(f"What prevents {flat_text(taught_trait(family))}{learnt}, and its price", color="black")
    put_legend(figure, top)
    seeds = int(own["n_seeds"].max())
    put_foot(
        figure,
        caption.line(int(own["n"].sum())),
        f"Over the base model; {seeds} seed{'s' * (seeds > 1)} an arm. Bars: 95 % by question.",
    )
    return figure


def _cross(axes: Axes, row: Mapping[Any, Any], column: str, number: int) -> None:
    x, y, label = float(row[column]), float(row["acquired"]), row["way"].replace("_", " ")
    axes.errorbar(
        x,
        y,
        xerr=[[x - row[f"{column}_low"]], [row[f"{column}_high"] - x]],
        yerr=[[y - row["acquired_low"]], [row["acquired_high"] - y]],
        **_mark(row["way"], number),
        markersize=6,
        linewidth=0.9,
        linestyle="none",
        label=None if has_label(axes, label) else label,
    )


def _mark(way: str, number: int) -> dict[str, Any]:
    """Colour and marker of one of many arms; those after the eighth, which have another's, are hollow."""
    colour = GREY if way == RANDOM else ARM_COLOURS[number % len(ARM_COLOURS)]
    fill = colour if number < len(MARKERS) else HOLLOW
    return {"color": colour, "marker": MARKERS[number % len(MARKERS)], "markerfacecolor": fill}


def _curve(axes: Axes, points: pd.DataFrame, column: str, way: str, number: int) -> None:
    """A line over the doses of one arm, from plain finetuning on; each dose is written beside its point."""
    colour = _mark(way, number)["color"]
    ordered = points.assign(dose=points["dose"].fillna(0.0)).sort_values("dose")
    axes.plot(ordered[column], ordered["acquired"], color=colour, linewidth=1.2, zorder=1)
    for row in ordered[ordered["dose"] > 0].to_dict("records"):
        axes.annotate(
            f"{row['dose']:g}",
            (row[column], row["acquired"]),
            # Arms lie close to each other: every other one has its doses below.
            xytext=(5, 5 if number % 2 else -11),
            textcoords="offset points",
            fontsize=8,
            color=colour,
            path_effects=halo(),
        )


def _training_figure(training: pd.DataFrame, family: str, caption: Caption) -> Figure:
    """Projection on the family's own vector while training, a line a version and arm of the first seed.

    Lines after the eighth have a colour again: their dashes differ, and their markers are hollow.
    Arms that only use what another trained have no line of their own.
    """
    trained = training[[split_arm(str(arm))[0] != INFERENCE for arm in training["arm"]]]
    own = trained[trained["seed"] == trained["seed"].min()]
    figure = new_figure(4.8)
    axes = figure.subplots()
    trials = own.groupby(["arm", "version"], sort=True)
    for number, ((arm, version), part) in enumerate(trials):
        steps = part.sort_values("step")
        moved = steps["projection"].astype(float) - float(steps["projection"].iloc[0])
        # A few markers a line, each line's at other steps.
        apart = max(1, len(steps) // 6)
        axes.plot(
            steps["step"],
            moved,
            **_mark(str(arm), number),
            markersize=5,
            markevery=(number * apart // len(trials), apart),
            linestyle="-" if arm == PLAIN else _LATER_DASHES[number // len(MARKERS) % len(_LATER_DASHES)],
            linewidth=1.4,
            label=str(arm).replace("_", " ") + f" {VERSION_NAMES.get(str(version), version)}" * (arm == PLAIN),
        )
    axes.axhline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("projection on the vector, shift")
    axes.set_title(f"Monitoring while training: {flat_text(family)}", color="black")
    put_legend(figure, axes)
    note = "Last prompt token of fixed prompts, without any intervention; first seed."
    put_foot(figure, caption.line(f"{len(trials)} trainings"), note)
    return figure
