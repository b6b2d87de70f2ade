"""The part about results of an eval's own page: command, n, verdicts, and where it leaves the paper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from persona_bench.analysis.report.markdown import fenced, md
from persona_bench.analysis.runs import Run
from persona_bench.publishing.words import (
    MEASURED,
    folded,
    label,
    measured,
    named,
    paper,
    ran,
    reasons,
    rows_of,
    table,
    tally,
    verdict,
)

NOTHING = "No run of this eval is committed under `results/` yet."


def text(name: str, runs: Sequence[Run]) -> str:
    """The part as Markdown, a run after the other."""
    return "\n\n".join(part for run in runs if ran([run], name) for part in _run(name, run)) or NOTHING


def _run(name: str, run: Run) -> Iterator[str]:
    claims = ran([run], name)
    every = pd.concat([rows_of(run, claim) for claim in claims])
    shown = every[every["verdict"].isin(MEASURED)]
    yield f"### {md(label(run))}"
    yield fenced(str(run.held.get("command") or "persona-bench run"))
    report = f"../../results/{run.folder.parent.name}/{run.folder.name}/report.md"
    fewest, most = (int(shown["n"].min()), int(shown["n"].max())) if len(shown) else (0, 0)
    n = f", {fewest}{f' to {most}' if most > fewest else ''} valid samples a verdict" if len(shown) else ""
    about = f"Grader {md(run.caption.grader)}, {md(run.caption.date)}"
    yield f"{about}: {tally(every)}{n}; logs and controls in the [report]({report})."
    if len(shown):
        yield table(
            ["claim", "verdict", "trait", "estimate [95 %], n", "the paper"],
            [
                [
                    f"[{claim.id}](../../docs/claims.md#{claim.id.lower()})",
                    verdict(row),
                    named([row["trait"]]),
                    measured(row),
                    paper(claim, [row["trait"]]),
                ]
                for claim in claims
                for _, row in shown[shown["claim"] == claim.id].iterrows()
            ],
        )
    rest = every[~every["verdict"].isin(MEASURED)]
    if len(rest):
        yield folded(f"Not testable ({len(rest)})", "\n".join(f"- {line}" for line in reasons(rest)))
    deviations = [str(item) for item in run.held.get("deviations", [])]
    if deviations:
        yield "In this run, otherwise than in the paper:\n\n" + "\n".join(f"- {md(item)}" for item in deviations)
