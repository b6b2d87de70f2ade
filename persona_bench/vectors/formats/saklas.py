"""saklas profiles: a safetensors file of layer_{i}, i a block counted from 0, and a JSON file of the same name."""

from __future__ import annotations

import json
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from persona_bench.errors import VectorError
from persona_bench.files import atomic_path
from persona_bench.vectors.formats.foreign import (
    MAX_LAYERS,
    MAX_NUMBERS,
    About,
    Answers,
    Found,
    as_row,
    as_trait,
    check_file,
    plain_facts,
    read_json,
    refuse,
    settle_layers,
    shown,
)

VERSION = 6


def read(path: Path, answers: Answers) -> Found:
    """Read a profile.

    Raises:
        VectorError: it is none, or of a version that is not known.
    """
    check_file(path)
    rows = {}
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if len(names) > MAX_LAYERS:
                refuse(path, f"holds {len(names)} tensors, more than a model has layers")
            for name in names:
                number = re.fullmatch(r"layer_(\d{1,4})", name)
                if number is None:
                    refuse(path, f"tensor {shown(name)!r} is no layer_I of a saklas profile, and no vector of ours")
                rows[int(number[1]) + 1] = as_row(path, name, file.get_tensor(name))
    except (SafetensorError, OSError) as error:
        raise VectorError(f"{path}: a broken safetensors file ({shown(str(error), 200)})") from error
    if not rows:
        refuse(path, "holds no layer_I")
    if len({row.numel() for row in rows.values()}) > 1:
        refuse(path, "its layers have different widths; it belongs to no one model")
    facts = _side_file(path, answers)
    n_layers = settle_layers(path, answers, sorted(rows))
    if (n_layers + 1) * next(iter(rows.values())).numel() > MAX_NUMBERS:
        refuse(path, "too large for a vector")
    notes = ["its lengths carry each layer's share of the steering, not a difference of means"]
    return Found("saklas", rows, n_layers, as_trait(path.stem), notes, facts)


def _side_file(path: Path, answers: Answers) -> dict[str, object]:
    beside = path.with_suffix(".json")
    if beside.is_file():
        held = read_json(beside)
        if held.get("format_version") == VERSION or answers.source:
            return plain_facts(held)
        said = f"{beside.name} says format_version {shown(held.get('format_version'), 20)}, {VERSION} is known"
    else:
        said = f"there is no {beside.name} beside it"
    if answers.source:
        return {}
    refuse(
        path,
        f"{said}: is layer_I the residual stream after block I, counted from 0? If so, answer with --from saklas",
    )


def write(about: About, path: Path) -> list[str]:
    """Write a profile and its side file; returns what is lost."""
    layers = about.layers(1)
    tensors = {f"layer_{layer - 1}": about.direction[layer].clone() for layer in layers}
    side = {
        "format_version": VERSION,
        "method": "persona-bench",
        "name": about.trait,
        "model": about.model or "unknown",
    }
    with atomic_path(path.with_suffix(".json")) as beside, atomic_path(path) as temporary:
        beside.write_text(json.dumps(side, indent=2) + "\n", encoding="utf-8")
        temporary.write_bytes(save(tensors))
    return ["the embedding's row"]
