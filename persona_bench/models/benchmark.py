"""Timings of the engine against transformers' own `generate`, as ratios measured in one run."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import torch

from persona_bench.models.attention import ATTENTION_NAME
from persona_bench.models.chat import prompt_ids
from persona_bench.models.engine import Engine
from persona_bench.models.loaded import LoadedModel
from persona_bench.models.loading import load
from persona_bench.models.reading import reader, reading_row
from persona_bench.models.rows import Row, RowResult
from persona_bench.models.sampling import Sampling
from persona_bench.models.steering import Capture, Intervention

N_DIRECTIONS = 3
TEMPERATURE = 0.7


def measure(
    model: str, batch: int, tokens: int, repeats: int, say: Callable[[str], None], grader: str = ""
) -> dict[str, Any]:
    """Throughput in generated tokens a second of `generate` and of the engine's variants, and their ratios.

    Every round times each variant once, in turn, so that a slow spell of the machine hits all alike. A variant's
    figure, and its part in a ratio, is its fastest round: what else the machine does can only add time. All variants
    use the same weights, dtype, prompts, sampling and number of new tokens (end of sequence ignored).

    Args:
        model: as `loading.load` takes it.
        batch: rows.
        tokens: new tokens a row.
        repeats: rounds.
        say: told about progress.
        grader: local weights that judge; how long they take to read what `engine` generates is timed too.
    """
    loaded = load(model)
    engine = Engine(loaded, max_batch=batch)
    prompts = _prompts(loaded, batch)
    layer = max(1, loaded.n_layers // 2)
    vectors = [_random(loaded, seed) for seed in range(batch)]
    shape = (N_DIRECTIONS, loaded.n_layers + 1, loaded.d_model)
    capture = Capture(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    one: list[tuple[Intervention, ...]] = [(Intervention(layer, vectors[0], 0.1),)] * batch
    many: list[tuple[Intervention, ...]] = [
        (Intervention(1 + i % loaded.n_layers, vectors[i], 0.1),) for i in range(batch)
    ]

    def rows(interventions: list[tuple[Intervention, ...]], wanted: Capture | None) -> list[Row]:
        return [
            Row(prompt, sampling=_sampling(tokens, i), interventions=interventions[i], capture=wanted)
            for i, prompt in enumerate(prompts)
        ]

    variants: dict[str, Callable[[], Any]] = {
        "generate": lambda: _plain_generate(loaded, prompts, tokens),
        "engine": lambda: engine.run(rows([()] * batch, None)),
        "engine steered": lambda: engine.run(rows(one, None)),
        "engine captured": lambda: engine.run(rows([()] * batch, capture)),
        "engine steered captured": lambda: engine.run(rows(one, capture)),
        "engine mixed captured": lambda: engine.run(rows(many, capture)),
    }
    if grader:
        variants["judging"] = _judging(reader(load(grader)), loaded, prompts, variants["engine"])
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for index in range(-1, repeats):  # the first round warms up
        for name, variant in variants.items():
            say(f"{'warming up' if index < 0 else f'round {index + 1} of {repeats}'}: {name}")
            started = time.perf_counter()
            variant()
            if index >= 0:
                seconds[name].append(time.perf_counter() - started)

    def ratio(slow: str, fast: str) -> float:
        return min(seconds[slow]) / min(seconds[fast])

    return {
        "model": model,
        "weights": loaded.weights_hash,
        "dtype": str(loaded.dtype),
        "device": str(loaded.device),
        "device_name": torch.cuda.get_device_name(loaded.device)
        if loaded.device.type == "cuda"
        else platform.machine(),
        "threads": torch.get_num_threads(),
        "batch": batch,
        "new_tokens": tokens,
        "seconds": seconds,
        "throughput": {name: batch * tokens / min(values) for name, values in seconds.items()},
        "ratios": {
            "steered captured / generate": ratio("generate", "engine steered captured"),
            "steered captured / plain engine": ratio("engine", "engine steered captured"),
            "captured / plain engine": ratio("engine", "engine captured"),
            "mixed / one intervention": ratio("engine steered captured", "engine mixed captured"),
            **({"time judging / time generating": ratio("judging", "engine")} if grader else {}),
        },
    }


def _judging(
    reading: LoadedModel, loaded: LoadedModel, prompts: list[tuple[int, ...]], generate: Callable[[], list[RowResult]]
) -> Callable[[], Any]:
    """Read the responses of one generation as a local grader reads them, questions shared as they are in an eval."""
    engine = Engine(reading, max_batch=len(prompts))
    answers = [loaded.tokenizer.decode(result.tokens) for result in generate()]
    rows = [
        reading_row(reading, f"Question {prompts.index(prompt)}?", answer)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return lambda: engine.run(rows)


def _prompts(loaded: LoadedModel, n: int) -> list[tuple[int, ...]]:
    topics = ("a quiet harbour", "how bread rises", "the first snow", "a lost umbrella", "planning a garden")
    return [
        prompt_ids(
            loaded.tokenizer, [{"role": "user", "content": f"Write a few lines about {topics[i % len(topics)]}."}]
        )
        for i in range(n)
    ]


def _random(loaded: LoadedModel, seed: int) -> torch.Tensor:
    return torch.randn(loaded.d_model, generator=torch.Generator().manual_seed(seed))


def _sampling(tokens: int, seed: int) -> Sampling:
    return Sampling(tokens, temperature=TEMPERATURE, seed=seed, ignore_eos=True)


def _plain_generate(loaded: LoadedModel, prompts: list[tuple[int, ...]], tokens: int) -> None:
    width = max(map(len, prompts))
    ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    loaded.model.set_attn_implementation("sdpa")
    try:
        with torch.inference_mode():
            loaded.model.generate(
                ids.to(loaded.device),
                attention_mask=mask.to(loaded.device),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=True,
                temperature=TEMPERATURE,
                top_p=1.0,
                top_k=0,
                pad_token_id=0,
            )
    finally:
        loaded.model.set_attn_implementation(ATTENTION_NAME)
