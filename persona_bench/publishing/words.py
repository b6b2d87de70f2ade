"""Verdicts in words: cells and sentences whose every number comes from a run's claims."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd

from persona_bench.analysis.report.controls import spread
from persona_bench.analysis.report.markdown import md
from persona_bench.analysis.runs import Run
from persona_bench.analysis.verdicts.claims import DECIDED, VERDICTS
from persona_bench.definitions.claims import ALL_TRAITS, CLAIMS, NOT_FOUND, Claim

MEASURED = (*DECIDED, "inconclusive")
"""Verdicts that stand on numbers."""


def label(run: Run) -> str:
    """A run's name in a sentence or a column."""
    return f"{run.model}, {run.scope}"


def rows_of(run: Run, claim: Claim) -> pd.DataFrame:
    """A claim's verdicts in a run, without those that were not run, with what weakens each."""
    claims = run.claims
    return claims[(claims["claim"] == claim.id) & (claims["verdict"] != "not run")]


def ran(runs: Sequence[Run], evaluation: str = "") -> list[Claim]:
    """The claims, of one eval or of all, that any run has a verdict about, in the registry's order."""
    return [
        claim for claim in CLAIMS if evaluation in ("", claim.eval) and any(len(rows_of(run, claim)) for run in runs)
    ]


def measured(row: pd.Series) -> str:
    """A row's estimate with its interval and n."""
    return f"{spread(row['estimate'], row['ci_low'], row['ci_high'])}, n {int(row['n'])}"


def named(traits: Iterable[str]) -> str:
    """Traits, the model itself for a claim that is about no trait."""
    return ", ".join("the model" if trait == ALL_TRAITS else md(trait) for trait in traits)


def verdict(row: pd.Series) -> str:
    """A row's verdict with its weakness in brackets."""
    return f"{row['verdict']} ({row['weakness']})" if row["weakness"] else str(row["verdict"])


def _by_verdict(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows of one verdict after the other, those that the interval alone decides apart."""
    said = rows.apply(verdict, axis="columns") if len(rows) else pd.Series(dtype=str)
    for name in VERDICTS:
        for words in sorted(set(said[rows["verdict"] == name]), key=lambda words: (words == name, words)):
            yield words, rows[said == words]


def cell(rows: pd.DataFrame) -> str:
    """A claim's verdicts in one run, for a table: a line a trait where there is a number, else a line a verdict."""
    lines = []
    for words, some in _by_verdict(rows):
        if some["verdict"].isin(MEASURED).all():
            name = some["verdict"].iloc[0]
            said = words.replace(name, f"**{name}**", 1)
            lines += [f"{said}: {named([row['trait']])} {measured(row)}" for _, row in some.iterrows()]
        else:
            lines.append(f"{words}: {named(some['trait'])}")
    return "<br>".join(lines) or "not run"


def sentence(rows: pd.DataFrame) -> str:
    """The same in a sentence: `supported for evil (3.1 [2, 4], n 80); not testable for humorous`."""
    parts = []
    for words, some in _by_verdict(rows):
        if some["verdict"].isin(MEASURED).all():
            told = ", ".join(f"{named([row['trait']])} ({measured(row)})" for _, row in some.iterrows())
        else:
            told = named(some["trait"])
        parts.append(f"{words} for {told}")
    return "; ".join(parts)


def paper(claim: Claim, traits: Sequence[str], between: str = "<br>") -> str:
    """What the paper gives for these traits: its numbers, once where they are the same for all, and its words."""
    asked = [trait for trait in claim.rows(list(traits)) if trait in traits or trait == ALL_TRAITS]
    numbers = {trait: claim.paper_value(trait).split("; in words: ", maxsplit=1)[0] for trait in asked or [""]}
    found = {trait: value for trait, value in numbers.items() if value != NOT_FOUND}
    if len(found) == len(numbers) and len(set(found.values())) == 1:
        lines = [md(next(iter(found.values())))]
    else:
        lines = [f"{md(trait)}: {md(value)}" for trait, value in found.items()]
    lines += [f"in words: {md(claim.words)}"] if claim.words else []
    return between.join(lines) or NOT_FOUND


def traits_of(runs: Sequence[Run]) -> list[str]:
    """The traits of some runs, sorted."""
    return sorted({str(trait) for run in runs for trait in run.held.get("traits", [])})


def kind(reason: str) -> str:
    """What sort of reason it is: its words up to a colon, without the numbers that follow."""
    first, *rest = reason.split(": ")
    return f"{first}: {rest[0]}" if rest and " " not in first else first


def reasons(rows: pd.DataFrame) -> list[str]:
    """Why these verdicts could not be had: a line a sort of reason, with its claims, traits and one reason in full."""
    lines = []
    kinds = rows["reason"].map(lambda text: re.sub(r"\d[\d.]*", "#", kind(str(text))))
    for _, some in sorted(rows.groupby(kinds, sort=False), key=lambda pair: -len(pair[1])):
        first = str(some["reason"].iloc[0])
        claims = ", ".join(dict.fromkeys(str(name).split("-", maxsplit=1)[0] for name in some["claim"]))
        rest = md(first.removeprefix(kind(first)).lstrip(": "))
        whole = f" ({'for instance: ' if len(some) > 1 else ''}{rest})" if rest else ""
        lines.append(f"**{md(kind(first))}**: {claims}, for {named(dict.fromkeys(some['trait']))}{whole}")
    return lines


def tally(rows: pd.DataFrame) -> str:
    """How many verdicts of each kind, weak ones apart: `2 supported, 1 supported (no interval), 1 not testable`."""
    counts = Counter(verdict(row) if row["verdict"] in DECIDED else str(row["verdict"]) for _, row in rows.iterrows())
    names = [name + more for name in VERDICTS for more in ("", " (no interval)", " (older rule)")]
    return ", ".join(f"{counts[name]} {name}" for name in names if name in counts)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells that are Markdown already."""
    lines = [list(head), ["---"] * len(head), *map(list, rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def changed_verdicts(changed: pd.DataFrame, heads: Sequence[str]) -> str:
    """A table of verdicts that two runs or graders give otherwise, from `verdict_change`; `heads` name the two."""
    rows = [
        [
            f"[{row['claim']}](claims.md#{str(row['claim']).lower()})",
            named([row["trait"]]),
            *(
                f"{row[f'verdict_{n}']}: {spread(row[f'estimate_{n}'], row[f'ci_low_{n}'], row[f'ci_high_{n}'])}"
                for n in ("first", "second")
            ),
        ]
        for _, row in changed.iterrows()
    ]
    return table(["claim", "trait", *heads], rows)


def folded(title: str, inside: str) -> str:
    """A part that opens."""
    return f"<details><summary>{title}</summary>\n\n{inside}\n\n</details>"
