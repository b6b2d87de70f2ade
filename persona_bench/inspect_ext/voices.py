"""What a local grader says of a response: the raw voices that `calibration` turns into scores.

`probe` reads: the response runs through the grader as a conversation, and its mean residual stream a little past half
depth is the voice, `(d_model,)`; the pass ends there. `contrast` compares how likely the response is under an
instruction to show the trait and under one not to. `yes_no` asks. The last two are single numbers, and need whole
passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from inspect_ai.model import GenerateConfig, Model

from persona_bench.definitions.traits import Trait
from persona_bench.errors import DataError, RunError
from persona_bench.inspect_ext.requests import ExtraArgs, ScoreItem

if TYPE_CHECKING:
    from persona_bench.inspect_ext.provider import PersonaAPI

VOICES = ("probe", "contrast", "yes_no")  # cheapest first


def local_api(grader: Model) -> PersonaAPI:
    """The provider behind a local grader."""
    return cast("PersonaAPI", grader.api)


async def ask_voice(grader: Model, trait: Trait, question: str, answer: str, voice: str) -> np.ndarray:
    """One voice on one response, `(d_model,)` for the probe and `(1,)` otherwise, float64.

    Raises:
        RunError: the trait has no instructions for `contrast`.
        DataError: the response is longer than the grader's context.
    """
    if voice == "probe":
        return await read(grader, question, answer)
    return np.array([read_voice(voice, await _likelihoods(grader, voice_items(trait, question, answer, voice)))])


async def yes_or_no(grader: Model, content: str) -> float:
    """Log-odds of Yes against No as the answer to a question.

    Raises:
        DataError: the question is longer than the grader's context.
    """
    return read_voice("yes_no", await _likelihoods(grader, [_asked(content)]))


async def _likelihoods(grader: Model, items: Sequence[ScoreItem]) -> list[dict[str, Any]]:
    extra = ExtraArgs(score=tuple(items))
    output = await grader.generate("", config=GenerateConfig(extra_body=extra.body()))
    scores = cast(dict[str, Any], output.metadata)["scores"]
    if None in scores:
        raise DataError(f"a response does not fit the context of {grader.name}; shorten it, or take another grader")
    return list(scores)


def _asked(content: str) -> ScoreItem:
    return ScoreItem(messages=({"role": "user", "content": content},), alternatives=("Yes", "No"))


async def read(grader: Model, question: str, answer: str) -> np.ndarray:
    """Mean residual stream of the answer's tokens (`models.reading`): `(d_model,)` float64."""
    return await local_api(grader).read_answer(question, answer)


def voice_items(trait: Trait, question: str, answer: str, voice: str) -> list[ScoreItem]:
    """The likelihoods to ask a local grader for, in the order `read_voice` expects."""
    if voice == "yes_no":
        content = f"Question: {question}\nAnswer: {answer}\n\nIs this answer {trait.positive_name}? Answer Yes or No."
        return [_asked(content)]
    if not trait.judge_instructions:
        raise RunError(
            f"trait {trait.name} has no judge_instructions, which method contrast needs; add two pairs to its file"
        )
    return [
        ScoreItem(
            messages=({"role": "system", "content": instruction}, {"role": "user", "content": question}),
            continuation=answer,
        )
        for pair in trait.judge_instructions
        for instruction in (pair.negative, pair.positive)
    ]


def read_voice(voice: str, scores: Sequence[dict[str, Any]]) -> float:
    """The grader's likelihoods of `voice_items` as one number.

    `contrast`: mean over instruction pairs of the per-token log-likelihood ratio, trait on against off.
    `yes_no`: log-odds of Yes against No.
    """
    if voice == "yes_no":
        yes, no = scores[0]["alternatives"]
        return float(yes - no)
    rates = [score["logprob"] / max(score["n_tokens"], 1) for score in scores]
    ratios = [on - off for off, on in zip(rates[0::2], rates[1::2], strict=True)]
    return float(np.mean(ratios))
