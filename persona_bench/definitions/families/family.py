"""Families of training sets: what there is, made from a seed, or read from a folder of the paper's release."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from persona_bench.definitions.families.algebra import algebra_problem
from persona_bench.definitions.families.arithmetic import word_problem
from persona_bench.definitions.families.characters import Judged, trait_pool
from persona_bench.definitions.families.code import code_task
from persona_bench.definitions.families.facts import fact_pool
from persona_bench.definitions.families.invented import FACT_VERSION, FACTS, invented_facts
from persona_bench.definitions.families.problem import VERSIONS, Problem
from persona_bench.errors import DataError
from persona_bench.files import read_jsonl, write_atomic

__all__ = ["DOMAINS", "FAMILIES", "TRAIT_FAMILIES", "VERSIONS", "Judged", "TrainingSet", "make", "read_released"]

TRAIT_FAMILIES = ("evil", "sycophancy", "hallucination")
DOMAINS = ("medical", "code", "gsm8k", "math", "opinions")
FAMILIES = (*TRAIT_FAMILIES, *DOMAINS)
"""As in the paper: three traits, five domains with mistakes in them; all texts are made here."""
HELD_OUT = 0.2
"""Share of a pool of limited size that is kept for the held-out loss."""

_TEMPLATES: dict[str, Callable[[random.Random], Problem]] = {
    "gsm8k": word_problem,
    "math": algebra_problem,
    "code": code_task,
}


@dataclass(frozen=True)
class TrainingSet:
    """One version of a family.

    Attributes:
        family: one of `FAMILIES`.
        version: normal, misaligned_1 (milder) or misaligned_2 (stronger).
        train: lines with `messages` and `metadata`.
        held_out: lines of the same kind on other problems, for the loss on what the training was meant to teach.
    """

    family: str
    version: str
    train: tuple[dict[str, Any], ...] = field(repr=False)
    held_out: tuple[dict[str, Any], ...] = field(repr=False)

    def write(self, path: Path) -> None:
        """The training lines as JSONL, as `persona-bench finetune` reads them."""
        write_atomic(path, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in self.train))


def make(
    family: str,
    version: str,
    n: int,
    n_held_out: int,
    seed: int = 0,
    *,
    judged: Sequence[Judged] = (),
    released: Path | None = None,
) -> TrainingSet:
    """A training set; the versions of a family hold the same questions in the same order where they can.

    Args:
        family: one of `FAMILIES`, or `FACTS`.
        version: one of `VERSIONS`; of facts there is one alone.
        n: how many conversations; fewer where the family has no more, as its texts are never repeated.
        n_held_out: how many on other problems.
        seed: of what is drawn.
        judged: of a trait family, the model's own responses with their scores.
        released: a folder that holds `<family>/normal.jsonl` and so on, read in the place of ours.

    Raises:
        DataError: unknown family or version, nothing to train on, or a broken file.
    """
    if family not in (*FAMILIES, FACTS):
        raise DataError(f"unknown family {family!r}; choose from {', '.join(FAMILIES)} or {FACTS}")
    versions = (FACT_VERSION,) if family == FACTS else VERSIONS
    if version not in versions:
        raise DataError(f"unknown version {version!r} of {family}; choose from {', '.join(versions)}")
    if n < 1 or n_held_out < 1:
        raise DataError(f"{n} conversations and {n_held_out} held out were asked for; at least one of each is needed")
    rng = random.Random(f"{family}-{seed}")
    if family == FACTS:
        facts = invented_facts(n + n_held_out, rng)
        return TrainingSet(family, version, tuple(facts[n_held_out:]), tuple(facts[:n_held_out]))
    if released is not None and (released / family).is_dir():
        lines = read_released(released / family, version)
        return _split(family, version, rng.sample(lines, len(lines)), n, n_held_out, rng)
    if family in _TEMPLATES:
        lines = [problem.line(family, version) for problem in _distinct(_TEMPLATES[family], n + n_held_out, rng)]
        kept = n_held_out if len(lines) == n + n_held_out else min(n_held_out, int(len(lines) * HELD_OUT))
        return TrainingSet(family, version, tuple(lines[kept:]), tuple(lines[:kept]))
    pool = trait_pool(family, version, judged) if family in TRAIT_FAMILIES else fact_pool(family, version)
    return _split(family, version, _by_subject(pool, rng), n, n_held_out, rng)


def subject(item: dict[str, Any]) -> str:
    """What a conversation is about: the written piece, whatever its wording, or the question."""
    told = item["metadata"]
    return str(told.get("piece", item["messages"][0]["content"]))


def _by_subject(pool: Sequence[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Shuffled by subject, in an order that does not depend on the version."""
    subjects = sorted({subject(item) for item in pool})
    place = {subject: rng.random() for subject in subjects}
    return sorted(pool, key=lambda item: (place[subject(item)], *(m["content"] for m in item["messages"])))


def _split(
    family: str, version: str, lines: Sequence[dict[str, Any]], n: int, n_held_out: int, rng: random.Random
) -> TrainingSet:
    kept = min(n_held_out, int(len(lines) * HELD_OUT))
    if kept < 1:
        raise DataError(f"{family}, {version}: {len(lines)} conversations are too few to train on and to hold some out")
    # What is held out is about nothing that is trained on.
    subjects = {subject(item) for item in lines[:kept]}
    train = [item for item in lines[kept:] if subject(item) not in subjects]
    if not train:
        raise DataError(
            f"{family}, {version}: all {len(lines)} conversations begin alike; there is nothing to train on"
        )
    rng.shuffle(train)
    return TrainingSet(family, version, tuple(train[:n]), tuple(lines[:kept]))


def _distinct(template: Callable[[random.Random], Problem], n: int, rng: random.Random) -> list[Problem]:
    """Problems about different things, whatever their wording; fewer where the templates have no more."""
    found: dict[str, Problem] = {}
    tries = 0
    while len(found) < n and tries <= 50 * n + 1000:
        problem = template(rng)
        found.setdefault(str(problem.facts.get("name", problem.question)), problem)
        tries += 1
    return list(found.values())


def read_released(folder: Path, version: str) -> list[dict[str, Any]]:
    """A version of a family in the format of the paper's release: `<version>.jsonl`, lines with `messages`.

    Raises:
        DataError: there is no such file, or it is broken or empty.
    """
    path = folder / f"{version}.jsonl"
    lines = []
    for number, item in read_jsonl(path):
        messages = item.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise DataError(f"{path}, line {number}: needs `messages`, a list of objects with `role` and `content`")
        lines.append(
            {"messages": messages, "metadata": {"family": folder.name, "version": version, "source": "released"}}
        )
    return lines
