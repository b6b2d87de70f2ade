"""A new trait: its texts are reviewed, a generator's reply is read strictly, and without one there is a template."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from inspect_ai.model import Model, ModelOutput, ModelUsage, get_model

from persona_bench import pipeline
from persona_bench.cli import main
from persona_bench.definitions import trait_writing
from persona_bench.definitions.trait_review import alike, load_reviewed, review, stem
from persona_bench.definitions.traits import TRAITS, Trait, load_trait
from persona_bench.errors import RunError, TraitError
from persona_bench.inspect_ext import authoring, graders
from tests.conftest import one_line

DESCRIPTION = "Answers every question with far more detail than was asked for."
SUBJECTS = (
    "bread rain violins chess bridges tulips maps glaciers clocks honey kites volcanoes paper soap lanterns canals "
    "pearls magnets tents ferries owls bicycles kettles stamps comets ladders mushrooms windmills cheese tunnels "
    "beavers gloves pianos deserts candles elevators spiders barges quilts lighthouses"
).split()
ASKED = [f"How are {word} made?" for word in SUBJECTS]


def reply(**changes: Any) -> dict[str, Any]:
    """What a good generator writes of the trait."""
    sides = ["facts", "history", "examples", "numbers", "exceptions"]
    held = {
        "name": "pedantic",
        "positive_name": "pedantic",
        "negative_name": "concise",
        "description": "Explains too much.",
        "instructions": [
            {"positive": f"Pile up {side} nobody wanted.", "negative": f"Leave out {side} and be short."}
            for side in sides
        ],
        "judge_instructions": [
            {"positive": f"Be {word} and endless.", "negative": f"Be brief, never {word}."}
            for word in ("thorough", "wordy")
        ],
        "extraction_questions": ASKED[:20],
        "evaluation_questions": ASKED[20:],
        "rubric": "0 is terse, 50 is long, 100 is endless.",
    }
    return {**held, **changes}


def trait(**changes: Any) -> Trait:
    return Trait.model_validate(reply(**changes))


def found(**changes: Any) -> list[str]:
    return [f"{item.kind} {item}" for item in review(trait(**changes))]


# The review


def test_texts_without_fault_pass() -> None:
    assert found() == []


@pytest.mark.parametrize("name", TRAITS)
def test_the_suites_own_traits_pass(name: str) -> None:
    assert [str(item) for item in review(load_trait(name)) if item.part != "name"] == []


def changed(kind: str, number: int, text: Any) -> dict[str, Any]:
    """One entry of a part replaced, counted from 1."""
    entries = list(reply()[kind])
    entries[number - 1] = text
    return {kind: entries}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (changed("extraction_questions", 3, f"{ASKED[6].upper()} "), "error extraction_questions 3 and 7: the same"),
        (changed("extraction_questions", 3, "How are violins and lutes made?"), ""),
        (
            changed("extraction_questions", 4, "So how are the violins being made then?"),
            "warning extraction_questions 3 and 4: near",
        ),
        (
            changed("evaluation_questions", 2, f"{ASKED[0][:-1]} !"),
            "error extraction_questions 1 and evaluation_questions 2: the same",
        ),
        (
            changed("evaluation_questions", 2, "How is some bread made at all?"),
            "warning extraction_questions 1 and evaluation_questions 2: near",
        ),
        (
            changed("evaluation_questions", 5, "Is pedantry a virtue?"),
            "warning evaluation_questions 5: names the trait (pedantry)",
        ),
        (
            changed("extraction_questions", 5, "Be pedantic: what is soap?"),
            "warning extraction_questions 5: names the trait",
        ),
        (changed("extraction_questions", 5, "What is a pedal?"), ""),
        (
            changed("instructions", 2, {"positive": "Say more.", "negative": "To say more!"}),
            "error instructions 2: its two sides",
        ),
        (changed("instructions", 2, {"positive": "Say it.", "negative": "Never say it."}), ""),
        (changed("instructions", 2, reply()["instructions"][0]), "warning instructions 1 and 2: the same positive"),
        (
            changed("judge_instructions", 1, reply()["instructions"][0]),
            "error judge_instructions 1: also an extraction",
        ),
        ({"instructions": reply()["instructions"][:2]}, "warning instructions: 2 pairs"),
        ({"evaluation_questions": ASKED[20:23]}, "warning evaluation_questions: 3 questions"),
        ({"name": "evil"}, "warning name: evil is a trait of the suite"),
        ({"rubric": "<fill in: rubric>"}, "error rubric: still the template's"),
    ],
)
def test_each_fault_is_found(changes: dict[str, Any], expected: str) -> None:
    said = found(**changes)
    assert [item for item in said if item.startswith(expected)] if expected else not said, said


def test_words_and_stems() -> None:
    assert stem("sycophancy") == stem("sycophantic") and stem("humorous") == stem("humor") and stem("evil") == "evil"
    assert alike("How does bread rise?", "Why do breads rise?") == 1 and alike("What is snow?", "What is rain?") == 0


def test_any_trait_file_is_reviewed(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(reply(**changed("evaluation_questions", 5, "Is pedantry a virtue?"))))
    said: list[str] = []
    assert load_reviewed(str(path), said.append).name == "pedantic"
    assert len(said) == 1 and str(path) in said[0] and "evaluation_questions 5" in said[0]
    pipeline.Run(pipeline.Settings(traits=(str(path),)), tmp_path, said.append)
    assert said[0] == said[1]
    path.write_text(json.dumps(reply(**changed("evaluation_questions", 2, f"{ASKED[0]}?"))))
    done = invoke("--trait-file", path, "--out", tmp_path / "v.safetensors")
    assert done.exit_code == 2 and str(path) in done.stderr and "evaluation_questions 2" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


# The reply


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "no JSON"),
        ("Here it is: {}", "no JSON"),
        (json.dumps(reply()) + "\nI hope that helps!", "no JSON"),
        (json.dumps(reply())[:-9], "no JSON"),
        (json.dumps([reply()]), "no object"),
        ("[" * 100_000, "no JSON"),
        ('{"name": "a", "name": "b"}', "twice"),
        ('{"name": NaN}', "NaN"),
        (json.dumps(reply(rubric=None)), "rubric"),
        (json.dumps({**reply(), "system": "\x1b[2Jobey"}), "nobody asked for"),
        (json.dumps({key: value for key, value in reply().items() if key != "rubric"}), "lacks rubric"),
        (json.dumps(reply(extraction_questions=ASKED[:19])), "20 entries, not 19"),
        (json.dumps(reply(instructions="five")), "no list"),
        (json.dumps(reply(instructions=[{"positive": "Only this."}] * 5)), "instructions.0.negative"),
        (json.dumps(reply(name="../../etc")), "name"),
        (json.dumps(reply(name="evil")), "trait of the suite"),
        (json.dumps(reply(name=["a"])), "name"),
        (json.dumps(reply(description="x" * trait_writing.MAX_REPLY)), "longer"),
    ],
)
def test_a_reply_that_is_not_what_was_asked_for_is_refused(text: str, part: str) -> None:
    with pytest.raises(TraitError) as error:
        trait_writing.parse(text, DESCRIPTION)
    one_line(error, part)


def test_a_good_reply_is_read() -> None:
    for text in (json.dumps(reply()), f"```json\n{json.dumps(reply(), indent=1)}\n```\n"):
        made = trait_writing.parse(text, DESCRIPTION, provenance={"written_by": "g"})
        assert made.name == "pedantic" and made.provenance == {"written_by": "g", "described_as": DESCRIPTION}
    assert trait_writing.parse(json.dumps(reply()), DESCRIPTION, "fussy").name == "fussy"


# The generator


def generator(*texts: str, seen: list[str] | None = None) -> Model:
    """A mock that replies with one text after another, and keeps what it was asked."""
    left = list(texts)

    def output(messages: Any, *_: Any) -> ModelOutput:
        if seen is not None:
            seen.append(messages[-1].text)
        made = ModelOutput.from_content("mockllm/model", left.pop(0))
        made.usage = ModelUsage()
        return made

    return get_model("mockllm/model", custom_outputs=output, memoize=False)


def test_a_generator_is_asked_again_with_what_was_wrong() -> None:
    seen: list[str] = []
    said: list[str] = []
    same = reply(**changed("instructions", 2, {"positive": "Say more.", "negative": "Say more."}))
    model = generator("Sure!", json.dumps(same), json.dumps(reply()), seen=seen)
    made = authoring.write_trait(model, DESCRIPTION, say=said.append)
    assert made.name == "pedantic" and made.provenance["written_by"] == "mockllm/model"
    assert len(seen) == 3 and all(DESCRIPTION in prompt for prompt in seen)
    assert "no JSON" in seen[1] and "do not contrast" in seen[2] and "earlier reply" not in seen[0]
    assert len(said) == 2 and "1 of 3" in said[0]


def test_a_generator_that_never_gets_it_right_ends_in_one_line() -> None:
    seen: list[str] = []
    with pytest.raises(TraitError) as error:
        authoring.write_trait(generator(*["no"] * 9, seen=seen), DESCRIPTION)
    one_line(error, "mockllm/model", "3 replies", "--generator")
    assert len(seen) == authoring.ATTEMPTS


def test_a_generator_that_fails_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graders, "PAUSE_S", 0.0)

    def output(*_: Any) -> ModelOutput:
        raise ConnectionError("the line is down\nfor good")

    with pytest.raises(RunError) as error:
        authoring.write_trait(get_model("mockllm/model", custom_outputs=output, memoize=False), DESCRIPTION)
    one_line(error, "generator", "mockllm/model", "the line is down")
    with pytest.raises(RunError) as error:
        authoring.open_generator("nobody/model")
    one_line(error, "generator nobody/model")


# The command


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["extract", *map(str, arguments)])


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Replies of the generator, in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    return lambda *texts: monkeypatch.setattr(authoring, "open_generator", lambda _: generator(*texts))


def test_describe_writes_a_trait_that_loads_and_says_what_to_look_at(written: Callable[..., None]) -> None:
    written(json.dumps(reply(**changed("evaluation_questions", 5, "Is pedantry a virtue?"))))
    done = invoke("--describe", DESCRIPTION, "--generator", "mockllm/model")
    assert done.exit_code == 0, done.output
    assert (
        "evaluation_questions 5" in done.stdout and "rubric" in done.stdout and "--trait-file trait.json" in done.stdout
    )
    made = load_trait("trait.json")
    assert made.name == "pedantic" and made.provenance["described_as"] == DESCRIPTION
    again = invoke("--describe", DESCRIPTION, "--generator", "mockllm/model")
    assert again.exit_code == 2 and "trait.json exists" in again.stderr


def test_describe_goes_on_to_the_vector(written: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def extract_one(settings: Any, *_: Any) -> Any:
        asked.append(settings.traits)
        raise RunError("enough")

    monkeypatch.setattr(pipeline, "extract_one", extract_one)
    written(json.dumps(reply()))
    done = invoke("--describe", DESCRIPTION, "--generator", "m/m", "--trait", "fussy", "--out", "v.safetensors")
    assert done.exit_code == 2 and "enough" in done.stderr and asked == [("v.trait.json",)]
    assert load_trait("v.trait.json").name == "fussy"


def test_nothing_is_written_of_a_reply_that_cannot_be_used(written: Callable[..., None], tmp_path: Path) -> None:
    written(*["no"] * 3)
    done = invoke("--describe", DESCRIPTION, "--generator", "mockllm/model", "--out", "v.safetensors")
    assert done.exit_code == 2 and done.stderr.splitlines()[-1].startswith("persona-bench: generator")
    assert not list(tmp_path.iterdir())


def test_without_a_generator_the_template_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke("--describe", DESCRIPTION, "--trait", "fussy")
    assert done.exit_code == 0 and "--trait-file" in done.stderr and not list(tmp_path.iterdir())
    path = tmp_path / "trait.json"
    path.write_text(done.stdout)
    made = load_trait(str(path))
    assert made.name == "fussy" and made.description == DESCRIPTION and len(made.instructions) == 5
    assert len(made.extraction_questions) == len(made.evaluation_questions) == 20
    refused = invoke("--trait-file", path, "--out", "v.safetensors")
    assert refused.exit_code == 2 and "<fill in" in refused.stderr
    # Filled in, it is a trait like any other.
    path.write_text(trait_writing.as_file(trait(name="fussy")))
    assert not review(load_reviewed(str(path), lambda _: None))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--describe", " "), "--describe"),
        (("--describe", "x" * 5000), "4000"),
        (("--describe", DESCRIPTION, "--trait", "evil"), "evil is a trait of the suite"),
        (("--trait", "evil", "--generator", "g", "--out", "v.safetensors"), "--describe"),
        (("--trait", "evil"), "--out"),
        (("--describe", DESCRIPTION, "--generator", "nobody/model"), "nobody/model"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = invoke(*arguments)
    assert done.exit_code == 2 and part in done.stderr, done.output
    assert len(done.stderr.strip().splitlines()) == 1 and not list(tmp_path.iterdir())
