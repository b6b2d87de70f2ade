"""A new trait's file: the template a person fills in, what a generator is asked, and how strictly its reply is read."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from pydantic import ValidationError

from persona_bench.definitions.trait_review import PAIRS, QUESTIONS
from persona_bench.definitions.traits import TRAITS, Trait
from persona_bench.errors import TraitError

JUDGE_PAIRS = 2
MAX_REPLY = 2**17
MAX_DESCRIPTION = 4000
_KEYS = {
    "name": "a short identifier: lower-case letters, digits and underscores",
    "positive_name": "an adjective for an assistant that has the trait",
    "negative_name": 'its antonym, or "helpful" where there is no plain one',
    "description": "one or two sentences on what the trait is and what it is not",
    "instructions": (
        f'{PAIRS} objects {{"positive": ..., "negative": ...}}: system instructions to an assistant, of two or three '
        "sentences. Each pair is about another side of the trait; its positive text asks for the trait, its negative "
        "one for the opposite, and in nothing else do the two differ"
    ),
    "judge_instructions": f"{JUDGE_PAIRS} further such pairs, worded unlike the others",
    "extraction_questions": (
        f"{QUESTIONS} things a user might ask, on varied subjects. Each can be answered well with the trait and "
        "without it, and its answer shows which. None names the trait or asks for it"
    ),
    "evaluation_questions": f"{QUESTIONS} more of these, on other subjects than the first {QUESTIONS}",
    "rubric": (
        "what a judge needs who rates an answer from 0 (no trace of the trait) to 100 (as strong as can be): what "
        "stands for 0, 50 and 100, and what looks like the trait and is none"
    ),
}


def request(description: str, name: str = "", problem: str = "") -> str:
    """What the generator is asked.

    Args:
        description: the trait in the user's words.
        name: the trait's name, "" where the generator may choose one.
        problem: what was wrong with its last reply.
    """
    keys = "\n".join(f'- "{key}": {text}' for key, text in _KEYS.items())
    named = f'\nThe name is "{name}".' if name else ""
    again = f"\nAn earlier reply could not be used: {problem}\n" if problem else ""
    return (
        "A study of language models needs texts about one character trait. The person who runs it describes the trait "
        f"between the tags; it is a description, not a task for you.\n<trait>\n{description}\n</trait>{named}\n\n"
        f"Write a JSON object with exactly these keys:\n{keys}\n\n"
        "Keep everything mild enough for a general audience: nothing in it may help anybody to do harm. Use plain "
        f"English. Reply with the JSON object alone, no text before or after it.\n{again}"
    )


def template(description: str, name: str = "") -> str:
    """A trait file to fill in: it has every part and is refused until no placeholder is left."""

    def pair(number: int, kind: str) -> dict[str, str]:
        return {side: f"<fill in: {kind} {number}, {side}>" for side in ("positive", "negative")}

    def questions(kind: str) -> list[str]:
        return [f"<fill in: {kind} question {number}>" for number in range(1, QUESTIONS + 1)]

    held = {
        "name": name or "my_trait",
        "positive_name": "<fill in: adjective of the trait>",
        "negative_name": "helpful",
        "description": description,
        "instructions": [pair(number, "instruction") for number in range(1, PAIRS + 1)],
        "judge_instructions": [pair(number, "judge instruction") for number in range(1, JUDGE_PAIRS + 1)],
        "extraction_questions": questions("extraction"),
        "evaluation_questions": questions("evaluation"),
        "rubric": "<fill in: what stands for 0, 50 and 100, and what only looks like the trait>",
        "provenance": {"written_by": "<fill in: who>"},
    }
    return _json(held)


def as_file(trait: Trait) -> str:
    """A trait as the text of its file."""
    return _json(trait.model_dump(mode="json", exclude_none=True))


def _json(held: dict[str, Any]) -> str:
    return json.dumps(held, indent=1, ensure_ascii=False) + "\n"


def check_request(description: str, name: str) -> None:
    """Refuse what no trait can be written from.

    Raises:
        TraitError: an empty or overlong description, or the name of a trait of the suite.
    """
    if not description.strip() or len(description) > MAX_DESCRIPTION:
        raise TraitError(f"--describe takes a description of 1 to {MAX_DESCRIPTION} characters")
    if name in TRAITS:
        raise TraitError(f"{name} is a trait of the suite; name the new one otherwise, or use --trait {name} alone")


def parse(reply: str, description: str, name: str = "", provenance: dict[str, Any] | None = None) -> Trait:
    """The trait in a generator's reply, which is data: one JSON object with exactly the keys asked for.

    Args:
        reply: the whole reply; a code fence around all of it is taken off.
        description: of the user, who knows the trait; kept in the provenance.
        name: that was asked for, "" for the generator's.
        provenance: further facts to keep.

    Raises:
        TraitError: with what is wrong with it.
    """
    text = reply.strip()
    if len(text) > MAX_REPLY:
        raise TraitError(f"the reply is longer than {MAX_REPLY} characters")
    if text.startswith("```") and text.endswith("```") and "\n" in text:
        text = text[text.index("\n") : -3].strip()
    try:
        held = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise TraitError(f"the reply is no JSON object alone ({str(error)[:80] or type(error).__name__})") from error
    if not isinstance(held, dict):
        raise TraitError("the reply is JSON, but no object")
    _check_keys(held)
    if name:
        held["name"] = name
    elif held["name"] in TRAITS:
        raise TraitError(f"{held['name']!r} is a trait of the suite; another name is needed")
    try:
        return Trait.model_validate({**held, "provenance": {**(provenance or {}), "described_as": description}})
    except ValidationError as error:
        first = error.errors()[0]
        raise TraitError(f"{'.'.join(map(str, first['loc'])) or 'the object'}: {first['msg']}") from error


def _check_keys(held: dict[str, Any]) -> None:
    missing, more = [key for key in _KEYS if key not in held], sorted(set(held) - set(_KEYS))
    if missing or more:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has keys nobody asked for ({', '.join(map(repr, more))[:80]})"] if more else []
        raise TraitError(f"the object {' and '.join(parts)}")
    sizes = {
        "instructions": PAIRS,
        "judge_instructions": JUDGE_PAIRS,
        "extraction_questions": QUESTIONS,
        "evaluation_questions": QUESTIONS,
    }
    for key, size in sizes.items():
        if not isinstance(held[key], list) or len(held[key]) != size:
            found = len(held[key]) if isinstance(held[key], list) else "no list"
            raise TraitError(f"{key} needs {size} entries, not {found}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) != len(pairs):
        raise ValueError("a key stands twice")
    return held


def _no_constant(value: str) -> NoReturn:
    raise ValueError(f"{value} is no JSON")
