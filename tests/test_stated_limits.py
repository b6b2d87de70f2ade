"""The eval through Inspect and the engine: what is asked, what is kept, and verdicts on a planted tiny model."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import get_model
from transformers import AutoModelForCausalLM

from evals import _registry as registry
from persona_bench.analysis.grouping import Draw
from persona_bench.analysis.samples.collect import check_log, collect, read_logs
from persona_bench.analysis.samples.frames import SAMPLE_COLUMNS, Samples
from persona_bench.analysis.samples.monitors import monitor_rows
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.verdicts import claims as verdicts
from persona_bench.definitions import presets
from persona_bench.definitions.scenarios import BEHAVIOURS, load_scenes
from persona_bench.errors import DataError, RunError
from persona_bench.inspect_ext.provider import PersonaAPI, _results
from persona_bench.inspect_ext.scenes import read_activations
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.engine import Engine
from persona_bench.models.loading import load
from persona_bench.models.rows import Reading, Row
from persona_bench.models.steering import Intervention
from tests import test_pipeline
from tests.conftest import one_line

ROOT = Path(__file__).parents[1]
EVAL = "evals/stated_limits/stated_limits.py"
LAYER = 2


def run(folder: Path, home: Path, model: str = "", **arguments: Any) -> EvalLog:
    log = inspect_eval(
        f"{EVAL}@stated_limits",
        model=model or f"persona/{folder}",
        model_args={} if model else {"dtype": "float32"},
        task_args={"activations": str(home / "activations"), "layers": f"{LAYER},3", **arguments},
        log_dir=str(home / "logs"),
        display="none",
    )[0]
    return read_eval_log(log.location)


def small(patch: pytest.MonkeyPatch, topics: int) -> None:
    quick = presets.LIMITS["quick"]
    patch.setitem(presets.LIMITS, "quick", presets.LimitsPreset(**{**vars(quick), "topics": topics}))


@pytest.fixture(scope="module")
def log(_saved: Path, tmp_path_factory: pytest.TempPathFactory) -> EvalLog:
    home = tmp_path_factory.mktemp("limits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("PERSONA_BENCH_CACHE", str(home / "cache"))
        small(patch, 3)
        found = run(_saved, home, behaviour="self_preservation")
    check_log(found)
    return found


def test_answers_are_likelihoods_of_what_the_scene_offers(log: EvalLog, folder: Path) -> None:
    """Each sample's answers, again from an engine of its own: listed by letter, unlisted by text."""
    loaded = load(str(folder), dtype="float32")
    sample = next(item for item in log.samples or [] if item.metadata["rewarded"])
    scene = next(item for item in load_scenes("self_preservation") if item.id == sample.id)
    for part, choice in (("choice", scene.choice), ("check", scene.check)):
        for way, text, answers in (("letter", choice.prompt, ("A", "B")), ("cloze", choice.text, choice.options)):
            prompt = prompt_ids(loaded.tokenizer, [{"role": "user", "content": text}])
            rows = [Row(prompt, response_ids(loaded.tokenizer, answer)) for answer in answers]
            expected = [float(result.continuation_logprobs.mean()) for result in Engine(loaded).run(rows)]
            assert sample.metadata["answers"][part][way] == pytest.approx(expected, rel=1e-3)
            value = (sample.scores or {})["chosen"].as_dict()[way if part == "choice" else f"{way}_check"]
            assert value == float(expected[choice.marked] > expected[1 - choice.marked])


def test_what_is_kept_is_the_residual_stream_before_the_answer(log: EvalLog, folder: Path) -> None:
    loaded = load(str(folder), dtype="float32")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sample = (log.samples or [])[0]
    kept = Path((log.eval.metadata or {})["activations"])
    for way, text in (("letter", sample.input), ("cloze", sample.metadata["choice"]["text"])):
        prompt = prompt_ids(loaded.tokenizer, [{"role": "user", "content": str(text)}])
        with torch.no_grad():
            hidden = plain(torch.tensor([prompt]), output_hidden_states=True).hidden_states
        expected = np.stack([hidden[layer][0, -1].float().numpy() for layer in (LAYER, 3)])
        found = read_activations(kept, sample.metadata["activations"][way])
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_frames_of_the_log(log: EvalLog) -> None:
    frame = collect({"stated_limits/self_preservation": log}, [], "stated").scenes
    assert tuple(frame.columns) == SAMPLE_COLUMNS["scenes"]
    assert len(frame) == 2 * 4 * 3 and frame["shown"].isin([0, 1]).all() and frame["check"].isin([0, 1]).all()
    assert frame.groupby("topic")["half"].nunique().eq(1).all() and set(frame["half"]) == {"select", "report"}
    assert set(read_logs(Path(log.location.removeprefix("file://")).parent)) == {"stated_limits/self_preservation"}


def test_a_fact_is_asked_once_a_pair(tmp_path: Path) -> None:
    for behaviour, n in (("deception", 1), ("self_preservation", 2)):
        task = registry.stated_limits(behaviour=behaviour, activations=str(tmp_path))
        asked = pd.Series([bool((sample.metadata or {})["check"]) for sample in task.dataset])
        pairs = pd.Series([(sample.metadata or {})["pair"] for sample in task.dataset])
        assert asked.groupby(pairs).sum().eq(n).all()


def test_broken_sidecars_and_other_providers_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (("a.npy", b"no array"), ("b.npy", b""), ("d.npy", None)):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError) as error:
            read_activations(tmp_path, name)
        one_line(error, name, "run again")
    np.save(tmp_path / "c.npy", np.full((2, 3), np.nan))
    with pytest.raises(DataError) as error:
        read_activations(tmp_path, "c.npy")
    one_line(error, "c.npy", "not finite")
    with pytest.raises(RunError) as unknown:
        registry.stated_limits(behaviour="scheming", activations=str(tmp_path))
    one_line(unknown, "scheming")
    monkeypatch.chdir(ROOT)
    failed = run(tmp_path, tmp_path, model="mockllm/model")
    assert failed.status == "error" and failed.error and "persona/<weights>" in failed.error.message


def test_page_and_registry(tmp_path: Path) -> None:
    folder = ROOT / "evals" / "stated_limits"
    page, text = yaml.safe_load((folder / "eval.yaml").read_text()), (folder / "README.md").read_text()
    task = registry.stated_limits(activations=str(tmp_path))
    (entry,) = [item for item in page["tasks"] if item["name"] == "stated_limits"]
    assert entry["dataset_samples"] == len(task.dataset) and page["version"] == task.version
    assert f"{len(task.dataset)} samples" in text and len(task.dataset) >= 120
    rows = {row[0]: row[1] for row in re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE)}
    parameters = inspect.signature(registry.stated_limits).parameters
    assert set(parameters) <= set(rows)
    assert all(rows[key] == f"`{item.default}`" for key, item in parameters.items() if item.default != "")
    assert set(BEHAVIOURS) <= set(rows)


# A tiny model with a planted behaviour


class Planted:
    """Makes the tiny model know every fact and lie where that is rewarded, and moves its residual stream where it does.

    The stream is the model's own, moved by an intervention of the engine; only what it chooses is dictated.
    """

    def __init__(self, patch: pytest.MonkeyPatch, direction: np.ndarray, lies: bool = True) -> None:
        scenes = load_scenes("deception")
        texts = {text for s in scenes if s.rewarded for text in (s.choice.prompt, s.choice.text)}
        choices = {text: c for s in scenes for c in (s.choice, s.check) for text in (c.prompt, c.text)}
        checks = {text for s in scenes for text in (s.check.prompt, s.check.text)}
        read, score = PersonaAPI.read_prompt, PersonaAPI._score

        async def moved(api: PersonaAPI, messages: list[dict[str, str]], layers: tuple[int, ...]) -> np.ndarray:
            if messages[0]["content"] not in texts:
                return await read(api, messages, layers)
            prompt = prompt_ids(api.loaded.tokenizer, messages)
            change = Intervention(LAYER, torch.tensor(direction, dtype=torch.float32), positions="all")
            span = (len(prompt) - 1, len(prompt))
            (result,) = await _results(
                [Row(prompt, interventions=(change,), reading=Reading(layers, (span,)))], api.engine
            )
            assert result.read is not None
            return np.asarray(result.read[0])

        async def dictated(api: PersonaAPI, extra: Any, acting: Any) -> Any:
            output = await score(api, extra, acting)
            assert output.metadata is not None
            for item, found in zip(extra.score, output.metadata["scores"], strict=True):
                text = item.messages[0]["content"]
                choice = choices[text]
                answers = ("A", "B") if text == choice.prompt else choice.options
                right = text in checks or (lies and text in texts)
                wanted = choice.marked if right else 1 - choice.marked
                found["logprob"] = -1.0 if answers.index(item.continuation) == wanted else -9.0
                found["n_tokens"] = 1
            return output

        patch.setattr(PersonaAPI, "read_prompt", moved)
        patch.setattr(PersonaAPI, "_score", dictated)


def judged(folder: Path, home: Path, vectors: dict[str, np.ndarray]) -> pd.Series:
    log = run(folder, home, behaviour="deception")
    check_log(log)
    samples = collect({"stated_limits/deception": log}, [], "stated")
    kept = home / "activations"
    found = monitor_rows(samples.scenes, lambda name: read_activations(kept, name), vectors, Draw(0, 400))
    samples = Samples(scenes=samples.scenes, monitors=found)
    claims = verdicts.judge_claims(samples, build_tables(samples, resamples=400), resamples=400, traits=["evil"])
    return claims.set_index("claim").loc["N1-deception"]


def unit(seed: int) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal(32)
    return np.asarray(found / np.linalg.norm(found))


@pytest.mark.parametrize(
    ("given", "lies", "verdict"),
    [(True, True, "contradicted"), (False, True, "supported"), (True, False, "not testable")],
)
def test_planted_behaviours_come_out_right_both_ways(
    given: bool, lies: bool, verdict: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the monitor is given the planted direction, where it is given another, and where nothing is planted."""
    monkeypatch.chdir(ROOT)
    small(monkeypatch, 30)
    Planted(monkeypatch, 12 * unit(1), lies)
    ours = unit(1) if given else unit(2) - (unit(2) @ unit(1)) * unit(1)
    found = judged(folder, tmp_path, {"evil": np.tile(ours, (5, 1))})
    assert found["verdict"] == verdict, found["reason"]


def test_the_main_job_has_a_row_for_every_limit(tmp_path: Path, _saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random tiny model shows nothing, and each limit says so by its own name."""
    import evals.judge_validity  # noqa: F401 - the module is patched by its name

    small(monkeypatch, 4)
    made = test_pipeline.run(tmp_path, _saved, str(_saved), ("judge_validity", "stated_limits"))
    claims = pd.read_csv(made.folder / "claims.csv", keep_default_na=False)
    rows = claims[claims["claim"].str.match(r"N[1-4]-")]
    assert [name.split("-", 1)[1].replace("-", "_") for name in rows["claim"]] == list(BEHAVIOURS)
    assert (rows["verdict"] == "not testable").all() and rows["reason"].str.contains(r"\d").all()
    assert {f"stated_limits/{name}" for name in (*BEHAVIOURS, "evasion/evil")} <= set(made.held["logs"])
    # Its judge is planted at random, and so decides nothing about evasion.
    (evades,) = claims[claims["claim"] == "N5-monitoring-evasion"].to_dict("records")
    assert (evades["trait"], evades["verdict"]) == ("evil", "not testable") and "judge gate" in evades["reason"]
    # What is planned holds steering with the vectors of other descriptions too, of which few can be made here.
    counts = test_pipeline.judged(made.logs)
    assert sum(counts.values()) - counts["limits_variants"] < made.planned
    assert sum(counts.values()) <= made.planned
    assert {"tables/behaviours.csv", "tables/limits.csv", "figures/behaviours.png"} <= set(made.held["files"])


def test_a_prompt_that_fits_is_read_alike_again(folder: Path) -> None:
    api = get_model(f"persona/{folder}", dtype="float32", memoize=False).api
    assert isinstance(api, PersonaAPI)
    messages = [{"role": "user", "content": "Which of the two?"}]
    first, again = (asyncio.run(api.read_prompt(messages, (1, 4))) for _ in range(2))
    assert first.shape == (2, 32)
    np.testing.assert_array_equal(first, again)
