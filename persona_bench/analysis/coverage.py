"""Which claim holds where: the verdicts of every run at hand by model, with its size, family and dtype."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from persona_bench.analysis.figures.draw import VERDICT_COLOURS, readable
from persona_bench.analysis.figures.drawing import WIDTH, flat_text, new_figure, put_foot
from persona_bench.analysis.verdicts.claims import by_the_interval_alone
from persona_bench.definitions.claims import ALL_TRAITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COVERAGE_COLUMNS = (
    *("model", "preset", "grader", "family", "parameters", "dtype", "claim", "trait", "verdict"),
    *("estimate", "ci_low", "ci_high", "n", "reason"),
)
_LETTER = {"supported": "S", "contradicted": "C", "inconclusive": "i", "not testable": "–", "not run": ""}
UNKNOWN = "unknown"
"""Stands for what a run of an older version does not say of its model."""


def model_facts(held: Mapping[str, Any]) -> dict[str, Any]:
    """Family, number of parameters (NaN where it is not said) and dtype of a run's model, from its run.json."""
    told = (held.get("weights") or {}).get("model") or {}
    return {
        "family": str(told.get("family", UNKNOWN)),
        "parameters": float(told.get("parameters", np.nan)),
        "dtype": str(told.get("dtype", UNKNOWN)),
    }


def coverage_table(runs: Sequence[tuple[Mapping[str, Any], pd.DataFrame]]) -> pd.DataFrame:
    """One row a run, claim and trait, smaller models first.

    Args:
        runs: what run.json says of each (model, preset, grader and `model_facts`), and its claims.
    """
    parts = [claims.assign(**facts) for facts, claims in runs]
    table = pd.concat(parts)[list(COVERAGE_COLUMNS)]
    order = {name: place for place, name in enumerate(dict.fromkeys(table["claim"]))}
    return (
        table.assign(_claim=table["claim"].map(order))
        .sort_values(["parameters", "model", "preset", "_claim", "trait"], kind="stable", ignore_index=True)
        .drop(columns="_claim")
    )


def size(parameters: float) -> str:
    """134,515,008 -> "135M"."""
    if np.isnan(parameters):
        return f"{UNKNOWN} size"
    return f"{parameters / 1e9:.3g}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"


def coverage_figure(table: pd.DataFrame, line: str) -> Figure:
    """A claim a row, a run a column, a field a trait: every verdict has its colour and its letter.

    Args:
        table: as `coverage_table` gives it; claims that nobody ran are left out.
        line: what stands under it.
    """
    ran = table[table["verdict"] != "not run"]
    claims = [name for name in dict.fromkeys(table["claim"]) if name in set(ran["claim"])]
    columns = list(dict.fromkeys(zip(table["model"], table["preset"], strict=True)))
    figure = new_figure(1.9 + 0.3 * len(claims), width=max(WIDTH, 2.2 + 1.35 * len(columns)))
    axes = figure.subplots()
    for (model, preset), rows in ran.groupby(["model", "preset"], sort=False):
        x = columns.index((model, preset))
        every = table[(table["model"] == model) & (table["preset"] == preset)]
        traits = sorted(set(every["trait"]) - {ALL_TRAITS})
        for _, row in rows.iterrows():
            # A trait keeps its place, whatever was run of the others.
            width = 0.92 / (1 if row["trait"] == ALL_TRAITS else len(traits))
            left = x + 0.04 + (0 if row["trait"] == ALL_TRAITS else traits.index(row["trait"])) * width
            y = claims.index(row["claim"])
            axes.add_patch(_field(left, y, width, VERDICT_COLOURS.get(row["verdict"], "#FFFFFF")))
            letter = _LETTER.get(by_the_interval_alone(row["reason"]) or row["verdict"], "?")
            letter = letter.lower() if row["verdict"] == "inconclusive" else letter
            axes.text(left + width / 2, y + 0.5, letter, ha="center", va="center", fontsize=8)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(claims), 0)
    axes.set_xticks(np.arange(len(columns)) + 0.5, [_heading(table, *column) for column in columns])
    axes.set_yticks(np.arange(len(claims)) + 0.5, [readable(name) for name in claims])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    named = ", ".join(sorted(set(table["trait"]) - {ALL_TRAITS}))
    note = (
        "S supported, C contradicted, i inconclusive (s, c: the interval alone would support, contradict; Holm's "
        "correction over the run takes it back), – not testable; empty: not run. A field a trait, by name "
        f"({named}), or one for the model. Smaller models first."
    )
    put_foot(figure, line, note)
    return figure


def _field(left: float, y: int, width: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((left, y + 0.06), width, 0.88, facecolor=colour, edgecolor="#888888", linewidth=0.5)


def _heading(table: pd.DataFrame, model: str, preset: str) -> str:
    row = table[(table["model"] == model) & (table["preset"] == preset)].iloc[0]
    name = "\n".join(textwrap.wrap(flat_text(model, 32), 16))
    return f"{name}\n{size(float(row['parameters']))} {row['family']}\n{row['dtype']}, {preset}"
