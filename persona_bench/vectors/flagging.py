"""Samples measured before any training: written to files, scanned as any dataset is, ranked; drawn from a corpus."""

from __future__ import annotations

import hashlib
import heapq
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from persona_bench.definitions.flagging import MEASURES, PICKS
from persona_bench.definitions.trials import RANDOM_DIRECTIONS
from persona_bench.errors import DataError, ModelError, RunError
from persona_bench.files import write_atomic
from persona_bench.models.chat import prompt_ids
from persona_bench.vectors.scan.inputs import find_sources, read_shards
from persona_bench.vectors.scan.measures import Settings
from persona_bench.vectors.scan.run import Say, Scan, plan_scan, run_scan
from persona_bench.vectors.scan.samples import Fields, read_sample
from persona_bench.vectors.table_file import table_rows
from persona_bench.vectors.vector import PersonaVector

PROMPT_TOKENS = 512
"""Longest prompt of a real conversation, as in the paper's section on real data."""


@dataclass(frozen=True)
class Row:
    """One measured sample.

    Attributes:
        line: as it was scanned, with `id`, `messages` and `metadata`.
        status: measured, or too_long.
        values: direction (a trait, or `random:K trait`) -> measure -> projection; NaN where there is none.
    """

    line: Mapping[str, Any]
    status: str
    values: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Measured:
    """A scan that is done and its rows."""

    scan: Scan
    summary: Mapping[str, Any]
    rows: tuple[Row, ...]


def measure(
    model: str,
    vectors: Mapping[str, tuple[Path, int]],
    lines: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    max_tokens: int,
    temperature: float,
    seed: int = 0,
    loading: Mapping[str, str | None] | None = None,
    say: Say = lambda _: None,
) -> Measured:
    """Scan lines for every measure, or take the scan that is there.

    Args:
        model: as `loading.load` takes it.
        vectors: trait -> (file, 1-based layer).
        lines: with `id`, `messages` and `metadata`; an id is there once.
        folder: gets `samples.jsonl`, the random directions and the scan, which other arguments make anew.
        max_tokens: of the model's own response.
        temperature: of the model's own response.
        seed: of the model's own responses.
        loading: dtype, device and revision, where they are not the default.
        say: told about progress.

    Raises:
        PersonaBenchError: as `plan_scan` and `run_scan`.
    """
    source = folder / "samples.jsonl"
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    # A file that stays as it is keeps its scan.
    if not source.is_file() or source.read_bytes() != text.encode():
        write_atomic(source, text)
    settings = Settings(
        MEASURES,
        tuple(sorted({layer for _, layer in vectors.values()})),
        Fields(id="id"),
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )
    files = [file for file, _ in vectors.values()]
    planned = plan_scan(
        model, [*files, *_random_files(files[0], folder)], [str(source)], folder / "scan.parquet", settings, loading
    )
    scan = replace(planned, target=folder / f"scan-{planned.fingerprint[:12]}.parquet")
    summary = run_scan(scan, say=say)
    names = dict(zip([*vectors, *RANDOM_DIRECTIONS], scan.traits, strict=True))
    return Measured(scan, summary, tuple(_rows(scan.target, names, vectors, lines)))


def _random_files(vector: Path, folder: Path) -> Iterable[Path]:
    """Files whose directions are the random ones of a vector's model."""
    held = PersonaVector.load(vector)
    for name in RANDOM_DIRECTIONS:
        made = PersonaVector(name, {"persona": held.direction(name)}, held.residual_norms, {"counts": {}})
        path = folder / f"random-{made.hash[:12]}.safetensors"
        if not path.is_file():
            made.save(path)
        yield path


def _rows(
    table: Path,
    names: Mapping[str, str],
    vectors: Mapping[str, tuple[Path, int]],
    lines: Sequence[Mapping[str, Any]],
) -> Iterable[Row]:
    """Each trait at its own layer, and the random directions at every trait's (`random:K trait`)."""
    wanted = {
        (label, measure): f"{names[direction]}.{measure}.{layer}"
        for trait, (_, layer) in vectors.items()
        for label, direction in ((trait, trait), *((f"{name} {trait}", name) for name in RANDOM_DIRECTIONS))
        for measure in MEASURES
    }
    by_id = {str(line["id"]): line for line in lines}
    columns = list(dict.fromkeys(wanted.values()))
    for part in table_rows(table, ["id", "status", *columns]):
        for name, status, *numbers in part:
            found = dict(zip(columns, numbers, strict=True))
            values: dict[str, dict[str, float]] = {}
            for (label, measure), column in wanted.items():
                number = found[column]
                values.setdefault(label, {})[measure] = math.nan if number is None else float(number)
            yield Row(by_id[str(name)], str(status), values)


def picked(
    rows: Sequence[Row], trait: str, pick: str, n: int, seed: int = 0, keep: frozenset[str] | None = None
) -> list[Row]:
    """The `n` samples with the highest or lowest projection difference, or as many at random.

    Args:
        rows: measured samples; those without a projection difference are left out.
        trait: whose vector ranks.
        pick: one of `PICKS`.
        n: how many.
        seed: of the random ones.
        keep: ids to choose among; by default all.

    Raises:
        RunError: unknown pick, or so few samples that the highest and the lowest would be the same ones.
    """
    if pick not in PICKS:
        raise RunError(f"unknown pick {pick!r}; choose from {', '.join(PICKS)}")
    usable = [
        row
        for row in rows
        if not math.isnan(row.values[trait]["difference"]) and (keep is None or row.line["id"] in keep)
    ]
    if len(usable) < 2 * n:
        raise RunError(
            f"{len(usable)} samples with a projection difference are too few for {n} at either end; give more samples"
        )
    ordered = sorted(usable, key=lambda row: (row.values[trait]["difference"], row.line["id"]))
    if pick == "random":
        return random.Random(f"{seed} {trait}").sample(ordered, n)
    return ordered[-n:] if pick == "top" else ordered[:n]


def draw_corpus(inputs: Sequence[str], n: int, tokenizer: Any, seed: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Conversations of one turn from files of real ones, at most `n`, and how many rows were left out.

    As in the paper, the first turn is taken, and prompts over `PROMPT_TOKENS` tokens are left out. The draw is even
    over all rows and does not hang on their order: every row has a place by its content. Memory holds `n` of them.

    Args:
        inputs: as `scan` takes them.
        n: at most.
        tokenizer: the model's.
        seed: of the draw.

    Raises:
        DataError, AssetError: the files cannot be had, or hold no conversation.
    """
    fields, left_out = Fields(turn="first"), 0
    kept: list[tuple[_Last, int, int, dict[str, Any]]] = []
    for source in find_sources(inputs):
        for shard in read_shards(source, fields.columns):
            for number, text in shard.rows():
                place = hashlib.sha256(f"{seed} ".encode() + text).hexdigest()
                if len(kept) == n and place >= kept[0][0].place:
                    continue  # only what would be kept is parsed and laid out
                try:
                    sample = read_sample(number, text, fields)
                    fits = len(prompt_ids(tokenizer, sample.messages)) <= PROMPT_TOKENS
                except (DataError, ModelError):
                    fits = False
                if not fits:
                    left_out += 1
                    continue
                turns = [*sample.messages, {"role": "assistant", "content": sample.response}]
                line = {"id": f"{source.name}:{number}", "messages": turns, "metadata": {"family": "corpus"}}
                heapq.heappush(kept, (_Last(place), source.number, number, line))
                if len(kept) > n:
                    heapq.heappop(kept)
    if not kept:
        raise DataError(f"{', '.join(inputs)}: no conversation with a prompt of up to {PROMPT_TOKENS} tokens")
    return [item[-1] for item in sorted(kept, key=lambda item: item[0].place)], left_out


@dataclass(frozen=True)
class _Last:
    """A place in reverse order, so that the heap gives up the last."""

    place: str

    def __lt__(self, other: _Last) -> bool:
        return self.place > other.place
