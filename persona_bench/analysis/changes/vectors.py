"""Vectors of two runs side by side: the same command, the same direction, the same layer?"""

from __future__ import annotations

import math

import pandas as pd
import torch

from persona_bench.analysis.runs import Run
from persona_bench.vectors.vector import PersonaVector

VECTOR_COLUMNS = (
    *("trait", "layer_first", "layer_second", "share_first", "share_second"),
    *("cosine_first", "cosine_second", "chance"),
)


def vector_change(first: Run, second: Run) -> pd.DataFrame:
    """One row a trait that both have a vector of: the layers that serve, and the cosine of the two at each.

    A layer serves because steering chose it, else as the middle one. `share_first` and `share_second` say how many
    resamples of the select half choose the same layer. `chance` is the typical absolute cosine of two random directions
    of that width. Cosines are NaN where a layer is none of the other's, or the model is another.

    Raises:
        VectorError: a vector file is broken.
    """
    layers = [_chosen(run) for run in (first, second)]
    found = [{path.stem: path for path in (run.folder / "vectors").glob("*.safetensors")} for run in (first, second)]
    rows = []
    for trait in sorted(found[0].keys() & found[1].keys()):
        one, other = (PersonaVector.load(files[trait]) for files in found)
        at = [each.get(trait, math.nan) for each in layers]
        cosines = [_cosine(one, other, layer) for layer in at]
        width = one.directions["persona"].shape[1]
        shares = [_share(run, trait) for run in (first, second)]
        rows.append((trait, *at, *shares, *cosines, math.sqrt(2 / (math.pi * width))))
    return pd.DataFrame(rows, columns=list(VECTOR_COLUMNS))


def _chosen(run: Run) -> dict[str, float]:
    table = run.tables["vectors"]
    chosen = table[table["chosen"].astype(str) == "True"]
    return dict(zip(chosen["trait"].astype(str), chosen["layer"].astype(float), strict=True))


def _share(run: Run, trait: str) -> float:
    choice = run.tables["steering_choice"]
    found = choice.loc[(choice["trait"] == trait) & (choice["sign"] == "positive"), "layer_share"]
    return float(found.iloc[0]) if len(found) else math.nan


def _cosine(one: PersonaVector, other: PersonaVector, layer: float) -> float:
    ours, theirs = one.directions["persona"], other.directions["persona"]
    if ours.shape != theirs.shape or math.isnan(layer) or layer >= len(ours):
        return math.nan
    return float(torch.nn.functional.cosine_similarity(ours[int(layer)], theirs[int(layer)], dim=0))
