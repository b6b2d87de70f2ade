"""Rows to a CSV or parquet file, as they come: constant memory, and the file is there whole or not at all."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from persona_bench.errors import DataError, first_line
from persona_bench.files import atomic_path

SUFFIXES = (".csv", ".parquet")
ROW_GROUP = 2**13
Value = int | float | str | None
Write = Callable[[Iterable[Sequence[Value]]], None]


@dataclass(frozen=True)
class Column:
    """A column by name.

    Attributes:
        name: its heading.
        kind: what it holds; None in it, and NaN in a `number`, is written as an empty cell (parquet: null).
    """

    name: str
    kind: Literal["integer", "number", "text"]


def check_table_path(path: Path) -> None:
    """Refuse a path that no table can be written to, before any work is done for it.

    Raises:
        DataError: for a suffix other than .csv and .parquet, and for a folder.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"cannot write {path}: tables end in {' or '.join(SUFFIXES)}; choose such a name for --out")
    if path.is_dir():
        raise DataError(f"cannot write {path}: it is a folder; choose the name of a file for --out")


@contextmanager
def table_file(path: Path, columns: Sequence[Column]) -> Iterator[Write]:
    """A function that writes rows to `path`, as CSV or parquet by its suffix; numbers have float32's precision.

    The file takes its place when the block ends well; nothing is left where it does not.

    Raises:
        DataError: as `check_table_path`, or the file cannot be written.
    """
    check_table_path(path)
    with atomic_path(path) as temporary:
        with (_csv if path.suffix.lower() == ".csv" else _parquet)(temporary, columns) as write:
            yield write


@contextmanager
def _csv(path: Path, columns: Sequence[Column]) -> Iterator[Write]:
    numbers = [column.kind == "number" for column in columns]
    with path.open("w", newline="", encoding="utf-8") as file:

        class LineFeeds:
            """Ends lines with a line feed alone: told so itself, Python 3.11's csv leaves carriage returns unquoted."""

            def write(self, line: str) -> None:
                file.write(line.removesuffix("\r\n") + "\n")

        writer = csv.writer(LineFeeds(), lineterminator="\r\n")
        writer.writerow([column.name for column in columns])

        def write(rows: Iterable[Sequence[Value]]) -> None:
            writer.writerows(
                [_shown(value) if number else value for value, number in zip(row, numbers, strict=True)] for row in rows
            )

        yield write


def _shown(value: Value) -> str:
    return "" if value is None or math.isnan(float(value)) else f"{float(value):.6g}"


@contextmanager
def _parquet(path: Path, columns: Sequence[Column]) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow import parquet

    kinds = {"integer": pa.int64(), "number": pa.float32(), "text": pa.string()}
    schema = pa.schema([(column.name, kinds[column.kind]) for column in columns])
    waiting: list[Sequence[Value]] = []
    with parquet.ParquetWriter(path, schema) as writer:

        def flush() -> None:
            if not waiting:
                return
            # NaN becomes null too: an empty cell means the same in both formats.
            arrays: list[Any] = [
                pa.array(values, type=field.type, from_pandas=True)
                for values, field in zip(zip(*waiting, strict=True), schema, strict=True)
            ]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
            waiting.clear()

        def write(rows: Iterable[Sequence[Value]]) -> None:
            coming = iter(rows)
            while fitting := list(islice(coming, ROW_GROUP - len(waiting))):
                waiting.extend(fitting)
                if len(waiting) >= ROW_GROUP:
                    flush()

        yield write
        flush()


def table_rows(
    path: Path, names: Sequence[str] | None = None, texts: Sequence[str] = ()
) -> Iterator[list[tuple[Value, ...]]]:
    """The rows of a table, some thousands at a time; an empty cell is None.

    Args:
        path: what `table_file` wrote.
        names: the columns, by default all.
        texts: those of them that hold texts, which are left as they stand in a CSV file: "007" is no number.

    Raises:
        DataError: the file cannot be read, or lacks a column.
    """
    import pandas as pd
    from pyarrow import parquet

    wanted = None if names is None else list(names)
    try:
        if path.suffix.lower() == ".csv":
            # Where texts are named an empty cell alone is None, and in a text not even that: "NA" may be an id.
            empty: dict[str, Any] = {
                "keep_default_na": False,
                "na_values": {name: [""] for name in wanted or () if name not in texts},
            }
            with pd.read_csv(
                path, usecols=wanted, chunksize=ROW_GROUP, dtype=dict.fromkeys(texts, str), **(empty if texts else {})
            ) as frames:
                for frame in frames:
                    cells = frame[wanted or list(frame.columns)].astype(object)
                    yield list(cells.where(cells.notna(), None).itertuples(index=False, name=None))
            return
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROW_GROUP, columns=wanted):
                columns = [batch.column(name).to_pylist() for name in wanted or batch.schema.names]
                yield list(zip(*columns, strict=True))
    except (OSError, ValueError, KeyError) as error:
        reason = first_line(error)
        raise DataError(f"cannot read the table {path}: {reason}") from error
