"""From a local grader's voices to outcomes and scores, fitted on labelled answers and kept on disk.

For each grader, trait and voice, one half of the labelled answers calibrates: a logistic regression maps the voice to
the level. The other half is never looked at here; `judge_validity` reports on it. Whether a response is coherent, and
whether it refuses, is read from the grader's residual stream by two probes fitted on the answers of all traits.

Calibrations of the catalogue's grader come with the package, so that the first run need not make them; `_load` finds
one only under the hash of the grader's weights, the labelled texts and `VERSION`, and makes anew what it does not find.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from inspect_ai.model import Model

from persona_bench.definitions.claims import GATE_AUROC, GATE_BALANCED_ACCURACY
from persona_bench.definitions.outcomes import TRAIT_CUT
from persona_bench.definitions.traits import TRAITS, LabelledAnswer, Trait, load_labelled
from persona_bench.errors import DataError, RunError
from persona_bench.files import write_atomic
from persona_bench.inspect_ext.voices import VOICES, ask_voice, local_api, read

logger = logging.getLogger(__name__)

VERSION = 8  # raise it when what a voice says or how it is fitted changes: kept calibrations are then made anew
FOLDS = 8
PENALTIES = (1e-3, 3e-3, 1e-2, 3e-2)  # inverse L2 strengths tried for a probe; a single number needs none
FEW = 120  # answers that a voice of a single number is fitted on: it has two parameters and costs many passes
SPOILED = 200  # incoherent copies of written answers that the coherence probe learns from
_PACKAGED = files("persona_bench.inspect_ext") / "calibrations"

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Fit:
    """A logistic map from a voice to a score.

    Attributes:
        weights: `(d,)`, on the raw voice.
        bias: added.
        auroc: over held-out questions of the calibrating half: levels over the cut against those under it.
        balanced_accuracy: at the cut, likewise.
        n: calibrating answers.
    """

    weights: tuple[float, ...]
    bias: float
    auroc: float
    balanced_accuracy: float
    n: int

    def __call__(self, voice: np.ndarray) -> float:
        """0..100."""
        logit = float(voice @ self._array) + self.bias
        return float(100 / (1 + np.exp(-np.clip(logit, -50, 50))))

    @cached_property
    def _array(self) -> np.ndarray:
        return np.asarray(self.weights)

    @property
    def passes(self) -> bool:
        """Whether it would pass the judge's gate on the calibrating half."""
        return self.auroc >= GATE_AUROC and self.balanced_accuracy >= GATE_BALANCED_ACCURACY


@dataclass(frozen=True)
class Calibration:
    """How one grader judges one trait.

    Attributes:
        method: the voice in use.
        trait_fit: from that voice to the trait score.
        coherence_fit: from the probe to coherence.
        refusal_fit: from the probe to a refusal.
    """

    method: str
    trait_fit: Fit
    coherence_fit: Fit
    refusal_fit: Fit

    @cached_property
    def key(self) -> str:
        """Changes whenever a judgement could."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


async def calibrated(
    grader: Model, trait: Trait, method: str = "auto", progress: Progress | None = None
) -> Calibration:
    """The calibration of a local grader for a trait: from memory, from disk, or made now.

    `auto` takes the probe if it passes the gate on held-out questions of the calibrating half, else whichever voice
    separates best there.

    Raises:
        RunError: the trait has no labelled answers.
    """
    fits = _Fits(grader, progress)
    made = (fits.weights, trait.hash, method)
    if made not in _calibrations:
        if not calibrating(trait.name):
            raise RunError(
                f"trait {trait.name} has no labelled answers to calibrate a local grader with; use a grader with "
                "logprobs such as --model-role grader=openai/gpt-4.1-mini-2025-04-14"
            )
        voice = await _choose(fits, trait) if method == "auto" else method
        _calibrations[made] = Calibration(
            voice, await fits.trait(trait, voice), await fits.coherence(), await fits.refusal()
        )
    return _calibrations[made]


def calibrating(trait: str) -> list[LabelledAnswer]:
    """The labelled answers that calibrate: the half that nothing is reported on."""
    return [item for item in load_labelled(trait) if item.half == "calibrate"]


async def _choose(fits: _Fits, trait: Trait) -> str:
    best, chosen = await fits.trait(trait, "probe"), "probe"
    for voice in () if best.passes else VOICES[1:]:
        if voice == "contrast" and not trait.judge_instructions:
            continue
        other = await fits.trait(trait, voice)
        if other.auroc > best.auroc:
            best, chosen = other, voice
    return chosen


_calibrations: dict[tuple[str, str, str], Calibration] = {}
_held: dict[str, Fit] = {}
_readings: dict[tuple[str, str, str], np.ndarray] = {}
_locks: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, asyncio.Lock]] = WeakKeyDictionary()


class _Fits:
    """The fits of one grader, each found by the hash of what it is made from, or made and kept."""

    def __init__(self, grader: Model, progress: Progress | None) -> None:
        self.grader, self.progress = grader, progress
        self.weights = local_api(grader).loaded.weights_hash

    async def trait(self, trait: Trait, voice: str) -> Fit:
        """From a voice to the trait score."""
        items = calibrating(trait.name)
        if voice != "probe":
            items = items[:: max(len(items) // FEW, 1)]
        asked = [trait.positive_name, *(pair.model_dump() for pair in trait.judge_instructions)]

        async def make() -> Fit:
            if voice == "probe":
                said = (self._read(item.question, item.answer) for item in items)
            else:
                said = (ask_voice(self.grader, trait, item.question, item.answer, voice) for item in items)
            levels = np.array([item.level / 100 for item in items])
            questions = [item.question for item in items]
            return fit(np.array(await asyncio.gather(*said)), levels, questions, even=True)

        return await self._fit(f"{trait.name} {voice}", [] if voice == "probe" else asked, items, make)

    async def coherence(self) -> Fit:
        """From the probe to coherence: real responses by their readers' grades, written ones, and spoiled copies."""
        items = [item for name in TRAITS for item in calibrating(name)]
        written = [item for item in items if item.source == "written"]
        step = max(len(written) // SPOILED, 1)
        graded = [(item.question, item.answer, item.fluency / 100) for item in items]
        graded += [
            (item.question, spoil(item.answer, index)[index % 2], 0.0) for index, item in enumerate(written[::step])
        ]
        return await self._probe("coherence", items, graded)

    async def refusal(self) -> Fit:
        """From the probe to refusals."""
        items = [item for name in TRAITS for item in calibrating(name)]
        return await self._probe("refusal", items, [(i.question, i.answer, float(i.refuses)) for i in items])

    async def _probe(self, name: str, items: Sequence[LabelledAnswer], graded: Sequence[tuple[str, str, float]]) -> Fit:
        async def make() -> Fit:
            said = (self._read(question, answer) for question, answer, _ in graded)
            shares = np.array([share for _, _, share in graded])
            return fit(np.array(await asyncio.gather(*said)), shares, [question for question, _, _ in graded])

        return await self._fit(name, [], items, make)

    async def _read(self, question: str, answer: str) -> np.ndarray:
        """A reading, kept in memory: most answers calibrate several probes."""
        key = (self.weights, question, answer)
        if key not in _readings:
            _readings[key] = await read(self.grader, question, answer)
        return _readings[key]

    async def _fit(
        self, what: str, asked: Sequence[Any], items: Sequence[LabelledAnswer], make: Callable[[], Awaitable[Fit]]
    ) -> Fit:
        texts = [[i.question, i.answer, i.level, i.kind, i.coherence, i.refusal] for i in items]
        made_from = json.dumps([VERSION, self.weights, what, list(asked), texts])
        key = hashlib.sha256(made_from.encode()).hexdigest()[:32]
        locks = _locks.setdefault(asyncio.get_running_loop(), {})
        async with locks.setdefault(key, asyncio.Lock()):
            if key not in _held:
                _held[key] = _load(key) or await self._make(key, what, len(items), make)
        return _held[key]

    async def _make(self, key: str, what: str, n: int, make: Callable[[], Awaitable[Fit]]) -> Fit:
        if self.progress is not None:
            self.progress(f"calibrating {self.grader} on {n} labelled answers: {what}")
        made = await make()
        try:
            write_atomic(_kept(key), json.dumps({"what": what, "grader": str(self.grader), **asdict(made)}) + "\n")
        except DataError as error:
            logger.warning("The calibration is not kept, and made anew next time: %s", error)
        return made


def _kept(key: str) -> Path:
    from persona_bench.models.assets import cache_dir

    return cache_dir() / "calibrations" / f"{key}.json"


def _load(key: str) -> Fit | None:
    for path in (_PACKAGED / f"{key}.json", _kept(key)):
        if not path.is_file():
            continue
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            bias, auroc, accuracy = (float(data[name]) for name in ("bias", "auroc", "balanced_accuracy"))
            return Fit(tuple(map(float, data["weights"])), bias, auroc, accuracy, int(data["n"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("The kept calibration %s is broken (%s); making it anew.", path, error)
    return None


# -- fitting ---------------------------------------------------------------------------------------------------------


def fit(voices: np.ndarray, shares: np.ndarray, questions: Sequence[str], *, even: bool = False) -> Fit:
    """Fit the map from a voice to a score.

    Args:
        voices: `(n, d)`.
        shares: `(n,)`, the level as a share 0..1; a share p counts p as a yes and 1 - p as a no.
        questions: of each answer; the measures are over questions held out together.
        even: give yes and no the same weight in all, so that the cut at half lies between them however rare one is.
    """
    penalties = PENALTIES if voices.shape[1] > 1 else (1.0,)
    tried = {penalty: held_out(voices, shares, questions, penalty, even) for penalty in penalties}
    best = max(penalties, key=lambda penalty: _auroc(tried[penalty], shares))
    weights, bias = logistic(voices, shares, best, even)
    scores = tried[best]
    return Fit(
        tuple(float(f"{weight:.6g}") for weight in weights),
        float(bias),
        _auroc(scores, shares),
        _balanced_accuracy(scores, shares),
        len(shares),
    )


def held_out(
    voices: np.ndarray, shares: np.ndarray, questions: Sequence[str], penalty: float, even: bool = False
) -> np.ndarray:
    """The score 0..1 of each answer by a fit without its question."""
    from sklearn.model_selection import GroupKFold

    scores = np.empty(len(shares))
    folds = GroupKFold(min(FOLDS, len(set(questions))))
    for train, test in folds.split(voices, groups=list(questions)):
        weights, bias = logistic(voices[train], shares[train], penalty, even)
        scores[test] = 1 / (1 + np.exp(-(voices[test] @ weights + bias)))
    return scores


def logistic(voices: np.ndarray, shares: np.ndarray, penalty: float, even: bool = False) -> tuple[np.ndarray, float]:
    """Weights `(d,)` and bias on the raw voices, fitted on standardised ones."""
    from sklearn.linear_model import LogisticRegression

    means, scales = voices.mean(0), voices.std(0)
    scales = np.where(scales > 0, scales, 1.0)
    z = (voices - means) / scales
    model = LogisticRegression(C=penalty, max_iter=1000)
    yes, no = shares, 1 - shares
    if even:
        yes, no = yes / yes.mean() / 2, no / no.mean() / 2
    labels, counts = np.repeat([1, 0], len(shares)), np.concatenate([yes, no])
    used = counts > 0
    model.fit(np.vstack([z, z])[used], labels[used], sample_weight=counts[used])
    weights = model.coef_[0] / scales
    return weights, float(model.intercept_[0] - weights @ means)


def _auroc(scores: np.ndarray, shares: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    clear = shares != TRAIT_CUT / 100
    return float(roc_auc_score(shares[clear] > TRAIT_CUT / 100, scores[clear]))


def _balanced_accuracy(scores: np.ndarray, shares: np.ndarray) -> float:
    from sklearn.metrics import balanced_accuracy_score

    clear = shares != TRAIT_CUT / 100
    return float(balanced_accuracy_score(shares[clear] > TRAIT_CUT / 100, scores[clear] >= TRAIT_CUT / 100))


def spoil(answer: str, seed: int) -> tuple[str, str]:
    """Two incoherent texts made of an answer: its words shuffled, and its first words looping."""
    words = answer.split()
    shuffled = random.Random(seed).sample(words, len(words))
    loop = (words[: max(2, min(4, len(words)))] * len(words))[: len(words) + 4]
    return " ".join(shuffled), " ".join(loop)
