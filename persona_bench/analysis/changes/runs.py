"""Two runs side by side: do the same conclusions come out again?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from persona_bench.analysis.changes.tables import EXPECTED_APART, EXPECTED_WITHIN, table_change
from persona_bench.analysis.changes.vectors import vector_change
from persona_bench.analysis.changes.verdicts import counts, read_change, verdict_change
from persona_bench.analysis.runs import Run
from persona_bench.analysis.tables.files import write_tables
from persona_bench.errors import DataError
from persona_bench.files import file_sha256, write_atomic

VERDICTS, VECTORS, ROWS, ESTIMATES = "verdict_change", "vector_change", "row_change", "estimate_change"
"""The files of a comparison."""
ABOUT = "compared.json"
_ASKED = ("model", "preset", "traits", "grader", "evals", "seed", "extraction_filter", "corpus")
"""What of run.json was asked for: where two runs differ in it, one is no repetition of the other."""
_SUM = "claims_sha256"
"""Of a run's claims.csv, by which it is found again."""
SELDOM = 0.75
"""A table with a smaller share of estimates within the other run's intervals is named."""
MIN_INTERVALS = 20
_PROJECTIONS = "more that are projections on the run's own vector, whose intervals hold vector and layer fixed"


@dataclass(frozen=True, eq=False)
class Compared:
    """Two runs and what changed from the first to the second.

    Attributes:
        about: what run.json says of both, `first` and `second`.
        note: what else a reader should know of the two.
        verdicts: as `verdict_change` gives it.
        vectors: as `vector_change` gives it.
        rows: of tables, as `table_change` gives them.
        estimates: as `table_change` gives them.
    """

    about: Mapping[str, Mapping[str, Any]]
    note: str
    verdicts: pd.DataFrame
    vectors: pd.DataFrame
    rows: pd.DataFrame
    estimates: pd.DataFrame

    @property
    def differing(self) -> list[tuple[str, str, str]]:
        """(what, in the first, in the second) of all in run.json that differs; of lists, what the other lacks."""
        first, second = self.about["first"], self.about["second"]
        found = []
        for name in dict.fromkeys([*first, *second]):
            pair = [about.get(name, "") for about in (first, second)]
            if pair[0] == pair[1] or name == _SUM:
                continue
            if all(isinstance(value, list) for value in pair):
                pair = [[item for item in ours if item not in theirs] for ours, theirs in (pair, pair[::-1])]
            found.append((name, _words(pair[0]), _words(pair[1])))
        return found

    @property
    def repetition(self) -> bool:
        """Whether both were asked for the same."""
        return all(self.about["first"].get(name) == self.about["second"].get(name) for name in _ASKED)

    def sentences(self) -> list[str]:
        """What came out, in words."""
        told = [f"{counts(self.verdicts, 'the run')}."]
        cosines = self.vectors["cosine_first"].dropna()
        if len(cosines):
            same = int((self.vectors["layer_first"] == self.vectors["layer_second"]).sum())
            told.append(
                f"{same} of {len(self.vectors)} vectors serve at the same layer in both; at the first run's layers the "
                f"two runs' vectors have cosines of {cosines.min():.2f} to {cosines.max():.2f} (random directions: "
                f"{self.vectors['chance'].max():.2f})."
            )
        paired, same = int(self.rows["paired"].sum()), int(self.rows["same"].sum())
        alone = int((self.rows["rows_first"] + self.rows["rows_second"]).sum()) - 2 * paired
        told.append(f"Of {paired} table rows about the same thing {same} are alike; {alone} stand in one run alone.")
        told += [
            f"Of {total['intervals']} {what}, {total['within'] / total['intervals']:.1%} lie within the first run's "
            f"95 % interval, and {total['apart'] / total['intervals']:.1%} have intervals that do not touch "
            f"(independent repetitions of one measurement: {EXPECTED_WITHIN:.0%} and {EXPECTED_APART:.1%})."
            for along, what in ((False, "estimates with an interval"), (True, _PROJECTIONS))
            if (total := self._total(along))["intervals"]
        ]
        if few := self._seldom_within():
            told.append(f"Tables where fewer than {SELDOM:.0%} lie within: {', '.join(few)}.")
        if not self.repetition:
            told.append("The second is no repetition of the first: what was asked for differs.")
        return [*told, self.note] if self.note else told

    def _seldom_within(self) -> list[str]:
        """Tables, projections left out, in which clearly fewer estimates lie within than a repetition has."""
        some = self.estimates[~self.estimates["along_vector"].astype(bool)]
        sums = some.groupby("table")[["intervals", "within"]].sum()
        many = sums[sums["intervals"] >= MIN_INTERVALS]
        shares = sorted(
            (row["within"] / row["intervals"], str(name), row["intervals"]) for name, row in many.iterrows()
        )
        return [f"{name} ({share:.0%} of {n:.0f})" for share, name, n in shares if share < SELDOM]

    def _total(self, along_vector: bool) -> dict[str, int]:
        some = self.estimates[self.estimates["along_vector"].astype(bool) == along_vector]
        return {name: int(some[name].sum()) for name in ("intervals", "within", "apart")}

    def write(self, folder: Path) -> None:
        """Write a CSV file a table, and compared.json."""
        tables = {VERDICTS: self.verdicts, VECTORS: self.vectors, ROWS: self.rows, ESTIMATES: self.estimates}
        write_tables(tables, folder)
        write_atomic(folder / ABOUT, json.dumps({**self.about, "note": self.note}, indent=1, sort_keys=True) + "\n")


def read_compared(folder: Path) -> Compared:
    """What `write` wrote.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    try:
        held = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        about, note = {which: dict(held[which]) for which in ("first", "second")}, str(held["note"])
        vectors, rows, estimates = (
            # Only an empty field is missing: a trait may well be called "NA".
            pd.read_csv(folder / f"{name}.csv", dtype={"trait": str}, keep_default_na=False, na_values=[""])
            for name in (VECTORS, ROWS, ESTIMATES)
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"cannot read {folder}: {error}; make it again with `persona-bench compare`") from error
    return Compared(about, note, read_change(folder / f"{VERDICTS}.csv"), vectors, rows, estimates)


def compare_runs(first: Run, second: Run, note: str = "") -> Compared:
    """What changed from one run to another.

    Raises:
        VectorError: a vector file of one is broken.
    """
    rows, estimates = table_change(first.tables, second.tables)
    return Compared(
        about={"first": _about(first), "second": _about(second)},
        note=note,
        verdicts=verdict_change(first.tables["claims"], second.tables["claims"]),
        vectors=vector_change(first, second),
        rows=rows,
        estimates=estimates,
    )


def _about(run: Run) -> dict[str, Any]:
    """What was asked for, with what it was made, and the sum of the claims' file, by which it is found again."""
    held = run.held
    weights = {role: {key: told[key] for key in ("device", "dtype", "sha256") if key in told}
               for role, told in (held.get("weights") or {}).items()}  # fmt: skip
    return {
        **{name: held[name] for name in _ASKED if name in held},
        "date": held["date"],
        "deviations": held.get("deviations", []),
        "machine": held.get("machine", {}),
        "versions": held.get("versions", {}),
        "weights": weights,
        _SUM: file_sha256(run.folder / "claims.csv"),
    }


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    return "; ".join(map(_words, value)) if isinstance(value, list | tuple) else str(value)
