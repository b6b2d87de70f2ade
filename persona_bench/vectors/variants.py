"""The vectors that other descriptions, other questions and no filter give, and what the responses tell read again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persona_bench.definitions.descriptions import description_groups
from persona_bench.definitions.outcomes import AnyFilter, Filter
from persona_bench.definitions.presets import MethodSizes
from persona_bench.definitions.question_sets import question_sets
from persona_bench.definitions.traits import Trait
from persona_bench.errors import DataError, ExtractionError
from persona_bench.files import write_atomic
from persona_bench.models.engine import Engine
from persona_bench.vectors.extraction import Rollout, differing, extract, refusal_direction
from persona_bench.vectors.readings import Readings, projections, read_responses
from persona_bench.vectors.sensitivity import group_rows, sensitivity_rows
from persona_bench.vectors.vector import PersonaVector

RAW = "raw"
Rows = list[dict[str, Any]]


SETS = "sets"
"""All question sets together; `questions:K` is one of them."""


@dataclass(frozen=True)
class Responses:
    """What was elicited of a trait.

    Attributes:
        own: the run's responses.
        described: those under other descriptions, whose number is the `pair` of a response; may be empty.
        asked: those to other questions, whose place in the pool is the `question_id`; may be empty.
    """

    own: Sequence[Rollout]
    described: Sequence[Rollout] = ()
    asked: Sequence[Rollout] = ()


def description_parts(trait: Trait) -> dict[str, list[frozenset[int]]]:
    """Name -> the descriptions in it, each by itself."""
    return {name: [frozenset({one}) for one in members] for name, members in description_groups(trait.name).items()}


def question_parts(trait: Trait, sizes: MethodSizes, seed: int) -> dict[str, list[frozenset[int]]]:
    """Name -> the question sets in it: each by itself, and all."""
    drawn = question_sets(trait, sizes, seed)
    return {SETS: list(drawn), **{f"questions:{number}": [ids] for number, ids in enumerate(drawn)}}


def plan_variants(trait: Trait, said: Responses, sizes: MethodSizes, seed: int) -> Iterator[tuple[str, list[Rollout]]]:
    """The responses behind each vector that is steered with, by its name.

    Args:
        trait: of the vectors.
        said: what was elicited.
        sizes: of the preset.
        seed: of the question sets.
    """
    for name, members in description_groups(trait.name).items():
        if name.split(":")[0] in sizes.steered:
            yield name, [item for item in said.described if item.pair in members]
    for name, parts in question_parts(trait, sizes, seed).items():
        if name.split(":")[0] in sizes.steered:
            yield name, [item for item in said.asked if item.question_id in parts[0]]


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
        if path.exists():
            why = differing(PersonaVector.load(path), log_ids, trait, rule)
            if not why:
                made[name] = path
                continue
            say(f"making {path} anew: it was made with {why}")
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
    said: Responses,
    vectors: Mapping[str, PersonaVector],
    layers: Mapping[str, int],
    swept: Sequence[int],
    *,
    rule: Filter,
    sizes: MethodSizes,
    seed: int,
) -> dict[str, Rows]:
    """One pass over a trait's responses, and one over those otherwise elicited, as rows without a log.

    Args:
        engine: the model.
        trait: of the responses.
        said: what was elicited.
        vectors: of every trait of the run.
        layers: trait -> chosen layer, of this trait and of every vector.
        swept: the layers that are compared.
        rule: the run's filter.
        sizes: of the preset.
        seed: of subsets, and of the question sets.

    Returns:
        `readings` and `sensitivity`.
    """
    layer = layers[trait.name]
    wanted = sorted({*swept, *layers.values()})
    full = read_responses(engine, said.own, wanted)
    known = [vector.directions["refusal"][layer] for vector in vectors.values() if "refusal" in vector.directions]
    refusal = known[0].double().numpy() if known else refusal_direction(engine)[layer].astype(np.float64)
    rng = np.random.default_rng(seed)
    held = _among(full, sorted({*swept, layer}))
    rows = sensitivity_rows(held, refusal, rule, layer, sizes.draws, rng)
    for aspect, otherwise, groups in (
        ("description", said.described, description_parts(trait)),
        ("questions", said.asked, question_parts(trait, sizes, seed)),
    ):
        if otherwise:
            other = read_responses(engine, otherwise, [layer])
            rows += group_rows(aspect, other, full, groups, rule, layer, sizes.draws, rng)
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
