"""What a training did, step by step: its loss, and the projections it was watched by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona_bench.analysis.figures.drawing import (
    drawing_style,
    flat_text,
    new_figure,
    put_foot,
    put_legend,
    save,
    trait_colours,
)
from persona_bench.errors import DataError
from persona_bench.models.finetuning import PROJECTION

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def training_figure(history: Sequence[Mapping[str, float]], title: str, note: str) -> Figure:
    """Loss above, and below the shift of each projection since before the first step."""
    figure = new_figure(5.0)
    steps = [row for row in history if "loss" in row]
    names = [key.removeprefix(PROJECTION) for key in history[0] if key.startswith(PROJECTION)]
    axes = figure.subplots(2 if names else 1, 1, sharex=True, squeeze=False)[:, 0]
    axes[0].plot([row["step"] for row in steps], [row["loss"] for row in steps], color="black", linewidth=1.4)
    axes[0].set_ylabel("loss (nats a token)")
    axes[0].set_title(flat_text(title, 60))
    for name, colour in trait_colours(names).items():
        values = [row[f"{PROJECTION}{name}"] for row in history]
        moved = [value - values[0] for value in values]
        axes[-1].plot([row["step"] for row in history], moved, color=colour, linewidth=1.6, label=flat_text(name))
    if names:
        axes[-1].axhline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
        axes[-1].set_ylabel("projection, shift")
        put_legend(figure, axes[-1])
    axes[-1].set_xlabel("optimizer step")
    put_foot(
        figure, note, "Projections: last prompt token on the unit vector, without any intervention." if names else ""
    )
    return figure


def save_training(history: Sequence[Mapping[str, float]], path: Path, title: str, note: str) -> list[Path]:
    """Draw a training as PNG and PDF beside each other.

    Raises:
        DataError: the name ends in neither.
    """
    if path.suffix not in (".png", ".pdf"):
        raise DataError(f"{path}: figures are .png or .pdf; give --plot such a name")
    with drawing_style():
        return save(training_figure(history, title, note), path.with_suffix(""))
