"""What one trial of `preventative_steering` works with: its adapter, trained if it is not there, and its vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspect_ai.model import Model, get_model

from persona_bench.definitions.families.family import Judged, TrainingSet
from persona_bench.definitions.families.invented import FACTS
from persona_bench.definitions.presets import FinetuningPreset
from persona_bench.definitions.trials import (
    BASE,
    PLAIN,
    RANDOM_DIRECTIONS,
    Trial,
    dose_of,
    plan_trials,
    taught_trait,
)
from persona_bench.errors import RunError
from persona_bench.files import model_folder, read_jsonl
from persona_bench.inspect_ext.cells import VectorFile, find_vector, listed
from persona_bench.inspect_ext.requests import ExtraArgs, ProjectionRequest, SteeringRequest
from persona_bench.models.finetuning import Trained
from persona_bench.models.loading import load
from persona_bench.vectors.trials import train_trial, training_set

NONE = "none"
"""Stands in a list of vector files for a trait that has none."""
LOADING = ("dtype", "device", "revision")


@dataclass(frozen=True)
class Bench:
    """What trials of one model share.

    Attributes:
        sizes: of the preset.
        traits: whose questions are asked.
        files: vector files by trait; a trait may have none, and then only its score is measured.
        layers: by trait, where its vector acts and is projected on.
        judged: the model's own judged responses by trait, for trait families.
        released: folder of the paper's released sets, or None.
    """

    sizes: FinetuningPreset
    traits: tuple[str, ...]
    files: Mapping[str, VectorFile]
    layers: Mapping[str, int]
    judged: Mapping[str, Sequence[Judged]]
    released: Path | None

    def training_set(self, trial: Trial) -> TrainingSet:
        """What a trial trains on and holds out."""
        return training_set(trial, self.sizes, self.judged.get(trial.family, ()), self.released)

    def asked(self, trial: Trial) -> tuple[str, ...]:
        """The traits whose questions a trial is asked; the base of facts, which is the base, none again."""
        if trial.arm == BASE:
            return () if trial.family == FACTS else self.traits
        return tuple(name for name in self.traits if name == taught_trait(trial.family) or not trial.narrow)

    def trained_sets(self, trial: Trial) -> list[Trial]:
        """Whose training set a trial is asked about: its own; the base about those of all that are held against it."""
        if trial.arm != BASE:
            return [trial]
        planned = plan_trials(self.sizes, tuple(self.files))
        return [item for item in planned if item.arm == PLAIN and (item.family == FACTS) == (trial.family == FACTS)]

    def steering(self, trial: Trial) -> tuple[SteeringRequest, ...]:
        """Steering of the finished model, in the arm that does that.

        Raises:
            RunError: there is no vector of the family's trait.
        """
        if trial.way != "inference":
            return ()
        trait = taught_trait(trial.family) or trial.family
        if trait not in self.files:
            raise RunError(f"arm inference of {trial.family} needs the vector of {trait}; have it among the traits")
        file, layer = self.files[trait], self.layers[trait]
        scale = file.vector.coefficient(layer, -dose_of(trial.arm, self.sizes))
        return (SteeringRequest(file=str(file.path), sha256=file.vector.hash, layers=(layer,), scale=scale),)

    def extra(self, trial: Trial, *, watched: bool = False) -> dict[str, Any]:
        """What is asked of the provider: steering, and where wanted projections on vectors and random directions."""
        requests = [
            ProjectionRequest(
                file=str(file.path),
                sha256=file.vector.hash,
                directions=directions,
                label=name,
                layers=(self.layers[name],),
            )
            for name, file in self.files.items()
            for directions in (("persona",), RANDOM_DIRECTIONS)
            if watched
        ]
        extra = ExtraArgs(apply_steering_vectors=self.steering(trial), output_projections=tuple(requests))
        return extra.model_dump(mode="json", exclude_defaults=True)


def set_up(
    sizes: FinetuningPreset, preset: str, traits: str, vectors: str, layers: str, judged: str, released: str
) -> Bench:
    """A bench from the arguments of a task.

    Raises:
        RunError: vectors or layers are not as many as traits.
        VectorError: a vector file is missing or broken.
        DataError: `judged` cannot be read.
    """
    names = listed(traits)
    paths = listed(vectors) if vectors else [""] * len(names)
    if len(paths) != len(names):
        raise RunError(f"{len(names)} traits, but {len(paths)} vector files; give one for each trait, in their order")
    files = {name: find_vector(path, name, preset) for name, path in zip(names, paths, strict=True) if path != NONE}
    middle = [str(files[name].vector.n_layers // 2 if name in files else 0) for name in names]
    chosen = listed(layers) if layers else middle
    if len(chosen) != len(names) or not all(layer.isdigit() for layer in chosen):
        raise RunError(f"layers {layers!r}: give one whole number for each of the {len(names)} traits, comma-separated")
    own: dict[str, list[Judged]] = {}
    for _, item in read_jsonl(Path(judged)) if judged else ():
        own.setdefault(str(item.pop("trait")), []).append(Judged(**item))
    at = dict(zip(names, map(int, chosen), strict=True))
    return Bench(sizes, tuple(names), files, at, own, Path(released) if released else None)


def trained_model(bench: Bench, trial: Trial, preset: str, base: str, adapters: str) -> tuple[Model, dict[str, Any]]:
    """The model that answers, and what its log shall say of the training.

    Args:
        bench: what trials share.
        trial: which adapter; the base answers without one.
        preset: names the default folder of adapters.
        base: weights; by default those of the active model, with its arguments.
        adapters: folder for adapters, or empty.
    """
    weights, arguments = weights_of(base)
    if trial.arm == BASE:
        return base_model(base), {}
    trained = train_trial(
        load(weights, **loading_of(arguments)),
        trial,
        bench.sizes,
        adapter_folder(weights, preset, adapters),
        {name: file.vector for name, file in bench.files.items()},
        bench.layers,
        judged=bench.judged.get(trial.family, ()),
        released=bench.released,
    )
    return with_adapter(weights, arguments, trained)


def weights_of(base: str) -> tuple[str, dict[str, Any]]:
    """The weights that are trained and the model's arguments: those given, or those of the active model."""
    if base:
        return base, {}
    active = get_model()
    return active.name, dict(active.model_args)


def loading_of(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a model's arguments that `load` takes."""
    return {key: value for key, value in arguments.items() if key in LOADING}


def base_model(base: str) -> Model:
    """The model before any training."""
    return get_model(f"persona/{base}") if base else get_model()


def adapter_folder(weights: str, preset: str, adapters: str) -> Path:
    """Where adapters are: the folder given, or the one beside the run of the same model and preset."""
    return (Path(adapters) if adapters else Path("results", model_folder(weights), preset, "adapters")).resolve()


def with_adapter(weights: str, arguments: Mapping[str, Any], trained: Trained) -> tuple[Model, dict[str, Any]]:
    """The model with an adapter, and what its log shall say of the training."""
    # Not kept among the models of this process: whoever is done with an adapter closes it.
    model = get_model(f"persona/{weights}+{trained.folder}", memoize=False, **arguments)
    return model, {"adapter_hash": trained.adapter_hash, "history": list(trained.history)}
