"""What a vector does that random directions of the same norm do not, measured without a judge.

Two effects, each with the same effect of random directions beside it, on texts that no vector of the suite is made
from:

- `reading_effects`: how far the projection of the last prompt token on the direction moves from instructions against
  a trait to instructions for it. Judged monitoring rests on that movement.
- `writing_effects`: how steering moves the model's own likelihood from answers that lack the trait to answers that
  show it, to first order; no text has to be generated or judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from persona_bench.definitions.traits import LabelledAnswer, Trait
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.engine import Engine, Reading, Row
from persona_bench.models.gradients import likelihood_gradients
from persona_bench.vectors.vector import PersonaVector

CLEAR = (25, 75)
"""Written answers at most, and at least, so strong in the trait are told apart by their likelihood."""
ANSWER_TOKENS = 32
"""Of each answer so many tokens are scored: the trait shows early, and long answers cost time."""


@dataclass(frozen=True, eq=False)
class Effects:
    """One effect by question, of a vector and of random directions of the same norm.

    Attributes:
        questions: what each row was measured on.
        persona: `(n_questions,)`.
        random: `(n_questions, n_random)`.
    """

    questions: tuple[str, ...]
    persona: np.ndarray
    random: np.ndarray


def reading_effects(
    engine: Engine, vector: PersonaVector, trait: Trait, layer: int, *, questions: int, random_vectors: int
) -> Effects:
    """Projection of the last prompt token under instructions for the trait minus under those against it.

    In shares of the mean residual norm. Instructions are those of the likelihood judge, from which no vector is made
    (those of extraction where a trait has no others), without the sentence that names the trait; questions are
    evaluation questions. One pass a prompt serves all directions, so many random ones cost nothing.

    Args:
        engine: the model.
        vector: which fits it.
        trait: whose instructions are used.
        layer: 1-based.
        questions: how many evaluation questions.
        random_vectors: how many random directions.
    """
    asked = trait.evaluation_questions[:questions]
    pairs = trait.judge_instructions or trait.instructions
    rows = []
    for question in asked:
        for text in (text for pair in pairs for text in (pair.positive, pair.negative)):
            messages = [{"role": "system", "content": text}, {"role": "user", "content": question}]
            prompt = prompt_ids(engine.loaded.tokenizer, messages)
            rows.append(Row(prompt, reading=Reading((layer,), ((len(prompt) - 1, len(prompt)),))))
    hidden = np.stack([result.read[0, 0] for result in engine.run(rows) if result.read is not None])
    hidden = hidden.reshape(len(asked), len(pairs), 2, -1).astype(np.float64)
    moved = (hidden[:, :, 0] - hidden[:, :, 1]).mean(axis=1) / float(vector.residual_norms[layer])
    effects = moved @ _units(vector, layer, random_vectors).T
    return Effects(asked, effects[:, 0], effects[:, 1:])


def writing_effects(
    engine: Engine,
    vector: PersonaVector,
    answers: Sequence[LabelledAnswer],
    layer: int,
    *,
    questions: int,
    random_vectors: int,
) -> Effects:
    """How steering moves likelihood from answers that lack the trait to answers that show it, to first order.

    For each question the log-likelihood a token of an answer that shows the trait minus that of one that lacks it
    (natural logarithm), differentiated by the relative dose of a direction at dose 0: the difference that a small
    dose makes to that margin, a unit of dose. What both signs of a direction do alike (unsettle the model, shorten
    its answers) is of second order and does not enter. One gradient answers for all directions. Empty where the
    answers hold no question with one of each.

    Args:
        engine: the model, with nothing to do.
        vector: which fits it.
        answers: labelled; the written ones are used.
        layer: 1-based.
        questions: how many questions at most.
        random_vectors: how many random directions.
    """
    contrasts = _contrasts(answers, questions)
    tokenizer = engine.loaded.tokenizer
    texts = [
        (prompt_ids(tokenizer, [{"role": "user", "content": question}]), response_ids(tokenizer, text)[:ANSWER_TOKENS])
        for question, *pair in contrasts
        for text in pair
    ]
    gradients = likelihood_gradients(engine.loaded, texts, layer).reshape(len(contrasts), 2, -1)
    margin = (gradients[:, 0] - gradients[:, 1]) * float(vector.residual_norms[layer])
    effects = margin @ _units(vector, layer, random_vectors).T
    return Effects(tuple(question for question, _, _ in contrasts), effects[:, 0], effects[:, 1:])


def _units(vector: PersonaVector, layer: int, random_vectors: int) -> np.ndarray:
    """`(1 + random_vectors, d_model)`: the persona direction and random ones, of length 1."""
    names = ["persona", *(f"random:{index}" for index in range(random_vectors))]
    directions = torch.stack([vector.direction(name)[layer] for name in names])
    units: np.ndarray = torch.nn.functional.normalize(directions, dim=1).double().numpy()
    return units


def _contrasts(answers: Sequence[LabelledAnswer], questions: int) -> list[tuple[str, str, str]]:
    """(question, strongest answer, weakest answer) for questions that have a clear one of each, in order of id."""
    found = []
    by_question: dict[str, list[LabelledAnswer]] = {}
    for item in sorted(answers, key=lambda item: item.id):
        if item.source == "written":
            by_question.setdefault(item.question, []).append(item)
    for question, items in by_question.items():
        weak, strong = min(items, key=lambda item: item.level), max(items, key=lambda item: item.level)
        if weak.level <= CLEAR[0] and strong.level >= CLEAR[1]:
            found.append((question, strong.answer, weak.answer))
    return found[:questions]
