"""Vectors made otherwise, by name, and the cells they are steered with in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from persona_bench.errors import RunError, VectorError
from persona_bench.inspect_ext.cells import Cell, VectorFile, listed, sweep
from persona_bench.vectors.variants import RAW
from persona_bench.vectors.vector import PersonaVector

__all__ = ["RAW", "named_vectors", "variant_cells"]


def named_vectors(variants: str | Sequence[str], sha256: str | Sequence[str] = "") -> dict[str, VectorFile]:
    """Vector files by name, in the order given.

    Args:
        variants: NAME=FILE, comma-separated.
        sha256: content hashes in the same order, comma-separated, or empty.

    Raises:
        RunError: none is given, or one has no name.
        VectorError: a file is no vector, or holds another content than its hash says.
    """
    pairs = [item.partition("=") for item in listed(variants) if item]
    if not pairs or not all(name.strip() and path.strip() for name, _, path in pairs):
        raise RunError(f"{variants!r} names no vectors; give them as -T variants=NAME=FILE,NAME=FILE")
    hashes = listed(sha256) if sha256 else [""] * len(pairs)
    if len(hashes) != len(pairs):
        raise RunError(f"{len(pairs)} vectors and {len(hashes)} hashes; give one hash a vector, or none")
    files = {}
    for (name, _, path), expected in zip(pairs, hashes, strict=True):
        file = Path(path.strip()).resolve()
        vector = PersonaVector.load(file)
        if expected and vector.hash != expected:
            raise VectorError(f"{file} has content hash {vector.hash}, not the {expected} asked for")
        files[name.strip()] = VectorFile(file, vector)
    return files


def variant_cells(
    name: str, file: VectorFile, layers: Sequence[int], doses: Sequence[float], random_vectors: int
) -> list[Cell]:
    """The cells of one vector, which its name stands for in `Cell.vector`.

    The run's own vector has its controls and its unsteered answers elsewhere; `raw` stands in for it, and has its own.
    """
    cells = sweep(file, layers, doses, random_vectors if name == RAW else 0)
    kept = cells if name == RAW else [cell for cell in cells if cell.vector == "persona"]
    return [replace(cell, vector=name) if cell.vector == "persona" else cell for cell in kept]
