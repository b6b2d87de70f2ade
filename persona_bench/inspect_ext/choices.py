"""Scoring multiple-choice answers that were given as likelihoods."""

from __future__ import annotations

from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from persona_bench.inspect_ext.judge import mean_of_scored, n_scored


@scorer(metrics={"*": [mean_of_scored(), n_scored()]})
def likeliest_choice() -> Scorer:
    """`letter` and `cloze`: 1 where the right option is the likeliest, else 0.

    `letter_margin` and `cloze_margin`: log-likelihood of the right option minus that of the best wrong one (natural
    logarithm; per token for cloze), a finer measure than right or wrong.
    """

    async def score(state: TaskState, target: Target) -> Score:
        right = "ABCDEFGHIJ".index(target.text)
        value: dict[str, str | int | float | bool | None] = {}
        for way, values in state.metadata["likelihoods"].items():
            margin = values[right] - max(other for index, other in enumerate(values) if index != right)
            value[way] = float(margin > 0)
            value[f"{way}_margin"] = margin
        return Score(value=value, answer=state.output.completion)

    return score
