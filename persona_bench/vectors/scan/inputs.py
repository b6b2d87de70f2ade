"""Where a scan's samples come from: files, globs, folders and Hub datasets, read as shards of raw rows.

A shard is a stretch of rows of one file, cut by rules that look at the file alone. So the same input falls into the
same shards on any machine, whatever was done before, and a scan can go on where it stopped.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from persona_bench.errors import AssetError, DataError, first_line

SHARD_ROWS = 1024
SHARD_BYTES = 2**22
MAX_ROW_BYTES = 2**25
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_HUB = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?(:(?P<pattern>[^:]+))?")
TOO_LARGE = b"\0"
"""Stands for a row of more than `MAX_ROW_BYTES`, which is never held whole."""
NOT_UTF8 = b"\1"
"""Stands for a row of a parquet file with bytes that are no text."""
BATCH_ROWS = 8
"""Of a parquet file that are in memory at once, before it is known how large they are."""


@dataclass(frozen=True)
class Source:
    """One file of samples.

    Attributes:
        number: its place among the files of the scan, from 0.
        name: what it is called in the output.
        path: where it is.
        identity: changes when the file does: size and time of the last change, or the Hub's commit.
    """

    number: int
    name: str
    path: str
    identity: str


@dataclass(frozen=True)
class Shard:
    """A stretch of rows of one file.

    Attributes:
        source: the file's place among the files of the scan.
        number: the shard's place in the file, from 0.
        name: what the file is called.
        first: number of its first row in the file: the line from 1 in JSONL, the row from 0 in parquet.
        payload: the rows as JSON texts between line feeds; an empty one is a blank line.
    """

    source: int
    number: int
    name: str
    first: int
    payload: bytes

    @property
    def key(self) -> str:
        """Sorts as the rows stand in the input."""
        return f"{self.source:05d}-{self.number:07d}"

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """(number in the file, JSON text) of each row, without blank lines."""
        for offset, row in enumerate(self.payload.split(b"\n")):
            if row.strip():
                yield self.first + offset, row


def find_sources(inputs: Sequence[str], leave_out: Collection[Path] = ()) -> list[Source]:
    """The files that inputs name, in the order given, each sorted by name.

    Args:
        inputs: files, globs, folders (all their files of `SUFFIXES`), or Hub datasets as `owner/name`, with
            `@revision` and `:pattern` of its files if need be. Of a Hub dataset only data files are fetched; nothing
            of it is run.
        leave_out: files, and folders with all that is in them, that a glob or a folder does not stand for.

    Raises:
        DataError: an input names nothing, or a file of another kind.
        AssetError: the Hub cannot be asked, or has no such dataset.
    """
    found: list[tuple[str, Path, str]] = []
    for given in inputs:
        found += _files(given, {path.resolve() for path in leave_out}) or _hub_files(given)
    seen: dict[Path, tuple[str, Path, str]] = {}
    for item in found:
        seen.setdefault(item[1].absolute(), item)
    return [Source(n, name, str(path), mark) for n, (name, path, mark) in enumerate(seen.values())]


def _files(given: str, leave_out: Collection[Path]) -> list[tuple[str, Path, str]]:
    path = Path(given).expanduser()
    if path.is_dir():
        paths = sorted(item for item in path.rglob("*") if item.is_file() and _suffix(item))
        paths = _without(paths, leave_out)
        if not paths:
            raise DataError(f"{path} holds no file that ends in {', '.join(SUFFIXES)}; name the files of samples")
    else:
        paths = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        paths = [item for item in paths if item.is_file()]
        paths = paths if path.is_file() else _without(paths, leave_out)
    for item in paths:
        if not _suffix(item):
            raise DataError(f"cannot scan {item}: files of samples end in {', '.join(SUFFIXES)}")
    return [(_named(item), item, f"{item.stat().st_size} {item.stat().st_mtime_ns}") for item in paths]


def _without(paths: list[Path], leave_out: Collection[Path]) -> list[Path]:
    return [item for item in paths if {item.resolve(), *item.resolve().parents}.isdisjoint(leave_out)]


def _named(path: Path) -> str:
    """A path as text that can be written; bytes that are not UTF-8, which a file's name may hold, as escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _suffix(path: Path) -> str:
    return next((suffix for suffix in SUFFIXES if path.name.lower().endswith(suffix)), "")


def _hub_files(given: str) -> list[tuple[str, Path, str]]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined,unused-ignore]

    match = _HUB.fullmatch(given)
    if match is None:
        raise DataError(f"{given} names no file; give a file, a glob, a folder or a Hub dataset such as owner/name")
    name, pattern = match["name"], match["pattern"]
    try:
        folder = Path(
            snapshot_download(
                name,
                repo_type="dataset",
                revision=match["revision"],
                allow_patterns=[pattern] if pattern else [f"*{suffix}" for suffix in SUFFIXES],
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        first = first_line(error)
        raise AssetError(
            f"{given} is no file here, and the Hub gives no dataset of that name ({first}); check the name, or "
            "download it and name its files"
        ) from error
    paths = sorted(item for item in folder.rglob("*") if item.is_file())
    if pattern:
        # The folder holds what was ever fetched of this revision, by any pattern.
        named = {str(item.relative_to(folder)): item for item in paths}
        paths = [named[item] for item in filter_repo_objects(named, allow_patterns=[pattern])]
        if not paths:
            raise DataError(f"no file of the Hub dataset {name} fits {pattern}; mend the pattern after the colon")
    paths = [item for item in paths if _suffix(item)]
    if not paths:
        raise DataError(f"the Hub dataset {given} holds no file that ends in {', '.join(SUFFIXES)}")
    return [(f"{name}/{item.relative_to(folder)}", item, folder.name) for item in paths]


def fingerprint(sources: Sequence[Source], settings: object) -> str:
    """Sha256 of the files' identities and of a scan's settings (plain JSON): a scan goes on only where both agree."""
    content = [[source.name, source.identity] for source in sources]
    cuts = [SHARD_ROWS, SHARD_BYTES, MAX_ROW_BYTES]
    return hashlib.sha256(json.dumps([content, settings, cuts], sort_keys=True).encode()).hexdigest()


def read_shards(source: Source, columns: Sequence[str] = ()) -> Iterator[Shard]:
    """The shards of a file, one in memory at a time.

    Args:
        source: the file.
        columns: what to read of a parquet file; those it has not are left out.

    Raises:
        DataError: the file cannot be read.
    """
    path = Path(source.path)
    try:
        rows = _parquet_rows(path, columns) if _suffix(path) == ".parquet" else _lines(path)
        first = 0 if _suffix(path) == ".parquet" else 1
        yield from _cut(source, rows, first)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        # pyarrow's errors are OSErrors and ValueErrors; gzip's are OSErrors, EOFErrors and zlib's own.
        reason = first_line(error)
        raise DataError(f"cannot read {source.name}: {reason}; the scan goes on once the file is whole") from error


def _cut(source: Source, rows: Iterator[bytes], first: int) -> Iterator[Shard]:
    held: list[bytes] = []
    size = number = 0
    for row in rows:
        held.append(row)
        size += len(row)
        if len(held) >= SHARD_ROWS or size >= SHARD_BYTES:
            yield Shard(source.number, number, source.name, first, b"\n".join(held))
            first, number = first + len(held), number + 1
            held, size = [], 0
    if held:
        yield Shard(source.number, number, source.name, first, b"\n".join(held))


def _lines(path: Path) -> Iterator[bytes]:
    with _opened(path) as file:
        while line := file.readline(MAX_ROW_BYTES):
            if line.endswith(b"\n") or len(line) < MAX_ROW_BYTES:
                yield line.rstrip(b"\r\n")
                continue
            while rest := file.readline(MAX_ROW_BYTES):
                if rest.endswith(b"\n"):
                    break
            yield TOO_LARGE


def _opened(path: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(path, "rb")) if _suffix(path) == ".jsonl.gz" else path.open("rb")


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[bytes]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        held = [name for name in dict.fromkeys(columns) if name in file.schema_arrow.names]
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=held):
            # Row by row, as one that cannot be decoded would take the others with it.
            for place in range(batch.num_rows):
                try:
                    (row,) = batch.slice(place, 1).to_pylist()
                    text = json.dumps(row, default=_plain).encode()
                except UnicodeDecodeError:
                    yield NOT_UTF8
                    continue
                yield text if len(text) <= MAX_ROW_BYTES else TOO_LARGE


def _plain(value: object) -> str:
    """What JSON has no form for, as text; bytes, as in a column that was not written as text, are decoded."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


def texts_of(source: Source, wanted: set[int], columns: Sequence[str]) -> Iterator[tuple[int, bytes]]:
    """(number, JSON text) of the wanted rows of a file, read no further than the last of them."""
    left = set(wanted)
    for shard in read_shards(source, columns) if left else ():
        for number, row in shard.rows():
            if number in left:
                left.remove(number)
                yield number, row
        if not left:
            return
