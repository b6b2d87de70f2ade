"""Answers and logs, judged."""

from __future__ import annotations

from pathlib import Path

import click

from persona_bench.cli.base import GRADER_HELP, SHOWN, main, say, some_grader, tell
from persona_bench.definitions.outcomes import METHODS
from persona_bench.errors import DataError
from persona_bench.pipeline import DEFAULT_GRADER


@main.command()
@click.option("--trait", required=True, help="A trait of the suite, or a trait file.")
@click.option("--grader", default=DEFAULT_GRADER, callback=some_grader, help=GRADER_HELP, **SHOWN)
@click.option("--method", default="auto", help=f"One of {', '.join(METHODS)}.", **SHOWN)
@click.option(
    "--input",
    "source",
    required=True,
    type=click.Path(path_type=Path),
    help="JSONL with `question` and `answer`, or a finished .eval log.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The CSV, or judged log, to write.")
def judge(trait: str, grader: str, method: str, source: Path, out: Path) -> None:
    """Judge answers: trait score and outcome of each, as a CSV; or judge a finished log again."""
    from persona_bench.definitions.traits import load_trait
    from persona_bench.inspect_ext.judging import judge_file, judge_log, open_graders
    from persona_bench.pipeline import model_spec

    if method not in METHODS:
        raise DataError(f"unknown judge method {method!r}; choose from {', '.join(METHODS)}")
    if (source.suffix == ".eval") != (out.suffix == ".eval"):
        raise DataError(f"a .eval log is judged into a .eval log, JSONL into a CSV: {source} and {out} do not match")
    loaded = load_trait(trait)
    graders = open_graders([model_spec(name.strip()) for name in grader.split(",") if name.strip()])
    if source.suffix == ".eval":
        counts = judge_log(graders, trait, source, out, method)
    else:
        counts = judge_file(graders, loaded, source, out, method, say)
    tell(f"{out}: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items())))
