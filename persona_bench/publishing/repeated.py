"""A published run beside another of the same command: counts, vectors, and each verdict that changed."""

from __future__ import annotations

from collections.abc import Iterator

from persona_bench.analysis.changes.runs import ABOUT, VERDICTS, read_compared
from persona_bench.analysis.report.content import number
from persona_bench.analysis.report.markdown import md
from persona_bench.analysis.runs import Run
from persona_bench.publishing.words import changed_verdicts, table

FOLDER = "compared"


def told(run: Run) -> Iterator[str]:
    """A text a run that this one was compared with."""
    for path in sorted(run.folder.glob(f"{FOLDER}/*/{ABOUT}")):
        compared = read_compared(path.parent)
        where = path.parent.relative_to(run.folder.parents[2]).as_posix()
        said = [f"[{md(path.parent.name)}](../{where}/{VERDICTS}.csv) first, this run second. "
                + " ".join(md(sentence) for sentence in compared.sentences())]  # fmt: skip
        if compared.differing:
            rows = [[md(cell) for cell in row] for row in compared.differing]
            said += ["What differs between them:", table(["", "first", "second"], rows)]
        if len(compared.vectors):
            vectors = [[md(number(cell)) for cell in row] for row in compared.vectors.itertuples(index=False)]
            said += [
                "Layers that serve (steering's choice, else the middle one; `share` of the resamples that choose it), "
                "and the cosine of both vectors there:",
                table([*compared.vectors.columns], vectors),
            ]
        changed = compared.verdicts[compared.verdicts["changed"]]
        if len(changed):
            said += ["Verdicts that changed:", changed_verdicts(changed, ("first", "second"))]
        yield "\n\n".join(said)
