"""Figures of several runs: drawn from files alone, with the same bytes each time, and nothing stale left behind."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from persona_bench.analysis.comparison import _coverage, _monitoring, _steering, _verdicts, draw_results
from persona_bench.analysis.coverage import COVERAGE_COLUMNS, coverage_figure, model_facts, size
from persona_bench.analysis.figures.drawing import MARKERS, trait_colours
from persona_bench.analysis.runs import Run, read_runs
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.files import write_tables
from persona_bench.analysis.verdicts.claims import judge_claims
from persona_bench.cli import main
from persona_bench.errors import DataError
from tests.builders_samples import World, make_samples
from tests.conftest import one_line

MODELS = {"smollm2-135m": 0, "org/other-1b": 1}
SIZES = {"smollm2-135m": 134515008, "org/other-1b": 1.24e9}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models' runs at one preset, as `persona-bench run` leaves them."""
    root = tmp_path_factory.mktemp("results")
    for model, seed in MODELS.items():
        folder = root / model.replace("/", "--") / "quick"
        samples = make_samples(World(traits=("evil",), seed=seed, questions=5, mmlu_questions=60, scripts=2))
        tables = build_tables(samples, resamples=50)
        write_tables(tables, folder / "tables")
        write_tables({"claims": judge_claims(samples, tables, resamples=50)}, folder)
        run = {"model": model, "preset": "quick", "grader": "g", "date": "2026-01-02", "seed": 0}
        run |= {"weights": {"model": {"family": "llama", "parameters": SIZES[model], "dtype": "bfloat16"}}}
        (folder / "run.json").write_text(json.dumps(run))
    return root


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_every_run_and_the_models_side_by_side_with_the_same_bytes(results: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    drawn = draw_results(results, first)
    names = {path.stem for path in drawn}
    assert {f"comparison-quick-{name}" for name in ("claims", "steering", "monitoring")} <= names
    for stem in ("smollm2-135m-quick", "org--other-1b-quick"):
        assert {f"{stem}-{name}" for name in ("claims", "steering_evil", "monitoring_evil", "mmlu")} <= names
    second.mkdir()
    stale, kept = second / "gone-quick-claims.png", second / "README.md"
    stale.write_bytes(b"old")
    kept.write_text("kept")
    draw_results(results, second)
    assert not stale.exists() and kept.read_text() == "kept"
    kept.unlink()
    assert hashes(first) == hashes(second)
    # A PNG and a PDF of each, and the table of the coverage.
    assert len(hashes(first)) == len(drawn) == 2 * len(names) + 1


def test_the_coverage_is_every_verdict_with_the_size_of_its_model(results: Path, tmp_path: Path) -> None:
    write_tables({"coverage": _coverage(read_runs(results))}, tmp_path)
    table = pd.read_csv(tmp_path / "coverage.csv", keep_default_na=False)
    assert tuple(table.columns) == COVERAGE_COLUMNS
    # The smaller model comes first, whatever its name.
    assert list(dict.fromkeys(table["model"])) == list(MODELS)
    assert list(dict.fromkeys(table["parameters"])) == [pytest.approx(size, rel=1e-5) for size in SIZES.values()]
    assert set(table["family"]) == {"llama"} and set(table["dtype"]) == {"bfloat16"}
    for model in MODELS:
        claims = pd.read_csv(results / model.replace("/", "--") / "quick" / "claims.csv", keep_default_na=False)
        mine = table[table["model"] == model]
        assert list(mine["claim"]) == list(claims["claim"]) and list(mine["verdict"]) == list(claims["verdict"])


def test_the_picture_of_the_coverage_has_a_field_for_each_verdict(results: Path) -> None:
    table = _coverage(read_runs(results))
    figure = coverage_figure(table, "line")
    (axes,) = figure.axes
    ran = table[table["verdict"] != "not run"]
    assert len(axes.patches) == len(ran)
    letters = [text.get_text() for text in axes.texts]
    assert letters.count("S") == (ran["verdict"] == "supported").sum() > 0
    alone = table.assign(verdict="inconclusive", weakness="contradicted by the interval alone")
    assert {text.get_text() for text in coverage_figure(alone, "line").axes[0].texts} == {"c"}
    for weakness, hatched in (("older rule", ran["verdict"].isin(["supported", "contradicted"]).sum()), ("", 0)):
        fields = coverage_figure(table.assign(weakness=weakness), "line").axes[0].patches
        assert [field.get_hatch() for field in fields].count("///") == hatched
    # Of two traits of which one was run, the field stays in its own half.
    other = table.assign(trait=table["trait"].replace("evil", "zeal"), verdict="not run")
    both = coverage_figure(pd.concat([table, other]).sort_values(["parameters", "trait"]), "line").axes[0].patches
    assert len(both) == len(ran) and {round(patch.get_width(), 2) for patch in both} <= {0.46, 0.92}
    assert all(patch.get_x() % 1 < 0.1 for patch in both)
    headings = [label.get_text() for label in axes.get_xticklabels()]
    assert "135M llama" in headings[0] and "1.24B llama" in headings[1] and "bfloat16, quick" in headings[0]


def steering(*runs: Run) -> Figure:
    figure = _steering(runs)
    assert figure is not None
    return figure


def points(figure: Figure, panel: int, colour: str) -> dict[float, Line2D]:
    """Dose -> marker of one colour; markers stand a little beside their doses."""
    lines = [line for line in figure.axes[panel].get_lines() if line.get_color() == colour]
    found = [line for line in lines if str(line.get_marker()) in MARKERS and len(np.asarray(line.get_xdata()))]
    return {round(float(np.asarray(line.get_xdata())[0]), 1): line for line in found}


def test_steering_side_by_side_leaves_out_doses_with_few_scores_but_the_chosen(results: Path) -> None:
    run = read_runs(results)[0]
    colour = trait_colours(["evil"])["evil"]
    cells, choice = run.tables["steering"], run.tables["steering_choice"]
    # Cells of several layers are no part of the sweep, wherever the first of these lies.
    several = cells[cells["vector"] == "persona"].assign(setting="multi", relative_dose=0.3)
    run.tables["steering"] = pd.concat([cells, several])
    assert set(points(steering(run), 0, colour)) == {-0.4, -0.2, 0.2, 0.4}

    def few(dose: float) -> None:
        thin = np.isclose(cells["relative_dose"].astype(float), dose)
        run.tables["steering"] = cells.assign(n_scored=cells["n_scored"].mask(thin, cells["n"] // 2 - 1))

    few(0.2)
    assert set(choice["relative_dose"].round(1)) == {-0.4, 0.4}
    assert set(points(steering(run), 0, colour)) == {-0.4, -0.2, 0.4}
    few(0.4)
    found = points(steering(run), 0, colour)
    assert set(found) == {-0.4, -0.2, 0.2, 0.4}
    assert [found[dose].get_markerfacecolor() for dose in (-0.4, 0.2, 0.4)] == [colour, colour, "white"]
    assert "hollow: a chosen cell with fewer" in " ".join(steering(run).get_supxlabel().split())


def test_steering_side_by_side_goes_through_0_each_sign_at_its_own_layer(results: Path) -> None:
    run = read_runs(results)[0]
    cells, choice = run.tables["steering"], run.tables["steering_choice"]
    run.tables["steering_choice"] = choice.assign(layer=choice["sign"].map({"positive": 12, "negative": 8}))
    found = points(steering(run), 0, trait_colours(["evil"])["evil"])
    report = cells[(cells["half"] == "report") & (cells["vector"] == "persona")]
    for dose, line in found.items():
        layer = report[(report["layer"] == (12 if dose > 0 else 8)) & np.isclose(report["relative_dose"], dose)]
        assert float(np.asarray(line.get_ydata())[0]) == pytest.approx(float(layer["difference"].iloc[0]))
    joined = [line for line in steering(run).axes[0].get_lines() if line.get_marker() == "None"]
    for line in joined[1:]:
        assert (0.0, 0.0) in set(zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True))
    run.tables["steering_choice"] = choice[choice["sign"] == "negative"]
    assert set(points(steering(run), 0, trait_colours(["evil"])["evil"])) == {-0.4, -0.2}


def with_traits(run: Run, *traits: str) -> Run:
    """A run whose trait is others' too."""
    tables = {
        name: pd.concat([table.assign(trait=trait) for trait in traits]) if "trait" in table else table
        for name, table in run.tables.items()
    }
    return replace(run, tables=tables)


def test_a_trait_has_one_marker_in_every_panel_and_in_the_legend(results: Path) -> None:
    first, second = read_runs(results)
    runs = with_traits(first, "impolite", "sycophancy"), with_traits(second, "evil", "humorous", "sycophancy")
    figure = steering(*runs)
    (legend,) = figure.legends
    shown = {text.get_text(): handle for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True)}
    assert list(shown) == ["evil", "humorous", "impolite", "sycophancy", "random vectors"]
    assert len({handle.get_marker() for handle in shown.values()}) == 5  # type: ignore[union-attr]
    for panel, traits in enumerate((["impolite", "sycophancy"], ["evil", "humorous", "sycophancy"])):
        for trait in traits:
            found = points(figure, panel, trait_colours([trait])[trait]).values()
            assert {line.get_marker() for line in found} == {shown[trait].get_marker()}  # type: ignore[union-attr]


def test_traits_whose_judge_fails_are_left_out_and_named(results: Path) -> None:
    first, second = (with_traits(run, "evil", "humorous") for run in read_runs(results))
    judge = second.tables["judge"]
    second.tables["judge"] = judge.assign(passes=judge["passes"] & (judge["trait"] != "humorous"))

    def said(figure: Figure | None) -> str:
        assert figure is not None
        return " ".join(figure.get_supxlabel().split())

    colour = trait_colours(["humorous"])["humorous"]
    assert not points(steering(second), 0, colour) and points(steering(first), 0, colour)
    left = "Left out, as the judge does not pass its gate: humorous"
    for panels in (_steering, _monitoring):
        assert left not in said(panels([first])) and f"{left}. " in said(panels([second]))
        assert f"{left} ({second.model}). " in said(panels([first, second]))
    # One that was never checked may not decide either.
    second.tables["judge"] = judge.iloc[:0]
    assert _steering([second]) is None and _monitoring([second]) is None


def test_claims_side_by_side_are_those_that_a_model_ran(results: Path) -> None:
    runs = read_runs(results)
    claims = pd.concat([run.tables["claims"] for run in runs])
    assert "not run" in set(claims["verdict"])
    figure = _verdicts(runs)
    assert figure is not None
    (axes,) = figure.axes
    assert len(axes.patches) == (claims["verdict"] != "not run").sum()
    assert not any("not run" in text.get_text() for text in axes.texts)
    assert "Empty: not run." in " ".join(figure.get_supxlabel().split())
    idle = [replace(run, tables={"claims": run.tables["claims"].assign(verdict="not run")}) for run in runs]
    assert _verdicts(idle) is None


def test_monitoring_side_by_side_names_every_condition_the_papers_first(results: Path) -> None:
    figure = _monitoring(read_runs(results))
    assert figure is not None
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["evil,\nsystem prompt", "evil,\ndrift"]


def test_the_fields_of_the_coverage_stand_under_the_names_of_their_traits(results: Path) -> None:
    table = _coverage(read_runs(results))
    small, large = MODELS
    other = table[table["model"] == small].replace({"trait": {"evil": "evil-twin"}})
    both = pd.concat([table, other, table[table["model"] == large].replace({"trait": {"evil": "zeal"}})])
    (axes,) = coverage_figure(both, "line").axes
    ticks, labels = axes.get_xticks(minor=True), [label.get_text() for label in axes.get_xticklabels(minor=True)]
    # Above and below.
    assert labels == 2 * ["evil", "evil-", "evil", "zeal"]
    centres = {round(patch.get_x() + patch.get_width() / 2, 6) for patch in axes.patches if patch.get_width() < 0.9}
    assert centres == {round(place, 6) for place in ticks}
    assert "evil, evil-twin, zeal" in " ".join(coverage_figure(both, "line").get_supxlabel().split())
    # Names that begin alike for long have their number.
    longer = [f"{'same' * 5}-{end}" for end in "ab"]
    alike = pd.concat([table.replace({"trait": {"evil": name}}) for name in longer])
    named = coverage_figure(alike, "line").axes[0].get_xticklabels(minor=True)
    assert {label.get_text() for label in named} == {"sam1", "sam2"}


def test_a_run_that_does_not_say_what_its_model_is_is_unknown() -> None:
    assert model_facts({"model": "m"}) == {"family": "unknown", "parameters": pytest.approx(math.nan, nan_ok=True),
                                           "dtype": "unknown"}  # fmt: skip
    assert size(math.nan) == "unknown size" and size(7.6e9) == "7.6B" and size(494e6) == "494M"


def test_a_caption_names_model_preset_grader_n_and_date(results: Path) -> None:
    from persona_bench.analysis.comparison import _comparisons
    from persona_bench.analysis.figures.drawing import drawing_style

    with drawing_style():
        figures = dict(_comparisons(read_runs(results)))
    for figure in figures.values():
        foot = " ".join(figure.get_supxlabel().split())
        for part in (*MODELS, "preset quick", "grader g", "n = ", "2026-01-02"):
            assert part in foot
    panels = figures["comparison-quick-steering"].axes
    assert [axes.get_title() for axes in panels] == sorted(MODELS, key=lambda name: name.replace("/", "--"))


def test_a_folder_without_runs_and_a_broken_run_are_one_line(results: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as none:
        draw_results(tmp_path, tmp_path / "out")
    one_line(none, "no run under", "persona-bench run")
    assert not (tmp_path / "out").exists()
    broken = tmp_path / "m" / "quick"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text('{"model": "m"}')
    with pytest.raises(DataError) as error:
        draw_results(tmp_path, tmp_path / "out")
    one_line(error, "m/quick/run.json", "run it again")
    shutil.copytree(results / "smollm2-135m" / "quick", broken, dirs_exist_ok=True)
    (broken / "claims.csv").write_text("claim,trait\nC1-steering-induces,evil\n")
    with pytest.raises(DataError) as cut:
        draw_results(tmp_path, tmp_path / "out")
    one_line(cut, "m/quick/run.json", "verdict")
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(main, ["figures", "--results", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
