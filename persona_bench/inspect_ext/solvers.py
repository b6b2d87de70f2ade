"""Solvers: a response with the sample's own seed and interventions, and answers by likelihood."""

from __future__ import annotations

import hashlib

from inspect_ai.model import ChatMessageUser, GenerateConfig, get_model
from inspect_ai.solver import Generate, Solver, TaskState, solver

from persona_bench.inspect_ext.requests import ExtraArgs, ScoreItem


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


@solver
def choose_by_likelihood() -> Solver:
    """Answer a multiple-choice question by letter and by cloze, both by likelihood, without generating.

    By letter: which of " A".." D" is likeliest after the question with its lettered options. By cloze: which option's
    text is likeliest, per token, after the question alone. Results go to `metadata["likelihoods"]`.
    """

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        steering = ExtraArgs.model_validate(state.metadata.get("extra") or {}).apply_steering_vectors
        options = [choice.value for choice in state.choices]
        letters = "ABCDEFGHIJ"[: len(options)]
        listed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
        question = state.input_text.strip()
        bare = f"Question: {question}\nAnswer:"
        items = [
            ScoreItem(
                text=f"Question: {question}\n{listed}\nAnswer:", alternatives=tuple(f" {letter}" for letter in letters)
            ),
            *(ScoreItem(text=bare, continuation=f" {option}") for option in options),
        ]
        extra = ExtraArgs(apply_steering_vectors=steering, score=tuple(items))
        output = await get_model().generate("", config=GenerateConfig(extra_body=extra.body()))
        assert output.metadata is not None
        scores = output.metadata["scores"]
        state.metadata["likelihoods"] = {
            "letter": scores[0]["alternatives"],
            "cloze": [score["logprob"] / max(score["n_tokens"], 1) for score in scores[1:]],
        }
        state.output = output
        return state

    return solve
