"""Finished runs as their files tell of them: run.json, tables and claims."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from persona_bench.analysis.coverage import model_facts
from persona_bench.analysis.figures.drawing import Caption
from persona_bench.analysis.tables.files import read_tables
from persona_bench.analysis.terminal import read_claims
from persona_bench.analysis.verdicts.claims import CLAIM_COLUMNS, weakness
from persona_bench.definitions.claims import CLAIMS
from persona_bench.errors import DataError
from persona_bench.files import model_folder, scope


@dataclass(frozen=True, eq=False)
class Run:
    """One finished run.

    Attributes:
        model: name of the model under test.
        preset: of the run.
        caption: what stands under its figures.
        tables: with `claims` among them.
        facts: family, parameters and dtype of the model.
        folder: where its files are.
        held: its run.json.
    """

    model: str
    preset: str
    caption: Caption
    tables: dict[str, pd.DataFrame]
    facts: dict[str, Any]
    folder: Path
    held: dict[str, Any]

    @property
    def claims(self) -> pd.DataFrame:
        """Its claims, with what weakens each verdict as `weakness`."""
        claims, rules = self.tables["claims"], self.held.get("rules", {})
        older = {claim.id for claim in CLAIMS if int(rules.get(claim.id, 1)) < claim.revision}
        return claims.assign(weakness=[weakness(row, row["claim"] in older) for _, row in claims.iterrows()])

    @property
    def stem(self) -> str:
        """What its files are called by."""
        return f"{model_folder(self.model)}-{scope(self.held, '-')}"

    @property
    def part(self) -> str:
        """Its name beside another run of the same model and preset; else empty."""
        return str(self.held.get("part", ""))

    @property
    def scope(self) -> str:
        """Its preset, with its part."""
        return scope(self.held)


def read_runs(results: Path) -> list[Run]:
    """The runs under RESULTS/<model>/<preset>/, sorted; folders without a run.json are no finished runs.

    Where some are published (`persona-bench publish`), those alone: what lies beside them is not committed.

    Raises:
        DataError: there is none, or one is broken.
    """
    runs = published_runs(results) or [read_run(path) for path in sorted(results.glob("*/*/run.json"))]
    if not runs:
        raise DataError(f"no run under {results}: none of its folders <model>/<preset> holds a run.json; make one with "
                        "`persona-bench run`")  # fmt: skip
    return runs


def published_runs(results: Path) -> list[Run]:
    """The published runs alone, smaller models first; none is no error."""
    runs = [run for path in sorted(results.glob("*/*/run.json")) if _published(path) for run in [read_run(path)]]
    return sorted(runs, key=lambda run: (run.facts["parameters"], run.stem))


def _published(path: Path) -> bool:
    """Whether a run.json says so; one that cannot be read is nobody's published run."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and bool(held.get("published"))


def read_run(path: Path) -> Run:
    """The run of a run.json.

    Raises:
        DataError: it, its claims or its tables cannot be read.
    """
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        facts = {name: str(held[name]) for name in ("model", "preset", "grader", "date")}
        seed, about = int(held["seed"]), model_facts(held)
        claims = read_claims(path.parent / "claims.csv").loc[:, [*CLAIM_COLUMNS]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot read the run of {path}: {error}; remove its folder or run it again") from error
    caption = Caption(facts["model"], scope(held), facts["grader"], facts["date"], seed)
    tables = {**read_tables(path.parent / "tables"), "claims": claims}
    return Run(facts["model"], facts["preset"], caption, tables, about, path.parent, held)
