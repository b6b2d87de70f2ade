"""Scoring multiple-choice answers, given as likelihoods or as a letter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from persona_bench.inspect_ext.answering import LETTERS
from persona_bench.inspect_ext.judge import mean_of_scored, n_scored


@scorer(metrics={"*": [mean_of_scored(), n_scored()]})
def right_choice(keys: Sequence[str]) -> Scorer:
    """1 where the right option was chosen, else 0, under each key of `answering`; NaN where there is no number.

    `KEY_margin`: log-likelihood of the right option minus that of the best wrong one (natural logarithm; per token but
    for letters), a finer measure than right or wrong. By `likelihood`, where every option is true, it is their mean
    log-likelihood per token. Score metadata holds the `outcomes` by key.

    Args:
        keys: all that any sample of the task is asked.
    """

    async def score(state: TaskState, target: Target) -> Score:
        answers: Mapping[str, Mapping[str, Any]] = state.metadata["answers"]
        value: dict[str, str | int | float | bool | None] = {}
        for name in keys:
            correct, margin = _measured(name, answers.get(name), LETTERS.index(target.text))
            value |= {} if name.startswith("likelihood") else {name: correct}
            value |= {} if name.startswith("generation") else {f"{name}_margin": margin}
        outcomes = {name: answer["outcome"] for name, answer in answers.items()}
        return Score(value=value, answer=state.output.completion, metadata={"outcomes": outcomes})

    return score


def _measured(name: str, answer: Mapping[str, Any] | None, right: int) -> tuple[float, float]:
    if answer is None or answer["outcome"] == "too_long":
        return math.nan, math.nan
    if "choice" in answer:
        return float(answer["choice"] == right), math.nan
    values: list[float] = answer["likelihoods"]
    if name.startswith("likelihood"):
        return math.nan, sum(values) / len(values)
    margin = values[right] - max(other for index, other in enumerate(values) if index != right)
    return float(margin > 0), margin
