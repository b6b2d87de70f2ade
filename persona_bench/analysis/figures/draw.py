"""Tables to figures, as PNG and PDF: a pure function of tables and caption, with the same bytes for the same input."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from persona_bench.analysis.figures.drawing import (
    GREY,
    MARKERS,
    MOST_LAYERS,
    WIDTH,
    Caption,
    all_traits,
    drawing_style,
    flat_text,
    fullest_half,
    has_label,
    named_traits,
    new_figure,
    put_foot,
    put_legend,
    save,
    shaded,
    slug,
    trait_colours,
)
from persona_bench.analysis.figures.evidence import (
    HOLLOW,
    draw_curve,
    hollow_note,
    judge_note,
)
from persona_bench.analysis.figures.finetuning import finetuning_figures
from persona_bench.analysis.figures.flagging import flagging_figures
from persona_bench.analysis.figures.limits import limits_figures
from persona_bench.analysis.figures.method import method_figures
from persona_bench.analysis.figures.monitoring import monitoring_figures
from persona_bench.analysis.figures.tradeoff import frontier_figures
from persona_bench.analysis.grouping import single
from persona_bench.analysis.tables.capability import EVERY, first_above_chance, unsteered
from persona_bench.analysis.tables.tradeoff import enough_scores
from persona_bench.definitions.claims import MMLU_CHANCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["VERDICT_COLOURS", "Caption", "draw_all", "readable", "slug", "trait_colours", "verdict_matrix"]

VERDICT_COLOURS: Mapping[str, str] = {
    "supported": "#009E73",
    "contradicted": "#D55E00",
    "inconclusive": "#F0E442",
    "not testable": "#CFCFCF",
    "not run": "#FFFFFF",
}
"""Fill of each verdict, in the matrix and in the report; the word always stands beside the colour."""


def draw_all(tables: Mapping[str, pd.DataFrame], folder: Path, caption: Caption, prefix: str = "") -> list[Path]:
    """Draw every figure that the tables have rows for.

    Args:
        tables: as `build_tables` gives them, and `claims` (from `judge_claims`) for the overview.
        folder: is made where it does not exist.
        caption: what stands under each figure.
        prefix: before every file name.

    Returns:
        The files, a PNG and a PDF each: `claims`, `steering_<trait>`, `monitoring_<trait>`, `roc_<trait>`
        (with `_<condition>` for those besides the ladder), `drift_<trait>`, `mmlu`, `frontier_<trait>`,
        `shift_<trait>`, `vaccine_<family>`, `training_<family>`, `flagsets_<trait>`, `flaghistogram_<trait>`,
        `flagprecision_<trait>_<family>`, `flagtrained_<trait>`, `behaviours`, `limits`, `evasion`, `sensitivity`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    colours = trait_colours(all_traits(tables))
    paths: list[Path] = []
    with drawing_style():
        for name, figure in _figures(tables, colours, caption):
            paths += save(figure, folder / f"{prefix}{name}")
    return paths


def _figures(
    tables: Mapping[str, pd.DataFrame], colours: Mapping[str, str], caption: Caption
) -> Iterator[tuple[str, "Figure"]]:
    claims = tables.get("claims", pd.DataFrame())
    # Claims that nothing was run for would fill the page with empty cells; the report lists them.
    claims = claims[claims["verdict"] != "not run"] if len(claims) else claims
    if len(claims):
        yield "claims", _claims_figure(claims, caption)
    for trait in named_traits(tables["steering"]):
        yield f"steering_{slug(trait)}", _steering_figure(tables, trait, colours[trait], caption)
    yield from monitoring_figures(tables, colours, caption)
    shown = tables["mmlu"]["setting"].isin(["none", "single"]) & (tables["mmlu"]["group"] == EVERY)
    mmlu = tables["mmlu"][shown & (tables["mmlu"]["benchmark"] == "mmlu")]
    if len(mmlu):
        yield "mmlu", _mmlu_figure(mmlu, colours, caption)
    yield from frontier_figures(tables, colours, caption)
    yield from finetuning_figures(tables, caption)
    yield from flagging_figures(tables, colours, caption)
    yield from limits_figures(tables, caption)
    yield from method_figures(tables, colours, caption)


# --- (1) steering -----------------------------------------------------------------------------------------------------


def _steering_figure(tables: Mapping[str, pd.DataFrame], trait: str, colour: str, caption: Caption) -> "Figure":
    """Trait score and coherence against relative dose, a line a layer, with the random control dashed."""
    cells, half = fullest_half(single(tables["steering"][tables["steering"]["trait"] == trait]))
    choice = tables["steering_choice"]
    choice = choice[(choice["trait"] == trait) & choice["layer"].notna()]
    figure = new_figure(5.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axes, column in ((top, "trait_score"), (bottom, "coherence")):
        _dose_lines(axes, cells, column, colour, list(choice["layer"].astype(float)))
        axes.set_ylim(-3, 103)
        axes.axvline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
    starred = _stars(top, single(tables["steering"]), choice, trait, colour)
    top.set_ylabel("trait score (0-100)")
    bottom.set_ylabel("coherence (0-100)")
    bottom.set_xlabel("relative dose |αv| / |h| (minus: subtracted)")
    top.set_title(f"Steering: {flat_text(trait)} ({half} half of the questions)", color="black")
    put_legend(figure, top)
    n_layers = cells.loc[cells["vector"] == "persona", "layer"].nunique()
    some = f" {MOST_LAYERS} of {n_layers} layers shown." if n_layers > MOST_LAYERS else ""
    thin = hollow_note(pd.concat([cells, *starred]))
    note = f"Bands: 95 % intervals, bootstrapped by question.{thin}{some}{judge_note(tables, trait)}"
    put_foot(figure, caption.line(int(cells["n"].sum())), note)
    return figure


def _dose_lines(axes: "Axes", cells: pd.DataFrame, column: str, colour: str, chosen: Sequence[float]) -> None:
    # Coherence is judged of every answer, a trait score given to those that are coherent and no refusals.
    cells = cells.assign(firm=enough_scores(cells) if column == "trait_score" else True)
    plain = cells[cells["vector"] == "none"]
    for vector in ("random", "persona"):
        family = cells[cells["vector"] == vector]
        layers = _shown(sorted(family["layer"].unique()), chosen)
        for i, layer in enumerate(layers):
            line = pd.concat([family[family["layer"] == layer], plain]).sort_values("relative_dose")
            line = line.dropna(subset=[column])
            if line.empty:
                continue
            persona = vector == "persona"
            shade = shaded(colour if persona else GREY, i, len(layers))
            draw_curve(
                axes,
                line["relative_dose"],
                [line[f"{column}{end}"] for end in ("", "_low", "_high")],
                line["firm"],
                alpha=0.16,
                color=shade,
                marker=MARKERS[i % len(MARKERS)],
                size=4 if persona else 3,
                label=f"layer {layer:g}" if persona else f"random, layer {layer:g}",
                linestyle="-" if persona else "--",
                linewidth=1.8 if persona else 1.2,
            )
    if len(plain):
        row = plain.iloc[0]
        axes.plot(
            [0],
            [float(row[column])],
            marker="o",
            color="black",
            markerfacecolor="black" if row["firm"] else HOLLOW,
            markersize=5,
            linestyle="none",
            label="unsteered",
            zorder=5,
        )


def _shown(layers: Sequence[float], chosen: Sequence[float]) -> list[float]:
    """At most six layers, evenly spread, the chosen ones among them: a paper-sized sweep has a line a layer."""
    if len(layers) <= MOST_LAYERS:
        return list(layers)
    kept = [layer for layer in layers if layer in chosen]
    others = [layer for layer in layers if layer not in kept]
    picks = np.linspace(0, len(others) - 1, MOST_LAYERS - len(kept)).round().astype(int)
    return sorted({*kept, *(others[i] for i in picks)})


def _stars(axes: "Axes", steering: pd.DataFrame, choice: pd.DataFrame, trait: str, colour: str) -> list[pd.DataFrame]:
    """The chosen cells at their score on the report half, the number that the claims are about; gives them back."""
    starred = []
    cells = steering[(steering["trait"] == trait) & (steering["half"] == "report") & (steering["vector"] == "persona")]
    for _, chosen in choice.iterrows():
        same_dose = np.isclose(cells["coefficient"].astype(float), float(chosen["coefficient"]))
        at = cells[(cells["layer"] == chosen["layer"]) & same_dose].dropna(subset=["trait_score"])
        if len(at):
            starred.append(at)
            style: Any = {"marker": "*", "markersize": 13, "markeredgecolor": "black", "linestyle": "none"}
            axes.plot(
                at["relative_dose"].astype(float),
                at["trait_score"].astype(float),
                markerfacecolor=colour if enough_scores(at).all() else HOLLOW,
                zorder=6,
                **style,
            )
            if not has_label(axes, "chosen cell, report half"):
                axes.plot([], [], markerfacecolor=colour, label="chosen cell, report half", **style)
    return starred


# --- (3) capability ---------------------------------------------------------------------------------------------------


def _mmlu_figure(mmlu: pd.DataFrame, colours: Mapping[str, str], caption: Caption) -> "Figure":
    """Accuracy against relative dose, with the unsteered band and the chance line."""
    first = mmlu.sort_values("shots").iloc[0]
    scoring, shots = first_above_chance(mmlu) or (str(first["scoring"]), int(first["shots"]))
    cells = mmlu[(mmlu["scoring"] == scoring) & (mmlu["shots"] == shots)]
    plain = unsteered(cells)
    figure = new_figure(4.4)
    axes = figure.subplots()
    for _, row in plain.iterrows():
        axes.axhspan(row["accuracy_low"], row["accuracy_high"], color="#DDDDDD", zorder=0, label="unsteered, 95 %")
        axes.axhline(row["accuracy"], color=GREY, linewidth=1, zorder=1)
    axes.axhline(MMLU_CHANCE, color="black", linestyle=":", linewidth=1.2, label="chance")
    traits = named_traits(cells)
    cells = pd.concat([plain, cells[cells["setting"] == "single"]])
    doses = cells["relative_dose"].astype(float)
    # Traits are set apart a little, as their cells often share doses and would hide each other.
    step = 0.012 * float(doses.max() - doses.min() or 1)
    for i, trait in enumerate(traits):
        shift = step * (i - (len(traits) - 1) / 2)
        for vector, dashes in (("persona", "-"), ("random", "--")):
            family = cells[(cells["trait"] == trait) & (cells["vector"] == vector)]
            for layer in sorted(family["layer"].unique()):
                line = pd.concat([family[family["layer"] == layer], plain]).sort_values("relative_dose")
                mean, low, high = (
                    line[column].astype(float).to_numpy() for column in ("accuracy", "accuracy_low", "accuracy_high")
                )
                steered = (line["vector"] != "none").to_numpy()
                label = f"{flat_text(trait)}, layer {layer:g}" if vector == "persona" else "random vectors, same layers"
                axes.errorbar(
                    line["relative_dose"].astype(float) + np.where(steered, shift, 0.0),
                    mean,
                    # The unsteered interval is the band, once for all.
                    yerr=np.where(steered, np.clip(np.stack([mean - low, high - mean]), 0, None), np.nan),
                    color=colours[trait] if vector == "persona" else GREY,
                    linestyle=dashes,
                    marker=MARKERS[i % len(MARKERS)],
                    markersize=5,
                    capsize=2.5,
                    linewidth=1.6,
                    label=None if has_label(axes, label) else label,
                )
    top = float(np.nanmax(cells["accuracy_high"].astype(float)))
    axes.set_ylim(0, min(1.0, max(0.5, top + 0.08)))
    axes.set_xlabel("relative dose |αv| / |h| (minus: subtracted)")
    axes.set_ylabel("accuracy")
    axes.set_title(f"MMLU under steering ({scoring} scoring, {shots} examples)")
    put_legend(figure, axes)
    # The cells of random vectors hold the answers under several of them.
    n = int(cells.loc[cells["vector"] != "random", "n"].max())
    put_foot(figure, caption.line(f"{n} questions a cell"), "Bars: 95 % Wilson intervals.")
    return figure


# --- (4) claims -------------------------------------------------------------------------------------------------------


def _claims_figure(claims: pd.DataFrame, caption: Caption) -> "Figure":
    """Verdicts of one run, a trait a column."""
    return verdict_matrix(claims.assign(column=claims["trait"]), caption, order=sorted(set(claims["trait"])))


def verdict_matrix(claims: pd.DataFrame, caption: Caption, order: Sequence[str]) -> "Figure":
    """Verdicts as a matrix, a claim a row; the word stands in every cell.

    Args:
        claims: as `judge_claims` gives them, with the name of its column in `column`.
        caption: what stands under the figure.
        order: the columns.
    """
    names, columns = list(dict.fromkeys(claims["claim"])), list(order)
    figure = new_figure(1.4 + 0.46 * len(names), width=max(WIDTH, 2.2 + 1.15 * len(columns)))
    axes = figure.subplots()
    for _, row in claims.iterrows():
        x, y = columns.index(row["column"]), names.index(row["claim"])
        verdict = str(row["verdict"])
        axes.add_patch(_patch(x, y, VERDICT_COLOURS.get(verdict, "#FFFFFF")))
        estimate = "" if pd.isna(row["estimate"]) else f"\n{float(row['estimate']):.2f}"
        bold = "bold" if verdict in ("supported", "contradicted") else "normal"
        axes.text(x + 0.5, y + 0.5, verdict + estimate, ha="center", va="center", fontsize=9, fontweight=bold)
    axes.set_xlim(0, len(columns))
    axes.set_ylim(len(names), 0)
    axes.set_xticks(np.arange(len(columns)) + 0.5, [_wrapped(column) for column in columns])
    axes.set_yticks(np.arange(len(names)) + 0.5, ["\n".join(textwrap.wrap(readable(name), 20)) for name in names])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    tested = claims.loc[claims["estimate"].notna(), "n"].astype(int)
    n = f"{tested.min()} to {tested.max()} a verdict" if len(tested) else 0
    put_foot(figure, caption.line(n), "Under each verdict: the estimate of the claim's statistic. Empty: not run.")
    return figure


def _wrapped(column: str) -> str:
    """Each line of a column's name, short enough to stand above its cells."""
    return "\n".join("\n".join(textwrap.wrap(flat_text(line), 14)) for line in column.split("\n"))


def _patch(x: int, y: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.03, y + 0.04), 0.94, 0.92, facecolor=colour, edgecolor="#888888", linewidth=0.6)


def readable(claim_id: str) -> str:
    """A claim's id as words."""
    head, _, rest = claim_id.partition("-")
    return f"{head} {rest.replace('-', ' ')}"
