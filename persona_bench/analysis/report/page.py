"""The report as one page of HTML: template, style and script lie beside this file and go into it whole."""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from persona_bench.analysis.figures.draw import VERDICT_COLOURS
from persona_bench.analysis.report.content import ClaimRow, Code, Image, Items, Report, Table, Text, number
from persona_bench.analysis.verdicts.claims import VERDICTS

HERE = Path(__file__).parent
_STRIP = (4.0, 116.0)
"""Left and right end of an interval's strip, in its own units."""


def html_page(report: Report) -> str:
    """The whole page, without anything from outside.

    Its content policy names the hashes of its one style and one script: what a text might smuggle in does not run.
    """
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "data": _data, "kind": lambda block: _KINDS[type(block)]}
    style = _colours() + (HERE / "page.css").read_text(encoding="utf-8")
    script = (HERE / "page.js").read_text(encoding="utf-8")
    policy = "; ".join(
        ("default-src 'none'", "img-src data:", f"style-src {_hash(style)}", f"script-src {_hash(script)}")
    )
    return environment.get_template("page.html.j2").render(
        report=report,
        strips=_strips(report.rows),
        ran=sum(row.verdict != "not run" for row in report.rows),
        verdicts=[name for name in VERDICTS if any(row.verdict == name for row in report.rows)],
        traits=sorted({row.trait for row in report.rows}),
        columns=("Claim", "Trait", "Verdict", "Estimate [95 %]", "n", "Paper", "Reason"),
        style=style,
        script=script,
        policy=policy,
        missing=pd.isna,
    )


_KINDS: Mapping[type, str] = {Text: "text", Items: "items", Code: "code", Table: "table", Image: "image"}


def _colours() -> str:
    names = "".join(f"--{name.replace(' ', '-')}:{colour};" for name, colour in VERDICT_COLOURS.items())
    return f":root{{{names}}}\n"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _data(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _strips(rows: Sequence[ClaimRow]) -> list[dict[str, float] | None]:
    """Where each row's interval, estimate and threshold stand on a scale that the rows of one claim share."""
    ends: dict[str, tuple[float, float]] = {}
    for row in rows:
        if row.claim is not None and not math.isnan(row.low):
            low, high = ends.get(row.id, (row.claim.threshold, row.claim.threshold))
            ends[row.id] = min(low, row.low), max(high, row.high)
    return [_strip(row, *ends[row.id]) if row.id in ends and not math.isnan(row.low) else None for row in rows]


def _strip(row: ClaimRow, low: float, high: float) -> dict[str, float]:
    assert row.claim is not None
    left, right = _STRIP
    scale = (right - left) / (high - low or 1.0)
    values = {"low": row.low, "high": row.high, "estimate": row.estimate, "threshold": row.claim.threshold}
    return {name: round(left + (value - low) * scale, 1) for name, value in values.items()}
