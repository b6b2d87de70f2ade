"""`persona-bench convert`: another project's file -> a PersonaVector, and back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from persona_bench.errors import DataError, VectorError
from persona_bench.models.shape import ModelShape, read_shape
from persona_bench.vectors.formats import control_vectors, saklas, tensors
from persona_bench.vectors.formats.foreign import About, Answers, Found, as_trait, check_file, refuse
from persona_bench.vectors.vector import OURS, PersonaVector, kind_of

Say = Callable[[str], None]
Write = Callable[[About, Path], list[str]]

WRITERS: dict[str, tuple[str, Write]] = {
    "official": (".pt", tensors.write_official),
    "hidden-directions": (".pt", tensors.write_hidden_directions),
    "assistant-axis": (".pt", tensors.write_assistant_axis),
    "darkfield": (".pt", tensors.write_darkfield),
    **{name: (".gguf", control_vectors.writer(name)) for name in control_vectors.NAMES},
    "saklas": (".safetensors", saklas.write),
}
FORMATS = (OURS, *WRITERS)
BY_SUFFIX = {".pt": "official", ".gguf": "repeng", ".safetensors": OURS}
READERS = {"torch": tensors.read, "gguf": control_vectors.read, "safetensors": saklas.read}
CONTAINERS = {**{name: "torch" for name in tensors.NAMES}, **{name: "gguf" for name in control_vectors.NAMES}}
SIGNS = ("keep", "flip")


@dataclass(frozen=True)
class Request:
    """What `convert` was asked for.

    Attributes:
        source: the file to read.
        target: the file to write.
        model: the model the vector belongs to, "" where it is not at hand.
        layer: 1-based; of a file with one direction, or the one to write.
        source_format: one of `FORMATS`, "" to tell it from the file.
        target_format: one of `FORMATS`, "" to tell it from the suffix of `target`.
        n_layers: the model's number of decoder blocks.
        sign: `keep`, `flip` or "".
        trait: the name that the vector gets, "" for the file's.
        direction: which direction of a PersonaVector is written.
        norms: whether an imported vector's residual norms are measured on `model`.
    """

    source: Path
    target: Path
    model: str = ""
    layer: int | None = None
    source_format: str = ""
    target_format: str = ""
    n_layers: int | None = None
    sign: str = ""
    trait: str = ""
    direction: str = "persona"
    norms: bool = True


@dataclass(frozen=True)
class Converted:
    """What was done: a line on the outcome, and what a person should know."""

    outcome: str
    warnings: tuple[str, ...]


def convert(request: Request, say: Say = lambda _: None) -> Converted:
    """Read one file and write the other, whole or not at all.

    Raises:
        VectorError: the file is broken or the user has to say more; the message asks the question.
        DataError: the output cannot be what was asked for.
        ModelError: an unknown model.
    """
    target = _target(request)
    shape = read_shape(request.model) if request.model else None
    if shape is not None and request.n_layers not in (None, shape.n_layers):
        raise DataError(f"--n-layers {request.n_layers}, but {request.model} has {shape.n_layers}; leave one out")
    source, vector, notes = _read(request, shape, target)
    if source == OURS and request.sign == "flip":
        vector = replace(vector, directions={name: -value for name, value in vector.directions.items()})
    if shape is not None:
        try:
            vector.check_shape(shape.n_layers, shape.d_model)
        except VectorError as error:
            raise VectorError(f"{request.source}: {error}") from error
    if target == OURS:
        if shape is not None and request.norms:
            vector = measured(vector, request.model, say)
        elif vector.residual_norms is None:
            notes.append(
                "no residual norms, which relative doses and `check` need: give --model M to have them measured"
            )
        vector.save(request.target)
    else:
        notes += _export(request, target, vector, shape)
    width = vector.directions["persona"].shape[1]
    return Converted(
        f"{request.target}: {vector.trait}, {vector.n_layers} layers of width {width}, from {source} to {target}",
        tuple(notes),
    )


def _target(request: Request) -> str:
    """The format to write.

    Raises:
        DataError: it is unknown, or its files have another suffix.
    """
    for name in (request.source_format, request.target_format):
        if name and name not in FORMATS:
            raise DataError(f"unknown format {name!r}; choose from {', '.join(FORMATS)}")
    if request.sign not in ("", *SIGNS):
        raise DataError(f"unknown --sign {request.sign!r}; choose keep or flip")
    if request.trait and request.trait != as_trait(request.trait):
        raise DataError(f"--trait {request.trait!r} is no name of a trait: letters, digits, _ and - alone")
    if request.target.is_dir():
        raise DataError(f"{request.target} is a folder; name the file to write")
    if request.target.resolve() == request.source.resolve():
        raise DataError(f"{request.target} is both input and output; choose another output")
    target = request.target_format or BY_SUFFIX.get(request.target.suffix, "")
    if not target:
        raise DataError(f"{request.target}: vectors are written as {', '.join(BY_SUFFIX)}; choose such a name")
    suffix = ".safetensors" if target == OURS else WRITERS[target][0]
    if request.target.suffix != suffix:
        raise DataError(f"{request.target}: {target} files are {suffix}; choose such a name or another --to")
    return target


def _read(request: Request, shape: ModelShape | None, target: str) -> tuple[str, PersonaVector, list[str]]:
    """The format of the input, the vector, and what should be known of it."""
    path = request.source
    check_file(path)
    kind = kind_of(path)
    if OURS in (kind, request.source_format):
        vector = PersonaVector.load(path)
        if target == OURS:
            raise DataError(f"{path} is a vector of ours already; to write another project's, name it with --to")
        if request.n_layers not in (None, vector.n_layers):
            refuse(path, f"has {vector.n_layers} layers, not {request.n_layers}; leave --n-layers out")
        return OURS, replace(vector, trait=request.trait or vector.trait), []
    if kind not in READERS:
        refuse(path, "neither a PyTorch, GGUF nor safetensors file; such a file of another project can be converted")
    if request.source_format and CONTAINERS.get(request.source_format, "safetensors") != kind:
        refuse(path, f"a {kind} file, which {request.source_format} does not write; leave --from out")
    answers = Answers(
        request.source_format,
        request.n_layers if shape is None else shape.n_layers,
        None if shape is None else shape.d_model,
        request.layer,
        request.sign,
        request.trait,
    )
    found = READERS[kind](path, answers)
    if target == OURS and request.layer is not None and set(found.rows) != {request.layer}:
        refuse(path, "says itself which layers it holds; leave --layer out")
    vector = as_vector(path, found, answers, request.model)
    notes = list(found.notes)
    if answers.n_layers is None and found.format in ("repeng", "llama.cpp", "glp", "saklas"):
        notes.append(
            f"its model is taken to have {found.n_layers} layers, the highest in the file; --model or --n-layers "
            "settles it"
        )
    return found.format, vector, notes


def as_vector(path: Path, found: Found, answers: Answers, model: str = "") -> PersonaVector:
    """A PersonaVector of what a file holds; layers that it does not hold are zero.

    Raises:
        VectorError: it is zero at every layer, or its width is not the model's.
    """
    width = next(iter(found.rows.values())).numel()
    if answers.d_model not in (None, width):
        refuse(path, f"its directions have width {width}, the model {answers.d_model}; is it of another model?")
    persona = torch.zeros(found.n_layers + 1, width, dtype=torch.float32)
    for layer, row in found.rows.items():
        persona[layer] = -row if answers.sign == "flip" else row
    if not bool(persona[1:].any()):
        refuse(path, "is zero at every layer")
    absent = [layer for layer in range(1, found.n_layers + 1) if layer not in found.rows]
    imported = {
        "format": found.format,
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "sign": answers.sign or "keep",
        "said": dict(found.facts),
        "layers_absent": absent,
    }
    provenance: dict[str, Any] = {"imported": imported, "warning": "; ".join(found.notes)}
    if model:
        provenance["model"] = model
    return PersonaVector(answers.trait or found.trait, {"persona": persona}, None, provenance)


def measured(vector: PersonaVector, model: str, say: Say) -> PersonaVector:
    """The vector with the residual norms and the refusal direction of the model it belongs to."""
    from persona_bench.models.loading import load
    from persona_bench.models.worker import WORKER
    from persona_bench.vectors.extraction import refusal_and_norms

    say(f"measuring the residual norms of {model}")
    loaded = load(model)
    refusal, norms = refusal_and_norms(WORKER.engine(loaded))
    return replace(
        vector,
        directions={**vector.directions, "refusal": torch.tensor(refusal, dtype=torch.float32)},
        residual_norms=torch.tensor(norms, dtype=torch.float32),
        provenance={**vector.provenance, "model": loaded.name, "weights_hash": loaded.weights_hash},
    )


def _export(request: Request, target: str, vector: PersonaVector, shape: ModelShape | None) -> list[str]:
    """Write another project's file; returns what it does not hold."""
    if target == "assistant-axis" and not request.sign:
        refuse(request.target, tensors.TOWARD_ASSISTANT)
    direction = vector.direction(request.direction)
    model = request.model or str(vector.provenance.get("model", ""))
    about = About(direction, vector.trait, model, shape.model_type if shape else "", request.layer)
    lost = WRITERS[target][1](about, request.target)
    lost += _unheld(vector, request.direction)
    return [f"files in format {target} do not hold: {', '.join(lost)}"] if lost else []


def _unheld(vector: PersonaVector, direction: str) -> Sequence[str]:
    others = [name for name in vector.directions if name != direction]
    return [
        *([f"the other directions ({', '.join(others)})"] if others else []),
        *(["the residual norms"] if vector.residual_norms is not None else []),
        *(["the mean negative response"] if vector.negative_mean is not None else []),
        "where it comes from",
    ]
