"""Figures of monitoring: the paper's scatter by condition, ROC curves beside baselines, the drift timeline."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from persona_bench.analysis.figures.drawing import (
    GREY,
    MARKERS,
    UNDER,
    Caption,
    flat_text,
    named_traits,
    new_figure,
    put_foot,
    put_legend,
    slug,
)
from persona_bench.analysis.figures.evidence import (
    draw_curve,
    hollow_note,
    judge_note,
)
from persona_bench.analysis.figures.traces import draw_trace
from persona_bench.analysis.tables.monitoring import POSITION, TEXT
from persona_bench.analysis.tables.tradeoff import enough_scores

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RUNGS = {
    "ladder": "system prompt, from suppressing to promoting",
    "many_shot": "example exchanges before the question",
    "user_pressure": "user's wording, from suppressing to promoting",
    "drift": "turn of the conversation",
}
_SHORT = {"ladder": "system prompt", "many_shot": "examples:", "user_pressure": "wording", "drift": "turn"}
_CURVES = (  # direction, signal, scope, label; in the order of the legend
    ("persona", "prompt_last", "layer", "projection, last prompt token"),
    ("persona", "response_mean", "layer", "projection, response mean"),
    (f"{TEXT}tfidf", "prompt_last", "text", "text only: TF-IDF"),
    (f"{TEXT}embeddings", "prompt_last", "text", "text only: embeddings"),
    (POSITION, "prompt_last", "text", "condition alone"),
    ("random:0", "prompt_last", "layer", "random direction"),
)
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), "-")
_GREYS = (GREY, GREY, "#000000", "#444444", "#888888", "#BBBBBB")


def monitoring_figures(
    tables: Mapping[str, pd.DataFrame], colours: Mapping[str, str], caption: Caption
) -> Iterator[tuple[str, "Figure"]]:
    """(file name, figure) of every trait and condition that was monitored.

    Args:
        tables: as `build_tables` gives them.
        colours: of the traits.
        caption: what stands under each figure.
    """
    for trait in named_traits(tables["monitoring_points"]):
        points = tables["monitoring_points"][tables["monitoring_points"]["trait"] == trait]
        for condition in sorted(set(points["condition"])):
            name = slug(trait) if condition == "ladder" else f"{slug(trait)}_{condition}"
            here = points[points["condition"] == condition].dropna(subset=["trait_score", "prompt_last"])
            if not here.empty:
                yield f"monitoring_{name}", _scatter(tables, here, trait, colours[trait], caption)
            curves = tables["monitoring_roc"]
            curves = curves[(curves["trait"] == trait) & (curves["condition"] == condition)]
            if not curves.empty:
                yield f"roc_{name}", _roc(tables, curves, trait, condition, colours[trait], caption)
    for trait in named_traits(tables["monitoring_tokens"]):
        tokens = tables["monitoring_tokens"]
        yield f"trace_{slug(trait)}", _traces(tokens[tokens["trait"] == trait], trait, colours[trait], caption)
    for trait in named_traits(tables["drift_turns"]):
        turns = tables["drift_turns"][tables["drift_turns"]["trait"] == trait]
        yield f"drift_{slug(trait)}", _timeline(tables, turns, trait, colours[trait], caption)


def _main(tables: Mapping[str, pd.DataFrame], trait: str, condition: str, half: str) -> pd.DataFrame:
    rows = tables["monitoring"]
    return rows[
        (rows["trait"] == trait)
        & (rows["condition"] == condition)
        & (rows["half"] == half)
        & (rows["direction"] == "persona")
        & (rows["signal"] == "prompt_last")
        & (rows["chosen_layer"].astype(str) == "True")
    ]


def _scatter(
    tables: Mapping[str, pd.DataFrame], points: pd.DataFrame, trait: str, colour: str, caption: Caption
) -> "Figure":
    """Projection against trait score, a point a condition and question, shaded by how hard the condition pushes."""
    from matplotlib import colormaps

    half = "report" if (points["half"] == "report").any() else str(sorted(points["half"])[0])
    points = points[points["half"] == half]
    condition, layer = str(points["condition"].iloc[0]), float(points["layer"].iloc[0])
    figure = new_figure(4.6)
    axes = figure.subplots()
    rungs = sorted(points["rung"].unique())
    shades = colormaps["viridis"](np.linspace(0.0, 0.93, max(len(rungs), 2)))
    for i, rung in enumerate(rungs):
        at = points[points["rung"] == rung]
        axes.scatter(
            at["prompt_last"].astype(float),
            at["trait_score"].astype(float),
            s=26,
            color=shades[i],
            marker=MARKERS[i % len(MARKERS)],
            edgecolors="black",
            linewidths=0.3,
            label=_rung(condition, float(rung)),
        )
    _fit(axes, points, colour)
    axes.set_ylim(-3, 103)
    axes.set_xlabel(f"projection of the last prompt token, layer {layer:g}")
    axes.set_ylabel("trait score (0-100)")
    axes.set_title(f"Monitoring: {flat_text(trait)}\n{_correlations(_main(tables, trait, condition, half))}")
    axes.legend(title=_RUNGS.get(condition, condition), ncols=8, **UNDER)
    what = "script and turn" if condition == "drift" else "condition and question"
    note = f"One point a {what} ({half} half).{judge_note(tables, trait)}"
    put_foot(figure, caption.line(f"{len(points)} points"), note)
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


def _roc(
    tables: Mapping[str, pd.DataFrame],
    curves: pd.DataFrame,
    trait: str,
    condition: str,
    colour: str,
    caption: Caption,
) -> "Figure":
    """True against false alarms on the report half: the projection in the trait's colour, its baselines in grey."""
    figure = new_figure(4.9)
    axes = figure.subplots()
    rows = tables["monitoring"]
    rows = rows[(rows["trait"] == trait) & (rows["condition"] == condition) & (rows["half"] == "report")]
    for i, (direction, signal, scope, label) in enumerate(_CURVES):
        key = {"direction": direction, "signal": signal, "scope": scope}
        line = _only(curves, key)
        if line.empty:
            continue
        measured = _only(rows, key).dropna(subset=["auroc"])
        area = f" ({float(measured['auroc'].iloc[0]):.2f})" if len(measured) else ""
        axes.step(
            line["fpr"].astype(float),
            line["tpr"].astype(float),
            where="post",
            color=colour if direction == "persona" else _GREYS[i],
            linestyle=_DASHES[i % len(_DASHES)],
            linewidth=2 if direction == "persona" else 1.3,
            label=f"{label}{area}",
        )
    axes.plot([0, 1], [0, 1], color="#BBBBBB", linewidth=0.8, zorder=0)
    axes.set_xlabel("false alarms among responses under 50")
    axes.set_ylabel("found among responses of 50 or more")
    axes.set_title(f"Monitoring as detection: {flat_text(trait)}, {condition_words(condition)}")
    axes.legend(title="in brackets: AUROC", loc="lower right", frameon=True, framealpha=0.9)
    counted = rows.dropna(subset=["n_positive"])
    n = (
        f"{counted['n_positive'].iloc[0]:g} of 50 or more, {counted['n_negative'].iloc[0]:g} under"
        if len(counted)
        else 0
    )
    note = f"Single responses of the report half; baselines were fitted on the other half.{judge_note(tables, trait)}"
    put_foot(figure, caption.line(n), note)
    return figure


def _only(table: pd.DataFrame, key: Mapping[str, str]) -> pd.DataFrame:
    for column, value in key.items():
        table = table[table[column] == value]
    return table


def _timeline(
    tables: Mapping[str, pd.DataFrame], turns: pd.DataFrame, trait: str, colour: str, caption: Caption
) -> "Figure":
    """Mean score and mean projection by turn, for conversations that drift towards the trait and away from it."""
    figure = new_figure(5.9)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for axes, column in ((top, "trait_score"), (bottom, "projection")):
        for side, dashes, marker, words in (
            ("toward", "-", "o", "towards the trait"),
            ("away", "--", "s", "away from it"),
        ):
            line = turns[turns["side"] == side].dropna(subset=[column]).sort_values("turn")
            if line.empty:
                continue
            draw_curve(
                axes,
                line["turn"].astype(float) + 1,
                [line[f"{column}{end}"] for end in ("", "_low", "_high")],
                enough_scores(line) | (column != "trait_score"),
                alpha=0.14,
                color=colour,
                marker=marker,
                size=4,
                label=words,
                linestyle=dashes,
            )
    top.axhline(50, color="black", linestyle=":", linewidth=1)
    threshold = turns["threshold"].dropna()
    if len(threshold):
        bottom.axhline(float(threshold.iloc[0]), color="black", linestyle=":", linewidth=1, label="alarm (5 % false)")
    top.set_ylim(-3, 103)
    top.set_ylabel("trait score (0-100)")
    bottom.set_ylabel("projection, last prompt token")
    bottom.set_xlabel("turn")
    said, note = _alarm(tables["drift"], trait, float(np.ptp(turns["turn"].astype(float))))
    top.set_title(f"Drift: {flat_text(trait)}, {said}")
    handles, labels = _distinct((top, bottom))
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    note = f"Bands: 95 % intervals, bootstrapped by script.{hollow_note(turns)}{note}{judge_note(tables, trait)}"
    put_foot(figure, caption.line(f"{int(turns['n'].sum())} turns"), note)
    return figure


def _traces(tokens: pd.DataFrame, trait: str, colour: str, caption: Caption) -> "Figure":
    """Projection token by token over responses to one question, under the weakest and the strongest condition."""
    from matplotlib.ticker import MaxNLocator

    ladder = tokens[tokens["condition"] == "ladder"]
    tokens = ladder if len(ladder) else tokens
    condition, layer = str(tokens["condition"].iloc[0]), float(tokens["layer"].iloc[0])
    tokens = tokens[tokens["condition"] == condition]
    ends = sorted({float(tokens["rung"].astype(float).min()), float(tokens["rung"].astype(float).max())})
    parts = []
    for rung in ends:
        here = tokens[tokens["rung"].astype(float) == rung]
        first = here[here["sample_id"] == sorted(here["sample_id"])[0]]
        parts.append(first.assign(direction=f"{_SHORT.get(condition, condition)} {_rung(condition, rung)}"))
    lines = pd.concat(parts)
    figure = new_figure(3.8)
    axes = figure.subplots()
    draw_trace(axes, lines.assign(message=np.nan, role=""), ("#000000", colour))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(f"Token by token: {flat_text(trait)}, layer {layer:g}")
    axes.set_xlabel("token of the response")
    put_legend(figure, axes)
    put_foot(figure, caption.line(f"{len(parts)} responses"), "Responses to the first evaluation question.")
    return figure


def _alarm(drift: pd.DataFrame, trait: str, span: float) -> tuple[str, str]:
    """How far the first alarm is from the first score of 50 or more, and what stands under the figure about it.

    Args:
        drift: the drift table, whose `lead` is in turns and positive where the alarm comes first.
        trait: of the conversations.
        span: turns from the first one to the last, the most that a lead can be.
    """
    rows = _only(drift, {"trait": trait, "direction": "persona", "signal": "prompt_last", "scope": "layer"})
    if rows.empty:
        return "no alarm can be set", ""
    row = rows.iloc[0]
    said = f"{row['n_crossed']:g} of {row['n_scripts']:g} conversations reach 50"
    note = " Title: conversations towards the trait, report half"
    if not row["n_crossed"]:
        return said, f"{note}."
    lead, low, high = (float(row[name]) for name in ("lead", "lead_low", "lead_high"))
    if np.isnan(lead):
        return f"{said}\nand none of these raises an alarm", f"{note}."
    # Tables of an older version do not count those with both.
    number = "those" if pd.isna(row["n_both"]) else f"the {row['n_both']:g}"
    interval = "too few for an interval" if np.isnan(low) else "95 % interval the whole range"
    if low > -span or high < span:
        interval = f"95 % interval {_turns(max(low, -span))} to {_turns(min(high, span))}"
    note = f"{note}; first alarm against first score of 50 or more, mean of {number} with both, {interval}."
    return f"{said}\nfirst alarm {_turns(lead)} that (mean of {number} with both)", note


def _turns(lead: float) -> str:
    """A lead in words: one below 0 is an alarm that comes late."""
    return f"{abs(lead):.1f} turns {'before' if lead > 0 else 'after'}"


def condition_words(condition: str) -> str:
    """What a condition is called in titles and beside axes."""
    return "system prompt" if condition == "ladder" else condition.replace("_", " ")


def _rung(condition: str, rung: float) -> str:
    """A rung as it is counted: the first turn of a conversation is turn 1."""
    return f"{rung + (condition == 'drift'):g}"


def _distinct(axes: Sequence["Axes"]) -> tuple[list["Artist"], list[str]]:
    found = {label: handle for one in axes for handle, label in zip(*one.get_legend_handles_labels(), strict=True)}
    return list(found.values()), list(found)
