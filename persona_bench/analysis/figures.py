"""Tables to figures, as PNG and PDF: a pure function of tables and caption, with the same bytes for the same input.

Figures are one column wide (5 inches), so that they can be read in print and on a phone; colours are Okabe and Ito's
(https://jfly.uni-koeln.de/color/), which colour-blind readers can tell apart, and a trait keeps its colour everywhere.
Matplotlib is imported only when something is drawn, and without its global state.
"""

import hashlib
import re
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from persona_bench.definitions.claims import MMLU_CHANCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["VERDICT_COLOURS", "Caption", "draw_all", "slug", "trait_colours"]

WIDTH = 5.0
"""Width of every figure in inches."""
DPI = 160
_FONT = 9.5
_FOOT_CHARACTERS = 72
_GREY = "#666666"
_KNOWN = {
    "evil": "#D55E00",
    "sycophancy": "#0072B2",
    "hallucination": "#009E73",
    "optimistic": "#E69F00",
    "impolite": "#CC79A7",
    "apathetic": "#56B4E9",
    "humorous": "#8C6D1F",
}
_SPARE = ("#E69F00", "#56B4E9", "#CC79A7", "#000000", "#8C6D1F")
_MARKERS = "osD^vP*X"
_MOST_LAYERS = 6
VERDICT_COLOURS: Mapping[str, str] = {
    "supported": "#009E73",
    "contradicted": "#D55E00",
    "inconclusive": "#F0E442",
    "not testable": "#CFCFCF",
    "not run": "#FFFFFF",
}
"""Fill of each verdict, in the matrix and in the report; the word always stands beside the colour."""


@dataclass(frozen=True)
class Caption:
    """What stands under every figure, so that it can be read away from its report.

    Attributes:
        model: the model under test.
        preset: the preset of the run.
        grader: the judge's model.
        date: of the run, as text.
        seed: of the run.
    """

    model: str
    preset: str
    grader: str
    date: str
    seed: int | None = None

    def line(self, n: int | str) -> str:
        """The caption with the number of samples drawn."""
        parts = [self.model, f"preset {self.preset}", f"grader {self.grader}", f"n = {n}", self.date]
        parts += [] if self.seed is None else [f"seed {self.seed}"]
        return " · ".join(part for part in parts if part)


def draw_all(tables: Mapping[str, pd.DataFrame], folder: Path, caption: Caption) -> list[Path]:
    """Draw every figure that the tables have rows for.

    Args:
        tables: as `build_tables` gives them, and `claims` (from `judge_claims`) for the overview.
        folder: is made where it does not exist.
        caption: what stands under each figure.

    Returns:
        The files, a PNG and a PDF each: `claims`, `steering_<trait>`, `monitoring_<trait>`, `mmlu`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    colours = trait_colours(_traits(tables))
    paths: list[Path] = []
    with _style():
        for name, figure in _figures(tables, colours, caption):
            paths += _save(figure, folder / name)
    return paths


def trait_colours(traits: Sequence[str]) -> dict[str, str]:
    """A colour for each trait: fixed for the traits that come with the suite, else spare ones in order of name."""
    taken = {_KNOWN[trait] for trait in traits if trait in _KNOWN}
    spare = [colour for colour in _SPARE if colour not in taken] or list(_SPARE)
    others = sorted(set(traits) - _KNOWN.keys())
    return {trait: _KNOWN.get(trait) or spare[others.index(trait) % len(spare)] for trait in sorted(set(traits))}


def slug(trait: str) -> str:
    """A file name for a trait whose name may hold anything; different traits never share one."""
    plain = re.sub(r"[^A-Za-z0-9]+", "-", trait).strip("-")[:40]
    return plain if plain == trait else f"{plain or 'trait'}-{hashlib.sha256(trait.encode()).hexdigest()[:6]}"


def _figures(
    tables: Mapping[str, pd.DataFrame], colours: Mapping[str, str], caption: Caption
) -> Iterator[tuple[str, "Figure"]]:
    claims = tables.get("claims", pd.DataFrame())
    if len(claims):
        yield "claims", _claims_figure(claims, caption)
    for trait in _named(tables["steering"]):
        yield f"steering_{slug(trait)}", _steering_figure(tables, trait, colours[trait], caption)
    for trait in _named(tables["monitoring_points"]):
        figure = _monitoring_figure(tables, trait, colours[trait], caption)
        if figure is not None:
            yield f"monitoring_{slug(trait)}", figure
    if len(tables["mmlu"]):
        yield "mmlu", _mmlu_figure(tables["mmlu"], colours, caption)


# --- (1) steering -----------------------------------------------------------------------------------------------------


def _steering_figure(tables: Mapping[str, pd.DataFrame], trait: str, colour: str, caption: Caption) -> "Figure":
    """Trait score and coherence against relative dose, a line a layer, with the random control dashed."""
    cells, half = _fullest_half(tables["steering"][tables["steering"]["trait"] == trait])
    choice = tables["steering_choice"]
    choice = choice[(choice["trait"] == trait) & choice["layer"].notna()]
    figure = _new_figure(5.6)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    for axes, column in ((top, "trait_score"), (bottom, "coherence")):
        _dose_lines(axes, cells, column, colour, list(choice["layer"].astype(float)))
        axes.set_ylim(-3, 103)
        axes.axvline(0, color="#BBBBBB", linewidth=0.8, zorder=0)
    _stars(top, tables["steering"], choice, trait)
    top.set_ylabel("trait score (0-100)")
    bottom.set_ylabel("coherence (0-100)")
    bottom.set_xlabel("relative dose |αv| / |h| (minus: subtracted)")
    top.set_title(f"Steering: {_plain(trait)} ({half} half of the questions)", color="black")
    _legend(figure, top)
    n_layers = cells.loc[cells["vector"] == "persona", "layer"].nunique()
    some = f" {_MOST_LAYERS} of {n_layers} layers shown." if n_layers > _MOST_LAYERS else ""
    _foot(figure, caption.line(int(cells["n"].sum())), f"Bands: 95 % intervals, bootstrapped by question.{some}")
    return figure


def _dose_lines(axes: "Axes", cells: pd.DataFrame, column: str, colour: str, chosen: Sequence[float]) -> None:
    plain = cells[cells["vector"] == "none"]
    for vector in ("random", "persona"):
        family = cells[cells["vector"] == vector]
        layers = _shown(sorted(family["layer"].unique()), chosen)
        for i, layer in enumerate(layers):
            line = pd.concat([family[family["layer"] == layer], plain]).sort_values("relative_dose")
            line = line.dropna(subset=[column])
            if line.empty:
                continue
            shade = _shade(colour, i, len(layers)) if vector == "persona" else _shade(_GREY, i, len(layers))
            dose = line["relative_dose"].astype(float).to_numpy()
            axes.plot(
                dose,
                line[column].astype(float),
                color=shade,
                marker=_MARKERS[i % len(_MARKERS)],
                markersize=4 if vector == "persona" else 3,
                linewidth=1.8 if vector == "persona" else 1.2,
                linestyle="-" if vector == "persona" else "--",
                label=f"layer {layer:g}" if vector == "persona" else f"random, layer {layer:g}",
            )
            low, high = line[f"{column}_low"].astype(float), line[f"{column}_high"].astype(float)
            axes.fill_between(dose, low, high, color=shade, alpha=0.16, linewidth=0)
    if len(plain):
        value = float(plain[column].iloc[0])
        axes.plot([0], [value], marker="o", color="black", markersize=5, linestyle="none", label="unsteered", zorder=5)


def _shown(layers: Sequence[float], chosen: Sequence[float]) -> list[float]:
    """At most six layers, evenly spread, the chosen ones among them: a paper-sized sweep has a line a layer."""
    if len(layers) <= _MOST_LAYERS:
        return list(layers)
    kept = [layer for layer in layers if layer in chosen]
    others = [layer for layer in layers if layer not in kept]
    picks = np.linspace(0, len(others) - 1, _MOST_LAYERS - len(kept)).round().astype(int)
    return sorted({*kept, *(others[i] for i in picks)})


def _stars(axes: "Axes", steering: pd.DataFrame, choice: pd.DataFrame, trait: str) -> None:
    """The chosen cells at their score on the report half, the number that the claims are about."""
    cells = steering[(steering["trait"] == trait) & (steering["half"] == "report") & (steering["vector"] == "persona")]
    for _, chosen in choice.iterrows():
        same_dose = np.isclose(cells["coefficient"].astype(float), float(chosen["coefficient"]))
        at = cells[(cells["layer"] == chosen["layer"]) & same_dose].dropna(subset=["trait_score"])
        if len(at):
            label = "chosen cell, report half" if not _has_label(axes, "chosen cell, report half") else None
            axes.plot(
                at["relative_dose"].astype(float),
                at["trait_score"].astype(float),
                marker="*",
                markersize=13,
                markerfacecolor="white",
                markeredgecolor="black",
                linestyle="none",
                label=label,
                zorder=6,
            )


# --- (2) monitoring ---------------------------------------------------------------------------------------------------


def _monitoring_figure(
    tables: Mapping[str, pd.DataFrame], trait: str, colour: str, caption: Caption
) -> "Figure | None":
    """Projection of the last prompt token against the trait score, a colour a system prompt."""
    points = tables["monitoring_points"]
    points = points[points["trait"] == trait].dropna(subset=["trait_score", "prompt_last"])
    if points.empty:
        return None
    half = "report" if (points["half"] == "report").any() else str(sorted(points["half"])[0])
    points = points[points["half"] == half]
    rows = tables["monitoring"]
    rows = rows[(rows["trait"] == trait) & (rows["half"] == half) & (rows["direction"] == "persona")]
    rows = rows[rows["layer"].astype(float) == float(points["layer"].iloc[0])]
    figure = _new_figure(4.6)
    axes = figure.subplots()
    rungs = sorted(points["rung"].unique())
    from matplotlib import colormaps

    shades = colormaps["viridis"](np.linspace(0.0, 0.93, max(len(rungs), 2)))
    for i, rung in enumerate(rungs):
        at = points[points["rung"] == rung]
        axes.scatter(
            at["prompt_last"].astype(float),
            at["trait_score"].astype(float),
            s=26,
            color=shades[i],
            marker=_MARKERS[i % len(_MARKERS)],
            edgecolors="black",
            linewidths=0.3,
            label=f"{rung:g}",
        )
    _fit(axes, points, colour)
    axes.set_ylim(-3, 103)
    axes.set_xlabel(f"projection of the last prompt token, layer {float(points['layer'].iloc[0]):g}")
    axes.set_ylabel("trait score (0-100)")
    axes.set_title(f"Monitoring: {_plain(trait)}\n{_correlations(rows)}")
    axes.legend(title="system prompt, from suppressing to promoting", ncols=8, **_UNDER)
    _foot(figure, caption.line(f"{len(points)} points"), f"One point a system prompt and question ({half} half).")
    return figure


def _fit(axes: "Axes", points: pd.DataFrame, colour: str) -> None:
    x, y = points["prompt_last"].to_numpy(dtype=float), points["trait_score"].to_numpy(dtype=float)
    if len(x) < 3 or float(np.ptp(x)) == 0:
        return
    centred = x - x.mean()
    slope = float((centred * y).sum() / (centred**2).sum())
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, y.mean() + slope * (ends - x.mean()), color=colour, linewidth=1.8, zorder=1.5)


def _correlations(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    row = rows.iloc[0]
    overall = f"r = {row['r']:.2f} [{row['r_low']:.2f}, {row['r_high']:.2f}]"
    inner = f"within {row['r_within']:.2f} [{row['r_within_low']:.2f}, {row['r_within_high']:.2f}]"
    return f"{overall}, {inner}".replace("nan", "–")


# --- (3) capability ---------------------------------------------------------------------------------------------------


def _mmlu_figure(mmlu: pd.DataFrame, colours: Mapping[str, str], caption: Caption) -> "Figure":
    """Accuracy against relative dose, with the unsteered band and the chance line."""
    order = ("letter", "cloze")
    names = sorted(set(mmlu["scoring"]), key=lambda name: (order.index(name) if name in order else 9, name))
    able = mmlu["above_chance"].astype(str) == "True"
    scoring = next((name for name in names if able[mmlu["scoring"] == name].any()), names[0])
    cells = mmlu[mmlu["scoring"] == scoring]
    plain = cells[cells["vector"] == "none"]
    figure = _new_figure(4.4)
    axes = figure.subplots()
    for _, row in plain.iterrows():
        axes.axhspan(row["accuracy_low"], row["accuracy_high"], color="#DDDDDD", zorder=0, label="unsteered, 95 %")
        axes.axhline(row["accuracy"], color=_GREY, linewidth=1, zorder=1)
    axes.axhline(MMLU_CHANCE, color="black", linestyle=":", linewidth=1.2, label="chance")
    traits = _named(cells)
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
                suffix = "" if vector == "persona" else " (random)"
                axes.errorbar(
                    line["relative_dose"].astype(float) + shift,
                    mean,
                    yerr=np.clip(np.stack([mean - low, high - mean]), 0, None),
                    color=colours[trait] if vector == "persona" else _GREY,
                    linestyle=dashes,
                    marker=_MARKERS[i % len(_MARKERS)],
                    markersize=5,
                    capsize=2.5,
                    linewidth=1.6,
                    label=f"{_plain(trait)}, layer {layer:g}{suffix}",
                )
    top = float(np.nanmax(cells["accuracy_high"].astype(float)))
    axes.set_ylim(0, min(1.0, max(0.5, top + 0.08)))
    axes.set_xlabel("relative dose |αv| / |h| (minus: subtracted)")
    axes.set_ylabel("accuracy")
    axes.set_title(f"MMLU under steering ({scoring} scoring)")
    _legend(figure, axes)
    _foot(figure, caption.line(f"{int(cells['n'].max())} questions a cell"), "Bars: 95 % Wilson intervals.")
    return figure


# --- (4) claims -------------------------------------------------------------------------------------------------------


def _claims_figure(claims: pd.DataFrame, caption: Caption) -> "Figure":
    """Verdicts as a matrix, a claim a row and a trait a column; the word stands in every cell."""
    names, traits = list(dict.fromkeys(claims["claim"])), sorted(set(claims["trait"]))
    figure = _new_figure(1.4 + 0.46 * len(names), width=max(WIDTH, 2.2 + 1.15 * len(traits)))
    axes = figure.subplots()
    for _, row in claims.iterrows():
        x, y = traits.index(row["trait"]), names.index(row["claim"])
        verdict = str(row["verdict"])
        axes.add_patch(_patch(x, y, VERDICT_COLOURS.get(verdict, "#FFFFFF")))
        estimate = "" if pd.isna(row["estimate"]) else f"\n{float(row['estimate']):.2f}"
        bold = "bold" if verdict in ("supported", "contradicted") else "normal"
        axes.text(x + 0.5, y + 0.5, verdict + estimate, ha="center", va="center", fontsize=9, fontweight=bold)
    axes.set_xlim(0, len(traits))
    axes.set_ylim(len(names), 0)
    axes.set_xticks(np.arange(len(traits)) + 0.5, ["\n".join(textwrap.wrap(_plain(trait), 14)) for trait in traits])
    axes.set_yticks(np.arange(len(names)) + 0.5, ["\n".join(textwrap.wrap(_readable(name), 20)) for name in names])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    tested = claims.loc[claims["estimate"].notna(), "n"].astype(int)
    n = f"{tested.min()} to {tested.max()} a verdict" if len(tested) else 0
    _foot(figure, caption.line(n), "Under each verdict: the estimate of the claim's statistic.")
    return figure


def _patch(x: int, y: int, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.03, y + 0.04), 0.94, 0.92, facecolor=colour, edgecolor="#888888", linewidth=0.6)


def _readable(claim_id: str) -> str:
    head, _, rest = claim_id.partition("-")
    return f"{head} {rest.replace('-', ' ')}"


# --- shared parts -----------------------------------------------------------------------------------------------------

_UNDER: dict[str, Any] = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.17),
    "frameon": False,
    "handletextpad": 0.1,
    "columnspacing": 0.9,
}


@contextmanager
def _style() -> Iterator[None]:
    """The look of all figures, for the time of drawing only."""
    from matplotlib import rc_context

    settings: Any = {
        "font.family": "DejaVu Sans",
        "font.size": _FONT,
        "axes.titlesize": 10.5,
        "axes.labelsize": _FONT,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 9,
        "legend.title_fontsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#E8E8E8",
        "axes.axisbelow": True,
        "pdf.fonttype": 42,
        "svg.hashsalt": "persona-bench",
        # Names come from strangers: a dollar sign is no formula.
        "text.parse_math": False,
    }
    with rc_context(settings), warnings.catch_warnings():
        # A trait may be named in a script the font lacks: a box in the title is no reason to lose the figure.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        yield


def _new_figure(height: float, width: float = WIDTH) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: "Figure", stem: Path) -> list[Path]:
    """Write PNG and PDF without dates or versions, so that the bytes depend on the content only."""
    png, pdf = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".pdf")
    figure.savefig(png, metadata={"Software": None})
    figure.savefig(pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return [png, pdf]


def _foot(figure: "Figure", line: str, note: str) -> None:
    characters = int(_FOOT_CHARACTERS * figure.get_figwidth() / WIDTH)
    lines = textwrap.wrap(note, characters)
    rows = [""]
    for part in _plain(line, 400).split(" · "):
        joined = f"{rows[-1]} · {part}" if rows[-1] else part
        rows = [*rows[:-1], joined] if len(joined) <= characters else [*rows, part]
    text = "\n".join([*lines, *(piece for row in rows for piece in textwrap.wrap(row, characters))])
    figure.supxlabel(text, fontsize=9, color=_GREY, x=0.01, ha="left")


def _legend(figure: "Figure", axes: "Axes") -> None:
    pairs = zip(*axes.get_legend_handles_labels(), strict=True)
    # What is steered comes first, its controls after.
    ordered = sorted(pairs, key=lambda pair: "random" in pair[1])
    if ordered:
        handles, labels = [handle for handle, _ in ordered], [label for _, label in ordered]
        figure.legend(handles, labels, loc="outside upper center", ncols=2 if len(labels) < 7 else 3, frameon=False)


def _has_label(axes: "Axes", label: str) -> bool:
    return label in axes.get_legend_handles_labels()[1]


def _shade(colour: str, i: int, n: int) -> tuple[float, float, float]:
    """Lighter for early layers, the full colour for the last."""
    from matplotlib.colors import to_rgb

    strength = 1.0 if n < 2 else 0.45 + 0.55 * i / (n - 1)
    red, green, blue = to_rgb(colour)
    return 1 - strength * (1 - red), 1 - strength * (1 - green), 1 - strength * (1 - blue)


def _plain(text: str, longest: int = 48) -> str:
    """Text from strangers, shortened and on one line."""
    flat = " ".join(str(text).split())
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"


def _fullest_half(cells: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """The half in which most cells were run; the report half where they are equal."""
    sizes = cells.groupby("half").size().to_dict()
    half = max(sizes, key=lambda name: (sizes[name], name == "report"))
    return cells[cells["half"] == half], str(half)


def _named(table: pd.DataFrame) -> list[str]:
    """The traits of a table, sorted, without the empty name of unsteered rows."""
    return sorted({str(trait) for trait in table["trait"] if isinstance(trait, str)} - {""})


def _traits(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    found: set[str] = set()
    for table in tables.values():
        if "trait" in table:
            found |= set(_named(table))
    return sorted(found)
