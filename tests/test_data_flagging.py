"""The eval of data flagging through the engine on a tiny random model, alone and in a run."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog, read_eval_log

from evals.data_flagging import data_flagging
from evals.mmlu_preservation import dataset
from persona_bench import pipeline
from persona_bench.analysis import statistics as st
from persona_bench.analysis.samples.collect import check_log, collect, read_logs
from persona_bench.analysis.samples.frames import Samples, control_columns
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.flagging import mixture
from persona_bench.definitions import presets
from persona_bench.definitions.flagging import MEASURES, PICKS
from persona_bench.definitions.outcomes import OUTCOMES
from persona_bench.definitions.presets import FINETUNING, FLAGGING
from persona_bench.definitions.traits import load_trait
from persona_bench.errors import DataError, RunError
from persona_bench.files import read_jsonl
from persona_bench.inspect_ext import outage
from persona_bench.models import loading
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.loading import load
from persona_bench.pipeline.limits import Limits
from persona_bench.pipeline.rejudging import _responses
from persona_bench.vectors.flagging import draw_corpus
from persona_bench.vectors.vector import PersonaVector
from tests.conftest import one_line, tiny_vector
from tests.test_evals import grader, questions
from tests.test_flagging import verdict
from tests.test_scan import item, write

ROOT = Path(__file__).parents[1]
QUICK = FLAGGING["quick"]
SMALL = replace(
    FINETUNING["quick"],
    families=("sycophancy", "gsm8k"),
    examples=8,
    held_out=2,
    questions=4,
    max_tokens=4,
    mmlu_questions=3,
)
FEW = replace(QUICK, examples=6, samples=8, max_tokens=6, picked=3, epochs=1, corpus=8)


# Through the engine, on a tiny random model


def inspected(model: Path, home: Path, **arguments: Any) -> EvalLog:
    """`inspect eval evals/data_flagging` at the root of the repository."""
    vectors = ",".join(str(home / f"{name}.safetensors") for name in ("evil", "sycophancy"))
    fixed = {"traits": "evil,sycophancy", "vectors": vectors, "layers": "2,3", "adapters": str(home / "adapters")}
    log = inspect_eval(
        "evals/data_flagging",
        model=f"persona/{model}",
        model_args={"dtype": "float32"},
        model_roles={"grader": grader()},
        task_args={**fixed, **arguments},
        log_dir=str(home / "logs"),
        display="none",
    )[0]
    check_log(log)
    return read_eval_log(log.location)


@pytest.fixture(scope="module")
def home(_saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the vectors, scans, adapters and logs of the eval on the tiny model."""
    made = tmp_path_factory.mktemp("flagged")
    for number, name in enumerate(("evil", "sycophancy")):
        vector = tiny_vector(trait=name)
        turned = {key: value.roll(number, 1).contiguous() for key, value in vector.directions.items()}
        PersonaVector(name, turned, vector.residual_norms, vector.provenance).save(made / f"{name}.safetensors")
    real = [item(f"{letter * 3}?", f"{letter} and so on.") for letter in "abcdefghijklmnopqrst"]
    write(made / "corpus.jsonl", [*real, "{broken", item("Hm? " * 300, "Too long a prompt.")])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("PERSONA_BENCH_CACHE", str(made / "cache"))
        patch.setitem(presets.FINETUNING, "quick", SMALL)
        patch.setitem(presets.FLAGGING, "quick", FEW)
        inspected(_saved, made)
        for pick in PICKS:
            inspected(_saved, made, part=pick)
        inspected(_saved, made, pool="corpus", corpus=str(made / "corpus.jsonl"))
        yield made
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def measured(home: Path) -> Samples:
    return collect(read_logs(home / "logs"), [], "stated")


def test_every_sample_is_measured_and_judged_as_it_should(measured: Samples) -> None:
    frame = measured.flagging
    kinds = frame.drop_duplicates("sample_id").groupby("kind").size().to_dict()
    assert kinds == {"set": 4 * FEW.examples, "sample": 6 * FEW.samples, "corpus": 8}
    assert (frame["measured"] == "measured").all() and frame[
        [*MEASURES[:2], *control_columns("response")]
    ].notna().all().all()
    # A random model ends some responses at once, and then has none to compare with.
    lost = frame["difference"].isna()
    assert (lost == frame[control_columns("difference")[9]].isna()).all() and lost.mean() < 0.1
    single = frame[frame["kind"] == "sample"]
    asked = single.groupby("family")["trait"].agg(lambda names: sorted(set(names))).to_dict()
    assert asked == {"evil": ["evil"], "opinions": ["evil", "sycophancy"], "sycophancy": ["sycophancy"]}
    assert single["loss"].notna().all() and set(single["status"]) <= set(OUTCOMES) and len(set(single["status"])) > 2
    # The judge's number of what is incoherent counts too; refusals and failures have none.
    assert (single["judge"].notna() == single["status"].isin(["scored", "incoherent"])).all()
    sets = frame[frame["kind"] == "set"]
    assert sets[["judge", "loss"]].isna().all().all() and set(sets["status"]) == {""}
    assert (frame[frame["trait"] == "evil"]["layer"] == 2).all()
    halves = single.groupby(["family", "question_id"])["half"].nunique()
    assert (halves == 1).all() and set(single["half"]) == {"select", "report"}


def test_a_log_by_itself_says_how_well_samples_are_told_apart(home: Path, measured: Samples) -> None:
    log = read_logs(home / "logs")["data_flagging/mixture"]
    assert log.results is not None
    found = {name: item.value for score in log.results.scores for name, item in score.metrics.items()}
    rows = mixture(measured.flagging, "sycophancy", "opinions", "misaligned_2")
    for name, column in (("difference", "difference"), ("judge", "judge")):
        own = st.auroc(rows[column], rows["label"], rows["question_id"], rng=st.stream(0), resamples=2).value
        assert found[f"sycophancy in opinions by {name}"] == pytest.approx(own)


def test_measures_are_those_of_the_scan_and_the_controls_of_the_random_directions(
    home: Path, measured: Samples, _saved: Path
) -> None:
    lines = {line["id"]: line for _, line in read_jsonl(home / "flagging" / "mixture" / "samples.jsonl")}
    row = measured.flagging[measured.flagging["kind"] == "sample"].iloc[3]
    loaded = load(str(_saved), dtype="float32")
    model = transformers.AutoModelForCausalLM.from_pretrained(_saved, dtype=torch.float32)
    *asked, last = lines[row["sample_id"]]["messages"]
    prompt = prompt_ids(loaded.tokenizer, asked)
    ids = torch.tensor([prompt + response_ids(loaded.tokenizer, last["content"])])
    with torch.inference_mode():
        states = model(ids, output_hidden_states=True, use_cache=False).hidden_states[int(row["layer"])][0]
    vector = PersonaVector.load(home / f"{row['trait']}.safetensors")
    for name, prefix in (("persona", ""), ("random:0", "random:0 "), ("random:9", "random:9 ")):
        unit = torch.nn.functional.normalize(vector.direction(name)[int(row["layer"])], dim=0)
        values = (states.float() @ unit).numpy()
        mean = values[len(prompt) :].mean()
        assert row[f"{prefix}response"] == pytest.approx(mean, abs=1e-3)
        assert row[f"{prefix}response_minus_prompt"] == pytest.approx(mean - values[len(prompt) - 1], abs=1e-3)


def test_models_are_trained_on_the_ends_and_nothing_that_is_only_flagged(home: Path, measured: Samples) -> None:
    frame = measured.flagging_trained
    assert set(frame["pick"]) == set(PICKS) and set(frame["pool"]) == {"mixture"}
    assert (frame.groupby("pick").size() == SMALL.questions).all() and (frame["n_picked"] == FEW.picked).all()
    means = frame.groupby("pick")["difference"].first()
    sets = measured.flagging[(measured.flagging["kind"] == "set") & (measured.flagging["trait"] == "sycophancy")]
    ranked = sets["difference"].dropna().sort_values()
    assert means["top"] == pytest.approx(ranked.tail(FEW.picked).mean(), rel=1e-5)
    assert means["bottom"] == pytest.approx(ranked.head(FEW.picked).mean(), rel=1e-5)
    folders = {path.name.rsplit("-", 1)[0] for path in (home / "adapters").iterdir() if path.is_dir()}
    assert folders == {f"flagged-mixture-{pick}-sycophancy" for pick in PICKS}
    tables = build_tables(measured, resamples=50)
    assert list(tables["flagging_causal"]["n"]) == [SMALL.questions] * 3


def test_a_part_that_is_done_is_not_measured_again(home: Path, _saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = [*(home / "flagging").rglob("*.parquet"), *(home / "adapters").rglob("*.safetensors")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    inspected(_saved, home, part="top")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    page = (home / "flagging" / "mixture" / "flagged.html").read_text()
    assert page.count("<h2>") == 2 and "evil, layer 2" in page and "sycophancy, layer 3" in page
    # Nobody has trained the plain models: one line says which, and what would.
    log = next(log for log in read_logs(home / "logs").values() if log.eval.metadata["name"] == "mixture")  # type: ignore[index]
    missing = log.eval.metadata["flagging"]["missing_trainings"]  # type: ignore[index]
    assert missing == [f"{f}-{v}-plain-s0" for f in ("sycophancy", "gsm8k") for v in ("normal", "misaligned_2")]


def test_bad_arguments_are_one_line(home: Path, _saved: Path) -> None:
    def fails(kind: type[Exception], *parts: str, **arguments: Any) -> None:
        with pytest.raises(kind) as error:
            data_flagging(base=str(_saved), adapters=str(home / "adapters"), **arguments)
        one_line(error, *parts)

    vectors = f"{home / 'evil.safetensors'},{home / 'sycophancy.safetensors'}"
    good = {"traits": "evil,sycophancy", "vectors": vectors, "layers": "2,3"}
    fails(RunError, "unknown part", "top", **good, part="best")
    fails(RunError, "unknown pool", "mixture", **good, pool="web")
    fails(RunError, "corpus=FILES", **good, pool="corpus")
    fails(DataError, "no file", **good, pool="corpus", corpus=str(home / "gone.jsonl"))
    fails(RunError, "pool=corpus", **good, pool="passed")
    fails(RunError, "hallucination", **good, part="top", trait="hallucination")
    fails(RunError, "no vector", traits="evil", vectors="none")
    corpus = str(home / "corpus.jsonl")
    fails(RunError, "passed=FILE", **good, part="top", pool="passed", corpus=corpus)
    (home / "ids.json").write_text("[1]")
    fails(DataError, "ids.json", **good, part="top", pool="passed", corpus=corpus, passed=str(home / "ids.json"))
    (home / "ids.json").write_text('["a"]')
    fails(RunError, "too few", **good, part="top", pool="passed", corpus=corpus, passed=str(home / "ids.json"))
    write(home / "bad.jsonl", ["{broken", item("Hm? " * 300, "Too long.")])
    fails(DataError, "bad.jsonl", "no conversation", **good, pool="corpus", corpus=str(home / "bad.jsonl"))


def test_a_corpus_that_cannot_be_flagged_is_said_before_a_run(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        pipeline.Settings(corpus="a.jsonl")
    one_line(error, "data_flagging", "--evals")
    settings = pipeline.Settings(
        model=str(folder), evals=("data_flagging",), corpus=str(tmp_path / "gone.jsonl"), grader="mockllm/model"
    )
    with pytest.raises(DataError) as gone:
        pipeline.run(settings, tmp_path / "results", print)
    one_line(gone, "gone.jsonl")
    assert not (tmp_path / "results").exists()


def test_a_corpus_is_drawn_evenly_whatever_its_order(home: Path, _saved: Path, tmp_path: Path) -> None:
    tokenizer = load(str(_saved)).tokenizer
    lines = (home / "corpus.jsonl").read_text().splitlines()
    first, left_out = draw_corpus([str(home / "corpus.jsonl")], 8, tokenizer)
    write(tmp_path / "corpus.jsonl", lines[::-1])
    second, _ = draw_corpus([str(tmp_path / "corpus.jsonl")], 8, tokenizer)
    assert [line["messages"] for line in first] == [line["messages"] for line in second] and len(first) == 8
    every, left_out = draw_corpus([str(home / "corpus.jsonl")], 100, tokenizer)
    assert (len(every), left_out) == (20, 2) and len({line["id"] for line in every}) == 20
    other, _ = draw_corpus([str(home / "corpus.jsonl")], 8, tokenizer, seed=1)
    assert [line["messages"] for line in other] != [line["messages"] for line in first]


def test_page_names_every_parameter_and_counts_the_samples() -> None:
    folder = ROOT / "evals" / "data_flagging"
    page, text = yaml.safe_load((folder / "eval.yaml").read_text()), (folder / "README.md").read_text()
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE)}
    parameters = inspect.signature(data_flagging).parameters
    assert list(rows) == list(parameters)
    assert all(rows[key] == f"`{entry.default}`" for key, entry in parameters.items() if entry.default != "")
    expected = QUICK.examples * 4 + QUICK.samples * len(QUICK.families) * len(QUICK.versions)
    assert page["tasks"][0]["dataset_samples"] == expected and f"({expected} samples)" in text


# In a run


@pytest.mark.parametrize("evals", [("data_flagging",), ("data_flagging", "preventative_steering")])
def test_all_is_measured_where_it_is_asked_for_or_was(
    evals: tuple[str, ...], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(presets.FINETUNING, "quick", replace(SMALL, families=("sycophancy",)))
    settings = pipeline.Settings(model=str(folder), traits=("sycophancy",), evals=evals, grader="mockllm/model")
    work, planned = pipeline.Run(settings, tmp_path / "run", lambda _: None), dict[str, Any]()
    work.load()
    vector = tiny_vector(trait="sycophancy")
    vector.save(work._vector_path("sycophancy"))
    (tmp_path / "run" / "logs" / "finetuning" / "base").mkdir(parents=True)
    monkeypatch.setattr(work, "_one_by_one", lambda _, found: planned.update(found))
    work.finetune({"sycophancy": vector}, {"sycophancy": 2})
    whole = {name for name, make in planned.items() if not make.keywords.get("traits_only")}
    assert "finetuning/base" in planned and whole == {name for name in planned if name.startswith("finetuning/")}
    assert whole == ({"finetuning/base"} if len(evals) == 1 else set(planned)) and len(planned) > 2


def test_a_run_trains_what_it_needs_and_judges_sets_by_it(
    folder: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mmlu.jsonl").write_text(questions())
    monkeypatch.setenv("PERSONA_BENCH_SOURCE", "wheel")
    monkeypatch.setattr(dataset, "fetch_data", lambda _: tmp_path / "mmlu.jsonl")
    monkeypatch.setitem(presets.FINETUNING, "quick", replace(SMALL, families=("sycophancy",)))
    monkeypatch.setattr(outage, "MAX_FAILED", 1.0)  # its grader fails at a tenth
    write(tmp_path / "real.jsonl", [item(f"{letter * 3}?", f"{letter} is.") for letter in "abcdefgh"])
    settings = pipeline.Settings(
        model=str(folder),
        traits=("sycophancy",),
        evals=("data_flagging",),
        grader="mockllm/model",
        corpus=str(tmp_path / "real.jsonl"),
    )
    said: list[str] = []
    work = pipeline.Run(settings, tmp_path / "run", said.append)
    work.load()
    work.graders = [grader()]  # type: ignore[list-item]
    vector = tiny_vector(trait="sycophancy")
    vector.save(work._vector_path("sycophancy"))
    for _ in range(2):
        work.finetune({"sycophancy": vector}, {"sycophancy": 2})
        work.flag({"sycophancy": vector}, {"sycophancy": 2})
    logs = read_logs(tmp_path / "run" / "logs")
    plain = [f"sycophancy-{version}-plain-s0" for version in SMALL.versions]
    assert sorted(name for name in logs if name.startswith("prev")) == sorted(
        f"preventative_steering/{name}" for name in (*plain, "base")
    )
    asked = [sample for name, log in logs.items() if name.startswith("prev") for sample in log.samples or []]
    assert {sample.metadata["kind"] for sample in asked} == {"trait"}  # of nothing else is made use
    flagged = sorted(name.removeprefix("data_flagging/") for name in logs if name.startswith("data_flagging"))
    assert flagged == sorted(
        ["mixture", "corpus", *(f"{pool}-{pick}-sycophancy" for pool in ("mixture", "corpus") for pick in PICKS)]
    )
    assert not logs["data_flagging/mixture"].eval.metadata["flagging"]["missing_trainings"]  # type: ignore[index]
    trait = load_trait("sycophancy")
    here = work._planned_finetuned(trait), work._planned_flagged(trait)
    assert work._planned_responses(trait) == Limits._planned_responses(work, trait) + sum(here)
    judged = [
        sum(_responses(log, "sycophancy") for name, log in logs.items() if name.startswith(task))
        for task in ("preventative_steering", "data_flagging")
    ]
    # Of a pool that is too small to train on nothing is asked.
    assert judged[0] == here[0] and 0 < judged[1] <= here[1]
    assert [text for text in said if "flagging, passed, sycophancy" in text and "too few" in text]
    assert not [held for held in loading._loaded.values() if str(tmp_path / "run") in held.name]
    samples = collect(logs, [], "stated")
    table = build_tables(samples, resamples=50)
    assert (table["flagging_correlation"]["n_sets"] == 2).all()
    assert verdict(samples, "D1-difference-tells-shift", "sycophancy")[1].startswith("too few valid samples")
    folders = [path for path in (tmp_path / "run" / "adapters").iterdir() if path.is_dir()]
    assert len(folders) == len(plain) + 6
