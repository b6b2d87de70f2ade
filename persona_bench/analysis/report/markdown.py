"""The report as Markdown, for a pull request: nothing in a text from outside is taken for markup or a mention."""

import html
import os
import re
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from persona_bench.analysis.report.content import Block, ClaimRow, Code, Image, Items, Report, Text, number

MOST_ROWS = 12
"""A longer table is cut: a comment on a pull request holds 65,536 characters."""
MOST_CELLS = 105
"""A wide table is cut sooner."""
_MARKUP = re.compile(r"([\\`*_\[\]|!~$#])")


def md(text: object) -> str:
    """Text that no Markdown reader takes for markup, for HTML, or for the mention of a person."""
    flat = " ".join(str(text).split())
    escaped = flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", escaped).replace("@", "@<!-- -->")


def _md_table(frame: pd.DataFrame) -> str:
    head = [md(column) for column in frame.columns]
    lines = [head, ["---"] * len(head)]
    lines += [[md(number(value)) for value in row] for row in frame.itertuples(index=False, name=None)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _md_block(block: Block, folder: Path) -> str:
    if isinstance(block, Text):
        return md(block.text)
    if isinstance(block, Items):
        return "\n".join(f"- {md(item)}" for item in block.items)
    if isinstance(block, Code):
        return fenced(block.text)
    if isinstance(block, Image):
        where = Path(os.path.relpath(block.path, folder)).as_posix()
        return f"![{md(block.alt)}]({quote(where)})"
    note, most = block.note, min(MOST_ROWS, MOST_CELLS // max(1, len(block.frame.columns)))
    if len(block.frame) > most:
        note = f"The first {most} rows; report.html has more, and the CSV file all."
    return _folded(block.title, "\n\n".join(filter(None, (_md_table(block.frame.head(most)), md(note)))))


def _folded(title: str, inside: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>\n\n{inside}\n\n</details>"


def fenced(text: str) -> str:
    """A fence longer than any run of backticks inside cannot be closed by the text."""
    longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"


def _claims(rows: list[ClaimRow]) -> str:
    table = pd.DataFrame(
        {
            "claim": [row.id for row in rows],
            "trait": [row.trait for row in rows],
            "verdict": [row.verdict for row in rows],
            "estimate [95 %]": [row.spread for row in rows],
            "n": [str(row.n) for row in rows],
            "paper": [row.paper for row in rows],
            "reason": [row.reason for row in rows],
            "p (Holm)": [number(row.p_holm) for row in rows],
        }
    )
    return _md_table(table)


def _details(rows: list[ClaimRow]) -> str:
    """Statement and rule of one claim, then the controls and the command of each of its verdicts."""
    first = rows[0]
    parts = [f"**{md(first.id)}**: {md(first.statement)}"]
    if first.claim is not None:
        facts = (
            ("Statistic", first.claim.statistic),
            ("Rule", first.claim.rule),
            ("Not testable when", f"{first.claim.not_testable_when}; or with fewer than {first.claim.min_n} samples"),
        )
        parts.append("\n".join(f"- {name}: {md(value)}" for name, value in facts))
    for row in rows:
        logs = f" Logs: {md('; '.join(row.logs))}." if row.logs else ""
        parts.append(f"{md(row.trait)}, {md(row.verdict)}: {md(row.spread)}, n {row.n}.{logs}")
        parts += [_md_table(row.controls)] if len(row.controls) else []
    if first.command:
        parts.append(f"{md(first.trait)} again (other traits alike):\n\n{fenced(first.command)}")
    return "\n\n".join(parts)


def _left(rows: list[ClaimRow]) -> str:
    """What was not run, by reason: a line a claim."""
    traits: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        traits.setdefault((row.reason, row.id, row.statement), []).append(row.trait)
    alike: dict[tuple[str, str], list[str]] = {}
    for (reason, claim_id, statement), names in traits.items():
        alike.setdefault((reason, ", ".join(names)), []).append(f"  - **{md(claim_id)}**: {md(statement)}")
    return "\n".join("\n".join([f"- {md(reason)} ({md(names)}):", *lines]) for (reason, names), lines in alike.items())


def markdown_text(report: Report, folder: Path) -> str:
    """The report as Markdown; pictures are linked as they lie relative to `folder`."""
    ran = [row for row in report.rows if row.verdict != "not run"]
    rest = [row for row in report.rows if row.verdict == "not run"]
    parts = [f"# {md(report.title)}"]
    parts += [f"> **Warning:** {md(text)}" for text in report.warnings]
    parts += ["## Claims", f"{md(report.tally.capitalize())}.", _claims(ran)]
    if ran:
        by_claim = [_details(list(rows)) for _, rows in groupby(ran, key=lambda row: row.id)]
        parts.append(_folded("Rules, controls, logs and commands", "\n\n".join(by_claim)))
    parts += [_folded(f"Not run ({len(rest)})", _left(rest))] if rest else []
    for section in report.sections:
        parts.append(f"## {md(section.title)}")
        parts += [_md_block(block, folder) for block in section.blocks]
    return "\n\n".join(parts) + "\n"
