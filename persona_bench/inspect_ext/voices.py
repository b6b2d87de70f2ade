"""What a local grader says of a response, as likelihoods: the raw voices that `calibration` turns into scores."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from inspect_ai.model import GenerateConfig, Model

from persona_bench.definitions.traits import Trait
from persona_bench.inspect_ext.requests import ExtraArgs, ScoreItem

CONTRAST_PAIRS = 1  # each further pair of instructions costs two more passes over every response


@dataclass(frozen=True)
class Voices:
    """What a local grader says of a response, before calibration.

    Attributes:
        contrast: mean over held-out instruction pairs of the per-token log-likelihood ratio, trait on against off;
            NaN if not asked for.
        yes_no: log-odds of Yes against No; NaN if not asked for.
        fluency: per-token log-likelihood of the response under the first trait-off instruction.
        repetition: share of word pairs that occurred before in the response, 0..1.
    """

    contrast: float
    yes_no: float
    fluency: float
    repetition: float


def repetition(text: str) -> float:
    """Share of word pairs that occurred before, 0..1: looping text is likely text, so likelihood misses it."""
    words = re.findall(r"\w+", text.lower())
    pairs = list(zip(words, words[1:], strict=False))
    return 0.0 if not pairs else 1 - len(set(pairs)) / len(pairs)


def fluency_item(trait: Trait, question: str, answer: str) -> ScoreItem:
    """The likelihood that measures fluency: the response as an answer of an assistant told not to show the trait."""
    messages = (
        {"role": "system", "content": trait.judge_instructions[0].negative},
        {"role": "user", "content": question},
    )
    return ScoreItem(messages=messages, continuation=answer)


def voice_items(trait: Trait, question: str, answer: str, voices: Sequence[str]) -> list[ScoreItem]:
    """The likelihoods to ask a local grader for, in the order `read_voices` expects."""
    items = [fluency_item(trait, question, answer)]
    if "contrast" in voices:
        pairs = trait.judge_instructions[:CONTRAST_PAIRS]
        instructions = [text for pair in pairs for text in (pair.negative, pair.positive)]
        for instruction in instructions[1:]:  # the first is the fluency item
            messages = ({"role": "system", "content": instruction}, {"role": "user", "content": question})
            items.append(ScoreItem(messages=messages, continuation=answer))
    if "yes_no" in voices:
        content = f"Question: {question}\nAnswer: {answer}\n\nIs this answer {trait.positive_name}? Answer Yes or No."
        items.append(ScoreItem(messages=({"role": "user", "content": content},), alternatives=("Yes", "No")))
    return items


def read_voices(trait: Trait, answer: str, voices: Sequence[str], scores: Sequence[dict[str, Any]]) -> Voices:
    """Interpret the grader's likelihoods of `voice_items`."""
    rates = [score["logprob"] / max(score["n_tokens"], 1) for score in scores]
    contrast = yes_no = math.nan
    n_pairs = len(trait.judge_instructions[:CONTRAST_PAIRS])
    if "contrast" in voices:
        contrast = sum(rates[2 * i + 1] - rates[2 * i] for i in range(n_pairs)) / n_pairs
    if "yes_no" in voices:
        yes, no = scores[-1]["alternatives"]
        yes_no = yes - no
    return Voices(contrast, yes_no, rates[0], repetition(answer))


async def ask_voices(grader: Model, trait: Trait, question: str, answer: str, voices: Sequence[str]) -> Voices:
    """One request to a local grader for all the voices of one response."""
    extra = ExtraArgs(score=tuple(voice_items(trait, question, answer, voices)))
    output = await grader.generate("", config=GenerateConfig(extra_body=extra.body()))
    return read_voices(trait, answer, voices, cast(dict[str, Any], output.metadata)["scores"])
