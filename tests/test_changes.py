"""Two runs side by side: rows pair by what they are about, and what is said of them is so."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from persona_bench.analysis.changes.runs import ABOUT, Compared, compare_runs, read_compared
from persona_bench.analysis.changes.tables import ALONG_VECTOR, EXPECTED_APART, EXPECTED_WITHIN, table_change
from persona_bench.analysis.runs import read_run
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.files import write_tables
from persona_bench.analysis.tables.layout import TABLE_COLUMNS, frame
from persona_bench.analysis.terminal import read_claims
from persona_bench.analysis.verdicts.claims import judge_claims
from persona_bench.cli import main
from persona_bench.errors import DataError
from persona_bench.files import file_sha256
from tests.builders_samples import World, make_samples
from tests.conftest import one_line, tiny_vector

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of the same command whose responses differ."""
    root = tmp_path_factory.mktemp("runs")
    folders = []
    for seed in range(2):
        folder = root / str(seed) / "m" / "quick"
        samples = make_samples(World(traits=("evil",), seed=seed, questions=5, mmlu_questions=60, scripts=2))
        tables = build_tables(samples, resamples=50)
        write_tables(tables, folder / "tables")
        write_tables({"claims": judge_claims(samples, tables, resamples=50)}, folder)
        tiny_vector(n_layers=30).save(folder / "vectors" / "evil.safetensors")
        run = {"model": "m", "preset": "quick", "grader": "g", "date": f"2026-01-0{seed + 1}", "seed": 0}
        run |= {"traits": ["evil"], "deviations": ["fewer tokens", *["on two machines"] * (seed == 0)]}
        (folder / "run.json").write_text(json.dumps(run))
        folders.append(folder)
    return folders


def compared(first: Path, second: Path, note: str = "") -> Compared:
    return compare_runs(read_run(first / "run.json"), read_run(second / "run.json"), note)


def steering(**columns: Any) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    fixed = {"trait": "evil", "half": "report", "vector": "persona", "setting": "response", "layers": "one"}
    rows = pd.DataFrame({"layer": range(n), "coefficient": 1.0, **fixed, **columns})
    return rows.reindex(columns=list(TABLE_COLUMNS["steering"]))


def changed(first: pd.DataFrame, second: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
    """The row of the table steering, and its estimates by name."""
    empty = {name: frame(name, []) for name in TABLE_COLUMNS}
    rows, estimates = table_change({**empty, "steering": first}, {**empty, "steering": second})
    assert list(rows["table"]) == ["steering"]
    return rows.iloc[0], estimates.set_index("estimate")


def test_a_run_is_like_itself(runs: list[Path]) -> None:
    both = compared(runs[0], runs[0])
    assert not both.differing and both.repetition and not both.verdicts["changed"].any()
    assert len(both.rows) > 5 and (both.rows["same"] == both.rows["rows_first"]).all()
    # Of few samples the middle of the resampled is not always the estimate, and may leave it out.
    assert len(both.estimates) > 10 and both.estimates["within"].sum() > 0.95 * both.estimates["intervals"].sum()
    assert not both.estimates["apart"].any()
    np.testing.assert_allclose(both.vectors[["cosine_first", "cosine_second"]], 1, rtol=1e-5)
    assert any("stand and 0 turn" in text for text in both.sentences())


def test_tables_that_hold_the_other_run_seldom_are_named(runs: list[Path]) -> None:
    both = compared(runs[0], runs[0])
    assert not any("fewer than 75% lie within" in text for text in both.sentences())
    # Half of twenty within is few, nineteen of twenty is not, and of three nothing can be said.
    rows = [("steering", 20, 10), ("mmlu", 20, 19), ("judge", 3, 0)]
    made = [
        {"table": t, "estimate": "x", "along_vector": False, "intervals": n, "within": k, "apart": 0}
        for t, n, k in rows
    ]
    few = replace(both, estimates=pd.DataFrame(made))
    assert "Tables where fewer than 75% lie within: steering (50% of 20)." in few.sentences()


def test_other_responses_give_other_numbers(runs: list[Path]) -> None:
    both = compared(runs[0], runs[1], "Said beside it.")
    assert both.differing == [("date", "2026-01-01", "2026-01-02"), ("deviations", "on two machines", "")]
    assert both.repetition and both.sentences()[-1] == "Said beside it."
    mine = both.rows.set_index("table").loc["steering"]
    assert mine["paired"] == mine["rows_first"] == mine["rows_second"] and mine["same"] < mine["paired"]
    assert 0 < both.estimates["within"].sum() < both.estimates["intervals"].sum()


def test_independent_repetitions_agree_as_often_as_is_said() -> None:
    rng, n = np.random.default_rng(0), 20_000
    tables = []
    for _ in range(2):
        value = rng.normal(size=n)
        tables.append(steering(trait_score=value, trait_score_low=value - 1.96, trait_score_high=value + 1.96))
    rows, estimates = changed(*tables)
    assert rows["paired"] == n and rows["same"] == 0
    found = estimates.loc["trait_score"]
    assert found["intervals"] == n and not found["along_vector"]
    assert found["within"] / n == pytest.approx(EXPECTED_WITHIN, abs=0.01) and pytest.approx(0.834, abs=1e-3) == (
        EXPECTED_WITHIN
    )
    assert found["apart"] / n == pytest.approx(EXPECTED_APART, abs=0.003) and EXPECTED_APART < 0.006


def test_rows_pair_by_layer_and_in_order_of_the_strength_that_a_run_measures() -> None:
    first = steering(layer=[3, 3, 5, 7], coefficient=[0.5, 0.25, 1, 1], relative_dose=[0.2, 0.1, 0.1, 0.1],
                     trait_score=[20.0, 10.0, 5.0, 1.0])  # fmt: skip
    second = steering(layer=[3, 3, 5, 5], coefficient=[0.3, 0.6, 1, 2], relative_dose=[0.1, 0.2, 0.1, 0.2],
                      trait_score=[10.0, 20.0, 5.0, 6.0])  # fmt: skip
    rows, _ = changed(first, second)
    # The two of layer 3; layer 5 has one and two doses, layer 7 stands in the first alone.
    assert dict(rows) == {"table": "steering", "rows_first": 4, "rows_second": 4, "paired": 2, "same": 0}
    assert changed(first, second.assign(coefficient=[0.25, 0.5, 1, 2]))[0]["same"] == 2
    logs = [first.assign(log=name, reason=name) for name in "ab"]
    assert changed(*logs)[0]["same"] == 4


def test_only_intervals_of_both_with_a_width_count() -> None:
    ends = {"trait_score_low": [0.0, 5.0, np.nan, 0.0, 0.0], "trait_score_high": [10.0, 5.0, np.nan, 10.0, 10.0]}
    first = steering(trait_score=[5.0, 5.0, 5.0, 5.0, 5.0], **ends)
    second = steering(trait_score=[9.0, 5.0, 5.0, np.nan, 30.0], trait_score_low=[8.0, 5, 0, np.nan, 11],
                      trait_score_high=[12.0, 5, 9, np.nan, 40])  # fmt: skip
    found = changed(first, second)[1].loc["trait_score"]
    assert (found["intervals"], found["within"], found["apart"]) == (2, 1, 1)


def test_what_is_along_a_vector_has_an_interval() -> None:
    for name, columns in ALONG_VECTOR.items():
        for column in columns:
            assert {column, f"{column}_low", f"{column}_high"} <= set(TABLE_COLUMNS[name])


def test_the_command_writes_both_and_its_code_says_whether_a_verdict_changed(runs: list[Path], tmp_path: Path) -> None:
    same = CliRunner().invoke(main, ["compare", str(runs[0]), str(runs[0])])
    assert same.exit_code == 0 and "0 of" in same.stdout and "What differs" not in same.stdout
    out, other = tmp_path / "both", tmp_path / "m" / "quick"
    shutil.copytree(runs[1], other)
    claims = read_claims(other / "claims.csv")
    first = claims["verdict"].isin(["supported"]).idxmax()
    claims.loc[first, "verdict"] = "contradicted"
    write_tables({"claims": claims}, other)
    done = CliRunner().invoke(main, ["compare", str(runs[0]), str(other), "--out", str(out), "--note", "n, b"])
    expected = compared(runs[0], other, "n, b")
    assert list(expected.verdicts.loc[expected.verdicts["changed"], "claim"]) == [claims.loc[first, "claim"]]
    assert done.exit_code == 1 and "1 turn into the opposite" in expected.sentences()[0]
    assert all(text in done.stdout for text in (*expected.sentences(), "What differs", "Verdicts that changed"))
    held = read_compared(out)
    assert held.sentences() == expected.sentences() and held.differing == expected.differing
    assert held.about["second"]["claims_sha256"] == file_sha256(other / "claims.csv")


def test_runs_that_ask_for_something_else_are_said_to(runs: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "m" / "quick"
    shutil.copytree(runs[1], other)
    held = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**held, "grader": "another"}))
    (other / "vectors" / "evil.safetensors").unlink()
    tiny_vector(n_layers=2, d_model=16).save(other / "vectors" / "evil.safetensors")
    both = compared(runs[0], other)
    assert not both.repetition and both.sentences()[-1].startswith("The second is no repetition")
    assert both.vectors["cosine_first"].isna().all() and not any("cosines" in text for text in both.sentences())


def test_what_cannot_be_compared_is_one_line(runs: list[Path], tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["compare", str(runs[0]), str(tmp_path)])
    assert done.exit_code == 2 and "no run.json" in done.stderr and done.stderr.count("\n") == 1
    broken = tmp_path / "m" / "quick"
    shutil.copytree(runs[0], broken)
    (broken / "vectors" / "evil.safetensors").write_bytes(b"not tensors")
    out = tmp_path / "out"
    done = CliRunner().invoke(main, ["compare", str(runs[0]), str(broken), "--out", str(out)])
    assert done.exit_code == 2 and "evil.safetensors" in done.stderr and not out.exists()
    out.mkdir()
    for text in ("{", "[]", '{"first": {}, "second": {}}'):
        (out / ABOUT).write_text(text)
        with pytest.raises(DataError) as error:
            read_compared(out)
        one_line(error, str(out), "persona-bench compare")


def test_published_comparisons_are_of_what_is_published() -> None:
    found = sorted(ROOT.glob(f"results/*/*/compared/*/{ABOUT}"))
    assert found
    for path in found:
        assert read_compared(path.parent).about["second"]["claims_sha256"] == file_sha256(
            path.parents[2] / "claims.csv"
        )
