"""README's part about results: how many verdicts of each kind, three figures, and every claim by model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from persona_bench.analysis.comparison import COMPARISON, COVERAGE
from persona_bench.analysis.coverage import size
from persona_bench.analysis.report.markdown import md
from persona_bench.analysis.runs import Run
from persona_bench.analysis.verdicts.judge import GATE
from persona_bench.definitions.claims import CLAIMS
from persona_bench.publishing.words import cell, folded, label, paper, ran, rows_of, table, tally, traits_of

NOTHING = (
    "No run is committed under `results/` yet, so no result is stated here; `make run` makes one on this machine, and "
    "`persona-bench publish` the form of it that is committed."
)
FIGURES = 3
_KINDS = {"claim": "the paper's claims", "limit": "its stated limits", "check": "checks of this suite"}
_READ = (
    "A stated limit that is supported is one that the method has; one that is contradicted is not seen in that run. "
    "Verdicts stand after Holm's correction over their run; those on cosines (V1, L1) have no p value and are not "
    "corrected. Where a rule was amended after a run that was not made again, its verdict is named so (older rule)."
)


def text(runs: Sequence[Run], root: Path) -> str:
    """The part as Markdown; figures are shown as far as they are drawn in `root`/paper_figures."""
    if not runs:
        return NOTHING
    parts = [_tally(runs), _READ]
    parts += [f"![{words}](paper_figures/{quote(name)}.png)" for name, words in _figures(runs, root)[:FIGURES]]
    parts.append(
        "What holds, what does not, and what could not be tested and why: [docs/findings.md](docs/findings.md). By "
        "part of the suite, with 95 % intervals and the number of valid samples:"
    )
    parts += [_by_eval(name, runs) for name in dict.fromkeys(claim.eval for claim in CLAIMS) if ran(runs, name)]
    return "\n\n".join(parts)


def _tally(runs: Sequence[Run]) -> str:
    rows = []
    for run in runs:
        claims = run.claims
        rows_by = {kind: [rows_of(run, claim) for claim in CLAIMS if claim.kind == kind] for kind in _KINDS}
        report = f"[{md(label(run))}]({quote(f'results/{run.folder.parent.name}/{run.folder.name}')}/report.md)"
        about = (report, size(run.facts["parameters"]), f"{md(run.caption.grader)}, {_trusted(claims)}")
        counts = [tally(pd.concat(parts)) for parts in rows_by.values()]
        rows.append([*about, *(words or "not run" for words in counts), str((claims["verdict"] == "not run").sum())])
    return table(["run", "size", "grader", *_KINDS.values(), "not run"], rows)


def _trusted(claims: pd.DataFrame) -> str:
    """For how many traits the judge passes its gate."""
    gate = claims[(claims["claim"] == GATE) & (claims["verdict"] != "not run")]
    return f"trusted for {(gate['verdict'] == 'supported').sum()} of {len(gate)} traits"


def _figures(runs: Sequence[Run], root: Path) -> list[tuple[str, str]]:
    """Those that compare models first, then the first run's own."""
    presets = sorted({run.preset for run in runs})
    wanted = [(COVERAGE, "Which claim holds on which model")]
    for preset in presets:
        wanted += [
            (f"{COMPARISON}-{preset}-steering", "Change in trait score by relative dose, a panel a model"),
            (f"{COMPARISON}-{preset}-monitoring", "Correlation of the projection with the trait score, by model"),
        ]
    for run in runs:
        for kind, words in (
            ("steering", "Trait score and coherence by relative dose"),
            ("frontier", "Trait score against MMLU, a point a way of steering"),
            ("monitoring", "Projection of the last prompt token against the trait score"),
            ("shift", "Finetuned models: shift along the vector against the trait score"),
            ("vaccine", "What keeps a finetuned model from the trait, and its price"),
        ):
            names = sorted(path.stem for path in (root / "paper_figures").glob(f"{run.stem}-{kind}_*.png"))
            wanted += [(name, f"{words}: {name.rpartition('_')[2]} on {md(label(run))}") for name in names[:1]]
    return [pair for pair in wanted if (root / "paper_figures" / f"{pair[0]}.png").exists()]


def _by_eval(name: str, runs: Sequence[Run]) -> str:
    rows = [
        [
            f"[{claim.id}](docs/claims.md#{claim.id.lower()}): {md(claim.statement)}",
            *(cell(rows_of(run, claim)) for run in runs),
            paper(claim, traits_of(runs)),
        ]
        for claim in ran(runs, name)
    ]
    said = f"{name} ({len(rows)} claim{'s' * (len(rows) != 1)})"
    return folded(said, table(["claim", *(md(label(run)) for run in runs), "the paper"], rows))
