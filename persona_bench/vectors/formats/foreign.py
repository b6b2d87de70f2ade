"""What another project's file holds in this project's numbering, and what only its user can say of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from persona_bench.errors import VectorError

MAX_BYTES = 2**27  # of a file; the largest open models need a tenth
MAX_NUMBERS = 2**24  # of a whole vector, (n_layers + 1) * d_model
MAX_LAYERS = 1024
MAX_JSON_BYTES = 2**20
RESIDUAL = "residual stream after a block"


@dataclass(frozen=True)
class Answers:
    """What a user says of a file that the file itself does not.

    Attributes:
        source: the format (`--from`), "" to tell it from the file.
        n_layers: the model's number of decoder blocks (`--model` or `--n-layers`).
        d_model: the model's width, where the model is at hand.
        layer: 1-based layer of a file with one direction (`--layer`).
        sign: `keep`, `flip`, or "" where nobody has said it.
        trait: the trait's name, "" to take it from the file.
    """

    source: str = ""
    n_layers: int | None = None
    d_model: int | None = None
    layer: int | None = None
    sign: str = ""
    trait: str = ""


@dataclass(frozen=True, eq=False)
class Found:
    """The directions of a file.

    Attributes:
        format: whose file it is.
        rows: layer l -> `(d_model,)`; l = 0 is the embedding, l = 1..n the residual stream after l blocks.
        n_layers: number of decoder blocks of its model.
        trait: the name that the file gives.
        notes: what a person should know, a sentence each.
        facts: what the file says of itself, kept in the provenance.
    """

    format: str
    rows: Mapping[int, Tensor]
    n_layers: int
    trait: str
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class About:
    """What a file to be written says besides its numbers.

    Attributes:
        direction: `(n_layers + 1, d_model)` float32.
        trait: its name.
        model: the model's name, "" where nobody knows it.
        model_type: the architecture by transformers' name, "" where nobody knows it.
        layer: the one layer to write, None for all that the format has.
    """

    direction: Tensor
    trait: str
    model: str = ""
    model_type: str = ""
    layer: int | None = None

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return int(self.direction.shape[0]) - 1

    def layers(self, first: int) -> list[int]:
        """The layers to write of a format that begins with `first`.

        Raises:
            VectorError: the one asked for is outside.
        """
        if self.layer is not None and not first <= self.layer <= self.n_layers:
            raise VectorError(
                f"layer {self.layer} is outside the layers {first}..{self.n_layers} that this format can hold"
            )
        return [self.layer] if self.layer is not None else list(range(first, self.n_layers + 1))


def refuse(path: Path, reason: str) -> NoReturn:
    """Raise the one-line error about a file.

    Raises:
        VectorError: always.
    """
    raise VectorError(f"{path}: {reason}")


def shown(value: object, limit: int = 50) -> str:
    """A stranger's text or number as a message may hold it: one line of printable characters, cut short.

    Of anything else its type's name: lists that hold one list many times, level by level, have no end as text.
    """
    short = value is None or isinstance(value, float) or isinstance(value, int) and abs(value) < 2**63
    text = value if isinstance(value, str) else str(value) if short else type(value).__name__
    return "".join(item if item.isprintable() else " " for item in text[:limit])


def check_file(path: Path) -> None:
    """Refuse what is no file, or too large to be a vector.

    Raises:
        VectorError: naming the file.
    """
    if not path.is_file():
        raise VectorError(f"no vector file {path}; give the path of one to convert")
    if path.stat().st_size > MAX_BYTES:
        refuse(path, f"larger than {MAX_BYTES} bytes, so no vector; give the file with the directions alone")


def read_bytes(path: Path) -> bytes:
    """The file's content.

    Raises:
        VectorError: it cannot be read, or is too large.
    """
    check_file(path)
    try:
        return path.read_bytes()
    except OSError as error:
        refuse(path, f"cannot be read: {error.strerror or error}")


def read_json(path: Path) -> dict[str, Any]:
    """A side file.

    Raises:
        VectorError: it is missing, too large, or no JSON object.
    """
    check_file(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        refuse(path, f"larger than {MAX_JSON_BYTES} bytes; a side file holds a few names and numbers")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise VectorError(f"{path}: no JSON that can be read ({type(error).__name__}); write it again") from error
    if not isinstance(found, dict):
        refuse(path, "expected a JSON object; write it again")
    return found


def as_row(path: Path, name: str, value: Tensor) -> Tensor:
    """One direction as float32 `(d_model,)`.

    Raises:
        VectorError: it has another shape, holds no real numbers, or some that are not finite.
    """
    if value.dim() != 1 or not value.numel():
        refuse(path, f"{name} has shape {tuple(value.shape)}, one direction is (d_model,)")
    if not value.dtype.is_floating_point:
        refuse(path, f"{name} is {value.dtype}, a direction is floating point")
    row = value.to(torch.float32, copy=True)
    if not bool(torch.isfinite(row).all()):
        refuse(path, f"{name} holds values that are not finite as float32 (NaN or infinity)")
    return row


def as_rows(path: Path, name: str, value: Tensor, first: int) -> dict[int, Tensor]:
    """The rows of a matrix as layers, the first row being layer `first`.

    Raises:
        VectorError: it is no matrix, or too large for a vector.
    """
    if value.dim() != 2 or not value.numel():
        refuse(path, f"{name} has shape {tuple(value.shape)}, expected (layers, d_model)")
    if value.shape[0] > MAX_LAYERS + 1 or value.numel() > MAX_NUMBERS:
        refuse(path, f"{name} has shape {tuple(value.shape)}, too large for a vector")
    return {first + row: as_row(path, f"{name}, row {row}", value[row]) for row in range(value.shape[0])}


def settle_layers(path: Path, answers: Answers, held: Sequence[int], told: int | None = None) -> int:
    """The model's number of layers: what the user or the file says; a run from the first layer to the last shows it.

    Args:
        path: of the file.
        answers: of the user.
        held: layers that the file holds.
        told: what the file says, None where it says nothing.

    Raises:
        VectorError: the two differ, a layer lies outside, or nobody knows it, with the question that settles it.
    """
    if answers.n_layers is not None and told is not None and told != answers.n_layers:
        refuse(path, f"made for a model of {told} layers, not of {answers.n_layers}; name its own model")
    n_layers = answers.n_layers if told is None else told
    whole = sorted(held) == list(range(min(held), max(held) + 1)) and min(held) <= 2
    if n_layers is None and whole and len(held) > 1:
        n_layers = max(held)
    if n_layers is None:
        refuse(
            path,
            f"holds {_few(held)} and does not say of how many: how many decoder blocks does its model have? "
            "Answer with --model M or --n-layers N",
        )
    if not 1 <= n_layers <= MAX_LAYERS:
        refuse(path, f"{n_layers} layers are no model's; give --n-layers from 1 to {MAX_LAYERS}")
    if not 0 <= min(held) or max(held) > n_layers:
        outside = min(held) if min(held) < 0 else max(held)
        refuse(path, f"holds a direction for layer {outside}, outside 1..{n_layers} of its model; name its own model")
    return n_layers


def _few(held: Sequence[int]) -> str:
    return f"layer {held[0]} alone" if len(held) == 1 else f"{len(held)} layers between {min(held)} and {max(held)}"


def as_trait(name: str) -> str:
    """A name that a trait may have, made from a file's."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-_") or "imported"


def plain_facts(held: Mapping[str, Any]) -> dict[str, Any]:
    """The short texts and numbers among what a file says of itself; nothing that is nested is followed."""
    found: dict[str, Any] = {}
    for key, value in list(held.items())[:64]:
        short = isinstance(value, str) and len(value) <= 500
        number = isinstance(value, int | float) and abs(value) < 2**63  # neither NaN nor infinity, which JSON lacks
        if isinstance(key, str) and len(key) <= 100 and (short or number):
            found[key] = value
    return found
