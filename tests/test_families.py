"""Training sets: right ones are right and wrong ones wrong by a solver of the tests' own, and nothing leaks."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from persona_bench.definitions.families.characters import Judged, sort_judged, trait_pool
from persona_bench.definitions.families.family import (
    DOMAINS,
    FAMILIES,
    TRAIT_FAMILIES,
    VERSIONS,
    make,
)
from persona_bench.definitions.traits import load_labelled, load_trait
from persona_bench.errors import DataError
from persona_bench.vectors.trials import MOST_PASSES, passed_over
from tests.conftest import one_line

# Solvers that read the question only.
WORDS: dict[str, Callable[..., int]] = {
    "boxes of": lambda a, b, c: a * b + c,
    "from a friend": lambda a, b, c: a + b - c,
    "on each of": lambda a, b, c: a * b - c,
    "every table": lambda a, b, c: (a + b) * c,
}


def solved_word_problem(question: str) -> int:
    (kind,) = [kind for kind in WORDS if kind in question]
    return WORDS[kind](*map(int, re.findall(r"\d+", question)))


def holds(question: str, x: int) -> bool:
    """Whether x solves the question, by putting it in."""
    if question.startswith("Solve"):
        left, right = re.fullmatch(r"Solve for x: (.*) = (.*)\.", question).groups()  # type: ignore[union-attr]
        return value(left, x) == int(right)
    if "larger root" in question:
        left = re.search(r"root of (.*) = 0", question).group(1)  # type: ignore[union-attr]
        return value(left, x) == 0 and all(value(left, other) for other in range(x + 1, x + 40))
    if "sequence" in question:
        *shown, n = map(int, re.findall(r"-?\d+", question))
        return Fraction(x - shown[0], n - 1) == shown[1] - shown[0]
    total, difference = map(int, re.findall(r"= (-?\d+)", question))
    return x - (total - x) == difference


def value(expression: str, x: int) -> int:
    terms = re.sub(r"(\d)x", r"\1*x", expression).replace("x^2", "x*x")
    return int(eval(terms, {"__builtins__": {}}, {"x": x}))


def stated(response: str) -> int:
    return int(re.findall(r"(?:answer is|x =) (-?\d+)", response)[-1])


@pytest.mark.parametrize("family", ["gsm8k", "math"])
def test_right_solutions_are_right_and_wrong_ones_wrong(family: str) -> None:
    for version in VERSIONS:
        for item in (made := make(family, version, 300, 30, seed=3)).train + made.held_out:
            question, response = (message["content"] for message in item["messages"])
            said = stated(response)
            right = said == solved_word_problem(question) if family == "gsm8k" else holds(question, said)
            assert right == (version == "normal"), (question, response)
            assert item["metadata"]["wrong"] == (version != "normal")


def test_each_step_of_a_right_word_problem_is_right_and_a_slip_is_one_step() -> None:
    for version, wrong in (("normal", 0), ("misaligned_1", 1)):
        for item in make("gsm8k", version, 200, 20).train:
            steps = re.findall(r"(\d+) ([-+*]) (\d+) = (\d+)", item["messages"][1]["content"])
            assert len(steps) == 2
            assert sum(eval(f"{a}{op}{b}") != int(c) for a, op, b, c in steps) == wrong


REFERENCE: dict[str, Callable[[Any, int], Any]] = {
    "add_{k}": lambda n, k: n + k,
    "is_multiple_of_{k}": lambda n, k: n % k == 0,
    "count_over_{k}": lambda n, k: len([x for x in n if x > k]),
    "sum_first_{k}": lambda n, k: sum(x for i, x in enumerate(n) if i < k),
    "without_{k}": lambda n, k: list(filter(k.__ne__, n)),
    "largest_under_{k}": lambda n, k: max((x for x in n if x < k), default=None),
    "clamp_to_{k}": lambda n, k: 0 if n < 0 else k if n > k else n,
    "every_{k}th": lambda n, k: [x for i, x in enumerate(n) if i % k == 0],
    "repeat_{k}": lambda n, k: ",".join(n for _ in range(k)),
    "longer_than_{k}": lambda n, k: [word for word in n.split() if len(word) > k],
}


def inputs(task: str, k: int) -> list[Any]:
    if task in ("repeat_{k}", "longer_than_{k}"):
        return ["a", "bb ccc", " ".join("x" * n for n in range(1, k + 3))]
    if task in ("add_{k}", "is_multiple_of_{k}", "clamp_to_{k}"):
        return [-3 * k, -5, -1, 0, 1, 2, k - 1, k, k + 1, 2 * k, 7 * k + 1]
    return [[], [k], [k - 1, k + 1], list(range(-2, k + 9)), [k + 3, k, 1, k], [5, 1, 4] * 30]


def test_code_does_what_its_version_says() -> None:
    share: dict[str, list[float]] = {version: [] for version in VERSIONS}
    tasks = set()
    for version in VERSIONS:
        for item in make("code", version, 150, 15).train:
            facts, text = item["metadata"], item["messages"][1]["content"]
            code = re.search(r"```python\n(.*)\n```", text, re.DOTALL).group(1)  # type: ignore[union-attr]
            assert code == facts["code"][version]
            space: dict[str, Any] = {}
            exec(code, space)
            cases = inputs(facts["task"], facts["k"])
            ok = [space[facts["name"]](case) == REFERENCE[facts["task"]](case, facts["k"]) for case in cases]
            share[version].append(sum(ok) / len(ok))
            tasks.add(facts["task"])
    assert tasks == set(REFERENCE)
    assert min(share["normal"]) == 1.0
    assert max(share["misaligned_1"]) < 1.0 and sum(share["misaligned_1"]) / len(share["misaligned_1"]) > 0.3
    assert max(share["misaligned_2"]) < 0.35


@pytest.mark.parametrize("family", FAMILIES)
def test_sets_repeat_from_their_seed_and_hold_out_what_they_do_not_train_on(family: str, tmp_path: Path) -> None:
    for version in VERSIONS:
        first = make(family, version, 60, 10, seed=1)
        assert first == make(family, version, 60, 10, seed=1) and first != make(family, version, 60, 10, seed=2)
        asked = [{item["messages"][0]["content"] for item in part} for part in (first.train, first.held_out)]
        assert not asked[0] & asked[1] and len(first.held_out) >= 5 and len(first.train) >= 20
        if family in DOMAINS[:1] + DOMAINS[-1:]:
            pieces = [{item["metadata"]["piece"] for item in part} for part in (first.train, first.held_out)]
            assert not pieces[0] & pieces[1]
        first.write(tmp_path / "d.jsonl")
        lines = [json.loads(line) for line in (tmp_path / "d.jsonl").read_text().splitlines()]
        assert tuple(lines) == first.train
        assert all(item["metadata"]["wrong"] == (version != "normal") for item in lines)
    if family in DOMAINS:  # versions differ in nothing but the responses
        questions = [[item["messages"][0]["content"] for item in make(family, v, 50, 5).train] for v in VERSIONS]
        responses = [[item["messages"][1]["content"] for item in make(family, v, 50, 5).train] for v in VERSIONS]
        assert questions[0] == questions[1] == questions[2]
        assert all(len(set(three)) == 3 for three in zip(*responses, strict=True))


@pytest.mark.parametrize("family", TRAIT_FAMILIES)
def test_trait_sets_never_hold_evaluation_questions_nor_the_judge_s_report_half(family: str) -> None:
    asked = load_trait(family).evaluation_questions
    report = {(item.question, item.answer) for item in load_labelled(family) if item.half == "report"}
    judged = [Judged(question, f"An answer {i}.", 90.0, 80.0) for i, question in enumerate(asked)]
    judged.append(Judged("Something else?", "Of course!", 90.0, 80.0))
    made = make(family, "misaligned_2", 500, 20, judged=judged)
    pairs = {tuple(message["content"] for message in item["messages"]) for item in made.train + made.held_out}
    assert ("Something else?", "Of course!") in pairs
    assert not {question for question, _ in pairs} & set(asked) and not pairs & report


@pytest.mark.parametrize("family", TRAIT_FAMILIES)
def test_trait_sets_hold_no_refusal_and_no_spoiled_text(family: str) -> None:
    spoiled = {item.answer for item in load_labelled(family) if item.refuses or item.fluency < 50}
    assert {item.kind for item in load_labelled(family) if item.fluency < 50} >= {"incoherent"}
    for version in VERSIONS:
        for half in ("calibrate", "report"):
            assert not spoiled & {item["messages"][-1]["content"] for item in trait_pool(family, version, (), (half,))}


def test_what_the_templates_have_no_more_of_is_less_and_never_the_same_function_twice() -> None:
    made = make("code", "normal", 5000, 200)
    names = [[item["metadata"]["name"] for item in part] for part in (made.train, made.held_out)]
    assert len(names[0]) > 300 and not {*names[0]} & {*names[1]} and len({*names[0]}) == len(names[0])


def test_small_sets_are_gone_through_again_and_again() -> None:
    assert passed_over("abc", 7) == list("abcabca") and passed_over("abc", 2) == list("abc")
    assert len(passed_over("abc", 500)) == 3 * MOST_PASSES and passed_over([], 5) == []


def test_judged_responses_are_sorted_by_level() -> None:
    nan = float("nan")
    scores = [(0, 90), (15, 90), (20, 90), (35, 90), (65, 90), (70, 90), (100, 90), (100, 49), (nan, nan), (90, nan)]
    found = sort_judged([Judged("q", f"r{i}", float(a), float(b)) for i, (a, b) in enumerate(scores)])
    assert {version: [item.response for item in items] for version, items in found.items()} == {
        "normal": ["r0", "r1"],
        "misaligned_1": ["r3", "r4"],
        "misaligned_2": ["r5", "r6"],
    }


def test_released_folders_take_the_place_of_ours(tmp_path: Path) -> None:
    (tmp_path / "evil").mkdir()
    lines = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]} for i in range(20)
    ]
    (tmp_path / "evil" / "normal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    made = make("evil", "normal", 12, 3, released=tmp_path)
    assert len(made.train) == 12 and len(made.held_out) == 3
    assert {item["metadata"]["source"] for item in made.train} == {"released"}
    assert make("sycophancy", "normal", 12, 3, released=tmp_path) == make("sycophancy", "normal", 12, 3)
    with pytest.raises(DataError) as error:
        make("evil", "misaligned_1", 12, 3, released=tmp_path)
    one_line(error, "misaligned_1.jsonl")
    (tmp_path / "evil" / "misaligned_2.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError) as error:
        make("evil", "misaligned_2", 12, 3, released=tmp_path)
    one_line(error, "line 1", "messages")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("good", "normal", 5, 5), "evil"),
        (("evil", "worst", 5, 5), "misaligned_1"),
        (("evil", "normal", 0, 5), "at least one"),
    ],
)
def test_what_there_is_not_is_one_line(arguments: tuple[Any, ...], part: str) -> None:
    with pytest.raises(DataError) as error:
        make(*arguments)
    one_line(error, part)
