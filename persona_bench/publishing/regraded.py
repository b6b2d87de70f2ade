"""What another grader said of a published run: the counts, and each verdict that changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from persona_bench.analysis.changes.verdicts import GRADER_CHANGE, counts, read_change
from persona_bench.analysis.report.markdown import md
from persona_bench.analysis.runs import Run
from persona_bench.publishing.words import changed_verdicts


def told(run: Run) -> Iterator[str]:
    """A text a grader that judged the run's responses again."""
    for path in sorted(run.folder.glob(f"rejudged/*/{GRADER_CHANGE}.csv")):
        change = read_change(path)
        changed = change[change["changed"]]
        said = md(counts(change, "the grader"))
        parts = [f"[{md(path.parent.name)}](../{_relative(run, path.parent)}/report.md): {said}."]
        if len(changed):
            graders = (f"by {md(run.caption.grader)}", f"by {md(path.parent.name)}")
            parts.append(changed_verdicts(changed, graders))
        yield "\n\n".join(parts)


def _relative(run: Run, folder: Path) -> str:
    return folder.relative_to(run.folder.parents[2]).as_posix()
