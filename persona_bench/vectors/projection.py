"""Transcripts -> scalar projections on a persona vector, by teacher forcing and in constant memory."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from persona_bench.errors import DataError, VectorError
from persona_bench.files import atomic_path, read_jsonl
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.engine import Engine, Row
from persona_bench.models.steering import Capture
from persona_bench.vectors.vector import PersonaVector

COLUMNS = ("index", "layer", "prompt_last", "prompt_avg", "response_avg")
CHUNK = 64


def transcript(item: Mapping[str, Any], where: str) -> tuple[list[dict[str, str]], str]:
    """(conversation, last assistant message) of a line `{"messages": [{"role", "content"}, ...]}`.

    Raises:
        DataError: naming what is missing.
    """
    messages = item.get("messages")
    if not isinstance(messages, list) or len(messages) < 2:
        raise DataError(f"{where}: needs `messages`, a list of at least a user and an assistant message")
    for message in messages:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise DataError(f"{where}: every message needs `role` and `content` as text")
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"]:
        raise DataError(f"{where}: the last message must be a non-empty assistant message")
    return messages[:-1], messages[-1]["content"]


def project_file(
    engine: Engine,
    vector: PersonaVector,
    source: Path,
    target: Path,
    layer: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> int:
    """Project every transcript of a JSONL file and write the CSV; returns how many transcripts it held.

    Values are scalar projections h . v / |v| of the last prompt token, the prompt's mean and the response's mean.

    Raises:
        VectorError: the layer is outside the vector, or the vector was made for a model of another shape.
        DataError: the input is broken, or the output cannot be written.
    """
    if (vector.n_layers, vector.directions["persona"].shape[1]) != (engine.hooks.n_layers, engine.hooks.d_model):
        raise VectorError(
            f"this vector has {vector.n_layers} layers of width {vector.directions['persona'].shape[1]}, the model has "
            f"{engine.hooks.n_layers} of {engine.hooks.d_model}; was it made for another model?"
        )
    layers = range(1, vector.n_layers + 1) if layer is None else (layer,)
    for each in layers:
        vector.check_layer(each)
    unit = torch.nn.functional.normalize(vector.directions["persona"], dim=-1)[None]
    capture = Capture(unit, prompt_mean=True)
    tokenizer = engine.loaded.tokenizer
    lines = read_jsonl(source)
    done = 0
    with atomic_path(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        while chunk := list(islice(lines, CHUNK)):
            rows = []
            for number, item in chunk:
                messages, response = transcript(item, f"{source}, line {number}")
                rows.append(Row(prompt_ids(tokenizer, messages), response_ids(tokenizer, response), capture=capture))
            for offset, result in enumerate(engine.run(rows)):
                found = result.projections
                assert found is not None and found.prompt_last is not None
                assert found.prompt_mean is not None and found.response_mean is not None
                for each in layers:
                    values = (found.prompt_last, found.prompt_mean, found.response_mean)
                    writer.writerow([done + offset, each, *(f"{float(value[0, each]):.6g}" for value in values)])
            done += len(chunk)
            if progress is not None:
                progress(f"{done} transcripts")
    return done
