"""What can be had without a grader or a vector: trivial judges of answers, text-only monitors of prompts and samples.

A judge or a monitor that does no better has not understood anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from persona_bench.analysis.grouping import scored
from persona_bench.analysis.samples.frames import SIGNALS
from persona_bench.analysis.tables.finetuning import NORMAL
from persona_bench.analysis.tables.judge import BASELINE
from persona_bench.analysis.tables.monitoring import POSITION, TEXT
from persona_bench.definitions.traits import LabelledAnswer, load_labelled
from persona_bench.inspect_ext.calibration import PENALTIES, fit, held_out, logistic

Embed = Callable[[Sequence[str]], np.ndarray]
MIN_OCCURRENCES = 2  # a word of the lexicon occurs in at least so many calibrating answers


def baseline_rows(trait: str, embed: Embed | None = None) -> list[dict[str, Any]]:
    """Rows for the sample frame `judge`: the report half as each trivial judge scores it.

    `length` sees the number of words and characters, `lexicon` which words occur, `embeddings` the sentence embeddings
    of answer and question (left out without `embed`). Each is a logistic regression on the calibrating half, where
    yes and no weigh the same, as for local graders.

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
        scored = fit(values[calibrate], shares[calibrate], questions, even=True)
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
        "fluency": item.fluency,
        "refuses": item.refuses,
        "log": "labelled answers",
    }


def text_monitors(monitoring: pd.DataFrame, embed: Embed | None = None) -> pd.DataFrame:
    """Rows for the sample frame `projections`: what each text-only monitor predicts of every response.

    `text:tfidf` and `text:embeddings` see the text before the response, each a logistic regression on the select half;
    `text:condition` knows only the condition and gives the mean score that responses of the select half had under it
    (what an oracle of the system prompt would get). Where every score of the select half is 0, or every one 100, there
    is nothing to learn, and only the last is left.

    Args:
        monitoring: the sample frame.
        embed: texts -> `(n, d)`; without it there is no `text:embeddings`.
    """
    parts = [
        _read_texts(part, embed)
        for _, part in monitoring.groupby(["trait", "condition"], sort=True)
        if (scored(part).notna() & (part["half"] == "select")).any()
    ]
    empty = pd.DataFrame(columns=["sample_id", "trait", "direction", "layer", *SIGNALS])
    return pd.concat(parts, ignore_index=True) if parts else empty


def _read_texts(part: pd.DataFrame, embed: Embed | None) -> pd.DataFrame:
    score = scored(part)
    select = (score.notna() & (part["half"] == "select")).to_numpy()
    shares = (score[select] / 100).to_numpy()
    questions = part["question_id"].astype(str)[select].tolist()
    predictions = {POSITION: _by_condition(part, score, select)}
    varied = 0 < shares.mean() < 1
    for name, values in _prompt_features(part["prompt"].tolist(), select, embed).items() if varied else ():
        penalty = best_penalty(values[select], shares, questions)
        weights, bias = logistic(values[select], shares, penalty)
        predictions[f"{TEXT}{name}"] = 100 / (1 + np.exp(-(values @ weights + bias)))
    frames = [
        part[["sample_id", "trait"]].assign(direction=name, layer=0, prompt_last=found)
        for name, found in predictions.items()
    ]
    unread = dict.fromkeys(SIGNALS[1:], math.nan)
    return pd.concat(frames, ignore_index=True).assign(**unread)


def text_flags(flagging: pd.DataFrame) -> pd.DataFrame:
    """The sample frame `flagging` with what a text classifier says of each sample that is flagged one by one.

    `classifier` is the log-odds of not being of the normal version, by a logistic regression on the words (TF-IDF) of
    the samples of the select half of the family; NaN where that half holds one kind alone.
    """
    found = flagging["classifier"].astype(float).copy()
    single = flagging[flagging["kind"] == "sample"]
    for _, part in single.groupby("family", sort=True):
        texts = part.drop_duplicates("sample_id")
        select, labels = (texts["half"] == "select").to_numpy(), (texts["version"] != NORMAL).to_numpy(float)
        if len(set(labels[select])) < 2:
            continue
        for values in _prompt_features(texts["text"].tolist(), select, None).values():
            penalty = best_penalty(values[select], labels[select], texts["question_id"].astype(str)[select].tolist())
            weights, bias = logistic(values[select], labels[select], penalty)
            said = dict(zip(texts["sample_id"], values @ weights + bias, strict=True))
            found[part.index] = part["sample_id"].map(said)
    return flagging.assign(classifier=found)


def _by_condition(part: pd.DataFrame, score: pd.Series, select: np.ndarray) -> np.ndarray:
    keys = [part["side"], part["rung"]]
    means = score.where(select).groupby(keys).transform("mean")
    return means.fillna(score[select].mean()).to_numpy(float)


def _prompt_features(prompts: Sequence[str], select: np.ndarray, embed: Embed | None) -> dict[str, np.ndarray]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(token_pattern=r"\w+")
    try:
        words.fit([text for text, use in zip(prompts, select, strict=True) if use])
        features = {"tfidf": words.transform(prompts).toarray()}
    except ValueError:  # no word at all in any prompt
        features = {}
    if embed is not None:
        distinct = list(dict.fromkeys(prompts))
        place = {text: index for index, text in enumerate(distinct)}
        features["embeddings"] = embed(distinct)[[place[text] for text in prompts]].astype(float)
    return features


def best_penalty(values: np.ndarray, shares: np.ndarray, questions: Sequence[str]) -> float:
    """The penalty under which questions held out are predicted best, by log loss."""
    if len(set(questions)) < 2:
        return PENALTIES[0]

    def loss(penalty: float) -> float:
        found = np.clip(held_out(values, shares, questions, penalty), 1e-6, 1 - 1e-6)
        return -float((shares * np.log(found) + (1 - shares) * np.log(1 - found)).mean())

    return min(PENALTIES, key=loss)
