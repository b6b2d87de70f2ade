"""What finetuning does to the traits, and what steering while training prevents."""

import json
from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import Model, get_model

from evals.mmlu_preservation.dataset import LETTERS, load_questions
from persona_bench.definitions.families.family import Judged
from persona_bench.definitions.outcomes import Method
from persona_bench.definitions.presets import FinetuningPreset, load_finetuning_preset, load_preset
from persona_bench.definitions.traits import load_trait
from persona_bench.definitions.trials import BASE, Trial, plan_trials
from persona_bench.errors import RunError
from persona_bench.files import model_folder, read_jsonl
from persona_bench.inspect_ext.cells import VectorFile, find_vector, half
from persona_bench.inspect_ext.finetuned import answer_by_kind, by_kind
from persona_bench.inspect_ext.requests import ExtraArgs, ProjectionRequest, SteeringRequest
from persona_bench.models.loading import load
from persona_bench.vectors.trials import train_trial, training_set

RANDOM = "random:0"


@task
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
) -> Task:
    """Train an adapter unless it is there, and measure it: all traits, knowledge, and what it was meant to learn.

    Args:
        family: of training sets.
        version: normal, misaligned_1 or misaligned_2.
        arm: what is done while training; base measures the model without training.
        train_seed: of the adapter and of the order of the data.
        preset: quick, standard or paper.
        base: the weights that are trained; by default those of --model.
        traits: whose questions are asked, comma-separated.
        vectors: vector files of those traits in the same order, comma-separated; by default those in results/.
        layers: 1-based layer of each, comma-separated; by default the middle one.
        judged: JSONL of the model's own judged responses, for trait families; by default none.
        released: folder of the paper's released training sets, read in the place of this suite's.
        adapters: folder for adapters; by default results/<model>/<preset>/adapters.
        method: how the grader judges.
        seed: of the run.
    """
    sizes, trial = load_finetuning_preset(preset), Trial(family, version, arm, train_seed)
    model = None if base else get_model()
    weights = base or (model.name if model is not None else "")
    arguments = dict(model.model_args) if model is not None else {}
    names = tuple(name.strip() for name in str(traits).split(",") if name.strip())
    paths = [path.strip() for path in str(vectors).split(",")] if vectors else [""] * len(names)
    if len(paths) != len(names):
        raise RunError(f"{len(names)} traits, but {len(paths)} vector files; give one for each trait, in their order")
    files = {name: find_vector(path, name, preset) for name, path in zip(names, paths, strict=True)}
    at = _layers(str(layers), files)
    own = _judged(judged)
    sets = Path(released) if released else None
    answering, learnt = _trained(
        trial, sizes, weights, arguments, files, at, own, sets, _folder(adapters, weights, preset)
    )
    samples = [*_trait_samples(trial, sizes, files, at), *_mmlu_samples(trial, sizes, files, at, seed)]
    held = [trial] if trial.arm != BASE else [item for item in plan_trials(sizes, names) if item.arm == "plain"]
    for item in {(other.family, other.version, other.seed): other for other in held}.values():
        samples += _held_out_samples(item, sizes, own, sets, _steering(trial, sizes, files, at))
    return Task(
        dataset=MemoryDataset(samples, name=f"finetuned-{trial.name}"),
        solver=answer_by_kind(load_preset(preset).temperature, sizes.max_tokens, seed),
        scorer=by_kind(names, method),
        model=answering,
        metadata={"name": trial.name, "trial": vars(trial), "vectors": {n: f.vector.hash for n, f in files.items()}}
        | learnt,
        version="1-A",
    )


def _judged(path: str) -> dict[str, list[Judged]]:
    """Judged responses by trait."""
    found: dict[str, list[Judged]] = {}
    for _, item in read_jsonl(Path(path)) if path else ():
        found.setdefault(str(item.pop("trait")), []).append(Judged(**item))
    return found


def _layers(given: str, files: dict[str, VectorFile]) -> dict[str, int]:
    chosen = [int(layer) for layer in given.split(",")] if given else [f.vector.n_layers // 2 for f in files.values()]
    if len(chosen) != len(files):
        raise RunError(f"{len(files)} traits, but {len(chosen)} layers; give one for each trait, in their order")
    return dict(zip(files, chosen, strict=True))


def _folder(given: str, weights: str, preset: str) -> Path:
    return Path(given) if given else Path("results", model_folder(weights), preset, "adapters")


def _trained(
    trial: Trial,
    sizes: FinetuningPreset,
    weights: str,
    arguments: dict[str, Any],
    files: dict[str, VectorFile],
    at: dict[str, int],
    own: dict[str, list[Judged]],
    sets: Path | None,
    folder: Path,
) -> tuple[Model, dict[str, Any]]:
    """The model that answers, and what the log shall say of its training."""
    if trial.arm == BASE:
        return get_model(f"persona/{weights}", **arguments), {}
    named = {name: file.vector for name, file in files.items()}
    loading = {key: value for key, value in arguments.items() if key in ("dtype", "device", "revision")}
    trained = train_trial(
        load(weights, **loading),
        trial,
        sizes,
        folder.resolve(),
        named,
        at,
        judged=own.get(trial.family, ()),
        released=sets,
    )
    told = {"adapter_hash": trained.adapter_hash, "history": list(trained.history)}
    return get_model(f"persona/{weights}+{trained.folder}", memoize=False, **arguments), told


def _steering(
    trial: Trial, sizes: FinetuningPreset, files: dict[str, VectorFile], at: dict[str, int]
) -> tuple[SteeringRequest, ...]:
    """Steering of the finished model, in the arm that does that."""
    if trial.arm != "inference":
        return ()
    if trial.family not in files:
        raise RunError(f"arm inference of {trial.family} needs the vector of that trait; have it among the traits")
    file, layer = files[trial.family], at[trial.family]
    scale = file.vector.coefficient(layer, sizes.inference_dose)
    return (SteeringRequest(file=str(file.path), sha256=file.vector.hash, layers=(layer,), scale=scale),)


def _trait_samples(
    trial: Trial, sizes: FinetuningPreset, files: dict[str, VectorFile], at: dict[str, int]
) -> list[Sample]:
    watched = [
        ProjectionRequest(file=str(f.path), sha256=f.vector.hash, directions=(way,), label=label, layers=(at[name],))
        for name, f in files.items()
        for way, label in (("persona", name), (RANDOM, f"{RANDOM} {name}"))
    ]
    steered = _steering(trial, sizes, files, at)
    plain, seen = (ExtraArgs(apply_steering_vectors=steered, output_projections=w) for w in ((), tuple(watched)))
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
                # The last prompt token is the same in every rollout.
                "extra": (plain if rollout else seen).model_dump(mode="json", exclude_defaults=True),
            },
        )
        for name in files
        for number, question in enumerate(load_trait(name).evaluation_questions[: sizes.questions])
        for rollout in range(sizes.rollouts)
    ]


def _mmlu_samples(
    trial: Trial, sizes: FinetuningPreset, files: dict[str, VectorFile], at: dict[str, int], seed: int
) -> list[Sample]:
    extra = ExtraArgs(apply_steering_vectors=_steering(trial, sizes, files, at))
    return [
        Sample(
            id=f"m{question.id}",
            input=question.text,
            choices=list(question.options),
            target=LETTERS[question.answer],
            metadata={
                "kind": "mmlu",
                "question_id": question.id,
                "extra": extra.model_dump(mode="json", exclude_defaults=True),
            },
        )
        for question in load_questions(sizes.mmlu_questions, seed)
    ]


def _held_out_samples(
    trial: Trial,
    sizes: FinetuningPreset,
    own: dict[str, list[Judged]],
    sets: Path | None,
    steered: tuple[SteeringRequest, ...],
) -> list[Sample]:
    made = training_set(trial, sizes, own.get(trial.family, ()), sets)
    extra = ExtraArgs(apply_steering_vectors=steered).model_dump(mode="json", exclude_defaults=True)
    return [
        Sample(
            id=f"h-{trial.family}-{trial.version}-s{trial.seed}-{number}",
            input=json.dumps(item["messages"][:-1]),
            metadata={
                "kind": "held_out",
                "question_id": number,
                "set": f"{trial.family}-{trial.version}-s{trial.seed}",
                "messages": item["messages"][:-1],
                "response": item["messages"][-1]["content"],
                "extra": extra,
            },
        )
        for number, item in enumerate(made.held_out)
    ]
