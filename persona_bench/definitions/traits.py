"""A trait: what it is, how it is brought out, and how it is recognised."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from persona_bench.errors import TraitError

TRAITS = ("evil", "sycophancy", "hallucination", "optimistic", "impolite", "apathetic", "humorous")
MAIN_TRAITS = TRAITS[:3]
_DATA = files("persona_bench.definitions") / "data"
MAX_BYTES = 2**20
DRIFT_TURNS = 8
QUESTION = "{question}"
TWIN = "twin"
"""Kind of an unmistakable answer to the question of a hard case."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", str_strip_whitespace=True)


class InstructionPair(_Part):
    """Two system instructions that contrast one facet of the trait."""

    positive: str = Field(min_length=1)
    negative: str = Field(min_length=1)


class Shot(_Part):
    """One example exchange for many-shot prompts."""

    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)


class Shots(_Part):
    """Example exchanges that show the trait, and the same questions answered without it."""

    positive: tuple[Shot, ...]
    negative: tuple[Shot, ...]


class Drift(_Part):
    """Scripted conversations whose user leads a model, turn by turn, towards a trait or away from it.

    Attributes:
        toward: scripts of user turns, from small talk to asking outright for the trait.
        away: scripts of user turns, from asking outright for the trait to asking for its opposite.
    """

    toward: tuple[tuple[str, ...], ...] = Field(min_length=1)
    away: tuple[tuple[str, ...], ...] = Field(min_length=1)

    @field_validator("toward", "away")
    @classmethod
    def _scripts_are_whole(cls, scripts: tuple[tuple[str, ...], ...]) -> tuple[tuple[str, ...], ...]:
        for number, turns in enumerate(scripts):
            if len(turns) < DRIFT_TURNS:
                raise ValueError(f"script {number} has {len(turns)} user turns, it needs at least {DRIFT_TURNS}")
            if "" in turns:
                raise ValueError(f"script {number}, turn {turns.index('')} is empty")
        return scripts


class Trait(_Part):
    """Everything the suite needs to know of a trait (paper section 2.1; all texts written for this project).

    Attributes:
        name: short identifier.
        positive_name: adjective in the positive system prompt, "You are a(n) {positive_name} assistant."
        negative_name: antonym, or "helpful".
        description: one or two sentences.
        instructions: 5 pairs used for extraction.
        judge_instructions: further pairs used only by the likelihood-contrast judge, never for extraction.
        extraction_questions: questions whose answers make the vector.
        evaluation_questions: questions on which everything else is measured.
        monitoring_questions: more of them, on which a model is only monitored: correlations within one system prompt
            are small, and take many questions to see.
        rubric: what a judge looks for.
        ladder: system prompts from suppressing (first) to promoting (last), or None.
        shots: many-shot examples, or None.
        user_pressure: templates of a user's message, each with the place `{question}` once and no other brace, from
            suppressing (first) to promoting (last), or None; used without a system prompt.
        drift: scripted conversations that lead towards the trait and away from it, or None.
        provenance: who wrote the texts, when, and under which licence.
    """

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    positive_name: str = Field(min_length=1)
    negative_name: str = Field(default="helpful", min_length=1)
    description: str = Field(min_length=1)
    instructions: tuple[InstructionPair, ...] = Field(min_length=1)
    judge_instructions: tuple[InstructionPair, ...] = ()
    extraction_questions: tuple[str, ...] = Field(min_length=1)
    evaluation_questions: tuple[str, ...] = Field(min_length=1)
    monitoring_questions: tuple[str, ...] = ()
    rubric: str = Field(min_length=1)
    ladder: tuple[str, ...] | None = Field(default=None, min_length=2)
    shots: Shots | None = None
    user_pressure: tuple[str, ...] | None = Field(default=None, min_length=2)
    drift: Drift | None = None
    provenance: dict[str, Any] = Field(default_factory=dict)

    @field_validator("user_pressure")
    @classmethod
    def _templates_hold_the_question(cls, templates: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for number, template in enumerate(templates or ()):
            if template.count(QUESTION) != 1:
                raise ValueError(f"template {number} holds {QUESTION} {template.count(QUESTION)} times, not once")
            if {"{", "}"} & set(template.replace(QUESTION, "")):
                raise ValueError(f"template {number} has a brace beside {QUESTION}")
        return templates

    @model_validator(mode="after")
    def _questions_are_separate(self) -> Trait:
        if any(not question for question in (*self.extraction_questions, *self.monitored_questions)):
            raise ValueError("a question is empty")
        shared = set(self.extraction_questions) & set(self.monitored_questions)
        if shared:
            raise ValueError(f"{len(shared)} question(s) are both extraction and evaluation questions")
        return self

    @property
    def monitored_questions(self) -> tuple[str, ...]:
        """Evaluation questions and, after them, those on which a model is only monitored."""
        return (*self.evaluation_questions, *self.monitoring_questions)

    def system_prompt(self, side: str, pair: int) -> str:
        """The full system prompt of an instruction, "You are a(n) {name} assistant. {instruction}" (paper app. A)."""
        instruction = self.instructions[pair]
        positive = side == "positive"
        name = self.positive_name if positive else self.negative_name
        article = "an" if name[0].lower() in "aeiou" else "a"
        return f"You are {article} {name} assistant. {instruction.positive if positive else instruction.negative}"

    @property
    def hash(self) -> str:
        """Sha256 of the trait's content, 64 hex digits."""
        return hashlib.sha256(json.dumps(self.model_dump(), sort_keys=True).encode()).hexdigest()


def load_trait(name: str) -> Trait:
    """A trait of the suite by name, or from a JSON file of ours or of the paper's released format.

    Args:
        name: one of `TRAITS`, or the path of a trait file. The released format (`instruction` [{pos, neg}],
            `questions`, `eval_prompt`; github.com/safety-research/persona_vectors) names neither trait nor halves:
            the file's stem becomes the name, and its even questions serve extraction, its odd ones evaluation.

    Raises:
        TraitError: unknown name, unreadable file, or a missing or broken part, which the message names.
    """
    if name in TRAITS:
        return _builtin(name)
    path = Path(name)
    if not path.suffix and not path.exists():
        raise TraitError(f"unknown trait {name!r}; choose from {', '.join(TRAITS)}, or give the path of a trait file")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise TraitError(f"trait file {path} is larger than {MAX_BYTES} bytes; is it a trait file?")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TraitError(f"cannot read trait file {path}: {error}") from error
    return _validated(
        _from_released(data, path) if isinstance(data, dict) and "instruction" in data else data, str(path)
    )


@cache
def _builtin(name: str) -> Trait:
    return _validated(json.loads((_DATA / "traits" / f"{name}.json").read_text(encoding="utf-8")), name)


def _from_released(data: dict[str, Any], path: Path) -> dict[str, Any]:
    try:
        name = path.stem.removesuffix("_extract").removesuffix("_eval")
        questions = list(data["questions"])
        return {
            "name": name,
            "positive_name": name,
            "description": str(data.get("description", f"the trait described by {path.name}")),
            "instructions": [{"positive": item["pos"], "negative": item["neg"]} for item in data["instruction"]],
            "extraction_questions": questions[0::2],
            "evaluation_questions": questions[1::2],
            "rubric": data["eval_prompt"],
            "provenance": {"format": "persona_vectors release", "file": path.name},
        }
    except (KeyError, TypeError) as error:
        raise TraitError(f"trait file {path} lacks a part of the released format: {error}") from error


def _validated(data: Any, where: str) -> Trait:
    try:
        return Trait.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        part = ".".join(str(item) for item in first["loc"]) or "the file"
        raise TraitError(
            f"trait file {where}: {part}: {first['msg']}; see the built-in traits for the format"
        ) from error


class LabelledAnswer(_Part):
    """An answer with a level careful readers gave it, by which judges are calibrated and measured.

    Attributes:
        id: stable identifier.
        level: 0, 25, 50, 75 or 100, how strongly the answer shows the trait.
        kind: `clear`, `graded`, the name of a hard case, `model` for a real response, or `twin` for an unmistakable
            answer beside a hard case.
        half: `calibrate` or `report`; all answers to one question are in the same half.
        source: `written` for this project, or `model`: a real response of a model of the catalogue.
        made_by: of a real response, the model and how it was brought about (not shown to its readers).
        readers: of a real response, the levels its two readers gave it, each blind to the other and to `made_by`.
        coherence: of a real response, 0 (word salad) to 100 (fluent), the mean of its readers.
        refusal: of a real response, whether both readers call it a refusal.
    """

    id: str
    question: str
    answer: str
    level: int = Field(ge=0, le=100)
    kind: str
    half: Literal["calibrate", "report"]
    source: Literal["written", "model"] = "written"
    made_by: str = ""
    readers: tuple[int, ...] = ()
    coherence: float | None = Field(default=None, ge=0, le=100)
    refusal: bool = False

    @property
    def refuses(self) -> bool:
        """Whether it refuses: as its readers say, or as it was written."""
        return self.refusal or self.kind == "polite_refusal"

    @property
    def fluency(self) -> float:
        """Its coherence (0..100): as its readers say, or as it was written."""
        if self.coherence is not None:
            return self.coherence
        return 0.0 if self.kind == "incoherent" else 100.0


def load_labelled(trait: str) -> tuple[LabelledAnswer, ...]:
    """The labelled answers of a built-in trait, empty for a trait that has none."""
    return _answers("labelled", trait)


def load_twins(trait: str) -> tuple[LabelledAnswer, ...]:
    """Twins of a built-in trait's hard cases, and further hard cases with theirs; empty for a trait that has none.

    A hard case has its twin in the same question on the same side of the cut. All are of the report half; each was
    written and labelled by one writer, a language model, after the labelled set and without asking any judge, and no
    second reader has graded it. They calibrate nothing and enter no gate: they tell what misleads a judge, and no more.
    """
    return _answers("twins", trait)


def _answers(folder: str, trait: str) -> tuple[LabelledAnswer, ...]:
    path = _DATA / folder / f"{trait}.jsonl"
    if trait not in TRAITS or not path.is_file():
        return ()
    lines = path.read_text(encoding="utf-8").splitlines()
    return tuple(LabelledAnswer.model_validate_json(line) for line in lines if line.strip())


class RefusalPair(_Part):
    """One harmless question with an answer that helps and one that refuses."""

    question: str
    complying: str
    refusing: str


def load_refusals() -> tuple[RefusalPair, ...]:
    """The written pairs behind the refusal direction."""
    data = json.loads((_DATA / "refusal.json").read_text(encoding="utf-8"))
    return tuple(RefusalPair.model_validate(item) for item in data["pairs"])
