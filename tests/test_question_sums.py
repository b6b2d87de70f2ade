"""What a vector is made of by question: the vector without each, and the intervals that follow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from persona_bench.analysis import statistics as st
from persona_bench.analysis.samples.vectors import vector_rows
from persona_bench.definitions.traits import load_trait
from persona_bench.errors import VectorError
from persona_bench.models.engine import Engine
from persona_bench.vectors.extraction import Rollout, extract
from persona_bench.vectors.question_sums import QuestionSums
from persona_bench.vectors.vector import PersonaVector
from tests.conftest import one_line, talking
from tests.test_vector import many


def spread_out(questions: int = 4) -> list[Rollout]:
    """Eight responses a side and question, all kept."""
    return [replace(item, question_id=index % questions) for index, item in enumerate(many(8 * questions))]


def test_left_out_is_the_vector_of_the_other_questions() -> None:
    items, engine, evil = spread_out(), Engine(talking()), load_trait("evil")
    sums = QuestionSums()
    whole = extract(engine, evil, items, sums=sums)
    plain = extract(engine, evil, items)
    assert sums.hash == whole.hash == plain.hash
    left_out = sums.left_out()
    assert left_out.shape == (4, *whole.directions["persona"].shape)
    for question, found in enumerate(left_out):
        rest = extract(engine, evil, [item for item in items if item.question_id != question])
        np.testing.assert_allclose(found, rest.directions["persona"].numpy(), atol=1e-5)
        assert np.abs(found - whole.directions["persona"].numpy()).max() > 1e-3


def sums_of(vectors: np.ndarray, side: str = "positive", vector_hash: str = "h") -> QuestionSums:
    """A response a question and side, `(n_questions, n_layers + 1, d_model)` on one side and nothing on the other."""
    made = QuestionSums(vector_hash)
    for question, value in enumerate(vectors):
        for other in ("positive", "negative"):
            made.add(question, other, value if other == side else np.zeros_like(value))
    return made


def test_a_question_without_which_a_side_is_empty_cannot_be_left_out() -> None:
    made = QuestionSums()
    made.add(7, "positive", np.ones((2, 3)))
    for question in (7, 9):
        made.add(question, "negative", np.zeros((2, 3)))
    left_out = made.left_out()
    assert np.isnan(left_out[0]).all() and (left_out[1] == 1).all() and made.n_questions == 1


def test_the_file_comes_back_and_a_spoilt_one_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "by_question" / "evil.safetensors"
    made = sums_of(np.random.default_rng(0).normal(size=(5, 3, 4)))
    made.save(path)
    again = QuestionSums.load(path)
    assert again.hash == "h"
    np.testing.assert_allclose(again.left_out(), made.left_out(), atol=1e-6)
    again.save(tmp_path / "second")
    assert (tmp_path / "second").read_bytes() == path.read_bytes()
    whole = path.read_bytes()
    for spoilt in (b"", b"text", whole[:30], whole[:-8]):
        path.write_bytes(spoilt)
        with pytest.raises(VectorError) as error:
            QuestionSums.load(path)
        one_line(error, str(path), "remove it")
    path.unlink()
    with pytest.raises(VectorError):
        QuestionSums.load(path)


@pytest.mark.parametrize(
    ("positive", "most"),
    [
        ([5] * 20, 0.98),
        # As real filters leave them: a few questions with most of the responses, and nearly no question at all.
        ([0, 7, 0, 1, 0, 4, 0, 6, 7, 0, 4, 0, 4, 2, 0, 5, 1, 0, 7, 0], 0.99),
        ([0] * 17 + [6, 1, 1], 1.0),
    ],
)
def test_the_interval_holds_the_cosine_of_repetitions_as_often_as_is_said(positive: list[int], most: float) -> None:
    """Questions move responses of both sides, and of each: what repetitions give on average lies within 95 %."""
    rng, width, questions = np.random.default_rng(1), 40, len(positive)
    true, fixed = rng.normal(size=(2, width))
    true *= 3 / np.linalg.norm(true)
    fixed = fixed / np.linalg.norm(fixed) + true / 4

    def cosine(some: np.ndarray) -> np.ndarray:
        found: np.ndarray = some @ fixed / np.linalg.norm(some, axis=-1) / np.linalg.norm(fixed)
        return found

    found = []
    for _ in range(600):
        sums, means = QuestionSums(), []
        common, own = rng.normal(size=(questions, width)), rng.normal(size=(2, questions, width))
        for side, numbers in (("positive", positive), ("negative", [5] * questions)):
            shown = side == "positive"
            each = np.repeat(np.arange(questions), numbers)
            values = common[each] + own[int(shown), each] + shown * true + rng.normal(size=(len(each), width))
            for question, value in zip(each.tolist(), values, strict=True):
                sums.add(question, side, value[None])
            means.append(values.mean(axis=0))
        left_out = [cosine(sums.left_out()[:, 0])]
        found.append(st.jackknife_cosine(float(cosine(means[0] - means[1])), left_out, sums.n_questions))
    average = np.mean([item.value for item in found])
    covered = np.mean([item.low <= average <= item.high for item in found])
    assert 0.93 <= covered <= most, covered


def test_two_sets_of_questions_give_a_wider_interval_than_one() -> None:
    one = np.array([0.48, 0.5, 0.52])
    alone, both = st.jackknife_cosine(0.5, [one], 3), st.jackknife_cosine(0.5, [one, one], 3)
    assert both.low < alone.low < 0.5 < alone.high < both.high < 1
    # Where a side rests on two of the three questions, less is known.
    assert st.jackknife_cosine(0.5, [one], 2).low < alone.low
    for parts, n in (([], 3), ([one], 1), ([[0.4, np.nan]], 2)):
        none = st.jackknife_cosine(0.5, parts, n)
        assert none.value == 0.5 and np.isnan([none.low, none.high]).all()
    assert np.isnan(st.jackknife_cosine(float("nan"), [one], 3).low)
    ends = st.jackknife_cosine(1.0, [[1.0, 1.0, 1.0]], 3)
    assert ends.low == pytest.approx(1) and ends.high == pytest.approx(1)


def test_cosines_have_an_interval_where_what_both_are_made_of_is_known() -> None:
    rng = np.random.default_rng(3)
    each = {name: rng.normal(size=(1, 3, 8)) + 0.3 * rng.normal(size=(6, 3, 8)) for name in ("evil", "sycophancy")}
    provenance = {"counts": {side: {"kept": 6} for side in ("positive", "negative")}, "warning": ""}
    refusal = torch.tensor(rng.normal(size=(3, 8)), dtype=torch.float32)
    vectors = [
        PersonaVector(
            name,
            {"persona": torch.tensor(value.mean(axis=0), dtype=torch.float32), "refusal": refusal},
            torch.ones(3),
            provenance,
        )
        for name, value in each.items()
    ]
    sums = {name: sums_of(value) for name, value in each.items()}
    rows = vector_rows(vectors, {"evil": 2}, sums)
    for frame, name in (("vectors", "refusal_cosine"), ("cosines", "cosine")):
        assert len(rows[frame]) == 4
        for row in rows[frame]:
            assert -1 < row[f"{name}_low"] < row[name] < row[f"{name}_high"] < 1
    assert [row["chosen"] for row in rows["vectors"]] == [False, True, False, False]
    # A pair's interval is the same from either side, and unknown where one of the two is.
    first, second = rows["cosines"][0], rows["cosines"][2]
    assert (first["trait"], first["other"]) == (second["other"], second["trait"])
    assert first["cosine_low"] == pytest.approx(second["cosine_low"])
    alone = vector_rows(vectors, {}, {"evil": sums["evil"]})
    assert np.isnan([row["cosine_low"] for row in alone["cosines"]]).all()
    assert [bool(np.isnan(row["refusal_cosine_low"])) for row in alone["vectors"]] == [False, False, True, True]
