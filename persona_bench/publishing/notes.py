"""What people write about a run, `notes.md` beside its run.json: their words, with every number filled in.

`{claim:C1-steering-induces/evil/estimate}` is a column of claims.csv (or `spread`: the estimate with its interval);
`{table:steering/trait_score/trait=evil,layer=12}` a cell of the one row of a table that fits; `{run:grader}` an entry
of run.json.
"""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

from persona_bench.analysis.report.controls import spread
from persona_bench.analysis.runs import Run
from persona_bench.errors import DataError

NAME = "notes.md"
_PLACE = re.compile(r"\{(claim|table|run):([^{}]+)\}")
_UNRESOLVED = re.compile(r"\{[^{}]*\}")
_CODE = re.compile(r"```.*?```|`[^`\n]*`|\]\([^)\s]*\)", re.DOTALL)
# A number by itself: `C1`, `135M` and `SmolLM2` are names.
_NUMBER = re.compile(r"(?<![\w.{:/=-])[-+]?\d+(?:[.,]\d+)*(?![\w-])")


def filled(run: Run) -> str:
    """A run's notes with their numbers; empty where there are none.

    Raises:
        DataError: a placeholder names nothing, or a number is typed by hand.
    """
    path = run.folder / NAME
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8")
    for number, line in enumerate(_blank(text).splitlines(), 1):
        typed = _NUMBER.search(_UNRESOLVED.sub("", line))
        if typed:
            raise DataError(
                f"{path}, line {number}: the number {typed[0]} is typed by hand; write {{claim:ID/TRAIT/COLUMN}}, "
                "{table:NAME/COLUMN/KEY=VALUE,...} or {run:KEY}"
            )
        left = [found for found in _UNRESOLVED.findall(line) if not _PLACE.fullmatch(found)]
        if left:
            raise DataError(f"{path}, line {number}: {left[0]} is no placeholder; there are claim:, table: and run:")

    def fill(found: re.Match[str]) -> str:
        try:
            return _RESOLVE[found[1]](run, found[2])
        except LookupError as error:
            raise DataError(f"{path}: {found[0]} names nothing in this run: {error}") from error

    return _PLACE.sub(fill, text).strip()


def _blank(text: str) -> str:
    """The text without code and addresses, its lines kept."""
    return _CODE.sub(lambda found: "\n" * found[0].count("\n"), text)


def _claim(run: Run, asked: str) -> str:
    claim, trait, column = _parts(asked, "ID/TRAIT/COLUMN")
    claims = run.tables["claims"]
    row = _one(claims[(claims["claim"] == claim) & (claims["trait"] == trait)], f"claim {claim} of {trait}")
    if column == "spread":
        return spread(row["estimate"], row["ci_low"], row["ci_high"])
    return _said(row, column)


def _table(run: Run, asked: str) -> str:
    name, column, keys = _parts(asked, "NAME/COLUMN/KEY=VALUE,...")
    if name not in run.tables:
        raise LookupError(f"no table {name}; there are {', '.join(sorted(run.tables))}")
    rows = run.tables[name]
    for pair in keys.split(","):
        key, _, value = pair.partition("=")
        if key not in rows:
            raise LookupError(f"no column {key} in {name}")
        number = pd.to_numeric(pd.Series([value]), errors="coerce").iloc[0]
        same = rows[key].astype(str) == value
        rows = rows[same | (pd.to_numeric(rows[key], errors="coerce") == number)]
    return _said(_one(rows, f"row of {name} with {keys}"), column)


def _run(run: Run, asked: str) -> str:
    found: Any = run.held
    for key in asked.split("/"):
        if not isinstance(found, dict) or key not in found:
            raise LookupError(f"no {key} in run.json")
        found = found[key]
    return ", ".join(map(str, found)) if isinstance(found, list) else str(found)


def _parts(asked: str, form: str) -> list[str]:
    parts = asked.split("/")
    if len(parts) != form.count("/") + 1:
        raise LookupError(f"the form is {form}")
    return parts


def _one(rows: pd.DataFrame, what: str) -> pd.Series:
    if len(rows) != 1:
        raise LookupError(f"{len(rows)} rows are a {what}, not one")
    return rows.iloc[0]


def _said(row: pd.Series, column: str) -> str:
    if column not in row:
        raise LookupError(f"no column {column}; there are {', '.join(map(str, row.index))}")
    if pd.isna(row[column]):
        raise LookupError(f"{column} is empty there")
    return f"{row[column]:.3g}" if isinstance(row[column], float) else str(row[column])


_RESOLVE = {"claim": _claim, "table": _table, "run": _run}
