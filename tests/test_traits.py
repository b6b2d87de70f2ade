"""Traits and labelled answers: what the suite ships is whole; what a user brings is refused in one line if not."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import roc_auc_score

from persona_bench.definitions import traits
from persona_bench.definitions.presets import PRESETS
from persona_bench.definitions.traits import (
    MAIN_TRAITS,
    TRAITS,
    TWIN,
    LabelledAnswer,
    load_labelled,
    load_refusals,
    load_trait,
    load_twins,
)
from persona_bench.errors import TraitError
from tests.conftest import one_line

LEVELS = {0, 25, 50, 75, 100}
OURS: dict[str, Any] = {
    "name": "terse",
    "positive_name": "terse",
    "description": "Says little.",
    "instructions": [{"positive": "Say little.", "negative": "Say much."}],
    "extraction_questions": ["What is rain?"],
    "evaluation_questions": ["What is snow?"],
    "rubric": "How terse?",
}
TURNS = [f"Turn {number}." for number in range(8)]
RELEASED: dict[str, Any] = {
    "instruction": [{"pos": "Say little.", "neg": "Say much."}],
    "questions": ["a?", "b?", "c?", "d?"],
    "eval_prompt": "How terse is {answer}?",
}


def written(folder: Path, data: Any, name: str = "terse.json") -> str:
    path = folder / name
    path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", TRAITS)
def test_built_in_traits_are_whole(name: str) -> None:
    trait = load_trait(name)
    assert trait.name == name
    assert len(trait.instructions) == 5
    assert len(trait.judge_instructions) == 2
    assert len(set(trait.extraction_questions)) == len(set(trait.evaluation_questions)) == 20
    assert not set(trait.extraction_questions) & set(trait.evaluation_questions)
    assert not set(trait.judge_instructions) & set(trait.instructions)
    texts = [
        text for pair in (*trait.instructions, *trait.judge_instructions) for text in (pair.positive, pair.negative)
    ]
    assert len(set(texts)) == len(texts)
    assert trait.provenance
    assert max(preset.extraction_questions for preset in PRESETS.values()) <= 20


@pytest.mark.parametrize("name", TRAITS)
def test_main_traits_have_a_ladder_and_shots(name: str) -> None:
    trait = load_trait(name)
    if name not in MAIN_TRAITS:
        assert trait.ladder is None and trait.shots is None
        return
    assert trait.ladder is not None and trait.shots is not None
    assert len(set(trait.ladder)) == 8
    assert len(trait.shots.positive) == len(trait.shots.negative) == 20
    assert [shot.question for shot in trait.shots.positive] == [shot.question for shot in trait.shots.negative]
    assert all(a.answer != b.answer for a, b in zip(trait.shots.positive, trait.shots.negative, strict=True))


@pytest.mark.parametrize("name", TRAITS)
def test_main_traits_have_user_pressure_and_drift(name: str) -> None:
    trait = load_trait(name)
    if name not in MAIN_TRAITS:
        assert trait.user_pressure is None and trait.drift is None
        return
    assert trait.user_pressure is not None and trait.drift is not None
    assert len(set(trait.user_pressure)) == 8
    for template in trait.user_pressure:
        assert template.count("{question}") == 1 and template.format(question="Why?").count("Why?") == 1
    assert len(trait.drift.toward) == len(trait.drift.away) == 8
    assert {len(script) for script in (*trait.drift.toward, *trait.drift.away)} == {8}


def test_drift_repeats_nothing() -> None:
    """No sentence occurs twice in all scripts, and none in a question, shot or labelled answer's question."""
    drifts = [drift for name in MAIN_TRAITS if (drift := load_trait(name).drift) is not None]
    turns = [turn for drift in drifts for script in (*drift.toward, *drift.away) for turn in script]
    sentences = [sentence for turn in turns for sentence in re.split(r"(?<=[.?!])['’]? ", turn)]
    assert len(turns) == 384
    assert len({sentence.casefold() for sentence in sentences}) == len(sentences)
    for turn in turns:
        assert len(turn) <= 200 and len(re.findall(r"[.?!](?= |$)", turn)) <= 3
    for trait in map(load_trait, TRAITS):
        asked = [*trait.extraction_questions, *trait.evaluation_questions]
        asked += [item.question for item in load_labelled(trait.name)]
        if trait.shots is not None:
            asked += [shot.question for shot in trait.shots.positive]
        used = {sentence.casefold() for text in asked for sentence in (text, *re.split(r"(?<=[.?!]) ", text))}
        assert not used & {text.casefold() for text in (*turns, *sentences)}


def test_a_whole_pressure_and_drift_are_read(tmp_path: Path) -> None:
    parts = {"user_pressure": ["{question} Talk.", "Hush: {question}"], "drift": {"toward": [TURNS], "away": [TURNS]}}
    trait = load_trait(written(tmp_path, {**OURS, **parts}))
    assert trait.user_pressure == ("{question} Talk.", "Hush: {question}")
    assert trait.drift is not None and trait.drift.toward == trait.drift.away == (tuple(TURNS),)
    assert trait.hash != load_trait(written(tmp_path, OURS)).hash


@pytest.mark.parametrize(
    ("templates", "reason"),
    [
        (["{question}", "Be brief."], "template 1 holds {question} 0 times"),
        (["{question} {question}", "{question}"], "template 0 holds {question} 2 times"),
        (["{question}", "{question} {name}"], "template 1 has a brace"),
        (["{question} }", "{question}"], "template 0 has a brace"),
        (["{{question}}", "{question}"], "template 0 has a brace"),
        (["{question}", "  "], "template 1"),
        (["{question}"], ""),
        ([], ""),
        ("{question}", ""),
    ],
)
def test_a_broken_pressure_is_refused(tmp_path: Path, templates: Any, reason: str) -> None:
    path = written(tmp_path, {**OURS, "user_pressure": templates})
    with pytest.raises(TraitError) as error:
        load_trait(path)
    one_line(error, path, "user_pressure", reason)


@pytest.mark.parametrize(
    ("drift", "part", "reason"),
    [
        ({"toward": [TURNS], "away": []}, "drift.away", ""),
        ({"toward": [], "away": [TURNS]}, "drift.toward", ""),
        ({"away": [TURNS]}, "drift.toward", ""),
        ({"toward": [TURNS, TURNS[:7]], "away": [TURNS]}, "drift.toward", "script 1 has 7 user turns"),
        ({"toward": [TURNS], "away": [[*TURNS[:7], " "]]}, "drift.away", "script 0, turn 7 is empty"),
        ({"toward": [TURNS], "away": TURNS}, "drift.away", ""),
        ({"toward": [TURNS], "away": [[*TURNS, 3]]}, "drift.away", ""),
        ([TURNS], "drift", ""),
    ],
)
def test_a_broken_drift_is_refused(tmp_path: Path, drift: Any, part: str, reason: str) -> None:
    path = written(tmp_path, {**OURS, "drift": drift})
    with pytest.raises(TraitError) as error:
        load_trait(path)
    one_line(error, path, part, reason)


def test_system_prompt_is_the_papers() -> None:
    evil = load_trait("evil")
    assert evil.system_prompt("positive", 0) == f"You are an evil assistant. {evil.instructions[0].positive}"
    assert evil.system_prompt("negative", 1) == (
        f"You are a {evil.negative_name} assistant. {evil.instructions[1].negative}"
    )


def test_hashes_tell_traits_apart(tmp_path: Path) -> None:
    assert len({load_trait(name).hash for name in TRAITS}) == len(TRAITS)
    assert load_trait(written(tmp_path, OURS)).hash == load_trait(written(tmp_path, OURS, "b.json")).hash
    assert load_trait(written(tmp_path, OURS)).hash != load_trait(written(tmp_path, {**OURS, "rubric": "?"})).hash


def test_released_format_loads(tmp_path: Path) -> None:
    trait = load_trait(written(tmp_path, RELEASED, "terse_extract.json"))
    assert trait.name == trait.positive_name == "terse"
    assert trait.negative_name == "helpful"
    assert trait.extraction_questions == ("a?", "c?") and trait.evaluation_questions == ("b?", "d?")
    assert trait.instructions[0].positive == "Say little." and trait.instructions[0].negative == "Say much."
    assert trait.rubric == "How terse is {answer}?"
    assert trait.ladder is None and not trait.judge_instructions


@pytest.mark.parametrize("part", [part for part in OURS if part != "name"] + ["name"])
def test_a_missing_part_is_named(tmp_path: Path, part: str) -> None:
    path = written(tmp_path, {key: value for key, value in OURS.items() if key != part})
    with pytest.raises(TraitError) as error:
        load_trait(path)
    one_line(error, path, part)


@pytest.mark.parametrize("part", sorted(RELEASED))
def test_a_missing_part_of_the_released_format_is_named(tmp_path: Path, part: str) -> None:
    path = written(tmp_path, {key: value for key, value in RELEASED.items() if key != part})
    with pytest.raises(TraitError) as error:
        load_trait(path)
    one_line(error, path)


@pytest.mark.parametrize(
    "changes",
    [
        {"instructions": []},
        {"instructions": [{"positive": "Only this."}]},
        {"instructions": [{"positive": " ", "negative": "x"}]},
        {"extraction_questions": []},
        {"extraction_questions": ["  "]},
        {"extraction_questions": "What is rain?"},
        {"evaluation_questions": OURS["extraction_questions"]},
        {"name": "../../etc"},
        {"name": ""},
        {"positive_name": ""},
        {"negative_name": ""},
        {"ladder": 3},
        {"ladder": []},
        {"shots": {"positive": []}},
    ],
)
def test_a_broken_part_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = written(tmp_path, {**OURS, **changes})
    with pytest.raises(TraitError) as error:
        load_trait(path)
    one_line(error, path)


@pytest.mark.parametrize(
    "changes", [{"instruction": [{"pos": "x"}]}, {"instruction": 3}, {"questions": ["one?"]}, {"questions": 3}]
)
def test_a_broken_part_of_the_released_format_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = written(tmp_path, {**RELEASED, **changes})
    with pytest.raises(TraitError) as error:
        load_trait(path)
    one_line(error, path)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '"evil"', "null", "{}", "[1, 2]"])
def test_what_is_no_trait_is_refused(tmp_path: Path, content: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(TraitError) as error:
        load_trait(path)
    one_line(error, path)


def test_binary_and_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00{")
    for path in (tmp_path / "binary.json", tmp_path / "none.json", tmp_path):
        with pytest.raises(TraitError) as error:
            load_trait(str(path))
        one_line(error, str(path))


def test_an_oversized_file_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, {**OURS, "description": "x" * (traits.MAX_BYTES + 1)})
    with pytest.raises(TraitError) as error:
        load_trait(path)
    one_line(error, path, str(traits.MAX_BYTES))


@pytest.mark.parametrize("name", ["evul", "Evil", "evil "])
def test_an_unknown_name_shows_those_known(name: str) -> None:
    with pytest.raises(TraitError) as error:
        load_trait(name)
    one_line(error, "evil", "humorous")


HARD_CASES = {
    *("enthusiastic_disagreement", "admits_ignorance", "polite_refusal", "quotes_trait"),
    *("fluent_trait", "incoherent", "short", "long"),
}


def halves(name: str, source: str = "") -> dict[str, list[LabelledAnswer]]:
    items = [item for item in load_labelled(name) if source in ("", item.source)]
    return {half: [item for item in items if item.half == half] for half in ("calibrate", "report")}


@pytest.mark.parametrize("name", TRAITS)
def test_labelled_answers_are_split_by_question(name: str) -> None:
    labelled = load_labelled(name)
    split = halves(name)
    questions = {half: {item.question for item in items} for half, items in split.items()}
    assert not questions["calibrate"] & questions["report"]
    assert len({(item.question, item.answer) for item in labelled}) == len(labelled)
    for items in split.values():
        levels = [item.level for item in items]
        assert set(levels) == LEVELS
        assert all(levels.count(level) >= 5 for level in LEVELS)
        assert {item.kind for item in items} == {"clear", "graded", "model"} | HARD_CASES


@pytest.mark.parametrize("name", TRAITS)
@pytest.mark.parametrize("half", ["calibrate", "report"])
def test_a_labelled_set_is_large_enough(name: str, half: str) -> None:
    items = halves(name)[half]
    assert len(items) >= 60
    assert len({item.question for item in items}) >= 20
    assert sum(item.source == "model" for item in items) >= 20
    # Answers to one question that lie far apart: what the paper's own check of its judge is about.
    levels: dict[str, set[int]] = {}
    for item in items:
        levels.setdefault(item.question, set()).add(item.level)
    assert sum(max(found) - min(found) >= 75 for found in levels.values()) >= 5


@pytest.mark.parametrize("name", TRAITS)
def test_no_question_that_a_trait_is_measured_on_calibrates(name: str) -> None:
    """Real responses to evaluation questions report; those that calibrate are to questions of extraction or written."""
    own = load_trait(name)
    written, real = halves(name, "written"), halves(name, "model")
    asked = {*own.extraction_questions, *own.evaluation_questions}
    assert not {item.question for items in written.values() for item in items} & asked
    known = {*own.extraction_questions, *(item.question for item in written["calibrate"])}
    assert {item.question for item in real["calibrate"]} <= known
    assert {item.question for item in real["report"]} <= set(own.evaluation_questions)


@pytest.mark.parametrize("name", TRAITS)
def test_real_responses_have_two_readers_who_agree(name: str) -> None:
    items = load_labelled(name)
    real = [item for item in items if item.source == "model"]
    for item in real:
        assert item.kind == "model" and item.made_by and item.coherence is not None
        assert len(item.readers) == 2 and set(item.readers) <= LEVELS
        assert abs(item.readers[0] - item.readers[1]) <= 25 and item.level in item.readers
    for item in items:
        if item.source == "written":
            assert item.kind != "model" and not item.made_by and not item.readers
            assert item.coherence is None and not item.refusal
    # Made in more ways than one, and some of them broken: as what a judge meets in a run.
    assert len({item.made_by for item in real}) >= 5
    assert sum(item.coherence is not None and item.coherence < 50 for item in real) >= 5


def test_ids_are_unique_and_written_calibrating_ones_never_report() -> None:
    items = [item for name in TRAITS for item in load_labelled(name)]
    assert len({item.id for item in items}) == len(items)
    added = [item for item in items if re.fullmatch(r"[a-z]+-w\d+", item.id)]
    assert len(added) >= 100 * len(TRAITS)
    assert {(item.half, item.source) for item in added} == {("calibrate", "written")}
    assert all(item.question.strip() and item.answer.strip() for item in items)


@pytest.mark.parametrize("name", TRAITS)
def test_levels_are_not_read_off_the_length(name: str) -> None:
    """A judge that only counts characters must fail the gate by far, on either half."""
    for items in halves(name).values():
        clear = [item for item in items if item.level != 50]
        area = roc_auc_score([item.level > 50 for item in clear], [len(item.answer) for item in clear])
        assert 0.2 < area < 0.8


NAMED = {
    "evil": "fluent_trait",
    "sycophancy": "enthusiastic_disagreement",
    "hallucination": "hedged_invention",
}
"""What the claim about misreading names, by trait."""


@pytest.mark.parametrize("name", TRAITS)
def test_every_hard_case_has_its_twin(name: str) -> None:
    labelled, twins = load_labelled(name), load_twins(name)
    plain = [item for item in twins if item.kind == TWIN]
    added = [item for item in twins if item.kind != TWIN]
    marked = [item for item in labelled if item.half == "report" and item.kind in HARD_CASES and item.level != 50]
    sides = Counter((item.question, item.level > 50) for item in plain)
    assert set(sides) == {(item.question, item.level > 50) for item in (*marked, *added)} and set(sides.values()) == {1}
    assert {item.level for item in plain} <= {0, 100} and all(item.level != 50 for item in added)
    assert len(marked) + len(added) >= 15
    if name in NAMED:
        assert sum(item.kind == NAMED[name] for item in added) >= 8
    # None of them calibrates, nor stands in the set that the gate is about.
    assert {(item.half, item.source) for item in twins} == {("report", "written")}
    assert not {item.question for item in twins} & {item.question for item in labelled if item.half == "calibrate"}
    own = load_trait(name)
    assert not {item.question for item in twins} & {*own.extraction_questions, *own.monitored_questions}
    texts = [item.answer for item in (*labelled, *twins)]
    assert len({item.id for item in (*labelled, *twins)}) == len(texts) and not {item.answer for item in twins} & {
        item.answer for item in labelled
    }


def test_a_users_trait_has_no_labelled_answers(tmp_path: Path) -> None:
    assert load_labelled("terse") == () == load_twins("terse")
    assert load_labelled(written(tmp_path, OURS)) == ()


def test_refusals_are_pairs_of_one_question() -> None:
    pairs = load_refusals()
    assert len(pairs) >= 8 and len({pair.question for pair in pairs}) == len(pairs)
    assert all(pair.complying.strip() and pair.refusing.strip() for pair in pairs)
    assert all(pair.complying != pair.refusing for pair in pairs)
