"""What another grader said of a published run: the counts, and each verdict that changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from persona_bench.analysis.comparison import Run
from persona_bench.analysis.grader_change import CHANGE, counts, read_change
from persona_bench.analysis.report.controls import spread
from persona_bench.analysis.report.markdown import md
from persona_bench.publishing.words import named, table


def told(run: Run) -> Iterator[str]:
    """A text a grader that judged the run's responses again."""
    for path in sorted(run.folder.glob(f"rejudged/*/{CHANGE}.csv")):
        change = read_change(path)
        changed = change[change["changed"]]
        parts = [f"[{md(path.parent.name)}](../{_relative(run, path.parent)}/report.md): {md(counts(change))}."]
        if len(changed):
            parts.append(
                table(
                    ["claim", "trait", f"by {md(run.caption.grader)}", f"by {md(path.parent.name)}"],
                    [
                        [
                            f"[{row['claim']}](claims.md#{str(row['claim']).lower()})",
                            named([row["trait"]]),
                            *(
                                f"{row[f'verdict_{n}']}: "
                                + spread(row[f"estimate_{n}"], row[f"ci_low_{n}"], row[f"ci_high_{n}"])
                                for n in ("first", "second")
                            ),
                        ]
                        for _, row in changed.iterrows()
                    ],
                )
            )
        yield "\n\n".join(parts)


def _relative(run: Run, folder: Path) -> str:
    return folder.relative_to(run.folder.parents[2]).as_posix()
