"""What is measured of a finetuned model: responses to each trait's questions, multiple choice, held-out loss, facts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from persona_bench.definitions.families.invented import recalled
from persona_bench.definitions.outcomes import Method
from persona_bench.inspect_ext.answering import answer_choices, key
from persona_bench.inspect_ext.choices import right_choice
from persona_bench.inspect_ext.judge import mean_of_scored, n_scored, trait_judge
from persona_bench.inspect_ext.requests import ExtraArgs, ScoreItem
from persona_bench.inspect_ext.solvers import respond

WAYS_ASKED = ("letter", "cloze")
"""How a question of MMLU is put, without examples before it."""
MEASURED = ("trait", "coherence", "refusal", "incoherent", "unscored", *WAYS_ASKED, "loss", "recall")
RECALL_TOKENS = 24
"""A trained answer has about ten; who has not named the fact by then does not know it."""


@solver
def answer_by_kind(temperature: float, max_tokens: int, seed: int = 0) -> Solver:
    """Do what a sample's `metadata["kind"]` asks for: `trait` responds, `mmlu` chooses, `held_out` is scored.

    `recall` responds too, always with the likeliest token: what is known, not what may be drawn.

    A sample of MMLU has `metadata["asked"]` as `answer_choices` takes it.

    Args:
        temperature: of sampling.
        max_tokens: most tokens of a response.
        seed: of the run.
    """
    ways = {
        "trait": respond(temperature, max_tokens, seed),
        "mmlu": answer_choices(),
        "held_out": _held_out(),
        "recall": respond(0.0, RECALL_TOKENS, seed),
    }

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        return await ways[state.metadata["kind"]](state, generate)

    return solve


@solver
def _held_out() -> Solver:
    """Log-likelihood of `metadata["response"]` after `metadata["messages"]`."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        given = ExtraArgs.model_validate(state.metadata.get("extra") or {})
        item = ScoreItem(messages=tuple(state.metadata["messages"]), continuation=state.metadata["response"])
        extra = ExtraArgs(apply_steering_vectors=given.apply_steering_vectors, score=(item,))
        output = await get_model().generate("", config=GenerateConfig(extra_body=extra.body()))
        assert output.metadata is not None
        state.metadata["likelihood"] = output.metadata["scores"][0]
        state.output = output
        return state

    return solve


@scorer(metrics={"*": [mean_of_scored(), n_scored()]})
def by_kind(traits: Sequence[str], method: Method = "auto") -> Scorer:
    """Judge, mark or read off, as a sample's kind asks: see `trait_judge` and `right_choice`.

    Of a held-out conversation the value is `loss`: negative log-likelihood in nats a token; NaN where it is longer than
    the model's context, which the score's metadata then says (`outcome`: too_long). Of a fact that was asked for it is
    `recall`: 1 where the response names it, else 0.

    Args:
        traits: whose questions are asked.
        method: how the grader judges.
    """
    judges = {name: trait_judge(name, method) for name in traits}
    choose = right_choice([key(way, 0) for way in WAYS_ASKED])

    async def score(state: TaskState, target: Target) -> Score:
        kind = state.metadata["kind"]
        if kind == "held_out":
            found = state.metadata["likelihood"]
            if found is None:
                return Score(value=_among_all({}), metadata={"outcome": "too_long"})
            loss = -found["logprob"] / max(found["n_tokens"], 1)
            return Score(value=_among_all({"loss": loss}), metadata={"n_tokens": found["n_tokens"]})
        if kind == "recall":
            said = state.metadata
            known = recalled(state.output.completion, state.input_text, said["relation"], said["key"])
            return Score(value=_among_all({"recall": float(known)}), answer=state.output.completion)
        made = await (judges[state.metadata["trait"]] if kind == "trait" else choose)(state, target)
        assert made is not None and isinstance(made.value, dict)
        value = {**made.value, **{way: made.value[key(way, 0)] for way in WAYS_ASKED if key(way, 0) in made.value}}
        return made.model_copy(update={"value": _among_all(value)})

    return score


def _among_all(found: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics want the same keys of every sample: NaN stands for what its kind does not measure."""
    return {key: found.get(key, math.nan) for key in MEASURED}
