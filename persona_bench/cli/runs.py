"""Runs: making, judging again, publishing and drawing them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import click

from persona_bench.cli.base import GRADER_HELP, SHOWN, Deciding, main, print_table, say, some_grader, tell, warn
from persona_bench.errors import DataError
from persona_bench.pipeline import DEFAULT_GRADER


@main.command()
@click.option("--model", default="smollm2-135m", help="Catalogue name, Hub id, folder or .gguf file.", **SHOWN)
@click.option("--preset", default="quick", help="quick, standard or paper.", **SHOWN)
@click.option("--traits", default="evil,sycophancy,hallucination", help="Comma-separated.", **SHOWN)
@click.option("--grader", default=DEFAULT_GRADER, callback=some_grader, help=GRADER_HELP, **SHOWN)
@click.option("--evals", default="core", help="Comma-separated names, core or all.", **SHOWN)
@click.option("--out", default="results", type=click.Path(path_type=Path), help="Results folder.", **SHOWN)
@click.option("--seed", default=0, help="Of sampling, subsets and resampling.", **SHOWN)
@click.option("--filter", "rule", default="stated", help="Extraction filter, stated or coded.", **SHOWN)
@click.option(
    "--processes",
    default=1,
    help="Processes that share the evals, each with weights of its own; several GPUs are taken in turn.",
    **SHOWN,
)
@click.option("--corpus", help="Real conversations for data_flagging, comma-separated, as scan reads them.")
def run(
    model: str,
    preset: str,
    traits: str,
    grader: str,
    evals: str,
    out: Path,
    seed: int,
    rule: str,
    processes: int,
    corpus: str | None,
) -> None:
    """Extract, steer, monitor and measure: tables, verdicts, figures and a report.

    Writes OUT/<model>/<preset>/; run again, it does only what is missing.
    """
    from persona_bench import pipeline

    settings = pipeline.Settings(
        model=model,
        preset=preset,
        traits=tuple(name.strip() for name in traits.split(",") if name.strip()),
        grader=grader,
        evals={"core": pipeline.CORE_EVALS, "all": pipeline.ALL_EVALS}.get(evals) or tuple(evals.split(",")),
        seed=seed,
        extraction_filter=rule,
        corpus=corpus or "",
    )
    folder = pipeline.run_folder(settings, out)
    if pipeline.finished(settings, out) is not None:
        _print_claims(folder / "claims.csv")
        tell(f"Nothing to do: {folder} holds this run already. Its report: {folder / 'report.html'}")
        return
    held = pipeline.run(settings, out, say, shlex.join(["persona-bench", *sys.argv[1:]]), processes)
    _print_claims(folder / "claims.csv")
    for warning in held["warnings"]:
        warn(warning)
    tell(f"Report: {folder / 'report.html'}")


@main.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--grader", required=True, callback=some_grader, help=GRADER_HELP)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Results folder, not that of RUN.")
def rejudge(run_folder: Path, grader: str, out: Path) -> None:
    """Have another grader judge a finished run's responses again: which verdicts change?

    RUN is OUT/<model>/<preset> of `run`, with its full logs. Nothing is generated, and the vectors stay. Writes a run
    folder of its own, with grader_change.csv; interrupted, the same command goes on where it stopped.
    """
    from persona_bench import pipeline
    from persona_bench.analysis.changes.verdicts import GRADER_CHANGE, counts, read_change

    command = shlex.join(["persona-bench", *sys.argv[1:]])
    folder, held = pipeline.rejudge(run_folder, grader, out, say, command)
    for warning in held["warnings"]:
        warn(warning)
    tell(f"{counts(read_change(folder / f'{GRADER_CHANGE}.csv'), 'the grader')}.")
    tell(f"Report: {folder / 'report.html'}")


@main.command(cls=Deciding)
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Also write both side by side there, as CSV.")
@click.option("--note", help="What else a reader should know of the two; kept with --out.")
def compare(first: Path, second: Path, out: Path | None, note: str | None) -> None:
    """Compare two runs: which verdicts changed, how many estimates lie in the first one's intervals?

    FIRST and SECOND are OUT/<model>/<preset> of `run`, or their published form. Exit code 0 where every verdict is the
    same, 1 where one changed, 2 where they could not be compared.
    """
    from persona_bench.analysis.changes.runs import compare_runs
    from persona_bench.analysis.report.content import number
    from persona_bench.analysis.report.controls import spread
    from persona_bench.analysis.runs import read_run

    for folder in (first, second):
        if not (folder / "run.json").is_file():
            raise DataError(f"{folder} holds no finished run: no run.json; name a folder OUT/<model>/<preset>")
    compared = compare_runs(read_run(first / "run.json"), read_run(second / "run.json"), note or "")
    if out is not None:
        compared.write(out)
    if compared.differing:
        print_table("What differs between the runs", ("", "first", "second"), compared.differing)
    if len(compared.vectors):
        vectors = compared.vectors.map(number).itertuples(index=False)
        print_table(
            "Vectors: layers that serve, share of resamples that choose them, cosines of both",
            compared.vectors.columns,
            vectors,
        )
    changed = compared.verdicts[compared.verdicts["changed"]]
    if len(changed):
        both = [
            [f"{row[f'verdict_{n}']} {spread(row[f'estimate_{n}'], row[f'ci_low_{n}'], row[f'ci_high_{n}'])}"
             for n in ("first", "second")]
            for _, row in changed.iterrows()
        ]  # fmt: skip
        rows = zip(changed["claim"], changed["trait"], *zip(*both, strict=True), strict=True)
        print_table("Verdicts that changed", ("claim", "trait", "first", "second"), rows)
    for sentence in compared.sentences():
        tell(sentence)
    if out is not None:
        tell(f"Both side by side: {out}")
    sys.exit(int(len(changed) > 0))


@main.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", default="results", type=click.Path(path_type=Path), help="Results folder.", **SHOWN)
@click.option("--allow-quick", is_flag=True, help="Also a run of preset quick, which git ignores under results/.")
@click.option("--part", default=None, help="Name it so, beside a run of this preset with other traits or evals.")
def publish(run_folder: Path, out: Path, allow_quick: bool, part: str | None) -> None:
    """Write the curated form of a finished run, to be committed: tables, claims, report, vectors and logs' headers.

    RUN is OUT/<model>/<preset> of `run` or `rejudge`. What is written names no path of this machine. Then
    `persona-bench figures` and `make docs` bring figures and pages up to date.
    """
    from persona_bench.publishing import publish

    tell(publish(run_folder, out, allow_quick, part or ""))


@main.command()
@click.option("--results", default="results", type=click.Path(path_type=Path), help="Folder of runs.", **SHOWN)
@click.option("--out", default="paper_figures", type=click.Path(path_type=Path), help="Redrawn whole.", **SHOWN)
def figures(results: Path, out: Path) -> None:
    """Draw the figures of all runs under RESULTS anew, several models side by side, from their tables alone.

    Where some of them are published (`persona-bench publish`), those alone.
    """
    from persona_bench.analysis.comparison import draw_results

    drawn = draw_results(results, out, say)
    tell(f"{out}: {len(drawn)} files")


def _print_claims(path: Path) -> None:
    from rich.console import Console

    from persona_bench.analysis.terminal import print_claims, read_claims

    # Where nobody looks (a pipe, a log) the lines are as long as in a plain terminal.
    print_claims(read_claims(path), Console(width=None if sys.stdout.isatty() else 80, highlight=False))
