"""The same shards on a Ray cluster: Ray Data reads them and hands each to an actor that holds the model.

An actor runs the same `Scanner` on the same shard as a single process would, so what it gives is the same. Nothing is
written by the workers: parts come back to the driver, which keeps them (`parts`), so only the input must be readable on
every node. A worker that dies is replaced and its shards are read and measured again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from persona_bench.errors import RunError, first_line
from persona_bench.vectors.scan.inputs import Shard, Source
from persona_bench.vectors.scan.local import Job, make_scanner, open_shards
from persona_bench.vectors.scan.measures import Part


class _Actor:
    def __init__(self, job: Job) -> None:
        self._scanner = make_scanner(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        # Columns come as arrays of numpy; `tolist` makes plain numbers, texts and bytes of them.
        cells = zip(*(column.tolist() for column in batch.values()), strict=True)
        shards = [Shard(**dict(zip(batch, row, strict=True))) for row in cells]
        return {"part": [self._scanner.scan(shard).encode() for shard in shards]}


def ray_parts(
    job: Job,
    sources: Sequence[Source],
    done: Collection[str],
    *,
    address: str = "",
    actors: int = 0,
    cpus: float = 1.0,
) -> Iterator[Part]:
    """The parts of all shards that are not done yet, as they come.

    Args:
        job: model, vectors and settings.
        sources: files that every node can read.
        done: keys of the shards that need not be measured.
        address: of a running cluster; empty: the one this process is part of, or a new one on this machine.
        actors: how many hold the model; 0: one a GPU of the cluster, or one where it has none.
        cpus: CPUs reserved for each actor.

    Raises:
        RunError: Ray is not installed, or the cluster cannot be reached.
    """
    try:
        import ray
        from ray.data import ActorPoolStrategy, Datasource, ReadTask, read_datasource
        from ray.data.block import BlockMetadata
    except ImportError as error:
        raise RunError("--engine ray needs Ray: pip install 'persona-bench[cluster]'") from error
    import pyarrow as pa

    columns = job.settings.fields.columns
    finished = frozenset(done)

    class _Shards(Datasource):  # type: ignore[misc,unused-ignore]
        def get_name(self) -> str:
            return "shards"

        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            return [ReadTask(_reader(source), _metadata()) for source in sources]

    def _metadata() -> Any:
        return BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)

    def _reader(source: Source) -> Callable[[], Iterator[Any]]:
        def read() -> Iterator[Any]:
            for shard in open_shards([source], columns, finished):
                yield pa.Table.from_pylist([asdict(shard)])

        return read

    try:
        if not ray.is_initialized():
            ray.init(address=address or None, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        first = first_line(error)
        raise RunError(f"the Ray cluster {address or 'on this machine'} cannot be used: {first}") from error
    gpus = int(ray.cluster_resources().get("GPU", 0))
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    results = read_datasource(_Shards()).map_batches(
        _Actor,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ActorPoolStrategy(size=actors or max(gpus, 1)),
        num_cpus=cpus,
        num_gpus=1 if gpus else 0,
    )
    for row in results.iter_rows():
        yield Part.decode(row["part"])
