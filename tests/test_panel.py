"""How far a panel agrees: by hand on planted votes, and through an eval with two graders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.log import read_eval_log
from inspect_ai.model import Model, ModelOutput, get_model

from evals.judge_validity import judge_validity
from persona_bench.analysis.grouping import Draw
from persona_bench.analysis.samples.collect import collect
from persona_bench.analysis.samples.frames import SAMPLE_COLUMNS
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.panel import panel_rows
from persona_bench.definitions.traits import load_labelled, load_twins
from persona_bench.inspect_ext.graders import COHERENCE_RUBRIC
from tests.conftest import first_token

Vote = tuple[str, float]
REFUSED, FAILED = ("refusal", math.nan), ("unscored", math.nan)


def frame(votes: dict[str, list[Vote]]) -> pd.DataFrame:
    rows = [
        ("judge_validity", "evil", f"s{n}", f"q{n // 2}", member, status, score, "log")
        for member, given in votes.items()
        for n, (status, score) in enumerate(given)
    ]
    return pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS["panel"]))


def scores(*values: float) -> list[Vote]:
    return [("scored", value) for value in values]


def test_agreement_by_hand() -> None:
    first = [*scores(0, 25, 50, 75, 100, 90, 10), REFUSED, REFUSED, FAILED]
    second = [*scores(10, 35, 60, 85, 100, 100), REFUSED, REFUSED, *scores(5, 5)]
    (row,) = panel_rows(frame({"a": first, "b": second}), Draw(0, 300))
    assert (row["first"], row["second"], row["n"], row["n_unscored"], row["n_scored"]) == ("a", "b", 9, 1, 6)
    assert row["same_outcome"] == pytest.approx(7 / 9) and row["same_outcome_low"] < 7 / 9 < row["same_outcome_high"]
    assert row["difference"] == pytest.approx(-50 / 6)
    assert row["spearman"] == pytest.approx(0.9856, abs=1e-4) and row["kappa"] == 1  # at five levels they agree


def test_every_pair_of_three_and_nothing_of_one() -> None:
    votes = scores(*range(0, 100, 10))
    found = list(panel_rows(frame({"c": votes, "a": votes, "b": votes[::-1]}), Draw(0, 300)))
    assert [(row["first"], row["second"]) for row in found] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [round(row["spearman"]) for row in found] == [-1, 1, -1]
    assert not list(panel_rows(frame({"a": votes}), Draw(0, 300)))


def test_agreement_is_a_table_of_a_run(tmp_path: Path) -> None:
    levels = {item.answer: item.level for item in (*load_labelled("humorous"), *load_twins("humorous"))}

    def member(name: str, shift: float) -> Model:
        def output(messages: Any, *_: Any) -> ModelOutput:
            text = messages[-1].text
            if COHERENCE_RUBRIC in text:
                return first_token(_90=1.0)()
            level = levels[text.split("<answer>\n", 1)[1].rsplit("\n</answer>", 1)[0]]
            return first_token(**{f"_{round(shift + (1 - shift / 50) * level)}": 1.0})()

        return get_model(f"mockllm/{name}", custom_outputs=output, memoize=False)

    log = inspect_eval(
        judge_validity(trait="humorous"),
        model="mockllm/model",
        model_roles={"grader": [member("sure", 0), member("timid", 20)]},
        log_dir=str(tmp_path),
        display="none",
    )[0]
    samples = collect({"judge_validity/humorous": read_eval_log(log.location)}, [], "stated")
    (row,) = build_tables(samples, resamples=300)["judge_panel"].to_dict("records")
    asked = [item.level for item in load_labelled("humorous") if item.half == "report"]
    assert (row["first"], row["second"], row["eval"]) == ("mockllm/sure", "mockllm/timid", "judge_validity")
    assert row["n"] == row["n_scored"] == len(asked) and row["same_outcome"] == 1
    assert row["spearman"] == pytest.approx(1)
    assert row["difference"] == pytest.approx(sum(0.4 * level - 20 for level in asked) / len(asked))
