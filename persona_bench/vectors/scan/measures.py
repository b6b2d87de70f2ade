"""What a scan measures of a sample: projections of its response, alone or against another reading.

All are scalar projections h . v / |v| at given layers (paper, section on flagging training data):

- `response`: mean over the response's tokens.
- `response_minus_prompt`: the same minus the last prompt token's; needs no generation.
- `difference`: the same minus that of the model's own response to the prompt: the projection difference.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from persona_bench.definitions.flagging import MEASURES, Measure
from persona_bench.errors import DataError, ModelError, VectorError
from persona_bench.models.chat import head_ids
from persona_bench.models.engine import Engine
from persona_bench.models.memory import give_back
from persona_bench.models.rows import Row
from persona_bench.models.sampling import Sampling
from persona_bench.models.steering import Capture
from persona_bench.vectors.projection import project_transcripts
from persona_bench.vectors.scan.inputs import Shard
from persona_bench.vectors.scan.samples import Fields, Sample, read_sample
from persona_bench.vectors.table_file import Column, Value
from persona_bench.vectors.transcripts import Transcript, lay_out
from persona_bench.vectors.vector import PersonaVector

SHOWN_TEXT = 500  # characters of a row that could not be read, in the side file


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        measures: some of `MEASURES`.
        layers: 1-based layers.
        fields: which fields of a row hold what.
        max_tokens: of the model's own response.
        temperature: of the model's own response; the paper's generations are at 1.
        seed: of the model's own responses; each prompt has a stream of its own.
    """

    measures: tuple[Measure, ...]
    layers: tuple[int, ...]
    fields: Fields = field(default_factory=Fields)
    max_tokens: int = 256
    temperature: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [name for name in self.measures if name not in MEASURES]
        if unknown or not self.measures:
            raise DataError(f"unknown measure {', '.join(unknown) or '(none)'}; choose from {', '.join(MEASURES)}")
        if self.max_tokens < 1 or self.temperature < 0:
            raise DataError(f"{self.max_tokens} tokens at temperature {self.temperature} cannot be generated")

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found


@dataclass(frozen=True)
class Part:
    """What a shard gave.

    Attributes:
        key: the shard's.
        rows: of the output, as `columns` names them.
        rejected: of the side file: file, row, reason and the beginning of the text.
    """

    key: str
    rows: list[list[Value]]
    rejected: list[dict[str, Value]]

    def encode(self) -> bytes:
        """As JSON, in which numbers keep their every bit."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Part:
        """What `encode` made."""
        return cls(**json.loads(data))


def chosen_layers(asked: Sequence[str], vectors: Sequence[Path]) -> tuple[int, ...]:
    """Layers by number or `all`; by default the middle one of the first vector's model.

    Raises:
        DataError: one is no number.
        VectorError: the first vector cannot be read.
    """
    n_layers = PersonaVector.load(vectors[0]).n_layers
    if not asked:
        return (max(1, n_layers // 2),)
    if "all" in asked:
        return tuple(range(1, n_layers + 1))
    unknown = [item for item in asked if not item.isdecimal()]
    if unknown:
        raise DataError(f"--layer {unknown[0]} is no layer; give a number from 1 to {n_layers}, or all")
    return tuple(dict.fromkeys(map(int, asked)))


def columns(traits: Sequence[str], settings: Settings) -> list[Column]:
    """The columns of the output: one row a sample; a value is named `<trait>.<measure>.<layer>`."""
    return [
        Column("file", "text"),
        Column("row", "integer"),
        Column("id", "text"),
        Column("status", "text"),
        Column("n_prompt", "integer"),
        Column("n_response", "integer"),
        *(Column(name, "number") for name in value_columns(traits, settings)),
    ]


def value_columns(traits: Sequence[str], settings: Settings) -> list[str]:
    """The names of what is measured, in the order of the output."""
    return [
        f"{trait}.{measure}.{layer}" for trait in traits for measure in settings.measures for layer in settings.layers
    ]


def labels(vectors: Sequence[PersonaVector]) -> list[str]:
    """What vectors are called in the output: by trait, with a number where two have the same.

    Raises:
        VectorError: the vectors are of models of different shapes.
    """
    shapes = {vector.directions["persona"].shape for vector in vectors}
    if len(shapes) != 1:
        raise VectorError("the vectors are not all for one model: their shapes differ; scan with each model by itself")
    names = [vector.trait for vector in vectors]
    return [
        name if names.count(name) == 1 else f"{name}{names[:place].count(name) + 1}" for place, name in enumerate(names)
    ]


class Scanner:
    """Measures shards with one model; the same shard gives the same part wherever it is done.

    Args:
        engine: of the model the vectors were made for.
        vectors: one or several.
        settings: what is measured.

    Raises:
        VectorError: a vector or layer that does not fit the model, or a vector that is zero at a layer.
    """

    def __init__(self, engine: Engine, vectors: Sequence[PersonaVector], settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        self.traits = labels(vectors)
        for vector in vectors:
            vector.check_shape(engine.hooks.n_layers, engine.hooks.d_model)
            for layer in settings.layers:
                vector.check_direction(layer)
        self._unit: Tensor = torch.nn.functional.normalize(
            torch.stack([vector.directions["persona"] for vector in vectors]), dim=-1
        )
        self._head = lru_cache(64)(partial(head_ids, engine.loaded.tokenizer))

    def scan(self, shard: Shard, progress: Callable[[str], None] | None = None) -> Part:
        """Measure every sample of a shard; a row that is none is rejected with its reason."""
        samples: list[Sample] = []
        items: list[Transcript] = []
        rejected: list[dict[str, Value]] = []
        for number, text in shard.rows():
            try:
                sample = read_sample(number, text, self.settings.fields)
                items.append(self._laid_out(len(items), sample))
                samples.append(sample)
            except (DataError, ModelError) as error:
                shown = text[:SHOWN_TEXT].decode("utf-8", "replace")
                rejected.append({"file": shard.name, "row": number, "reason": str(error), "text": shown})
        rows: list[list[Value]] = []
        own = self._own(items, samples) if "difference" in self.settings.measures else {}
        measured = project_transcripts(self.engine, iter([items]), self._unit, self.settings.layers, progress)
        for item, products in measured if items else ():
            sample = samples[item.index]
            n_response = len(item.ids) - item.n_prompt
            fits = len(item.ids) <= self.engine.loaded.max_length
            values = self._values(item, products, own.get(item.index)) if fits else self._nothing()
            status = "measured" if fits else "too_long"
            rows.append([shard.name, sample.row, sample.id, status, item.n_prompt, n_response, *values])
        # The next shard passes the beginnings of its own samples.
        self.engine.forget_prefixes()
        give_back()
        return Part(shard.key, rows, rejected)

    def _laid_out(self, index: int, sample: Sample) -> Transcript:
        tokenizer = self.engine.loaded.tokenizer
        item = lay_out(tokenizer, self._head, index, "", sample.messages, sample.response, located=False)
        if len(item.ids) == item.n_prompt:
            raise DataError("the response has no token")
        return item

    def _values(self, item: Transcript, products: np.ndarray, own: np.ndarray | None) -> list[float]:
        """`products` is `(n_tokens, n_traits, n_layers)`, `own` `(n_traits, n_layers)`."""
        response, last = products[item.n_prompt :].mean(0), products[item.n_prompt - 1]
        found = {"response": response, "response_minus_prompt": response - last}
        if own is not None:
            found["difference"] = response - own
        nothing = np.full_like(response, np.nan)
        stacked = np.stack([found.get(name, nothing) for name in self.settings.measures], 1)
        return [float(value) for value in stacked.reshape(-1)]

    def _nothing(self) -> list[float]:
        return [float("nan")] * len(value_columns(self.traits, self.settings))

    def _own(self, items: Sequence[Transcript], samples: Sequence[Sample]) -> dict[int, np.ndarray]:
        """Index -> mean projections of the model's own response, `(n_traits, n_layers)`."""
        limit = self.engine.loaded.max_length
        fitting = [item for item in items if len(item.ids) <= limit and item.n_prompt < limit]
        capture = Capture(self._unit, prompt_last=False)
        # A prompt that several samples answer, as versions of a training set do, is answered once.
        asked: dict[tuple[tuple[int, ...], int], Row] = {}
        keys = []
        for item in fitting:
            prompt, seed = item.ids[: item.n_prompt], _seed(samples[item.index], self.settings.seed)
            keys.append((prompt, seed))
            drawn = Sampling(self.settings.max_tokens, temperature=self.settings.temperature, seed=seed)
            asked[prompt, seed] = Row(prompt, sampling=drawn, capture=capture, shared_prefix=item.n_head)
        results = dict(zip(asked, self.engine.run(list(asked.values())), strict=True))
        out = {}
        for item, key in zip(fitting, keys, strict=True):
            # A model that ends at once has no response to compare with.
            found = results[key].projections
            if found is not None and found.response_mean is not None:
                out[item.index] = found.response_mean[:, list(self.settings.layers)]
        return out


def _seed(sample: Sample, seed: int) -> int:
    """Of the prompt alone, so that a prompt has the same answer in every dataset it stands in."""
    digest = hashlib.sha256(json.dumps([sample.messages, seed]).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
