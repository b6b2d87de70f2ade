"""The frontier of a trait: what each way of steering or suppressing leaves of the trait and of MMLU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from persona_bench.analysis.figures.drawing import (
    GREY,
    Caption,
    flat_text,
    halo,
    has_label,
    named_traits,
    new_figure,
    put_foot,
    put_legend,
    shaded,
    slug,
)
from persona_bench.analysis.figures.evidence import HOLLOW, judge_note
from persona_bench.analysis.tables.tradeoff import enough_scores
from persona_bench.definitions.claims import MMLU_CHANCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = {
    "none": "o",
    "single": "s",
    "multi": "D",
    "incremental": "^",
    "cap": "v",
    "ablate": "X",
    "system_prompt": "P",
    "few_shot": "*",
}
_BIG = {"few_shot": 1.6, "system_prompt": 1.3, "ablate": 1.2}


def frontier_figures(
    tables: Mapping[str, pd.DataFrame], colours: Mapping[str, str], caption: Caption
) -> Iterator[tuple[str, Figure]]:
    """`frontier_<trait>` for every trait with two cells or more whose trait score and accuracy are known.

    Args:
        tables: as `build_tables` gives them.
        colours: of the traits.
        caption: what stands under each figure.
    """
    table = tables["tradeoff"]
    for trait in named_traits(table):
        cells = table[(table["trait"] == trait) & table["trait_score"].notna() & table["accuracy"].notna()]
        if len(cells) > 1:
            said = judge_note(tables, trait)
            yield f"frontier_{slug(trait)}", _figure(cells, trait, colours[trait], caption, said)


def _figure(cells: pd.DataFrame, trait: str, colour: str, caption: Caption, said: str) -> Figure:
    cells = cells.assign(firm=enough_scores(cells) & (cells["coherent"].astype(str) == "True"))
    figure = new_figure(5.2)
    axes = figure.subplots()
    best = cells[cells["frontier"].astype(str) == "True"].sort_values(["accuracy", "trait_score"])
    axes.plot(
        best["accuracy"].astype(float),
        best["trait_score"].astype(float),
        color="black",
        linewidth=1.1,
        linestyle=":",
        label="frontier",
        zorder=2,
    )
    unsteered = cells[cells["vector"] == "none"]
    steered = [name for name in _MARKERS if ((cells["setting"] == name) & (cells["vector"] == "persona")).any()]
    for setting in _MARKERS:
        for vector in ("random", "persona", "prompt", "none"):
            family = cells[(cells["vector"] == vector) & (cells["setting"] == setting)]
            shade: Any = "black"
            if vector == "random":
                shade = "#AAAAAA"
            elif vector == "persona" and setting in steered:
                shade = shaded(colour, len(steered) - 1 - steered.index(setting), len(steered))
                _dose_lines(axes, family, unsteered, shade)
            _points(axes, family, setting, shade)
            label = _label(vector, setting)
            if len(family) and not has_label(axes, label):
                axes.plot([], [], **_marker(setting, shade, "." if vector == "random" else ""), label=label)
    axes.axvline(MMLU_CHANCE, color=GREY, linestyle="--", linewidth=0.9, zorder=0, label="MMLU at chance")
    ends = cells[["accuracy_low", "accuracy_high"]].astype(float).to_numpy()
    axes.set_xlim(max(0.0, min(float(np.nanmin(ends)), MMLU_CHANCE) - 0.02), min(1.0, float(np.nanmax(ends)) + 0.02))
    axes.set_ylim(-3, min(103.0, float(cells["trait_score_high"].astype(float).max()) + 8))
    blind = ", at chance without steering" if (unsteered["accuracy_low"].astype(float) <= MMLU_CHANCE).any() else ""
    axes.set_xlabel(f"MMLU accuracy ({cells['scoring'].iloc[0]} scoring{blind})")
    axes.set_ylabel("trait score (0-100)")
    axes.set_title(f"What suppression costs: {flat_text(trait)} (report half)")
    put_legend(figure, axes)
    note = (
        "Best is low and to the right. Lines join relative doses; the strongest are named. "
        "Hollow: under half of the unsteered coherence, or a trait score for under half of the answers. "
        f"Bars: 95 % intervals.{said}"
    )
    put_foot(figure, caption.line(int(cells["n"].sum())), note)
    return figure


def _label(vector: str, setting: str) -> str:
    return {"none": "unsteered", "random": "random, same setting"}.get(vector, setting.replace("_", " "))


def _marker(setting: str, colour: Any, shape: str = "") -> dict[str, Any]:
    size = 6.5 * _BIG.get(setting, 1.0) if not shape else 11
    return {
        "marker": shape or _MARKERS[setting],
        "markersize": size,
        "color": colour,
        "linestyle": "none",
        "markeredgecolor": colour,
    }


def _points(axes: Axes, family: pd.DataFrame, setting: str, colour: Any) -> None:
    for _, row in family.iterrows():
        x, y = float(row["accuracy"]), float(row["trait_score"])
        wide, high = (
            np.clip([[value - float(row[f"{name}_low"])], [float(row[f"{name}_high"]) - value]], 0, None)
            for name, value in (("accuracy", x), ("trait_score", y))
        )
        axes.errorbar(x, y, high, wide, color=colour, alpha=0.3, linewidth=0.9, zorder=1)
        fill = colour if row["firm"] else HOLLOW
        axes.plot([x], [y], **_marker(setting, colour), markerfacecolor=fill, zorder=3)


def _dose_lines(axes: Axes, family: pd.DataFrame, unsteered: pd.DataFrame, colour: Any) -> None:
    """The doses of each layer joined through the unsteered point, with the strongest of either sign named."""
    for _, line in family[family["relative_dose"].notna()].groupby("layers"):
        joined = pd.concat([line, unsteered]).sort_values("relative_dose")
        axes.plot(
            joined["accuracy"].astype(float), joined["trait_score"].astype(float), color=colour, linewidth=1.2, zorder=2
        )
        doses = line["relative_dose"].astype(float)
        # The weakest dose of a sign that was swept alone is no end of the sweep.
        for dose in sorted({end for end, strong in ((doses.min(), -1), (doses.max(), 1)) if end * strong > 0}):
            row = line[doses == dose].iloc[0]
            axes.annotate(
                f"{dose:+g}",
                (float(row["accuracy"]), float(row["trait_score"])),
                xytext=(-6, 5 if dose > 0 else -13),
                textcoords="offset points",
                ha="right",
                fontsize=9,
                color=GREY,
                path_effects=halo(),
                zorder=4,
            )
