"""Sizes of what tests the method itself: other descriptions, other responses, and what is steered with them."""

from __future__ import annotations

from dataclasses import dataclass

from persona_bench.definitions.presets import load_preset


@dataclass(frozen=True)
class MethodSizes:
    """Sizes of one preset.

    Attributes:
        questions: extraction questions that are asked under each description.
        rollouts: responses to each, a side.
        steered: which vectors of other descriptions or questions are steered with: `clear` and `vague` (all clear, or
            all vague descriptions together), `description` (each by itself), `questions` (each re-drawn half).
        draws: random subsets of responses, and random splits, for each number.
        random_vectors: random directions beside the other traits' vectors.
    """

    questions: int
    rollouts: int
    steered: tuple[str, ...]
    draws: int
    random_vectors: int


_EVERY = ("clear", "vague", "description", "questions")
METHOD = {
    "quick": MethodSizes(questions=5, rollouts=2, steered=("clear", "vague"), draws=20, random_vectors=16),
    "standard": MethodSizes(questions=20, rollouts=2, steered=_EVERY, draws=50, random_vectors=64),
    "paper": MethodSizes(questions=20, rollouts=10, steered=_EVERY, draws=50, random_vectors=64),
}


def load_method_sizes(preset: str) -> MethodSizes:
    """The sizes under a preset.

    Raises:
        RunError: for an unknown name.
    """
    return METHOD[load_preset(preset).name]
