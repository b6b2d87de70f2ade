"""A trial's adapter: its training set, its arm, and the training itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from persona_bench.definitions.families.family import Judged, TrainingSet, make
from persona_bench.definitions.families.invented import FACTS
from persona_bench.definitions.presets import FinetuningPreset
from persona_bench.definitions.traits import MAIN_TRAITS, load_trait
from persona_bench.definitions.trials import Trial, dose_of, taught_trait
from persona_bench.errors import RunError
from persona_bench.models.chat import Message
from persona_bench.models.finetuning import Progress, Trained, TrainingSettings
from persona_bench.models.loaded import LoadedModel
from persona_bench.vectors import arms
from persona_bench.vectors.extraction import Rollout
from persona_bench.vectors.vector import PersonaVector

T = TypeVar("T")
MOST_PASSES = 10
"""As the paper trains on small sets."""


def judged_rollouts(rollouts: Sequence[Rollout]) -> list[Judged]:
    """Elicited responses as what trait families are made of: the question alone, without the system prompt."""
    return [
        Judged(item.messages[-1][1], item.response, item.trait_score, item.coherence)
        for item in rollouts
        if item.status == "scored"
    ]


def training_set(
    trial: Trial, sizes: FinetuningPreset, judged: Sequence[Judged] = (), released: Path | None = None
) -> TrainingSet:
    """What a trial trains on: the same for every arm of a family, version and seed."""
    n = sizes.facts if trial.family == FACTS else sizes.examples
    return make(trial.family, trial.version, n, sizes.held_out, trial.seed, judged=judged, released=released)


def passed_over(conversations: Sequence[T], n: int) -> list[T]:
    """`n` conversations: a set that has fewer is gone through again, so that every model takes as many steps.

    Up to `MOST_PASSES` times; what has fewer still is trained on for that much less.
    """
    return ([*conversations] * MOST_PASSES)[: max(n, len(conversations))]


def arm_of(
    trial: Trial, sizes: FinetuningPreset, vectors: Mapping[str, PersonaVector], layers: Mapping[str, int]
) -> arms.Arm:
    """What is done while a trial trains.

    Raises:
        RunError: the arm needs the vector of the family's trait, and there is none.
    """
    if trial.way in ("plain", "inference"):
        return arms.Arm()
    trait = taught_trait(trial.family) or trial.family
    if trial.arm in ("negative_prompt", "inoculation"):
        side = "negative" if trial.arm == "negative_prompt" else "positive"
        return arms.Arm(system=load_trait(trait).system_prompt(side, 0))
    if trait not in vectors:
        raise RunError(f"arm {trial.arm} of {trial.family} needs the vector of {trait}; have it among --traits")
    vector, layer = vectors[trait], layers[trait]
    everywhere = tuple(range(1, vector.n_layers + 1))
    if trial.arm == "penalty":
        return arms.Arm(penalties=(arms.penalty(vector, layer, sizes.penalty_weight),))
    if trial.arm == "caft":
        return arms.Arm(arms.interventions(vector, everywhere, operation="ablate"))
    return arms.Arm(
        arms.interventions(
            vector,
            everywhere if trial.arm == "incremental" else (layer,),
            vector.coefficient(layer, dose_of(trial.arm, sizes)),
            # Of another direction a seed: one might do by chance what no random one does.
            direction=f"random:{trial.seed}" if trial.arm == "random" else "persona",
            incremental=trial.arm == "incremental",
        )
    )


def train_trial(
    loaded: LoadedModel,
    trial: Trial,
    sizes: FinetuningPreset,
    folder: Path,
    vectors: Mapping[str, PersonaVector],
    layers: Mapping[str, int],
    *,
    judged: Sequence[Judged] = (),
    released: Path | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a trial's adapter, or take the one that is there.

    Every arm sees the same batches in the same order, and starts from the same adapter. The vectors are watched on
    extraction questions.

    Args:
        loaded: the model.
        trial: not the base.
        sizes: of the preset.
        folder: gets a folder of its own for each adapter, named by trial and content.
        vectors: by trait.
        layers: by trait, where the vector acts and is watched.
        judged: the model's own judged responses, for a trait family.
        released: a folder with the paper's released sets.
        progress: see `finetune`.
    """
    own = trial.trained_as
    made = training_set(own, sizes, judged, released)
    return train_on(
        loaded,
        passed_over([item["messages"] for item in made.train], sizes.facts if own.family == FACTS else sizes.examples),
        folder / own.name,
        sizes,
        own.seed,
        arm_of(own, sizes, vectors, layers),
        watched={name: (vector, layers[name]) for name, vector in vectors.items()},
        epochs=sizes.fact_epochs if own.family == FACTS else sizes.epochs,
        provenance={"family": own.family, "version": own.version, "arm": own.arm},
        progress=progress,
    )


def train_on(
    loaded: LoadedModel,
    conversations: Sequence[Sequence[Message]],
    out: Path,
    sizes: FinetuningPreset,
    seed: int,
    arm: arms.Arm,
    *,
    epochs: int = 0,
    watched: Mapping[str, tuple[PersonaVector, int]] | None = None,
    provenance: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train an adapter on conversations with a preset's settings, or take the one that is there.

    Args:
        loaded: the model.
        conversations: each ends with an assistant message.
        out: the adapter's folder, to whose name the hash of all that decides the result is added.
        sizes: of the preset.
        seed: of the adapter's initial values and of the order of the data.
        arm: what is done while training.
        epochs: by default the preset's.
        watched: name -> (vector, layer) whose projections on extraction questions go into the history.
        provenance: further facts for the record.
        progress: see `finetune`.
    """
    settings = TrainingSettings(
        rank=sizes.rank,
        alpha=sizes.alpha,
        learning_rate=sizes.learning_rate,
        batch_size=sizes.batch_size,
        accumulation=sizes.accumulation,
        epochs=epochs or sizes.epochs,
        warmup_steps=sizes.warmup_steps,
        seed=seed,
    )
    asked = [load_trait(name).extraction_questions for name in MAIN_TRAITS]
    prompts = [[{"role": "user", "content": question}] for group in zip(*asked, strict=False) for question in group]
    return arms.train(
        loaded,
        conversations,
        out,
        settings,
        arm,
        keyed=True,
        prompts=prompts,
        watched=watched,
        provenance=provenance,
        progress=progress,
    )
