"""Answering multiple-choice questions: by likelihood of letters or texts, or by generating as Inspect's own recipe.

A sample says in `metadata["asked"]` in which ways and after how many examples its question is put; what came of each
stands in `metadata["answers"]` under its key (`cloze_0`, `generation_5`, ...).
"""

from __future__ import annotations

import copy
import string
from collections.abc import Mapping, Sequence
from typing import Any

from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    ModelOutput,
    get_model,
)
from inspect_ai.solver import Generate, MultipleChoiceTemplate, Solver, TaskState, multiple_choice, solver

from persona_bench.definitions.outcomes import LIKELIHOOD_WAYS
from persona_bench.inspect_ext.requests import ExtraArgs, ScoreItem

LETTERS = string.ascii_uppercase
GENERATED_TOKENS = 32  # "ANSWER: X" takes six; a model that has not answered by then is rambling

Example = Mapping[str, Any]
"""A solved question: `text`, `options`, and `answer`, the index of the right one."""


def key(way: str, shots: int) -> str:
    """The name of one way of asking, with its number of examples."""
    return f"{way}_{shots}"


def likelihood_items(
    way: str, text: str, options: Sequence[str], examples: Sequence[Example] = (), before: str = ""
) -> list[ScoreItem]:
    """What is scored to answer one question: one item by letter, one an option by cloze or likelihood.

    By letter: which of " A", " B", ... is likeliest after the question with its lettered options. By cloze: which
    option's text is likeliest, per token, after the question alone. What stands before the question is shared.

    Args:
        way: letter, cloze or likelihood (the texts of cloze, not compared with each other).
        text: the question.
        options: its answers.
        examples: solved questions before it, rendered alike.
        before: text before all that.
    """
    solved = [
        f"{_block(way, example['text'], example['options'])} "
        f"{LETTERS[example['answer']] if way == 'letter' else example['options'][example['answer']]}"
        for example in examples
    ]
    head = "".join(f"{part}\n\n" for part in (before, *solved) if part)
    prompt, shared = head + _block(way, text, options), len(head)
    if way == "letter":
        letters = tuple(f" {letter}" for letter in LETTERS[: len(options)])
        return [ScoreItem(text=prompt, alternatives=letters, shared=shared)]
    return [ScoreItem(text=prompt, continuation=f" {option}", shared=shared) for option in options]


def _block(way: str, text: str, options: Sequence[str]) -> str:
    listed = "".join(f"\n{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))
    return f"Question: {text.strip()}{listed if way == 'letter' else ''}\nAnswer:"


def likelihoods(way: str, scores: Sequence[Mapping[str, Any] | None]) -> list[float] | None:
    """One log-likelihood an option from the provider's scores of `likelihood_items`; per token but for letters.

    None where an item was longer than the model's context.
    """
    found: list[float] = []
    for score in scores:
        if score is None:
            return None
        found += score["alternatives"] if way == "letter" else [score["logprob"] / max(score["n_tokens"], 1)]
    return found


@solver
def answer_choices(examples: Mapping[str, Sequence[Example]] | None = None) -> Solver:
    """Answer the question in every way that `metadata["asked"]` lists as (way, shots).

    All that is asked by likelihood goes out as one request. By generation each is Inspect's own `multiple_choice`, at
    temperature 0, the examples as turns before it. `metadata["extra"]` holds the interventions, `metadata["before"]`
    (role, text) what stands before everything.

    Args:
        examples: solved questions by subject (`metadata["subject"]`); those under "" serve every other.
    """
    shown = examples or {}

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        extra = ExtraArgs.model_validate(state.metadata.get("extra") or {})
        before = [(role, text) for role, text in state.metadata.get("before") or ()]
        fitting = shown.get(state.metadata.get("subject", "")) or shown.get("") or ()
        asked = [(way, list(fitting[:shots])) for way, shots in state.metadata["asked"]]
        answers: dict[str, dict[str, Any]] = {}
        state.metadata["answers"] = answers
        scored = [(way, found) for way, found in asked if way in LIKELIHOOD_WAYS]
        if scored:
            options = [choice.value for choice in state.choices]
            lead = "\n\n".join(text for _, text in before)
            groups = [likelihood_items(way, state.input_text, options, found, lead) for way, found in scored]
            request = extra.model_copy(update={"score": tuple(item for group in groups for item in group)})
            state.output = await get_model().generate("", config=GenerateConfig(extra_body=request.body()))
            results = iter((state.output.metadata or {})["scores"])
            for (way, found), group in zip(scored, groups, strict=True):
                values = likelihoods(way, [next(results) for _ in group])
                outcome = "too_long" if values is None else "scored"
                answers[key(way, len(found))] = {"outcome": outcome, "likelihoods": values}
        for way, found in asked:
            if way not in LIKELIHOOD_WAYS:
                answers[key(way, len(found))] = await _generated(state, generate, extra, before, found)
        return state

    return solve


async def _generated(
    state: TaskState,
    generate: Generate,
    extra: ExtraArgs,
    before: Sequence[tuple[str, str]],
    examples: Sequence[Example],
) -> dict[str, Any]:
    """The answer that the stock recipe reads from what the model says; `choice` is None where it reads none."""
    trial = copy.deepcopy(state)
    trial.messages = [*_turns(before, examples), ChatMessageUser(content=state.input_text)]

    async def steered(given: TaskState, **options: Any) -> TaskState:
        body = extra.body() if extra != ExtraArgs() else None
        return await generate(given, **{**options, "temperature": 0.0, "seed": 0, "extra_body": body})

    trial = await multiple_choice(max_tokens=GENERATED_TOKENS)(trial, steered)  # type: ignore[arg-type]
    state.output, state.messages = trial.output, trial.messages
    chosen = [index for index, choice in enumerate(trial.choices) if choice.correct]
    if _left_no_room(trial.output):
        outcome = "too_long"
    else:
        outcome = "scored" if chosen else "no_answer"
    return {"outcome": outcome, "choice": chosen[0] if chosen else None, "completion": trial.output.completion}


def _left_no_room(output: ModelOutput) -> bool:
    return output.stop_reason == "model_length" and not output.completion


def _turns(before: Sequence[tuple[str, str]], examples: Sequence[Example]) -> list[ChatMessage]:
    made = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    turns: list[ChatMessage] = [made[role](content=text) for role, text in before]
    for example in examples:
        options = example["options"]
        listed = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, options, strict=False))
        letters = ",".join(LETTERS[: len(options)])
        asked = MultipleChoiceTemplate.SINGLE_ANSWER.value.format(
            question=example["text"], choices=listed, letters=letters
        )
        turns += [
            ChatMessageUser(content=asked),
            ChatMessageAssistant(content=f"ANSWER: {LETTERS[example['answer']]}"),
        ]
    return turns
