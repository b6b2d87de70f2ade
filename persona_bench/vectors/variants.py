"""The vectors that other descriptions, other questions and no filter give, and what the responses tell read again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from persona_bench.definitions.descriptions import description_groups
from persona_bench.definitions.outcomes import AnyFilter, Filter
from persona_bench.definitions.presets import MethodSizes
from persona_bench.definitions.traits import Trait
from persona_bench.errors import DataError, ExtractionError
from persona_bench.files import write_atomic
from persona_bench.models.engine import Engine
from persona_bench.vectors.extraction import Rollout, extract, refusal_direction
from persona_bench.vectors.readings import Readings, projections, read_responses
from persona_bench.vectors.sensitivity import description_rows, question_halves, sensitivity_rows
from persona_bench.vectors.vector import PersonaVector

RAW = "raw"
Rows = list[dict[str, Any]]


def plan_variants(
    trait: Trait, own: Sequence[Rollout], described: Sequence[Rollout], sizes: MethodSizes, seed: int
) -> Iterator[tuple[str, list[Rollout]]]:
    """The responses behind each vector that is steered with, by its name.

    Args:
        trait: of the vectors.
        own: the run's responses.
        described: those under other descriptions, whose number is the `pair` of a response.
        sizes: of the preset.
        seed: of the re-drawn questions.
    """
    for name, members in description_groups(trait.name).items():
        if name.split(":")[0] in sizes.steered:
            yield name, [item for item in described if item.pair in members]
    if "questions" in sizes.steered:
        for number, asked in enumerate(question_halves(own, np.random.default_rng(seed))):
            yield f"questions:{number}", [item for item in own if item.question_id in asked]


def make_vectors(
    engine: Engine,
    trait: Trait,
    plan: Mapping[str, Sequence[Rollout]],
    rule: AnyFilter,
    seed: int,
    folder: Path,
    log_ids: Sequence[str],
    say: Callable[[str], None],
) -> dict[str, Path]:
    """A vector file for each entry of a plan that enough responses pass the filter for; what is there is kept.

    Args:
        engine: the model the responses came from.
        trait: of the vectors.
        plan: name -> responses.
        rule: the filter; `unfiltered` for `raw`.
        seed: of the shuffled labels.
        folder: of the files, `<trait>-<name>.safetensors`.
        log_ids: of the logs behind them.
        say: told what cannot be made, and why.
    """
    made = {}
    for name, responses in plan.items():
        path = folder / f"{trait.name}-{name.replace(':', '-')}.safetensors"
        told = {"log_ids": list(log_ids), "variant": name}
        if path.exists() and PersonaVector.load(path).provenance.get("log_ids") == told["log_ids"]:
            made[name] = path
            continue
        try:
            vector = extract(engine, trait, responses, rule=rule, seed=seed, provenance=told)
        except ExtractionError as error:
            say(f"no {name} vector: {error}")
            continue
        vector.save(path)
        made[name] = path
    return made


def read_trait(
    engine: Engine,
    trait: Trait,
    own: Sequence[Rollout],
    described: Sequence[Rollout],
    vectors: Mapping[str, PersonaVector],
    layers: Mapping[str, int],
    swept: Sequence[int],
    *,
    rule: Filter,
    sizes: MethodSizes,
    seed: int,
) -> dict[str, Rows]:
    """One pass over a trait's responses, and one over those under other descriptions, as rows without a log.

    Args:
        engine: the model.
        trait: of the responses.
        own: the run's responses.
        described: those under other descriptions; may be empty.
        vectors: of every trait of the run.
        layers: trait -> chosen layer, of this trait and of every vector.
        swept: the layers that are compared.
        rule: the run's filter.
        sizes: of the preset.
        seed: of subsets.

    Returns:
        `readings` and `sensitivity`.
    """
    layer = layers[trait.name]
    wanted = sorted({*swept, *layers.values()})
    full = read_responses(engine, own, wanted)
    known = [vector.directions["refusal"][layer] for vector in vectors.values() if "refusal" in vector.directions]
    refusal = known[0].double().numpy() if known else refusal_direction(engine)[layer].astype(np.float64)
    rng = np.random.default_rng(seed)
    held = _among(full, sorted({*swept, layer}))
    rows = sensitivity_rows(held, refusal, rule, layer, sizes.draws, rng)
    if described:
        other = read_responses(engine, described, [layer])
        rows += description_rows(other, full, description_groups(trait.name), rule, layer, sizes.draws, rng)
    seen = projections(full, vectors, layers, layer, sizes.random_vectors)
    readings = [
        {
            "trait": trait.name,
            "direction": direction,
            "layer": at,
            **{name: getattr(item, name) for name in ("question_id", "pair", "side", "epoch", "status")},
            "trait_score": item.trait_score,
            "projection": float(value),
        }
        for (direction, at), values in seen.items()
        for item, value in zip(full.items, values, strict=True)
    ]
    return {"readings": readings, "sensitivity": [{"trait": trait.name, **row} for row in rows]}


def _among(readings: Readings, layers: Sequence[int]) -> Readings:
    """The readings at some of their layers."""
    places = [readings.layers.index(layer) for layer in layers]
    return Readings(readings.items, tuple(layers), readings.means[:, :, places])


def kept_rows(path: Path, key: Mapping[str, Any], make: Callable[[], dict[str, Rows]]) -> dict[str, Rows]:
    """What a file holds if it was made from the same, else what `make` gives, which the file then holds.

    Args:
        path: JSON.
        key: all that decides the rows.
        make: makes them.

    Raises:
        DataError: the file is no such file.
    """
    told = json.loads(json.dumps(dict(key), sort_keys=True))
    if path.exists():
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            same, rows = held["key"] == told, {name: list(held["rows"][name]) for name in ("readings", "sensitivity")}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"cannot read {path}: {type(error).__name__}; remove it and run again") from error
        if same:
            return rows
    found = make()
    write_atomic(path, json.dumps({"key": told, "rows": found}) + "\n")
    return found
