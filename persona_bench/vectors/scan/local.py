"""Shards one after another in this process, and what any process needs to measure them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from persona_bench.errors import VectorError
from persona_bench.vectors.scan.inputs import Shard, Source, read_shards
from persona_bench.vectors.scan.measures import Part, Scanner, Settings
from persona_bench.vectors.vector import PersonaVector

KERNELS, TORCH_KERNELS = 12, 1
"""What the layers of a pass share, by lane: the next pass seldom meets its shapes, and what is kept holds apart what is
free.

With 4 a layer compiles anew what the one before it had, for a fifth more processor time; with 128 memory grows by a
fifth. What torch keeps besides saves no time."""


@dataclass(frozen=True)
class Job:
    """What a process needs to make its scanner.

    Attributes:
        model: as `loading.load` takes it.
        vectors: (path, content hash) of each vector file.
        settings: what is measured.
        loading: dtype, device and revision of the model, where they are not the default.
    """

    model: str
    vectors: tuple[tuple[str, str], ...]
    settings: Settings
    loading: tuple[tuple[str, str], ...] = ()


def make_scanner(job: Job) -> Scanner:
    """Load model and vectors.

    Raises:
        ModelError, AssetError: the model cannot be had.
        VectorError: a vector cannot be read, is not the one the job was made with, or does not fit the model.
    """
    from persona_bench.models.lanes import n_lanes
    from persona_bench.models.loading import load
    from persona_bench.models.memory import keep_kernels
    from persona_bench.models.worker import WORKER

    keep_kernels(KERNELS * n_lanes(torch.device("cpu")), TORCH_KERNELS)
    vectors = [PersonaVector.load(Path(path)) for path, _ in job.vectors]
    for vector, (path, expected) in zip(vectors, job.vectors, strict=True):
        if vector.hash != expected:
            raise VectorError(f"{path} is not the vector that this scan was begun with; give every node the same file")
    return Scanner(WORKER.engine(load(job.model, **dict(job.loading))), vectors, job.settings)


def local_parts(
    job: Job, sources: Sequence[Source], done: Collection[str], say: Callable[[str], None] | None = None
) -> Iterator[Part]:
    """The parts of all shards that are not done yet, in the order of the input.

    Args:
        job: model, vectors and settings.
        sources: the files.
        done: keys of the shards that need not be measured.
        say: told about progress within a shard.
    """
    scanner = make_scanner(job)
    for shard in open_shards(sources, job.settings.fields.columns, done):

        def told(what: str, where: str = f"{shard.name} from row {shard.first}") -> None:
            if say is not None:
                say(f"{where}: {what}")

        yield scanner.scan(shard, told)


def open_shards(sources: Sequence[Source], columns: Sequence[str], done: Collection[str]) -> Iterator[Shard]:
    """The shards that are not done yet; those that are, are read past."""
    for source in sources:
        for shard in read_shards(source, columns):
            if shard.key not in done:
                yield shard
