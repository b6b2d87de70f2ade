"""Other sets of questions for a trait: what another author might have asked to make its vector."""

from __future__ import annotations

import random

from persona_bench.definitions.presets import MethodSizes
from persona_bench.definitions.traits import Trait


def question_pool(trait: Trait) -> tuple[str, ...]:
    """What sets are drawn from: extraction questions and those that are only monitored, never evaluation questions."""
    return (*trait.extraction_questions, *trait.monitoring_questions)


def question_sets(trait: Trait, sizes: MethodSizes, seed: int) -> tuple[frozenset[int], ...]:
    """The questions of each set, as places in the pool; no question is in two sets unless the pool is too small.

    A pool that is too small is gone through again and again, so that any two sets share as few as can be, and no set
    holds more than half of it.

    Args:
        trait: whose questions.
        sizes: of the preset.
        seed: of the drawing.
    """
    n = len(question_pool(trait))
    size = min(sizes.set_questions, max(n // 2, 1))
    drawn = random.Random(seed).sample(range(n), n)
    return tuple(frozenset(drawn[(number * size + place) % n] for place in range(size)) for number in range(sizes.sets))
