"""Responses under system prompts that may evade a vector, with the projections that a monitor sees before them."""

from __future__ import annotations

from collections.abc import Iterator

from inspect_ai.dataset import Sample

from persona_bench.definitions.evasion import system_prompts
from persona_bench.definitions.presets import LimitsPreset
from persona_bench.definitions.traits import Trait
from persona_bench.inspect_ext.cells import VectorFile, half
from persona_bench.inspect_ext.conditions import as_messages
from persona_bench.inspect_ext.watching import watch

RANDOM = "random:0"


def evasion_samples(
    trait: Trait, sizes: LimitsPreset, questions: int, file: VectorFile, layer: int
) -> Iterator[Sample]:
    """A sample a condition and evaluation question.

    Args:
        trait: that is to be shown.
        sizes: how many system prompts of each kind.
        questions: how many of the evaluation questions; even ones choose the prompt, odd ones report.
        file: the trait's vector.
        layer: 1-based, where it watches.
    """
    extra = watch(file, "", (layer,), 1, per_token=False).model_dump(mode="json", exclude_defaults=True)
    for way, number, system in system_prompts(trait, sizes):
        for question_id, question in enumerate(trait.evaluation_questions[:questions]):
            turns = [("system", system), ("user", question)] if system else [("user", question)]
            yield Sample(
                id=f"{way}{number}-q{question_id}",
                input=as_messages(turns),
                metadata={
                    "trait": trait.name,
                    "way": way,
                    "number": number,
                    "question_id": question_id,
                    "half": half(question_id),
                    "layer": layer,
                    "extra": extra,
                },
            )
