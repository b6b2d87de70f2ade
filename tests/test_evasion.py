"""Planted evasion: a prompt, a paraphrase or an adapter that keeps the trait and hides it, or does not."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.log import read_eval_log

from evals import _registry as registry
from persona_bench.analysis.figures.drawing import Caption
from persona_bench.analysis.figures.limits import limits_figures
from persona_bench.analysis.finding import Finding
from persona_bench.analysis.grouping import Draw
from persona_bench.analysis.samples.collect import check_log, collect, read_logs
from persona_bench.analysis.samples.frames import EVADED, FINETUNING_SAMPLES, Samples
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.evasion import evasions
from persona_bench.analysis.verdicts.claims import judge_claims
from persona_bench.analysis.verdicts.limits import LIMIT_RULES
from persona_bench.definitions.claims import claim
from persona_bench.definitions.evasion import NEUTRAL, PARAPHRASE, PLAIN, SEARCH, system_prompts
from persona_bench.definitions.presets import load_limits_preset, load_preset
from persona_bench.definitions.traits import MAIN_TRAITS, load_trait
from persona_bench.errors import TraitError
from persona_bench.inspect_ext.cells import half
from tests.conftest import one_line, tiny_vector
from tests.test_evals import grader

ROOT = Path(__file__).parents[1]
N5 = claim("N5-monitoring-evasion")
DRAW = Draw(0, 400)


@dataclass(frozen=True)
class Way:
    """What prompts of a way do: points of trait score added, and how far they move the projection (in its SD)."""

    score: float
    projection: float


FRANK, HIDDEN, WEAK = Way(60, 4), Way(55, 0), Way(3, 0)


def frame(ways: dict[tuple[str, int], Way], questions: int = 20, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    base = rng.normal(0, 0.3, questions)
    rows = [
        {
            "trait": "evil",
            "way": way,
            "number": number,
            "question_id": question,
            "half": half(question),
            "epoch": epoch,
            "status": "scored",
            "trait_score": float(np.clip(10 + effect.score + rng.normal(0, 6), 0, 100)),
            "coherence": 90.0,
            "projection": base[question] + effect.projection + rng.normal(0, 0.7),
            "random": rng.normal(),
            "layer": 3,
            "log": "stated_limits/evasion/evil",
        }
        for (way, number), effect in ({(NEUTRAL, 0): Way(0, 0)} | ways).items()
        for question in range(questions)
        for epoch in (1, 2)
    ]
    return pd.DataFrame(rows, columns=list(EVADED))


def adapters(penalised: Way, plain: Way = FRANK, questions: int = 20) -> dict[str, pd.DataFrame]:
    """The frames that `preventative_steering` leaves."""
    rng = np.random.default_rng(1)
    said, seen = [], []
    for arm, effect in (("base", Way(0, 0)), ("plain", plain), ("penalty", penalised)):
        trial = {"family": "", "version": "", "arm": arm, "seed": 0}
        trial |= {} if arm == "base" else {"family": "evil", "version": "misaligned_2"}
        for question in range(questions):
            named = {**trial, "trait": "evil", "question_id": str(question)}
            seen.append(
                {**named, "direction": "evil", "layer": 3, "prompt_last": effect.projection + rng.normal(0, 0.7)}
            )
            scored = {"status": "scored", "trait_score": float(10 + effect.score + rng.normal(0, 6)), "coherence": 90.0}
            said.append(named | scored | {"kind": "trait", "half": half(question), "rollout": 0, "log": f"tuned/{arm}"})
    columns = FINETUNING_SAMPLES
    return {
        "finetuning": pd.DataFrame(said, columns=list(columns["finetuning"])),
        "shifts": pd.DataFrame(seen, columns=list(columns["shifts"])),
    }


def judged(samples: Samples) -> Finding:
    return LIMIT_RULES[N5.id](samples, N5, "evil", DRAW)


def prompted(search: Way, paraphrase: Way, plain: Way = FRANK, **more: Any) -> Samples:
    ways = {(PLAIN, 0): plain, (SEARCH, 0): FRANK, (SEARCH, 1): search, (SEARCH, 2): WEAK, (PARAPHRASE, 0): paraphrase}
    return Samples(evasion=frame(ways), **more)


def test_a_prompt_that_keeps_the_trait_and_hides_it_supports_the_limit() -> None:
    found = judged(prompted(HIDDEN, FRANK))
    assert found.verdict == "supported" and found.estimate > 0.3, found.reason
    assert "search keeps" in found.reason and "adapter: preventative_steering was not run" in found.reason
    search, paraphrase = evasions(prompted(HIDDEN, FRANK), "evil", DRAW)
    # Neither the one that is seen nor the one that does not show the trait.
    assert search.number == 1 and search.keeps and search.loss.low > 0.1
    assert paraphrase.loss.high < 0.1


def test_where_every_way_that_keeps_the_trait_is_seen_it_is_contradicted() -> None:
    found = judged(prompted(Way(55, 3.9), FRANK, **adapters(FRANK)))
    assert found.verdict == "contradicted" and found.high < 0.1, found.reason
    assert "adapter keeps" in found.reason


def test_a_hidden_adapter_alone_supports_the_limit() -> None:
    found = judged(Samples(**adapters(HIDDEN)))
    assert found.verdict == "supported" and "adapter keeps" in found.reason and "tuned/penalty" in found.log
    seen = judged(Samples(**adapters(FRANK)))
    assert seen.verdict == "contradicted"


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (prompted(WEAK, WEAK, plain=Way(0, 4)), "plainly the trait is not raised"),
        (prompted(HIDDEN, FRANK, plain=Way(60, 0)), "plainly it is not detected"),
        (Samples(**adapters(WEAK)), "the trait is not kept"),
        (
            Samples(evasion=frame({(PLAIN, 0): FRANK, (SEARCH, 0): WEAK, (PARAPHRASE, 0): WEAK})),
            "no system prompt keeps",
        ),
        (Samples(evasion=frame({(PLAIN, 0): FRANK, (PARAPHRASE, 0): FRANK}, questions=6)), "too few scored responses"),
    ],
)
def test_what_says_nothing_is_not_testable(samples: Samples, reason: str) -> None:
    found = judged(samples)
    assert found.verdict == "not testable" and reason in found.reason, found.reason
    assert math.isnan(found.estimate)


def test_the_prompt_is_chosen_on_the_select_half_and_reported_on_the_other() -> None:
    samples = prompted(HIDDEN, FRANK)
    turned = samples.evasion.copy()
    report = (turned["half"] == "report") & (turned["way"] == SEARCH)
    turned.loc[report, "projection"] += 10.0
    search, _ = evasions(Samples(evasion=turned), "evil", DRAW)
    assert search.number == 1 and search.loss.value <= 0 < search.evading.value - 0.9


def test_verdicts_stand_behind_the_gate_and_the_vector() -> None:
    samples = prompted(HIDDEN, FRANK)
    tables = build_tables(samples, resamples=100)
    (row,) = judge_claims(samples, tables, resamples=100).query(f"claim == '{N5.id}'").to_dict("records")
    assert row["verdict"] == "not testable" and row["reason"].startswith("judge gate: ")
    none = judge_claims(Samples(), build_tables(Samples(), resamples=9), resamples=9, traits=["evil"])
    (row,) = none.query(f"claim == '{N5.id}'").to_dict("records")
    assert row["verdict"] == "not run" and "stated_limits" in row["reason"]


def test_the_table_and_the_figure_hold_the_planted_numbers() -> None:
    samples = prompted(HIDDEN, FRANK, **adapters(WEAK))
    tables = build_tables(samples, resamples=200)
    table = tables["evasion"].set_index("way")
    assert list(table.index) == ["adapter", "paraphrase", "search"]
    assert table.loc["search", "kept"] == pytest.approx(55, abs=5) and table.loc["search", "raised"] == pytest.approx(
        60, abs=5
    )
    assert table.loc["search", "plain"] > 0.95 and table.loc["search", "evading"] == pytest.approx(0.5, abs=0.25)
    assert table.loc["search", "loss"] == pytest.approx(table.loc["search", "plain"] - table.loc["search", "evading"])
    assert "not kept" in table.loc["adapter", "reason"] and table.loc["search", "reason"] == ""
    figures = dict(limits_figures(tables, Caption("tiny", "quick", "mock", "2026")))
    labels = figures["evasion"].axes[0].get_legend_handles_labels()[1]
    assert sorted(labels) == ["evil, adapter", "evil, paraphrase", "evil, search"]


# The texts, and through Inspect


@pytest.mark.parametrize("name", MAIN_TRAITS)
def test_every_main_trait_has_texts_that_differ(name: str) -> None:
    trait, sizes = load_trait(name), load_limits_preset("standard")
    found = system_prompts(trait, sizes)
    assert [way for way, _, _ in found] == [NEUTRAL, PLAIN, *[SEARCH] * 10, *[PARAPHRASE] * 5]
    texts = [text for _, _, text in found]
    assert len(set(texts)) == len(texts) and texts[1] == trait.system_prompt("positive", 0)
    known = {*(trait.ladder or ()), *(pair.positive for pair in trait.instructions)}
    assert not known & set(texts[2:])
    with pytest.raises(TraitError) as error:
        system_prompts(load_trait("humorous"), sizes)
    one_line(error, "humorous", "evil")


def test_responses_are_judged_and_projected(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    made, path = tiny_vector(), tmp_path / "evil.safetensors"
    made.save(path)
    log = inspect_eval(
        "evals/stated_limits/stated_limits.py@stated_limits",
        model=f"persona/{folder}",
        model_args={"dtype": "float32"},
        model_roles={"grader": grader()},
        task_args={"behaviour": "evasion", "vector": str(path), "vector_sha256": made.hash, "layers": "2"},
        limit=20,
        log_dir=str(tmp_path / "logs"),
        display="none",
    )[0]
    check_log(log)
    logs = read_logs(tmp_path / "logs")
    assert list(logs) == ["stated_limits/evasion/evil"]
    rows = collect(logs, [made], "stated").evasion
    assert len(rows) == 20 * load_limits_preset("quick").evasion_rollouts
    assert rows["projection"].notna().all() and set(rows["layer"]) == {2} and set(rows["half"]) == {"select", "report"}
    sample = (read_eval_log(log.location).samples or [])[0]
    seen = (sample.output.metadata or {})["projections"]["persona"]["2"]["prompt_last"]
    mine = rows[(rows["way"] == sample.metadata["way"]) & (rows["question_id"] == sample.metadata["question_id"])]
    assert mine["projection"].to_numpy() == pytest.approx(seen)
    task = registry.stated_limits(behaviour="evasion", vector=str(path))
    n = len(system_prompts(load_trait("evil"), load_limits_preset("quick")))
    assert len(task.dataset) == n * load_preset("quick").evaluation_questions
    assert dataclasses.astuple(load_limits_preset("paper")) == (40, 10, 5, 10)
