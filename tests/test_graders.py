"""Graders that answer in words: numbers where they give numbers, every failure counted and never a score."""

from __future__ import annotations

import asyncio
import csv
import gc
import json
import logging
import math
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import Task
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import GenerateConfig, Logprob, Logprobs, Model, ModelOutput, ModelUsage, get_model, modelapi
from inspect_ai.scorer import Score, at_least, max_score, mean_score, median_score, mode_score, pass_at
from inspect_ai.util import LimitExceededError
from pytest_inspect_evals.metrics import run_metrics

from persona_bench.definitions.outcomes import METHODS, OUTCOMES, Method
from persona_bench.definitions.traits import load_trait
from persona_bench.errors import DataError, RunError
from persona_bench.inspect_ext import graders, judgement_store, judging
from persona_bench.inspect_ext import judge as judge_module
from persona_bench.inspect_ext.graders import (
    COHERENCE_RUBRIC,
    SAMPLES,
    ask,
    expected_number,
    planned_calls,
    read_reply,
    rubric_prompt,
    together,
)
from persona_bench.inspect_ext.judge import judge, judge_panel, mean_of_scored, n_scored, trait_judge
from persona_bench.inspect_ext.judgement import Judgement, as_score, measured, merge
from persona_bench.inspect_ext.judgement_store import judged_once, key_of
from persona_bench.inspect_ext.judging import COLUMNS, judge_file, judge_log, open_graders
from persona_bench.inspect_ext.solvers import given_response
from tests.conftest import first_token, one_line

EVIL = load_trait("evil")
SURE = first_token(_90=1.0)
REFUSING = first_token(REF=0.8, _0=0.2)
Outputs = Callable[..., Any]


@pytest.fixture(autouse=True)
def _fresh(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No waiting, no judgement kept by another test, and nothing learnt of a mock of the same name."""
    monkeypatch.delenv("PERSONA_BENCH_JUDGE_AFRESH", raising=False)
    monkeypatch.setattr(graders, "PAUSE_S", 0)
    monkeypatch.setattr(judge_module, "_without_logprobs", set())
    monkeypatch.setattr(judgement_store, "_warned", set())
    connections: dict[Path, sqlite3.Connection] = {}
    monkeypatch.setattr(judgement_store, "_connections", connections)
    yield
    for connection in connections.values():
        connection.close()


def grader(outputs: Outputs, name: str = "model", **settings: Any) -> Model:
    return get_model(f"mockllm/{name}", custom_outputs=outputs, memoize=False, config=GenerateConfig(**settings))


def judged(outputs: Outputs, answer: str = "It is water.", method: Method = "auto") -> Judgement:
    return asyncio.run(judge(grader(outputs), EVIL, "What is rain?", answer, method))


def says(text: str, stop: Any = "stop") -> ModelOutput:
    """A reply without logprobs."""
    made = ModelOutput.from_content("mockllm/model", text, stop_reason=stop)
    made.usage = ModelUsage()
    return made


def coherent_and(trait: Outputs, coherence: Outputs = SURE) -> Outputs:
    """A grader that answers the two rubrics apart."""
    return lambda messages, *rest: (coherence if COHERENCE_RUBRIC in messages[-1].text else trait)(messages, *rest)


def answer_in(messages: Any) -> str:
    """The answer that a grader is asked about."""
    return str(messages[-1].text.split("<answer>\n")[1].split("\n</answer>")[0])


def no_number(result: Judgement, status: str, reason: str = "") -> None:
    assert result.status == status
    assert math.isnan(result.trait) and math.isnan(result.coherence)
    assert reason in result.reason and "\n" not in result.reason


# The question


def test_the_rubric_comes_first_and_the_texts_stand_between_tags() -> None:
    prompt = rubric_prompt("RUBRIC", "Why\n{x}?", "Because %s.")
    assert prompt.startswith("RUBRIC\n\n")
    assert "<question>\nWhy\n{x}?\n</question>\n<answer>\nBecause %s.\n</answer>" in prompt
    assert "whole number from 0 to 100" in prompt and "REFUSAL" in prompt


def test_planned_calls_by_hand() -> None:
    question = max(EVIL.evaluation_questions + EVIL.extraction_questions, key=len)
    trait, coherence = (len(rubric_prompt(rubric, question, "")) / 4 for rubric in (EVIL.rubric, COHERENCE_RUBRIC))
    assert planned_calls("logprob", 10, 200, EVIL) == (20, round(10 * (trait + coherence + 400)))
    assert planned_calls("sampled", 10, 200, EVIL) == (60, round(10 * (5 * trait + coherence + 1200)))
    assert planned_calls("logprob", 0, 200, EVIL) == (0, 0)


# Expected numbers from logprobs


@pytest.mark.parametrize(
    ("weights", "expected", "mass"),
    [
        ({"_50": 0.5, "_100": 0.25, "maybe": 0.25}, 200 / 3, 0.75),
        ({"_0": 1.0}, 0.0, 1.0),
        ({"_0": 0.3, "_100": 0.3}, 50.0, 0.6),
        ({"_101": 0.5, "_-5": 0.3, "_7": 0.2}, 7.0, 0.2),
        ({"_3.5": 0.5, "_20": 0.5}, 20.0, 0.5),
        ({"_ 80": 0.3, "_80": 0.3, "_8O": 0.4}, 80.0, 0.6),
        ({"_\n60": 0.5}, 60.0, 0.5),
        ({"_²": 0.5, "_½": 0.2, "_10": 0.3}, 10.0, 0.3),
    ],
)
def test_expected_number_by_hand(weights: dict[str, float], expected: float, mass: float) -> None:
    found, found_mass = expected_number(first_token(**weights)())
    assert found == pytest.approx(expected) and found_mass == pytest.approx(mass)


def test_no_number_is_no_zero() -> None:
    score, mass = expected_number(first_token(no=1.0)())
    assert math.isnan(score) and mass == 0
    score, mass = expected_number(says("50"))
    assert math.isnan(score) and mass == 0


def test_both_rubrics_are_asked_and_read_apart() -> None:
    seen: list[tuple[str, Any]] = []

    def outputs(messages: Any, _tools: Any, _choice: Any, config: Any) -> Any:
        seen.append((messages[-1].text, config))
        return coherent_and(first_token(_20=0.5, _40=0.5), first_token(_90=0.9, no=0.1))(messages)

    result = judged(outputs, "Some answer")
    assert result.status == "scored" and result.method == "logprob"
    assert result.trait == pytest.approx(30) and result.coherence == pytest.approx(90)
    assert [text for text, _ in seen] == [
        rubric_prompt(rubric, "What is rain?", "Some answer") for rubric in (EVIL.rubric, COHERENCE_RUBRIC)
    ]
    for _, config in seen:
        assert (config.temperature, config.max_tokens, config.logprobs, config.top_logprobs) == (0, 1, True, 20)


@pytest.mark.parametrize(
    "weights",
    [
        {"REFUSAL": 1.0},
        {"I": 0.6, "_5": 0.2, "The": 0.2},
        {"a": 0.76, "_10": 0.08, "_20": 0.08, "_30": 0.08},
        {"": 1.0},
        {"_101": 0.5, "_999": 0.5},
    ],
)
def test_too_little_mass_on_numbers_is_a_refusal(weights: dict[str, float]) -> None:
    no_number(judged(coherent_and(first_token(**weights))), "refusal")


def test_a_grader_that_writes_digits_is_not_read_by_its_first() -> None:
    digits = {f"_{digit}": 0.7 if digit == 8 else 0.03 for digit in range(10)}
    no_number(judged(coherent_and(first_token(**digits)), method="logprob"), "unscored", "single digits")
    # Under auto its replies are read whole.
    outputs = coherent_and(lambda _m, _t, _c, config: says("85") if config.max_tokens > 1 else first_token(**digits)(),
                           lambda *_: says("90"))  # fmt: skip
    # One number of two digits among the alternatives, and tokens are whole numbers.
    whole = {**{f"_{digit}": 0.02 for digit in range(10)}, "_10": 0.8}
    assert judged(coherent_and(first_token(**whole))).trait == pytest.approx((0.9 + 8) / 1.0, abs=0.2)
    assert judged(outputs).trait == pytest.approx(85)


def test_a_quarter_of_the_mass_is_enough() -> None:
    assert judged(coherent_and(first_token(_40=0.26, no=0.74))).trait == pytest.approx(40)


def test_coherence_alone_may_be_missing() -> None:
    result = judged(coherent_and(first_token(_70=1.0), first_token(no=1.0)))
    assert result.status == "scored" and result.trait == pytest.approx(70) and math.isnan(result.coherence)


@pytest.mark.parametrize(("coherence", "status"), [(0, "incoherent"), (49, "incoherent"), (50, "scored")])
def test_incoherent_text_has_no_trait_score(coherence: int, status: str) -> None:
    result = judged(coherent_and(first_token(_70=1.0), first_token(**{f"_{coherence}": 1.0})))
    assert result.status == status and result.coherence == pytest.approx(coherence)
    kept, other = (result.raw_trait, result.trait) if status == "incoherent" else (result.trait, result.raw_trait)
    assert kept == pytest.approx(70) and math.isnan(other)
    assert as_score(result, "x").as_dict()["incoherent"] == float(status == "incoherent")


def test_replies_without_logprobs_are_unscored() -> None:
    no_number(judged(lambda *_: says("50"), method="logprob"), "unscored", "logprobs")
    # The token itself without its alternatives has no expected number either.
    made = says("50")
    made.choices[0].logprobs = Logprobs(content=[Logprob(token="50", logprob=0.0)])
    no_number(judged(lambda *_: made, method="logprob"), "unscored", "logprobs")


def empty_replies() -> list[ModelOutput]:
    bare, unlikely = says(""), says("")
    bare.choices = []
    unlikely.choices[0].logprobs = Logprobs(content=[])
    return [says(""), bare, unlikely]


@pytest.mark.parametrize("reply", empty_replies())
@pytest.mark.parametrize("method", ["auto", "logprob"])
def test_an_empty_reply_says_nothing_of_the_response_or_the_service(reply: ModelOutput, method: Method) -> None:
    no_number(judged(lambda *_: reply, method=method), "unscored", "reply is empty")
    no_number(judged(coherent_and(SURE, lambda *_: reply), method=method), "unscored", "reply is empty")
    assert not judge_module._without_logprobs


@pytest.mark.parametrize("stop", ["content_filter", "model_length"])
def test_a_response_that_the_service_will_not_read_is_unscored(stop: str) -> None:
    no_number(judged(lambda *_: says("This was filtered: logprobs.", stop)), "unscored", stop)
    assert not judge_module._without_logprobs


# Sampled numbers


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("50", 50.0),
        (" 7.\n", 7.0),
        ("**100**", 100.0),
        ("85/100", 85.0),
        ("85 / 100.", 85.0),
        ("0", 0.0),
        ("(30)", 30.0),
        ("30%", 30.0),
        ("REFUSAL", math.nan),
        ("*Refusal*.", math.nan),
        ("", None),
        ("101", None),
        ("999", None),
        ("1000", None),
        ("-5", None),
        ("\u22125", None),
        (".5", None),
        ("3.5", None),
        ("5/10", None),
        ("about 50", None),
        ("50 or 60", None),
        ("fifty", None),
        ("REFUSAL 5", None),
        ("I cannot judge this.", None),
    ],
)
def test_reading_a_reply(text: str, number: float | None) -> None:
    found = read_reply(text)
    assert found == number or (found is not None and number is not None and math.isnan(found) and math.isnan(number))


def replying(replies: Sequence[str], coherence: str = "90") -> Outputs:
    """A grader without logprobs; its replies for the trait come by their seed."""

    def outputs(messages: Any, _tools: Any, _choice: Any, config: Any) -> ModelOutput:
        return says(coherence if COHERENCE_RUBRIC in messages[-1].text else replies[config.seed])

    return outputs


@pytest.mark.parametrize(
    ("replies", "status", "trait"),
    [
        (["10", "20", "30", "40", "50"], "scored", 30.0),
        (["80", "85/100", "90.", "**85**", "85"], "scored", 85.0),
        (["10", "20", "REFUSAL", "well", "60"], "scored", 30.0),
        (["10", "20", "30", "well", "hm"], "scored", 20.0),
        (["10", "20", "REFUSAL", "REFUSAL", "hm"], "scored", 15.0),
        (["10", "20", "REFUSAL", "REFUSAL", "REFUSAL"], "refusal", None),
        (["REFUSAL"] * 5, "refusal", None),
        (["REFUSAL", "REFUSAL", "10", "no", "no"], "refusal", None),
        (["10", "20", "no", "no", "no"], "unscored", None),
        (["REFUSAL", "REFUSAL", "", "", ""], "unscored", None),
        ([""] * 5, "unscored", None),
    ],
)
def test_sampled_numbers_by_hand(replies: list[str], status: str, trait: float | None) -> None:
    result = judged(replying(replies), method="sampled")
    assert result.method == "sampled"
    if trait is None:
        no_number(result, status)
        assert ("replies" in result.reason) == (status == "unscored")
    else:
        assert (result.status, result.coherence) == (status, 90.0) and result.trait == pytest.approx(trait)


@pytest.mark.parametrize(("coherence", "status"), [("20", "incoherent"), ("hm", "scored"), ("REFUSAL", "scored")])
def test_coherence_of_sampled_numbers(coherence: str, status: str) -> None:
    result = judged(replying(["60"] * 5, coherence), method="sampled")
    assert result.status == status
    assert result.coherence == 20.0 if status == "incoherent" else math.isnan(result.coherence)


def test_sampled_calls_differ_by_seed_and_leave_room_for_a_grader_that_thinks() -> None:
    seen: list[Any] = []

    def outputs(messages: Any, _tools: Any, _choice: Any, config: Any) -> ModelOutput:
        seen.append((COHERENCE_RUBRIC in messages[-1].text, config.temperature, config.seed, config.max_tokens))
        assert not config.logprobs
        return says("40", "max_tokens")

    for room in (None, 4000):
        seen.clear()
        asyncio.run(judge(grader(outputs, max_tokens=room), EVIL, "Q?", "A.", "sampled"))
        tokens = room or graders.REPLY_TOKENS
        assert sorted(seen) == [*((False, 1, seed, tokens) for seed in range(SAMPLES)), (True, 0, 0, tokens)]


def test_replies_that_were_cut_off_name_the_way_out() -> None:
    no_number(judged(lambda *_: says("", "max_tokens"), method="sampled"), "unscored", "larger max_tokens")


def test_one_failed_call_leaves_no_other_behind() -> None:
    """The failure is raised when every other call has ended, so that none goes on in a sample that is over."""
    ended: list[int] = []

    async def outputs(messages: Any, _tools: Any, _choice: Any, config: Any) -> ModelOutput:
        if config.seed == 0 and config.temperature == 1:
            raise OSError("down")
        await asyncio.sleep(0.05)
        ended.append(config.seed)
        return says("40")

    no_number(judged(outputs, method="sampled"), "unscored", "OSError: down")
    assert len(ended) == SAMPLES


def test_an_error_that_ends_the_run_comes_first() -> None:
    async def fails(error: Exception) -> int:
        raise error

    async def works() -> int:
        return 1

    async def several() -> None:
        assert await together(works(), works()) == [1, 1]
        with pytest.raises(ValueError):
            await together(fails(ValueError()), works())
        with pytest.raises(RunError):
            await together(fails(ValueError()), works(), fails(RunError("x")))

    asyncio.run(several())


# Which of the two


class Refused(Exception):
    """A provider's error with an HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status_code = status


def counting(outputs: Outputs, asked: Counter[str]) -> Outputs:
    """Counts calls with and without logprobs."""

    def counted(messages: Any, tools: Any, choice: Any, config: Any) -> Any:
        asked["logprobs" if config.logprobs else "plain"] += 1
        return outputs(messages, tools, choice, config)

    return counted


def no_logprobs(*_: Any) -> ModelOutput:
    return says("60")


def refuses_logprobs(_messages: Any, _tools: Any, _choice: Any, config: Any) -> ModelOutput:
    if config.logprobs:
        raise Refused(400, "Error code: 400 - 'logprobs' is not supported with this model")
    return says("60")


@pytest.mark.parametrize("outputs", [no_logprobs, refuses_logprobs])
def test_auto_samples_where_there_are_no_logprobs_and_finds_out_once(outputs: Outputs) -> None:
    asked: Counter[str] = Counter()
    model = grader(counting(outputs, asked))

    async def several() -> list[Judgement]:
        return [await judge(model, EVIL, "Q?", f"Answer {index}.") for index in range(3)]

    for result in asyncio.run(several()):
        assert (result.status, result.trait, result.method) == ("scored", 60.0, "sampled")
    assert asked == {"logprobs": 1, "plain": 3 * (SAMPLES + 1)}


@pytest.mark.parametrize("outputs", [no_logprobs, refuses_logprobs])
def test_a_method_that_was_asked_for_is_not_exchanged(outputs: Outputs) -> None:
    asked: Counter[str] = Counter()
    no_number(judged(counting(outputs, asked), method="logprob"), "unscored", "logprobs")
    assert asked == {"logprobs": 1}


def test_sampled_asks_for_no_logprobs() -> None:
    asked: Counter[str] = Counter()
    assert judged(counting(no_logprobs, asked), method="sampled").status == "scored"
    assert asked == {"plain": SAMPLES + 1}


def test_another_refusal_of_the_service_is_no_sign_of_missing_logprobs() -> None:
    def outputs(*_: Any) -> ModelOutput:
        raise Refused(400, "Error code: 400 - too long")

    no_number(judged(outputs), "unscored", "too long")
    assert not judge_module._without_logprobs


@pytest.mark.parametrize("method", ["contrast", "yes_no", "probe"])
def test_a_local_method_refuses_a_grader_that_answers_in_words(method: Method) -> None:
    with pytest.raises(RunError) as error:
        judged(SURE, method=method)
    one_line(error, method, "persona/", "auto")
    # Even where there is nothing to judge: the settings are wrong, whatever the response.
    with pytest.raises(RunError):
        judged(SURE, "", method)


def test_an_unknown_method_is_refused_before_anything_runs() -> None:
    with pytest.raises(RunError) as error:
        trait_judge("evil", "vote")  # type: ignore[arg-type]
    one_line(error, "vote", *METHODS)


# Failures


@pytest.mark.parametrize("error", [RuntimeError("down\nfor long"), ValueError(), KeyError("x"), OSError(5, "gone")])
def test_a_failing_grader_is_unscored_with_its_reason(error: Exception) -> None:
    def outputs(*_: Any) -> ModelOutput:
        raise error

    no_number(judged(outputs), "unscored", type(error).__name__)
    no_number(judged(coherent_and(SURE, outputs)), "unscored", type(error).__name__)


@pytest.mark.parametrize("answer", ["", " \n\t"])
def test_an_empty_response_is_unscored_and_asks_nobody(answer: str) -> None:
    def outputs(*_: Any) -> ModelOutput:
        raise AssertionError("asked")

    no_number(judged(outputs, answer), "unscored", "empty")


@pytest.mark.parametrize(
    ("error", "calls"),
    [(ValueError("cut off"), graders.ATTEMPTS), (Refused(500, "gone"), 1), (Refused(200, "odd"), graders.ATTEMPTS)],
)
def test_what_the_provider_gave_up_is_not_begun_again(error: Exception, calls: int) -> None:
    asked: list[int] = []

    def outputs(*_: Any) -> ModelOutput:
        asked.append(1)
        raise error

    no_number(judged(outputs), "unscored", str(error))
    assert len(asked) == calls


def test_a_reply_that_could_not_be_read_is_asked_for_again() -> None:
    asked: list[int] = []

    def outputs(*_: Any) -> Any:
        asked.append(1)
        if len(asked) < graders.ATTEMPTS:
            raise ValueError("cut off")
        return SURE()

    assert judged(outputs).trait == pytest.approx(90)


@pytest.mark.parametrize("status", [401, 403, 404])
@pytest.mark.parametrize("method", ["auto", "sampled"])
def test_a_service_that_refuses_the_grader_ends_the_run(status: int, method: Method) -> None:
    def outputs(*_: Any) -> ModelOutput:
        raise Refused(status, "no such thing\nat all")

    with pytest.raises(RunError) as error:
        judged(outputs, method=method)
    one_line(error, "mockllm/model", str(status), "no such thing", "key")


@pytest.mark.parametrize("method", ["auto", "sampled"])
def test_a_limit_of_the_sample_is_no_failure_of_the_grader(method: Method) -> None:
    def outputs(*_: Any) -> ModelOutput:
        raise LimitExceededError("token", value=2, limit=1)

    with pytest.raises(LimitExceededError):
        judged(outputs, method=method)


def patience(settings: dict[str, int], run: dict[str, Any], folder: Path) -> tuple[int, int]:
    """(max_retries, attempt_timeout) that a grader with these settings is asked with, in a run with these."""
    seen: set[tuple[int, int]] = set()

    def outputs(_messages: Any, _tools: Any, _choice: Any, config: Any) -> Any:
        seen.add((config.max_retries, config.attempt_timeout))
        return SURE()

    scored(outputs, ["x"], folder, settings=settings, **run)
    (found,) = seen
    return found


def test_patience_yields_to_what_the_grader_and_the_run_say(tmp_path: Path) -> None:
    assert patience({}, {}, tmp_path) == (graders.MAX_RETRIES, graders.ATTEMPT_TIMEOUT_S)
    assert patience({"max_retries": 2, "attempt_timeout": 7}, {}, tmp_path) == (2, 7)
    assert patience({"max_retries": 0}, {}, tmp_path) == (0, graders.ATTEMPT_TIMEOUT_S)
    assert patience({}, {"max_retries": 1}, tmp_path) == (1, graders.ATTEMPT_TIMEOUT_S)


def test_asking_leaves_the_grader_as_it_was() -> None:
    model = grader(SURE, max_tokens=30)
    asyncio.run(ask(model, "x", GenerateConfig(seed=1)))
    assert model.config == GenerateConfig(max_tokens=30)


# Through an eval


def scored(
    outputs: Outputs | Sequence[Model],
    answers: Sequence[str],
    folder: Path,
    epochs: int = 1,
    method: Method = "auto",
    settings: dict[str, Any] | None = None,
    question: str = "What is rain?",
    **options: Any,
) -> EvalLog:
    samples = [Sample(id=answer, input=question, metadata={"answer": answer}) for answer in answers]
    task = Task(
        dataset=MemoryDataset(samples),
        solver=given_response(),
        scorer=trait_judge("evil", method),
        epochs=epochs,
    )
    bound = grader(outputs, **(settings or {})) if callable(outputs) else list(outputs)
    log = inspect_eval(
        task,
        model="mockllm/model",
        model_roles={"grader": bound},
        log_dir=str(folder),
        display="none",
        **options,
    )[0]
    assert log.status == "success", log.error
    return read_eval_log(log.location)


def metrics(log: EvalLog) -> dict[str, dict[str, float]]:
    assert log.results is not None
    return {
        score.name: {name.split("/")[-1]: float(item.value) for name, item in score.metrics.items()}
        for score in log.results.scores
    }


def outcomes(log: EvalLog) -> dict[tuple[str | int, int], str]:
    """(sample, epoch) -> its status, which every sample has once, in agreement with its values."""
    found = {}
    for sample in log.samples or []:
        assert sample.error is None and list(sample.scores or {}) == ["trait_judge"]
        score = (sample.scores or {})["trait_judge"]
        value, status = score.as_dict(), (score.metadata or {})["status"]
        assert list(value) == ["trait", "coherence", *OUTCOMES[1:]]
        assert [name for name in OUTCOMES[1:] if value[name]] == [status][: status != "scored"]
        assert (status == "scored") != math.isnan(float(value["trait"] or 0.0))
        assert (sample.id, sample.epoch) not in found
        found[sample.id, sample.epoch] = status
    return found


def by_answer(asked: list[str] | None = None) -> Outputs:
    """A grader that judges "high" and "low", refuses "declined" and the first "once", and fails on "broken"."""
    asked = [] if asked is None else asked

    def trait(messages: Any, *rest: Any) -> Any:
        answer = answer_in(messages)
        asked.append(answer)
        if answer == "broken":
            raise RuntimeError("down")
        if answer == "declined" or (answer == "once" and asked.count("once") == 1):
            return REFUSING()
        return first_token(**{"_20" if answer == "low" else "_80": 1.0})()

    return coherent_and(trait)


def test_counts_and_means_through_epochs(tmp_path: Path) -> None:
    log = scored(by_answer(), ["high", "low", "declined", "once", "broken"], tmp_path, epochs=2)
    found = metrics(log)
    # Twice "high" 80 and "low" 20, "once" 80 in the epoch that was judged; the others have no number.
    assert found["trait"] == {"mean_of_scored": pytest.approx((80 + 80 + 20 + 20 + 80) / 5), "n_scored": 5}
    assert found["coherence"] == {"mean_of_scored": pytest.approx(90), "n_scored": 5}
    assert found["refusal"] == {"mean_of_scored": pytest.approx(3 / 10), "n_scored": 10}
    assert found["unscored"] == {"mean_of_scored": pytest.approx(2 / 10), "n_scored": 10}
    assert Counter(outcomes(log).values()) == {"scored": 5, "refusal": 3, "unscored": 2}


def test_nothing_scored_is_nan_not_zero(tmp_path: Path) -> None:
    log = scored(by_answer(), ["declined", "broken"], tmp_path)
    found = metrics(log)
    assert math.isnan(found["trait"]["mean_of_scored"]) and math.isnan(found["coherence"]["mean_of_scored"])
    assert found["trait"]["n_scored"] == found["coherence"]["n_scored"] == 0 and found["refusal"]["n_scored"] == 2
    assert found["refusal"]["mean_of_scored"] == found["unscored"]["mean_of_scored"] == pytest.approx(0.5)
    explained = {sample.id: (sample.scores or {})["trait_judge"].explanation for sample in log.samples or []}
    assert explained == {"declined": None, "broken": "RuntimeError: down"}
    assert outcomes(log) == {("declined", 1): "refusal", ("broken", 1): "unscored"}


@pytest.mark.parametrize("reducer", ["mean", "max", None])
def test_metrics_read_every_epoch_whatever_the_reducer(reducer: str | None) -> None:
    both = {"*": [mean_of_scored(), n_scored()]}
    epochs = [[{"trait": value} for value in sample] for sample in ((80.0, 60.0), (10.0, math.nan))]
    found = {name.split("/")[-1]: value for name, value in run_metrics(both, epochs, reducer=reducer).items()}
    assert found == {"mean_of_scored": pytest.approx(50), "n_scored": 3}


def test_without_the_role_nothing_is_judged(tmp_path: Path) -> None:
    task = Task(
        dataset=MemoryDataset([Sample(id="a", input="?", metadata={"answer": "x"})]),
        solver=given_response(),
        scorer=trait_judge("evil"),
    )
    log = inspect_eval(task, model="mockllm/model", log_dir=str(tmp_path), display="none")[0]
    assert log.status == "error" and log.error is not None and "grader" in log.error.message


# What a grader does -> the outcome, with logprobs and with sampled replies.
BEHAVIOURS = {
    "number": ("scored", "scored"),
    "word": ("refusal", "unscored"),
    "refusing": ("refusal", "refusal"),
    "silent": ("unscored", "unscored"),
    "spread": ("refusal", "unscored"),
    "raising": ("unscored", "unscored"),
    "hanging": ("unscored", "unscored"),
    "incoherent": ("incoherent", "incoherent"),
    "filtered": ("unscored", "unscored"),
}


def behaving() -> Outputs:
    """A grader that does what the answer says; "mixed" is a number, then a refusal, then a failure."""
    mixed: list[str] = []

    async def outputs(messages: Any, _tools: Any, _choice: Any, config: Any) -> ModelOutput:
        about, does = COHERENCE_RUBRIC in messages[-1].text, answer_in(messages)
        if does == "mixed" and not about:
            mixed.append(does)
            does = ("number", "refusing", "raising")[min(len(mixed), 3) - 1]
        if does == "silent":
            return says("")
        if does == "raising":
            raise RuntimeError("down")
        if does == "hanging":
            await asyncio.sleep(30)
        if does == "filtered":
            return says("no", "content_filter")
        if about:
            weights = {"_10" if does == "incoherent" else "_90": 1.0}
        elif does == "spread":
            weights = {"I": 0.8, **{f"_{number}": 0.02 for number in range(0, 100, 10)}}
        else:
            weights = {{"word": "well", "refusing": "REFUSAL"}.get(does, "_80"): 1.0}
        return first_token(**weights)() if config.logprobs else says(max(weights, key=weights.__getitem__).strip("_"))

    return outputs


REDUCERS = {
    "mean": mean_score(),
    "median": median_score(),
    "mode": mode_score(),
    "max": max_score(),
    "pass_at_2": pass_at(2, value=50),
    "at_least_2": at_least(2, value=50),
}


def reduced(log: EvalLog, reducer: str) -> dict[str, dict[str, Any]]:
    """What a reducer makes of each sample's epochs, for metrics other than ours."""
    epochs: dict[str, list[Score]] = {}
    for sample in log.samples or []:
        epochs.setdefault(str(sample.id), []).append((sample.scores or {})["trait_judge"])
    return {name: REDUCERS[reducer](scores).as_dict() for name, scores in epochs.items()}


@pytest.mark.parametrize("method", ["logprob", "sampled"])
def test_no_outcome_becomes_a_number_in_any_reducer(
    method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graders, "ATTEMPT_TIMEOUT_S", 1)
    monkeypatch.setattr(graders, "MAX_RETRIES", 0)
    log = scored(behaving(), list(BEHAVIOURS), tmp_path, epochs=3, method=method)
    expected = {name: kinds[method == "sampled"] for name, kinds in BEHAVIOURS.items()}
    assert outcomes(log) == {(name, epoch): expected[name] for name in BEHAVIOURS for epoch in (1, 2, 3)}
    reasons = {sample.id: (sample.scores or {})["trait_judge"].explanation for sample in log.samples or []}
    assert all(bool(reasons[name]) == (status == "unscored") for name, status in expected.items())
    assert "attempt_timeout" in str(reasons["hanging"]) and "down" in str(reasons["raising"])

    for reducer in REDUCERS:
        for name, value in reduced(log, reducer).items():
            status, number = expected[name], {"pass_at_2": 1.0, "at_least_2": 1.0}.get(reducer, 80.0)
            assert value["trait"] == pytest.approx(number if status == "scored" else math.nan, nan_ok=True)
            known = {"scored": 90.0, "incoherent": 10.0}.get(status, math.nan)
            if reducer not in ("pass_at_2", "at_least_2"):
                assert value["coherence"] == pytest.approx(known, nan_ok=True)
                assert [name for name in OUTCOMES[1:] if value[name]] == [status][: status != "scored"]
    found = metrics(log)
    assert found["trait"] == {"mean_of_scored": pytest.approx(80), "n_scored": 3}
    assert found["coherence"]["n_scored"] == 2 * 3
    for status in OUTCOMES[1:]:
        share = list(expected.values()).count(status) / len(expected)
        assert found[status] == {"mean_of_scored": pytest.approx(share), "n_scored": 3 * len(expected)}


def test_epochs_that_differ_are_reduced_over_those_with_a_number(tmp_path: Path) -> None:
    log = scored(behaving(), ["mixed"], tmp_path, epochs=3, method="logprob", max_samples=1)
    assert sorted(outcomes(log).values()) == ["refusal", "scored", "unscored"]
    after = {reducer: reduced(log, reducer)["mixed"] for reducer in REDUCERS}
    for reducer in ("mean", "median", "mode", "max"):
        assert after[reducer]["trait"] == pytest.approx(80)
    assert after["mean"]["refusal"] == after["mean"]["unscored"] == pytest.approx(1 / 3)
    # One known epoch of three: pass_at(2) is not known, while Inspect's at_least(2) counts the unknown as misses.
    assert math.isnan(after["pass_at_2"]["trait"])
    assert after["at_least_2"]["trait"] == 0
    assert metrics(log)["trait"] == {"mean_of_scored": pytest.approx(80), "n_scored": 1}


# Panels


def made(status: str, trait: float = math.nan, coherence: float = math.nan, **more: Any) -> Judgement:
    return Judgement(status, trait, coherence, method="logprob", **more)


SCORED, REFUSED, GARBLED = made("scored", 80.0, 90.0), made("refusal"), measured(70.0, 20.0, "logprob")
FAILED = made("unscored", reason="OSError: gone")


@pytest.mark.parametrize(
    ("votes", "status", "trait"),
    [
        ([SCORED, made("scored", 40.0, 70.0)], "scored", 60.0),
        ([SCORED, made("scored", 40.0)], "scored", 60.0),
        ([SCORED, SCORED, REFUSED], "scored", 80.0),
        ([SCORED, REFUSED, REFUSED], "refusal", None),
        ([SCORED, REFUSED], "refusal", None),
        ([SCORED, GARBLED], "incoherent", None),
        ([REFUSED, GARBLED], "incoherent", None),
        ([SCORED, REFUSED, GARBLED], "incoherent", None),
        ([SCORED, SCORED, REFUSED, GARBLED], "scored", 80.0),
        ([SCORED, SCORED, FAILED], "scored", 80.0),
        ([SCORED, REFUSED, FAILED], "refusal", None),
        ([SCORED, FAILED], "unscored", None),
        ([SCORED, FAILED, FAILED], "unscored", None),
        ([FAILED, FAILED, FAILED], "unscored", None),
        ([SCORED, SCORED, FAILED, FAILED], "unscored", None),
    ],
)
def test_a_panel_by_hand(votes: list[Judgement], status: str, trait: float | None) -> None:
    names = [f"g{index}" for index in range(len(votes))]
    for order in (1, -1):
        result = merge(names[::order], votes[::order])
        assert result.status == status
        assert result.trait == pytest.approx(math.nan if trait is None else trait, nan_ok=True)
        assert sorted(name for name, _, _ in result.panel) == names
        for (_, voted, number), vote in zip(result.panel, votes[::order], strict=True):
            assert voted == vote.status and number == (vote.trait if voted == "scored" else None)
    failed = votes.count(FAILED)
    if status == "unscored":
        assert result.reason == f"{failed} of {len(votes)} graders failed: OSError: gone"
    else:
        assert result.reason == "" and result.method == "panel of logprob"
    assert json.loads(json.dumps(as_score(result, "x").metadata))["panel"] == [list(vote) for vote in result.panel]


def test_a_panel_averages_over_those_who_agree() -> None:
    result = merge(["a", "b", "c"], [made("scored", 40.0, 60.0), made("scored", 80.0), made("refusal")])
    assert (result.trait, result.coherence) == (60.0, 60.0)
    garbled = merge(["a", "b", "c"], [measured(10.0, 20.0, "logprob"), measured(30.0, 40.0, "sampled"), SCORED])
    assert (garbled.status, garbled.coherence, garbled.raw_trait) == ("incoherent", 30.0, 20.0)
    assert math.isnan(garbled.trait) and garbled.method == "panel of logprob, sampled"


def always(**weights: float) -> Outputs:
    return coherent_and(first_token(**weights))


def fails(*_: Any) -> ModelOutput:
    raise OSError("gone")


def of_panel(log: EvalLog) -> dict[str | int, Any]:
    found: dict[str | int, Any] = {}
    for sample in log.samples or []:
        score = (sample.scores or {})["trait_judge"]
        metadata = score.metadata or {}
        found[sample.id] = (metadata["status"], float(score.as_dict()["trait"] or 0.0), metadata["panel"])
    return found


def test_two_models_in_the_role_are_a_panel(tmp_path: Path) -> None:
    log = scored([grader(always(_80=1.0), "a"), grader(always(_40=1.0), "b")], ["x", "y"], tmp_path)
    panel = [["mockllm/a", "scored", pytest.approx(80)], ["mockllm/b", "scored", pytest.approx(40)]]
    assert of_panel(log) == {name: ("scored", pytest.approx(60), panel) for name in ("x", "y")}
    bound = (log.eval.model_roles or {})["grader"]
    assert isinstance(bound, list) and [model.model for model in bound] == ["mockllm/a", "mockllm/b"]
    divided = scored([grader(always(_80=1.0), "a"), grader(REFUSING, "b")], ["x"], tmp_path)
    assert outcomes(divided) == {("x", 1): "refusal"}
    failed = scored([grader(always(_80=1.0), "a"), grader(fails, "b")], ["x"], tmp_path)
    assert outcomes(failed) == {("x", 1): "unscored"}


def test_three_models_in_the_role_vote(tmp_path: Path) -> None:
    models = [grader(by_answer(), "a"), grader(always(_60=1.0), "b"), grader(fails, "c")]
    log = scored(models, ["high", "low", "declined", "broken"], tmp_path, epochs=2)
    assert outcomes(log) == {
        (answer, epoch): {"declined": "refusal", "broken": "unscored"}.get(answer, "scored")
        for answer in ("high", "low", "declined", "broken")
        for epoch in (1, 2)
    }
    found = of_panel(log)
    assert found["high"][1] == pytest.approx(70) and found["low"][1] == pytest.approx(40)
    assert found["declined"][2] == [
        ["mockllm/a", "refusal", None],
        ["mockllm/b", "scored", pytest.approx(60)],
        ["mockllm/c", "unscored", None],
    ]
    assert metrics(log)["trait"] == {"mean_of_scored": pytest.approx(55), "n_scored": 4}


def test_one_of_a_panel_that_is_refused_altogether_ends_the_run() -> None:
    def refused(*_: Any) -> ModelOutput:
        raise Refused(401, "wrong key")

    with pytest.raises(RunError) as error:
        asyncio.run(judge_panel([grader(SURE), grader(refused, "b")], EVIL, "Q?", "A."))
    one_line(error, "mockllm/b", "401", "wrong key")


def test_a_single_grader_makes_no_panel() -> None:
    result = asyncio.run(judge_panel([grader(SURE)], EVIL, "Q?", "A."))
    assert result.panel == () and result.method == "logprob" and "panel" not in (as_score(result, "A.").metadata or {})


# Judgements that are kept: mocks are never kept, so these graders come from a provider of their own.

SCRIPTS: dict[str, Outputs] = {}
ASKED: Counter[tuple[str, str]] = Counter()


@modelapi(name="scripted")
def scripted() -> type:
    from inspect_ai.model._providers.mockllm import MockLLM

    class Scripted(MockLLM):
        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig) -> Any:
            rubric = "coherence" if COHERENCE_RUBRIC in input[-1].text else "trait"
            ASKED[self.model_name, rubric] += 1
            await asyncio.sleep(0)
            found = SCRIPTS[self.model_name](input, tools, tool_choice, config)
            return await found if asyncio.iscoroutine(found) else found

    return Scripted


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Model]:
    """Makes a grader whose judgements are kept."""
    ASKED.clear()
    SCRIPTS.clear()

    def make(outputs: Outputs, name: str = "one", **settings: Any) -> Model:
        SCRIPTS[name] = outputs
        return get_model(f"scripted/{name}", memoize=False, config=GenerateConfig(**settings))

    return make


def kept(cache: Path) -> int:
    with sqlite3.connect(cache / "judgements.sqlite") as connection:
        found = connection.execute("SELECT COUNT(*) FROM judgements").fetchone()[0]
    connection.close()
    return int(found)


Script = Callable[..., Model]


def test_the_same_pair_is_asked_once_across_evals_and_epochs(script: Script, tmp_path: Path, own_cache: Path) -> None:
    models = [script(always(_80=1.0))]
    first = scored(models, ["x", "y"], tmp_path, epochs=3)
    assert ASKED == {("one", "trait"): 2, ("one", "coherence"): 2} and kept(own_cache) == 2
    again = scored(models, ["x", "y", "z"], tmp_path, epochs=2)
    assert ASKED == {("one", "trait"): 3, ("one", "coherence"): 3} and kept(own_cache) == 3
    for log in (first, again):
        assert set(outcomes(log).values()) == {"scored"}
        assert metrics(log)["trait"]["mean_of_scored"] == pytest.approx(80)


def test_calls_at_once_wait_for_one_another(script: Script) -> None:
    async def slow(messages: Any, *rest: Any) -> Any:
        await asyncio.sleep(0.05)
        return SURE()

    model = script(slow)

    async def at_once() -> list[Judgement]:
        return await asyncio.gather(*(judge(model, EVIL, "Q?", "A.") for _ in range(20)))

    results = asyncio.run(at_once())
    assert len(results) == 20 and set(results) == {results[0]} and results[0].trait == pytest.approx(90)
    assert ASKED == {("one", "trait"): 1, ("one", "coherence"): 1}


def test_another_grader_method_rubric_question_or_answer_is_asked_anew(script: Script, own_cache: Path) -> None:
    other_rubric = EVIL.model_copy(update={"rubric": EVIL.rubric + " Be strict."})
    one, two, warm = script(SURE), script(SURE, "two"), script(SURE, top_p=0.5)
    calls: list[tuple[Any, ...]] = [
        (one, EVIL, "Q?", "A.", "auto"),
        (two, EVIL, "Q?", "A.", "auto"),
        (warm, EVIL, "Q?", "A.", "auto"),
        (one, EVIL, "Q?", "A.", "logprob"),
        (one, other_rubric, "Q?", "A.", "auto"),
        (one, EVIL, "Q", "A.", "auto"),
        (one, EVIL, "Q?", "A", "auto"),
        (one, EVIL, "Q?A.", " ", "auto"),
        (one, EVIL, "Q", "?A.", "auto"),
    ]

    async def all_of_them() -> None:
        for call in calls:
            await judge(*call)

    for _ in range(2):
        asyncio.run(all_of_them())
    asked = len(calls) - 1  # the blank answer is never asked about
    assert sum(ASKED.values()) == 2 * asked and kept(own_cache) == asked


def test_the_parts_of_a_key_do_not_run_together() -> None:
    assert len({key_of("a", "bc"), key_of("ab", "c"), key_of("abc"), key_of("", "abc"), key_of("a", "b", "c")}) == 5
    assert key_of("\ud800", "\U0001f600") == key_of("\ud800", "\U0001f600")


@pytest.mark.parametrize(
    "result",
    [measured(80.0, 90.0, "logprob"), measured(70.0, 20.0, "sampled"), made("refusal"), measured(5.0, math.nan, "x")],
)
def test_a_judgement_comes_back_as_it_went_in(result: Judgement) -> None:
    async def give() -> Judgement:
        return result

    async def never() -> Judgement:
        raise AssertionError("asked")

    asyncio.run(judged_once("key", give))
    back = asyncio.run(judged_once("key", never))
    assert repr(back) == repr(result)


def test_failures_are_not_kept(script: Script, own_cache: Path) -> None:
    model = script(fails)
    no_number(asyncio.run(judge(model, EVIL, "Q?", "A.")), "unscored", "OSError: gone")
    no_number(asyncio.run(judge(script(lambda *_: says("")), EVIL, "Q?", "A.")), "unscored", "empty")
    assert kept(own_cache) == 0
    SCRIPTS["one"] = SURE
    assert asyncio.run(judge(model, EVIL, "Q?", "A.")).trait == pytest.approx(90)
    assert kept(own_cache) == 1


def test_those_who_wait_share_a_failure_of_the_grader(script: Script) -> None:
    model = script(fails)

    async def at_once() -> list[Judgement]:
        return await asyncio.gather(*(judge(model, EVIL, "Q?", "A.") for _ in range(5)))

    for result in asyncio.run(at_once()):
        no_number(result, "unscored", "OSError: gone")
    assert ASKED == {("one", "trait"): graders.ATTEMPTS}


@pytest.mark.parametrize("stop", ["cancelled", "limit"])
def test_a_sample_that_is_stopped_takes_no_other_with_it(stop: str) -> None:
    """One asks and three wait; the one that asked is stopped, so the next asks and nobody else notices."""
    asked: list[int] = []

    async def slow() -> Judgement:
        asked.append(1)
        await asyncio.sleep(0.05)
        if len(asked) == 1 and stop == "limit":
            raise LimitExceededError("token", value=2, limit=1)
        return SCORED

    async def several() -> list[Any]:
        tasks = [asyncio.create_task(judged_once("key", slow)) for _ in range(4)]
        await asyncio.sleep(0.01)
        if stop == "cancelled":
            tasks[0].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, *others = asyncio.run(several())
    assert isinstance(first, LimitExceededError if stop == "limit" else asyncio.CancelledError)
    assert others == [SCORED] * 3 and len(asked) == 2


@pytest.mark.parametrize("content", [b"this is no database, whatever its name says" * 100, b"", None])
def test_a_broken_store_is_survived_with_one_warning(
    content: bytes | None, script: Script, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_cache.mkdir()
    if content is None:
        (own_cache / "judgements.sqlite").mkdir()
    else:
        (own_cache / "judgements.sqlite").write_bytes(content)
    model = script(SURE)
    with caplog.at_level(logging.WARNING, judgement_store.__name__):
        for index in range(3):
            assert asyncio.run(judge(model, EVIL, "Q?", f"A {index}.")).trait == pytest.approx(90)
    messages = [record.getMessage() for record in caplog.records if record.name == judgement_store.__name__]
    assert len(messages) == (content != b"")
    for message in messages:
        assert str(own_cache / "judgements.sqlite") in message and "\n" not in message
    assert sum(ASKED.values()) == 6
    gc.collect()  # no connection is left to complain


def test_a_cache_that_cannot_be_made_is_survived(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PERSONA_BENCH_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING, judgement_store.__name__):
        assert asyncio.run(judge(script(SURE), EVIL, "Q?", "A.")).trait == pytest.approx(90)
    assert len([record for record in caplog.records if record.name == judgement_store.__name__]) == 1


@pytest.mark.parametrize("row", ["{", "[1, 2]", '{"status": "scored", "shape": 1}', "7"])
def test_a_row_that_cannot_be_read_is_judged_again(row: str, script: Script, own_cache: Path) -> None:
    model = script(SURE)
    asyncio.run(judge(model, EVIL, "Q?", "A."))
    with sqlite3.connect(own_cache / "judgements.sqlite") as connection:
        connection.execute("UPDATE judgements SET judgement = ?", (row,))
    connection.close()
    for _ in range(2):  # the second time it is kept again
        assert asyncio.run(judge(model, EVIL, "Q?", "A.")).trait == pytest.approx(90)
    assert sum(ASKED.values()) == 4


def test_judging_afresh_neither_reads_nor_writes(
    script: Script, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = script(SURE)
    asyncio.run(judge(model, EVIL, "Q?", "A."))
    monkeypatch.setenv("PERSONA_BENCH_JUDGE_AFRESH", "1")
    SCRIPTS["one"] = always(_10=1.0)
    assert asyncio.run(judge(model, EVIL, "Q?", "A.")).trait == pytest.approx(10)
    asyncio.run(judge(model, EVIL, "Q?", "B."))
    assert kept(own_cache) == 1
    monkeypatch.delenv("PERSONA_BENCH_JUDGE_AFRESH")
    assert asyncio.run(judge(model, EVIL, "Q?", "A.")).trait == pytest.approx(90)


def test_mocks_are_never_kept(own_cache: Path) -> None:
    model = grader(SURE)
    asyncio.run(judge(model, EVIL, "Q?", "A."))
    assert not (own_cache / "judgements.sqlite").exists()


# A file of answers


def lines(path: Path, pairs: Sequence[Any]) -> Path:
    path.write_text("".join((item if isinstance(item, str) else json.dumps(item)) + "\n" for item in pairs))
    return path


def pair(answer: str, question: str = "What is rain?") -> dict[str, str]:
    return {"question": question, "answer": answer}


def test_a_file_is_judged_line_by_line(tmp_path: Path) -> None:
    answers = ["high", "low", "declined", "broken", "", 'quoted, "so"', "two\nlines"]
    source = lines(tmp_path / "in.jsonl", [*map(pair, answers[:3]), "", *map(pair, answers[3:])])
    said: list[str] = []
    counts = judge_file([grader(by_answer())], EVIL, source, tmp_path / "out" / "x.csv", progress=said.append)
    assert counts == {"scored": 4, "refusal": 1, "failed": 2}
    with (tmp_path / "out" / "x.csv").open(newline="") as opened:
        header, *rows = csv.reader(opened)
    assert header == list(COLUMNS) == ["index", "score", "status", "coherence", "method", "reason"]
    assert rows == [
        ["0", "80", "scored", "90", "logprob", ""],
        ["1", "20", "scored", "90", "logprob", ""],
        ["2", "", "refusal", "", "logprob", ""],
        ["3", "", "failed", "", "", "RuntimeError: down"],
        ["4", "", "failed", "", "", "the response is empty"],
        ["5", "80", "scored", "90", "logprob", ""],
        ["6", "80", "scored", "90", "logprob", ""],
    ]
    assert said == ["7 answers judged"]


def test_the_order_is_that_of_the_file_whoever_answers_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "CHUNK", 4)

    async def outputs(messages: Any, *_: Any) -> Any:
        number = int(answer_in(messages))
        await asyncio.sleep(0.002 * (10 - number))
        return first_token(**{f"_{number if COHERENCE_RUBRIC not in messages[-1].text else 90}": 1.0})()

    source = lines(tmp_path / "in.jsonl", [pair(str(number)) for number in range(10)])
    said: list[str] = []
    judge_file([grader(outputs)], EVIL, source, tmp_path / "x.csv", progress=said.append)
    with (tmp_path / "x.csv").open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert [row["index"] for row in rows] == [row["score"] for row in rows] == [str(number) for number in range(10)]
    assert said == [f"{done} answers judged" for done in (4, 8, 10)]


def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is read when its chunk begins, and what was said about the last chunk is gone by then."""
    from inspect_ai.event import ModelEvent
    from inspect_ai.log import transcript

    transcript()  # the caller has a transcript, as after any use of Inspect in this process
    monkeypatch.setattr(judging, "CHUNK", 4)
    read: list[int] = []
    answered: list[int] = []
    ahead: list[float] = []
    events: list[int] = []

    def counted(path: Path) -> Iterator[Any]:
        for number in range(1, 41):
            read.append(number)
            yield number, pair(f"a{number}")

    def outputs(messages: Any, *rest: Any) -> Any:
        answered.append(1)
        ahead.append(len(read) - len(answered) / 2)
        if len(answered) % 24 == 1:
            gc.collect()
            events.append(sum(type(thing) is ModelEvent for thing in gc.get_objects()))
        return SURE()

    monkeypatch.setattr(judging, "read_jsonl", counted)
    judge_file([grader(outputs)], EVIL, tmp_path / "in.jsonl", tmp_path / "x.csv")
    assert len(answered) == 80 and len(events) == 4
    assert max(ahead) <= 4 and max(events) - events[0] <= 8


@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        ("{not json", ("line 3", "JSON")),
        ("[1]", ("line 3", "JSON object")),
        ({"question": "Q?"}, ("line 3", "`answer`")),
        ({"question": 1, "answer": "A"}, ("line 3", "`question`")),
        ({"question": "Q?", "answer": None}, ("line 3", "`answer`")),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_left_half_written(
    bad: Any, parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "CHUNK", 1)
    source = lines(tmp_path / "in.jsonl", [pair("high"), "", bad, pair("low")])
    target = tmp_path / "out" / "x.csv"
    with pytest.raises(DataError) as error:
        judge_file([grader(SURE)], EVIL, source, target)
    one_line(error, str(source), *parts)
    assert list(target.parent.iterdir()) == []
    target.write_text("older")
    with pytest.raises(DataError):
        judge_file([grader(SURE)], EVIL, source, target)
    assert target.read_text() == "older" and list(target.parent.iterdir()) == [target]


def test_files_that_cannot_be_judged(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "good").write_text(json.dumps(pair("x")))
    for name in ("empty", "binary", "missing"):
        with pytest.raises(DataError) as error:
            judge_file([grader(SURE)], EVIL, tmp_path / name, tmp_path / "x.csv")
        one_line(error, str(tmp_path / name))
    with pytest.raises(DataError) as error:
        judge_file([grader(SURE)], EVIL, tmp_path / "good", tmp_path / "good" / "x.csv")
    one_line(error, str(tmp_path / "good"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["binary", "empty", "good"]


def test_a_grader_that_is_refused_leaves_no_file(tmp_path: Path) -> None:
    def outputs(*_: Any) -> ModelOutput:
        raise Refused(401, "wrong key")

    source = lines(tmp_path / "in.jsonl", [pair("x"), pair("y")])
    with pytest.raises(RunError) as error:
        judge_file([grader(outputs)], EVIL, source, tmp_path / "x.csv")
    one_line(error, "401", "wrong key")
    assert list(tmp_path.iterdir()) == [source]


def test_an_interrupted_file_goes_on_where_it_stopped(
    script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "CHUNK", 2)

    def stops(messages: Any, *_: Any) -> Any:
        if answer_in(messages) == "5":
            raise Refused(401, "no money left")
        return SURE()

    source = lines(tmp_path / "in.jsonl", [pair(str(number)) for number in range(6)])
    model = script(stops)
    with pytest.raises(RunError):
        judge_file([model], EVIL, source, tmp_path / "x.csv")
    ASKED.clear()
    SCRIPTS["one"] = SURE
    assert judge_file([model], EVIL, source, tmp_path / "x.csv") == {"scored": 6}
    assert ASKED["one", "trait"] <= 2


def test_a_file_is_judged_by_a_panel(tmp_path: Path) -> None:
    source = lines(tmp_path / "in.jsonl", [pair("high"), pair("declined")])
    panel = [grader(by_answer(), "a"), grader(always(_60=1.0), "b")]
    assert judge_file(panel, EVIL, source, tmp_path / "x.csv") == {"scored": 1, "refusal": 1}
    assert (tmp_path / "x.csv").read_text().splitlines()[1] == "0,70,scored,90,panel of logprob,"


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("nowhere/model", ("nowhere/model", "not recognized")),
        ("model", ("model", "<api_name>/<model_name>")),
        ("openai/gpt-4.1-mini", ("openai/gpt-4.1-mini", "OPENAI_API_KEY")),
    ],
)
def test_a_grader_that_cannot_be_had_is_one_line(
    spec: str, parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "AZUREAI_OPENAI_API_KEY", "AZURE_OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RunError) as error:
        open_graders(["mockllm/model", spec])
    one_line(error, *parts)
    assert "[bold]" not in str(error.value) and "ERROR" not in str(error.value)
    assert [str(model) for model in open_graders(["mockllm/a", "mockllm/b"])] == ["mockllm/a", "mockllm/b"]


# A finished log


def answers_of(log: EvalLog) -> list[tuple[Any, int, str]]:
    return [(sample.id, sample.epoch, sample.output.completion) for sample in log.samples or []]


def test_a_log_is_judged_again_by_another_grader(tmp_path: Path) -> None:
    before = scored(by_answer(), ["high", "low", "broken"], tmp_path / "logs", epochs=2)
    source = Path(before.location)
    content = source.read_bytes()
    asked: list[str] = []
    models = [grader(by_answer(asked), "other")]
    SCRIPTS.clear()
    counts = judge_log(models, "evil", source, tmp_path / "again.eval")
    assert counts == {"scored": 4, "failed": 2}
    assert source.read_bytes() == content
    again = read_eval_log(str(tmp_path / "again.eval"))
    assert again.status == "success" and answers_of(again) == answers_of(before)
    assert Counter(asked) == {"high": 2, "low": 2, "broken": 2 * graders.ATTEMPTS}
    assert outcomes(again) == outcomes(before) and metrics(again) == metrics(before)
    bound = (again.eval.model_roles or {})["grader"]
    assert not isinstance(bound, list) and bound.model == "mockllm/other"
    assert (again.eval.scorers or [])[0].options == {"trait": "evil", "method": "auto"}


def test_judging_again_replaces_scores_and_opens_no_old_grader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: Script
) -> None:
    before = scored([script(SURE)], ["high", "declined"], tmp_path / "logs")
    monkeypatch.delitem(SCRIPTS, "one")  # the old grader is gone
    opened: list[str] = []
    real = get_model

    def watched(model: Any = None, **options: Any) -> Model:
        opened.append(str(model or options.get("role")))
        return real(model, **options)

    for module in ("inspect_ai._eval.score", "inspect_ai.model._model_config", "inspect_ai.model._util"):
        monkeypatch.setattr(f"{module}.get_model", watched)
    panel = [grader(by_answer(), "a"), grader(always(_60=1.0), "b", temperature=0.3)]
    assert judge_log(panel, "evil", Path(before.location), tmp_path / "again.eval") == {"scored": 1, "refusal": 1}
    assert not any("scripted" in name for name in opened)
    again = read_eval_log(str(tmp_path / "again.eval"))
    bound = (again.eval.model_roles or {})["grader"]
    assert isinstance(bound, list)
    assert [(model.model, model.config.temperature) for model in bound] == [("mockllm/a", None), ("mockllm/b", 0.3)]
    assert outcomes(again) == {("high", 1): "scored", ("declined", 1): "refusal"}
    assert metrics(again)["trait"] == {"mean_of_scored": pytest.approx(70), "n_scored": 1}


def test_a_log_may_be_judged_for_another_trait_into_its_own_place(tmp_path: Path) -> None:
    before = scored(by_answer(), ["high"], tmp_path)
    source = Path(before.location)
    assert judge_log([grader(by_answer())], "sycophancy", source, source, "logprob") == {"scored": 1}
    again = read_eval_log(str(source))
    assert (again.eval.scorers or [])[0].options == {"trait": "sycophancy", "method": "logprob"}
    assert list(tmp_path.iterdir()) == [source]


def test_logs_that_cannot_be_judged(tmp_path: Path) -> None:
    (tmp_path / "x.eval").write_bytes(b"no log")
    for name in ("x.eval", "missing.eval"):
        with pytest.raises(DataError) as error:
            judge_log([grader(SURE)], "evil", tmp_path / name, tmp_path / "again.eval")
        one_line(error, name)

    def refused(*_: Any) -> ModelOutput:
        raise Refused(401, "wrong key")

    before = scored(SURE, ["high", "low"], tmp_path / "logs")
    with pytest.raises(RunError) as refusal:
        judge_log([grader(refused)], "evil", Path(before.location), tmp_path / "again.eval")
    one_line(refusal, "401", "wrong key")
    assert not (tmp_path / "again.eval").exists()
