"""Figures of several runs: drawn from files alone, with the same bytes each time, and nothing stale left behind."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from persona_bench.analysis.comparison import draw_results, read_runs
from persona_bench.analysis.tables import build_tables, write_tables
from persona_bench.analysis.verdicts import judge_claims
from persona_bench.cli import main
from persona_bench.errors import DataError
from tests.builders_samples import World, make_samples
from tests.conftest import one_line

MODELS = {"smollm2-135m": 0, "org/other-1b": 1}


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
    assert len(hashes(first)) == len(drawn) == 2 * len(names)


def test_a_caption_names_model_preset_grader_n_and_date(results: Path) -> None:
    from persona_bench.analysis.comparison import _comparisons
    from persona_bench.analysis.drawing import drawing_style

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
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(main, ["figures", "--results", str(tmp_path), "--out", str(tmp_path / "out")])
    assert done.exit_code == 2
