"""The claims of a run in a terminal: 80 columns are enough, and colour only helps."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from persona_bench.analysis.report.controls import spread
from persona_bench.analysis.verdicts.claims import VERDICTS
from persona_bench.definitions.claims import CLAIMS, NOT_FOUND

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {
    "supported": "bold green",
    "contradicted": "bold red",
    "inconclusive": "yellow",
    "not testable": "dim",
}
_NUMBERS = ("estimate", "ci_low", "ci_high", "n", "p_holm")


def read_claims(path: Path) -> pd.DataFrame:
    """claims.csv as `judge_claims` gave it; only an empty number is missing, as a trait may be called "null"."""
    return pd.read_csv(path, keep_default_na=False, na_values={name: [""] for name in _NUMBERS})


def print_claims(claims: pd.DataFrame, console: Console) -> None:
    """Print a line a verdict under its claim, with the reason where there is no clear answer; last what was not run.

    Args:
        claims: as `judge_claims` gives it.
        console: where to; its width is kept to.
    """
    from rich.padding import Padding
    from rich.text import Text

    rows = claims.to_dict("records")
    ran = [row for row in rows if row["verdict"] != "not run"]
    console.print(Text("\nClaims", style="bold"), Text(_tally(rows), style="dim"))
    for claim_id, group in groupby(ran, key=lambda row: row["claim"]):
        found = list(group)
        console.print(Text.assemble(("\n" + str(claim_id), "bold"), f"  {found[0]['statement']}"))
        console.print(Padding(_grid(found), (0, 0, 0, 2)))
    evals = {entry.id: entry.eval for entry in CLAIMS}
    left = Counter(str(evals.get(row["claim"], "another version")) for row in rows if row["verdict"] == "not run")
    if left:
        named = ", ".join(f"{name} {n}" for name, n in sorted(left.items()))
        console.print(Text(f"\nNot run, verdicts by eval: {named}; the report says why.", style="dim"))


def _grid(rows: list[dict[Any, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(width=13, no_wrap=True, overflow="ellipsis")
    grid.add_column(width=12, no_wrap=True)
    grid.add_column(ratio=1, overflow="fold")
    for row in rows:
        verdict = str(row["verdict"])
        style = _STYLES.get(verdict, "")
        grid.add_row(Text(" ".join(str(row["trait"]).split())), Text(verdict, style=style), Text(_said(row, verdict)))
    return grid


def _said(row: dict[Any, Any], verdict: str) -> str:
    """The numbers where they are the answer, else the reason; and the paper's number where it has one."""
    numbers = "" if pd.isna(row["estimate"]) else spread(row["estimate"], row["ci_low"], row["ci_high"])
    clear = numbers and verdict in ("supported", "contradicted")
    ours = str(numbers if clear else row["reason"]) + (f", n {row['n']}" if numbers else "")
    paper = str(row["paper_value"]).split("; in words")[0]
    return ours if paper.startswith(NOT_FOUND) else f"{ours}; paper: {paper}"


def _tally(rows: list[dict[Any, Any]]) -> str:
    counts = Counter(str(row["verdict"]) for row in rows)
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]) or "none"
