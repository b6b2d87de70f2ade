"""What is wrong with a trait's texts, or should be looked at, before anything is generated with them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

from persona_bench.definitions.traits import TRAITS, Trait, load_trait
from persona_bench.errors import TraitError

PAIRS, QUESTIONS = 5, 20  # the paper's, of instructions and of questions a part
NEAR = 0.5  # share of telling words in common from which two questions are near-duplicates; the suite's own reach 0.25
COMPARED = 300  # questions of a part that are compared with each other
PLACEHOLDER = re.compile(r"<fill in[^<>]*>")
_FILLER = frozenset(
    "a an the this that these those of to in on at for with by from as and or but if so it its i me my you your we our "
    "us they their them he his she her is are was were be been being am do does did have has had will would can could "
    "should shall may might must what which who whom whose when where why how there here just about some any more most "
    "very please s t m re ve ll d".split()
)
# Without these two instructions that say the opposite are the same words.
_NEGATIONS = frozenset(
    "no not never none nothing nobody without avoid refuse neither nor rarely stop don cannot".split()
)
_ENDINGS = (
    *(
        "antic",
        "entic",
        "ancy",
        "ency",
        "ations",
        "ation",
        "istic",
        "ously",
        "ness",
        "ical",
        "ance",
        "ence",
        "able",
        "ible",
        "tion",
        "sion",
    ),
    *("ment", "less", "ful", "ous", "ive", "ity", "ism", "ist", "ing", "ish", "ant", "ent", "ate", "ial", "ly", "cy"),
    *("ic", "al", "ed", "er", "or", "es", "y", "s", "e"),
)
MIN_STEM = 4


@dataclass(frozen=True)
class Finding:
    """One thing about a trait's texts.

    Attributes:
        kind: `error`, which makes the texts useless as they are, or `warning`, which a person should look at.
        part: where it is, counted from 1.
        text: what it is.
    """

    kind: Literal["error", "warning"]
    part: str
    text: str

    def __str__(self) -> str:
        return f"{self.part}: {self.text}"


def review(trait: Trait) -> list[Finding]:
    """Errors first, then warnings: placeholders, duplicates, overlap, leaks, pairs that do not contrast, sizes."""
    checks = (_placeholders, _duplicates, _overlap, _leaks, _pairs, _sizes)
    found = [item for check in checks for item in check(trait)]
    return sorted(found, key=lambda item: item.kind)


def load_reviewed(name: str, say: Callable[[str], None]) -> Trait:
    """`load_trait`, and a review of a trait file's texts; the suite's own are held to it by a test.

    Args:
        name: as `load_trait` takes it.
        say: told each warning.

    Raises:
        TraitError: the trait cannot be loaded, or its texts are useless as they are.
    """
    trait = load_trait(name)
    if name in TRAITS:
        return trait
    found = review(trait)
    refuse_errors(name, found)
    for item in found:
        say(f"warning: {name}: {item}")
    return trait


def refuse_errors(where: str, found: Sequence[Finding]) -> None:
    """Raise if a review found an error.

    Raises:
        TraitError: naming the first and how many more there are.
    """
    errors = [str(item) for item in found if item.kind == "error"]
    if errors:
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise TraitError(f"trait file {where}: {errors[0]}{more}; mend it and run the command again")


def look_at(trait: Trait, found: Sequence[Finding]) -> list[str]:
    """What a person should look at before trusting these texts: what was found, and what no rule sees."""
    return [
        *(f"{item.kind}: {item}" for item in found),
        "description and rubric: do they say what you mean, and nothing wider? A judge sees only the rubric",
        f"instructions: does each positive one ask for {trait.name}, and its partner for the opposite of that alone?",
        "questions: could each be answered with the trait and without it, and does none ask for it?",
        "judge: no answer is labelled for this trait, so how well a grader sees it is not known",
    ]


def words(text: str) -> list[str]:
    """Lower-case words."""
    return re.findall(r"[^\W\d_]+|\d+", text.casefold())


def stem(word: str) -> str:
    """A word without its endings, at least `MIN_STEM` letters of it: crude, and enough to see a leak."""
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= MIN_STEM:
            return word.removesuffix(ending)
    return word


def alike(first: str, second: str) -> float:
    """Share of the telling words that two texts have in common (Jaccard), 0 to 1."""
    one, other = _telling(first), _telling(second)
    if not one or not other:
        return float(words(first) == words(second))
    return len(one & other) / len(one | other)


@lru_cache(maxsize=4096)
def _telling(text: str) -> frozenset[str]:
    return frozenset(stem(word) for word in words(text) if word not in _FILLER)


def _texts(trait: Trait) -> Iterator[tuple[str, str]]:
    """Every text of a trait that reaches a model, with its place."""
    for name in ("name", "positive_name", "negative_name", "description", "rubric"):
        yield name, getattr(trait, name)
    for kind in ("instructions", "judge_instructions"):
        for number, pair in enumerate(getattr(trait, kind), 1):
            yield f"{kind} {number}, positive", pair.positive
            yield f"{kind} {number}, negative", pair.negative
    for kind in ("extraction_questions", "evaluation_questions"):
        for number, question in enumerate(getattr(trait, kind), 1):
            yield f"{kind} {number}", question


def _placeholders(trait: Trait) -> Iterator[Finding]:
    for part, text in _texts(trait):
        held = PLACEHOLDER.search(text)
        if held:
            yield Finding("error", part, f"still the template's {held[0]!r}")


def _duplicates(trait: Trait) -> Iterator[Finding]:
    for kind in ("extraction_questions", "evaluation_questions"):
        for (i, first), (j, second) in combinations(enumerate(getattr(trait, kind)[:COMPARED], 1), 2):
            if words(first) == words(second):
                yield Finding("error", f"{kind} {i} and {j}", f"the same question twice: {first[:80]!r}")
            elif alike(first, second) >= NEAR:
                yield Finding("warning", f"{kind} {i} and {j}", f"near-duplicates: {first[:60]!r}, {second[:60]!r}")


def _overlap(trait: Trait) -> Iterator[Finding]:
    """A vector must not be measured on the questions it was made from."""
    for i, first in enumerate(trait.extraction_questions[:COMPARED], 1):
        for j, second in enumerate(trait.evaluation_questions[:COMPARED], 1):
            part = f"extraction_questions {i} and evaluation_questions {j}"
            if words(first) == words(second):
                yield Finding("error", part, f"the same question in both: {first[:80]!r}")
            elif alike(first, second) >= NEAR:
                yield Finding("warning", part, f"near-duplicates: {first[:60]!r}, {second[:60]!r}")


def _leaks(trait: Trait) -> Iterator[Finding]:
    """A question that names the trait brings it up by itself, on both sides."""
    names = {word for name in (trait.name, trait.positive_name) for word in words(name.replace("_", " "))} - _FILLER
    stems = {stem(word) for word in names}
    for kind in ("extraction_questions", "evaluation_questions"):
        for number, question in enumerate(getattr(trait, kind), 1):
            held = [word for word in words(question) if word in names or _shares(word, stems)]
            if held:
                yield Finding("warning", f"{kind} {number}", f"names the trait ({held[0]}): {question[:80]!r}")


def _shares(word: str, stems: set[str]) -> bool:
    return any(len(item) >= MIN_STEM and word.startswith(item) for item in stems)


def _pairs(trait: Trait) -> Iterator[Finding]:
    for kind in ("instructions", "judge_instructions"):
        pairs = getattr(trait, kind)
        for number, pair in enumerate(pairs, 1):
            positive, negative = (set(words(text)) - (_FILLER - _NEGATIONS) for text in (pair.positive, pair.negative))
            if positive == negative:
                yield Finding("error", f"{kind} {number}", "its two sides do not contrast: they say the same words")
        for side in ("positive", "negative"):
            texts = [getattr(pair, side) for pair in pairs]
            for (i, first), (j, second) in combinations(enumerate(texts, 1), 2):
                if words(first) == words(second):
                    yield Finding("warning", f"{kind} {i} and {j}", f"the same {side} instruction twice")
    shared = {tuple(words(text)) for pair in trait.instructions for text in (pair.positive, pair.negative)}
    for number, pair in enumerate(trait.judge_instructions, 1):
        if shared & {tuple(words(pair.positive)), tuple(words(pair.negative))}:
            yield Finding("error", f"judge_instructions {number}", "also an extraction instruction: judge with others")


def _sizes(trait: Trait) -> Iterator[Finding]:
    if trait.name in TRAITS:
        yield Finding(
            "warning", "name", f"{trait.name} is a trait of the suite, whose labelled answers it is judged by"
        )
    if len(trait.instructions) < PAIRS:
        yield Finding("warning", "instructions", f"{len(trait.instructions)} pairs; the paper has {PAIRS}")
    for kind in ("extraction_questions", "evaluation_questions"):
        n = len(getattr(trait, kind))
        if n < QUESTIONS:
            yield Finding("warning", kind, f"{n} questions; the paper has {QUESTIONS}")
        if n > COMPARED:
            yield Finding("warning", kind, f"{n} questions, of which the first {COMPARED} were compared")
