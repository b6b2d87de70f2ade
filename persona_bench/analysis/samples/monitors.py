"""Monitors of a behaviour: every one is fitted on the select half, and says one number of each scene.

What they read is the residual stream of the last prompt token. The trait vectors were made for something else and only
choose (which vector, which layer, which sign) or weigh; random directions are treated exactly so. The dedicated
direction and the probe are made for the behaviour: what can be seen at all. The text-only classifiers read the prompt.
The judge, where there is one, reads the prompt too, or prompt and answer; it is fitted to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from persona_bench.analysis.grouping import Draw, groups
from persona_bench.analysis.samples.baselines import Embed, best_penalty
from persona_bench.analysis.samples.frames import MONITORS
from persona_bench.analysis.tables.behaviours import shown
from persona_bench.analysis.tables.limits import ALL, BEST, DEDICATED, JUDGE, PROBE, RANDOM_OF, VECTOR
from persona_bench.analysis.tables.monitoring import TEXT
from persona_bench.inspect_ext.calibration import FOLDS, held_out, logistic
from persona_bench.inspect_ext.scene_judge import SEES

Array = NDArray[np.float64]
Flags = NDArray[np.bool_]

RANDOM_SETS = 20
_DIGITS = 9
"""What differs less than this comes from rounding: a classifier that knows nothing must give ties, not an order."""


class _Monitor(NamedTuple):
    name: str
    detail: str
    layer: float
    values: Array
    status: Sequence[str] | str = "scored"


class _Scenes(NamedTuple):
    """The scenes of the pairs that count.

    Attributes:
        acts: `(n, n_layers_read, d_model)`.
        layers: that were read.
        label: `(n,)`, 1 where the behaviour is shown.
        topics: `(n,)`.
        select: `(n,)`, True on the half that fits.
    """

    acts: Array
    layers: tuple[int, ...]
    label: Array
    topics: list[str]
    select: Flags


def monitor_rows(
    scenes: pd.DataFrame,
    read: Callable[[str], np.ndarray],
    vectors: Mapping[str, np.ndarray],
    draw: Draw,
    embed: Embed | None = None,
) -> pd.DataFrame:
    """What every monitor says of every scene of the pairs that count, for the behaviours that can be tested.

    On the select half values are held out by topic where a monitor was fitted to activations or texts, so that
    thresholds taken from them are those of scenes not seen.

    Args:
        scenes: the sample frame.
        read: name of a sidecar -> `(n_layers_read, d_model)`.
        vectors: trait -> `(n_layers + 1, d_model)`.
        draw: names the random directions.
        embed: texts -> `(n, d)`; without it there is no `text:embeddings`.
    """
    rows: list[pd.DataFrame] = []
    for key, _ in groups(scenes, "behaviour"):
        found = shown(scenes, key["behaviour"], draw)
        if found.reason:
            continue
        part = found.counted
        held = _Scenes(
            np.stack([read(name) for name in part["activations"]]).astype(float),
            tuple(int(layer) for layer in str(part["layers"].iloc[0]).split(",")),
            part["rewarded"].to_numpy(float),
            part["topic"].astype(str).tolist(),
            (part["half"] == "select").to_numpy(bool),
        )
        named = part[["trait", "behaviour", "sample_id", "topic", "pair", "half", "rewarded", "log"]]
        rows += [
            named.assign(monitor=item.name, detail=item.detail, layer=item.layer, value=item.values, status=item.status)
            for item in (
                *_monitors(held, part["prompt"].tolist(), vectors, draw, key["behaviour"], embed),
                *_judges(part),
            )
        ]
    return pd.concat(rows, ignore_index=True)[list(MONITORS)] if rows else pd.DataFrame(columns=list(MONITORS))


def _monitors(
    held: _Scenes,
    texts: Sequence[str],
    vectors: Mapping[str, np.ndarray],
    draw: Draw,
    behaviour: str,
    embed: Embed | None,
) -> Iterator[_Monitor]:
    names = sorted(vectors)
    if names:
        stacked = np.stack([vectors[name][list(held.layers)] for name in names]).astype(float)
        for index, name in enumerate(names):
            yield _best(f"{VECTOR}{name}", [name], stacked[index : index + 1], held)
        yield _best(BEST, names, stacked, held)
        yield _all(ALL, stacked, held)
        for number in range(RANDOM_SETS):
            drawn = draw.rng("random directions", behaviour, number).standard_normal(stacked.shape)
            yield _best(f"{RANDOM_OF[BEST]}:{number}", [""] * len(names), drawn, held)
            yield _all(f"{RANDOM_OF[ALL]}:{number}", drawn, held)
    yield _by_layer(DEDICATED, held, _difference)
    yield _by_layer(PROBE, held, _logistic)
    yield _Monitor(f"{TEXT}tfidf", "", math.nan, _logistic(_words(texts, held.select), held))
    if embed is not None:
        yield _Monitor(f"{TEXT}embeddings", "", math.nan, _logistic(embed(list(texts)).astype(float), held))


def _judges(part: pd.DataFrame) -> Iterator[_Monitor]:
    """The grader, by what it was shown; nothing of it is fitted, and a scene it said nothing of has no value."""
    grader = str(part["grader"].iloc[0])
    for sees in SEES if grader else ():
        values, status = part[f"judge_{sees}"].to_numpy(float), part[f"judge_{sees}_status"].tolist()
        yield _Monitor(f"{JUDGE}{sees}", grader, math.nan, values, status)


# --- directions that were not made for the behaviour ------------------------------------------------------------------


def _projected(directions: Array, held: _Scenes) -> Array:
    """Scalar projections, `(n, n_directions * n_layers)`, of directions `(n_directions, n_layers, d_model)`."""
    norms = np.linalg.norm(directions, axis=2, keepdims=True)
    unit = directions / np.where(norms > 0, norms, 1.0)
    found: Array = np.einsum("nld,kld->nkl", held.acts, unit).reshape(len(held.acts), -1)
    return found


def _best(name: str, labels: Sequence[str], directions: Array, held: _Scenes) -> _Monitor:
    """The direction, layer and sign that separate the select half best."""
    values = _projected(directions, held)
    areas = auroc(values[held.select], held.label[held.select])
    column = int(np.argmax(np.abs(areas - 0.5)))
    sign = -1.0 if areas[column] < 0.5 else 1.0
    which, layer = divmod(column, len(held.layers))
    return _Monitor(name, labels[which], held.layers[layer], sign * values[:, column])


def _all(name: str, directions: Array, held: _Scenes) -> _Monitor:
    return _Monitor(name, "", math.nan, _logistic(_projected(directions, held), held))


def auroc(values: Array, label: Array) -> Array:
    """Area under the ROC curve of every column, `(n, m)` -> `(m,)`, ties counting half."""
    from scipy.stats import rankdata

    yes = label == 1
    n_yes, n_no = int(yes.sum()), int((~yes).sum())
    ranks = rankdata(values, axis=0)[yes].sum(axis=0)
    found: Array = (ranks - n_yes * (n_yes + 1) / 2) / (n_yes * n_no)
    return found


# --- made for the behaviour, or reading the prompt --------------------------------------------------------------------


def _by_layer(name: str, held: _Scenes, fit: Callable[[Array, _Scenes], Array]) -> _Monitor:
    """A monitor of one layer's activations, at the layer where held-out scenes of the select half separate best."""
    found = [fit(held.acts[:, index], held) for index in range(len(held.layers))]
    columns = np.stack(found, axis=1)
    best = int(np.argmax(auroc(columns[held.select], held.label[held.select])))
    return _Monitor(name, "", held.layers[best], columns[:, best])


def _difference(acts: Array, held: _Scenes) -> Array:
    """Projection on the unit difference of the means of the select half; there, of the other topics."""
    from sklearn.model_selection import GroupKFold

    select = np.flatnonzero(held.select)
    values = acts @ _mean_difference(acts[select], held.label[select])
    topics = [held.topics[index] for index in select]
    for train, test in GroupKFold(min(FOLDS, len(set(topics)))).split(select, groups=topics):
        values[select[test]] = acts[select[test]] @ _mean_difference(acts[select[train]], held.label[select[train]])
    return values


def _mean_difference(acts: Array, label: Array) -> Array:
    found: Array = acts[label == 1].mean(axis=0) - acts[label == 0].mean(axis=0)
    return found / max(float(np.linalg.norm(found)), np.finfo(float).tiny)


def _logistic(features: Array, held: _Scenes) -> Array:
    """A logistic regression on the select half; there, the scores of held-out topics."""
    values, label = features[held.select], held.label[held.select]
    topics = [topic for topic, use in zip(held.topics, held.select, strict=True) if use]
    penalty = best_penalty(values, label, topics)
    weights, bias = logistic(values, label, penalty)
    scores: Array = 1 / (1 + np.exp(-(features @ weights + bias)))
    scores[held.select] = held_out(values, label, topics, penalty)
    return np.round(scores, _DIGITS)


def _words(texts: Sequence[str], select: Flags) -> Array:
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(token_pattern=r"\w+", ngram_range=(1, 2))
    words.fit([text for text, use in zip(texts, select, strict=True) if use])
    found: Array = words.transform(texts).toarray()
    return found
