"""The judge: numbers where the grader gives numbers, refusals and failures counted as such, never as a score."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from inspect_ai import Epochs, Task
from inspect_ai import eval as inspect_eval
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import Logprob, Logprobs, Model, ModelOutput, get_model
from pytest_inspect_evals.metrics import assert_agreeing_epochs_change_nothing, run_metrics

from persona_bench.definitions.traits import LabelledAnswer, Trait, load_labelled, load_refusals, load_trait
from persona_bench.errors import RunError
from persona_bench.inspect_ext import calibration
from persona_bench.inspect_ext import voices as voice_module
from persona_bench.inspect_ext.calibration import LOCAL_METHODS, Calibration, calibrated, fit, spoil
from persona_bench.inspect_ext.judge import (
    COHERENCE_RUBRIC,
    METHODS,
    Judgement,
    Method,
    expected_number,
    is_refusal,
    judge,
    mean_of_scored,
    n_scored,
    rubric_prompt,
    trait_judge,
)
from persona_bench.inspect_ext.solvers import given_response
from persona_bench.inspect_ext.voices import CONTRAST_PAIRS, Voices, read_voices, repetition, voice_items
from tests.conftest import first_token, one_line

EVIL = load_trait("evil")
SURE = first_token(_90=1.0)
REFUSING = first_token(REF=0.8, _0=0.2)


def grader(outputs: Callable[..., Any]) -> Model:
    return get_model("mockllm/model", custom_outputs=outputs, memoize=False)


def judged(outputs: Callable[..., Any], answer: str = "It is water.", method: Method = "auto") -> Judgement:
    return asyncio.run(judge(grader(outputs), EVIL, "What is rain?", answer, method))


def coherent_and(trait: Callable[..., Any], coherence: Callable[..., Any] = SURE) -> Callable[..., Any]:
    """A grader that answers the two rubrics apart."""
    return lambda messages, *rest: (coherence if COHERENCE_RUBRIC in messages[-1].text else trait)(messages, *rest)


def unscored(result: Judgement, status: str, reason: str = "") -> None:
    assert result.status == status
    assert math.isnan(result.trait) and math.isnan(result.coherence)
    assert reason in result.reason and "\n" not in result.reason


# A grader with logprobs


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
    score, mass = expected_number(ModelOutput.from_content("m", "50"))
    assert math.isnan(score) and mass == 0


def test_both_rubrics_are_asked_and_read_apart() -> None:
    seen: list[tuple[str, Any]] = []

    def outputs(messages: Any, _tools: Any, _choice: Any, config: Any) -> ModelOutput:
        seen.append((messages[-1].text, config))
        return coherent_and(first_token(_20=0.5, _40=0.5), first_token(_90=0.9, no=0.1))(messages)

    result = judged(outputs, "Some answer")
    assert result == Judgement("scored", pytest.approx(30), pytest.approx(90), "logprob")
    assert [text for text, _ in seen] == [
        rubric_prompt(rubric, "What is rain?", "Some answer") for rubric in (EVIL.rubric, COHERENCE_RUBRIC)
    ]
    for text, config in seen:
        assert "<question>\nWhat is rain?\n</question>" in text and "<answer>\nSome answer\n</answer>" in text
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
    unscored(judged(coherent_and(first_token(**weights))), "refusal")


def test_a_quarter_of_the_mass_is_enough() -> None:
    assert judged(coherent_and(first_token(_40=0.26, no=0.74))).trait == pytest.approx(40)


def test_coherence_alone_may_be_missing() -> None:
    result = judged(coherent_and(first_token(_70=1.0), first_token(no=1.0)))
    assert result.status == "scored" and result.trait == pytest.approx(70) and math.isnan(result.coherence)


def test_missing_logprobs_are_unscored() -> None:
    unscored(judged(lambda *_: ModelOutput.from_content("m", "50")), "unscored", "logprobs")
    bare = ModelOutput.from_content("m", "50")
    bare.choices = []
    unscored(judged(lambda *_: bare), "unscored", "logprobs")


@pytest.mark.parametrize("content", [[], [Logprob(token="50", logprob=0.0)]])
def test_empty_logprobs_give_no_number(content: list[Logprob]) -> None:
    made = ModelOutput.from_content("m", "50")
    made.choices[0].logprobs = Logprobs(content=content)
    result = judged(lambda *_: made)
    assert result.status in ("refusal", "unscored")
    unscored(result, result.status)


@pytest.mark.parametrize("error", [RuntimeError("down\nfor long"), ValueError(), KeyError("x"), OSError(5, "gone")])
def test_a_failing_grader_is_unscored_with_its_reason(error: Exception) -> None:
    def outputs(*_: Any) -> ModelOutput:
        raise error

    unscored(judged(outputs), "unscored", type(error).__name__)
    unscored(judged(coherent_and(SURE, outputs)), "unscored", type(error).__name__)


@pytest.mark.parametrize("answer", ["", " \n\t"])
def test_an_empty_response_is_unscored_and_asks_nobody(answer: str) -> None:
    def outputs(*_: Any) -> ModelOutput:
        raise AssertionError("asked")

    unscored(judged(outputs, answer), "unscored", "empty")


@pytest.mark.parametrize("method", ["contrast", "yes_no", "combined"])
def test_a_local_method_refuses_a_grader_with_logprobs(method: Method) -> None:
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


# Through an eval


def scored(outputs: Callable[..., Any], answers: Sequence[str], folder: Path, epochs: int = 1) -> EvalLog:
    samples = [Sample(id=answer, input="What is rain?", metadata={"answer": answer}) for answer in answers]
    task = Task(
        dataset=MemoryDataset(samples),
        solver=given_response(),
        scorer=trait_judge("evil"),
        epochs=Epochs(epochs, "mean"),
    )
    log = inspect_eval(
        task, model="mockllm/model", model_roles={"grader": grader(outputs)}, log_dir=str(folder), display="none"
    )[0]
    assert log.status == "success", log.error
    return read_eval_log(log.location)


def metrics(log: EvalLog) -> dict[str, dict[str, float]]:
    assert log.results is not None
    return {
        score.name: {name.split("/")[-1]: float(item.value) for name, item in score.metrics.items()}
        for score in log.results.scores
    }


def by_answer() -> Callable[..., Any]:
    """A grader that judges "high" and "low", refuses "declined" and the first "once", and fails on "broken"."""
    asked: list[str] = []

    def trait(messages: Any, *rest: Any) -> ModelOutput:
        answer = messages[-1].text.split("<answer>\n")[1].split("\n</answer>")[0]
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
    # "high" 80, "low" 20, "once" 80 in the epoch that was judged; the others have no number.
    assert found["trait"] == {"mean_of_scored": pytest.approx(60), "n_scored": 3}
    assert found["coherence"] == {"mean_of_scored": pytest.approx(90), "n_scored": 3}
    assert found["refusal"] == {"mean_of_scored": pytest.approx(1.5 / 5), "n_scored": 5}
    assert found["unscored"] == {"mean_of_scored": pytest.approx(1 / 5), "n_scored": 5}


def test_nothing_scored_is_nan_not_zero(tmp_path: Path) -> None:
    log = scored(by_answer(), ["declined", "broken"], tmp_path)
    found = metrics(log)
    assert math.isnan(found["trait"]["mean_of_scored"]) and math.isnan(found["coherence"]["mean_of_scored"])
    assert found["refusal"]["mean_of_scored"] == found["unscored"]["mean_of_scored"] == pytest.approx(0.5)
    statuses = {}
    for sample in log.samples or []:
        score = (sample.scores or {})["trait_judge"]
        assert isinstance(score.value, dict) and math.isnan(score.as_dict()["trait"])  # type: ignore[arg-type]
        statuses[sample.id] = ((score.metadata or {})["status"], score.explanation)
    assert statuses == {"declined": ("refusal", None), "broken": ("unscored", "RuntimeError: down")}


def test_metrics_read_scores_as_the_reducer_leaves_them() -> None:
    both = {"*": [mean_of_scored(), n_scored()]}
    values: list[Any] = [{"trait": 80.0, "unscored": 0.0}, {"trait": 30.0, "unscored": 0.0}]
    assert_agreeing_epochs_change_nothing(both, values)
    assert_agreeing_epochs_change_nothing(both, [*values, {"trait": math.nan, "unscored": 1.0}])
    epochs = [[{"trait": value} for value in sample] for sample in ((80.0, 60.0), (10.0, 20.0))]
    found = {name.split("/")[-1]: value for name, value in run_metrics(both, epochs).items()}
    assert found == {"mean_of_scored": pytest.approx(42.5), "n_scored": 2}


def test_without_the_role_nothing_is_judged(tmp_path: Path) -> None:
    task = Task(
        dataset=MemoryDataset([Sample(id="a", input="?", metadata={"answer": "x"})]),
        solver=given_response(),
        scorer=trait_judge("evil"),
    )
    log = inspect_eval(task, model="mockllm/model", log_dir=str(tmp_path), display="none")[0]
    assert log.status == "error" and log.error is not None and "grader" in log.error.message


# Phrases and repetition


def test_most_written_refusals_are_found() -> None:
    """The list is made to be right rather than complete, and most refusals open with one of its phrases."""
    texts = [pair.refusing for pair in load_refusals()[0]]
    found = [text for text in texts if is_refusal(text)]
    assert len(found) >= 0.75 * len(texts)
    for text in found:
        assert is_refusal(text.upper())
        assert is_refusal(text.replace("'", "\u2019"))


@pytest.mark.parametrize("text", [pair.complying for pair in load_refusals()[0]])
def test_written_help_is_no_refusal(text: str) -> None:
    assert not is_refusal(text)


def test_only_the_opening_counts() -> None:
    phrase = load_refusals()[1][0]
    assert is_refusal("x " * 50 + phrase)
    assert not is_refusal("x " * 150 + phrase)
    assert not is_refusal("")


@pytest.mark.parametrize("trait", ["evil", "sycophancy", "hallucination"])
def test_labelled_answers_that_show_a_trait_are_no_refusals(trait: str) -> None:
    high = [item for item in load_labelled(trait) if item.level >= 75]
    assert sum(is_refusal(item.answer) for item in high) <= 0.03 * len(high)


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0), ("one", 0), ("one two three", 0), ("a b a b a", 0.5), ("A, b. a B! a", 0.5), ("no no no no no", 0.75)],
)
def test_repetition_by_hand(text: str, share: float) -> None:
    assert repetition(text) == pytest.approx(share)


# Local graders


def test_voices_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voice_module, "CONTRAST_PAIRS", 2)
    items = voice_items(EVIL, "Q?", "An answer.", LOCAL_METHODS["combined"])
    assert [item.messages[0]["content"] for item in items[:4]] == [
        text for pair in EVIL.judge_instructions for text in (pair.negative, pair.positive)
    ]
    assert all(item.continuation == "An answer." and item.messages[1]["content"] == "Q?" for item in items[:4])
    assert items[4].alternatives == ("Yes", "No") and "An answer." in items[4].messages[0]["content"]
    logprobs = (-10.0, -6.0, -8.0, -9.0)
    scores: list[dict[str, Any]] = [{"n_tokens": 4, "logprob": value, "alternatives": []} for value in logprobs]
    scores.append({"n_tokens": 0, "logprob": 0.0, "alternatives": [-1.0, -3.0]})
    voices = read_voices(EVIL, "a b a b a", LOCAL_METHODS["combined"], scores)
    assert voices == Voices(contrast=(1.0 - 0.25) / 2, yes_no=2.0, fluency=-2.5, repetition=0.5)


@pytest.mark.parametrize("method", LOCAL_METHODS)
def test_a_method_asks_only_what_it_needs(method: str) -> None:
    names = LOCAL_METHODS[method]
    items = voice_items(EVIL, "Q?", "An answer.", names)
    assert len(items) == 1 + (2 * CONTRAST_PAIRS - 1) * ("contrast" in names) + ("yes_no" in names)
    scores: list[dict[str, Any]] = [{"n_tokens": 2, "logprob": -1.0, "alternatives": [-1.0, -2.0]}] * len(items)
    voices = read_voices(EVIL, "An answer.", names, scores)
    assert math.isnan(voices.contrast) == ("contrast" not in names)
    assert math.isnan(voices.yes_no) == ("yes_no" not in names)
    assert voices.fluency == pytest.approx(-0.5)


def test_instructions_of_the_judge_are_not_those_of_extraction() -> None:
    items = voice_items(EVIL, "Q?", "A", ("contrast",))
    used = {item.messages[0]["content"] for item in items}
    assert not used & {text for pair in EVIL.instructions for text in (pair.positive, pair.negative)}


LABELLED = tuple(item for item in load_labelled("evil") if item.half == "calibrate")


def synthetic(contrast: float, yes_no: float, seed: int = 0) -> list[Voices]:
    """Voices that tell the level apart with the given strengths, in noise of size 1."""
    noise = random.Random(seed)
    return [
        Voices(
            contrast * item.level / 100 + noise.gauss(0, 1) * 0.5,
            yes_no * item.level / 100 + noise.gauss(0, 1) * 0.5,
            -2 + noise.gauss(0, 0.2),
            0.05 * noise.random(),
        )
        for item in LABELLED
    ]


def broken(n: int = len(LABELLED), seed: int = 1) -> list[Voices]:
    noise = random.Random(seed)
    return [Voices(math.nan, math.nan, -5 + noise.gauss(0, 0.5), 0.6 * (i % 2)) for i in range(n)]


def fitted(contrast: float, yes_no: float) -> Calibration:
    return fit("g", "evil", LABELLED, synthetic(contrast, yes_no), broken())


@pytest.mark.parametrize(
    ("contrast", "yes_no", "method"),
    [(0.0, 8.0, "yes_no"), (8.0, 0.0, "contrast"), (1.2, 1.2, "combined"), (8.0, 8.0, "yes_no")],
)
def test_the_informative_method_is_chosen(contrast: float, yes_no: float, method: str) -> None:
    made = fitted(contrast, yes_no)
    assert made.method == method
    assert set(made.auroc) == set(LOCAL_METHODS) and made.n == len(LABELLED)
    assert made.auroc[method] >= max(made.auroc.values()) - 0.01


def test_noise_is_not_taken_for_information() -> None:
    """Every answer is judged by a fit that never saw its question, so pure noise stays near one half."""
    aurocs = [
        value
        for seed in range(5)
        for value in fit("g", "evil", LABELLED, synthetic(0, 0, seed), broken()).auroc.values()
    ]
    assert sum(aurocs) / len(aurocs) < 0.6


def test_scores_rise_with_the_voice_and_stay_on_the_scale() -> None:
    made = fitted(4.0, 4.0)
    for method, names in LOCAL_METHODS.items():
        rising = []
        for value in (-1e6, -2.0, 0.0, 1.0, 2.0, 4.0, 6.0, 1e6):
            voices = Voices(**{**asdict(Voices(math.nan, math.nan, -2, 0)), **dict.fromkeys(names, value)})
            rising.append(made.trait_score(voices, method))
        assert rising == sorted(rising) and len(set(rising)) > 5
        assert 0 <= rising[0] < 1 and 99 < rising[-1] <= 100
    levels = {level: [] for level in (0, 50, 100)}  # type: ignore[var-annotated]
    for item, voices in zip(LABELLED, synthetic(4.0, 4.0), strict=True):
        if item.level in levels:
            levels[item.level].append(made.trait_score(voices, made.method))
    means = [sum(values) / len(values) for values in levels.values()]
    assert means == sorted(means) and means[0] < 25 and means[-1] > 75


def test_coherence_falls_with_repetition_and_rises_with_fluency() -> None:
    made = fitted(4.0, 4.0)

    def coherence(fluency: float, repeated: float) -> float:
        return made.coherence(Voices(math.nan, math.nan, fluency, repeated))

    assert coherence(-2, 0) > 80 > 20 > coherence(-5, 0.6)
    assert coherence(-2, 0) > coherence(-3, 0) > coherence(-6, 0)
    assert coherence(-2, 0) > coherence(-2, 0.3) > coherence(-2, 0.9)


def test_a_fit_is_the_same_again() -> None:
    assert fitted(2.0, 1.0) == fitted(2.0, 1.0)


def test_spoilt_answers_keep_the_words_and_lose_the_sense() -> None:
    answer = "Rain falls because clouds grow heavy and cold"
    shuffled, loop = spoil(answer, 3)
    assert sorted(shuffled.split()) == sorted(answer.split()) and shuffled != answer
    assert set(loop.split()) == {"Rain", "falls", "because", "clouds"} and repetition(loop) > 0.4
    assert spoil(answer, 3) == (shuffled, loop)
    assert all(text for text in spoil("Hi", 0))


@pytest.fixture
def few_labels(monkeypatch: pytest.MonkeyPatch) -> Sequence[LabelledAnswer]:
    """Ten short labelled answers of both classes, and no calibration held from another test."""
    short = sorted(load_labelled("evil"), key=lambda item: len(item.answer))
    few = [item for level in (0, 100) for item in short if item.level == level and item.half == "calibrate"]
    few = few[:5] + few[-5:]
    monkeypatch.setattr(calibration, "load_labelled", lambda name: tuple(few) if name == "evil" else ())
    monkeypatch.setattr(calibration, "_held", {})
    return few


def local(folder: Path) -> Model:
    return get_model(f"persona/{folder}", dtype="float32", memoize=False)


def test_a_local_grader_judges_under_a_kept_calibration(
    folder: Path, own_cache: Path, few_labels: Sequence[LabelledAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def both() -> tuple[Judgement, ...]:
        asked = (judge(local(folder), EVIL, "What is rain?", "It is water.", method) for method in METHODS[:1] * 3)
        return tuple(await asyncio.gather(*asked))

    first = asyncio.run(both())
    assert first[0] == first[1] == first[2]
    assert first[0].status == "scored" and first[0].method in LOCAL_METHODS
    assert 0 <= first[0].trait <= 100 and 0 <= first[0].coherence <= 100
    kept = list((own_cache / "calibrations").iterdir())
    assert len(kept) == 1 and json.loads(kept[0].read_text())["n"] == len(few_labels)

    # Another process finds it on disk.
    monkeypatch.setattr(calibration, "_held", {})
    monkeypatch.setattr(calibration, "_make", None)
    again = asyncio.run(judge(local(folder), EVIL, "What is rain?", "It is water."))
    assert again == first[0]


def test_a_kept_calibration_belongs_to_its_labels_and_trait(
    folder: Path, own_cache: Path, few_labels: Sequence[LabelledAnswer], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def make(trait: Trait) -> Calibration:
        return await calibrated(local(folder), trait)

    asyncio.run(make(EVIL))
    asyncio.run(make(EVIL.model_copy(update={"description": "Another."})))
    monkeypatch.setattr(calibration, "load_labelled", lambda _: tuple(few_labels[:-1]))
    asyncio.run(make(EVIL))
    assert len(list((own_cache / "calibrations").iterdir())) == 3


def test_a_refusal_is_found_without_asking(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "calibrated", None)
    refusal = load_refusals()[0][0].refusing
    unscored(asyncio.run(judge(local(folder), EVIL, "Q?", refusal)), "refusal")
    unscored(asyncio.run(judge(local(folder), EVIL, "Q?", " ")), "unscored", "empty")


def test_a_local_grader_refuses_the_method_of_logprobs(folder: Path) -> None:
    with pytest.raises(RunError) as error:
        asyncio.run(judge(local(folder), EVIL, "Q?", "A.", "logprob"))
    one_line(error, "logprob", "auto")


def test_a_users_trait_needs_a_grader_with_logprobs(folder: Path) -> None:
    bare = EVIL.model_copy(update={"name": "terse", "judge_instructions": ()})
    with pytest.raises(RunError) as error:
        asyncio.run(judge(local(folder), bare, "Q?", "A."))
    one_line(error, "terse", "judge_instructions", "openai/")
    with pytest.raises(RunError) as error:
        asyncio.run(judge(local(folder), EVIL.model_copy(update={"name": "terse"}), "Q?", "A."))
    one_line(error, "terse", "labelled", "openai/")
