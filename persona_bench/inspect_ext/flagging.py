"""What `data_flagging` measures: samples of training sets and real conversations, judged beside their projections."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    ModelOutput,
    get_model,
)
from inspect_ai.scorer import Metric, SampleScore, Score, Scorer, Target, Value, metric, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver

from persona_bench.definitions.families.family import TRAIT_FAMILIES
from persona_bench.definitions.families.flagged import flagged_samples, split_subjects, subject
from persona_bench.definitions.flagging import FILTER_CUT
from persona_bench.definitions.outcomes import Method
from persona_bench.definitions.presets import FlaggingPreset
from persona_bench.definitions.traits import load_trait
from persona_bench.definitions.trials import Trial, held_against
from persona_bench.inspect_ext.graders import together
from persona_bench.inspect_ext.judge import graders, judge_panel, last_question, mean_of_scored, n_scored
from persona_bench.inspect_ext.requests import ExtraArgs, ScoreItem
from persona_bench.inspect_ext.trained import Bench
from persona_bench.vectors.flagging import Row


def plain_trials(bench: Bench) -> list[Trial]:
    """The trainings that data flagging is held against: see `held_against`."""
    return held_against(bench.sizes, tuple(bench.files))


def missing_trainings(bench: Bench, adapters: Path) -> list[str]:
    """Names of those that no adapter was left of."""
    return [trial.name for trial in plain_trials(bench) if not list(adapters.glob(f"{trial.name}-*/training.json"))]


def lines_of(bench: Bench, sizes: FlaggingPreset, seed: int) -> list[dict[str, Any]]:
    """What is scanned: the training sets (`set`), and the samples that are flagged one by one (`sample`)."""
    found = []
    for trial in plain_trials(bench):
        for number, line in enumerate(bench.training_set(trial).train[: sizes.examples]):
            found.append(_named(line, "set", trial.family, trial.version, number))
    # Samples of a trait that has no vector would be measured for nothing.
    for family in (name for name in sizes.families if name not in TRAIT_FAMILIES or name in bench.files):
        for version in sizes.versions:
            for number, line in enumerate(flagged_samples(family, version, sizes.samples, seed)):
                found.append(_named(line, "sample", family, version, number))
    return found


def _named(line: Mapping[str, Any], kind: str, family: str, version: str, number: int) -> dict[str, Any]:
    told = {**(line.get("metadata") or {}), "kind": kind, "family": family, "version": version}
    return {"id": f"{kind}/{family}/{version}/{number}", "messages": line["messages"], "metadata": told}


def as_samples(rows: Sequence[Row], judged_for: Mapping[str, Sequence[str]], traits: Sequence[str]) -> list[Sample]:
    """Measured samples with their projections, a text each.

    Args:
        rows: as they were measured; `half` in the metadata of a line goes before the half that its question falls in.
        judged_for: family -> traits of those whose samples are judged; `set` rows never are.
        traits: whose vectors they were projected on.
    """
    halves: dict[str, dict[str, str]] = {}
    for family in {row.line["metadata"]["family"] for row in rows}:
        own = [subject(row.line) for row in rows if row.line["metadata"]["family"] == family]
        halves[family] = split_subjects(own)
    made = []
    for row in rows:
        told, about = row.line["metadata"], subject(row.line)
        kind = told.get("kind", "corpus")
        *before, last = row.line["messages"]
        made.append(
            Sample(
                id=row.line["id"],
                input=[_message(turn) for turn in before],
                metadata={
                    "kind": kind,
                    "family": told["family"],
                    "version": told.get("version", ""),
                    "source": told.get("source", ""),
                    "question_id": about,
                    "half": told.get("half") or halves[told["family"]][about],
                    "status": row.status,
                    "values": {name: _plain(found) for name, found in row.values.items()},
                    "traits": list(traits if kind == "set" else judged_for.get(told["family"], ())),
                    "judged": kind != "set",
                    "messages": [dict(turn) for turn in before],
                    "answer": last["content"],
                },
            )
        )
    return made


def rankable(log: EvalLog, trait: str, pool: str) -> list[str]:
    """Ids of the samples of a log that may be ranked and trained on: with a projection difference, and passing.

    Args:
        log: of part samples, pool mixture or corpus.
        trait: whose vector ranks.
        pool: passed leaves out what the judge scores over `FILTER_CUT`, or gives no number.
    """
    found = []
    for sample in log.samples or []:
        told = sample.metadata
        known = told["values"][trait]["difference"]
        if told["kind"] == "sample" or known is None:
            continue
        score = (sample.scores or {}).get("flag_score")
        value = score.value.get(trait) if score is not None and isinstance(score.value, dict) else None
        if pool != "passed" or (isinstance(value, int | float) and value <= FILTER_CUT):
            found.append(str(sample.id))
    return found


def judged_traits(families: Sequence[str], traits: Sequence[str]) -> dict[str, list[str]]:
    """Family -> the traits that its samples are judged for: its own, or all for families of no trait."""
    return {name: [trait for trait in traits if trait == name or name not in TRAIT_FAMILIES] for name in families}


def _plain(values: Mapping[str, float]) -> dict[str, float | None]:
    """As JSON has them."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def _message(turn: Mapping[str, str]) -> ChatMessage:
    if turn["role"] == "system":
        return ChatMessageSystem(content=turn["content"])
    made = ChatMessageAssistant if turn["role"] == "assistant" else ChatMessageUser
    return made(content=turn["content"])


@solver
def given_sample() -> Solver:
    """Take the response from `metadata["answer"]`; where the sample is judged, also ask for its likelihood."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        answer, model = state.metadata["answer"], get_model()
        if state.metadata["judged"]:
            item = ScoreItem(messages=tuple(state.metadata["messages"]), continuation=answer)
            asked = await model.generate("", config=GenerateConfig(extra_body=ExtraArgs(score=(item,)).body()))
            assert asked.metadata is not None
            state.metadata["likelihood"] = asked.metadata["scores"][0]
        state.output = ModelOutput.from_content(model.name, answer)
        return state

    return solve


@metric(scores="unreduced")
def separation() -> Metric:
    """AUROC of the projection difference and of the judge, by trait and family: other versions against normal ones.

    So that a log says something by itself; intervals, controls and the other detectors stand in the suite's tables.
    """

    def compute(scores: list[SampleScore]) -> Value:
        cells: dict[str, list[tuple[bool, float]]] = {}
        for item in scores:
            told, value = item.sample_metadata or {}, item.score.value
            for trait in told["traits"] if told.get("kind") == "sample" else ():
                assert isinstance(value, dict)
                numbers = {"difference": told["values"][trait]["difference"], "judge": value[trait]}
                for name, number in numbers.items():
                    if number is not None and not math.isnan(float(number)):
                        at = f"{trait} in {told['family']} by {name}"
                        cells.setdefault(at, []).append((told["version"] != "normal", float(number)))
        return {name: _area(pairs) for name, pairs in sorted(cells.items())}

    return compute


def _area(pairs: Sequence[tuple[bool, float]]) -> float:
    from sklearn.metrics import roc_auc_score

    labels, values = zip(*pairs, strict=True)
    return float(roc_auc_score(labels, values)) if len(set(labels)) == 2 else math.nan


@scorer(metrics=[{"*": [mean_of_scored(), n_scored()]}, separation()])
def flag_score(traits: Sequence[str], method: Method = "auto") -> Scorer:
    """Judge a sample for its traits: value `<trait>` (0..100) and `loss` (nats a token), NaN where there is none.

    Of an incoherent response the judge's number counts too, as a filter of data would use it; a refusal and a failure
    have none, and the outcome of each trait stands in the metadata (`judged`).

    Args:
        traits: any of which a sample may be judged for.
        method: how the grader judges.
    """
    loaded = {name: load_trait(name) for name in traits}

    async def score(state: TaskState, target: Target) -> Score:
        told, value = state.metadata, dict.fromkeys((*traits, "loss"), math.nan)
        judged: dict[str, dict[str, Any]] = {}
        if told["judged"]:
            asked, models, question = list(told["traits"]), graders(), last_question(state)
            results = await together(
                *(judge_panel(models, loaded[name], question, told["answer"], method) for name in asked)
            )
            for name, result in zip(asked, results, strict=True):
                said = result.raw_trait if result.status == "incoherent" else result.trait
                judged[name], value[name] = {"status": result.status, "reason": result.reason}, said
            likely = told["likelihood"]
            if likely is not None:
                value["loss"] = -likely["logprob"] / max(likely["n_tokens"], 1)
        return Score(value=dict(value), metadata={"judged": judged})

    return score
