"""Solvers: a response with the sample's own seed and interventions."""

from __future__ import annotations

import hashlib

from inspect_ai.model import ChatMessageUser
from inspect_ai.solver import Generate, Solver, TaskState, solver

from persona_bench.inspect_ext.requests import ExtraArgs

TWINS = "twins"
"""`metadata["set"]` of answers that are judged beside the labelled ones and enter no measure of the judge's gate."""


def row_seed(sample_id: str | int, epoch: int, seed: int) -> int:
    """A 63-bit seed of its own for each sample and epoch, so that no text depends on what ran before it."""
    digest = hashlib.sha256(f"{sample_id}\n{epoch}\n{seed}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@solver
def respond(temperature: float, max_tokens: int, seed: int = 0) -> Solver:
    """Generate one response; `metadata["extra"]` of the sample holds its interventions and captures.

    Args:
        temperature: of sampling.
        max_tokens: most tokens of a response.
        seed: of the run.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        extra = ExtraArgs.model_validate(state.metadata.get("extra") or {})
        return await generate(
            state,
            temperature=temperature,
            max_tokens=max_tokens,
            seed=row_seed(state.sample_id, state.epoch, seed),
            extra_body=extra.body() if extra != ExtraArgs() else None,
        )

    return solve


@solver
def converse(temperature: float, max_tokens: int, seed: int = 0) -> Solver:
    """Respond to every user turn: to the sample's input, then to each of `metadata["user_turns"]`.

    Every response has a seed of its own. Where there are several, `metadata["turns"]` lists for each the user's
    message, the answer and its projections.

    Args:
        temperature: of sampling.
        max_tokens: most tokens of a response.
        seed: of the run.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        extra = ExtraArgs.model_validate(state.metadata.get("extra") or {}).body()
        turns = []
        for number, message in enumerate(("", *state.metadata["user_turns"])):
            if number:
                state.messages.append(ChatMessageUser(content=message))
            state = await generate(
                state,
                temperature=temperature,
                max_tokens=max_tokens,
                seed=row_seed(f"{state.sample_id}-t{number}" if number else state.sample_id, state.epoch, seed),
                extra_body=extra,
            )
            asked = next(item.text for item in reversed(state.messages) if item.role == "user")
            turns.append({"user": asked, "answer": state.output.completion, **(state.output.metadata or {})})
        if len(turns) > 1:
            state.metadata["turns"] = turns
        return state

    return solve


@solver
def given_response() -> Solver:
    """Take the response from `metadata["answer"]` instead of generating one (labelled answers)."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        state.output.completion = state.metadata["answer"]
        return state

    return solve
