"""PersonaVector: a direction at every layer with its controls and its provenance, in one safetensors file."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from persona_bench.errors import VectorError, first_line
from persona_bench.files import write_atomic
from persona_bench.vectors.tensor_bytes import tensor_bytes

OURS = "persona-bench"
FORMAT = f"{OURS}/1"
MAX_BYTES = 2**31
DIRECTIONS = ("persona", "prompt_last", "prompt_avg", "shuffled", "refusal")
_TRAIT = re.compile(r"[A-Za-z0-9_:-]+")  # with the colon of a random direction's file
KINDS = {"torch": "a PyTorch file", "gguf": "a GGUF file", "safetensors": "a safetensors file"}


def kind_of(path: Path) -> str:
    """What a file is by its first bytes: `OURS`, a key of `KINDS`, or "" for none of them.

    Raises:
        VectorError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as file:
            head = file.read(9)
        # The length of a safetensors header comes first, and may begin with another kind's mark.
        if head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
            with safe_open(path, framework="pt") as held:
                return OURS if (held.metadata() or {}).get("format", "").startswith(OURS) else "safetensors"
        if head.startswith(b"GGUF"):
            return "gguf"
        return "torch" if head.startswith((b"PK", b"\x80")) else ""
    except SafetensorError:
        return ""
    except OSError as error:
        raise VectorError(f"{path} cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True, eq=False)
class PersonaVector:
    """Directions of one trait in one model.

    Attributes:
        trait: the trait's name.
        directions: name -> `(n_layers + 1, d_model)` float32, raw; row 0 is the embedding and is never steered.
            `persona` is the paper's response-average difference of means; `prompt_last` and `prompt_avg` its other
            positions (section 2.2); `shuffled` comes from the same responses with labels shuffled; `refusal` is
            refusing minus complying responses.
        residual_norms: `(n_layers + 1,)` float32, mean |h_l| over response tokens, the scale of relative doses; None
            in a vector of another project whose model was not at hand.
        provenance: weights hash, trait hash, logs, filter, counts, versions.
        negative_mean: `(n_layers + 1, d_model)` float32, the mean residual stream of the kept negative responses, which
            says where a cap lies; None in files written before there was one.
    """

    trait: str
    directions: Mapping[str, Tensor]
    residual_norms: Tensor | None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    negative_mean: Tensor | None = None

    def __post_init__(self) -> None:
        if "persona" not in self.directions:
            raise VectorError("a vector needs a 'persona' direction")
        shape = self.directions["persona"].shape
        if len(shape) != 2 or shape[0] < 2:
            raise VectorError(f"a vector has shape (n_layers + 1, d_model), not {tuple(shape)}")
        for name, value in (*self.directions.items(), *self._others().items()):
            expected = shape[:1] if name == "residual_norms" else shape
            if value.shape != expected:
                raise VectorError(f"{name} has shape {tuple(value.shape)}, expected {tuple(expected)}")
            if value.dtype != torch.float32:
                raise VectorError(f"{name} is {value.dtype}, expected float32")
            if not bool(torch.isfinite(value).all()):
                raise VectorError(f"{name} holds values that are not finite (NaN or infinity)")

    def _others(self) -> dict[str, Tensor]:
        """What is stored besides directions."""
        found = {"residual_norms": self.residual_norms, "negative_mean": self.negative_mean}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks of the model it was made for."""
        return int(self.directions["persona"].shape[0]) - 1

    @cached_property
    def hash(self) -> str:
        """Sha256 of the numbers alone: equal for equal vectors whatever logs they came from; every cell asks for it."""
        digest = hashlib.sha256(self.trait.encode())
        for name in sorted(self.directions):
            digest.update(name.encode())
            digest.update(self.directions[name].contiguous().numpy().tobytes())
        for value in self._others().values():
            digest.update(value.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def direction(self, name: str) -> Tensor:
        """`(n_layers + 1, d_model)`: a stored direction, or `random:K`, the K-th random one of the same norms.

        Raises:
            VectorError: for a name the file does not hold.
        """
        if name.startswith("random:") and name.removeprefix("random:").isdigit():
            return self._random(int(name.removeprefix("random:")))
        if name not in self.directions:
            raise VectorError(
                f"no direction {name!r} in this vector; it holds {', '.join(self.directions)} and random:K"
            )
        return self.directions[name]

    def _random(self, seed: int) -> Tensor:
        persona = self.directions["persona"]
        noise = torch.randn(persona.shape, dtype=torch.float32, generator=torch.Generator().manual_seed(7919 + seed))
        scaled: Tensor = noise / noise.norm(dim=1, keepdim=True) * persona.norm(dim=1, keepdim=True)
        return scaled

    def check_shape(self, n_layers: int, d_model: int) -> None:
        """Refuse a model of another shape than the one this was made for.

        Raises:
            VectorError: naming both shapes.
        """
        width = self.directions["persona"].shape[1]
        if (self.n_layers, width) != (n_layers, d_model):
            raise VectorError(
                f"the {self.trait} vector has {self.n_layers} layers of width {width}, the model has {n_layers} of "
                f"{d_model}; was it made for another model?"
            )

    def check_layer(self, layer: int) -> None:
        """Refuse a layer outside 1..n_layers.

        Raises:
            VectorError: naming the range.
        """
        if not 1 <= layer <= self.n_layers:
            raise VectorError(f"layer {layer} is outside 1..{self.n_layers} of this vector; choose one inside")

    def check_direction(self, layer: int, name: str = "persona") -> None:
        """Refuse a layer outside 1..n_layers, or where a direction is zero, as in imports of one layer.

        Raises:
            VectorError: naming the layer.
        """
        self.check_layer(layer)
        if not bool(self.direction(name)[layer].any()):
            raise VectorError(f"the vector is zero at layer {layer}; choose another layer")

    def relative_dose(self, layer: int, coefficient: float) -> float:
        """Signed |alpha v| / mean |h_l| of steering with this vector at a layer."""
        norm = float(self.directions["persona"][layer].norm())
        return coefficient * norm / self.residual_norm(layer)

    def residual_norm(self, layer: int) -> float:
        """Mean |h_l| over response tokens at a layer.

        Raises:
            VectorError: the file does not hold it.
        """
        if self.residual_norms is None:
            raise VectorError(
                f"this {self.trait} vector holds no residual norms, so its relative dose is unknown; import it again "
                "with `persona-bench convert IN OUT --model M`, which measures them"
            )
        return float(self.residual_norms[layer])

    def coefficient(self, layer: int, dose: float) -> float:
        """The coefficient alpha (multiples of the raw vector) whose relative dose at a layer is `dose`."""
        norm = float(self.directions["persona"][layer].norm())
        if norm == 0:
            raise VectorError(f"the vector is zero at layer {layer}; choose another layer")
        return dose * self.residual_norm(layer) / norm

    def negative_projection(self, name: str, layer: int) -> float:
        """Scalar projection of the mean negative response on a unit direction: the limit that `cap` steers with.

        The rule, written before any result: no token may lie further along the direction than the mean response to
        instructions not to show the trait does.

        Raises:
            VectorError: the file holds no such mean, or the direction is zero at this layer.
        """
        if self.negative_mean is None:
            raise VectorError(
                f"this {self.trait} vector holds no mean negative response to cap at; make it again with "
                "`persona-bench extract`, or leave cap out (-T settings=...)"
            )
        axis = self.direction(name)[layer]
        if float(axis.norm()) == 0:
            raise VectorError(f"the vector is zero at layer {layer}; choose another layer")
        return float(self.negative_mean[layer] @ axis / axis.norm())

    def refusal_cosines(self) -> Tensor:
        """`(n_layers + 1,)`: cosine of the persona direction with the refusal direction, NaN where it is unknown."""
        if "refusal" not in self.directions:
            return torch.full((self.n_layers + 1,), torch.nan, dtype=torch.float32)
        return torch.nn.functional.cosine_similarity(self.directions["persona"], self.directions["refusal"])

    def save(self, path: Path) -> None:
        """Write the file atomically.

        Raises:
            DataError: the file cannot be written.
        """
        tensors = {f"direction.{name}": value for name, value in self.directions.items()} | self._others()
        header = {
            "format": FORMAT,
            "trait": self.trait,
            "hash": self.hash,
            "provenance": json.dumps(dict(self.provenance), sort_keys=True),
        }
        write_atomic(path, tensor_bytes(tensors, header))

    @classmethod
    def load(cls, path: Path) -> PersonaVector:
        """Read a file written by `save`; nothing in it is executed.

        Raises:
            VectorError: not such a file, broken, of a wrong shape, not finite, or changed since it was written.
        """
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            raise VectorError(f"no vector file {path}; make one with `persona-bench extract`")
        if path.stat().st_size > MAX_BYTES:
            raise VectorError(f"{path} is larger than {MAX_BYTES} bytes; is it a vector file?")
        kind = kind_of(path)
        if kind in KINDS:
            raise VectorError(
                f"{path} is {KINDS[kind]} of another project; import it with `persona-bench convert {path} "
                f"{path.stem}-imported.safetensors`"
            )
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if header.get("format") != FORMAT:
                raise VectorError(
                    f"{path} is of format {header.get('format')!r}, which this version does not read; it reads {FORMAT}"
                )
            trait, provenance = header["trait"], json.loads(header["provenance"])
            if not _TRAIT.fullmatch(trait):
                raise VectorError(f"its trait {trait[:60]!r} is no name of a trait: letters, digits, _, - and : alone")
            if not isinstance(provenance, dict):
                raise VectorError("its provenance is no JSON object; make the file again")
            vector = cls(
                trait=trait,
                directions={
                    name.removeprefix("direction."): value
                    for name, value in tensors.items()
                    if name.startswith("direction.")
                },
                residual_norms=tensors.get("residual_norms"),
                provenance=provenance,
                negative_mean=tensors.get("negative_mean"),
            )
        except (SafetensorError, KeyError, OSError, ValueError, RecursionError) as error:
            # ValueErrors: what is no JSON, and in it a whole number of over 4,300 digits.
            raise VectorError(f"cannot read vector {path}: {first_line(error)}") from error
        except VectorError as error:
            raise VectorError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
        if vector.hash != header.get("hash"):
            raise VectorError(f"{path} has changed since it was written (content hash differs); make it again")
        return vector
