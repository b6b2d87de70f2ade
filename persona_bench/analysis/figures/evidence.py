"""What a figure shows as solid: cells where enough of the answers have a score, of traits whose judge passes its gate.

Cells with fewer scores are drawn hollow, and the lines that lead to them are dotted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from persona_bench.analysis.tables.tradeoff import enough_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HOLLOW = "white"
"""The fill of a marker that is no solid evidence."""


def hollow_note(cells: pd.DataFrame) -> str:
    """A sentence for the note under a figure in which some of the cells are hollow; empty where none is."""
    return "" if enough_scores(cells).all() else " Hollow, no band: under half of the answers have a trait score."


def judge_passes(tables: Mapping[str, pd.DataFrame], trait: str) -> bool | None:
    """Whether the judge in use passes its gate for a trait, as the claims ask; None where it was not checked."""
    judge = tables["judge"]
    own = judge[(judge["trait"] == trait) & (judge["half"] == "report") & (judge["chosen"].astype(str) == "True")]
    return None if own.empty else str(own["passes"].iloc[0]) == "True"


def judge_note(tables: Mapping[str, pd.DataFrame], trait: str) -> str:
    """A sentence for the note under a figure of judged scores; empty where the judge passes its gate."""
    passes = judge_passes(tables, trait)
    if passes is None:
        return " The judge was not checked for this trait."
    return "" if passes else " The judge fails its gate for this trait: its scores decide no claim."


def draw_curve(
    axes: Axes,
    x: Any,
    ends: Sequence[Any],
    firm: Any,
    alpha: float,
    *,
    color: Any,
    marker: str,
    size: float,
    label: str,
    **line: Any,
) -> None:
    """Points joined in their order, with their intervals as a band; those that are not firm are hollow, without one.

    Args:
        axes: to draw on.
        x: `(n,)`.
        ends: value, lower and upper end, each `(n,)`.
        firm: `(n,)` of bool.
        alpha: of the band.
        color: of all of it.
        marker: of the points.
        size: of the markers.
        label: for the legend, which shows a firm point.
        line: style and width of the line.
    """
    across, solid = np.asarray(x, dtype=float), np.asarray(firm, dtype=bool)
    value, low, high = (np.asarray(end, dtype=float) for end in ends)
    draw_joined(axes, across, value, solid, color=color, **line)
    for shown, fill in ((solid, color), (~solid, HOLLOW)):
        axes.plot(across[shown], value[shown], marker, color=color, markersize=size, markerfacecolor=fill)
    axes.plot([], [], color=color, marker=marker, markersize=size, label=label, **line)
    axes.fill_between(across, low, high, where=solid, color=color, alpha=alpha, linewidth=0)
    # A band needs two firm points: one between others has a bar.
    around = np.concatenate([[False], solid, [False]])
    alone = solid & ~around[:-2] & ~around[2:] & np.isfinite(low) & np.isfinite(high)
    axes.vlines(across[alone], low[alone], high[alone], color=color, linewidth=1.0)


def draw_joined(axes: Axes, x: Any, y: Any, firm: Any, **style: Any) -> None:
    """Join points in their order, by a thin dotted line wherever either end is not firm.

    Args:
        axes: to draw on.
        x: `(n,)`.
        y: `(n,)`.
        firm: `(n,)` of bool.
        style: of the line between two firm points.
    """
    across, up, solid = (np.asarray(values) for values in (x, y, firm))
    pieces = solid[:-1] & solid[1:]
    for both, steps in groupby(range(len(pieces)), key=lambda step: bool(pieces[step])):
        places = [*steps]
        part = slice(places[0], places[-1] + 2)
        drawn = style if both else {**style, "linestyle": ":", "linewidth": 1.0}
        axes.plot(across[part], up[part], **drawn)
