"""What is measured of a finetuned model: responses to each trait's questions, multiple choice, and held-out loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from inspect_ai.model import GenerateConfig, get_model
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from persona_bench.definitions.outcomes import Method
from persona_bench.inspect_ext.choices import likeliest_choice
from persona_bench.inspect_ext.judge import mean_of_scored, n_scored, trait_judge
from persona_bench.inspect_ext.requests import ExtraArgs, ScoreItem
from persona_bench.inspect_ext.solvers import choose_by_likelihood, respond

MEASURED = ("trait", "coherence", "refusal", "incoherent", "unscored", "letter", "cloze", "loss")


@solver
def answer_by_kind(temperature: float, max_tokens: int, seed: int = 0) -> Solver:
    """Do what a sample's `metadata["kind"]` asks for: `trait` responds, `mmlu` chooses, `held_out` is scored.

    Args:
        temperature: of sampling.
        max_tokens: most tokens of a response.
        seed: of the run.
    """
    ways = {"trait": respond(temperature, max_tokens, seed), "mmlu": choose_by_likelihood(), "held_out": _held_out()}

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
    """Judge, mark or read off, as a sample's kind asks: see `trait_judge` and `likeliest_choice`.

    Of a held-out conversation the value is `loss`: negative log-likelihood in nats a token.

    Args:
        traits: whose questions are asked.
        method: how the grader judges.
    """
    judges = {name: trait_judge(name, method) for name in traits}
    choose = likeliest_choice()

    async def score(state: TaskState, target: Target) -> Score:
        kind = state.metadata["kind"]
        if kind == "held_out":
            found = state.metadata["likelihood"]
            loss = -found["logprob"] / max(found["n_tokens"], 1)
            return Score(value=_among_all({"loss": loss}), metadata={"n_tokens": found["n_tokens"]})
        made = await (judges[state.metadata["trait"]] if kind == "trait" else choose)(state, target)
        assert made is not None and isinstance(made.value, dict)
        return made.model_copy(update={"value": _among_all(made.value)})

    return score


def _among_all(found: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics want the same keys of every sample: NaN stands for what its kind does not measure."""
    return {key: found.get(key, math.nan) for key in MEASURED}
