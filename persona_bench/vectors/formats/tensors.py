"""Vectors in PyTorch files: the paper's release, hidden-directions, assistant-axis and darkfield."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from persona_bench.errors import VectorError
from persona_bench.files import atomic_path
from persona_bench.vectors.formats.foreign import (
    MAX_LAYERS,
    About,
    Answers,
    Found,
    as_row,
    as_rows,
    as_trait,
    plain_facts,
    read_json,
    refuse,
    settle_layers,
    shown,
)
from persona_bench.vectors.formats.tensor_file import load_tensors

NAMES = ("official", "hidden-directions", "assistant-axis", "darkfield")
POSITIONS = ("response_avg", "prompt_last", "prompt_avg")  # of the paper's files, `<trait>_<position>_diff.pt`
MANIFEST = "manifest.json"
TOWARD_ASSISTANT = (
    "an assistant-axis file points towards the Assistant: which way is the trait? Answer with --sign keep (the trait "
    "is being the Assistant) or --sign flip (the trait is what leads away from it)"
)


def read(path: Path, answers: Answers) -> Found:
    """Read a vector from a file of `torch.save`.

    Raises:
        VectorError: it is none of these, broken, or the user has to say more.
    """
    held = load_tensors(path)
    if isinstance(held, Tensor):
        made = _bare(path, held, answers)
    elif isinstance(held, dict) and isinstance(held.get("axis"), Tensor):
        made = _axis(path, held, answers)
    elif isinstance(held, dict) and isinstance(held.get("vector"), Tensor) and "layer" in held:
        made = _darkfield(path, held, answers)
    else:
        keys = ", ".join(shown(key, 30) for key in list(held)[:5]) if isinstance(held, dict) else type(held).__name__
        refuse(
            path,
            f"holds {keys or 'nothing'}; a vector is a tensor (layers, d_model), or a dict with `axis` "
            "(assistant-axis) or with `vector` and `layer` (darkfield)",
        )
    if answers.source and answers.source != made.format:
        refuse(path, f"laid out as {made.format}, not as {answers.source}; leave --from out")
    return made


def _bare(path: Path, value: Tensor, answers: Answers) -> Found:
    if value.dim() == 1:
        return _single(path, value, answers)
    rows = as_rows(path, "the tensor", value, 0)
    listed = {} if answers.source == "official" else _listed(path, len(rows), value.shape[1])
    source = answers.source or ("hidden-directions" if listed else "")
    if not source and answers.n_layers is None:
        refuse(
            path,
            f"holds {len(rows)} rows of width {value.shape[1]} and nothing says whether the first is the embedding: "
            f"how many decoder blocks does its model have? Answer with --model M, or with --n-layers {len(rows) - 1} "
            f"(the first row is the embedding) or --n-layers {len(rows)} (the first row is layer 1)",
        )
    if not source:
        by_rows = {answers.n_layers: "hidden-directions", (answers.n_layers or 0) + 1: "official"}
        source = by_rows.get(len(rows), "")
    first = 0 if source == "official" else 1
    n_layers = len(rows) - 1 + first
    if not source or answers.n_layers not in (None, n_layers) or not n_layers:
        layout = f"{len(rows)} rows, which {source} files have for {n_layers} layers" if source else f"{len(rows)} rows"
        refuse(path, f"holds {layout}; the model has {answers.n_layers}: is it the one the vector was made from?")
    notes = [
        f"layer {n_layers}, the last, was read after the model's final norm, so it is no direction of the residual "
        "stream: it is kept, choose another layer to steer"
    ]
    trait, facts = path.stem, plain_facts(listed)
    if source == "hidden-directions":
        return Found(source, {layer + 1: row for layer, row in rows.items()}, n_layers, as_trait(trait), notes, facts)
    for position in POSITIONS:
        if trait.endswith(f"_{position}_diff"):
            trait, facts = trait.removesuffix(f"_{position}_diff"), {"position": position}
            break
    return Found("official", rows, n_layers, as_trait(trait), notes, facts)


def _single(path: Path, value: Tensor, answers: Answers) -> Found:
    """One direction without a word on its layer."""
    if answers.source:
        refuse(path, f"holds one direction, {answers.source} files hold one a layer; leave --from out and name --layer")
    if answers.layer is None or answers.n_layers is None:
        refuse(
            path,
            "holds one direction and does not say of which layer: the residual stream after how many blocks? "
            "Answer with --layer L (from 1), and --model M or --n-layers N",
        )
    rows = {answers.layer: as_row(path, "the tensor", value)}
    return Found("one direction", rows, settle_layers(path, answers, list(rows)), as_trait(path.stem))


def _listed(path: Path, n_rows: int, width: int) -> Mapping[str, Any]:
    """What a hidden-directions manifest in the same folder says of this file, {} where there is none or it does not."""
    beside = path.parent / MANIFEST
    entries = read_json(beside).get("directions") if beside.is_file() else None
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and entry.get("name") == path.stem:
            told = entry.get("shape", [n_rows, width])
            if told != [n_rows, width]:
                sizes = f"[{', '.join(map(shown, told[:4]))}]" if isinstance(told, list) else shown(told)
                refuse(path, f"{beside} lists it with shape {sizes}, it has {[n_rows, width]}")
            return entry
    return {}


def _axis(path: Path, held: Mapping[Any, Any], answers: Answers) -> Found:
    if not answers.sign:
        refuse(path, TOWARD_ASSISTANT)
    rows = as_rows(path, "axis", held["axis"], 1)
    n_layers = settle_layers(path, answers, list(rows), told=len(rows))
    way = "towards" if answers.sign == "keep" else "away from"
    notes = [f"a positive coefficient leads {way} the Assistant, as --sign {answers.sign} says"]
    facts = held.get("metadata")
    return Found(
        "assistant-axis",
        rows,
        n_layers,
        as_trait(path.stem),
        notes,
        plain_facts(facts) if isinstance(facts, dict) else {},
    )


def _darkfield(path: Path, held: Mapping[Any, Any], answers: Answers) -> Found:
    layer = held["layer"]
    if not isinstance(layer, int) or isinstance(layer, bool) or not 1 <= layer <= MAX_LAYERS:
        refuse(path, f"its layer is {shown(layer, 40)!r}; one that can be steered is a number from 1 to {MAX_LAYERS}")
    rows = {layer: as_row(path, "vector", held["vector"])}
    n_layers = settle_layers(path, answers, list(rows))
    notes = ["the direction has length one, not that of a difference of means: coefficients mean another strength"]
    if layer == n_layers:
        notes.append(f"layer {layer}, the last, was read after the model's final norm; choose another layer to steer")
    name = held.get("name")
    return Found(
        "darkfield",
        rows,
        n_layers,
        as_trait(name[:60] if isinstance(name, str) else path.stem),
        notes,
        plain_facts(held),
    )


# --- out --------------------------------------------------------------------------------------------------------------


def _save(held: Any, path: Path) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        torch.save(held, file)


def write_official(about: About, path: Path) -> list[str]:
    """`(n_layers + 1, d_model)` float32, as the paper's code saves it; returns what is lost."""
    _whole(about, path, "official")
    _save(about.direction.clone(), path)
    return []


def write_hidden_directions(about: About, path: Path) -> list[str]:
    """`(n_layers, d_model)` float32 and its entry in the folder's manifest.json; returns what is lost."""
    _whole(about, path, "hidden-directions")
    beside = path.parent / MANIFEST
    new: dict[str, Any] = {"model": about.model or "unknown", "directions": []}
    manifest = read_json(beside) if beside.exists() else new
    entries = manifest.get("directions")
    if not isinstance(entries, list) or about.model and manifest.get("model") not in (about.model, "unknown"):
        refuse(beside, f"a manifest of something else, which {path.name} cannot be added to; choose another folder")
    others = [item for item in entries if not (isinstance(item, dict) and item.get("name") == path.stem)]
    shape = [about.n_layers, int(about.direction.shape[1])]
    manifest["directions"] = [*others, {"name": path.stem, "shape": shape, "dtype": "torch.float32"}]
    with atomic_path(beside) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _save(about.direction[1:].clone(), path)
    return ["the embedding's row"]


def write_assistant_axis(about: About, path: Path) -> list[str]:
    """`{"axis": (n_layers, d_model), "metadata"}`; returns what is lost."""
    _whole(about, path, "assistant-axis")
    _save({"axis": about.direction[1:].clone(), "metadata": {"trait": about.trait, "model": about.model}}, path)
    return ["the embedding's row"]


def write_darkfield(about: About, path: Path) -> list[str]:
    """One direction of length one with its layer; returns what is lost."""
    if about.layer is None:
        refuse(path, "a darkfield file holds one layer: which? Answer with --layer L")
    (layer,) = about.layers(1)
    row = about.direction[layer]
    if float(row.norm()) == 0:
        refuse(path, f"the vector is zero at layer {layer}; choose another --layer")
    held = {"name": about.trait, "vector": row / row.norm(), "layer": layer, "model": about.model or "unknown"}
    _save({**held, "hidden_dim": row.numel(), "metadata": {"norm": float(row.norm())}}, path)
    return ["every other layer", "the length of the direction (metadata.norm keeps its number)"]


def _whole(about: About, path: Path, name: str) -> None:
    if about.layer is not None:
        raise VectorError(f"{path}: {name} files hold every layer; leave --layer out, or write --to darkfield")
