"""A scan from files to its output: shards that are missing are measured, then put together and summarised."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from persona_bench.errors import DataError
from persona_bench.files import file_lock, read_jsonl, write_atomic
from persona_bench.vectors.scan.inputs import Source, find_sources, fingerprint
from persona_bench.vectors.scan.local import Job, local_parts
from persona_bench.vectors.scan.measures import Settings, columns, labels, value_columns
from persona_bench.vectors.scan.parts import Parts
from persona_bench.vectors.scan.summary import against_reference, summarise
from persona_bench.vectors.table_file import check_table_path, table_rows
from persona_bench.vectors.vector import PersonaVector

SAY_SECONDS = 5.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cluster:
    """Where a scan runs on Ray; see `cluster.ray_parts`."""

    address: str = ""
    actors: int = 0
    cpus: float = 1.0


@dataclass(frozen=True)
class Scan:
    """A scan that is asked for.

    Attributes:
        job: model, vectors and settings.
        sources: the files.
        target: the output, `.csv` or `.parquet`.
        traits: what the vectors are called in the output.
        weights: sha256 of the model's weights, without an adapter.
        adapter: sha256 of the adapter that is merged into them.
    """

    job: Job
    sources: tuple[Source, ...]
    target: Path
    traits: tuple[str, ...]
    weights: str
    adapter: str | None = None

    @property
    def summary_path(self) -> Path:
        """The summary, beside the output."""
        return _summary_of(self.target)

    @property
    def fingerprint(self) -> str:
        """Changes whenever the output could come out differently."""
        vectors = [content for _, content in self.job.vectors]
        asked = [self.job.settings.plain(), vectors, self.weights, version("persona-bench"), *self.job.loading]
        return fingerprint(self.sources, asked if self.adapter is None else [*asked, ("adapter", self.adapter)])


def plan_scan(
    model: str,
    vectors: Sequence[Path],
    inputs: Sequence[str],
    target: Path,
    settings: Settings,
    loading: Mapping[str, str | None] | None = None,
) -> Scan:
    """Check everything that can be checked before the first pass.

    Args:
        model: as `loading.load` takes it.
        vectors: their files.
        inputs: as `find_sources` takes them.
        target: the output.
        settings: what is measured.
        loading: dtype, device and revision of the model, where they are not the default.

    Raises:
        PersonaBenchError: a model, vector, layer, input or output that does not fit.
    """
    from persona_bench.models.adapters import hash_adapter
    from persona_bench.models.loading import hash_weights, resolve, split_adapter

    check_table_path(target)
    held = [PersonaVector.load(path) for path in vectors]
    traits = labels(held)
    for vector in held:
        for layer in settings.layers:
            vector.check_direction(layer)
    side, summary = Parts.side_of(target), _summary_of(target)
    # A scan was begun here: what stands at its target is what it wrote. Else it may be samples, which are not replaced.
    ours = [target] if summary.exists() or Parts.folder_of(target).exists() else []
    sources = find_sources(inputs, [*ours, side, summary, Parts.folder_of(target)])
    for source in sources:
        if Path(source.path).resolve() in {target.resolve(), side.resolve(), summary.resolve()}:
            raise DataError(f"{source.name} is both input and output; choose another --out")
    hashes = tuple((str(path.absolute()), vector.hash) for path, vector in zip(vectors, held, strict=True))
    given = tuple(sorted((name, value) for name, value in (loading or {}).items() if value is not None))
    weights = hash_weights(resolve(model, (loading or {}).get("revision"))[0])
    folder = split_adapter(model)[1]
    adapter = None if folder is None else hash_adapter(folder)
    return Scan(Job(model, hashes, settings, given), tuple(sources), target, tuple(traits), weights, adapter)


def run_scan(
    scan: Scan,
    *,
    engine: Literal["local", "ray"] = "local",
    cluster: Cluster | None = None,
    reference: Path | None = None,
    top: int = 10,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Measure what is missing, write the output, its side file and its summary; returns the summary.

    Args:
        scan: as `plan_scan` gives it.
        engine: local, or ray; the output is the same.
        cluster: of engine ray.
        reference: an earlier scan's output to compare means with.
        top: how many of the highest and lowest samples the summary names.
        say: told about progress.

    Raises:
        PersonaBenchError: anything a user can mend; finished shards are kept, and the same scan goes on there.
    """
    names = columns(scan.traits, scan.job.settings)
    values = value_columns(scan.traits, scan.job.settings)
    if reference is not None:
        next(table_rows(reference, values), None)  # one that cannot be read is said before a long scan, not after it
    with file_lock(
        scan.target.with_name(f".{scan.target.name}.lock"), lambda: say("another scan writes this; waiting")
    ):
        if _is_finished(scan):
            say(f"{scan.target} holds this scan already")
        else:
            # What writes the parts is loaded before the first pass: the first shard takes as much memory as the last.
            import_module("pyarrow.parquet")
            parts = Parts(scan.target, names, scan.fingerprint)
            _measure(scan, parts, engine, cluster or Cluster(), say)
            say("putting the parts together")
            parts.finish()
        summary = _described(scan) | summarise(scan.target, values, top) | {"rejected": _rejected(scan.target)}
        if reference is not None:
            against_reference(summary, reference)
            summary["reference"] = str(reference)
        write_atomic(scan.summary_path, json.dumps(summary, indent=1) + "\n")
        Parts.remove(scan.target, scan.fingerprint)
    return summary


def _summary_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.summary.json")


def _measure(scan: Scan, parts: Parts, engine: str, cluster: Cluster, say: Say) -> None:
    if parts.keys:
        say(f"going on after {len(parts.keys)} finished shards")
    if engine == "ray":
        from persona_bench.vectors.scan.cluster import ray_parts

        coming = ray_parts(
            scan.job,
            scan.sources,
            parts.keys,
            address=cluster.address,
            actors=cluster.actors,
            cpus=cluster.cpus,
        )
    else:
        coming = local_parts(scan.job, scan.sources, frozenset(parts.keys), say)
    started, told, n = time.monotonic(), 0.0, 0
    for part in coming:
        parts.write(part)
        n += len(part.rows) + len(part.rejected)
        passed = time.monotonic() - started
        if passed - told >= SAY_SECONDS:
            told = passed
            say(f"{n} rows, {n / passed:.1f} a second")


def _is_finished(scan: Scan) -> bool:
    if not scan.target.is_file() or not scan.summary_path.is_file():
        return False
    try:
        held = json.loads(scan.summary_path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{scan.summary_path} is broken; remove it and scan again") from error
    return isinstance(held, dict) and held.get("fingerprint") == scan.fingerprint


def _described(scan: Scan) -> dict[str, Any]:
    return {
        "fingerprint": scan.fingerprint,
        "model": scan.job.model,
        "weights": scan.weights,
        **({"adapter": scan.adapter} if scan.adapter else {}),
        "vectors": [
            {"trait": trait, "file": path, "sha256": content}
            for trait, (path, content) in zip(scan.traits, scan.job.vectors, strict=True)
        ],
        "settings": scan.job.settings.plain(),
        "sources": [{"file": source.name, "identity": source.identity} for source in scan.sources],
    }


def _rejected(target: Path) -> dict[str, int]:
    """Reason -> how many rows."""
    side = Parts.side_of(target)
    if not side.is_file() or not side.stat().st_size:
        return {}
    return dict(sorted(Counter(str(item["reason"]) for _, item in read_jsonl(side)).items()))
