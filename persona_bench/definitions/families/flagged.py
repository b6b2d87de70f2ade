"""Samples that are flagged one by one, and what any sample is about."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Mapping
from typing import Any

from persona_bench.definitions.families.characters import trait_pool
from persona_bench.definitions.families.family import TRAIT_FAMILIES, make


def flagged_samples(family: str, version: str, n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Lines of a family's version, at most `n`, made without a model's help.

    Of a trait family these are labelled answers: the model's own responses, from which its vector was made, would be
    found by that vector whatever it is worth. Those of the report half, by which nothing was calibrated, come first and
    say so (`half` in the metadata). Those of the other half, and of families without a trait, may stand in training
    sets too: flagging reads the model before any training.

    Args:
        family: of training sets.
        version: of the family.
        n: at most; the questions come in the same order for every version.
        seed: of the order.
    """
    if family not in TRAIT_FAMILIES:
        return list(make(family, version, n, 1, seed).train)
    found: list[dict[str, Any]] = []
    for half, name in (("report", "report"), ("calibrate", "select")):
        pool = trait_pool(family, version, halves=(half,))
        place = {about: random.Random(f"{seed} {about}").random() for about in {subject(line) for line in pool}}
        ranked = sorted(pool, key=lambda line: (place[subject(line)], line["messages"][-1]["content"]))
        found += [{**line, "metadata": {**line["metadata"], "half": name}} for line in ranked]
    return found[:n]


def subject(line: Mapping[str, Any]) -> str:
    """What a sample is about, which several may share: its written piece, its function, or its question."""
    told = line.get("metadata") or {}
    about = told.get("piece", told.get("name"))
    if about is not None and "family" in told:
        return f"{told['family']} {about}"
    return next((str(turn["content"]) for turn in line["messages"] if turn["role"] == "user"), "")


def split_subjects(subjects: Iterable[str]) -> dict[str, str]:
    """Subject -> `select` or `report`, every other one in an order that means nothing."""
    ranked = sorted(set(subjects), key=lambda name: hashlib.sha256(name.encode()).hexdigest())
    return {name: ("report", "select")[place % 2] for place, name in enumerate(ranked)}
