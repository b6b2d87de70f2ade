"""The registry as one page of documentation: `python -m persona_bench.definitions.claims_page docs/claims.md`."""

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from persona_bench.definitions.claims import CLAIMS, NOT_FOUND, Claim
from persona_bench.files import write_atomic

_HEAD = """# The claims

Made from `persona_bench/definitions/claims*.py` by `make docs`; do not edit.

Every claim of the paper (arXiv 2507.21509 v3) and every limit that it states, with what decides it. The rules were
written before any result; what was added or amended later says so. A verdict is `supported`, `contradicted`,
`inconclusive`, `not testable` or `not run`; judged claims need a judge that passes its gate (J-judge-valid), and all
tests of a run share one correction (Holm), but for J-judge-valid, S1 and the cosines (V1, L1), which have no p value.
"Not found" means that no source at hand gave the number."""


def claims_page() -> str:
    """The page as Markdown, the same text for the same registry."""
    contents = "\n".join(
        f"| [{entry.id}](#{entry.id.lower()}) | {_cell(entry.statement)} | `{entry.eval}` |" for entry in CLAIMS
    )
    parts = [_HEAD, f"| claim | statement | eval |\n|---|---|---|\n{contents}"]
    for section, entries in groupby(sorted(CLAIMS, key=_place), key=lambda entry: entry.section):
        parts.append(f"## {section}")
        parts += [_entry(entry) for entry in entries]
    return "\n\n".join(parts) + "\n"


def _place(entry: Claim) -> int:
    """Where the first claim of a claim's section stands, so that sections keep the order of the registry."""
    return next(i for i, other in enumerate(CLAIMS) if other.section == entry.section)


def _entry(entry: Claim) -> str:
    facts = "\n".join(f"- {name}: {value}" for name, value in _facts(entry))
    return f"### {entry.id}\n\n{entry.statement}\n\n{facts}\n\n{_values(entry)}"


def _facts(entry: Claim) -> Iterator[tuple[str, str]]:
    condition = f", condition `{entry.condition}`" if entry.condition else ""
    rows = ", ".join(entry.traits) if entry.traits else "every trait of the run" if entry.per_trait else "the model"
    yield "Eval", f"`{entry.eval}`{condition}; a row for {rows}"
    yield "Statistic", entry.statistic
    if entry.missing:
        yield "Not implemented", f"it would need {entry.missing}. The rule is what would then decide"
    yield f"Rule{f' (revision {entry.revision})' * (entry.revision > 1)}", entry.rule
    yield "Threshold and samples", f"{entry.threshold:g}; at least {entry.min_n} valid samples"
    judged = "; or the judge fails its gate" if entry.judged else ""
    yield "Not testable when", f"{entry.not_testable_when}{judged}"
    if entry.words:
        yield "The paper in words" if "Not in the paper" not in entry.section else "In words", entry.words


def _values(entry: Claim) -> str:
    if not entry.reference:
        return f"The paper's value: {NOT_FOUND}."
    rows = "\n".join(
        f"| {value.model} | {value.trait or 'all'} | {value.statistic} | {value.value:g} |" for value in entry.reference
    )
    return f"| model | trait | the paper's statistic | value |\n|---|---|---|---|\n{rows}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    write_atomic(Path(sys.argv[1]), claims_page())
