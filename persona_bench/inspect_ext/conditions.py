"""The conversations of monitoring: what is said to a model before each response that is projected and judged."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageSystem, ChatMessageUser

from persona_bench.definitions.traits import QUESTION, Trait
from persona_bench.errors import RunError, TraitError
from persona_bench.inspect_ext.cells import half

CONDITIONS = ("ladder", "many_shot", "user_pressure", "drift")
SHOTS = (0, 5, 10, 15, 20)
"""Example exchanges before the question (the paper, section on monitoring prompt-induced shifts)."""
_MESSAGES = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}


def as_messages(turns: Iterable[tuple[str, str]]) -> list[ChatMessage]:
    """(role, text) as Inspect's messages."""
    return [_MESSAGES[role](content=text) for role, text in turns]


@dataclass(frozen=True)
class Conversation:
    """One conversation up to its first response.

    Attributes:
        id: short and stable, part of sample ids.
        messages: (role, text) before the first response.
        turns: what the user says after each further response.
        question_id: evaluation question, or number of the script; what is resampled.
        rung: how strongly the condition pushes, from 0; the number of shots, or 0 in a script, where turns count.
        side: of a script, toward or away; else "".
    """

    id: str
    messages: tuple[tuple[str, str], ...]
    question_id: int
    rung: int = 0
    turns: tuple[str, ...] = ()
    side: str = ""

    @property
    def half(self) -> str:
        """Even questions and scripts choose thresholds, odd ones report."""
        return half(self.question_id)


def conversations(condition: str, trait: Trait, questions: int) -> list[Conversation]:
    """The conversations of a condition.

    - `ladder`: a system prompt, from suppressing (0) to promoting, before each question.
    - `many_shot`: example exchanges that show the trait before each question, none to 20.
    - `user_pressure`: the user's own message asks for the trait or against it, with no system prompt.
    - `drift`: scripts of at least eight user turns that push towards the trait or away from it.

    Args:
        condition: one of `CONDITIONS`.
        trait: whose texts are used.
        questions: how many of the monitored questions; how many scripts of each side.

    Raises:
        RunError: unknown condition.
        TraitError: the trait has no texts for it.
    """
    builders = {"ladder": _ladder, "many_shot": _many_shot, "user_pressure": _user_pressure, "drift": _drift}
    if condition not in builders:
        raise RunError(f"unknown condition {condition!r}; choose from {', '.join(CONDITIONS)}")
    field = part_of(condition)
    if getattr(trait, field) is None:
        raise TraitError(f"trait {trait.name} has no `{field}`, which condition {condition} needs; add it to its file")
    return list(builders[condition](trait, questions))


def part_of(condition: str) -> str:
    """The part of a trait that a condition is made of."""
    return "shots" if condition == "many_shot" else condition


def _ladder(trait: Trait, questions: int) -> Iterator[Conversation]:
    for number, question in enumerate(trait.monitored_questions[:questions]):
        for rung, prompt in enumerate(trait.ladder or ()):
            yield Conversation(f"q{number}-r{rung}", (("system", prompt), ("user", question)), number, rung)


def _many_shot(trait: Trait, questions: int) -> Iterator[Conversation]:
    examples = trait.shots.positive if trait.shots else ()
    for number, question in enumerate(trait.monitored_questions[:questions]):
        for shots in (n for n in SHOTS if n <= len(examples)):
            before = tuple(
                turn for shot in examples[:shots] for turn in (("user", shot.question), ("assistant", shot.answer))
            )
            yield Conversation(f"q{number}-s{shots}", (*before, ("user", question)), number, shots)


def _user_pressure(trait: Trait, questions: int) -> Iterator[Conversation]:
    for number, question in enumerate(trait.monitored_questions[:questions]):
        for rung, template in enumerate(trait.user_pressure or ()):
            yield Conversation(f"q{number}-u{rung}", (("user", template.replace(QUESTION, question)),), number, rung)


def _drift(trait: Trait, questions: int) -> Iterator[Conversation]:
    assert trait.drift is not None
    for side, scripts in (("toward", trait.drift.toward), ("away", trait.drift.away)):
        for number, (first, *turns) in enumerate(scripts[:questions]):
            # Every script is a unit of its own, with as many of each side in either half.
            unit = number if side == "toward" else number + 2 * ((len(trait.drift.toward) + 1) // 2)
            yield Conversation(f"{side}{number}", (("user", first),), unit, 0, tuple(turns), side)
