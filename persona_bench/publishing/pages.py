"""Pages about results, made from the published runs: parts of README.md and the evals' pages, and docs/findings.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from persona_bench.analysis.runs import published_runs
from persona_bench.files import write_atomic
from persona_bench.publishing import eval_section, findings, judge_section, readme_section, times_section
from persona_bench.publishing.markers import put

README = "README.md"
FINDINGS = "docs/findings.md"


def made_pages(root: Path) -> Mapping[str, str]:
    """Every page that says something of results, by its path under `root`, as it should be.

    Raises:
        DataError: a run or its notes cannot be read, or a page lacks the comments that its made part stands between.
    """
    runs = published_runs(root / "results")
    readme = _read(root, README)
    readme = put(readme, "results", readme_section.text(runs, root), README)
    readme = put(readme, "judge", judge_section.text(runs), README)
    readme = put(readme, "times", times_section.text(runs), README)
    pages = {README: readme, FINDINGS: findings.page(runs)}
    for path in sorted(root.glob("evals/*/README.md")):
        name = path.relative_to(root).as_posix()
        pages[name] = put(_read(root, name), "results", eval_section.text(path.parent.name, runs), name)
    return pages


def write_pages(root: Path) -> Sequence[str]:
    """Write every page that is not as it should be; returns their names."""
    changed = [(name, text) for name, text in made_pages(root).items() if _read(root, name) != text]
    for name, text in changed:
        write_atomic(root / name, text)
    return [name for name, _ in changed]


def _read(root: Path, name: str) -> str:
    path = root / name
    return path.read_text(encoding="utf-8") if path.exists() else ""
