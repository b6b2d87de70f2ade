"""The cells of a sweep: which vector, layer and coefficient a sample is steered with, and where the vector file is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inspect_ai.model import get_model

from persona_bench.definitions.presets import Preset
from persona_bench.errors import RunError, VectorError
from persona_bench.files import model_folder
from persona_bench.inspect_ext.requests import ExtraArgs, SteeringRequest
from persona_bench.vectors.vector import PersonaVector


@dataclass(frozen=True)
class VectorFile:
    """A vector file with its content hash, which identifies it in logs and caches."""

    path: Path
    vector: PersonaVector


@dataclass(frozen=True)
class Cell:
    """One condition of a sweep; layer 0 and coefficient 0 without steering."""

    vector: str
    direction: str
    layer: int
    coefficient: float
    relative_dose: float

    @property
    def id(self) -> str:
        """Short and stable, part of sample ids."""
        return "none" if self.vector == "none" else f"{self.direction}-l{self.layer}-d{self.relative_dose:+g}"

    def metadata(self) -> dict[str, Any]:
        """The columns that name the cell in tables."""
        return {
            "vector": self.vector,
            "direction": self.direction,
            "layer": self.layer,
            "coefficient": self.coefficient,
            "relative_dose": self.relative_dose,
        }

    def extra(self, file: VectorFile) -> ExtraArgs:
        """What the provider is asked for."""
        if self.vector == "none":
            return ExtraArgs()
        request = SteeringRequest(
            file=str(file.path),
            sha256=file.vector.hash,
            direction=self.direction,
            layers=(self.layer,),
            scale=self.coefficient,
        )
        return ExtraArgs(apply_steering_vectors=(request,))


UNSTEERED = Cell("none", "none", 0, 0.0, 0.0)


def find_vector(path: str, trait: str, preset: str, sha256: str = "") -> VectorFile:
    """The vector of a task: the file given, or the one a run of the same model and preset left in `results/`.

    Raises:
        VectorError: there is none, with the command that makes one; or its content is not what `sha256` names.
    """
    if path:
        file = Path(path).resolve()
        found = VectorFile(file, PersonaVector.load(file))
        if sha256 and found.vector.hash != sha256:
            raise VectorError(f"{file} has content hash {found.vector.hash}, not the {sha256} asked for")
        return found
    model = get_model()
    file = Path("results", model_folder(model.name), preset, "vectors", f"{trait}.safetensors").resolve()
    if not file.exists():
        raise VectorError(
            f"no vector for {trait}: {file} does not exist; make one with `persona-bench extract --model {model.name} "
            f"--trait {trait} --out {trait}.safetensors` and pass -T vector={trait}.safetensors"
        )
    return VectorFile(file, PersonaVector.load(file))


def plan(
    layers: Sequence[int], doses: Sequence[float], random_vectors: int, control_layers: Sequence[int] | None = None
) -> list[tuple[str, str, int, float]]:
    """(vector, direction, layer, dose) of every steered cell.

    Every layer and dose with the persona vector; random vectors of the same norms as controls at `control_layers` (by
    default the middle one) and the largest dose of either sign.
    """
    extremes = sorted({min(doses), max(doses)}) if doses else []
    controlled = layers[len(layers) // 2 :][:1] if control_layers is None else control_layers
    steered = [("persona", "persona", layer, dose) for layer in layers for dose in doses]
    return steered + [
        ("random", f"random:{index}", layer, dose)
        for index in range(random_vectors)
        for layer in controlled
        for dose in extremes
    ]


def sweep(
    file: VectorFile,
    layers: Sequence[int],
    doses: Sequence[float],
    random_vectors: int,
    control_layers: Sequence[int] | None = None,
) -> list[Cell]:
    """The cells of a sweep: no steering, then the plan with its coefficients.

    Args:
        file: the vector.
        layers: 1-based layers.
        doses: signed relative doses |alpha v| / mean |h_l|.
        random_vectors: how many random directions.
        control_layers: where those are swept; by default the middle one of the layers.
    """
    cells = [UNSTEERED]
    for vector, direction, layer, dose in plan(layers, doses, random_vectors, control_layers):
        file.vector.check_layer(layer)
        cells.append(Cell(vector, direction, layer, file.vector.coefficient(layer, dose), dose))
    return cells


def numbers(given: str | float | Sequence[Any], default: Sequence[float]) -> tuple[float, ...]:
    """A comma-separated list from the command line (Inspect may have parsed it already), or the default.

    Raises:
        RunError: something in it is not a number.
    """
    items = str(given).split(",") if isinstance(given, str | int | float) else list(given)
    if not items or items == [""]:
        return tuple(default)
    try:
        return tuple(float(item) for item in items)
    except (TypeError, ValueError) as error:
        raise RunError(f"{given!r} is no comma-separated list of numbers") from error


def half(question_id: int) -> str:
    """Even questions choose layer and coefficient, odd ones report."""
    return "select" if question_id % 2 == 0 else "report"


def preset_layers(preset: Preset, file: VectorFile, given: str | float | Sequence[Any]) -> tuple[int, ...]:
    """The swept layers: those given, or the preset's fractions of the depth.

    Raises:
        RunError: a layer is not a whole number.
    """
    layers = numbers(given, preset.layers(file.vector.n_layers))
    if any(layer != int(layer) for layer in layers):
        raise RunError(f"{given!r}: layers are whole numbers from 1 to {file.vector.n_layers}")
    return tuple(int(layer) for layer in layers)
