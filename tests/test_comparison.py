"""Figures of several runs: drawn from files alone, with the same bytes each time, and nothing stale left behind."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

from persona_bench.analysis.comparison import _coverage, _steering, draw_results
from persona_bench.analysis.coverage import COVERAGE_COLUMNS, coverage_figure, model_facts, size
from persona_bench.analysis.runs import read_runs
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
    alone = table.assign(verdict="inconclusive", reason="x 3; contradicted by the interval alone, p = 1 after Holm's")
    assert {text.get_text() for text in coverage_figure(alone, "line").axes[0].texts} == {"c"}
    # Of two traits of which one was run, the field stays in its own half.
    other = table.assign(trait=table["trait"].replace("evil", "zeal"), verdict="not run")
    both = coverage_figure(pd.concat([table, other]).sort_values(["parameters", "trait"]), "line").axes[0].patches
    assert len(both) == len(ran) and {round(patch.get_width(), 2) for patch in both} <= {0.46, 0.92}
    assert all(patch.get_x() % 1 < 0.1 for patch in both)
    headings = [label.get_text() for label in axes.get_xticklabels()]
    assert "135M llama" in headings[0] and "1.24B llama" in headings[1] and "bfloat16, quick" in headings[0]


def test_steering_side_by_side_leaves_out_doses_with_few_scores(results: Path) -> None:
    run = read_runs(results)[0]

    def doses() -> set[float]:
        figure = _steering([run])
        assert figure is not None
        return {round(float(x), 2) for line in figure.axes[0].get_lines()[1:] for x in line.get_xdata()}

    cells = run.tables["steering"]
    at_top = cells["relative_dose"].astype(float) == cells["relative_dose"].astype(float).max()
    top = round(float(cells["relative_dose"].max()), 2)
    assert top in doses()
    run.tables["steering"] = cells.assign(n_scored=cells["n_scored"].where(~at_top, cells["n"] // 2 - 1))
    assert doses() and top not in doses()


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
