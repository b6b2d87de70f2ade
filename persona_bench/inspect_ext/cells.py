"""The cells of a sweep: how a sample is steered or told to suppress a trait, and where the vector file is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inspect_ai.model import get_model

from persona_bench.definitions.presets import SETTINGS, Preset
from persona_bench.definitions.traits import MAIN_TRAITS, Trait
from persona_bench.errors import RunError, TraitError, VectorError
from persona_bench.files import model_folder
from persona_bench.inspect_ext.requests import ExtraArgs, SteeringRequest
from persona_bench.vectors.vector import PersonaVector

FEW_SHOTS = 5
"""How many example exchanges that do not show the trait stand before the question in the setting `few_shot`."""
_SEVERAL = ("multi", "incremental")
_CLAMPS = ("cap", "ablate")
_PROMPTS = ("system_prompt", "few_shot")


@dataclass(frozen=True)
class VectorFile:
    """A vector file with its content hash, which identifies it in logs and caches."""

    path: Path
    vector: PersonaVector


@dataclass(frozen=True)
class Cell:
    """One condition of a sweep.

    Attributes:
        vector: persona, random, prompt (words instead of a vector) or none.
        direction: the direction of the vector file.
        setting: how it acts; the relative dose is |alpha v| / mean |h|, signed, of

            - `single`: v at one layer;
            - `multi`: v at every listed layer, where each takes the same share of the dose, so that the shares add up
              to it;
            - `incremental`: v_l - v_(the listed layer before) at every listed layer with one alpha (the paper's
              multi-layer steering); the steps add up to v of the last layer, whose dose it is;
            - `cap`: the projection on v is limited to that of the mean negative response of extraction;
            - `ablate`: v is projected out;
            - `system_prompt`, `few_shot`: no steering, `before` stands before the question.
        layers: 1-based; none without steering.
        coefficient: alpha, in multiples of the raw vector: of `multi` the mean over its layers, 0 without a dose.
        relative_dose: None for `cap` and `ablate`, which change every token by as much as it takes.
        before: (role, text) before the question.
    """

    vector: str
    direction: str
    setting: str
    layers: tuple[int, ...] = ()
    coefficient: float = 0.0
    relative_dose: float | None = 0.0
    before: tuple[tuple[str, str], ...] = ()

    @property
    def layer(self) -> int:
        """The layer, the first of several, 0 without steering."""
        return self.layers[0] if self.layers else 0

    @property
    def id(self) -> str:
        """Short and stable, part of sample ids."""
        if not self.layers:
            return self.setting
        how = "" if self.setting == "single" else f"-{self.setting}"
        dose = "" if self.relative_dose is None else f"-d{self.relative_dose:+g}"
        return f"{self.direction}{how}-l{'.'.join(map(str, self.layers))}{dose}"

    def metadata(self) -> dict[str, Any]:
        """The columns that name the cell in tables, and what stands before the question."""
        return {
            "vector": self.vector,
            "direction": self.direction,
            "setting": self.setting,
            "layers": ",".join(map(str, self.layers)),
            "layer": self.layer,
            "coefficient": self.coefficient,
            "relative_dose": self.relative_dose,
            **({"before": [list(turn) for turn in self.before]} if self.before else {}),
        }

    def extra(self, file: VectorFile) -> ExtraArgs:
        """What the provider is asked for."""
        return ExtraArgs(
            apply_steering_vectors=tuple(
                SteeringRequest(file=str(file.path), sha256=file.vector.hash, direction=self.direction, **changes)
                for changes in self._changes(file.vector)
            )
        )

    def _changes(self, vector: PersonaVector) -> Iterator[dict[str, Any]]:
        if self.setting == "single":
            yield {"layers": self.layers, "scale": self.coefficient}
        elif self.setting == "multi":
            for layer, alpha in zip(self.layers, _shares(vector, self.layers, self.relative_dose or 0.0), strict=True):
                yield {"layers": (layer,), "scale": alpha}
        elif self.setting == "incremental" and self.vector == "persona":
            yield {"layers": self.layers, "scale": self.coefficient, "incremental": True}
        elif self.setting == "incremental":
            # Differences of independent random vectors would be longer than the steps they are the control of.
            persona, own, previous = vector.directions["persona"], vector.direction(self.direction), None
            for layer in self.layers:
                step = persona[layer] if previous is None else persona[layer] - persona[previous]
                yield {"layers": (layer,), "scale": self.coefficient * float(step.norm() / own[layer].norm())}
                previous = layer
        elif self.setting == "cap":
            for layer in self.layers:
                scale = vector.negative_projection(self.direction, layer)
                yield {"layers": (layer,), "scale": scale, "operation": "cap"}
        elif self.setting == "ablate":
            yield {"layers": self.layers, "operation": "ablate"}


UNSTEERED = Cell("none", "none", "none")


def _shares(vector: PersonaVector, layers: Sequence[int], dose: float) -> list[float]:
    """The coefficient of each layer of `multi`."""
    return [vector.coefficient(layer, dose / len(layers)) for layer in layers]


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
    layers: Sequence[int],
    doses: Sequence[float],
    random_vectors: int,
    control_layers: Sequence[int] | None = None,
    *,
    settings: Sequence[str] = ("single",),
    controlled: Sequence[str] = ("single",),
    several: Sequence[int] = (),
    trait: Trait | None = None,
) -> list[Cell]:
    """Every cell but the unsteered one, without coefficients, which depend on the vector.

    - `single`: every layer and dose; random vectors at `control_layers` and every dose, whichever is chosen later.
    - `multi`, `incremental`: every dose at all of `several`; random vectors at the largest dose of either sign.
    - `cap`, `ablate`: at the middle of `several`, and at all of them where `multi` is asked for too.
    - `system_prompt`: the most suppressing rung of the trait's ladder, or its first negative instruction.
    - `few_shot`: examples that do not show the trait.

    Args:
        layers: 1-based layers.
        doses: signed relative doses |alpha v| / mean |h_l|.
        random_vectors: how many random directions.
        control_layers: where `single` has its controls; by default the middle one of `layers`.
        settings: which of `SETTINGS`.
        controlled: which of those have random vectors of the same norm, in the same setting, as controls.
        several: the layers steered at once; by default `layers`.
        trait: whose words suppress it; needed by `system_prompt` and `few_shot`.
    """
    together = tuple(several or layers)
    extremes = sorted({min(doses), max(doses)}) if doses else []
    middle = tuple(layers[len(layers) // 2 :][:1])
    controls = middle if control_layers is None else control_layers
    randoms = [("random", f"random:{index}") for index in range(random_vectors)]
    cells: list[Cell] = []

    def add(setting: str, places: Sequence[tuple[int, ...]], at: Sequence[float | None], who: Any) -> None:
        cells.extend(
            Cell(vector, direction, setting, place, relative_dose=dose)
            for vector, direction in who
            for place in places
            for dose in at
        )

    persona = [("persona", "persona")]
    for setting in settings:
        against = randoms if setting in controlled else []
        if setting == "single":
            add(setting, [(layer,) for layer in layers], doses, persona)
            add(setting, [(layer,) for layer in controls], doses, against)
        elif setting in _SEVERAL and len(together) > 1:
            add(setting, [together], doses, persona)
            add(setting, [together], extremes, against)
        elif setting in _CLAMPS:
            everywhere = [together] if "multi" in settings and len(together) > 1 else []
            add(setting, [(together[len(together) // 2],), *everywhere], [None], [*persona, *against])
        elif setting in _PROMPTS and trait is not None:
            cells.append(Cell("prompt", "none", setting, before=_before(setting, trait)))
    return cells


def _before(setting: str, trait: Trait) -> tuple[tuple[str, str], ...]:
    if setting == "system_prompt":
        return (("system", trait.ladder[0] if trait.ladder else trait.system_prompt("negative", 0)),)
    assert trait.shots is not None
    shots = trait.shots.negative[:FEW_SHOTS]
    return tuple(turn for shot in shots for turn in (("user", shot.question), ("assistant", shot.answer)))


def sweep(
    file: VectorFile,
    layers: Sequence[int],
    doses: Sequence[float],
    random_vectors: int,
    control_layers: Sequence[int] | None = None,
    **more: Any,
) -> list[Cell]:
    """The cells of a sweep: no steering, then the plan with its coefficients.

    Args:
        file: the vector.
        layers: 1-based layers.
        doses: signed relative doses |alpha v| / mean |h_l|.
        random_vectors: how many random directions.
        control_layers: where those are swept; by default the middle one of the layers.
        more: what else `plan` takes.

    Raises:
        VectorError: a layer is not the vector's, or the vector holds nothing to cap at.
    """
    cells = plan(layers, doses, random_vectors, control_layers, **more)
    return [UNSTEERED, *(_with_coefficient(cell, file.vector) for cell in cells)]


def _with_coefficient(cell: Cell, vector: PersonaVector) -> Cell:
    for layer in cell.layers:
        vector.check_layer(layer)
        if cell.setting == "cap":
            vector.negative_projection(cell.direction, layer)
    if not cell.layers or cell.relative_dose is None:
        return cell
    if cell.setting == "multi":
        shares = _shares(vector, cell.layers, cell.relative_dose)
        return replace(cell, coefficient=sum(shares) / len(shares))
    return replace(cell, coefficient=vector.coefficient(cell.layers[-1], cell.relative_dose))


def preset_plan(
    preset: Preset, trait: Trait, n_layers: int, layers: Sequence[int], settings: str | Sequence[Any] = ""
) -> dict[str, Any]:
    """What `plan` and `sweep` take besides layers and doses: which settings, with which controls, at which layers.

    Args:
        preset: of the task.
        trait: whose words suppress it.
        n_layers: of the model.
        layers: the swept layers; those steered at once where there are several, else the preset's are.
        settings: those given, comma-separated; by default the preset's that the trait has texts for.

    Raises:
        RunError: unknown setting.
        TraitError: the trait has no texts for a setting that was given.
    """
    given = listed(settings)
    unknown = [item for item in given if item and item not in SETTINGS]
    if unknown:
        raise RunError(f"unknown setting {unknown[0]!r}; choose from {', '.join(SETTINGS)}")
    if "few_shot" in given and trait.shots is None:
        raise TraitError(f"trait {trait.name} has no `shots`, which setting few_shot needs; add them to its file")
    asked = [item for item in given if item]
    held = preset.settings if trait.name in MAIN_TRAITS else preset.other_settings
    names = asked or [name for name in held if name != "few_shot" or trait.shots is not None]
    return {
        "settings": tuple(name for name in SETTINGS if name in names),
        "controlled": tuple(asked or preset.controlled_settings),
        "several": tuple(layers) if len(layers) > 1 else preset.layers(n_layers),
        "trait": trait,
    }


def listed(given: Any) -> list[str]:
    """A comma-separated argument; Inspect may have parsed it already."""
    items = given if isinstance(given, list | tuple) else str(given).split(",")
    return [str(item).strip() for item in items]


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
