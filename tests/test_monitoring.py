"""Monitoring: what is planted is found, what is not is not, and every condition goes through Inspect."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from inspect_ai import eval as inspect_eval
from inspect_ai.log import EvalLog, read_eval_log
from inspect_ai.model import Model, ModelOutput, get_model

from persona_bench.analysis.grouping import Draw
from persona_bench.analysis.samples.baselines import text_monitors
from persona_bench.analysis.samples.collect import check_log, collect
from persona_bench.analysis.samples.frames import SIGNALS, Samples
from persona_bench.analysis.statistics import RESAMPLES
from persona_bench.analysis.tables import monitoring
from persona_bench.analysis.tables.build import build_tables
from persona_bench.definitions.traits import load_trait
from persona_bench.errors import RunError, TraitError, VectorError
from persona_bench.inspect_ext.cells import VectorFile
from persona_bench.inspect_ext.conditions import CONDITIONS, SHOTS, conversations
from persona_bench.inspect_ext.graders import COHERENCE_RUBRIC
from persona_bench.inspect_ext.watching import watch
from persona_bench.vectors.vector import PersonaVector
from tests.builders import HEADS, SIZES, SPECIAL
from tests.builders_samples import World, make_samples
from tests.conftest import first_token, one_line, tiny_tokenizer, tiny_vector

FAST = 300
BUCKETS = range(6, 100)  # tokens that the planted model answers with, each for a value of the projection
CONSTANT, SIGNAL = 0, 1  # coordinates of the residual stream


# -- a model whose responses hang on a known direction ---------------------------------------------------------------


def planted_model(folder: Path, low: float = -1.0, high: float = 1.0) -> transformers.LlamaForCausalLM:
    """Uniform attention averages one number a token into the residual stream; the head answers with its bucket."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": 2}, **HEADS, **SPECIAL)
    model = transformers.LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        model.model.embed_tokens.weight[:, CONSTANT] = 1.0
        model.model.embed_tokens.weight[:, SIGNAL] = torch.randn(SIZES["vocab_size"]) * 0.3
        block: Any = model.model.layers[0]
        block.self_attn.v_proj.weight[0, SIGNAL] = 1.0
        block.self_attn.o_proj.weight[SIGNAL, 0] = 1.0
        values = torch.linspace(low, high, len(BUCKETS))
        sharp = 300 / float(values[1] - values[0]) ** 2  # so that the nearest bucket is all but certain
        model.lm_head.weight[:, CONSTANT] = -1e30
        for token, value in zip(BUCKETS, values, strict=True):
            model.lm_head.weight[token, SIGNAL] = sharp * value
            model.lm_head.weight[token, CONSTANT] = -sharp * value**2 / 2
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model


def planted_vector(folder: Path) -> tuple[Path, PersonaVector]:
    made = tiny_vector(n_layers=2)
    made.directions["persona"].zero_()
    made.directions["persona"][:, SIGNAL] = 3.0
    made.save(folder / "planted.safetensors")
    return folder / "planted.safetensors", made


def by_bucket() -> Model:
    """A grader that scores a response by the bucket of its first token."""

    def output(messages: Any, *_: Any) -> ModelOutput:
        text = messages[-1].text
        if COHERENCE_RUBRIC in text:
            return first_token(_90=1.0)()
        first = text.split("<answer>\n", 1)[1][0]
        place = tiny_tokenizer().convert_tokens_to_ids(first) - BUCKETS[0]
        return first_token(**{f"_{round(100 * place / (len(BUCKETS) - 1))}": 1.0})()

    return get_model("mockllm/model", custom_outputs=output, memoize=False)


def monitored(folder: Path, home: Path, vector: Path, grader: Model, **arguments: Any) -> EvalLog:
    log = inspect_eval(
        "evals/trait_monitoring",
        model=f"persona/{folder}",
        model_args={"dtype": "float32"},
        model_roles={"grader": grader},
        task_args={"vector": str(vector), **arguments},
        log_dir=str(home / "logs"),
        display="none",
    )[0]
    check_log(log)
    return read_eval_log(log.location)


def frames(log: EvalLog, vector: PersonaVector, layer: int) -> Samples:
    name = f"trait_monitoring/evil/{log.eval.metadata['condition']}"  # type: ignore[index]
    return collect({name: log}, [vector], "stated", {"evil": layer})


def prompts_projection(model: Any) -> tuple[float, float]:
    """The range of the planted number at the last token of the ladder's prompts."""
    tokenizer, seen = tiny_tokenizer(), []
    for item in conversations("ladder", load_trait("evil"), 8):
        messages = [{"role": role, "content": text} for role, text in item.messages]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            seen.append(float(model.model(ids, output_hidden_states=True).hidden_states[1][0, -1, SIGNAL]))
    return min(seen), max(seen)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Samples]:
    home = tmp_path_factory.mktemp("planted")
    low, high = prompts_projection(planted_model(home / "wide"))
    planted_model(home / "model", low, high)
    path, vector = planted_vector(home)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_BENCH_CACHE", str(home / "cache"))
        log = monitored(home / "model", home, path, by_bucket())
    yield frames(log, vector, layer=2)


def test_a_planted_direction_is_recovered(planted: Samples) -> None:
    rows = build_tables(planted, resamples=FAST)["monitoring"].query("half == 'report' and signal == 'prompt_last'")
    persona = rows[(rows["direction"] == "persona") & rows["chosen_layer"]].iloc[0]
    assert persona["n"] == 32 and persona["n_unscored"] == 0
    assert persona["r"] > 0.999 and persona["r_low"] <= persona["r"] <= persona["r_high"] <= 1
    assert persona["r_high"] > 0.9999, "1 but for the width of a bucket"
    assert persona["spearman"] > 0.99 and persona["r_within"] > 0.99 and persona["auroc"] == 1
    assert persona["tpr_5"] > 0.8 and persona["fpr_5"] < 0.3


def test_projections_are_those_of_a_plain_pass(planted: Samples) -> None:
    layers = planted.projections[planted.projections["direction"] == "persona"].groupby("sample_id")["prompt_last"]
    assert (layers.max() - layers.min()).max() < 1e-5, "the second block adds nothing"
    control = planted.projections[planted.projections["direction"] == "random:0"]
    assert len(control) and not np.allclose(control["prompt_last"], 0)


def ladder_of(world: World) -> tuple[pd.DataFrame, pd.Series]:
    """The ladder's samples as of one half, and the persona projections by sample."""
    base = make_samples(world)
    directions = base.projections[base.projections["direction"] == "persona"]
    ladder = base.monitoring[base.monitoring["condition"] == "ladder"].assign(half="report")
    return ladder, directions.set_index("sample_id")["prompt_last"]


def test_shuffled_outcomes_cover_nought() -> None:
    """200 shuffles of the scores, at the paper's number of questions, each interval as users get it.

    Every shuffle is of a world of its own kind of questions, ten in all: how far questions reach differs by world, and
    the shuffles of a single one have a share of their own.
    """
    worlds = [ladder_of(World(traits=("evil",), epochs=1, layers=(8,), scripts=1, seed=seed)) for seed in range(10)]
    covered: dict[str, list[bool]] = {"r": [], "r_within": [], "spearman": [], "auroc": []}
    for seed in range(200):
        ladder, values = worlds[seed % len(worlds)]
        scores = np.random.default_rng(seed).permutation(ladder["trait_score"].to_numpy())
        watched = ladder.assign(trait_score=scores).set_index("sample_id", drop=False)
        signal = monitoring._Signal("persona", "prompt_last", "layer", 8.0, values)
        (row,) = monitoring._signal_rows(watched, [signal], 8.0, Draw(seed, RESAMPLES), "evil", "ladder")
        for name, found in covered.items():
            null = 0.5 if name == "auroc" else 0.0
            found.append(bool(row[f"{name}_low"] <= null <= row[f"{name}_high"]))
    for name, found in covered.items():
        assert np.mean(found) >= 0.93, name


# -- conditions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("trait", ["evil", "sycophancy", "hallucination"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_conversations_are_distinct_and_halves_even(condition: str, trait: str) -> None:
    found = conversations(condition, load_trait(trait), 8)
    assert len({item.id for item in found}) == len(found)
    assert sum(item.half == "select" for item in found) * 2 == len(found)
    assert all(item.messages[-1][0] == "user" for item in found)
    units = {item.question_id for item in found}
    assert len(units) == (16 if condition == "drift" else 8)
    if condition == "drift":
        assert all(len(item.turns) >= 7 and item.side in ("toward", "away") for item in found)
    if condition == "many_shot":
        assert {item.rung for item in found} == set(SHOTS)
        assert all(len(item.messages) == 2 * item.rung + 1 for item in found)
    if condition == "user_pressure":
        assert all(len(item.messages) == 1 and "{" not in item.messages[0][1] for item in found)


def test_a_condition_needs_its_texts() -> None:
    with pytest.raises(TraitError) as missing:
        conversations("drift", load_trait("humorous"), 8)
    one_line(missing, "humorous", "drift")
    with pytest.raises(RunError) as unknown:
        conversations("ladders", load_trait("evil"), 8)
    one_line(unknown, "ladders", *CONDITIONS)


def test_what_is_watched(tmp_path: Path) -> None:
    path, made = planted_vector(tmp_path)
    other = tiny_vector(n_layers=2, trait="zeal")
    other.save(tmp_path / "zeal.safetensors")
    extra = watch(VectorFile(path, made), str(tmp_path / "zeal.safetensors"), (1, 2), 2, per_token=False)
    names = [name for request in extra.output_projections for name in request.names]
    assert names == ["persona", "random:0", "random:1", "shuffled", "refusal", "trait:zeal"]
    with pytest.raises(VectorError):
        watch(VectorFile(path, made), "", (3,), 1, per_token=False)
    tiny_vector(n_layers=4, trait="tall").save(tmp_path / "tall.safetensors")
    with pytest.raises(VectorError) as error:
        watch(VectorFile(path, made), str(tmp_path / "tall.safetensors"), (1,), 1, per_token=False)
    one_line(error, "tall", "4", "2")


@pytest.mark.parametrize("condition", ["many_shot", "user_pressure", "drift"])
def test_every_condition_runs_alone(condition: str, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from persona_bench.definitions import presets

    quick = dataclasses.replace(
        presets.PRESETS["quick"], evaluation_questions=2, monitoring_questions=2, monitoring_rollouts=1, max_tokens=4
    )
    monkeypatch.setitem(presets.PRESETS, "quick", quick)
    vector = tiny_vector()
    vector.save(tmp_path / "evil.safetensors")
    log = monitored(folder, tmp_path, tmp_path / "evil.safetensors", by_length(), condition=condition)
    samples = frames(log, vector, layer=3)
    assert set(samples.monitoring["condition"]) == {condition}
    sizes = {"many_shot": 2 * 5, "user_pressure": 2 * 8, "drift": 4 * 8}
    # The tiny model's context is short: what does not fit is counted, and ends nothing.
    assert bool((samples.monitoring["status"] == "unscored").any()) is (condition == "many_shot")
    assert len(samples.monitoring) == sizes[condition] == samples.monitoring["sample_id"].nunique()
    assert set(samples.projections["sample_id"]) <= set(samples.monitoring["sample_id"])
    assert set(samples.projections["layer"]) == {1, 2, 3, 4}
    assert samples.monitoring["prompt"].str.len().min() > 10
    tables = build_tables(samples, resamples=50)
    assert set(tables["monitoring"]["scope"]) == {"layer", "all layers"}
    assert (len(tables["drift_turns"]) == 16) is (condition == "drift")
    if condition == "drift":
        first = (log.samples or [])[0]
        assert len(first.metadata["turns"]) == 8 == sum(item.role == "assistant" for item in first.messages)
        asked = [turn["user"] for turn in first.metadata["turns"]]
        assert asked[1:] == first.metadata["user_turns"]
        assert samples.monitoring["rung"].max() == 7
        last = samples.monitoring[samples.monitoring["rung"] == 7]["prompt"].iloc[0]
        assert all(text in last for text in asked[:2]), "a reader of the prompt sees the conversation so far"


def by_length() -> Model:
    """A grader that scores by the length of what it is shown; all of it coherent."""

    def output(messages: Any, *_: Any) -> ModelOutput:
        text = messages[-1].text
        return first_token(**{f"_{90 if COHERENCE_RUBRIC in text else len(text) % 101}": 1.0})()

    return get_model("mockllm/model", custom_outputs=output, memoize=False)


# -- drift and baselines on simulated samples --------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [0, 1, 3])
def test_the_lead_of_an_alarm_is_found(lead: int) -> None:
    tables = build_tables(make_samples(World(traits=("evil",), lead=lead)), resamples=FAST)
    row = tables["drift"].query("direction == 'persona' and signal == 'prompt_last' and scope == 'layer'").iloc[0]
    assert row["n_crossed"] == row["n_scripts"] == 4
    # An alarm ahead of the score is a false alarm by the threshold's own count: three turns in thirteen are too many.
    if lead < 3:
        assert row["lead_low"] <= lead <= row["lead_high"]
    assert row["n_unscored_turns"] == 0 and 0 <= row["false_alarms"] <= 0.25
    assert row["n_both"] == min(row["n_crossed"], row["n_alarmed"])


def test_a_reader_of_the_prompt_is_a_baseline_to_beat() -> None:
    blind = build_tables(make_samples(World(traits=("evil",), reads=0.0)), resamples=FAST)["monitoring"]
    seeing = build_tables(make_samples(World(traits=("evil",), reads=1.0, within=0.0)), resamples=FAST)["monitoring"]
    for table, beats in ((blind, True), (seeing, False)):
        row = table.query(
            "condition == 'ladder' and half == 'report' and direction == 'persona' and signal == 'prompt_last'"
        )
        row = row[row["chosen_layer"]].iloc[0]
        assert row["text_baseline"] == "tfidf"
        assert bool(row["excess_text_low"] > 0) is beats


def test_text_monitors_learn_from_the_select_half_only() -> None:
    samples = make_samples(World(traits=("evil",)))
    ladder = samples.monitoring[samples.monitoring["condition"] == "ladder"]

    def embed(texts: Any) -> np.ndarray:
        return np.array([[float(text.split()[2]), 1.0] for text in texts], np.float32)

    read = text_monitors(ladder, embed)
    assert set(read["direction"]) == {"text:tfidf", "text:embeddings", "text:condition"}
    assert read["prompt_last"].between(0, 100).all() and read[list(SIGNALS[1:])].isna().all().all()
    changed = ladder.assign(trait_score=ladder["trait_score"].where(ladder["half"] == "select", 1.0))
    pd.testing.assert_frame_equal(read, text_monitors(changed, embed))
    joined = ladder.merge(read[read["direction"] == "text:embeddings"], on="sample_id")
    assert np.corrcoef(joined["trait_score"], joined["prompt_last"])[0, 1] > 0.8
    constant = text_monitors(ladder.assign(trait_score=0.0), embed)
    assert set(constant["direction"]) == {"text:condition"}
    assert text_monitors(ladder.assign(status="unscored", trait_score=np.nan), embed).empty
