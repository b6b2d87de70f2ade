"""Data flagging drawn: the measure against what training did, histograms, precision by recall, and trained-on ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from persona_bench.analysis.figures.drawing import (
    GREY,
    MARKERS,
    Caption,
    flat_text,
    has_label,
    named_traits,
    new_figure,
    put_foot,
    put_legend,
    shaded,
    slug,
    trait_colours,
)
from persona_bench.analysis.figures.finetuning import (
    VERSION_MARKERS,
    VERSION_NAMES,
    correlation_note,
    name_point,
    short_names,
)
from persona_bench.analysis.tables.finetuning import NORMAL
from persona_bench.analysis.tables.flagging import BOTH, CLASSIFIER, JUDGE, PERPLEXITY, RANDOM_DIRECTION, RANDOM_NUMBERS
from persona_bench.definitions.flagging import MEASURES, PICKS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MEASURE = {
    "difference": "projection difference",
    "response": "response projection",
    "response_minus_prompt": "response minus last prompt token",
}
_OUTLINES = ("-", ":", "--")
_OUTCOME = {"shift": "finetuning shift along v", "trait_score": "trait score (0-100)"}
_BESIDE = (
    (JUDGE, "judge", "black", "-"),
    (BOTH, "judge and difference", "black", "--"),
    (CLASSIFIER, "text classifier", "#CC79A7", "-"),
    (PERPLEXITY, "perplexity", "#E69F00", "-"),
    (RANDOM_DIRECTION, "random direction", GREY, "--"),
    (RANDOM_NUMBERS, "random numbers", GREY, ":"),
)
"""Detectors beside the measures: name, label, colour, line."""


def flagging_figures(
    tables: Mapping[str, pd.DataFrame], colours: Mapping[str, str], caption: Caption
) -> Iterator[tuple[str, Figure]]:
    """Name and figure, of tables that have rows.

    `flagsets_<trait>`, `flaghistogram_<trait>`, `flagprecision_<trait>_<family>` and `flagtrained_<trait>`.
    """
    sets = tables.get("flagging_sets", pd.DataFrame(columns=["trait"]))
    for trait in named_traits(sets):
        own = sets[sets["trait"] == trait].dropna(subset=["difference"])
        if own["trait_score"].notna().sum() > 1:
            yield f"flagsets_{slug(trait)}", _sets_figure(own, tables["flagging_correlation"], trait, caption)
    values = tables.get("flagging_values", pd.DataFrame(columns=["trait"]))
    for trait in named_traits(values):
        own = values[(values["trait"] == trait) & (values["measure"] == "difference")]
        if len(own):
            yield f"flaghistogram_{slug(trait)}", _histogram_figure(own, trait, colours[trait], caption)
    curves = tables.get("flagging_curves", pd.DataFrame(columns=["trait"]))
    for trait in named_traits(curves):
        for family in sorted(set(curves.loc[curves["trait"] == trait, "family"])):
            own = curves[(curves["trait"] == trait) & (curves["family"] == family)]
            strongest = own[own["version"] == max(own["version"])]
            name = f"flagprecision_{slug(trait)}_{slug(family)}"
            yield name, _precision_figure(strongest, tables["flagging_samples"], colours[trait], caption)
    trained = tables.get("flagging_causal", pd.DataFrame(columns=["trait"]))
    for trait in named_traits(trained):
        own = trained[trained["trait"] == trait].dropna(subset=["trait_score"])
        if len(own):
            yield f"flagtrained_{slug(trait)}", _trained_figure(own, trait, colours[trait], caption)


def _sets_figure(own: pd.DataFrame, correlations: pd.DataFrame, trait: str, caption: Caption) -> Figure:
    """A point a training set: the projection difference across, what training on it did up."""
    figure = new_figure(7.0)
    panels = figure.subplots(2, 1, sharex=True)
    colours = trait_colours(sorted(set(own["family"])))
    names = short_names(list(colours))
    for axes, outcome in zip(panels, ("shift", "trait_score"), strict=True):
        for row in own.dropna(subset=[outcome]).to_dict("records"):
            label = f"{flat_text(row['family'])} ({flat_text(names[row['family']])})"
            name_point(axes, row, (row["difference"], row[outcome]), names)
            axes.errorbar(
                row["difference"],
                row[outcome],
                xerr=_ends(row, "difference"),
                yerr=_ends(row, outcome),
                color=colours[row["family"]],
                marker=VERSION_MARKERS.get(row["version"], "x"),
                markersize=5,
                linewidth=0.8,
                linestyle="none",
                label=None if has_label(axes, label) else label,
            )
        axes.set_ylabel(_OUTCOME[outcome])
        found = correlations[
            (correlations["trait"] == trait)
            & (correlations["measure"] == "difference")
            & (correlations["outcome"] == outcome)
        ].dropna(subset=["r"])
        if len(found):
            axes.set_title(correlation_note(found.iloc[0]), color="black", loc="left")
    panels[1].set_xlabel(f"projection difference of the training set: {flat_text(trait)}")
    put_legend(figure, panels[0])
    note = (
        "One point a training set; circle normal, square I, triangle II; letters its family. "
        "Bars: 95 % intervals by question."
    )
    put_foot(figure, caption.line(f"{len(own)} training sets"), note)
    return figure


def _ends(row: Mapping[Any, Any], name: str) -> list[list[float]]:
    return [[max(row[name] - row[f"{name}_low"], 0)], [max(row[f"{name}_high"] - row[name], 0)]]


def _histogram_figure(own: pd.DataFrame, trait: str, colour: str, caption: Caption) -> Figure:
    """A panel a family: how far its versions lie along the vector."""
    families = sorted(set(own["family"]), key=lambda name: (name != trait, name))
    figure = new_figure(1.0 + 2.0 * len(families))
    panels = figure.subplots(len(families), 1, sharex=True, squeeze=False)[:, 0]
    for axes, family in zip(panels, families, strict=True):
        versions = sorted(set(own.loc[own["family"] == family, "version"]), key=lambda name: (name != NORMAL, name))
        for number, version in enumerate(versions):
            part = own[(own["family"] == family) & (own["version"] == version)].sort_values("low")
            n = int(part["count"].sum())
            shade = GREY if version == NORMAL else shaded(colour, number - 1, len(versions) - 1)
            heights, edges = part["count"].astype(float).to_numpy() / max(n, 1), [*part["low"], part["high"].iloc[-1]]
            axes.stairs(heights, edges, fill=True, alpha=0.25, color=shade)
            # Outlines tell the versions apart where their fills lie over each other.
            label = f"{VERSION_NAMES.get(version, version)} (n = {n})"
            outline = GREY if version == NORMAL else colour
            dashes = _OUTLINES[number % len(_OUTLINES)]
            axes.stairs(heights, edges, color=outline, linestyle=dashes, linewidth=1.4, label=label)
        axes.set_title(f"{flat_text(family)} samples", loc="left")
        axes.set_ylabel("share of samples")
        axes.legend(frameon=False)
    panels[-1].set_xlabel(f"projection difference: {flat_text(trait)}")
    put_foot(figure, caption.line(f"{int(own['count'].sum())} samples"), "Each version's bars add up to 1.")
    return figure


def _precision_figure(own: pd.DataFrame, scores: pd.DataFrame, colour: str, caption: Caption) -> Figure:
    """A panel a share of positives: precision by recall of every detector on the report half."""
    trait, family, version = (str(own[name].iloc[0]) for name in ("trait", "family", "version"))
    shares = sorted(set(own["share"].astype(float)))
    figure = new_figure(1.6 + 2.2 * len(shares))
    panels = figure.subplots(len(shares), 1, sharex=True, squeeze=False)[:, 0]
    drawn = [(name, _MEASURE[name], shaded(colour, 2 - i, 3), "-") for i, name in enumerate(MEASURES[::-1])]
    for axes, share in zip(panels, shares, strict=True):
        for name, label, shade, line in (*drawn, *_BESIDE):
            part = own[(own["detector"] == name) & (own["share"].astype(float) == share)].sort_values("recall")
            if len(part):
                axes.plot(part["recall"], part["precision"], color=shade, linestyle=line, linewidth=1.5, label=label)
        axes.set_ylim(-0.03, 1.03)
        axes.set_ylabel("precision")
        axes.set_title(f"{100 * share:.0f} % of the samples are to be found", loc="left")
    panels[-1].set_xlabel("recall")
    put_legend(figure, panels[0], columns=2)
    cells = scores[(scores["trait"] == trait) & (scores["family"] == family) & (scores["version"] == version)]
    cells = cells[(cells["half"] == "report") & (cells["detector"] == "difference")]
    n = int(cells["n_positive"].iloc[0] + cells["n_negative"].iloc[0]) if len(cells) else 0
    note = (
        f"{flat_text(family)} {VERSION_NAMES.get(version, version)} among normal samples, for {flat_text(trait)}; "
        "report half of the questions, mixtures by weights."
    )
    put_foot(figure, caption.line(n), note)
    return figure


def _trained_figure(own: pd.DataFrame, trait: str, colour: str, caption: Caption) -> Figure:
    """Trait score after training on the highest, on random and on the lowest samples, a line a pool."""
    figure = new_figure(4.2)
    axes: Axes = figure.subplots()
    pools = [name for name in ("mixture", "corpus", "passed") if name in set(own["pool"])]
    for number, pool in enumerate(pools):
        part = own[own["pool"] == pool].set_index("pick")
        picks = [pick for pick in PICKS if pick in part.index]
        rows = [part.loc[pick] for pick in picks]
        axes.errorbar(
            [PICKS.index(pick) + 0.06 * (number - (len(pools) - 1) / 2) for pick in picks],
            [row["trait_score"] for row in rows],
            yerr=[
                [row["trait_score"] - row["trait_score_low"] for row in rows],
                [row["trait_score_high"] - row["trait_score"] for row in rows],
            ],
            color=shaded(colour, number, len(pools)),
            marker=MARKERS[number],
            linewidth=1.5,
            label=_POOL[pool],
        )
    axes.set_xticks(range(len(PICKS)), ["highest", "random", "lowest"])
    axes.set_xlabel("samples trained on, by projection difference")
    axes.set_ylabel("trait score (0-100)")
    axes.set_title(f"Trained on flagged samples: {flat_text(trait)}", color="black")
    put_legend(figure, axes)
    note = f"{int(own['n_picked'].max())} samples a model. Bars: 95 % intervals by question."
    put_foot(figure, caption.line(int(own["n"].sum())), note)
    return figure


_POOL = {
    "mixture": "training sets mixed",
    "corpus": "real conversations",
    "passed": "real, after the judge's filter",
}
