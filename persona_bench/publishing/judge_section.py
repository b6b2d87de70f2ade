"""How the judge of the published runs did on the labelled answers that calibrated nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from persona_bench.analysis.report.markdown import md
from persona_bench.analysis.runs import Run
from persona_bench.analysis.tables.judge import ALL, BASELINE
from persona_bench.definitions.claims import GATE_AUROC, GATE_BALANCED_ACCURACY
from persona_bench.publishing.words import label, table

NOTHING = (
    "No published run holds the figures of its judge yet; `persona-bench run --evals judge_validity` measures them."
)
_HEAD = (
    *("trait", "n with a score", "AUROC", "balanced accuracy", "clear pairs", "AUROC, real responses only"),
    *("best trivial judge (AUROC)", "gate"),
)


def text(runs: Sequence[Run]) -> str:
    """A table a grader, of the run that judged most traits with it."""
    best: dict[str, tuple[Run, pd.DataFrame]] = {}
    for run in runs:
        rows = in_use(run)
        if len(rows) > len(best.get(run.caption.grader, (run, rows.iloc[:0]))[1]):
            best[run.caption.grader] = run, rows
    return "\n\n".join(part for run, rows in best.values() for part in _grader(run, rows)) or NOTHING


def in_use(run: Run) -> pd.DataFrame:
    """The judge in use, a row a trait, on the half that calibrated nothing."""
    judge = run.tables["judge"]
    chosen = judge["chosen"].astype(str) == "True"
    return judge[chosen & (judge["half"] == "report") & (judge["source"] == "all")]


def _grader(run: Run, rows: pd.DataFrame) -> Iterator[str]:
    yield f"`{run.caption.grader}` in the run of {md(label(run))}:"
    yield table(_HEAD, [_row(run, row) for _, row in rows.iterrows()])
    failed = [str(row["trait"]) for _, row in rows.iterrows() if str(row["passes"]) != "True"]
    if failed:
        yield f"Claims about {md(', '.join(failed))} are `not testable` with this grader."
    # What it judges in a run are responses of models; the written answers are plainer.
    real = {str(row["trait"]): _on_real(run, row) for _, row in rows.iterrows()}
    alone = {trait: None if found is None else _would_pass(found) for trait, found in real.items()}
    said = [
        f"{words} {md(', '.join(some))}"
        for words, wanted in (("passed by", True), ("failed by", False), ("not decided, with too few, by", None))
        if (some := [trait for trait, passes in alone.items() if passes is wanted])
    ]
    yield f"On real responses alone the same gate would be {'; '.join(said)}."
    yield from _outcomes(run.tables["judge_outcomes"], str(rows["grader"].iloc[0]))


def _outcomes(outcomes: pd.DataFrame, grader: str) -> Iterator[str]:
    """What a grader says besides the trait of real responses, those of all traits together."""
    mine = outcomes[(outcomes["trait"] == ALL) & (outcomes["source"] == "model") & (outcomes["grader"] == grader)]
    found = {str(row["outcome"]): row for _, row in mine.iterrows()}
    if {"incoherent", "refusal"} <= set(found):
        garbled, refused = found["incoherent"], found["refusal"]
        yield (
            f"Readers find {garbled['n_positive']:.0f} of {garbled['n']:.0f} real responses incoherent: its coherence "
            f"tells these with an AUROC of {_interval(garbled, 'auroc')}, it calls {_share(garbled, 'found')} of them "
            f"incoherent and {_share(garbled, 'mistaken')} of the others. Of {refused['n_positive']:.0f} refusals it "
            f"calls {_share(refused, 'found')} so, and {_share(refused, 'mistaken')} of the rest."
        )


def _share(row: pd.Series, name: str) -> str:
    return f"{100 * row[name]:.0f} %" if pd.notna(row[name]) else "none"


def _on_real(run: Run, row: pd.Series) -> pd.Series | None:
    """The figures of a judge on real responses alone, None where these are too few for an AUROC."""
    judge = run.tables["judge"]
    same = (judge["trait"] == row["trait"]) & (judge["half"] == "report") & (judge["grader"] == row["grader"])
    real = judge[same & (judge["source"] == "model")].dropna(subset=["auroc"])
    return None if real.empty else real.iloc[0]


def _would_pass(row: pd.Series) -> bool:
    return bool(row["auroc"] >= GATE_AUROC and row["balanced_accuracy"] >= GATE_BALANCED_ACCURACY)


def _row(run: Run, row: pd.Series) -> list[str]:
    judge = run.tables["judge"]
    same = (judge["trait"] == row["trait"]) & (judge["half"] == "report")
    real = _on_real(run, row)
    trivial = judge[same & (judge["grader"] == BASELINE) & (judge["source"] == "all")].dropna(subset=["auroc"])
    best = trivial.sort_values("auroc", ascending=False).head(1)
    return [
        md(row["trait"]),
        f"{row['n_scored']:.0f} of {row['n']:.0f}",
        *(_interval(row, name) for name in ("auroc", "balanced_accuracy", "pairwise")),
        "too few" if real is None else _interval(real, "auroc"),
        next((f"{md(found['method'])} {found['auroc']:.2f}" for _, found in best.iterrows()), "not run"),
        "passes" if str(row["passes"]) == "True" else "fails",
    ]


def _interval(row: pd.Series, name: str) -> str:
    if pd.isna(row[name]):
        return "too few"
    return f"{row[name]:.2f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"
