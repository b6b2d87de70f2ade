"""docs/findings.md: what holds, what does not, what could not be tested and why, over all published runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pandas as pd

from persona_bench.analysis.report.markdown import md
from persona_bench.analysis.runs import Run
from persona_bench.analysis.verdicts.claims import DECIDED
from persona_bench.definitions.claims import Claim
from persona_bench.publishing import regraded, repeated
from persona_bench.publishing.notes import filled
from persona_bench.publishing.words import (
    MEASURED,
    label,
    paper,
    ran,
    reasons,
    rows_of,
    sentence,
    tally,
    traits_of,
)

_HEAD = """# Findings

Made from `results/` by `make docs`; do not edit. Every number is a run's: its estimate, its 95 % interval, the number
of valid samples behind it (for cosines, of the responses that made the vector). Where a layer or a strength is chosen,
it is chosen on one half of the questions (the select half), and the verdict comes from the other (the report half).
Rules and the paper's values stand in [claims.md](claims.md), logs and controls in each run's report."""
NOTHING = "No run is committed under `results/` yet, so there is no finding to state."
_ALONE, _OPEN = "What single intervals show, and all claims together do not", "What these runs cannot tell"
_GROUPS = {
    "What holds": "Supported on some model and trait, and contradicted on none.",
    "What does not hold": "Contradicted on some model and trait, and supported on none.",
    "What holds here and not there": "Supported on some model or trait and contradicted on another.",
    _ALONE: "Nothing is decided, as Holm's correction over all tests of a run stands above each; without it, some "
    "interval would decide (named so).",
    _OPEN: "Measured and not decided: an interval, the claim's own or that of the difference to its control, reaches "
    "over the threshold, or there is none, or the rule was amended after the run (older rule). Part of a rule may "
    "hold; the reports give the reasons.",
}
_DECIDED = {
    frozenset({"supported"}): "What holds",
    frozenset({"contradicted"}): "What does not hold",
    frozenset({"supported", "contradicted"}): "What holds here and not there",
}


def page(runs: Sequence[Run]) -> str:
    """The page as Markdown."""
    if not runs:
        return f"{_HEAD}\n\n{NOTHING}\n"
    claims = ran(runs)
    parts = [_HEAD, "Runs: " + "; ".join(_about(run) for run in runs) + "."]
    for title, words in _GROUPS.items():
        some = [claim for claim in claims if _group(claim, runs) == title]
        if some:
            parts += [f"## {title}", words, "\n".join(_bullet(claim, runs) for claim in some)]
    parts += ["## What could not be tested, and why", *(part for run in runs for part in _untested(run))]
    parts += list(_beside("What the same command gave before", repeated.told, runs))
    parts += list(_beside("What another grader says of the same responses", regraded.told, runs))
    parts += list(_beside("Looked into", lambda run: iter([filled(run)]), runs))
    return "\n\n".join(parts) + "\n"


def _about(run: Run) -> str:
    folder = f"../results/{run.folder.parent.name}/{run.folder.name}"
    return f"[{md(label(run))}]({folder}/report.md), graded by {md(run.caption.grader)}, {md(run.caption.date)}"


def _group(claim: Claim, runs: Sequence[Run]) -> str:
    """The part that a claim stands in, '' where nothing of it was measured; weak verdicts decide nothing."""
    rows = pd.concat([rows_of(run, claim) for run in runs])
    decided = frozenset(rows[rows["weakness"] == ""]["verdict"]) & set(DECIDED)
    if decided:
        return _DECIDED[decided]
    if not rows["verdict"].isin(MEASURED).any():
        return ""
    return _ALONE if rows["weakness"].str.endswith("alone").any() else _OPEN


def _bullet(claim: Claim, runs: Sequence[Run]) -> str:
    said = [f"{md(label(run))}: {sentence(rows_of(run, claim))}" for run in runs if len(rows_of(run, claim))]
    said += [f"Measured: {md(claim.statistic)}", f"The paper: {paper(claim, traits_of(runs), '; ')}"]
    counts = tally(pd.concat([rows_of(run, claim) for run in runs]))
    lines = "".join(f"\n  - {line}" for line in said)
    return f"- **{md(claim.statement)}** ([{claim.id}](claims.md#{claim.id.lower()}); {counts}){lines}"


def _untested(run: Run) -> Iterator[str]:
    claims = run.tables["claims"]
    rows = claims[claims["verdict"] == "not testable"]
    yield f"### {md(label(run))}"
    if rows.empty:
        yield "Every claim that was run could be tested."
    else:
        yield "\n".join(f"- {line}" for line in reasons(rows))
    left = claims[claims["verdict"] == "not run"]
    if len(left):
        yield "Not run:\n\n" + "\n".join(f"- {line}" for line in reasons(left))


def _beside(title: str, told: Callable[[Run], Iterator[str]], runs: Sequence[Run]) -> Iterator[str]:
    """A part about what lies beside the runs' own results, where anything does."""
    said = [(run, text) for run in runs for text in told(run) if text]
    if said:
        yield f"## {title}"
        for run, text in said:
            yield f"### {md(label(run))}\n\n{text}"
