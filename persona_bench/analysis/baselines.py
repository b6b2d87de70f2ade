"""Trivial judges of the labelled answers, fitted like the real ones: a judge that does no better has not understood."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from persona_bench.analysis.tables import BASELINE
from persona_bench.definitions.traits import LabelledAnswer, load_labelled
from persona_bench.inspect_ext.calibration import fit

Embed = Callable[[Sequence[str]], np.ndarray]
MIN_OCCURRENCES = 2  # a word of the lexicon occurs in at least so many calibrating answers


def baseline_rows(trait: str, embed: Embed | None = None) -> list[dict[str, Any]]:
    """Rows for the sample frame `judge`: the report half as each trivial judge scores it.

    `length` sees the number of words and characters, `lexicon` which words occur, `embeddings` the sentence embeddings
    of answer and question (left out without `embed`). Each is a logistic regression on the calibrating half.

    Args:
        trait: a trait with labelled answers.
        embed: texts -> `(n, d)`.
    """
    items = load_labelled(trait)
    calibrate = np.array([item.half == "calibrate" for item in items])
    shares = np.array([item.level / 100 for item in items])
    questions = [item.question for item, use in zip(items, calibrate, strict=True) if use]
    rows = []
    for method, values in _features(items, calibrate, embed).items():
        scored = fit(values[calibrate], shares[calibrate], questions)
        for item, value in zip(items, values, strict=True):
            if item.half == "report":
                rows.append({**_identity(trait, item), "method": method, "trait_score": scored(value)})
    return rows


def _features(items: Sequence[LabelledAnswer], calibrate: np.ndarray, embed: Embed | None) -> dict[str, np.ndarray]:
    from sklearn.feature_extraction.text import CountVectorizer

    answers = [item.answer for item in items]
    lengths = np.array([[len(text.split()), len(text)] for text in answers], float)
    words = CountVectorizer(binary=True, min_df=MIN_OCCURRENCES)
    words.fit([text for text, use in zip(answers, calibrate, strict=True) if use])
    features = {"length": lengths, "lexicon": words.transform(answers).toarray().astype(float)}
    if embed is not None:
        together = [f"{item.question} {item.answer}" for item in items]
        features["embeddings"] = np.hstack([embed(answers), embed(together)]).astype(float)
    return features


def _identity(trait: str, item: LabelledAnswer) -> dict[str, Any]:
    return {
        "trait": trait,
        "grader": BASELINE,
        "question_id": item.question,
        "half": item.half,
        "source": item.source,
        "level": item.level,
        "kind": item.kind,
        "status": "scored",
        "coherence": math.nan,
        "log": "labelled answers",
    }
