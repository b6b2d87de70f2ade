"""What a monitored sample is projected on: the persona vector and, beside it, every control that the files hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from persona_bench.errors import VectorError
from persona_bench.inspect_ext.cells import VectorFile, listed
from persona_bench.inspect_ext.requests import ExtraArgs, ProjectionRequest
from persona_bench.vectors.vector import PersonaVector

OTHER = "trait:"
"""Before the name of another trait, as a direction."""


def watch(
    file: VectorFile, others: str | Sequence[str], layers: tuple[int, ...], random_vectors: int, *, per_token: bool
) -> ExtraArgs:
    """The projections to take of a response.

    Args:
        file: the vector.
        others: comma-separated vector files of other traits.
        layers: 1-based layers.
        random_vectors: how many random directions of the same norm.
        per_token: also keep the persona projection of every token.

    Raises:
        VectorError: a layer, or another trait's vector, does not fit.
    """
    for layer in layers:
        file.vector.check_layer(layer)
    controls = [f"random:{index}" for index in range(random_vectors)]
    controls += [name for name in ("shuffled", "refusal") if name in file.vector.directions]

    def request(
        found: VectorFile, directions: tuple[str, ...], label: str = "", tokens: bool = False
    ) -> ProjectionRequest:
        return ProjectionRequest(
            file=str(found.path),
            sha256=found.vector.hash,
            directions=directions,
            label=label,
            layers=layers,
            prompt_mean=True,
            per_token=tokens,
        )

    requests = [request(file, ("persona",), tokens=per_token)]
    if controls:
        requests.append(request(file, tuple(controls)))
    for path in filter(None, listed(others or "")):
        other = VectorFile(Path(path).resolve(), PersonaVector.load(Path(path)))
        if other.vector.n_layers != file.vector.n_layers:
            raise VectorError(f"{path} has {other.vector.n_layers} layers, {file.path.name} {file.vector.n_layers}")
        requests.append(request(other, ("persona",), label=f"{OTHER}{other.vector.trait}"))
    return ExtraArgs(output_projections=tuple(requests))
