"""Weights from the Hub's local cache or from the Hub, and how it is asked so that a dead network costs seconds."""

from __future__ import annotations

import errno
import fnmatch
import os
import shutil
import threading
from pathlib import Path
from typing import Literal

from persona_bench.errors import AssetError, first_line
from persona_bench.models.assets.cache import MB, NEEDED_FILES, is_disk_full, need_disk, new_folder, weights_dir
from persona_bench.models.assets.catalogue import Weights
from persona_bench.models.assets.sources import Progress, UnavailableError, write_source

HUB_TIMEOUT_S = 5.0
_HUB_PATTERNS = ("*.json", "*.txt", "*.jinja", "model.safetensors", "tokenizer.model")


def weights_from_hub(asset: Weights, tell: Progress) -> Path:
    """Make the folder from the Hub's local cache, or from the Hub.

    Raises:
        UnavailableError: If neither has the weights.
    """
    snapshot = _local_snapshot(asset) or _download_snapshot(asset, tell)
    final = weights_dir(asset) / "hub"
    with new_folder(final) as folder:
        for file in snapshot.iterdir():
            if file.is_file() and any(fnmatch.fnmatch(file.name, pattern) for pattern in _HUB_PATTERNS):
                _link(file.resolve(), folder / file.name)
        # A snapshot's folder is named after its commit.
        write_source(asset, folder, "hub", revision=snapshot.name, fetched_sha256=None)
    return final


def _link(file: Path, new: Path) -> None:
    """Hard-link `file`, so that it takes no space twice and outlives a purge of the Hub's cache; else copy it."""
    try:
        os.link(file, new)
    except OSError:
        shutil.copyfile(file, new)


def _is_whole(snapshot: Path) -> bool:
    # A snapshot folder may hold no more than the config that someone looked at.
    return all((snapshot / needed).is_file() for needed in NEEDED_FILES)


def _local_snapshot(asset: Weights) -> Path | None:
    """The repository in the Hub's local cache; None if it is not all there. No network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(asset.hub, revision=asset.hub_revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return snapshot if _is_whole(snapshot) else None


def _download_snapshot(asset: Weights, tell: Progress) -> Path:
    from huggingface_hub import constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise UnavailableError("the Hub: HF_HUB_OFFLINE is set and its local cache does not have the weights")
    commit = ask_hub(asset.hub, asset.hub_revision, "model")
    need_disk(asset.name, asset.weights_size, Path(constants.HF_HUB_CACHE), "HF_HOME")
    tell(f"{asset.name}: downloading {asset.hub} from the Hub (about {asset.weights_size / MB:.0f} MB)")
    try:
        snapshot = Path(
            snapshot_download(
                asset.hub, revision=commit, allow_patterns=list(_HUB_PATTERNS), etag_timeout=HUB_TIMEOUT_S
            )
        )
    except Exception as error:  # its HTTP library, and with it the type, changes with the version
        if is_disk_full(error):
            raise AssetError(
                f"cannot fetch {asset.name}: {constants.HF_HUB_CACHE}: {os.strerror(errno.ENOSPC)}; "
                "free some space there, or set HF_HOME to a folder on another disk"
            ) from error
        raise UnavailableError(f"the Hub: {asset.hub}: {first_line(error)}") from error
    if not _is_whole(snapshot):
        raise UnavailableError(f"the Hub: {asset.hub} has not all of {', '.join(NEEDED_FILES)}")
    return snapshot


def ask_hub(repo: str, revision: str | None, kind: Literal["model", "dataset"]) -> str:
    """The commit on the Hub, asked for in a thread: a name server that hangs heeds no HTTP timeout.

    Raises:
        UnavailableError: If the Hub does not answer in time, or refuses.
    """
    from huggingface_hub import HfApi

    answer: list[str | Exception] = []

    def ask() -> None:
        try:
            info = HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=HUB_TIMEOUT_S)
            answer.append(info.sha or "main")
        except Exception as error:  # handed over to the waiting thread, which raises it
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    if not answer:
        raise UnavailableError(f"the Hub: no answer in {HUB_TIMEOUT_S:.0f} s")
    if isinstance(answer[0], Exception):
        raise UnavailableError(f"the Hub: {first_line(answer[0])}") from answer[0]
    return answer[0]
