"""A scan on disk: finished shards beside the output, from which it goes on after any interruption.

    OUT.parts/scan.json                     what was asked for
    OUT.parts/part-<key>.rejected.jsonl     rows of that shard that are no samples, if any
    OUT.parts/part-<key>.parquet            the measured rows; there once the shard is done

Every file is written whole or not at all, and a part after its side file, so a part that is there is complete. When
all are, they become the output in the order of the input, and the folder goes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from persona_bench.errors import DataError
from persona_bench.files import atomic_path, write_atomic
from persona_bench.vectors.scan.measures import Part
from persona_bench.vectors.table_file import Column, table_file, table_rows


class Parts:
    """The parts of one scan.

    Args:
        target: the output of the scan.
        columns: of the output.
        fingerprint: of the input and the settings.

    Raises:
        DataError: a scan of something else was begun for this output.
    """

    def __init__(self, target: Path, columns: Sequence[Column], fingerprint: str) -> None:
        self.target, self.columns, self.fingerprint = target, tuple(columns), fingerprint
        self.folder = self.folder_of(target)
        self.side = self.side_of(target)
        begun = self._begun(self.folder)
        if begun is None:
            write_atomic(self.folder / "scan.json", json.dumps({"fingerprint": fingerprint}) + "\n")
        elif begun != fingerprint:
            raise DataError(
                f"{self.folder} holds an unfinished scan with other settings, or of files that have changed since; "
                "finish that one, remove the folder, or choose another --out"
            )
        self._done = {path.name[len("part-") : -len(".parquet")] for path in self.folder.glob("part-*.parquet")}

    @property
    def keys(self) -> list[str]:
        """The finished shards, as they stand in the input."""
        return sorted(self._done)

    def write(self, part: Part) -> None:
        """Keep a finished shard."""
        if part.rejected:
            lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in part.rejected)
            write_atomic(self._rejected(part.key), lines.encode("utf-8", "replace"))
        with table_file(self._path(part.key), self.columns) as write:
            write(part.rows)
        self._done.add(part.key)

    def finish(self) -> None:
        """Put the parts together: first the side file, then the output."""
        with atomic_path(self.side) as temporary, temporary.open("wb") as file:
            for key in self.keys:
                if self._rejected(key).exists():
                    with self._rejected(key).open("rb") as part:
                        shutil.copyfileobj(part, file)
        with table_file(self.target, self.columns) as write:
            for key in self.keys:
                for rows in table_rows(self._path(key)):
                    write(rows)

    @staticmethod
    def folder_of(target: Path) -> Path:
        """Where the parts of an output are."""
        return target.with_name(f"{target.name}.parts")

    @staticmethod
    def side_of(target: Path) -> Path:
        """Where an output's rows that are no samples are."""
        return target.with_name(f"{target.name}.rejected.jsonl")

    @classmethod
    def remove(cls, target: Path, fingerprint: str) -> None:
        """Take the folder away, once its content is in the output; another scan's is left as it is."""
        folder = cls.folder_of(target)
        if cls._begun(folder) != fingerprint:
            return
        # What says whose the parts are goes last, so that no others take them for their own.
        for path in folder.glob("part-*"):
            path.unlink()
        shutil.rmtree(folder)

    @staticmethod
    def _begun(folder: Path) -> str | None:
        """The fingerprint of the scan that a folder is of, None where there is none."""
        path = folder / "scan.json"
        if not path.exists():
            return None
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["fingerprint"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is broken; remove {folder} and scan again") from error

    def _path(self, key: str) -> Path:
        return self.folder / f"part-{key}.parquet"

    def _rejected(self, key: str) -> Path:
        return self.folder / f"part-{key}.rejected.jsonl"
