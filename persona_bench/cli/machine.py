"""This machine: throughput, and the weights and data it holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from persona_bench.cli.base import SHOWN, main, say, tell


@main.command()
@click.option("--model", default="smollm2-135m", help="Catalogue name, Hub id, folder or .gguf file.", **SHOWN)
@click.option("--batch", default=32, help="Rows.", **SHOWN)
@click.option("--tokens", default=64, help="New tokens a row.", **SHOWN)
@click.option("--repeats", default=5, help="Rounds; each times every variant once.", **SHOWN)
@click.option("--grader", help="Local weights: also time judging what was generated.  [default: none]")
@click.option("--transcripts", default=0, help="Also time projecting so many; 0 for none.", **SHOWN)
@click.option("--samples", default=0, help="Also time scanning so many; 0 for none.", **SHOWN)
@click.option("--few-shot", default=0, help="Also time scoring so many questions behind 5 examples.", **SHOWN)
@click.option("--json", "target", type=click.Path(path_type=Path), help="Also write the figures here.")
def bench(
    model: str,
    batch: int,
    tokens: int,
    repeats: int,
    grader: str | None,
    transcripts: int,
    samples: int,
    few_shot: int,
    target: Path | None,
) -> None:
    """Time the engine against transformers' own generate, in one run."""
    from persona_bench.files import write_atomic
    from persona_bench.models.benchmark import measure

    figures = measure(model, batch, tokens, repeats, say, grader or "")
    if transcripts > 0:
        from persona_bench.vectors.benchmark import measure_projection

        figures["projection"] = measure_projection(model, transcripts, repeats, say)
        figures["ratios"] |= figures["projection"].pop("ratios")
    if samples > 0:
        from persona_bench.vectors.benchmark import measure_scan

        figures["scan"] = measure_scan(model, samples, repeats, say)
        figures["ratios"] |= figures["scan"].pop("ratios")
    if few_shot > 0:
        figures["few_shot"] = _few_shot(model, few_shot, repeats)
        figures["ratios"] |= figures["few_shot"].pop("ratios")
    for name, value in figures["throughput"].items():
        tell(f"{name:32} {value:8.1f} tokens/s")
    for name, value in figures["ratios"].items():
        tell(f"{name:32} {value:8.3f}")
    if target is not None:
        write_atomic(target, json.dumps(figures, indent=1) + "\n")


def _few_shot(model: str, n: int, repeats: int) -> dict[str, Any]:
    """Time scoring `n` MMLU questions, by letter and by cloze, behind the examples that the eval puts before them."""
    from evals.mmlu_preservation.dataset import load_mmlu
    from evals.mmlu_preservation.mmlu_preservation import example
    from persona_bench.inspect_ext.answering import likelihood_items
    from persona_bench.inspect_ext.benchmark import measure_sharing

    held = load_mmlu(n, seed=0, examples=True)
    shown = {subject: [example(solved) for solved in items] for subject, items in held.examples.items()}
    figures: dict[str, Any] = {"source": held.source, "ratios": {}}
    for way in ("letter", "cloze"):
        items = [
            likelihood_items(way, asked.text, asked.options, shown.get(asked.subject) or shown.get("") or [])
            for asked in held.questions
        ]
        figures[way] = measure_sharing(model, items, repeats, say)
        figures["ratios"][f"whole / shared examples, {way}"] = figures[way].pop("ratio")
    return figures


@main.group()
def assets() -> None:
    """Weights and data: what there is, fetching it, checking it."""


@assets.command("list")
def assets_list() -> None:
    """What the catalogue holds and what is cached."""
    from rich.console import Console
    from rich.table import Table

    from persona_bench.models.assets import cache_dir, status

    table = Table(caption=f"cache: {cache_dir()} (PERSONA_BENCH_CACHE)")
    for column in ("name", "kind", "size", "licence", "source", "cached"):
        table.add_column(column)
    for item in status():
        table.add_row(
            item.name,
            item.kind,
            f"{item.size / 1e6:.0f} MB",
            item.license,
            str(item.source or "-"),
            "yes" if item.cached else "no",
        )
    Console().print(table)


@assets.command("fetch")
@click.argument("name")
def assets_fetch(name: str) -> None:
    """Fetch weights or data into the cache."""
    from persona_bench.models import assets as catalogue

    known = catalogue.CATALOGUE.get(name)
    fetch = catalogue.fetch_data if isinstance(known, catalogue.DataAsset) else catalogue.fetch_weights
    tell(fetch(name, progress=say))


@assets.command("verify")
@click.argument("names", nargs=-1)
def assets_verify(names: tuple[str, ...]) -> None:
    """Hash what is cached again; exit code 2 if anything is wrong."""
    from persona_bench.models.assets import status, verify

    problems = []
    for name in names or [item.name for item in status() if item.cached]:
        found = verify(name)
        problems += found
        tell(f"{name}: {'; '.join(found) if found else 'ok'}")
    if problems:
        sys.exit(2)
