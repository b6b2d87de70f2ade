"""Datasets, measured sample by sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from persona_bench.cli.base import SHOWN, main, print_table, say, tell, warn


@main.command()
@click.option("--model", default="smollm2-135m", help="Catalogue name, Hub id, folder or .gguf file.", **SHOWN)
@click.option(
    "--vector", "vectors", required=True, multiple=True, type=click.Path(path_type=Path), help="May be repeated."
)
@click.option(
    "--input",
    "inputs",
    required=True,
    multiple=True,
    help="File (.jsonl, .jsonl.gz, .parquet), glob, folder or Hub dataset (owner/name[@revision][:pattern]); "
    "may be repeated.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The .parquet or .csv to write.")
@click.option(
    "--measure",
    "measures",
    multiple=True,
    help="response, response_minus_prompt, or difference (generates the model's own response); may be repeated.  "
    "[default: response_minus_prompt]",
)
@click.option(
    "--layer", "layers", multiple=True, help="1-based layer, or all; may be repeated.  [default: the middle one]"
)
@click.option("--messages", default="messages", help="Field with the conversation.", **SHOWN)
@click.option("--role", default="role", help="Field of a message with its speaker.", **SHOWN)
@click.option("--content", default="content", help="Field of a message with its text.", **SHOWN)
@click.option("--prompt", help="Field with the user's text, in datasets of one turn.")
@click.option("--response", default="response", help="Field with the answer to --prompt.", **SHOWN)
@click.option("--id", "identity", help="Field copied to the output.")
@click.option("--turn", default="last", help="Which assistant message is measured, last or first.", **SHOWN)
@click.option("--max-tokens", default=256, help="Of the model's own response.", **SHOWN)
@click.option("--temperature", default=1.0, help="Of the model's own response.", **SHOWN)
@click.option("--seed", default=0, help="Of the model's own responses.", **SHOWN)
@click.option("--reference", type=click.Path(path_type=Path), help="Output of an earlier scan to compare means with.")
@click.option("--top", default=10, help="How many of the highest and lowest samples are named.", **SHOWN)
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw histograms, as .png or .pdf.")
@click.option("--page", type=click.Path(path_type=Path), help="Also write the highest and lowest samples as HTML.")
@click.option("--engine", default="local", type=click.Choice(["local", "ray"]), help="Where it runs.", **SHOWN)
@click.option("--address", help="Of a running Ray cluster.  [default: one on this machine]")
@click.option("--actors", default=0, help="Ray actors that hold the model; 0: one a GPU, or one.", **SHOWN)
@click.option("--actor-cpus", default=1.0, help="CPUs reserved for a Ray actor.", **SHOWN)
def scan(
    model: str,
    vectors: tuple[Path, ...],
    inputs: tuple[str, ...],
    out: Path,
    measures: tuple[Any, ...],
    layers: tuple[str, ...],
    messages: str,
    role: str,
    content: str,
    prompt: str | None,
    response: str,
    identity: str | None,
    turn: Any,
    max_tokens: int,
    temperature: float,
    seed: int,
    reference: Path | None,
    top: int,
    plot: Path | None,
    page: Path | None,
    engine: Any,
    address: str | None,
    actors: int,
    actor_cpus: float,
) -> None:
    """Measure every sample of a dataset on persona vectors: which would move the model, and how far.

    One row a sample; OUT.summary.json holds means, histograms and the ends of each scale, OUT.rejected.jsonl the rows
    that are no samples. Interrupted, the same command goes on where it stopped.
    """
    from persona_bench.vectors.scan.measures import Settings, chosen_layers
    from persona_bench.vectors.scan.run import Cluster, plan_scan, run_scan
    from persona_bench.vectors.scan.samples import Fields

    fields = Fields(messages, role, content, prompt or "", response, identity or "", turn)
    settings = Settings(
        measures or ("response_minus_prompt",), chosen_layers(layers, vectors), fields, max_tokens, temperature, seed
    )
    planned = plan_scan(model, vectors, inputs, out, settings)
    if plot is not None:
        from persona_bench.analysis.figures.traces import check_plot_path

        check_plot_path(plot)
    cluster = Cluster(address or "", actors, actor_cpus)
    summary = run_scan(planned, engine=engine, cluster=cluster, reference=reference, top=top, say=say)
    _print_scan(summary)
    rejected = sum(summary["rejected"].values())
    tell(f"{out}: {summary['n']} samples, {rejected} rows rejected; summary: {planned.summary_path}")
    if plot is not None:
        from persona_bench.analysis.figures.scan import save_histograms

        save_histograms(summary, plot)
        tell(f"{plot}: histograms")
    if page is not None:
        from persona_bench.analysis.figures.scan_page import write_page

        write_page(planned, summary, page)
        tell(f"{page}: the highest and lowest samples")


def _print_scan(summary: dict[str, Any]) -> None:
    compared = "reference" in summary
    columns = ("measure", "n", "mean", "95 % interval", "SD", *(("to reference", "interval") if compared else ()))
    rows = []
    for name, found in summary["values"].items():
        cells = [name, found["n"], _short(found["mean"]), _range(found, "mean"), _short(found["sd"])]
        rows.append([*cells, *([_short(found["difference"]), _range(found, "difference")] if compared else [])])
    print_table("Scan", columns, rows)
    for what in (summary["statuses"], summary["rejected"]):
        for reason, n in what.items():
            if reason != "measured":
                warn(f"{n} rows: {reason.replace('too_long', 'longer than the context')}")


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _range(found: dict[str, Any], name: str) -> str:
    return f"{_short(found[f'{name}_low'])} to {_short(found[f'{name}_high'])}"
