"""Curated runs: small, anonymous, whole or not at all; and pages that say nothing but what the runs do."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from inspect_ai.log import (
    EvalConfig,
    EvalDataset,
    EvalLog,
    EvalRevision,
    EvalSample,
    EvalSpec,
    list_eval_logs,
    read_eval_log,
    write_eval_log,
)
from inspect_ai.model import ModelConfig

from persona_bench import pipeline
from persona_bench.analysis.comparison import draw_results
from persona_bench.analysis.runs import published_runs, read_run
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.files import write_tables
from persona_bench.analysis.verdicts.claims import judge_claims
from persona_bench.cli import main
from persona_bench.definitions.claims import CLAIMS
from persona_bench.errors import DataError, RunError
from persona_bench.pipeline.settings import STAGES
from persona_bench.publishing import curated, findings, judge_section, publish, times_section
from persona_bench.publishing.anonymous import Anonymous
from persona_bench.publishing.markers import put, without_made
from persona_bench.publishing.notes import filled
from persona_bench.publishing.pages import made_pages, write_pages
from persona_bench.publishing.words import label
from persona_bench.vectors.vector import PersonaVector
from tests.builders_samples import World, make_samples
from tests.conftest import one_line, tiny_vector

ROOT = Path(__file__).parents[1]
MODELS = {"/home/alice/weights/small-135m": 0, "org/other-1b": 1}
FIGURES = ("claims", "mmlu", "steering_evil", "monitoring_evil")
STAMP = "2026-01-02T03-04-05-00-00_task"
REASON = "no vector: too few responses, 3 of 40"


def make_run(out: Path, model: str, seed: int, preset: str = "standard") -> Path:
    """A finished run as `persona-bench run` leaves it on alice's machine, with one log."""
    folder = out / model.strip("/").replace("/", "--") / preset
    samples = make_samples(World(traits=("evil",), seed=seed, questions=5, mmlu_questions=60, scripts=2))
    tables = build_tables(samples, resamples=50)
    claims = judge_claims(samples, tables, resamples=50)
    vectors = set(tables["vectors"]["vector_id"])
    logs = sorted({name for names in claims["log"] for name in str(names).split("; ")} - {"", *vectors})
    held = {
        "model": model,
        "preset": preset,
        "grader": "persona//home/alice/weights/g",
        "date": "2026-01-02",
        "seed": 0,
    }
    held |= {"weights": {"model": {"family": "llama", "parameters": 1e8 * (1 + seed), "dtype": "bfloat16"}}}
    held |= {"command": f"persona-bench run --model {model} --out /home/alice/runs", "traits": ["evil"], "pages": []}
    held |= {"deviations": ["64 tokens a response"], "warnings": [], "vectors": {"evil": tiny_vector().hash}}
    places = {name: f"logs/{i}/{STAMP}_{i}.eval" for i, name in enumerate(logs)}
    held |= {"logs": {name: {"file": places[name], "eval_id": f"id{seed}-{i}"} for i, name in enumerate(logs)}}
    for i, name in enumerate(logs):
        path = folder / f"logs/{i}/{STAMP}_{i}.eval"
        path.parent.mkdir(parents=True)
        write_eval_log(make_log(folder, name, f"id{seed}-{i}"), str(path))
    tiny_vector(provenance={**tiny_vector().provenance, "grader": "/home/alice/weights/g"}).save(
        folder / "vectors" / "evil.safetensors"
    )
    files = write_tables(tables, folder / "tables") + write_tables({"claims": claims}, folder)
    drawn = [folder / "figures" / f"{name}.png" for name in FIGURES]
    drawn[0].parent.mkdir()
    for path in drawn:
        path.touch()
    held["files"] = [str(path.relative_to(folder)) for path in [*files, *drawn]]
    (folder / "run.json").write_text(json.dumps(held))
    return folder


def make_log(folder: Path, name: str, eval_id: str) -> EvalLog:
    spec = EvalSpec(
        eval_id=eval_id,
        created="2026-01-02T03:04:05+00:00",
        task=name.split("/", maxsplit=1)[0],
        task_args={"vector": f"{folder.resolve()}/vectors/evil.safetensors", "judged": "/home/alice/judged.jsonl"},
        dataset=EvalDataset(name="d", samples=1),
        model="persona//home/alice/weights/small-135m",
        model_args={"api_key": "alice-key"},
        model_base_url="http://alice.local:8000/v1",
        model_roles={"grader": ModelConfig(model="openai/g", base_url="http://alice.local/v1")},
        config=EvalConfig(),
        revision=EvalRevision(type="git", origin="git@host:alice/fork.git", commit="abc"),
    )
    sample = EvalSample(id=1, epoch=1, input="alice asks", target="")
    return EvalLog(status="success", eval=spec, samples=[sample])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("alice")
    return [make_run(out, model, seed) for model, seed in MODELS.items()]


@pytest.fixture(scope="module")
def root(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with two published runs, its figures and its pages."""
    root = tmp_path_factory.mktemp("repository")
    for run in runs:
        publish(run, root / "results")
    shutil.copytree(runs[0], root / "results" / "unpublished" / "quick")
    draw_results(root / "results", root / "paper_figures")
    for name in (
        "README.md",
        "docs/claims.md",
        "results/bench/h100-qwen2.5-7b-shape.json",
        *(str(path.relative_to(ROOT)) for path in ROOT.glob("evals/*/README.md")),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    write_pages(root)
    return root


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_published_is_small_whole_and_nobody_s(runs: list[Path], root: Path) -> None:
    folder = root / "results" / "small-135m" / "standard"
    found = contents(folder)
    assert {name.split("/")[0] for name in found} == {
        *("claims.csv", "log_headers", "report.md", "run.json", "tables", "vectors")
    }
    for name, data in found.items():
        for told in (b"alice", str(runs[0].parents[1]).encode(), b"/home", b"/tmp"):
            assert told not in data, (name, told)
    held = json.loads(found["run.json"])
    assert held["published"] and held["command"] == "persona-bench run --model small-135m --out runs"
    assert set(held["files"]) == set(found) - {"run.json"}
    vector = PersonaVector.load(folder / "vectors" / "evil.safetensors")
    assert vector.hash == held["vectors"]["evil"] and vector.provenance["grader"] == "g"


def test_every_number_leads_to_the_header_of_a_log(runs: list[Path], root: Path) -> None:
    folder = root / "results" / "small-135m" / "standard"
    held, before = (json.loads((path / "run.json").read_text()) for path in (folder, runs[0]))
    claims = read_run(folder / "run.json").tables["claims"]
    traced = claims[claims["estimate"].notna()]
    assert len(traced) > 5
    vectors = set(pd.read_csv(folder / "tables" / "vectors.csv")["vector_id"].astype(str))
    for names in traced["log"]:
        assert set(names.split("; ")) <= set(held["logs"]) | vectors, names
    listed = {info.name.removeprefix("file://") for info in list_eval_logs(str(folder / "log_headers"))}
    for name, entry in held["logs"].items():
        assert entry["eval_id"] == before["logs"][name]["eval_id"] and str(folder / entry["file"]) in listed
        log = read_eval_log(str(folder / entry["file"]), header_only=True)
        assert log.eval.eval_id == entry["eval_id"] and log.status == "success" and not log.samples
        assert log.eval.task_args["vector"] == "vectors/evil.safetensors" and log.eval.model == "persona/small-135m"
        assert log.eval.revision is not None and log.eval.revision.commit == "abc"
    report = (folder / "report.md").read_text()
    assert all(entry["eval_id"] in report for name, entry in held["logs"].items() if name in set(traced["log"]))


def test_publishing_again_changes_nothing_and_keeps_what_people_wrote(runs: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "run" / runs[1].parent.name / "standard"
    shutil.copytree(runs[1], run)
    made = publish(run, tmp_path / "results")
    (made.folder / "notes.md").write_text("Looked into.")
    before = {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")}
    again = publish(run, tmp_path / "results")
    assert made.changed and not again.changed and again.sizes == made.sizes
    assert {path: path.stat().st_mtime_ns for path in made.folder.rglob("*")} == before
    held = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**held, "date": "2026-02-03"}))
    assert publish(run, tmp_path / "results").changed
    assert (made.folder / "notes.md").read_text() == "Looked into."
    assert "2026-02-03" in (made.folder / "run.json").read_text()


def test_a_failure_leaves_the_old_one_and_nothing_besides(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = publish(runs[1], tmp_path)
    (made.folder / "claims.csv").write_text("older")
    before = contents(tmp_path)

    def full(*_: object) -> str:
        raise OSError("disk full")

    monkeypatch.setattr(curated, "_report", full)
    with pytest.raises(OSError, match="disk full"):
        publish(runs[1], tmp_path)
    assert contents(tmp_path) == before


def test_a_part_stands_beside_the_run_and_is_told_apart(runs: list[Path], tmp_path: Path) -> None:
    results = tmp_path / "results"
    whole = publish(runs[0], results).folder
    before = contents(whole)
    made = publish(runs[0], results, part="training")
    assert made.folder == whole.with_name("standard-training") and made.changed
    assert not publish(runs[0], results, part="training").changed and contents(whole) == before
    assert json.loads((made.folder / "run.json").read_text())["part"] == "training"
    assert "preset standard, training" in (made.folder / "report.md").read_text()
    both = published_runs(results)
    assert [label(run) for run in both] == ["small-135m, standard", "small-135m, standard, training"]
    drawn = {path.name for path in draw_results(results, tmp_path / "figures")}
    assert {"small-135m-standard-claims.png", "small-135m-standard-training-claims.png"} <= drawn
    # A field each: neither run's verdicts stand in the other's place.
    table = pd.read_csv(tmp_path / "figures" / "coverage.csv", keep_default_na=False)
    assert list(table.groupby("part").size()) == [len(both[0].claims)] * 2
    told = findings.page(both)
    assert "small-135m, standard, training: " in told and "(../results/small-135m/standard-training/" in told
    for name in ("../up", "a b", "Training", "a-b"):
        with pytest.raises(RunError, match="a-z, 0-9 and _"):
            publish(runs[0], results, part=name)


def test_what_is_no_finished_run_is_one_line(runs: list[Path], root: Path, tmp_path: Path) -> None:
    def refused(source: Path, *words: str) -> None:
        with pytest.raises(RunError) as error:
            publish(source, tmp_path / "results")
        one_line(error, *words)
        assert not (tmp_path / "results").exists()

    refused(tmp_path, "no run.json", str(tmp_path))
    refused(root / "results" / "small-135m" / "standard", "curated run already")
    part = tmp_path / "m" / "standard"
    shutil.copytree(runs[1], part)
    next(part.glob("logs/*/*.eval")).unlink()
    refused(part, "is missing", str(part))
    (part / "run.json").write_text("{")
    refused(part, "cannot read")
    held = json.loads((runs[1] / "run.json").read_text())
    (part / "run.json").write_text(json.dumps({**held, "preset": "quick", "logs": {}}))
    refused(part, "quick run", "--allow-quick")
    done = CliRunner().invoke(main, ["publish", str(runs[1]), "--out", str(runs[1].parents[1])])
    assert done.exit_code == 2 and "the run itself" in done.stderr


def test_a_run_does_not_write_into_a_published_one(root: Path) -> None:
    settings = pipeline.Settings(model="small-135m", preset="standard", traits=("evil",))
    folder = root / "results" / "small-135m" / "standard"
    before = contents(folder)
    assert pipeline.settings.is_published(folder) and pipeline.finished(settings, root / "results") is None
    with pytest.raises(RunError) as error:
        pipeline.run(settings, root / "results", print)
    one_line(error, "published run", "choose another --out")
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/u/out/m/standard/vectors/v.safetensors,/x/y", "vectors/v.safetensors,y"),
        ("a=/srv/w/m/standard/vectors/variants/r.safetensors", "a=vectors/variants/r.safetensors"),
        ("persona//home/u/weights/w+/home/u/a", "persona/w+a"),
        ("file:///home/u/log.eval", "log.eval"),
        ("run --out /tmp/u/out/ --corpus '/d/c.jsonl'", "run --out out --corpus 'c.jsonl'"),
        (r"C:\Users\u\w.gguf", "w.gguf"),
        ("~/.cache/weights", "weights"),
        ("see https://arxiv.org/abs/2507.21509, 1/2 or and/or; org/model; </b></i>", None),
        ("persona/smollm2-135m, trait_steering/evil, q0-persona-l12-d+0.2", None),
    ],
)
def test_paths_are_taken_out_and_nothing_else(tmp_path: Path, text: str, expected: str | None) -> None:
    clean = Anonymous(tmp_path / "m" / "standard")
    assert clean.text(text) == (text if expected is None else expected)
    assert clean.value({"api_key": "x", "max_tokens": 3, "a": [text, None]}) == {
        "max_tokens": 3,
        "a": [clean.text(text), None],
    }


def test_figures_come_from_the_published_runs_alone(runs: list[Path], root: Path) -> None:
    """They are a pure function of tables, claims and captions, and those are published byte by byte."""
    for source in runs:
        names = [path for path in (*source.glob("tables/*.csv"), source / "claims.csv")]
        model = {"home--alice--weights--small-135m": "small-135m"}.get(source.parent.name, source.parent.name)
        for path in names:
            copy = root / "results" / model / "standard" / path.relative_to(source)
            assert copy.read_bytes() == path.read_bytes()
    names = {path.stem for path in (root / "paper_figures").iterdir()}
    assert {"coverage", "comparison-standard-claims", "comparison-standard-steering"} <= names
    assert {f"small-135m-standard-{name}" for name in FIGURES} <= names
    assert not [name for name in names if "alice" in name]
    assert set(pd.read_csv(root / "paper_figures" / "coverage.csv")["model"]) == {"small-135m", "org/other-1b"}
    report = root / "results" / "small-135m" / "standard" / "report.md"
    shown = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", report.read_text())
    assert len(shown) == len(FIGURES) and all((report.parent / name).is_file() for name in shown)


def test_the_pages_say_what_the_runs_do(root: Path) -> None:
    findings, readme = ((root / name).read_text() for name in ("docs/findings.md", "README.md"))
    found = published_runs(root / "results")
    assert [run.model for run in found] == ["small-135m", "org/other-1b"]
    for run in found:
        claims = run.tables["claims"]
        for _, row in claims[claims["verdict"].isin(["supported", "contradicted"])].iterrows():
            told = f"{row['estimate']:.3g}" + ("" if pd.isna(row["ci_low"]) else f" [{row['ci_low']:.3g}, ")
            (claim,) = [item for item in CLAIMS if item.id == row["claim"]]
            for page in (findings, readme, (root / "evals" / claim.eval / "README.md").read_text()):
                assert told in page, (row["claim"], told)
    for link, base in ((findings, root / "docs"), (readme, root)):
        for name in re.findall(r"\]\(((?:\.\./)*(?:results|paper_figures|docs)/[^)#]*)", link):
            assert (base / name).resolve().is_file(), name
    assert len(re.findall(r"!\[[^\]]*\]\(paper_figures/", readme)) == 3
    steering = (root / "evals" / "trait_steering" / "README.md").read_text()
    assert "persona-bench run --model small-135m --out runs" in steering and "64 tokens a response" in steering
    before = (ROOT / "evals" / "trait_steering" / "README.md").read_text()
    assert without_made(steering) == without_made(before)
    assert write_pages(root) == []


def test_claims_stand_under_what_their_verdicts_say(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "r")
    planted = {"C1-steering-induces": ("supported", "supported"), "C2-steering-suppresses": ("contradicted",) * 2}
    planted |= {"C3-monitoring-overall": ("supported", "contradicted"), "C4-monitoring-within": ("inconclusive",) * 2}
    planted["C8-many-shot-overall"] = ("inconclusive",) * 2
    for number, run in enumerate(published_runs(tmp_path / "r" / "results")):
        path = run.folder / "claims.csv"
        claims = pd.read_csv(path, keep_default_na=False)
        for claim, verdicts in planted.items():
            claims.loc[claims["claim"] == claim, ["verdict", "reason"]] = [verdicts[number], "measured"]
        if not number:
            alone = "r 0.5 [0.4, 0.6]; supported by the interval alone, p = 0.2 after Holm's correction"
            claims.loc[claims["claim"] == "C8-many-shot-overall", "reason"] = alone
        claims.loc[claims["claim"] == "C6-steering-costs-coherence", ["verdict", "reason"]] = ["not testable", REASON]
        claims.to_csv(path, index=False)
    page = made_pages(tmp_path / "r")["docs/findings.md"]
    parts = dict(part.split("\n", 1) for part in page.split("\n## ")[1:])
    for claim, title in zip(
        planted,
        (
            *("What holds", "What does not hold", "What holds here and not there", "What these runs cannot tell"),
            "What single intervals show, and all claims together do not",
        ),
        strict=True,
    ):
        assert [name for name, text in parts.items() if f"([{claim}](" in text] == [title]
    assert page.count("inconclusive (supported by the interval alone) for evil") == 1
    untested = parts["What could not be tested, and why"]
    assert untested.count("**no vector**: C6, for evil (too few responses, 3 of 40)") == 2
    assert "([C6-steering" not in parts["What holds"]


def test_notes_have_their_numbers_filled_in(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "r")
    folder = tmp_path / "r" / "results" / "small-135m" / "standard"
    claims = read_run(folder / "run.json").tables["claims"]
    row = claims[(claims["claim"] == "C1-steering-induces")].iloc[0]
    table = read_run(folder / "run.json").tables["steering_choice"]
    first = table[table["sign"] == "positive"].iloc[0]
    (folder / "notes.md").write_text(
        "On SmolLM2-135M, C1 is {claim:C1-steering-induces/evil/spread} (n {claim:C1-steering-induces/evil/n}), at "
        "layer {table:steering_choice/layer/trait=evil,sign=positive}, judged by {run:grader}; see `make 3` and "
        "[a page](https://x.y/2).\n"
    )
    said = filled(read_run(folder / "run.json"))
    assert f"{row['estimate']:.3g} [" in said and f"(n {row['n']})" in said and "judged by persona/g" in said
    assert f"at layer {first['layer']:.3g}," in said
    assert said in made_pages(tmp_path / "r")["docs/findings.md"].split("## Looked into")[1]
    for text, words in (
        ("It is {claim:C1-steering-induces/kind/estimate}.", "names nothing"),
        ("It is {claim:C1-steering-induces/evil/mean}.", "no column mean"),
        ("It is {table:steering/trait_score/trait=evil}.", "not one"),
        ("It is {claims:C1}.", "no placeholder"),
        ("A.\nThe score is 0.45 there.", "line 2: the number 0.45 is typed by hand"),
    ):
        (folder / "notes.md").write_text(text)
        with pytest.raises(DataError) as error:
            made_pages(tmp_path / "r")
        one_line(error, words, "notes.md")


def test_times_are_those_of_runs_that_hold_all_of_them(root: Path) -> None:
    part, whole = published_runs(root / "results")
    seconds = {stage: 60.0 for stage in sorted(STAGES)} | {"load": 20.0, "judge": 90.0, "finetune": 6550.0}
    held = {**whole.held, "timings": seconds, "machine": {"threads": 2, "processes": 4}}
    held["weights"]["model"]["device"] = "cpu"
    some = replace(part, held={**part.held, "timings": {"load": 20.0}})
    assert "holds the times" in times_section.text([part, some])
    assert times_section.text([some, replace(whole, held=held)]).splitlines() == [
        "| minutes | org/other-1b, standard; cpu, 2 threads, 4 processes |",
        "| --- | --- |",
        *(
            "| load | under 1 |",
            "| judge | 2 |",
            *(f"| {stage} | 1 |" for stage in STAGES[2:8]),
            "| finetune | 109 |",
            *(f"| {stage} | 1 |" for stage in STAGES[9:]),
            "| all | 2.0 hours |",
        ),
    ]


def test_a_page_without_its_place_is_one_line() -> None:
    page = put("a\n<!-- made: x -->\nold\n<!-- end: x -->\nb\n", "x", "new \\1", "p.md")
    assert page == "a\n<!-- made: x -->\nnew \\1\n<!-- end: x -->\nb\n" and without_made(page) == "a\n\nb\n"
    with pytest.raises(DataError) as error:
        put("nothing", "x", "new", "p.md")
    one_line(error, "p.md", "<!-- made: x -->")


def test_the_committed_pages_are_what_the_committed_runs_give() -> None:
    for name, text in made_pages(ROOT).items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name}: run `make docs`"


def test_without_a_published_run_the_pages_say_so_in_one_line(root: Path, tmp_path: Path) -> None:
    for name in ("README.md", *(str(path.relative_to(root)) for path in root.glob("evals/*/README.md"))):
        os.makedirs((tmp_path / name).parent, exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    write_pages(tmp_path)
    for path in tmp_path.rglob("*.md"):
        text = path.read_text()
        for inside in re.findall(r"<!-- made: \w+ -->\n(.*?)<!-- end", text, flags=re.DOTALL):
            assert inside.count("\n") == 1 and inside.startswith("No "), path
    assert (tmp_path / "docs" / "findings.md").read_text().strip().endswith("no finding to state.")


def test_no_result_is_typed_by_hand() -> None:
    """What README says of judges by its own hand has no number but the gate's, which is a definition.

    docs/findings.md is made as a whole: the test of the committed pages holds it.
    """
    text = without_made((ROOT / "README.md").read_text(encoding="utf-8"))
    said = [
        line for line in re.split(r"(?<=[.;|])\s", text) if re.search(r"AUROC|kappa|\br =|verdicts? (is|are)", line)
    ]
    for sentence in said:
        numbers = set(re.findall(r"\d*\.\d+", sentence)) - {"0.90", "0.80", "94.7"}  # the last is the paper's
        assert not numbers, sentence
    for path in ROOT.glob("evals/*/README.md"):
        plain = without_made(path.read_text(encoding="utf-8"))
        assert not re.search(r"\d+\.?\d* \[-?\d", plain), path


def test_what_the_judge_says_besides_the_trait_stands_beside_it(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path, "org/other-1b", 0) / "run.json")
    outcomes = run.tables["judge_outcomes"].set_index(["trait", "source", "outcome"])
    row = outcomes.loc[("all", "model", "incoherent")]
    said = judge_section.text([run])
    assert f"Readers find {row['n_positive']:.0f} of {row['n']:.0f} real responses incoherent" in said
    assert f"an AUROC of {row['auroc']:.2f} ({row['auroc_low']:.2f} to {row['auroc_high']:.2f})" in said
    assert "Of 0 refusals it calls none so" in said
    run.tables["judge_outcomes"] = run.tables["judge_outcomes"].iloc[:0]  # of an older version
    assert "Readers find" not in judge_section.text([run])
