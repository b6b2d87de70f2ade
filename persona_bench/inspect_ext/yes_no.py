"""A question that a grader answers with Yes or No, as the probability of Yes in points of 100."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import partial
from statistics import fmean

from inspect_ai.model import GenerateConfig, Model, ModelOutput

from persona_bench.definitions.outcomes import Method
from persona_bench.inspect_ext.graders import (
    MIN_NUMERIC_MASS,
    REPLY_TOKENS,
    SAMPLES,
    ask,
    no_number,
    together,
    too_few_replies,
)
from persona_bench.inspect_ext.judge import asked, counted, is_local, service_identity
from persona_bench.inspect_ext.judgement import Judgement, merge
from persona_bench.inspect_ext.voices import local_api, yes_or_no


async def ask_panel(graders: Sequence[Model], question: str, method: Method = "auto") -> Judgement:
    """What every grader says, joined as for any response (`judgement.merge`)."""
    results = await together(*(ask_grader(grader, question, method) for grader in graders))
    return results[0] if len(results) == 1 else merge([str(grader) for grader in graders], results)


async def ask_grader(grader: Model, question: str, method: Method = "auto") -> Judgement:
    """One grader's answer; one question is asked once ever, and a failure is unscored with its reason.

    Local graders are read off their logits, whatever the method; others as the method says, by the probability of Yes
    among Yes and No or by the share of Yes among sampled replies.
    """
    if is_local(grader):
        return await counted(partial(_weights, grader), ("yes_no", question), partial(_locally, grader, question))

    async def identity() -> str | None:
        return service_identity(grader)

    said = (grader, question)
    by_words = partial(asked, grader, method, partial(_by_logprobs, *said), partial(_by_samples, *said))
    return await counted(identity, (method, "yes_no", question), by_words)


async def _weights(grader: Model) -> str:
    return local_api(grader).connection_key()


async def _locally(grader: Model, question: str) -> Judgement:
    odds = await yes_or_no(grader, question)
    return Judgement("scored", 100 / (1 + math.exp(-odds)) if odds > -700 else 0.0, method="yes_no")


async def _by_logprobs(grader: Model, question: str) -> Judgement:
    output = await ask(
        grader, question, GenerateConfig(temperature=0, max_tokens=1, logprobs=True, top_logprobs=20, seed=0)
    )
    if reason := no_number(output):
        return Judgement("unscored", method="logprob", reason=reason)
    yes, no = _masses(output)
    if yes + no < MIN_NUMERIC_MASS:
        return Judgement("refusal", method="logprob")
    return Judgement("scored", 100 * yes / (yes + no), method="logprob")


def _masses(output: ModelOutput) -> tuple[float, float]:
    """Probability of Yes and of No among the first token's alternatives, in whatever case."""
    content = output.choices[0].logprobs.content if output.choices[0].logprobs else []
    found = {"yes": 0.0, "no": 0.0}
    for item in (content[0].top_logprobs or []) if content else []:
        if (word := item.token.strip().lower()) in found:
            found[word] += math.exp(item.logprob)
    return found["yes"], found["no"]


async def _by_samples(grader: Model, question: str) -> Judgement:
    tokens = grader.config.max_tokens or REPLY_TOKENS
    configs = [GenerateConfig(temperature=1, max_tokens=tokens, seed=seed) for seed in range(SAMPLES)]
    outputs = await together(*(ask(grader, question, config) for config in configs))
    replies = [found[1].lower() for output in outputs if (found := re.match(r"\W*(yes|no)\b", output.completion, re.I))]
    if 2 * len(replies) < SAMPLES:
        reason = too_few_replies(outputs, len(replies), "Yes or No", tokens)
        return Judgement("unscored", method="sampled", reason=reason)
    return Judgement("scored", 100 * fmean(reply == "yes" for reply in replies), method="sampled")
