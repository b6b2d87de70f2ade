"""Tables as CSV files: the same bytes for the same frames, and read back as they were."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from persona_bench.analysis.tables.layout import ROW_ORDER, TABLE_COLUMNS
from persona_bench.errors import DataError

_TEXT = frozenset(
    "trait other grader method half source kind side vector sign reason direction signal scope condition text_baseline "
    "sample_id token scoring benchmark setting layers group warning vector_id log eval first second "
    "family version arm set detector measure outcome paper pool pick made_of "
    "claim statement paper_value verdict section rule question_id behaviour way monitor sees detail aspect".split()
)


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Write each table as `<name>.csv`: six significant digits, sorted rows, the same bytes for the same frames.

    Args:
        tables: name -> frame, as `build_tables` gives them; other frames keep their row order.
        folder: is made where it does not exist.

    Returns:
        The files, by name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in sorted(tables):
        path = folder / f"{name}.csv"
        tables[name].to_csv(path, index=False, float_format="%.6g", lineterminator="\n", encoding="utf-8")
        paths.append(path)
    return paths


def read_tables(folder: Path) -> dict[str, pd.DataFrame]:
    """Read what `write_tables` wrote, so that figures can be drawn from the files alone.

    Args:
        folder: with the CSV files; a table without a file comes back empty, and so does a column that an older version
            did not write yet.

    Raises:
        DataError: a file lacks a column that tells its rows apart, or the folder holds no table at all.
    """
    tables = {}
    for name, columns in TABLE_COLUMNS.items():
        path = folder / f"{name}.csv"
        if not path.exists():
            tables[name] = pd.DataFrame(columns=list(columns))
            continue
        # Only an empty field is missing: a trait may well be called "null" or "NA".
        text = {column: str for column in columns if column in _TEXT}
        frame = pd.read_csv(
            path, dtype=text, keep_default_na=False, na_values={c: "" for c in columns if c not in text}
        )
        missing = [column for column in ROW_ORDER[name] if column not in frame.columns]
        if missing:
            raise DataError(f"The table {path} lacks the column(s) {', '.join(missing)}: write the tables anew")
        unknown = {column: "" if column in _TEXT else math.nan for column in columns if column not in frame.columns}
        tables[name] = frame.assign(**unknown)
    if all(table.empty for table in tables.values()):
        raise DataError(f"No table found in {folder}: name a folder that holds steering.csv and its like")
    return tables
