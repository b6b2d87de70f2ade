"""Histograms of a scan: how far the samples of a dataset lie along each vector."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from persona_bench.analysis.figures.drawing import (
    GREY,
    drawing_style,
    flat_text,
    new_figure,
    put_foot,
    save_as,
    trait_colours,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL = 1.7
MOST_PANELS = 12
NAMES = {
    "response": "response",
    "response_minus_prompt": "response minus last prompt token",
    "difference": "response minus the model's own",
}


def histograms(summary: Mapping[str, Any]) -> Figure:
    """A panel for each trait, measure and layer; the line is the mean, the dashed one that of the reference set."""
    values = dict(list(summary["values"].items())[:MOST_PANELS])
    colours = trait_colours([name.rsplit(".", 2)[0] for name in values])
    figure = new_figure(PANEL * len(values) + 0.7)
    panels = figure.subplots(len(values), 1, squeeze=False)[:, 0]
    for axes, (name, found) in zip(panels, values.items(), strict=True):
        _panel(axes, name, found, colours[name.rsplit(".", 2)[0]])
    axes.set_xlabel("projection h · v / |v|")
    left = len(summary["values"]) - len(values)
    note = f"Solid line: mean. {'Dashed line: mean of the reference set. ' if 'reference' in summary else ''}"
    note += f"{left} more in the summary. " if left else ""
    put_foot(figure, f"{summary['model']} · n = {summary['n']} samples", note.strip())
    return figure


def _panel(axes: Axes, name: str, found: Mapping[str, Any], colour: str) -> None:
    from matplotlib.ticker import MaxNLocator

    trait, measure, layer = name.rsplit(".", 2)
    edges, counts = np.array(found["histogram"]["edges"]), np.array(found["histogram"]["counts"])
    axes.bar(edges[:-1], counts, width=np.diff(edges), align="edge", color=colour, linewidth=0, alpha=0.75)
    for value, style in ((found["mean"], "-"), (found.get("reference_mean"), "--")):
        if value is not None:
            axes.axvline(value, color="black" if style == "-" else GREY, linestyle=style, linewidth=1.2)
    axes.set_title(f"{flat_text(trait)}, layer {layer}: {NAMES[measure]}", loc="left")
    axes.set_ylabel("samples")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def save_histograms(summary: Mapping[str, Any], path: Path) -> None:
    """Write the histograms as PNG or PDF, by the suffix.

    Raises:
        DataError: the file cannot be written.
    """
    with drawing_style():
        save_as(histograms(summary), path)
