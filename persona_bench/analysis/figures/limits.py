"""What a model did where a behaviour pays, and which monitors saw it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from persona_bench.analysis.figures.drawing import (
    GREY,
    MARKERS,
    Caption,
    flat_text,
    new_figure,
    put_foot,
    put_legend,
    trait_colours,
)
from persona_bench.analysis.tables.limits import ALL, BEST, DEDICATED, JUDGE, PROBE, RANDOM_OF
from persona_bench.analysis.tables.monitoring import TEXT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDES = {"rewarded": ("rewarded", "#D55E00", "o"), "twin": ("twin, not rewarded", "#0072B2", "s")}
_JUDGES = (f"{JUDGE}answer", f"{JUDGE}prompt")
_SHOWN = (
    *(PROBE, DEDICATED, ALL, BEST, RANDOM_OF[ALL], RANDOM_OF[BEST], f"{TEXT}tfidf", f"{TEXT}embeddings"),
    *_JUDGES,
)
"""From the ceiling to what knows nothing, top to bottom; then the judge, where there was one."""
_OWN = (BEST, ALL)


def limits_figures(tables: Mapping[str, pd.DataFrame], caption: Caption) -> Iterator[tuple[str, Figure]]:
    """`behaviours`, `limits` where a behaviour could be tested, and `evasion`.

    Args:
        tables: as `build_tables` gives them.
        caption: what stands under each figure.
    """
    done, monitors = tables["behaviours"], tables["limits"]
    if len(done):
        yield "behaviours", _behaviours(done, caption)
    if len(monitors):
        yield "limits", _monitors(monitors, caption)
    evaded = tables["evasion"].dropna(subset=["kept", "loss"])
    if len(evaded):
        yield "evasion", _evasion(evaded, caption)


def _named(behaviour: str) -> str:
    return behaviour.replace("_", " ")


def _behaviours(done: pd.DataFrame, caption: Caption) -> Figure:
    figure = new_figure(1.9 + 0.45 * len(done))
    axes = figure.subplots()
    places = range(len(done))
    for offset, (column, (label, colour, marker)) in zip((-0.12, 0.12), _SIDES.items(), strict=True):
        _bars(axes, done, column, [place + offset for place in places], colour, marker, label)
    axes.set_yticks(
        list(places), [f"{_named(row['behaviour'])}\n{row['n_passed']} pairs" for _, row in done.iterrows()]
    )
    axes.invert_yaxis()
    axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel("share of scenes in which the behaviour is shown")
    axes.set_title("What the model did, check passed", color="black")
    put_legend(figure, axes)
    put_foot(figure, caption.line(int(done["n"].sum())), "Bars: 95 % intervals, bootstrapped by topic.")
    return figure


def _monitors(monitors: pd.DataFrame, caption: Caption) -> Figure:
    behaviours = sorted(set(monitors["behaviour"]))
    figure = new_figure(1.4 + 2.1 * len(behaviours))
    for axes, behaviour in zip(figure.subplots(len(behaviours), 1, squeeze=False)[:, 0], behaviours, strict=True):
        own = monitors[monitors["behaviour"] == behaviour].set_index("monitor")
        own = own.loc[[name for name in _SHOWN if name in own.index]]
        for place, (name, row) in enumerate(own.iterrows()):
            colour = "#D55E00" if name in _OWN else "black" if name in (PROBE, DEDICATED, *_JUDGES) else GREY
            _bars(axes, row.to_frame().T, "auroc", [place], colour, "o", "")
        axes.axvline(0.5, color="#BBBBBB", linewidth=0.8, zorder=0)
        axes.set_yticks(range(len(own)), list(own.index))
        axes.invert_yaxis()
        axes.set_xlim(-0.03, 1.03)
        axes.set_title(f"{_named(behaviour)} ({int(own['n'].iloc[0])} pairs)", color="black")
        axes.set_xlabel("AUROC on the report half")
    note = "judge:answer reads the answer, all others what stands before it. Bars: 95 % intervals, by topic."
    put_foot(figure, caption.line(int(monitors["n"].max())), note)
    return figure


def _evasion(evaded: pd.DataFrame, caption: Caption) -> Figure:
    """To the upper right lies what a monitor must fear: the trait is kept, and its detection lost."""
    figure = new_figure(4.6)
    axes = figure.subplots()
    colours = trait_colours(sorted(set(evaded["trait"])))
    ways = sorted(set(evaded["way"]))
    for row in evaded.to_dict("records"):
        x, y = float(row["kept"]), float(row["loss"])
        axes.errorbar(
            x,
            y,
            xerr=[[x - row["kept_low"]], [row["kept_high"] - x]],
            yerr=[[y - row["loss_low"]], [row["loss_high"] - y]],
            color=colours[row["trait"]],
            marker=MARKERS[ways.index(row["way"])],
            linestyle="none",
            linewidth=0.9,
            label=f"{flat_text(row['trait'])}, {row['way']}",
        )
    axes.axhline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
    axes.axvline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
    axes.set_xlabel("trait kept: points over no instruction")
    axes.set_ylabel("detection lost: AUROC, plain minus evading")
    axes.set_title("Evading the vector", color="black")
    put_legend(figure, axes)
    put_foot(figure, caption.line(int(evaded["n"].sum())), "Report half. Bars: 95 % intervals, by question.")
    return figure


def _bars(
    axes: Axes, rows: pd.DataFrame, column: str, places: list[float], colour: str, marker: str, label: str
) -> None:
    values, low, high = (rows[f"{column}{end}"].astype(float).to_numpy() for end in ("", "_low", "_high"))
    axes.errorbar(
        values, places, xerr=[values - low, high - values], color=colour, marker=marker, linestyle="none", label=label
    )
