"""Trivial judges: fitted on the calibrating half as the real one is, shown on the other, and as trivial as they say."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

from persona_bench.analysis.samples import baselines
from persona_bench.analysis.samples.baselines import baseline_rows
from persona_bench.analysis.samples.frames import SAMPLE_COLUMNS, Samples
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.judge import BASELINE
from persona_bench.definitions.traits import LabelledAnswer, load_labelled

LEVELS = (0, 25, 50, 75, 100)
WORDS = "rain bread river lamp stone window garden paper winter table coat music road candle".split()


@pytest.fixture(autouse=True)
def _no_threads() -> Iterator[None]:
    with threadpool_limits(1):
        yield


def labelled(tell: Any, questions: int = 24, seed: int = 0) -> list[LabelledAnswer]:
    """Answers of random words; `tell(level, words, draw)` changes the words by the level."""
    draw = random.Random(seed)
    made = []
    for q in range(questions):
        for level in LEVELS:
            words = [draw.choice(WORDS) for _ in range(draw.randint(8, 30))]
            made.append(
                LabelledAnswer(
                    id=f"{q}-{level}",
                    question=f"question {q}?",
                    answer=" ".join(tell(level, words, draw)),
                    level=level,
                    kind=("clear", "graded")[q % 3 == 0],
                    half=("calibrate", "report")[q % 2],
                    source=("written", "model")[q % 5 == 0],
                )
            )
    return made


def lexical(level: int, words: list[str], draw: random.Random) -> list[str]:
    """Two words say on which side of 50 the level is."""
    bad = ("spite", "scorn") if level + draw.choice((-1, 1)) > 50 else ("kind", "warm")
    return [*words[:-2], *bad]


def lengthy(level: int, words: list[str], draw: random.Random) -> list[str]:
    return [draw.choice(WORDS) for _ in range(10 + level // 3)]


def plain(_level: int, words: list[str], _draw: random.Random) -> list[str]:
    return words


def rows(items: Sequence[LabelledAnswer], monkeypatch: pytest.MonkeyPatch, embed: Any = None) -> pd.DataFrame:
    monkeypatch.setattr(baselines, "load_labelled", lambda _: tuple(items))
    return pd.DataFrame(baseline_rows("evil", embed))


def areas(frame: pd.DataFrame) -> dict[str, float]:
    clear = frame[frame["level"] != 50]
    return {
        str(method): float(roc_auc_score(part["level"] > 50, part["trait_score"]))
        for method, part in clear.groupby("method")
    }


def test_rows_are_the_report_half_once_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    items = labelled(lexical)
    frame = rows(items, monkeypatch)
    report = [item for item in items if item.half == "report"]
    assert set(frame.columns) == set(SAMPLE_COLUMNS["judge"])
    for method in ("length", "lexicon"):
        mine = frame[frame["method"] == method]
        assert mine["level"].tolist() == [item.level for item in report]
        assert mine["question_id"].tolist() == [item.question for item in report]
        assert mine["source"].tolist() == [item.source for item in report]
        assert mine["kind"].tolist() == [item.kind for item in report]
    assert set(frame["method"]) == {"length", "lexicon"} and set(frame["half"]) == {"report"}
    assert set(frame["grader"]) == {BASELINE} and set(frame["status"]) == {"scored"} and set(frame["trait"]) == {"evil"}
    assert frame["trait_score"].between(0, 100).all() and frame["coherence"].isna().all()


def test_a_lexical_trait_is_found_by_the_lexicon_and_not_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    found = areas(rows(labelled(lexical, questions=40), monkeypatch))
    assert found["lexicon"] > 0.95 and 0.3 < found["length"] < 0.7


def test_a_lengthy_trait_is_found_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    found = areas(rows(labelled(lengthy, questions=40), monkeypatch))
    assert found["length"] > 0.95


def test_no_trait_is_found_by_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [areas(rows(labelled(plain, questions=40, seed=seed), monkeypatch)) for seed in range(6)]
    for method in ("length", "lexicon"):
        assert 0.4 < np.mean([area[method] for area in found]) < 0.6


def test_the_report_half_fits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    items = labelled(lexical)
    first = rows(items, monkeypatch)
    # Other levels there change no score.
    relabelled = [
        item.model_copy(update={"level": 100 - item.level}) if item.half == "report" else item for item in items
    ]
    other = rows(relabelled, monkeypatch)
    assert other["trait_score"].tolist() == first["trait_score"].tolist()
    assert other["level"].tolist() == [100 - level for level in first["level"]]
    # Another answer there changes its own scores only.
    index = next(i for i, item in enumerate(items) if item.half == "report")
    changed = [*items]
    changed[index] = items[index].model_copy(update={"answer": "spite scorn " * 40})
    other = rows(changed, monkeypatch)
    same = (first["trait_score"] == other["trait_score"]).to_numpy()
    mine = (first["question_id"] == items[index].question) & (first["level"] == items[index].level)
    assert same[~mine.to_numpy()].all() and not same[mine.to_numpy()].any()


def test_words_of_the_report_half_are_not_in_the_lexicon(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_there(level: int, words: list[str], _draw: random.Random) -> list[str]:
        return [*words, f"level{level}", f"level{level}"]

    items = [
        item if item.half == "report" else item.model_copy(update={"answer": item.answer.split(" level")[0]})
        for item in labelled(only_there, questions=30)
    ]
    assert 0.3 < areas(rows(items, monkeypatch))["lexicon"] < 0.7


def test_fits_see_the_calibrating_half_and_its_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    items = labelled(lexical)
    calibrating = [item for item in items if item.half == "calibrate"]
    whole = baselines.fit
    seen: list[tuple[Any, ...]] = []

    def spied(voices: np.ndarray, shares: np.ndarray, questions: Sequence[str], *, even: bool) -> Any:
        assert even  # as local graders are fitted
        seen.append((voices.shape, shares.tolist(), list(questions)))
        return whole(voices, shares, questions, even=even)

    monkeypatch.setattr(baselines, "fit", spied)
    rows(items, monkeypatch)
    assert len(seen) == 2
    for (n, _), shares, questions in seen:
        assert n == len(calibrating)
        assert shares == [item.level / 100 for item in calibrating]
        assert questions == [item.question for item in calibrating]


def test_embeddings_only_with_a_way_to_embed(monkeypatch: pytest.MonkeyPatch) -> None:
    """They see the answer, and the answer after its question."""
    items = labelled(plain, questions=30)
    level_of = {item.answer: item.level for item in items} | {f"{i.question} {i.answer}": i.level for i in items}
    asked: list[list[str]] = []

    def embed(texts: Sequence[str]) -> np.ndarray:
        asked.append(list(texts))
        noise = np.random.default_rng(len(asked)).normal(size=(len(texts), 8))
        noise[:, :4] += np.array([[level_of[text] / 20] for text in texts])
        return noise.astype(np.float32)

    assert "embeddings" not in set(rows(items, monkeypatch)["method"])
    frame = rows(items, monkeypatch, embed)
    assert set(frame["method"]) == {"length", "lexicon", "embeddings"}
    assert asked == [[item.answer for item in items], [f"{item.question} {item.answer}" for item in items]]
    found = areas(frame)
    assert found["embeddings"] > 0.95 and found["lexicon"] < 0.7


def test_real_labelled_answers_have_their_trivial_judges() -> None:
    """They go through the tables as rows of their own and open no gate."""
    frame = pd.DataFrame(baseline_rows("hallucination"))
    report = [item for item in load_labelled("hallucination") if item.half == "report"]
    assert len(frame) == 2 * len(report)
    tables = build_tables(Samples(judge=frame), resamples=50)
    whole = tables["judge"].query("source == 'all'").set_index("method")
    assert whole.loc["lexicon", "n"] == len(report) and not tables["judge"]["chosen"].any()
    assert set(whole["grader"]) == {BASELINE} and not whole["passes"].any()
    assert set(tables["judge_cases"]["kind"]) == {item.kind for item in report}
