"""The main job end to end on a tiny random model: resumable, reproducible, and honest about a judge at random."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from inspect_ai import eval_set
from inspect_ai.log import EvalLog
from inspect_ai.model import GenerateConfig, ModelAPI, ModelOutput, ModelUsage, modelapi
from threadpoolctl import threadpool_limits

from persona_bench import pipeline
from persona_bench.analysis.samples import baselines
from persona_bench.analysis.samples.collect import read_logs
from persona_bench.analysis.tables.judge import BASELINE
from persona_bench.definitions import presets
from persona_bench.definitions.claims import claim
from persona_bench.definitions.outcomes import OUTCOMES
from persona_bench.definitions.traits import LabelledAnswer, load_trait
from persona_bench.errors import AssetError, RunError
from persona_bench.inspect_ext import calibration
from persona_bench.inspect_ext import judge as judge_module
from persona_bench.inspect_ext.calibration import Calibration, Fit
from persona_bench.inspect_ext.judgement import Judgement
from persona_bench.inspect_ext.provider import PersonaAPI
from persona_bench.inspect_ext.voices import yes_or_no
from persona_bench.models import embeddings
from persona_bench.models.engine import Engine
from persona_bench.models.loading import load
from persona_bench.models.reading import reader, reading_row
from persona_bench.pipeline.core import Record
from persona_bench.pipeline.settings import OF_RUN, OF_VECTOR, STAGES, note_begun, refuse_other
from persona_bench.vectors.vector import PersonaVector
from tests.conftest import one_line
from tests.test_calibration import labels

RUN = """
import dataclasses, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores an interrupt
from pathlib import Path
import numpy as np
from persona_bench.definitions import presets, traits
whole = traits.load_labelled
traits.load_labelled = lambda name: tuple(item for item in whole(name) if len(item.answer) < 100)
from persona_bench import pipeline
from persona_bench.models import embeddings
from persona_bench.vectors import extraction
extraction.MIN_KEPT = 1  # a random judge keeps few responses, and there must be a vector to steer with
embeddings.embed = lambda texts: np.array([[len(text), text.count("e"), 1.0] for text in texts], np.float32)
small = dataclasses.replace(presets.PRESETS["quick"], extraction_questions=4, evaluation_questions=6,
                            monitoring_questions=6, mmlu_questions=8, max_tokens=6, doses=(-0.4, 0.4),
                            steering_rollouts=1, monitoring_rollouts=1)
presets.PRESETS["quick"] = small
model, out = sys.argv[1], Path(sys.argv[2])
settings = pipeline.Settings(model=model, grader=model, traits=("evil",))
print("finished" if pipeline.finished(settings, out) else "unfinished")
held = pipeline.run(settings, out, print)
print("files", len(held["files"]))
"""


def _environment(cache: Path, **more: str) -> dict[str, str]:
    # One thread: two spin for each other on a model as small as this one.
    return {
        **os.environ,
        "PERSONA_BENCH_CACHE": str(cache),
        "PERSONA_BENCH_SOURCE": "wheel",
        "INSPECT_DISPLAY": "none",
        "OMP_NUM_THREADS": "1",
        # As the installed command: Inspect names what a copy in the current directory registers otherwise.
        "PYTHONSAFEPATH": "1",
        **more,
    }


def _run(folder: Path, out: Path, cache: Path, cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), str(out)],
        env=_environment(cache, **environment),
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _ended(folder: Path, out: Path, cache: Path, there: str, how: signal.Signals) -> str:
    """End a run by a signal as soon as a file is there; what it said on standard error."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), str(out)],
        env=_environment(cache),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not list(out.rglob(there)) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None, "the run ended before it could be ended"
    process.send_signal(how)
    _, said = process.communicate(timeout=120)
    assert process.returncode == (1 if how == signal.SIGINT else -how), said
    return said


def _tables(out: Path) -> dict[str, bytes]:
    paths = [*out.rglob("tables/*.csv"), *out.rglob("claims.csv"), *out.rglob("judge.json")]
    # A vector's file also names its logs, whose ids are new in every run.
    vectors = {path.name: PersonaVector.load(path).hash.encode() for path in out.rglob("vectors/*.safetensors")}
    return {str(path.relative_to(out)): path.read_bytes() for path in paths} | vectors


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds the MMLU questions only: whatever else is needed is made by the runs."""
    from persona_bench.models.assets import fetch_data

    folder = tmp_path_factory.mktemp("cache")
    target = folder / "data" / "mmlu.jsonl"
    target.parent.mkdir()
    target.write_bytes(fetch_data("mmlu").read_bytes())
    return folder


@pytest.mark.weights
def test_runs_repeat_resume_and_finish(tmp_path: Path, _saved: Path, cache: Path) -> None:
    first, second, killed = tmp_path / "first", tmp_path / "second", tmp_path / "killed"
    _run(_saved, first, cache)
    expected = _tables(first)
    assert len(expected) >= 11 and list(first.rglob("vectors/evil.safetensors"))

    again = _run(_saved, first, cache)
    assert again.startswith("finished")

    # Judged and calibrated anew, not read from what the first run kept.
    shutil.rmtree(cache / "calibrations")
    _run(_saved, second, cache, PERSONA_BENCH_JUDGE_AFRESH="1")
    assert _tables(second) == expected

    said = _ended(_saved, killed, cache, "logs/steering/*.eval", signal.SIGINT)
    assert "steering was interrupted; run the same command again to go on" in said
    assert not list(killed.rglob("logs/mmlu"))
    _ended(_saved, killed, cache, "logs/mmlu/*.eval", signal.SIGKILL)
    assert not list(killed.rglob("claims.csv"))
    done = {name: log.eval.eval_id for name, log in read_logs(killed).items()}
    assert "trait_elicitation/evil" in done
    before = json.loads(next(killed.rglob("timings.json")).read_text())["timings"]
    # From another directory, as seen from which every eval's file has another name.
    _run(_saved, killed, cache, cwd=tmp_path)
    assert _tables(killed) == expected
    assert done.items() <= {name: log.eval.eval_id for name, log in read_logs(killed).items()}.items()
    # Stages that the killed call finished took as long as it and this one together.
    timings = json.loads(next(killed.rglob("run.json")).read_text())["timings"]
    assert set(before) == {"load", "judge", "elicit", "extract", "steer and monitor"} and set(before) < set(timings)
    assert all(before[stage] < timings[stage] for stage in ("load", "judge"))
    assert set(timings) == set(STAGES)

    claims = pd.read_csv(next(first.rglob("claims.csv")), keep_default_na=False)
    judged = claims[claims["claim"].map(lambda name: claim(name).judged) & (claims["verdict"] != "not run")]
    assert {"C1-steering-induces", "C2-steering-suppresses", "C3-monitoring-overall"} <= set(judged["claim"])
    assert set(judged["verdict"]) == {"not testable"}, "a random model judged by itself settles nothing"
    # The refusal confound is geometry of the vector, which no judge enters.
    assert not (claims[claims["claim"] != "L1-refusal-confound"]["verdict"] == "supported").any()


def test_seconds_of_a_stage_are_those_of_all_calls_with_the_same_settings(tmp_path: Path) -> None:
    kept = tmp_path / "timings.json"
    for seconds, settings in ((2, "a"), (3, "a"), (4, "b")):
        record = Record()
        record.go_on(kept, settings)
        with pytest.raises(KeyboardInterrupt), record.timed("steer"):
            record.timings["steer before"] = record.timings.get("steer before", 0.0) + seconds
            raise KeyboardInterrupt
        held = json.loads(kept.read_text())
        assert held["fingerprint"] == settings and held["timings"] == record.timings
    assert record.timings["steer before"] == 4 and record.timings["steer"] >= 0
    kept.write_text("{")
    with pytest.raises(RunError, match=r"timings\.json is broken"):
        Record().go_on(kept, "a")


# In this process, without MMLU: a judge that is planted, so that there is a vector to steer with.


@dataclass
class Done:
    """A finished run.

    Attributes:
        folder: of the run.
        held: its run.json.
        said: what it said, a line at a time.
        planned: how many responses it planned to have judged.
        logs: by logical name.
    """

    folder: Path
    held: dict[str, Any]
    said: list[str]
    planned: int
    logs: dict[str, EvalLog]


SMALL: dict[str, tuple[LabelledAnswer, ...]] = {"evil": tuple(labels("evil", questions=8))}
EVALS = pipeline.CORE_EVALS[:4]


def planted(model: Path, seed: int) -> Calibration:
    """Scores that hang on the response and lie about evenly on both sides of 50; all is coherent and an answer."""
    loaded = reader(load(str(model)))
    draw = np.random.default_rng(seed)
    answers = ["".join(map(chr, draw.integers(33, 126, 6))) for _ in range(60)]
    rows = [reading_row(loaded, load_trait("evil").extraction_questions[i % 4], text) for i, text in enumerate(answers)]
    readings = np.array([result.read[0, 0] for result in Engine(loaded).run(rows) if result.read is not None])
    weights = draw.normal(size=32)
    trait = Fit(tuple(map(float, weights)), -float(np.median(readings @ weights)), 1.0, 1.0, 9)
    never = Fit((0.0,) * 32, -5.0, 1.0, 1.0, 9)
    return Calibration("probe", trait, dataclasses.replace(never, bias=5.0), never)


@contextmanager
def small_world(home: Path, model: Path) -> Iterator[None]:
    """Everything small, labels too, in a cache of its own; a grader named "twin" has another calibration."""
    quick = dataclasses.replace(
        presets.PRESETS["quick"],
        extraction_questions=4,
        evaluation_questions=4,
        monitoring_questions=4,
        max_tokens=6,
        doses=(-0.4, 0.4),
        steering_rollouts=2,
        monitoring_rollouts=1,
    )

    judges: list[Calibration] = []

    async def calibrated(grader: Any, *_: Any, **__: Any) -> Calibration:
        return judges["twin" in str(grader)]

    def no_embeddings(_texts: Any) -> Any:
        raise AssetError("no network")

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch, threadpool_limits(1):
        torch.set_num_threads(1)
        patch.setenv("PERSONA_BENCH_CACHE", str(home / "cache"))
        judges += [planted(model, seed) for seed in (0, 1)]
        patch.setitem(presets.PRESETS, "quick", quick)
        patch.setattr(judge_module, "calibrated", calibrated)
        patch.setattr(calibration, "calibrated", calibrated)
        patch.setattr(embeddings, "embed", no_embeddings)
        for module in (
            calibration,
            pipeline.core,
            pipeline.settings,
            baselines,
            sys.modules["evals.judge_validity.judge_validity"],
        ):
            patch.setattr(module, "load_labelled", lambda name: SMALL.get(name, ()))
            if hasattr(module, "load_twins"):
                patch.setattr(module, "load_twins", lambda name: ())
        yield
    torch.set_num_threads(threads)


def run(home: Path, model: Path, grader: str, evals: tuple[str, ...] = EVALS) -> Done:
    """One run in a small world."""
    said: list[str] = []
    settings = pipeline.Settings(model=str(model), grader=grader, traits=("evil",), evals=evals)
    with small_world(home, model):
        held = pipeline.run(settings, home / "results", said.append)
        folder = pipeline.run_folder(settings, home / "results")
        work = pipeline.Run(settings, folder, said.append)
        work.load()
        planned = work._planned_responses(load_trait("evil"))
    return Done(folder, held, said, planned, read_logs(folder / "logs"))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, _saved: Path) -> Iterator[Done]:
    import evals.judge_validity  # noqa: F401 - the module is patched by its name

    yield run(tmp_path_factory.mktemp("run"), _saved, str(_saved))


def judged(logs: dict[str, EvalLog]) -> dict[str, int]:
    """Eval -> how many responses the judge gave an outcome."""
    return {
        name.split("/")[0]: sum("trait_judge" in (sample.scores or {}) for sample in log.samples or [])
        for name, log in logs.items()
    }


def test_what_is_planned_is_what_is_judged(done: Done) -> None:
    found = judged(done.logs)
    assert sorted(found) == sorted(EVALS) and all(found.values())
    assert found["judge_validity"] == sum(item.half == "report" for item in SMALL["evil"])
    assert sum(found.values()) == done.planned


def test_what_a_vector_is_made_of_is_kept_beside_it(done: Done, _saved: Path) -> None:
    vector = done.folder / "vectors" / "evil.safetensors"
    beside = vector.parent / "by_question" / vector.name
    before = [path.read_bytes() for path in (vector, beside)]
    table = pd.read_csv(done.folder / "tables" / "vectors.csv")
    assert (table["refusal_cosine_low"] < table["refusal_cosine"]).all()
    settings = pipeline.Settings(model=str(_saved), grader=done.held["grader"], traits=("evil",))
    work = pipeline.Run(settings, done.folder, done.said.append)
    work.load()
    # A vector that an older version made stays: on this machine it might come out in other bits, and all be done anew.
    beside.unlink()
    vectors = work.extract()
    assert not beside.exists() and not work._question_sums(vectors)
    vector.unlink()
    vectors = work.extract()
    assert [path.read_bytes() for path in (vector, beside)] == before
    # Another vector's would give it wrong intervals.
    beside.write_bytes(before[1].replace(vectors["evil"].hash.encode(), b"0" * 64))
    with pytest.raises(RunError, match="not of the evil vector"):
        work._question_sums(vectors)
    beside.write_bytes(before[1])


def test_the_logs_of_one_task_are_read_alone(done: Done) -> None:
    found = read_logs(done.folder / "logs", "trait_steering")
    assert {name: log.eval.eval_id for name, log in found.items()} == {
        "trait_steering/evil": done.logs["trait_steering/evil"].eval.eval_id
    }
    assert not read_logs(done.folder / "logs", "steering")


def test_judge_json_is_the_judge_in_use(done: Done, _saved: Path) -> None:
    (trait, gate), *others = json.loads((done.folder / "judge.json").read_text()).items()
    assert trait == "evil" and not others
    assert gate["grader"] == f"persona/{_saved}" and gate["method"] == "probe"
    assert gate["n"] == sum(gate[f"n_{name}"] for name in OUTCOMES) == judged(done.logs)["judge_validity"]
    table = pd.read_csv(done.folder / "tables" / "judge.csv", keep_default_na=False)
    (row,) = table[(table["chosen"].astype(str) == "True") & (table["half"] == "report")].to_dict("records")
    assert row["source"] == "all" and row["grader"] == gate["grader"]
    for name in ("auroc", "auroc_low", "auroc_high", "balanced_accuracy", "pairwise", "kappa"):
        assert float(row[name]) == pytest.approx(gate[name], rel=1e-5)
    assert str(row["passes"]) == str(gate["passes"]) == "False"
    (line,) = [text for text in done.said if text.startswith("judge of evil: ")]
    assert "probe" in line and f"{gate['auroc']:.2f}" in line and "cannot be tested" in line


def test_trivial_judges_stand_beside_it_as_far_as_they_can_be_had(done: Done) -> None:
    table = pd.read_csv(done.folder / "tables" / "judge.csv", keep_default_na=False)
    trivial = table[table["grader"] == BASELINE]
    assert set(trivial["method"]) == {"length", "lexicon"} and set(trivial["half"]) == {"report"}
    assert [text for text in done.held["warnings"] if "embeddings" in text and "no network" in text]
    cases = pd.read_csv(done.folder / "tables" / "judge_cases.csv", keep_default_na=False)
    assert set(cases["grader"]) == {BASELINE, *table["grader"]}
    assert {"tables/judge.csv", "tables/judge_cases.csv", "report.html"} <= set(done.held["files"])


def test_a_judge_that_is_planted_at_random_settles_nothing(done: Done) -> None:
    claims = pd.read_csv(done.folder / "claims.csv", keep_default_na=False).set_index("claim")
    judged_claims = [name for name in claims.index if name.startswith(("C1-", "C2-", "C3-", "C4-", "C6-"))]
    assert len(judged_claims) == 5 and set(claims.loc[judged_claims, "verdict"]) == {"not testable"}
    assert claims.loc[judged_claims, "reason"].str.startswith("judge gate: ").all()
    assert claims.loc["J-judge-valid", "verdict"] != "supported"


def test_a_finished_run_is_not_run_again(done: Done, _saved: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.folder.rglob("*") if path.is_file()}
    again = run(done.folder.parents[2], _saved, str(_saved))
    assert {**again.held, "timings": {}} == {**done.held, "timings": {}}
    assert {path: path.stat().st_mtime_ns for path in done.folder.rglob("*") if path.is_file()} == before


def test_several_graders_are_a_panel(tmp_path: Path, _saved: Path) -> None:
    """Through the run: every grader is asked, and the two are one judge in every table."""
    twin = tmp_path / "twin"
    shutil.copytree(_saved, twin)
    made = run(tmp_path, _saved, f"{_saved}, {twin}", EVALS[:2])
    name = f"persona/{_saved} + persona/{twin}"
    gate = json.loads((made.folder / "judge.json").read_text())["evil"]
    assert (gate["grader"], gate["method"]) == (name, "panel of probe")
    assert sum(judged(made.logs).values()) == made.planned
    for log in made.logs.values():
        for sample in log.samples or []:
            score = (sample.scores or {})["trait_judge"]
            panel = (score.metadata or {})["panel"]
            assert [grader for grader, _, _ in panel] == name.split(" + ")
            assert score.as_dict()["trait"] == pytest.approx(np.mean([number for _, _, number in panel]))
    assert made.held["grader"] == f"{_saved}, {twin}"


def test_calls_to_a_grader_over_the_network_are_announced(tmp_path: Path) -> None:
    """Two for each response that the run plans, before the first is made; local graders cost none."""
    settings = pipeline.Settings(grader="openai/gpt-4.1-mini-2025-04-14", traits=("evil", "sycophancy"))
    said: list[str] = []
    work = pipeline.Run(settings, tmp_path, said.append)
    work.loaded = SimpleNamespace(n_layers=30)  # type: ignore[assignment]
    work.graders = ["persona/smollm2-135m", settings.grader]
    work._announce_calls()
    planned = sum(work._planned_responses(load_trait(name)) for name in settings.traits)
    (line,) = said
    assert settings.grader in line
    calls, tokens = (int(found.replace(",", "")) for found in re.findall(r"([\d,]+) (?:calls|input)", line))
    assert calls == 2 * planned > 1000 and tokens > 100 * calls


ELSEWHERE: set[int | None] = set()
"""The connections that the grader below was asked over."""


@modelapi("elsewhere")
def elsewhere() -> type[ModelAPI]:
    """A grader over the network that scores 60."""

    class Elsewhere(ModelAPI):
        async def generate(self, input: Any, tools: Any, tool_choice: Any, config: GenerateConfig) -> ModelOutput:
            ELSEWHERE.add(config.max_connections)
            made = ModelOutput.from_content("x", "60")
            made.usage = ModelUsage()
            return made

    return Elsewhere


@pytest.mark.parametrize("local", [False, True])
def test_only_what_runs_here_has_the_engines_connections(
    tmp_path: Path, _saved: Path, monkeypatch: pytest.MonkeyPatch, *, local: bool
) -> None:
    """A grader over the network keeps Inspect's own; no log of an eval that had them for all is done again."""
    import evals.judge_validity  # noqa: F401 - the module is patched by its name
    from evals.trait_elicitation import trait_elicitation

    seen: dict[str, set[int | None]] = {"grader": ELSEWHERE, "persona": set()}
    ELSEWHERE.clear()
    generate = PersonaAPI.generate

    async def local_reply(self: PersonaAPI, **given: Any) -> Any:
        seen["grader" if (given["config"].extra_body or {}).get("extra_args", {}).get("score") else "persona"].add(
            given["config"].max_connections
        )
        return await generate(self, **given)

    monkeypatch.setattr(PersonaAPI, "generate", local_reply)
    grader = f"persona/{_saved}" if local else "elsewhere/x"
    settings = pipeline.Settings(model=str(_saved), grader=grader, traits=("evil",))
    with small_world(tmp_path, _saved):
        work = pipeline.Run(settings, tmp_path / "run", print)
        work.load()
        slots = work.engine.max_batch
        tasks = [trait_elicitation(trait="evil")]
        tasks[0].dataset = tasks[0].dataset[:2]
        monkeypatch.setattr(judge_module, "_judge_locally", asked_yes)
        work.evaluate("elicitation", tasks)
        assert seen == {"persona": {2 * slots}, "grader": {2 * slots if local else None}}
        (made,) = read_logs(tmp_path / "run").values()
        old = tmp_path / "old" / "logs" / "elicitation"
        shared: dict[str, Any] = {"display": "none", "log_realtime": False, "retry_attempts": 0, "max_samples": 4}
        eval_set(
            tasks,
            log_dir=str(old),
            model=work.model,
            model_roles={"grader": work.graders[0]},
            max_connections=2 * slots,
            retry_immediate=False,
            **shared,
        )
        (before,) = read_logs(old).values()
        assert before.eval.eval_id != made.eval.eval_id
        work.folder = tmp_path / "old"
        work.evaluate("elicitation", tasks)
        (after,) = read_logs(old).values()
        assert after.eval.eval_id == before.eval.eval_id and len(list(old.glob("*.eval"))) == 1


async def asked_yes(grader: Any, *_: Any) -> Judgement:
    """By the grader's likelihoods, which it is asked for as any model is."""
    await yes_or_no(grader, "Is it?")
    return Judgement("scored", 5.0)


def test_a_trait_file_that_was_edited_is_elicited_anew(tmp_path: Path, _saved: Path) -> None:
    import evals.judge_validity  # noqa: F401 - the module is patched by its name

    path, said = tmp_path / "mine.json", list[str]()
    texts = {**load_trait("evil").model_dump(), "name": "mine"}

    def elicit() -> dict[str, EvalLog]:
        path.write_text(json.dumps(texts))
        settings = pipeline.Settings(model=str(_saved), grader="elsewhere/x", traits=(str(path),))
        work = pipeline.Run(settings, tmp_path / "run", said.append)
        work.set_aside()
        work.load()
        work.elicit()
        return read_logs(tmp_path / "run" / "logs")

    with small_world(tmp_path, _saved):
        first = elicit()["trait_elicitation/mine"]
        assert elicit()["trait_elicitation/mine"].eval.eval_id == first.eval.eval_id
        assert not (tmp_path / "run" / "stale").exists()
        texts["extraction_questions"] = ["Why is the sky blue?", *texts["extraction_questions"][1:]]
        (second,) = elicit().values()
        assert elicit()["trait_elicitation/mine"].eval.eval_id == second.eval.eval_id != first.eval.eval_id
    assert {str(sample.messages[1].text) for sample in second.samples or []} >= {"Why is the sky blue?"}
    (aside,) = read_logs(tmp_path / "run" / "stale").values()
    assert aside.eval.eval_id == first.eval.eval_id
    (line,) = [line for line in said if "stale" in line]
    assert "the texts of mine have changed" in line and "logs (1)" in line


def test_a_vector_made_with_another_filter_or_other_texts_is_made_anew(done: Done, _saved: Path) -> None:
    path = done.folder / "vectors" / "evil.safetensors"
    before, whole = path.read_bytes(), PersonaVector.load(path)
    settings = pipeline.Settings(model=str(_saved), grader=done.held["grader"], traits=("evil",))
    said: list[str] = []
    work = pipeline.Run(settings, done.folder, said.append)
    work.load()
    for changed, told in (
        ({"filter": "coded"}, "made with filter 'coded', not 'stated'"),
        ({"trait_hash": "x"}, "made with other texts of the trait"),
    ):
        dataclasses.replace(whole, provenance={**whole.provenance, **changed}).save(path)
        work.extract()
        assert path.read_bytes() == before and told in said[-1] and str(path) in said[-1]
    lines = len(said)
    # An older version named neither.
    older = {key: value for key, value in whole.provenance.items() if key not in ("filter", "trait_hash")}
    dataclasses.replace(whole, provenance=older).save(path)
    work.extract()
    assert len(said) == lines and path.read_bytes() != before
    path.write_bytes(before)


def test_a_run_goes_on_only_with_what_it_was_begun_with(done: Done, _saved: Path) -> None:
    settings = pipeline.Settings(model=str(_saved), grader=str(_saved), traits=("evil",), evals=EVALS)
    out, begun = done.folder.parents[1], done.folder / "begun.json"
    held = begun.read_bytes()
    for record in (True, False):  # an older version left none, but said in run.json what it was asked for
        if not record:
            begun.unlink()
        for changed, parts in (
            ({"grader": "elsewhere/x"}, (f"--grader {_saved}, not elsewhere/x", "persona-bench rejudge")),
            ({"seed": 1}, ("--seed 0, not 1",)),
            ({"extraction_filter": "coded", "seed": 2}, ("--filter stated, not coded", "--seed 0, not 2")),
        ):
            before = {path: path.stat().st_mtime_ns for path in done.folder.rglob("*") if path.is_file()}
            with pytest.raises(RunError) as error:
                pipeline.run(dataclasses.replace(settings, **changed), out, print)
            one_line(error, str(done.folder), "choose another --out", *parts)
            assert {path: path.stat().st_mtime_ns for path in done.folder.rglob("*") if path.is_file()} == before
    begun.write_bytes(held)


def test_what_a_folder_was_begun_with(tmp_path: Path, _saved: Path) -> None:
    begun, way_out = tmp_path / "begun.json", "choose another"
    first = pipeline.Settings(model=str(_saved), grader="a/x, b/y", evals=pipeline.ALL_EVALS)
    # Nothing is known of a folder that an older version left unfinished: the call that goes on with it says it.
    refuse_other(first, tmp_path, OF_RUN, way_out)
    note_begun(first, tmp_path, OF_RUN)
    # More evals, traits and a corpus may come later, and a grader may be spelled otherwise.
    more = dataclasses.replace(first, traits=("evil",), grader="a/x,b/y", corpus="a.jsonl")
    refuse_other(more, tmp_path, OF_RUN, way_out)
    note_begun(more, tmp_path, OF_RUN)
    assert json.loads(begun.read_text()) == {
        "grader": "a/x, b/y",
        "seed": 0,
        "extraction_filter": "stated",
        "corpus": "a.jsonl",
    }
    refuse_other(first, tmp_path, OF_RUN, way_out)
    note_begun(first, tmp_path, OF_RUN)
    for changed, part in (
        ({"corpus": "b.jsonl"}, "--corpus a.jsonl, not b.jsonl"),
        ({"grader": "b/y,a/x"}, "--grader"),
    ):
        with pytest.raises(RunError) as error:
            refuse_other(dataclasses.replace(first, **changed), tmp_path, OF_RUN, way_out)
        one_line(error, part, str(tmp_path), way_out)
    # The logs behind one vector may be of any model; filtered they can be in both ways.
    note_begun(first, tmp_path, OF_VECTOR)
    refuse_other(
        dataclasses.replace(first, model=f"persona/{_saved}", extraction_filter="coded"), tmp_path, OF_VECTOR, ""
    )
    with pytest.raises(RunError, match="--model .*, not other"):
        refuse_other(dataclasses.replace(first, model="other"), tmp_path, OF_VECTOR, way_out)
    begun.write_text("{")
    with pytest.raises(RunError) as error:
        refuse_other(first, tmp_path, OF_RUN, way_out)
    one_line(error, "begun.json is broken")
