"""Timing of projecting transcripts against one pass after another that keeps every hidden state, in one run."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from persona_bench.definitions.traits import load_trait
from persona_bench.models.attention import ATTENTION_NAME
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.engine import Engine
from persona_bench.models.loaded import LoadedModel
from persona_bench.models.loading import load
from persona_bench.vectors.projection import project_file
from persona_bench.vectors.scan.measures import Settings
from persona_bench.vectors.scan.run import plan_scan, run_scan
from persona_bench.vectors.transcripts import Transcript, read_transcripts
from persona_bench.vectors.vector import PersonaVector

SAMPLE = 100  # transcripts that are passed one by one; the time of all is scaled from theirs
SLICE = 250
SHORTEST, MEDIAN, LONGEST = 30, 140, 400  # tokens, spread log-normally
SPREAD = 0.6
TRAITS = ("evil", "sycophancy", "hallucination")


def measure_projection(model: str, n: int, repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds to project `n` transcripts at the middle layer and at all, and one by one, and their ratios.

    `project` is the whole of `project_file`: reading the file, tokenising, passes, writing the table. `one by one` is
    transformers' own pass over the same token ids with `output_hidden_states=True`, without a key-value cache, which
    is not needed for it, in the same weights, dtype and process; tokenising and writing are not counted. Only a sample
    of about `SAMPLE` is passed one by one, evenly over the lengths, and its time scaled by the number of tokens.

    Every round goes through the transcripts in slices, and times each variant once on a slice before the next, so that
    a slow spell of the machine hits all alike. A slice's figure is its fastest round, a variant's the sum of them.

    Args:
        model: as `loading.load` takes it.
        n: how many transcripts.
        repeats: rounds.
        say: told about progress.
    """
    loaded = load(model)
    engine = Engine(loaded)
    middle = max(1, loaded.n_layers // 2)
    made = conversations(loaded.tokenizer, n)
    parts = [made[start : start + SLICE] for start in range(0, n, SLICE)]
    slices = []
    for number, part in enumerate(parts, 1):
        told = partial(_tell, say, f"transcripts, slice {number} of {len(parts)}")
        slices.append(_time_slice(engine, part, middle, -(-SAMPLE // len(parts)), repeats, told))
    scaled = sum(part.fastest("one by one") * part.tokens / part.sampled_tokens for part in slices)
    project, all_layers = (sum(part.fastest(name) for part in slices) for name in ("project", "project all layers"))
    return {
        "transcripts": n,
        "tokens": sum(part.tokens for part in slices),
        "layer": middle,
        "n_layers": loaded.n_layers,
        "sampled_one_by_one": {
            "transcripts": sum(part.sampled for part in slices),
            "tokens": sum(part.sampled_tokens for part in slices),
        },
        "seconds_by_slice_and_round": {name: [part.seconds[name] for part in slices] for name in slices[0].seconds},
        "seconds": {
            "one by one, scaled to all tokens": scaled,
            "project": project,
            "project all layers": all_layers,
        },
        "ratios": {
            "one by one / project": scaled / project,
            "one by one / project all layers": scaled / all_layers,
        },
    }


def measure_scan(
    model: str, n: int, repeats: int, say: Callable[[str], None], sample_size: int = SAMPLE
) -> dict[str, Any]:
    """Seconds to scan `n` samples at the middle layer without generating, and one by one, and their ratio.

    `scan` is the whole of `run_scan`: reading, tokenising, passes, parts, output and summary. `one by one` is as in
    `measure_projection`. A round passes its part of the sample one by one and then scans all `n`, so that a slow spell
    of the machine hits both; a figure is the mean over the rounds, as each of the sample is passed once.

    Args:
        model: as `loading.load` takes it.
        n: how many samples.
        repeats: rounds.
        say: told about progress.
        sample_size: how many are passed one by one, at least one a round; their time is scaled by the number of tokens.
    """
    loaded = load(model)
    layer = max(1, loaded.n_layers // 2)
    vector = _vector(loaded)
    seconds: dict[str, list[float]] = {"one by one": [], "scan": []}
    with tempfile.TemporaryDirectory() as folder:
        source, file = Path(folder, "in.jsonl"), Path(folder, "v.safetensors")
        source.write_text("".join(json.dumps(item) + "\n" for item in conversations(loaded.tokenizer, n)))
        vector.save(file)
        items = [item for chunk in read_transcripts(source, loaded.tokenizer, located=False) for item in chunk]
        sample = _evenly(items, max(sample_size, repeats))
        _one_by_one(loaded, sample[:2], vector, layer)  # warms up
        for index in range(repeats):
            planned = plan_scan(
                model,
                [file],
                [str(source)],
                Path(folder, f"out-{index}.parquet"),
                Settings(("response_minus_prompt",), (layer,)),
            )
            variants: dict[str, Callable[[], Any]] = {
                "one by one": partial(_one_by_one, loaded, sample[index::repeats], vector, layer),
                "scan": partial(run_scan, planned),
            }
            for name, variant in variants.items():
                say(f"samples, round {index + 1} of {repeats}: {name}")
                started = time.perf_counter()
                variant()
                seconds[name].append(time.perf_counter() - started)
    tokens, sampled = (sum(len(item.ids) for item in some) for some in (items, sample))
    alone, scan = sum(seconds["one by one"]) * tokens / sampled, fmean(seconds["scan"])
    return {
        "samples": n,
        "tokens": tokens,
        "layer": layer,
        "sampled_one_by_one": {"samples": len(sample), "tokens": sampled},
        "seconds_by_round": seconds,
        "samples_per_second": n / scan,
        "tokens_per_second": tokens / scan,
        "ratios": {"one by one / scan": alone / scan},
    }


def _evenly(items: Sequence[Transcript], n: int) -> list[Transcript]:
    """`n` of the items, or all, evenly over their lengths."""
    ordered = sorted(items, key=lambda item: len(item.ids))
    return [ordered[round(place)] for place in np.linspace(0, len(ordered) - 1, min(len(ordered), n))]


@dataclass(frozen=True)
class _Slice:
    """Timings of one slice: how many tokens it holds, how many were passed one by one, seconds by variant and round."""

    tokens: int
    sampled: int
    sampled_tokens: int
    seconds: dict[str, list[float]]

    def fastest(self, name: str) -> float:
        return min(self.seconds[name])


def _time_slice(
    engine: Engine,
    part: Sequence[dict[str, Any]],
    layer: int,
    sample_size: int,
    repeats: int,
    say: Callable[[str], None],
) -> _Slice:
    loaded, vector = engine.loaded, _vector(engine.loaded)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.jsonl"), Path(folder, "out.csv")
        source.write_text("".join(json.dumps(item) + "\n" for item in part))
        items = [item for chunk in read_transcripts(source, loaded.tokenizer, located=False) for item in chunk]
        sample = _evenly(items, sample_size)
        variants: dict[str, Callable[[], Any]] = {
            "one by one": partial(_one_by_one, loaded, sample, vector, layer),
            "project": partial(project_file, engine, vector, source, target, layer),
            "project all layers": partial(project_file, engine, vector, source, target),
        }
        _one_by_one(loaded, sample[:2], vector, layer)  # warms up
        seconds: dict[str, list[float]] = {name: [] for name in variants}
        for index in range(repeats):
            for name, variant in variants.items():
                say(f"round {index + 1} of {repeats}: {name}")
                started = time.perf_counter()
                variant()
                seconds[name].append(time.perf_counter() - started)
    tokens, sampled_tokens = (sum(len(item.ids) for item in some) for some in (items, sample))
    return _Slice(tokens, len(sample), sampled_tokens, seconds)


def _tell(say: Callable[[str], None], where: str, what: str) -> None:
    say(f"{where}, {what}")


def conversations(tokenizer: Any, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """`n` transcripts of one to three turns, the same for the same seed: questions of the suite, shuffled words.

    Their lengths in tokens are log-normal between `SHORTEST` and `LONGEST`, as far as the model's template allows.
    """
    draw = np.random.default_rng(seed)
    traits = [load_trait(name) for name in TRAITS]
    questions = [question for trait in traits for question in trait.evaluation_questions]
    words = sorted({word for trait in traits for word in trait.description.split()})
    made = []
    for _ in range(n):
        length = int(np.clip(np.exp(draw.normal(np.log(MEDIAN), SPREAD)), SHORTEST, LONGEST))
        turns: list[dict[str, str]] = []
        for turn in range(int(draw.integers(1, 4))):
            question = questions[int(draw.integers(len(questions)))]
            more = [*turns, {"role": "user", "content": question}]
            left = length - len(prompt_ids(tokenizer, more))
            if turn and left < SHORTEST:
                break
            turns = more
            share = max(1, left if draw.random() < 0.5 else left // 2)
            text = " ".join(words[int(i)] for i in draw.integers(len(words), size=share))
            answer = tokenizer.decode(response_ids(tokenizer, text)[:share])
            turns.append({"role": "assistant", "content": answer})
        made.append({"messages": turns})
    return made


def _vector(loaded: LoadedModel) -> PersonaVector:
    shape = (loaded.n_layers + 1, loaded.d_model)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    return PersonaVector("random", {"persona": noise}, torch.ones(shape[0]))


def _one_by_one(loaded: LoadedModel, items: Sequence[Transcript], vector: PersonaVector, layer: int) -> list[Any]:
    unit = torch.nn.functional.normalize(vector.directions["persona"], dim=-1).to(loaded.device)
    found = []
    loaded.model.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            for item in items:
                ids = torch.tensor([item.ids], device=loaded.device)
                states = loaded.model(ids, output_hidden_states=True, use_cache=False).hidden_states
                values = states[layer][0].float() @ unit[layer]
                means = values[: item.n_prompt].mean(), values[item.n_prompt :].mean()
                found.append([float(value) for value in (values[item.n_prompt - 1], *means)])
    finally:
        loaded.model.set_attn_implementation(ATTENTION_NAME)
    return found
