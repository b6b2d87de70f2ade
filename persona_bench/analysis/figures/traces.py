"""Projections along a conversation, token by token: tidy tokens -> a figure, with the same bytes for the same input."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from persona_bench.analysis.figures.drawing import drawing_style, flat_text, new_figure, put_foot, save_as
from persona_bench.errors import DataError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SUFFIXES", "check_plot_path", "draw_trace", "save_trace", "trace_figure"]

SUFFIXES = (".png", ".pdf")
HEIGHT = 3.6
_LINES = ("#000000", "#D55E00", "#0072B2", "#CC79A7", "#009E73")
_STYLES = ("-", "--", ":", "-.")
# Fills are told apart by lightness too, and the legend names them.
_ROLES = {"system": "#E8E8E8", "user": "#CFE6F5", "assistant": "#FBE3B0"}
_OTHER_ROLE = "#DCD3E8"


def check_plot_path(path: Path) -> None:
    """Refuse a path that no figure can be written to, before any work is done for it.

    Raises:
        DataError: for a suffix other than .png and .pdf, and for a folder.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"cannot draw {path}: figures end in {' or '.join(SUFFIXES)}; choose such a name for --plot")
    if path.is_dir():
        raise DataError(f"cannot draw {path}: it is a folder; choose the name of a file for --plot")


def draw_trace(axes: Axes, tokens: pd.DataFrame, colours: Sequence[str] = _LINES) -> int:
    """Draw one conversation: a line a direction, each message shaded by its role.

    The scale follows the messages' own tokens: the first token of a context, which the template adds, often lies a
    hundred times as far out (https://arxiv.org/abs/2402.17762).

    Args:
        axes: to draw on.
        tokens: a row a token and direction, with columns `position`, `message` (its number, empty for what the chat
            template adds), `role`, `direction` and `projection`. A circle marks the token before each assistant
            message, where the paper monitors (section 3.3).
        colours: of the lines, in the order of the directions.

    Returns:
        How many tokens lie off the scale.
    """
    places = tokens.drop_duplicates("position").sort_values("position")
    for _, message in places[places["message"].notna()].groupby("message"):
        role = str(message["role"].iloc[0])
        low, high = message["position"].min() - 0.5, message["position"].max() + 0.5
        fill = _ROLES.get(role, _OTHER_ROLE)
        known = role in axes.get_legend_handles_labels()[1]
        axes.axvspan(low, high, color=fill, linewidth=0, zorder=0, label=None if known else flat_text(role, 24))
    before = {int(m["position"].min()) - 1 for _, m in places[places["role"] == "assistant"].groupby("message")}
    names = list(dict.fromkeys(tokens["direction"]))
    for i, name in enumerate(names):
        line = tokens[tokens["direction"] == name].sort_values("position")
        axes.plot(
            line["position"],
            line["projection"],
            color=colours[i % len(colours)],
            linestyle=_STYLES[i % len(_STYLES)],
            linewidth=1.1,
            label=flat_text(str(name), 24) if len(names) > 1 else None,
        )
        at = line[line["position"].isin(before)]
        axes.plot(
            at["position"],
            at["projection"],
            linestyle="none",
            marker="o",
            markersize=6,
            markerfacecolor="white",
            markeredgecolor=colours[i % len(colours)],
            label="before a response" if i == 0 and len(at) else None,
            zorder=3,
        )
    low, high = _scale(tokens, before)
    axes.set_ylim(low, high)
    axes.margins(x=0.01)
    axes.set_xlabel("token")
    axes.set_ylabel("projection h · v / |v|")
    return int(tokens.loc[~tokens["projection"].between(low, high), "position"].nunique())


def _scale(tokens: pd.DataFrame, before: set[int]) -> tuple[float, float]:
    """The limits of the scale: of what is no farther out than the messages' own tokens reach, once over."""
    told = tokens[tokens["message"].notna() | tokens["position"].isin(before)]["projection"]
    told = tokens["projection"] if told.empty else told
    reach = float(told.max() - told.min())
    near = tokens["projection"][tokens["projection"].between(told.min() - reach, told.max() + reach)]
    margin = 0.06 * float(near.max() - near.min()) or 1.0
    return float(near.min()) - margin, float(near.max()) + margin


def trace_figure(tokens: pd.DataFrame, title: str, note: str) -> Figure:
    """A figure of one conversation; `tokens` as `draw_trace` takes them, `note` stands under it."""
    figure = new_figure(HEIGHT)
    axes = figure.subplots()
    outside = draw_trace(axes, tokens)
    axes.set_title(flat_text(title, 72))
    pairs = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if pairs:
        figure.legend(list(pairs.values()), list(pairs), loc="outside upper center", ncols=4, frameon=False)
    put_foot(figure, note, f"{outside} tokens that the template adds lie off the scale." if outside else "")
    return figure


def save_trace(tokens: pd.DataFrame, path: Path, title: str, note: str) -> None:
    """Write the figure of one conversation as PNG or PDF, by the suffix, without dates or versions.

    Raises:
        DataError: as `check_plot_path`, or the file cannot be written.
    """
    check_plot_path(path)
    with drawing_style():
        save_as(trace_figure(tokens, title, note), path)
