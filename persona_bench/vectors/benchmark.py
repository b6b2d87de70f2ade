"""Timing of projecting transcripts against one pass after another that keeps every hidden state, in one run."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from persona_bench.definitions.traits import load_trait
from persona_bench.models.attention import ATTENTION_NAME
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.engine import Engine
from persona_bench.models.loading import LoadedModel, load
from persona_bench.vectors.projection import project_file
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
    vector = _vector(loaded)
    middle = max(1, loaded.n_layers // 2)
    made = conversations(loaded.tokenizer, n)
    slices = [made[start : start + SLICE] for start in range(0, n, SLICE)]
    seconds: dict[str, list[list[float]]] = {name: [] for name in ("one by one", "project", "project all layers")}
    tokens, sampled = [], []
    with tempfile.TemporaryDirectory() as folder:
        for number, items in enumerate(slices):
            source, target = Path(folder, f"{number}.jsonl"), Path(folder, "out.csv")
            source.write_text("".join(json.dumps(item) + "\n" for item in items))
            laid = [item for chunk in read_transcripts(source, loaded.tokenizer, located=False) for item in chunk]
            laid.sort(key=lambda item: len(item.ids))
            size = min(len(laid), -(-SAMPLE // len(slices)))
            sample = [laid[round(place)] for place in np.linspace(0, len(laid) - 1, size)]
            tokens.append([len(item.ids) for item in laid])
            sampled.append([len(item.ids) for item in sample])
            variants: dict[str, Callable[[], Any]] = {
                "one by one": partial(_one_by_one, loaded, sample, vector, middle),
                "project": partial(project_file, engine, vector, source, target, middle),
                "project all layers": partial(project_file, engine, vector, source, target),
            }
            if not number:
                _one_by_one(loaded, sample[:3], vector, middle)  # warms up
            timed: dict[str, list[float]] = {name: [] for name in variants}
            for index in range(repeats):
                for name, variant in variants.items():
                    say(f"transcripts, slice {number + 1} of {len(slices)}, round {index + 1} of {repeats}: {name}")
                    started = time.perf_counter()
                    variant()
                    timed[name].append(time.perf_counter() - started)
            for name, values in timed.items():
                seconds[name].append(values)
    fastest = {name: [min(values) for values in slices_of] for name, slices_of in seconds.items()}
    whole = sum(
        value * sum(all_of) / sum(some)
        for value, all_of, some in zip(fastest["one by one"], tokens, sampled, strict=True)
    )
    return {
        "transcripts": n,
        "tokens": sum(map(sum, tokens)),
        "layer": middle,
        "n_layers": loaded.n_layers,
        "sampled_one_by_one": {"transcripts": sum(map(len, sampled)), "tokens": sum(map(sum, sampled))},
        "seconds_by_slice_and_round": seconds,
        "seconds": {
            "one by one, scaled to all tokens": whole,
            "project": sum(fastest["project"]),
            "project all layers": sum(fastest["project all layers"]),
        },
        "ratios": {
            "one by one / project": whole / sum(fastest["project"]),
            "one by one / project all layers": whole / sum(fastest["project all layers"]),
        },
    }


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
