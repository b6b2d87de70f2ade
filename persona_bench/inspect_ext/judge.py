"""The judge: how strongly a response shows a trait (0..100), how coherent it is, and whether it refuses.

One scorer, several methods; the grader is always the Inspect role `grader`, never silently the model under test, and
a role that holds several models is a panel. Graders that answer in words are asked for a number (`graders`): `logprob`
is the paper's method (section 2.1 and appendix B), `sampled` serves where there are no logprobs. Local graders
(`persona/...`) are read or compared instead (`voices`: probe, contrast, yes_no), each with a calibration to 0..100
(`calibration`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import cast
from weakref import WeakSet

from inspect_ai.model import Model, ModelAPI, get_model, model_roles
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, metric, scorer
from inspect_ai.solver import TaskState
from inspect_ai.util import LimitExceededError

from persona_bench.definitions.outcomes import METHODS, TRAIT_CUT, Method
from persona_bench.definitions.traits import Trait, load_trait
from persona_bench.errors import DataError, PersonaBenchError, RunError, first_line
from persona_bench.inspect_ext.calibration import calibrated
from persona_bench.inspect_ext.graders import judge_by_logprobs, judge_by_samples, together
from persona_bench.inspect_ext.judgement import Judgement, as_score, as_turn_scores, measured, merge
from persona_bench.inspect_ext.judgement_store import judged_once, key_of
from persona_bench.inspect_ext.voices import ask_voice, local_api, read

Ask = Callable[[], Awaitable[Judgement]]

ASKED = ("logprob", "sampled")
VERSION = 2  # raise it when a grader's replies are asked for or read otherwise: kept judgements are then made anew


def is_local(grader: Model) -> bool:
    """Whether the grader is a `persona/` model, which can score given texts."""
    return type(grader.api).__name__ == "PersonaAPI"


# -- one grader ------------------------------------------------------------------------------------------------------

_OPERATIONAL = {
    "max_retries",
    "timeout",
    "attempt_timeout",
    "max_connections",
    "adaptive_connections",
    "cache",
    "batch",
}
_without_logprobs: WeakSet[ModelAPI] = WeakSet()


async def asked(grader: Model, method: Method, logprobs: Ask, samples: Ask) -> Judgement:
    """By a grader that answers in words; under `auto`, sampled replies serve where it gives no logprobs."""
    if method == "sampled" or (method == "auto" and grader.api in _without_logprobs):
        return await samples()
    try:
        result = await logprobs()
    except (RunError, LimitExceededError):
        raise
    except Exception as error:
        if method != "auto" or "logprob" not in str(error).lower():
            raise
        result = Judgement("unscored", reason=str(error))
    if method == "auto" and result.status == "unscored" and "logprob" in result.reason.lower():
        _without_logprobs.add(grader.api)
        return await samples()
    return result


async def _judge_asked(grader: Model, trait: Trait, question: str, answer: str, method: Method) -> Judgement:
    said = (grader, trait, question, answer)
    return await asked(grader, method, partial(judge_by_logprobs, *said), partial(judge_by_samples, *said))


async def _judge_locally(grader: Model, trait: Trait, question: str, answer: str, method: Method) -> Judgement:
    """By a local grader under its calibration for this trait."""
    calibration = await calibrated(grader, trait, method)
    voice = read_out = await read(grader, question, answer)
    if calibration.refusal_fit(read_out) >= TRAIT_CUT:
        return Judgement("refusal", method=calibration.method)
    if calibration.method != "probe":
        voice = await ask_voice(grader, trait, question, answer, calibration.method)
    return measured(calibration.trait_fit(voice), calibration.coherence_fit(read_out), calibration.method)


async def judge(grader: Model, trait: Trait, question: str, answer: str, method: Method = "auto") -> Judgement:
    """Judge one response by one grader; its failure is an unscored judgement with its reason, never a number.

    Raises:
        RunError: the method does not fit the grader, or the grader can judge nothing at all.
    """
    local = is_local(grader)
    if method != "auto" and local == (method in ASKED):
        needed = "a grader that answers in words" if method in ASKED else "a persona/ grader"
        raise RunError(f"judge method {method} needs {needed}, not {grader}; leave the method at auto")
    if not answer.strip():
        return Judgement("unscored", reason="the response is empty")
    ask = _judge_locally if local else _judge_asked
    return await counted(
        partial(_identity, grader, trait, method),
        (method, trait.rubric, question, answer),
        partial(ask, grader, trait, question, answer, method),
    )


async def counted(identify: Callable[[], Awaitable[str | None]], texts: Sequence[str], ask: Ask) -> Judgement:
    """A judgement by its content: the kept one, or a new one; what fails is unscored with its reason, never a number.

    Args:
        identify: what judgements depend on besides the texts; None keeps none.
        texts: all that is judged, and what is asked of it.
        ask: judges.

    Raises:
        RunError: the method does not fit the grader, or the grader can judge nothing at all.
    """
    try:
        identity = await identify()
        return await (ask() if identity is None else judged_once(key_of(str(VERSION), identity, *texts), ask))
    except DataError as error:  # this response cannot be judged, such as one longer than a local grader's context
        return Judgement("unscored", reason=str(error))
    except (PersonaBenchError, LimitExceededError):
        raise
    except Exception as error:
        # Providers raise errors of their own; each becomes a counted outcome that carries its text.
        told = dict.fromkeys((type(error).__name__, first_line(error)))  # once where an error has no text
        return Judgement("unscored", reason=": ".join(told))


async def _identity(grader: Model, trait: Trait, method: Method) -> str | None:
    """What a grader's judgements depend on besides the texts."""
    if is_local(grader):
        calibration = await calibrated(grader, trait, method)
        return f"{calibration.key} {local_api(grader).reading_arithmetic}"
    return service_identity(grader)


def service_identity(grader: Model) -> str | None:
    """What the replies of a grader that answers in words depend on; None for a mock, whose answers are scripted."""
    if str(grader).startswith("mockllm/"):
        return None
    config = grader.config.model_dump(exclude_none=True, mode="json", exclude=_OPERATIONAL)
    return json.dumps([str(grader), _address(grader), grader.model_args, config], sort_keys=True, default=str)


def _address(grader: Model) -> str:
    """Where a grader's service is; its own client knows that even where an environment variable says it."""
    client = getattr(grader.api, "client", None)
    return str(getattr(client, "base_url", None) or grader.api.base_url or "")


async def judge_panel(
    graders: Sequence[Model], trait: Trait, question: str, answer: str, method: Method = "auto"
) -> Judgement:
    """Judge one response by every grader and join their outcomes (`judgement.merge`)."""
    results = await together(*(judge(grader, trait, question, answer, method) for grader in graders))
    return results[0] if len(results) == 1 else merge([str(grader) for grader in graders], results)


# -- the scorer ------------------------------------------------------------------------------------------------------


def _over_scored(statistic: Callable[[list[float]], Value]) -> Metric:
    def compute(scores: list[SampleScore]) -> Value:
        values = [score.score.as_float() for score in scores]
        valid = [value for value in values if not math.isnan(value)]
        return statistic(valid)

    return cast(Metric, compute)


@metric(scores="unreduced")
def mean_of_scored() -> Metric:
    """Mean over the samples that have a number, each epoch by itself; NaN, never 0, where none has."""
    return _over_scored(lambda values: sum(values) / len(values) if values else math.nan)


@metric(name="n", scores="unreduced")
def n_scored() -> Metric:
    """How many samples have a number, each epoch by itself; the log calls it `n_scored`."""
    # Where none has, Inspect keeps the 0 of a mapping, which the log names NAME_KEY; a number it would replace by NaN.
    return _over_scored(lambda values: {"scored": len(values)})


def graders() -> list[Model]:
    """The models bound to the role `grader`: one, or several as a panel."""
    first = get_model(role="grader", required=True)
    bound = model_roles().get("grader", first)
    return bound if isinstance(bound, list) else [first]


@scorer(metrics={"*": [mean_of_scored(), n_scored()]})
def trait_judge(trait: str, method: Method = "auto") -> Scorer:
    """Score a response for a trait by the model bound to the role `grader`, or by the panel bound to it.

    The value holds `trait` and `coherence` (0..100; NaN where the outcome has none) and `refusal`, `incoherent`,
    `unscored` (0 or 1). Of a conversation with several responses (`metadata["turns"]`) each is judged with the user's
    message before it; the value then holds the means.

    Args:
        trait: a trait of the suite, or a trait file.
        method: auto (the best for this grader and trait), logprob, sampled, probe, contrast or yes_no.
    """
    loaded = load_trait(trait)
    if method not in METHODS:
        raise RunError(f"unknown judge method {method!r}; choose from {', '.join(METHODS)}")

    async def score(state: TaskState, target: Target) -> Score:
        turns = state.metadata.get("turns") or [{"user": last_question(state), "answer": state.output.completion}]
        models = graders()
        results = await together(*(judge_panel(models, loaded, turn["user"], turn["answer"], method) for turn in turns))
        answers = [turn["answer"] for turn in turns]
        return as_turn_scores(results, answers) if len(turns) > 1 else as_score(results[0], answers[0])

    return score


def last_question(state: TaskState) -> str:
    """The user message that was answered."""
    return next((message.text for message in reversed(state.messages) if message.role == "user"), "")
