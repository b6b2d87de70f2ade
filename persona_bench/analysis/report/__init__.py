"""The report of a run: one content, rendered as report.md (for a pull request) and report.html (one file, no network).

Model names, trait names, reasons and commands are data from strangers: the page escapes every text, and its content
policy lets nothing in from outside and no script run but its own; the Markdown escapes every character that could be
markup or a mention.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from persona_bench.analysis.report.content import make_report
from persona_bench.analysis.report.markdown import markdown_text
from persona_bench.analysis.report.page import html_page
from persona_bench.files import write_atomic

__all__ = ["write_report"]


def write_report(
    folder: Path,
    run: Mapping[str, Any],
    tables: Mapping[str, pd.DataFrame],
    claims: pd.DataFrame,
    figures: Sequence[Path],
) -> tuple[Path, Path]:
    """Write report.md and report.html.

    Args:
        folder: where the files go; is made where it does not exist.
        run: the content of run.json. Read, where present: model, preset, grader, seed, date, traits, evals,
            extraction_filter, command, versions, weights, vectors, machine, timings (seconds), logs, warnings,
            deviations.
        tables: as `build_tables` gives them.
        claims: as `judge_claims` gives it.
        figures: as `draw_all` gives them; the PNG files are shown.

    Returns:
        The paths of report.md and report.html.
    """
    report = make_report(run, tables, claims, figures)
    paths = folder / "report.md", folder / "report.html"
    write_atomic(paths[0], markdown_text(report, folder))
    write_atomic(paths[1], html_page(report))
    return paths
