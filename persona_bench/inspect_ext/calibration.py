"""From a local grader's raw likelihoods to 0..100, fitted on labelled answers and kept on disk.

For each grader and trait, one half of the labelled answers calibrates: it fits the map to 0..100 and chooses the
method; the other half is never looked at here (`judge_validity` reports on it). Logistic regression maps standardised
voices to the level, so that a score estimates how strongly the trait shows; a weak voice then stays near the middle.
Coherence is fitted on the same answers against scrambled and looping copies of them.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from inspect_ai.model import GenerateConfig, Model

from persona_bench.definitions.traits import LabelledAnswer, Trait, load_labelled
from persona_bench.errors import RunError
from persona_bench.files import write_atomic
from persona_bench.inspect_ext.requests import ExtraArgs
from persona_bench.inspect_ext.voices import Voices, ask_voices, fluency_item, repetition

logger = logging.getLogger(__name__)

VERSION = 6  # raise it when what a voice asks or how it is fitted changes: kept calibrations are then made anew
LOCAL_METHODS: dict[str, tuple[str, ...]] = {
    "yes_no": ("yes_no",),
    "contrast": ("contrast",),
    "combined": ("contrast", "yes_no"),
}


@dataclass(frozen=True)
class Fit:
    """A logistic map from voices to a probability.

    Attributes:
        means: subtracted from the voices.
        scales: divided by.
        weights: on the standardised voices.
        bias: added.
    """

    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    def __call__(self, values: Sequence[float]) -> float:
        """Probability in 0..1."""
        parts = zip(values, self.means, self.scales, self.weights, strict=True)
        total = self.bias + sum((value - mean) / scale * weight for value, mean, scale, weight in parts)
        return 1 / (1 + math.exp(-min(max(total, -50.0), 50.0)))


@dataclass(frozen=True)
class Calibration:
    """How one grader's voices become scores for one trait.

    Attributes:
        grader: name of the grader.
        trait: the trait.
        method: the method that separates the calibrating answers best, each judged by fits without its question.
        auroc: method -> that AUROC (levels of 50 and more against those below).
        fits: method -> map to the trait score.
        coherence_fit: map from fluency and repetition to coherence.
        n: calibrating answers.
    """

    grader: str
    trait: str
    method: str
    auroc: dict[str, float]
    fits: dict[str, Fit]
    coherence_fit: Fit
    n: int

    def voices(self, method: str) -> tuple[str, ...]:
        """Which voices a method needs."""
        return LOCAL_METHODS[method]

    def trait_score(self, voices: Voices, method: str) -> float:
        """0..100."""
        return 100 * self.fits[method]([getattr(voices, name) for name in LOCAL_METHODS[method]])

    def coherence(self, voices: Voices) -> float:
        """0..100."""
        return 100 * self.coherence_fit([voices.fluency, voices.repetition])


_held: dict[str, Calibration] = {}
_locks: dict[str, asyncio.Lock] = {}


async def calibrated(grader: Model, trait: Trait, progress: Callable[[str], None] | None = None) -> Calibration:
    """The calibration of a local grader for a trait: from memory, from disk, or made now.

    Raises:
        RunError: the trait has no labelled answers.
    """
    labelled = [item for item in load_labelled(trait.name) if item.half == "calibrate"]
    if not labelled:
        raise RunError(
            f"trait {trait.name} has no labelled answers to calibrate a local grader with; use a grader with logprobs "
            "such as --model-role grader=openai/gpt-4.1-mini-2025-04-14"
        )
    key = _key(grader, trait, labelled)
    if key not in _held:
        async with _locks.setdefault(key, asyncio.Lock()):
            if key not in _held:
                _held[key] = _read(key) or await _make(grader, trait, labelled, key, progress)
    return _held[key]


def _key(grader: Model, trait: Trait, labelled: Sequence[LabelledAnswer]) -> str:
    texts = json.dumps([item.model_dump() for item in labelled])
    parts = (str(VERSION), grader.api.connection_key(), trait.hash, texts)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _path(key: str) -> Path:
    from persona_bench.models.assets import cache_dir

    return cache_dir() / "calibrations" / f"{key}.json"


def _read(key: str) -> Calibration | None:
    path = _path(key)
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text())
        fits = {name: Fit(**values) for name, values in data["fits"].items()}
        return Calibration(**{**data, "fits": fits, "coherence_fit": Fit(**data["coherence_fit"])})
    except (ValueError, KeyError, TypeError) as error:
        logger.warning("The kept calibration %s is broken (%s); making it anew.", path, error)
        return None


async def _make(
    grader: Model, trait: Trait, labelled: Sequence[LabelledAnswer], key: str, progress: Callable[[str], None] | None
) -> Calibration:
    if progress is not None:
        progress(f"calibrating {grader} on {len(labelled)} labelled answers for {trait.name}")
    both = LOCAL_METHODS["combined"]
    voices = await asyncio.gather(*(ask_voices(grader, trait, item.question, item.answer, both) for item in labelled))
    result = fit(str(grader), trait.name, labelled, voices, await _broken(grader, trait, labelled))
    _path(key).parent.mkdir(parents=True, exist_ok=True)
    write_atomic(_path(key), json.dumps(asdict(result), indent=1))
    return result


def spoil(answer: str, seed: int) -> tuple[str, str]:
    """Two incoherent texts made of an answer: its words shuffled, and its first words looping."""
    words = answer.split()
    shuffled = random.Random(seed).sample(words, len(words))
    loop = (words[: max(2, min(4, len(words)))] * len(words))[: len(words) + 4]
    return " ".join(shuffled), " ".join(loop)


async def _broken(grader: Model, trait: Trait, labelled: Sequence[LabelledAnswer]) -> list[Voices]:
    """Fluency of an incoherent copy of each answer, shuffled and looping ones in turn."""
    texts = [(item.question, spoil(item.answer, index)[index % 2]) for index, item in enumerate(labelled)]

    async def fluency(question: str, text: str) -> Voices:
        extra = ExtraArgs(score=(fluency_item(trait, question, text),))
        output = await grader.generate("", config=GenerateConfig(extra_body=extra.body()))
        assert output.metadata is not None
        score = output.metadata["scores"][0]
        return Voices(math.nan, math.nan, score["logprob"] / max(score["n_tokens"], 1), repetition(text))

    return list(await asyncio.gather(*(fluency(question, text) for question, text in texts)))


def fit(
    grader: str, trait: str, labelled: Sequence[LabelledAnswer], voices: Sequence[Voices], broken: Sequence[Voices]
) -> Calibration:
    """Fit the maps and choose the method.

    Args:
        grader: name of the grader.
        trait: name of the trait.
        labelled: the calibrating answers.
        voices: what the grader said of each.
        broken: what it said of incoherent copies.
    """
    levels = np.array([item.level / 100 for item in labelled])
    questions = np.array([item.question for item in labelled])
    fits, auroc = {}, {}
    for method, names in LOCAL_METHODS.items():
        x = np.array([[getattr(item, name) for name in names] for item in voices])
        fits[method] = _logistic(x, levels)
        held_out = np.empty(len(levels))
        for question in np.unique(questions):
            out = questions == question
            without = _logistic(x[~out], levels[~out])
            held_out[out] = [without(row) for row in x[out]]
        auroc[method] = _auroc(held_out, levels >= 0.5)
    # Of methods that separate alike, the first listed is the cheapest.
    best = max(auroc.values())
    method = next(name for name in LOCAL_METHODS if auroc[name] >= best - 0.01)
    good = [item for item, answer in zip(voices, labelled, strict=True) if answer.kind != "incoherent"]
    everything = [*good, *broken]
    x = np.array([[item.fluency, item.repetition] for item in everything])
    coherent = np.array([1.0] * len(good) + [0.0] * len(broken))
    return Calibration(grader, trait, method, auroc, fits, _logistic(x, coherent), len(labelled))


def _logistic(x: np.ndarray, levels: np.ndarray) -> Fit:
    """Logistic regression on standardised columns, L2 penalty 1; level p counts p as a yes and 1 - p as a no."""
    from sklearn.linear_model import LogisticRegression

    means, scales = x.mean(0), x.std(0)
    scales = np.where(scales > 0, scales, 1.0)
    z = (x - means) / scales
    model = LogisticRegression(C=1.0)
    model.fit(np.vstack([z, z]), np.repeat([1, 0], len(levels)), sample_weight=np.concatenate([levels, 1 - levels]))
    return Fit(
        tuple(float(v) for v in means),
        tuple(float(v) for v in scales),
        tuple(float(v) for v in model.coef_[0]),
        float(model.intercept_[0]),
    )


def _auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores))
