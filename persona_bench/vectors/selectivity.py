"""What a vector tells that random directions of the same norm do not, measured without a judge."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import torch

from persona_bench.definitions.traits import LabelledAnswer, Trait
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.engine import Engine
from persona_bench.models.rows import Reading, Row
from persona_bench.models.sampling import Sampling
from persona_bench.vectors.vector import PersonaVector

CLEAR = (25, 75)
"""Written answers at most, and at least, so strong in the trait are told apart."""
ANSWER_TOKENS = 64
"""Of each written answer so many tokens are read: the trait shows early."""


@dataclass(frozen=True, eq=False)
class Effects:
    """One effect by question, of a vector and of random directions.

    Attributes:
        persona: `(n_questions,)`.
        random: `(n_questions, n_random)`.
    """

    persona: np.ndarray
    random: np.ndarray


def separation(
    engine: Engine,
    vector: PersonaVector,
    trait: Trait,
    layer: int,
    *,
    questions: int,
    random_vectors: int,
    temperature: float,
    max_tokens: int,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Effects:
    """Projection of responses under instructions for the trait minus that of responses under those against it.

    The response mean on the unit direction, in shares of the mean residual norm, by question: the contrast that a
    vector is made of, on evaluation questions, which no vector is made from. It needs no judge, as it is known which
    instruction a response followed, and the model is asked for nothing it does not do. One reading serves every
    direction, so many random ones cost nothing.

    Args:
        engine: the model, with nothing to do.
        vector: which fits it.
        trait: whose instructions are used.
        layer: 1-based.
        questions: how many evaluation questions.
        random_vectors: how many random directions.
        temperature: of sampling.
        max_tokens: most tokens of a response.
        seed: of the responses.
        progress: told how many responses are written.
    """
    asked = trait.evaluation_questions[:questions]
    tokenizer = engine.loaded.tokenizer
    rows = []
    for question in asked:
        for pair in range(len(trait.instructions)):
            for side in ("positive", "negative"):
                messages = [
                    {"role": "system", "content": trait.system_prompt(side, pair)},
                    {"role": "user", "content": question},
                ]
                digest = hashlib.sha256(f"{seed}\n{side}\n{pair}\n{question}".encode()).digest()
                own = int.from_bytes(digest[:8], "big") >> 1
                sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=own)
                rows.append(Row(prompt_ids(tokenizer, messages), sampling=sampling))
    written = engine.run(rows, progress)
    read = [
        Row(
            row.prompt + result.tokens, reading=Reading((layer,), ((len(row.prompt), len(row.prompt + result.tokens)),))
        )
        for row, result in zip(rows, written, strict=True)
        if result.tokens
    ]
    means = iter([result.read[0, 0] for result in engine.run(read) if result.read is not None])
    empty = np.full(vector.directions["persona"].shape[1], np.nan)
    hidden = np.stack([next(means) if result.tokens else empty for result in written]).astype(np.float64)
    hidden = hidden.reshape(len(asked), len(trait.instructions), 2, -1)
    # A pair with an empty response says nothing; a question where all pairs do is left out.
    moved = hidden[:, :, 0] - hidden[:, :, 1]
    whole = np.asarray(np.isfinite(moved).all(axis=2))
    by_question = [moved[index][whole[index]].mean(axis=0) for index in range(len(asked)) if whole[index].any()]
    if not by_question:
        return Effects(np.zeros(0), np.zeros((0, random_vectors)))
    effects = np.stack(by_question) @ _units(vector, layer, random_vectors).T / vector.residual_norm(layer)
    return Effects(effects[:, 0], effects[:, 1:])


def reading(
    engine: Engine,
    vector: PersonaVector,
    answers: Sequence[LabelledAnswer],
    layer: int,
    *,
    questions: int,
    random_vectors: int,
) -> Effects:
    """Projection of written answers that show the trait minus that of answers to the same question that lack it.

    As in `separation`, but the model reads what was written and labelled for this project instead of answering: it
    tells whether the direction is that of the trait where the model's own responses hardly show it. Empty where no
    question has an answer of each kind.

    Args:
        engine: the model, with nothing to do.
        vector: which fits it.
        answers: labelled ones of the trait.
        layer: 1-based.
        questions: how many at most.
        random_vectors: how many random directions.
    """
    by_question: dict[str, list[LabelledAnswer]] = {}
    for item in sorted(answers, key=lambda item: item.id):
        if item.source == "written":
            by_question.setdefault(item.question, []).append(item)
    strength = attrgetter("level")
    pairs = [(question, max(items, key=strength), min(items, key=strength)) for question, items in by_question.items()]
    clear = [item for item in pairs if item[1].level >= CLEAR[1] and item[2].level <= CLEAR[0]][:questions]
    tokenizer, rows = engine.loaded.tokenizer, []
    for question, *both in clear:
        prompt = prompt_ids(tokenizer, [{"role": "user", "content": question}])
        for answer in both:
            given = prompt + response_ids(tokenizer, answer.answer)[:ANSWER_TOKENS]
            rows.append(Row(given, reading=Reading((layer,), ((len(prompt), len(given)),))))
    if not rows:
        return Effects(np.zeros(0), np.zeros((0, random_vectors)))
    hidden = np.stack([result.read[0, 0] for result in engine.run(rows) if result.read is not None])
    hidden = hidden.reshape(len(clear), 2, -1).astype(np.float64)
    moved = (hidden[:, 0] - hidden[:, 1]) / vector.residual_norm(layer)
    effects = moved @ _units(vector, layer, random_vectors).T
    return Effects(effects[:, 0], effects[:, 1:])


def _units(vector: PersonaVector, layer: int, random_vectors: int) -> np.ndarray:
    """`(1 + random_vectors, d_model)`: the persona direction and random ones, of length 1."""
    names = ["persona", *(f"random:{index}" for index in range(random_vectors))]
    directions = torch.stack([vector.direction(name)[layer] for name in names])
    units: np.ndarray = torch.nn.functional.normalize(directions, dim=1).double().numpy()
    return units
