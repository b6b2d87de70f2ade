"""What figures show as solid evidence, and whether what they show can be told apart and understood."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from persona_bench.analysis.figures.draw import _mmlu_figure, _steering_figure
from persona_bench.analysis.figures.drawing import Caption, new_figure, put_foot, trait_colours
from persona_bench.analysis.figures.evidence import draw_curve, judge_note
from persona_bench.analysis.figures.finetuning import finetuning_figures, short_names
from persona_bench.analysis.figures.flagging import flagging_figures
from persona_bench.analysis.figures.monitoring import _alarm, monitoring_figures
from persona_bench.analysis.figures.tradeoff import frontier_figures
from persona_bench.analysis.tables.build import build_tables
from persona_bench.definitions.families.family import VERSIONS
from tests.builders_samples import World, make_samples

CAPTION = Caption("some/model", "quick", "some-grader", "2025-01-02", seed=0)
COLOURS = trait_colours(["evil"])
EVIL = COLOURS["evil"]


@pytest.fixture(scope="module")
def tables() -> dict[str, pd.DataFrame]:
    return build_tables(make_samples(World(traits=("evil",), questions=5, mmlu_questions=60)), resamples=50)


def said(figure: Figure) -> str:
    """What stands under a figure, on one line."""
    return " ".join(figure.get_supxlabel().split())


def drawn(axes: Axes, hollow: bool) -> set[tuple[float, float]]:
    """Where the solid or the hollow markers are."""
    places: set[tuple[float, float]] = set()
    for line in axes.get_lines():
        if line.get_marker() != "None" and same_color(line.get_markerfacecolor(), "white") == hollow:  # type: ignore[arg-type]
            places |= {(round(x, 4), round(y, 4)) for x, y in zip(*ends(line), strict=True)}
    return places


def ends(line: Line2D) -> tuple[np.ndarray, np.ndarray]:
    return np.asarray(line.get_xdata(), dtype=float), np.asarray(line.get_ydata(), dtype=float)


def test_points_that_few_answers_gave_are_hollow_and_joined_by_dots(tables: dict[str, pd.DataFrame]) -> None:
    steering = tables["steering"]
    thin = (steering["relative_dose"] == 0.4) & (steering["vector"] == "persona")
    steering = steering.assign(n_scored=steering["n_scored"].mask(thin, steering["n"] // 2 - 1))
    figure = _steering_figure({**tables, "steering": steering}, "evil", EVIL, CAPTION)
    assert "Hollow, no band: under half of the answers have a trait score." in said(figure)
    scores, coherence = figure.axes
    cells = steering[(steering["half"] == "report") & (steering["setting"].isin(["none", "single"]))]
    few = cells[(cells["relative_dose"] == 0.4) & (cells["vector"] == "persona")]
    at = {(0.4, round(float(value), 4)) for value in few["trait_score"]}
    # The star on the chosen cell, which is one of them, is hollow too.
    assert len(at) == 2 and drawn(scores, hollow=True) == at and not drawn(scores, hollow=False) & at
    dotted = [line for line in scores.get_lines() if line.get_linestyle() == ":"]
    assert {float(x) for line in dotted for x in ends(line)[0]} == {0.2, 0.4} and len(dotted) == 2
    # Coherence is judged of every answer.
    assert not drawn(coherence, hollow=True) and "Hollow" not in said(_steering_figure(tables, "evil", EVIL, CAPTION))


def test_a_firm_point_between_others_has_a_bar_in_the_place_of_a_band() -> None:
    axes = new_figure(3.0).subplots()
    firm = np.array([True, True, False, True, False])
    x, value = np.arange(5.0), np.full(5, 50.0)
    draw_curve(axes, x, [value, value - 10, value + 10], firm, 0.2, color=EVIL, marker="o", size=4, label="a")
    band, bars = axes.collections
    widths = [np.ptp(np.asarray(path.vertices)[:, 0]) for path in band.get_paths()]
    assert widths[0] == 1.0 and not any(widths[1:])
    assert [path.vertices.tolist() for path in bars.get_paths()] == [[[3.0, 40.0], [3.0, 60.0]]]


def test_figures_of_a_trait_whose_judge_fails_its_gate_say_so(tables: dict[str, pd.DataFrame]) -> None:
    shut = {**tables, "judge": tables["judge"].assign(passes=False)}
    unchecked = {**tables, "judge": tables["judge"].iloc[:0]}
    assert judge_note(tables, "evil") == "" and "not checked" in judge_note(unchecked, "evil")

    def made(which: dict[str, pd.DataFrame]) -> dict[str, Figure]:
        frontier = dict(frontier_figures(which, COLOURS, CAPTION))
        watched = dict(monitoring_figures(which, COLOURS, CAPTION))
        return {**frontier, **watched, "steering_evil": _steering_figure(which, "evil", EVIL, CAPTION)}

    names = {"steering_evil", "frontier_evil", "monitoring_evil", "roc_evil", "drift_evil"}
    for which, fails in ((tables, False), (shut, True)):
        figures = made(which)
        assert names <= set(figures)
        for name in names:
            assert ("The judge fails its gate for this trait" in said(figures[name])) == fails


def test_the_frontier_is_hollow_where_few_answers_have_a_score_and_names_the_strongest_dose(
    tables: dict[str, pd.DataFrame],
) -> None:
    cells = tables["tradeoff"]
    down = cells[~(cells["relative_dose"].astype(float) > 0)]
    thin = (down["relative_dose"] == -0.4) & (down["vector"] == "persona")
    down = down.assign(coherent=True, n_scored=down["n_scored"].mask(thin, down["n"] // 2 - 1))
    (figure,) = dict(frontier_figures({**tables, "tradeoff": down}, COLOURS, CAPTION)).values()
    (axes,) = figure.axes
    few = down[thin & down["accuracy"].notna()]
    assert len(few) and drawn(axes, hollow=True) == {
        (round(float(row["accuracy"]), 4), round(float(row["trait_score"]), 4)) for _, row in few.iterrows()
    }
    assert "or a trait score for under half of the answers" in said(figure)
    # A sweep of one sign has one strongest dose; its weakest is none.
    assert {text.get_text() for text in axes.texts} == {"-0.4"}


def training(arms: int) -> pd.DataFrame:
    names = ["plain", *(f"arm{number}" for number in range(arms - 1))]
    rows = [
        {"family": "evil", "version": "misaligned_2", "arm": arm, "seed": 0, "step": step, "trait": "evil",
         "projection": float(number * step)}
        for (number, arm), step in product(enumerate(names), range(13))
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.mark.parametrize("arms", [2, 11, 20])
def test_every_line_of_a_training_has_a_look_of_its_own_in_grey_too(arms: int) -> None:
    tables = {"finetuning": pd.DataFrame({"trait": ["evil"], "arm": ["base"], "family": [""]}),
              "vaccine": pd.DataFrame(columns=["arm", "family"]), "training": training(arms)}  # fmt: skip
    tables["finetuning"] = tables["finetuning"].assign(shift=np.nan, trait_score=np.nan)
    figure = dict(finetuning_figures(tables, CAPTION))["training_evil"]
    lines = [line for line in figure.axes[0].get_lines() if line.get_marker() != "None"]
    looks = {(line.get_marker(), line.get_linestyle(), line.get_markerfacecolor() == "white") for line in lines}
    assert len(lines) == len(looks) == arms
    (legend,) = figure.legends
    assert len({(handle.get_marker(), handle.get_linestyle()) for handle in legend.legend_handles}) == arms  # type: ignore[union-attr]
    assert f"n = {arms} trainings" in said(figure)


def drift(**row: float) -> pd.DataFrame:
    about = {"trait": "evil", "direction": "persona", "signal": "prompt_last", "scope": "layer", "n_scripts": 8}
    return pd.DataFrame([{**about, **row}])


def test_an_alarm_is_before_or_after_by_so_many_turns_of_so_many_conversations() -> None:
    late = drift(n_crossed=5, n_alarmed=6, n_both=3, caught=0.0, lead=-4.0, lead_low=-23.7, lead_high=15.7)
    title, note = _alarm(late, "evil", span=7)
    assert title == "5 of 8 conversations reach 50\nfirst alarm 4.0 turns after that (mean of the 3 with both)"
    assert "95 % interval the whole range" in note and "23" not in note
    early = drift(n_crossed=8, n_alarmed=7, n_both=7, caught=0.9, lead=1.4, lead_low=-0.9, lead_high=9.0)
    title, note = _alarm(early, "evil", span=7)
    assert title.endswith("first alarm 1.4 turns before that (mean of the 7 with both)")
    assert "mean of the 7 with both, 95 % interval 0.9 turns after to 7.0 turns before." in note
    alone = drift(n_crossed=1, n_alarmed=4, n_both=np.nan, caught=1.0, lead=0.0, lead_low=np.nan, lead_high=np.nan)
    title, note = _alarm(alone, "evil", span=7)
    assert "(mean of those with both)" in title and "too few for an interval" in note
    silent = drift(n_crossed=3, n_alarmed=0, caught=0.0, lead=np.nan, lead_low=np.nan, lead_high=np.nan)
    assert _alarm(silent, "evil", span=7)[0] == "3 of 8 conversations reach 50\nand none of these raises an alarm"
    never = drift(n_crossed=0, n_alarmed=3, caught=np.nan, lead=np.nan, lead_low=np.nan, lead_high=np.nan)
    assert _alarm(never, "evil", span=7)[0] == "0 of 8 conversations reach 50"
    assert _alarm(never.iloc[:0], "evil", span=7) == ("no alarm can be set", "")


def test_turns_are_counted_alike_and_conditions_named_alike(tables: dict[str, pd.DataFrame]) -> None:
    figures = dict(monitoring_figures(tables, COLOURS, CAPTION))
    timeline = figures["drift_evil"].axes[0]
    shown = [text.get_text() for text in figures["monitoring_evil_drift"].axes[0].get_legend().get_texts()]
    assert shown == [f"{x:g}" for x in max((ends(line)[0] for line in timeline.get_lines()), key=len)]
    assert shown[0] == "1"
    assert [text.get_text() for text in figures["monitoring_evil"].axes[0].get_legend().get_texts()][0] == "0"
    assert figures["roc_evil"].axes[0].get_title().endswith("evil, system prompt")
    assert "turns" in timeline.get_title() and "ahead" not in timeline.get_title()


def test_turns_with_few_scores_are_hollow(tables: dict[str, pd.DataFrame]) -> None:
    turns = tables["drift_turns"]
    few = (turns["side"] == "away") & (turns["turn"] == turns["turn"].max())
    turns = turns.assign(n_scored=turns["n_scored"].mask(few, 0))
    figure = dict(monitoring_figures({**tables, "drift_turns": turns}, COLOURS, CAPTION))["drift_evil"]
    scores, projections = figure.axes
    last = turns[few].iloc[0]
    assert drawn(scores, hollow=True) == {(float(last["turn"]) + 1, round(float(last["trait_score"]), 4))}
    assert not drawn(projections, hollow=True) and "Hollow, no band" in said(figure)


def test_the_unsteered_accuracy_has_one_interval(tables: dict[str, pd.DataFrame]) -> None:
    mmlu = tables["mmlu"].query("group == 'all' and benchmark == 'mmlu'")
    (axes,) = _mmlu_figure(mmlu, COLOURS, CAPTION).axes
    bars = [np.asarray(bar) for bars in axes.collections for bar in bars.get_segments() if len(bar)]  # type: ignore[attr-defined]
    assert bars and not any(np.isfinite(bar).all() and bar[0, 0] == 0 for bar in bars)


def test_families_that_are_traits_have_the_colours_of_these() -> None:
    families = [*(f"family{number}" for number in range(8)), "evil"]
    plain = pd.DataFrame({"family": families, "trait": "evil", "arm": "plain", "version": "normal"})
    plain = plain.assign(
        **dict.fromkeys(("shift", "trait_score", "trait_score_low", "trait_score_high"), np.arange(9.0))
    )
    empty = pd.DataFrame(columns=["arm", "family", "direction", "trait"])
    tables = {"finetuning": plain, "shift_correlation": empty, "vaccine": empty, "training": empty}
    figure = dict(finetuning_figures(tables, CAPTION))["shift_evil"]
    shown = dict(zip(*reversed(figure.axes[0].get_legend_handles_labels()), strict=True))
    short = {"evil": "ev"} | {name: name for name in families[:-1]}
    assert set(shown) == {f"{name} ({short[name]})" for name in families}
    assert same_color(shown["evil (ev)"][0].get_color(), EVIL)
    assert sorted(text.get_text() for text in figure.axes[0].texts) == sorted(short.values())


def test_a_number_is_not_parted_from_its_percent_sign() -> None:
    for letters in range(40, 80):
        figure = new_figure(3.0)
        put_foot(figure, "line", f"{'m' * letters} Bars: 95 % intervals.")
        assert not re.search(r"95\n", figure.get_supxlabel())


def test_arms_after_the_eighth_are_told_apart_from_the_first() -> None:
    ways = ["plain", *(f"arm{number}" for number in range(8)), "random"]
    measured = ("acquired", "cloze_difference", "loss_difference")
    rows = [
        {"family": "evil", "trait": "evil", "version": "misaligned_2", "arm": way, "dose": np.nan, "n_seeds": 2, "n": 9,
         **{f"{name}{end}": float(number) for name in measured for end in ("", "_low", "_high")}}
        for number, way in enumerate(ways)
    ]  # fmt: skip
    finetuned = pd.DataFrame({"trait": ["evil"], "arm": ["base"], "family": [""], "shift": np.nan, "trait_score": 0.0})
    tables = {"finetuning": finetuned, "vaccine": pd.DataFrame(rows), "training": training(0).iloc[:0]}
    figure = dict(finetuning_figures(tables, CAPTION))["vaccine_evil"]
    points = [line for line in figure.axes[0].get_lines() if line.get_marker() not in ("None", None)]
    assert len({(line.get_marker(), line.get_markerfacecolor() == "white") for line in points}) == len(ways)
    assert "2 seeds an arm" in said(figure)


def test_histograms_of_one_direction_have_one_scale_and_outlines_of_their_own() -> None:
    rows = [
        {"trait": "evil", "measure": "difference", "family": family, "version": version, "low": low, "high": low + 1,
         "count": 3}
        for (family, start), version in product((("evil", 0), ("opinions", 50)), VERSIONS)
        for low in range(start, start + 4)
    ]  # fmt: skip
    tables = {"flagging_values": pd.DataFrame(rows)}
    panels = dict(flagging_figures(tables, COLOURS, CAPTION))["flaghistogram_evil"].axes
    assert panels[0].get_xlim() == panels[1].get_xlim()
    for axes in panels:
        outlines = {patch.get_linestyle() for patch in axes.patches if patch.get_label()}
        assert len(outlines) == 3


def test_families_have_as_few_letters_as_tell_them_apart() -> None:
    names = short_names(["medical", "math", "evil", "mat", "sycophancy"])
    assert names == {"medical": "me", "math": "math", "evil": "ev", "mat": "mat", "sycophancy": "sy"}
