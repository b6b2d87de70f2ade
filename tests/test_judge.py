"""The judge: numbers where the grader gives numbers, refusals and failures counted as such, never as a score."""

from __future__ import annotations

import asyncio
import json
import math
import random
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from inspect_ai.model import Model, get_model

from persona_bench.definitions.traits import LabelledAnswer, Trait, load_labelled, load_refusals, load_trait
from persona_bench.errors import RunError
from persona_bench.inspect_ext import calibration
from persona_bench.inspect_ext import voices as voice_module
from persona_bench.inspect_ext.calibration import LOCAL_METHODS, Calibration, calibrated, fit, spoil
from persona_bench.inspect_ext.judge import (
    METHODS,
    Judgement,
    is_refusal,
    judge,
)
from persona_bench.inspect_ext.voices import CONTRAST_PAIRS, Voices, read_voices, repetition, voice_items
from tests.conftest import one_line

EVIL = load_trait("evil")


def unscored(result: Judgement, status: str, reason: str = "") -> None:
    assert result.status == status
    assert math.isnan(result.trait) and math.isnan(result.coherence)
    assert reason in result.reason and "\n" not in result.reason


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
