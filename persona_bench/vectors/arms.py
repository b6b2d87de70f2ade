"""What a persona vector does to a training: the interventions of each arm, and files of conversations trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from persona_bench.errors import VectorError
from persona_bench.models.chat import Message, prompt_ids
from persona_bench.models.finetuning import Penalty, Probe, Progress, Trained, TrainingSettings, describe, finetune
from persona_bench.models.loaded import LoadedModel
from persona_bench.models.steering import Intervention, Operation, Positions
from persona_bench.models.training_data import lay_out
from persona_bench.vectors.vector import PersonaVector

PROBE_PROMPTS = 8


@dataclass(frozen=True, eq=False)
class Arm:
    """One way to train; nothing of it is left in the adapter.

    Attributes:
        interventions: on the residual stream of every pass.
        penalties: further terms of the loss.
        system: a system message in the place of each conversation's own, absent when the model is used.
    """

    interventions: tuple[Intervention, ...] = ()
    penalties: tuple[Penalty, ...] = ()
    system: str | None = None


def check_model(vector: PersonaVector, loaded: LoadedModel) -> None:
    """Refuse a vector that was made for another model.

    Raises:
        VectorError: its shape is another, or its provenance names other weights.
    """
    vector.check_shape(loaded.n_layers, loaded.d_model)
    made_for = str(vector.provenance.get("weights_hash", loaded.weights_hash))
    if made_for != loaded.weights_hash:
        raise VectorError(
            f"this vector was made for other weights ({vector.provenance.get('model', 'unknown')}, {made_for[:12]}) "
            f"than {loaded.name} ({loaded.weights_hash[:12]}); extract it anew for this model"
        )


def interventions(
    vector: PersonaVector,
    layers: Sequence[int],
    coefficient: float = 1.0,
    *,
    operation: Operation = "add",
    positions: Positions = "all",
    direction: str = "persona",
    incremental: bool = False,
) -> tuple[Intervention, ...]:
    """The same operation at several layers.

    Args:
        vector: holds the direction.
        layers: 1-based.
        coefficient: multiples of the raw vector.
        operation: add, ablate or cap.
        positions: all (as in the paper's training), response or prompt.
        direction: a name that `PersonaVector.direction` takes.
        incremental: at each layer v_l - v_(previous layer given), so that the sum up to layer l is v_l (the paper,
            section on steering at several layers).

    Raises:
        VectorError: there is no such layer or direction.
    """
    values = vector.direction(direction)
    previous = torch.zeros(values.shape[1], dtype=torch.float32)
    made = []
    for layer in layers:
        vector.check_layer(layer)
        step = values[layer] - previous if incremental else values[layer]
        previous = values[layer]
        made.append(Intervention(layer, step, coefficient, operation, positions))
    return tuple(made)


def penalty(vector: PersonaVector, layer: int, weight: float) -> Penalty:
    """A penalty on the shift along the vector, in units of the mean norm of the residual stream at the layer."""
    vector.check_layer(layer)
    unit = torch.nn.functional.normalize(vector.directions["persona"][layer], dim=0)
    return Penalty(layer, unit / vector.residual_norm(layer), weight)


def watch(
    loaded: LoadedModel, prompts: Sequence[Sequence[Message]], watched: Mapping[str, tuple[PersonaVector, int]]
) -> Probe | None:
    """A probe of unit vectors: name -> (vector, layer); None where nothing is watched."""
    directions = {}
    for name, (vector, layer) in watched.items():
        vector.check_layer(layer)
        directions[name] = (layer, torch.nn.functional.normalize(vector.directions["persona"][layer], dim=0))
    ids = tuple(prompt_ids(loaded.tokenizer, prompt) for prompt in prompts[:PROBE_PROMPTS])
    return Probe(ids, directions) if directions else None


def train(
    loaded: LoadedModel,
    conversations: Sequence[Sequence[Message]],
    out: Path,
    settings: TrainingSettings,
    arm: Arm,
    *,
    keyed: bool = False,
    prompts: Sequence[Sequence[Message]] = (),
    watched: Mapping[str, tuple[PersonaVector, int]] | None = None,
    provenance: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train an adapter on conversations under an arm.

    Args:
        loaded: the model.
        conversations: each ends with an assistant message.
        out: the adapter's folder.
        settings: how.
        arm: what is done while training.
        keyed: whether the folder's name gets the hash of all that decides the result, so that no training meets
            another's folder.
        prompts: what the vectors are watched on; by default the first conversations without their last message.
        watched: name -> (vector, layer) whose projections go into the history.
        provenance: further facts for `training.json`.
        progress: see `finetune`.

    Raises:
        PersonaBenchError: see `lay_out` and `finetune`.
    """
    examples = lay_out(loaded.tokenizer, conversations, loaded.max_length, loaded.eos_ids, arm.system)
    probe = watch(loaded, prompts or [item[:-1] for item in conversations], watched or {})
    if keyed:
        told = describe(loaded, examples, settings, arm.interventions, arm.penalties, probe)
        out = out.with_name(f"{out.name}-{told['fingerprint'][:12]}")
    return finetune(
        loaded,
        examples,
        out,
        settings,
        interventions=arm.interventions,
        penalties=arm.penalties,
        probe=probe,
        provenance=provenance,
        progress=progress,
    )
