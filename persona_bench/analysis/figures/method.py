"""The figure of how much a vector depends on the method's own choices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from persona_bench.analysis.figures.drawing import (
    GREY,
    MARKERS,
    Caption,
    flat_text,
    named_traits,
    new_figure,
    put_foot,
    put_legend,
)
from persona_bench.vectors.sensitivity import SAME_NUMBER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CHOICES = ("layer", "position", "filter", "seed", "questions", "description")
"""The aspects below the learning curve, from top to bottom."""


def method_figures(
    tables: Mapping[str, pd.DataFrame], colours: Mapping[str, str], caption: Caption
) -> Iterator[tuple[str, Figure]]:
    """`sensitivity`, of the traits that have a vector, where it was made otherwise."""
    rows = tables["sensitivity"].dropna(subset=["cosine"])
    rows = rows[rows["trait"].isin(rows.loc[rows["aspect"] == "responses", "trait"])]
    if len(rows):
        yield "sensitivity", _sensitivity(rows, colours, caption)


def _sensitivity(rows: pd.DataFrame, colours: Mapping[str, str], caption: Caption) -> Figure:
    """Above, cosine to the full vector by number of responses; below, the vector of every other choice."""
    rows = _at_chosen_layers(rows)
    choices = _choices(rows)
    traits = named_traits(rows)
    # A row is as high as its traits need, and they stay well inside of it.
    height, step = max(0.26, 0.055 * len(traits)), min(0.16, 0.84 / len(traits))
    figure = new_figure(3.6 + height * len(choices))
    curve, dots = figure.subplots(2, 1, height_ratios=(2.4, 0.5 + height * len(choices)))
    for index, trait in enumerate(traits):
        line = rows[(rows["aspect"] == "responses") & (rows["trait"] == trait)]
        _learning_curve(curve, line, colours[trait], MARKERS[index % len(MARKERS)], flat_text(trait))
        mine = rows[rows["trait"] == trait].set_index(["aspect", "setting"])
        shift = step * (index - (len(traits) - 1) / 2)
        for y, key in enumerate(choices):
            if key not in mine.index:
                continue
            _dot(dots, mine.loc[[key]].iloc[0], y + shift, colours[trait], MARKERS[index % len(MARKERS)])
            beside = (key[0], f"{key[1]}{SAME_NUMBER}")
            if beside in mine.index:
                _dot(dots, mine.loc[[beside]].iloc[0], y + shift + 0.44 * step, GREY, "|")
    curve.set_xscale("log", base=2)
    curve.xaxis.set_major_formatter(lambda value, _place: f"{value:g}")
    curve.set_ylim(top=1.03)
    curve.set_xlabel("responses a side (the last point: all)")
    curve.set_ylabel("cosine to the full vector")
    dots.set_yticks(range(len(choices)), [_words(*choice) for choice in choices])
    dots.set_ylim(len(choices) - 0.5, -0.5)
    dots.axvline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
    dots.set_xlim(-1.03, 1.03)
    dots.set_xlabel("cosine")
    put_legend(figure, curve)
    n = int((rows["n_positive"] + rows["n_negative"]).max())
    note = (
        "Bars: 95 % of the draws. Below: to the run's vector, at its layer; halves against each other. Grey: "
        "as many of the run's own responses, drawn at random."
    )
    put_foot(figure, caption.line(f"up to {n} responses"), note)
    return figure


def _at_chosen_layers(rows: pd.DataFrame) -> pd.DataFrame:
    """Positions at the chosen layer alone, which is that of the filters; other layers stand in the table."""
    chosen = rows[rows["aspect"] == "filter"].groupby("trait")["layer"].first()
    return rows[(rows["aspect"] != "position") | (rows["layer"] == rows["trait"].map(chosen))]


def _choices(rows: pd.DataFrame) -> list[tuple[str, str]]:
    found = list(dict.fromkeys(zip(rows["aspect"], rows["setting"], strict=True)))
    shown = [key for key in found if key[0] in _CHOICES and not key[1].endswith(SAME_NUMBER)]
    return sorted(shown, key=lambda key: (_CHOICES.index(key[0]), key[1].zfill(24)))


def _words(aspect: str, setting: str) -> str:
    """`description:0` is the first of the descriptions, `questions:0` the first of the question sets."""
    number = setting.removeprefix(f"{aspect}:")
    return flat_text(f"{aspect} {int(number) + 1}" if number.isdigit() and aspect in setting else
                     f"{aspect}: {setting.replace('_', ' ')}", 38)  # fmt: skip


def _dot(axes: Axes, row: pd.Series, y: float, colour: str, marker: str) -> None:
    value = float(row["cosine"])
    if pd.notna(row["cosine_low"]):
        axes.plot([row["cosine_low"], row["cosine_high"]], [y, y], color=colour, linewidth=1.1, alpha=0.7)
    axes.plot([value], [y], marker=marker, color=colour, markersize=5, linestyle="none")


def _learning_curve(axes: Axes, rows: pd.DataFrame, colour: str, marker: str, label: str) -> None:
    line = rows.assign(n=rows[["n_positive", "n_negative"]].min(axis=1)).sort_values(["n", "cosine"])
    value = line["cosine"].astype(float)
    # The last point is the vector itself: it has no draws.
    ends = [
        (value - line["cosine_low"].astype(float)).fillna(0.0).clip(lower=0),
        (line["cosine_high"].astype(float) - value).fillna(0.0).clip(lower=0),
    ]
    axes.errorbar(line["n"], value, yerr=ends, color=colour, marker=marker, capsize=2.5, linewidth=1.6, label=label)
