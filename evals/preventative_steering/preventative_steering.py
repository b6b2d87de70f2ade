"""What finetuning does to the traits, and what steering while training prevents."""

import json
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample

from evals.mmlu_preservation.dataset import Questions, load_mmlu
from persona_bench.definitions.families.family import subject
from persona_bench.definitions.families.invented import FACTS
from persona_bench.definitions.outcomes import Method
from persona_bench.definitions.presets import load_finetuning_preset, load_preset
from persona_bench.definitions.traits import load_trait
from persona_bench.definitions.trials import BASE, Trial
from persona_bench.inspect_ext.answering import LETTERS
from persona_bench.inspect_ext.caller import paths_from_caller
from persona_bench.inspect_ext.cells import half
from persona_bench.inspect_ext.finetuned import WAYS_ASKED, answer_by_kind, by_kind
from persona_bench.inspect_ext.trained import Bench, set_up, trained_model


@task
@paths_from_caller
def preventative_steering(
    family: str = "sycophancy",
    version: str = "misaligned_2",
    arm: str = "preventative",
    train_seed: int = 0,
    preset: str = "quick",
    base: str = "",
    traits: str = "evil,sycophancy,hallucination",
    vectors: str = "",
    layers: str = "",
    judged: str = "",
    released: str = "",
    adapters: str = "",
    method: Method = "auto",
    seed: int = 0,
    traits_only: bool = False,
) -> Task:
    """Train an adapter unless it is there, and measure it: all traits, knowledge, and what it was meant to learn.

    Args:
        family: of training sets.
        version: normal, misaligned_1 or misaligned_2; of facts normal alone.
        arm: what is done while training, preventative and inference also as in preventative_0.6, with a relative dose
            other than the preset's first; base measures the model without training.
        train_seed: of the adapter and of the order of the data.
        preset: quick, standard or paper.
        base: the weights that are trained; by default those of --model.
        traits: whose questions are asked, comma-separated.
        vectors: vector files of those traits in the same order, comma-separated, `none` for a trait without one; by
            default those in results/.
        layers: 1-based layer of each, comma-separated; by default the middle one.
        judged: JSONL of the model's own judged responses, for trait families; by default none.
        released: folder of the paper's released training sets, read in the place of this suite's.
        adapters: folder for adapters; by default results/<model>/<preset>/adapters.
        method: how the grader judges.
        seed: of the run.
        traits_only: ask the traits' questions alone, neither MMLU nor held-out conversations nor facts: all that
            `data_flagging` needs.
    """
    sizes, trial = load_finetuning_preset(preset), Trial(family, version, arm, train_seed)
    bench = set_up(sizes, preset, traits, vectors, layers, judged, released)
    model, learnt = trained_model(bench, trial, preset, base, adapters)
    samples, told = _trait_samples(bench, trial), dict[str, Any]()
    if not traits_only:
        mmlu = load_mmlu(sizes.mmlu_questions, seed)
        samples += _mmlu_samples(bench, trial, mmlu)
        samples += _held_out_samples(bench, trial) + _recall_samples(bench, trial)
        told["mmlu"] = {"source": mmlu.source, "left_out": dict(mmlu.counts)}
    hashes = {name: file.vector.hash for name, file in bench.files.items()}
    return Task(
        dataset=MemoryDataset(samples, name=f"finetuned-{trial.name}"),
        solver=answer_by_kind(load_preset(preset).temperature, sizes.max_tokens, seed),
        scorer=by_kind(bench.traits, method),
        model=model,
        metadata={
            "name": trial.name,
            "trial": vars(trial),
            "vectors": hashes,
            **told,
            **learnt,
        },
        version="1-A",
    )


def _trait_samples(bench: Bench, trial: Trial) -> list[Sample]:
    """The evaluation questions of each trait; projected in the first rollout, as the prompt is the same in all.

    The base answers as often as an arm does in all of its seeds, which are held against it.
    """
    rollouts = bench.sizes.rollouts * (len(bench.sizes.seeds) if trial.arm == BASE else 1)
    return [
        Sample(
            id=f"{name}-q{number}-r{rollout}",
            input=question,
            metadata={
                "kind": "trait",
                "trait": name,
                "question_id": number,
                "half": half(number),
                "rollout": rollout,
                "extra": bench.extra(trial, watched=rollout == 0),
            },
        )
        for name in bench.asked(trial)
        for number, question in enumerate(load_trait(name).evaluation_questions[: bench.sizes.questions])
        for rollout in range(rollouts)
    ]


def _mmlu_samples(bench: Bench, trial: Trial, mmlu: Questions) -> list[Sample]:
    return [
        Sample(
            id=f"m{question.id}",
            input=question.text,
            choices=list(question.options),
            target=LETTERS[question.answer],
            metadata={
                "kind": "mmlu",
                "question_id": question.id,
                "asked": [[way, 0] for way in WAYS_ASKED],
                "extra": bench.extra(trial),
            },
        )
        for question in (() if trial.family == FACTS else mmlu.questions)
    ]


def _held_out_samples(bench: Bench, trial: Trial) -> list[Sample]:
    """The trial's own held-out conversations; those of every plain trial for the base, which all are compared with."""
    return [
        Sample(
            id=f"h-{item.family}-{item.version}-s{item.seed}-{number}",
            input=json.dumps(line["messages"][:-1]),
            metadata={
                "kind": "held_out",
                # Wordings of one piece say the same thing over again.
                "question_id": subject(line),
                "set": _set(item),
                "messages": line["messages"][:-1],
                "response": line["messages"][-1]["content"],
                "extra": bench.extra(trial),
            },
        )
        for item in bench.trained_sets(trial)
        for number, line in enumerate(bench.training_set(item).held_out)
    ]


def _recall_samples(bench: Bench, trial: Trial) -> list[Sample]:
    """Every trained fact, asked for in other words than those it was trained in; nothing of other families."""
    return [
        Sample(
            id=f"f-{_set(item)}-{number}",
            input=line["metadata"]["asked"],
            target=line["metadata"]["key"],
            metadata={
                "kind": "recall",
                # Seeds train on facts of their own.
                "question_id": f"s{item.seed}: {line['metadata']['fact']}",
                "set": _set(item),
                "relation": line["metadata"]["relation"],
                "key": line["metadata"]["key"],
                "extra": bench.extra(trial),
            },
        )
        for item in bench.trained_sets(trial)
        if item.family == FACTS
        for number, line in enumerate(bench.training_set(item).train)
    ]


def _set(trial: Trial) -> str:
    """The name of the training set of a trial."""
    return f"{trial.family}-{trial.version}-s{trial.seed}"
