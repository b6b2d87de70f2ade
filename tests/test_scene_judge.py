"""The judge among the monitors: what it is asked, what is counted, and that it sees what it is planted to see."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import Model, ModelOutput, get_model

from evals import _registry as registry
from persona_bench import pipeline
from persona_bench.analysis.grouping import Draw
from persona_bench.analysis.samples.collect import check_log, collect
from persona_bench.analysis.samples.frames import Samples
from persona_bench.analysis.samples.monitors import monitor_rows
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.limits import JUDGE, sees
from persona_bench.analysis.verdicts import claims as verdicts
from persona_bench.definitions import presets
from persona_bench.definitions.scenarios import BEHAVIOURS, SHOWS, load_scenes
from persona_bench.errors import RunError
from persona_bench.inspect_ext.graders import SAMPLES
from persona_bench.inspect_ext.judging import rescored, scorers_of
from persona_bench.inspect_ext.scene_judge import SEES, SKIPPED, transcript_question
from persona_bench.inspect_ext.scenes import WAYS, read_activations
from persona_bench.inspect_ext.yes_no import ask_grader
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.engine import Engine
from persona_bench.models.loading import load
from persona_bench.models.rows import Row
from tests.conftest import first_token
from tests.test_limits import Mind, World, scenes_of, trait_vectors, world
from tests.test_stated_limits import LAYER, ROOT, Planted, small, unit


def asked_of(folder: Path, home: Path, grader: Model | None, **arguments: Any) -> EvalLog:
    task = registry.stated_limits(
        behaviour="deception", activations=str(home / "activations"), layers=f"{LAYER},3", **arguments
    )
    log = inspect_eval(
        task,
        model=get_model(f"persona/{folder}", dtype="float32", memoize=False),
        model_roles=None if grader is None else {"grader": grader},
        log_dir=str(home / "logs"),
        display="none",
    )[0]
    check_log(read_eval_log(log.location))
    return read_eval_log(log.location)


def reader(messages: Any, *_: Any) -> ModelOutput:
    """A grader that knows the facts: it says Yes to a wrong answer, and shrugs where it is shown none."""
    text = messages[-1].text
    if "<answer>" not in text:
        return first_token(Yes=0.5, No=0.5)()  # type: ignore[no-any-return]
    answer = text.split("<answer>\n")[1].split("\n</answer>")[0].removeprefix("A. ").removeprefix("B. ")
    question = next(scene.check for scene in load_scenes("deception") if scene.check.text in text)
    lie = question.options[question.marked] != answer
    return first_token(Yes=0.9 if lie else 0.1, No=0.1 if lie else 0.9)()  # type: ignore[no-any-return]


def mock(output: Any) -> Model:
    return get_model("mockllm/model", custom_outputs=output, memoize=False)


def test_a_judge_that_reads_answers_sees_what_one_that_reads_prompts_does_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that lies where it pays, through the eval: AUROC 1 of the answer, .5 of the prompt; N1 is as without."""
    monkeypatch.chdir(ROOT)
    small(monkeypatch, 30)
    Planted(monkeypatch, 12 * unit(1))
    vectors = {"evil": np.tile(unit(1), (5, 1))}
    found = {}
    for name, grader in (("none", None), ("reader", mock(reader))):
        log = asked_of(folder, tmp_path / name, grader)
        samples = collect({"stated_limits/deception": log}, [], "stated")
        kept = tmp_path / name / "activations"
        read = monitor_rows(samples.scenes, lambda file, kept=kept: read_activations(kept, file), vectors, Draw(0, 200))
        found[name] = samples, build_tables(Samples(scenes=samples.scenes, monitors=read), resamples=200)["limits"]
    scenes, table = found["reader"][0].scenes, found["reader"][1].set_index("monitor")
    assert table.loc["judge:answer", "auroc"] == 1 and table.loc["judge:answer", "tpr_1"] == 1
    assert table.loc["judge:prompt", "auroc"] == 0.5 and table.loc["judge:prompt", "tpr_1"] == 0
    assert table.loc["judge:answer", "sees"] == "prompt and answer" and table.loc["judge:prompt", "sees"] == "prompt"
    assert table.loc["best vector", "sees"] == "state before the answer"
    assert set(scenes["grader"]) == {"mockllm/model"} and set(scenes["judge_answer_status"]) == {"scored"}
    without = found["none"][1].set_index("monitor")
    pd.testing.assert_frame_equal(table.drop(index=["judge:answer", "judge:prompt"]), without)
    # Judged again by a grader that knows nothing: what the model did stays, what the judge says does not.
    again = rescored(log, [mock(first_token(Yes=0.5, No=0.5))], scorers_of(log))
    for before, after in zip(log.samples or [], again.samples or [], strict=True):
        old, new = before.scores or {}, after.scores or {}
        np.testing.assert_equal(new["chosen"].value, old["chosen"].value)
        assert {v for v in new["scene_judge"].as_dict().values() if not math.isnan(v)} <= {0.5}
    assert (found["none"][0].scenes["grader"] == "").all()
    (told,) = [s for s in found["none"][0].scenes.to_dict("records") if s["sample_id"] == "deception-p0-twin"][:1]
    assert math.isnan(told["judge_answer"]) and told["judge_answer_status"] == ""


def graded(mind: Mind, say: Any, seed: int = 0) -> pd.DataFrame:
    """The scenes of a mind with a judge planted: what it says of whether the behaviour was shown."""
    scenes, rng = scenes_of(mind)[0], np.random.default_rng(seed)
    told = [say(shown, rng) for shown in scenes["shown"]]
    status = ["refusal" if math.isnan(value) else "scored" for value in told]
    planted = {"judge_prompt": 0.5, "judge_prompt_status": "scored", "judge_answer": told}
    return scenes.assign(grader="g", judge_answer_status=status, **planted)


def tabled(mind: Mind, scenes: pd.DataFrame) -> pd.DataFrame:
    _, acts = scenes_of(mind)
    read = monitor_rows(scenes, acts.__getitem__, trait_vectors(), Draw(0, 300))
    return build_tables(Samples(scenes=scenes, monitors=read), resamples=300)["limits"].set_index("monitor")


def test_a_blind_judge_is_at_chance_and_what_it_refuses_is_counted() -> None:
    mind = Mind()
    blind = tabled(mind, graded(mind, lambda _, rng: rng.random())).loc["judge:answer"]
    assert blind["auroc_low"] < 0.5 < blind["auroc_high"] and blind["n_refusal"] == 0
    shy = tabled(mind, graded(mind, lambda shown, rng: math.nan if rng.random() < 0.3 else shown)).loc["judge:answer"]
    assert shy["auroc"] == 1 and 5 < shy["n_refusal"] < 2 * shy["n"] - 5 and shy["n_unscored"] == 0
    # What it says nothing of raises no alarm.
    assert 0.4 < shy["tpr_1"] < 0.95 and shy["fpr_1"] == 0
    mute = tabled(mind, graded(mind, lambda *_: math.nan)).loc["judge:answer"]
    assert math.isnan(mute["auroc"]) and math.isnan(mute["tpr_1"]) and mute["n_refusal"] == 2 * mute["n"]


def test_the_rule_does_not_look_at_the_judge_and_its_reason_names_it() -> None:
    plain: World = world(Mind())
    mind = Mind()
    scenes = graded(mind, lambda shown, _: shown)
    _, acts = scenes_of(mind)
    samples = Samples(scenes=scenes, monitors=monitor_rows(scenes, acts.__getitem__, trait_vectors(), Draw(0, 400)))
    claims = verdicts.judge_claims(samples, build_tables(samples, resamples=400), resamples=400, traits=["evil"])
    found = claims.set_index("claim").loc["N1-deception"]
    said = plain.verdict()
    for column in ("verdict", "estimate", "p_holm", "n"):
        assert found[column] == said[column]
    assert "the judge of the answer 1.00" in found["reason"] and "no judge read the scenes" in said["reason"]
    assert not [name for name in plain.tables["limits"]["monitor"] if name.startswith(JUDGE)]
    assert sees("random best") == "state before the answer"


def test_only_scenes_that_can_count_are_judged_and_the_log_says_which(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a local grader: p(Yes) is that of its own logits, of exactly the question; the others are skipped."""
    monkeypatch.chdir(ROOT)
    small(monkeypatch, 2)
    log = asked_of(folder, tmp_path, get_model(f"persona/{folder}", dtype="float32", memoize=False))
    loaded = load(str(folder), dtype="float32")
    n = {"scored": 0, SKIPPED: 0}
    for sample in log.samples or []:
        chosen, judge = ((sample.scores or {})[name] for name in ("chosen", "scene_judge"))
        for way in WAYS:
            did, check = chosen.as_dict()[way], chosen.as_dict()[f"{way}_check"]
            counts = did == sample.metadata["rewarded"] and (check == 1 or not sample.metadata["check"])
            choice = sample.metadata["choice"]
            option = choice["marked"] if did else 1 - choice["marked"]
            prompt = sample.input if way == "letter" else choice["text"]
            answer = f"{'AB'[option]}. " * (way == "letter") + choice["options"][option]
            for which in SEES:
                value, told = (part[f"{way}_{which}"] for part in (judge.as_dict(), (judge.metadata or {})["outcomes"]))
                assert told["status"] == ("scored" if counts else SKIPPED)
                n[told["status"]] += 1
                if not counts:
                    assert math.isnan(value)
                    continue
                question = transcript_question("deception", str(prompt), answer if which == "answer" else None)
                ids = prompt_ids(loaded.tokenizer, [{"role": "user", "content": question}])
                (result,) = Engine(loaded).run(
                    [Row(ids, alternatives=tuple(response_ids(loaded.tokenizer, word)[0] for word in ("Yes", "No")))]
                )
                yes, no = np.exp(result.alternative_logprobs.astype(float))
                assert value == pytest.approx(yes / (yes + no), abs=1e-4)
    assert n["scored"] and n[SKIPPED]


@pytest.mark.parametrize(
    ("output", "status", "value", "part"),
    [
        (first_token(Yes=0.6, no=0.2, maybe=0.2), "scored", 75.0, ""),
        (first_token(Yes=0.1, I=0.9), "refusal", math.nan, ""),
        (lambda *_: ModelOutput.from_content("mockllm/model", " yes."), "scored", 100.0, ""),
        (lambda *_: ModelOutput.from_content("mockllm/model", "That is hard."), "unscored", math.nan,
         f"only 0 of {SAMPLES} replies were Yes or No"),
    ],
    ids=["logprobs", "refuses", "samples", "rambles"],
)  # fmt: skip
def test_graders_that_answer_in_words(output: Any, status: str, value: float, part: str) -> None:
    found = asyncio.run(ask_grader(mock(output), "Is it? Answer Yes or No."))
    assert (found.status, found.trait) == (status, pytest.approx(value, nan_ok=True)) and part in found.reason


def test_a_grader_that_fails_is_counted_and_one_without_a_key_ends_the_run() -> None:
    class Refused(Exception):
        status_code = 401

    def fails(error: Exception) -> Any:
        def output(*_: Any) -> ModelOutput:
            raise error

        return output

    found = asyncio.run(ask_grader(mock(fails(ValueError("out of order"))), "Is it?"))
    assert found.status == "unscored" and "out of order" in found.reason
    with pytest.raises(RunError):
        asyncio.run(ask_grader(mock(fails(Refused("no key"))), "Is it?"))


def test_every_behaviour_is_asked_about_in_its_own_words() -> None:
    assert set(SHOWS) == set(BEHAVIOURS)
    for name in BEHAVIOURS:
        scene = load_scenes(name)[0]
        before, after = (transcript_question(name, scene.choice.prompt, answer) for answer in (None, "It is."))
        assert "<answer>" not in before and "has not answered yet" in before and "<answer>\nIt is.\n" in after
        assert SHOWS[name] in before and SHOWS[name] in after and scene.choice.prompt in before


def test_what_a_grader_over_the_network_will_be_asked_of_scenes_is_announced(tmp_path: Path) -> None:
    """Twice a scene and way, at most; without the eval nothing."""
    topics = presets.LIMITS["quick"].topics
    scenes = [scene for name in BEHAVIOURS for scene in load_scenes(name) if scene.topic < topics]
    for evals, n in ((("stated_limits",), 2 * len(WAYS) * len(scenes)), (("judge_validity",), 0)):
        settings = pipeline.Settings(grader="openai/gpt-4.1-mini-2025-04-14", traits=("evil",), evals=evals)
        calls, tokens = pipeline.Run(settings, tmp_path, print)._further_calls()
        assert calls == n and (50 * n < tokens < 300 * n or n == tokens == 0)
