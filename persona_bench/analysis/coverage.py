"""Which claim holds where: the verdicts of every run at hand by model, with its size, family and dtype."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from persona_bench.analysis.figures.draw import VERDICT_COLOURS, readable
from persona_bench.analysis.figures.drawing import WIDTH, flat_text, new_figure, put_foot
from persona_bench.analysis.verdicts.claims import DECIDED
from persona_bench.definitions.claims import ALL_TRAITS
from persona_bench.files import scope

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN = ("model", "preset", "part")
"""What tells runs apart; the part is empty but for a run published beside another of that preset."""
COVERAGE_COLUMNS = (
    *(*RUN, "grader", "family", "parameters", "dtype", "claim", "trait", "verdict"),
    *("estimate", "ci_low", "ci_high", "n", "weakness", "reason"),
)
_LETTER = {"supported": "S", "contradicted": "C", "inconclusive": "i", "not testable": "–", "not run": ""}
_GAP, _BLOCK = 0.04, 0.92
"""Where the fields of a run begin in its column, and how much of it they take."""
_FEWEST_LETTERS, _MOST_LETTERS = 3, 8
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
        runs: what run.json says of each (`RUN`, grader and `model_facts`), and its claims.
    """
    parts = [claims.assign(**facts) for facts, claims in runs]
    table = pd.concat(parts)[list(COVERAGE_COLUMNS)]
    order = {name: place for place, name in enumerate(dict.fromkeys(table["claim"]))}
    return (
        table.assign(_claim=table["claim"].map(order))
        .sort_values(["parameters", *RUN, "_claim", "trait"], kind="stable", ignore_index=True)
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
    runs = {key: rows for key, rows in table.groupby(list(RUN), sort=False)}
    columns = list(runs)
    every = _named(table)
    short = dict(zip(every, _beginnings(every), strict=True))
    traits_of = {key: _named(rows) for key, rows in runs.items()}
    # As wide as the letters of the traits need.
    column = max(1.35, 0.2 * max(len(traits) for traits in traits_of.values()))
    figure = new_figure(2.5 + 0.3 * len(claims), width=max(WIDTH, 2.2 + column * len(columns)))
    axes = figure.subplots()
    for key, rows in ran.groupby(list(RUN), sort=False):
        x, traits = columns.index(key), traits_of[key]
        for _, row in rows.iterrows():
            # A trait keeps its place, whatever was run of the others.
            width = _BLOCK / (1 if row["trait"] == ALL_TRAITS else len(traits))
            left = x + _GAP + (0 if row["trait"] == ALL_TRAITS else traits.index(row["trait"])) * width
            y = claims.index(row["claim"])
            weak = row["verdict"] in DECIDED and row["weakness"] != ""
            axes.add_patch(_field(left, y, width, VERDICT_COLOURS.get(row["verdict"], "#FFFFFF"), weak))
            letter = _LETTER.get(row["verdict"], "?")
            if row["verdict"] == "inconclusive" and row["weakness"]:
                letter = row["weakness"][0]
            axes.text(left + width / 2, y + 0.5, letter, ha="center", va="center", fontsize=8)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(claims), 0)
    axes.set_xticks(np.arange(len(columns)) + 0.5, [_heading(rows.iloc[0]) for rows in runs.values()])
    axes.set_yticks(np.arange(len(claims)) + 0.5, [readable(name) for name in claims])
    places = {
        columns.index(key) + _GAP + _BLOCK * (number + 0.5) / len(traits): short[trait]
        for key, traits in traits_of.items()
        for number, trait in enumerate(traits)
    }
    axes.xaxis.remove_overlapping_locs = False
    axes.set_xticks(list(places), list(places.values()), minor=True)
    axes.xaxis.tick_top()
    # Above and below, as the fields are many.
    axes.tick_params(axis="x", which="minor", labelbottom=True, labelrotation=90, labelsize=8, length=0, pad=2)
    axes.tick_params(length=0)
    axes.tick_params(axis="x", pad=8 + 5 * max([0, *map(len, short.values())]))
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    note = (
        "S supported, C contradicted, i inconclusive (s, c: the interval alone would support, contradict; Holm's "
        "correction over the run takes it back), – not testable; empty: not run; hatched: decided without an interval, "
        "or by a rule that was amended since. A field a trait, under the beginning "
        f"of its name ({', '.join(flat_text(trait) for trait in every)}), or one for the model. Smaller models first."
    )
    put_foot(figure, line, note)
    return figure


def _named(table: pd.DataFrame) -> list[str]:
    return sorted(set(table["trait"]) - {ALL_TRAITS})


def _beginnings(traits: Sequence[str]) -> list[str]:
    """Short names that tell the traits apart: as few letters of each as that takes, else their numbers too."""
    flat = [flat_text(trait) for trait in traits]
    for letters in range(_FEWEST_LETTERS, _MOST_LETTERS + 1):
        cut = [name[:letters] for name in flat]
        if len(set(cut)) == len(cut):
            return cut
    return [f"{name[:_FEWEST_LETTERS]}{number}" for number, name in enumerate(flat, start=1)]


def _field(left: float, y: int, width: float, colour: str, hatched: bool) -> Any:
    from matplotlib.patches import Rectangle

    hatch = "///" if hatched else None
    return Rectangle((left, y + 0.06), width, 0.88, facecolor=colour, edgecolor="#888888", linewidth=0.5, hatch=hatch)


def _heading(row: pd.Series) -> str:
    name = "\n".join(textwrap.wrap(flat_text(row["model"], 32), 16))
    return f"{name}\n{size(float(row['parameters']))} {row['family']}\n{row['dtype']}, {scope(dict(row))}"
