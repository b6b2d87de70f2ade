"""One pass over judged responses -> the mean residual stream of each, from which any other vector follows at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.engine import Engine
from persona_bench.models.rows import Reading, Row, RowResult
from persona_bench.vectors.beginnings import pass_beginnings, shared_beginnings
from persona_bench.vectors.extraction import Rollout
from persona_bench.vectors.vector import PersonaVector

POSITIONS = ("prompt_last", "prompt_avg", "response")
"""As `extract` has them; the last makes the persona direction (paper section 2.2)."""

RANDOM_SEED = 7919
"""Of the random directions: the same in every run of a model of one width."""


@dataclass(frozen=True, eq=False)
class Readings:
    """What the model held while it gave each response.

    Attributes:
        items: the responses with at least one token.
        layers: 1-based.
        means: `(n_items, len(POSITIONS), n_layers_read, d_model)` float32.
    """

    items: tuple[Rollout, ...]
    layers: tuple[int, ...]
    means: np.ndarray

    def at(self, layer: int, position: str = "response") -> np.ndarray:
        """`(n_items, d_model)` float64 at one layer and position."""
        found: np.ndarray = self.means[:, POSITIONS.index(position), self.layers.index(layer)].astype(np.float64)
        return found


def read_responses(engine: Engine, rollouts: Sequence[Rollout], layers: Sequence[int]) -> Readings:
    """Read every response once, up to the last layer asked for; what prompts begin with in common is passed once.

    Args:
        engine: the model the responses came from.
        rollouts: judged or not; those without a token are left out.
        layers: 1-based.
    """
    tokenizer, wanted = engine.loaded.tokenizer, tuple(sorted(set(layers)))
    rows, prompts, items = [], [], []
    for item in rollouts:
        prompt = prompt_ids(tokenizer, [{"role": role, "content": content} for role, content in item.messages])
        given = prompt + response_ids(tokenizer, item.response)
        if len(given) > len(prompt):
            rows.append(given)
            prompts.append(prompt)
            items.append(item)
    shared = shared_beginnings(prompts)
    sums = pass_beginnings(
        engine,
        shared,
        lambda one, under: Reading(wanted, ((len(under), len(one)),)),
        _with_sum,
        {(): np.zeros((len(wanted), engine.loaded.d_model), np.float32)},
    )
    results = engine.run(
        [
            Row(given, reading=Reading(wanted, ((n - 1, n), (start, n), (n, len(given)))), shared_prefix=start)
            for given, n, start in zip(rows, map(len, prompts), map(len, shared.of), strict=True)
        ]
    )
    means = np.zeros((len(rows), len(POSITIONS), len(wanted), engine.loaded.d_model), np.float32)
    average = POSITIONS.index("prompt_avg")
    for place, (result, prompt, beginning) in enumerate(zip(results, prompts, shared.of, strict=True)):
        assert result.read is not None
        means[place] = result.read
        # So far it is that of the tokens after the beginning alone.
        own = (len(prompt) - len(beginning)) * result.read[average]
        means[place, average] = (sums[beginning] + own) / len(prompt)
    return Readings(tuple(items), wanted, means)


def _with_sum(before: np.ndarray, result: RowResult, n: int) -> np.ndarray:
    """The sum of residual streams `(n_layers_read, d_model)` with that of `n` more tokens, whose mean was read."""
    assert result.read is not None
    after: np.ndarray = before + n * result.read[0]
    return after


def projections(
    readings: Readings, vectors: Mapping[str, PersonaVector], chosen: Mapping[str, int], layer: int, random_vectors: int
) -> dict[tuple[str, int], np.ndarray]:
    """Scalar projections of the mean response on each trait's vector and on random directions.

    Args:
        readings: of one trait's responses.
        vectors: by trait; each is used at its own layer, where it would be on watch.
        chosen: trait -> that layer.
        layer: of the random directions.
        random_vectors: how many.

    Returns:
        (direction, layer) -> `(n_items,)`; directions are `trait:NAME` and `random:K`.
    """
    found: dict[tuple[str, int], np.ndarray] = {}
    for name, vector in sorted(vectors.items()):
        unit = torch.nn.functional.normalize(vector.directions["persona"][chosen[name]].double(), dim=0)
        found[f"trait:{name}", chosen[name]] = readings.at(chosen[name]) @ unit.numpy()
    hidden = readings.at(layer)
    noise = np.random.default_rng(RANDOM_SEED).normal(size=(random_vectors, hidden.shape[1]))
    for index, unit in enumerate(noise / np.linalg.norm(noise, axis=1, keepdims=True)):
        found[f"random:{index}", layer] = hidden @ unit
    return found
