"""One page of flagged samples that a person can read: the ends of each scale, with their texts."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from persona_bench.analysis.figures.scan import NAMES
from persona_bench.errors import DataError
from persona_bench.files import write_atomic
from persona_bench.vectors.scan.inputs import texts_of
from persona_bench.vectors.scan.run import Scan
from persona_bench.vectors.scan.samples import Sample, read_sample

LONGEST = 1200
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:2rem auto;padding:0 1rem;color:#1a1a1a;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.5rem;border-bottom:1px solid #ccc}h3{font-size:1rem}
article{margin:1rem 0;padding:.2rem 0 .2rem 1rem;border-left:3px solid #0072b2}
article.low{border-color:#999}
p{margin:.3rem 0;white-space:pre-wrap;overflow-wrap:anywhere}
.at{color:#555;font-size:.85rem}.who{color:#555}
"""


def write_page(scan: Scan, summary: Mapping[str, Any], path: Path) -> None:
    """Write the highest and the lowest samples of every measure as one HTML file; texts are shown, never run.

    Args:
        scan: whose input files hold the texts.
        summary: of its output.
        path: the file to write.

    Raises:
        DataError: an input file has gone, or the page cannot be written.
    """
    texts = _texts(scan, summary)
    parts = []
    for name, found in summary["values"].items():
        trait, measure, layer = name.rsplit(".", 2)
        parts.append(f"<h2>{escape(trait)}, layer {escape(layer)}: {escape(NAMES[measure])}</h2>")
        for end, title in (("highest", "Furthest along the vector"), ("lowest", "Furthest against it")):
            parts.append(f"<h3>{title}</h3>")
            parts += [_article(item, texts[item["file"], item["row"]], end) for item in found[end]]
    title = f"Samples flagged by {scan.job.model}"
    intro = (
        f"{summary['n']} samples of {len(scan.sources)} file(s). Here stand the ends of each scale, as a scan "
        "ranks them; whether a sample shows a trait is for its reader to say."
    )
    write_atomic(
        path,
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>"
        f"<p>{escape(intro)}</p>{''.join(parts)}</body></html>\n",
    )


def _texts(scan: Scan, summary: Mapping[str, Any]) -> dict[tuple[str, int], Sample]:
    """(file, row) -> sample, for every sample that the summary names; each file is read once."""
    wanted: dict[str, set[int]] = {}
    for found in summary["values"].values():
        for item in (*found["highest"], *found["lowest"]):
            wanted.setdefault(item["file"], set()).add(item["row"])
    fields = scan.job.settings.fields
    texts = {}
    for source in scan.sources:
        for number, row in texts_of(source, wanted.get(source.name, set()), fields.columns):
            texts[source.name, number] = read_sample(number, row, fields)
    gone = [(file, row) for file, rows in wanted.items() for row in rows if (file, row) not in texts]
    if gone:
        raise DataError(f"{gone[0][0]} holds no row {gone[0][1]} any more; scan it again")
    return texts


def _article(item: Mapping[str, Any], sample: Sample, end: str) -> str:
    named = f" · {item['id']}" if item["id"] else ""
    at = f"{item['value']:+.3f} · {item['file']}, row {item['row']}{named}"
    turns = [*sample.messages, {"role": "assistant", "content": sample.response}]
    said = "".join(
        f'<p><span class="who">{escape(turn["role"])}:</span> {escape(_short(turn["content"]))}</p>' for turn in turns
    )
    return f'<article class="{"low" if end == "lowest" else "high"}"><p class="at">{escape(at)}</p>{said}</article>'


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST:,} characters more)"
