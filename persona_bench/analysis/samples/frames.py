"""What a run measured, one row a sample: the columns of every frame, and `Samples`, which holds them all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import pandas as pd

from persona_bench.definitions.flagging import MEASURES
from persona_bench.definitions.trials import RANDOM_DIRECTIONS
from persona_bench.errors import DataError
from persona_bench.inspect_ext.scene_judge import SEES

CELL = ("vector", "setting", "layers", "layer", "coefficient", "relative_dose")
"""What names a cell of a sweep (`inspect_ext.cells.Cell`)."""

TRIAL = ("family", "version", "arm", "seed")
SIGNALS = ("prompt_last", "prompt_mean", "response_first", "response_mean", "response_max")
JUDGED = tuple(f"judge_{sees}{end}" for sees in SEES for end in ("", "_status"))
SCENES = (
    *("trait", "behaviour", "topic", "pair", "half", "rewarded", "way", "shown", "check", "prompt", "sample_id"),
    *("layers", "activations", "grader", *JUDGED, "log"),
)
"""Columns of the sample frame: a row a scene and way of choosing; `trait` is empty, as in every frame about none.

`judge_prompt` and `judge_answer` are the grader's probability of Yes by what it saw, beside what became of the
question; without a grader `grader` is empty.
"""
MONITORS = (
    *("trait", "behaviour", "monitor", "detail", "layer", "sample_id", "topic", "pair", "half", "rewarded", "value"),
    *("status", "log"),
)
"""Columns of the sample frame: a row a monitor and scene of a pair that counts; a judge may leave one unscored."""
EVADED = (
    *("trait", "way", "number", "question_id", "half", "epoch", "status", "trait_score", "coherence"),
    *("projection", "random", "layer", "log"),
)
"""Columns of the sample frame: a row a response."""
FINETUNING_SAMPLES: Mapping[str, tuple[str, ...]] = {
    "finetuning": (
        *(*TRIAL, "dose", "kind", "trait", "set", "question_id", "half", "rollout", "status"),
        *("trait_score", "coherence", "letter", "cloze", "loss", "recall", "log"),
    ),
    "shifts": (*TRIAL, "trait", "question_id", "direction", "layer", "prompt_last"),
    "training": (*TRIAL, "step", "loss", "trait", "projection"),
}
"""The columns of the sample frames: everything measured of an adapter, its projections, and its training."""


def control_columns(measure: str) -> tuple[str, ...]:
    """The columns with a measure along the random directions."""
    return tuple(f"{name} {measure}" for name in RANDOM_DIRECTIONS)


FLAGGING_SAMPLES: Mapping[str, tuple[str, ...]] = {
    "flagging": (
        *("kind", "family", "version", "sample_id", "trait", "question_id", "half", "source", "layer", "measured"),
        *(*MEASURES, *(column for measure in MEASURES for column in control_columns(measure))),
        *("status", "judge", "loss", "classifier", "text", "log"),
    ),
    "flagging_trained": (
        *("pool", "pick", "trait", "question_id", "half", "rollout", "status", "trait_score", "coherence"),
        *("n_picked", "difference", "made_of", "log"),
    ),
}
"""The columns of the sample frames: measured samples, and answers of the models trained on flagged ones."""

METHOD_SAMPLES: Mapping[str, tuple[str, ...]] = {
    "readings": (
        *("trait", "direction", "layer", "question_id", "half", "pair", "side", "epoch", "status", "trait_score"),
        *("projection", "log"),
    ),
    "variants": ("trait", *CELL, "question_id", "half", "epoch", "status", "trait_score", "coherence", "log"),
    "sensitivity": (
        *("trait", "aspect", "setting", "layer", "draw", "n_positive", "n_negative", "cosine", "norm_ratio", "log"),
    ),
}
"""Projections of elicited responses on every vector; answers under vectors made otherwise; cosines of such vectors."""


_LABELLED = (
    *("trait", "grader", "method", "question_id", "half", "source", "level", "kind"),
    *("trait_score", "status", "coherence", "fluency", "refuses", "log"),
)
SAMPLE_COLUMNS: Mapping[str, tuple[str, ...]] = {
    "judge": _LABELLED,
    "twins": _LABELLED,
    "panel": ("eval", "trait", "sample_id", "question_id", "member", "status", "trait_score", "log"),
    "elicitation": (
        *("trait", "side", "pair", "question_id", "epoch", "status", "trait_score", "coherence"),
        *("kept", "drop_reason", "log"),
    ),
    "steering": (
        *("trait", *CELL, "question_id", "half", "epoch"),
        *("status", "trait_score", "coherence", "log"),
    ),
    "monitoring": (
        *("trait", "condition", "side", "rung", "question_id", "half", "epoch", "status", "trait_score"),
        *("coherence", "prompt", "sample_id", "log"),
    ),
    "projections": ("sample_id", "trait", "direction", "layer", *SIGNALS),
    "tokens": ("sample_id", "trait", "condition", "rung", "layer", "position", "token", "projection"),
    "mmlu": (
        *("trait", *CELL, "benchmark", "scoring", "shots", "source", "group", "question_id", "chance"),
        *("correct", "margin", "status", "log"),
    ),
    "vectors": (
        *("trait", "layer", "norm", "residual_norm", "refusal_cosine", "refusal_cosine_low", "refusal_cosine_high"),
        *("n_positive", "n_negative", "warning", "chosen", "vector_id"),
    ),
    "cosines": ("trait", "other", "layer", "cosine", "cosine_low", "cosine_high", "width"),
    **FINETUNING_SAMPLES,
    **FLAGGING_SAMPLES,
    "scenes": SCENES,
    "monitors": MONITORS,
    "evasion": EVADED,
    **METHOD_SAMPLES,
}
"""The columns that each sample frame must have."""


def _empty(name: str) -> pd.DataFrame:
    return pd.DataFrame({column: pd.Series(dtype=object) for column in SAMPLE_COLUMNS[name]})


@dataclass(frozen=True)
class Samples:
    """Everything that was measured, one row a sample; any frame may be empty.

    `trait_score` and `coherence` are points of 0..100, `status` is one of `OUTCOMES` where nothing
    else is said, `coefficient` is in
    multiples of the raw vector, `relative_dose` is the signed share |alpha v| / mean |h_l|, and `log` is a name of the
    log that stays the same between runs. `SAMPLE_COLUMNS` lists the columns of each frame.

    Attributes:
        judge: answers with a known level, scored by the judge.
        twins: twins of the hard cases among those, and further hard cases with theirs; no gate looks at them.
        elicitation: answers under positive and negative instructions.
        steering: answers in each cell of a sweep; `vector` is persona, random, prompt (words instead) or none,
            `layers` is text, and `relative_dose` is NaN where there is no dose (cap, ablate).
        monitoring: answers under pressure towards and against the trait, `rung` as the condition counts it; `prompt` is
            all the text before the answer.
        projections: signals of the monitored samples, one row a sample, direction and layer; the predictions of
            text-only baselines (direction `text:NAME`) stand as `prompt_last` at layer 0.
        mmlu: multiple-choice answers, `status` one of `CHOICE_OUTCOMES`; `trait` is empty on unsteered rows, `group` is
            that of the question's subject ("all" where its source has none), `chance` that of the question.
        vectors: one row a layer of each vector.
        tokens: projections of every response token on the persona direction, of a few samples.
        panel: what each grader of a panel said of each response of an eval; empty with a single grader.
        cosines: one row a layer and ordered pair of traits; `width` is the number of entries of a vector.
        finetuning: everything measured of finetuned models; `set` names the training set of a held-out conversation.
        shifts: projections of their last prompt tokens.
        training: loss, and projections on each trait's vector, by optimizer step.
        flagging: measured samples of training sets (`kind` set), samples flagged one by one (sample) and real
            conversations (corpus), a row a trait; `classifier` is filled by `baselines.text_flags`.
        flagging_trained: answers of models trained on flagged samples.
        scenes: what was chosen in scenes of behaviours (`analysis.tables.behaviours`).
        monitors: what each monitor of a behaviour says of the scenes (`analysis.tables.limits`).
        evasion: responses under prompts that may evade the trait's vector, with its projection and a random one.
        readings: elicited responses, projected on every trait's vector and on random directions.
        variants: answers while steered with vectors that were made otherwise, in columns like those of `steering`.
        sensitivity: cosines of vectors that were made otherwise.

    Raises:
        DataError: a frame lacks a column.
    """

    judge: pd.DataFrame = field(default_factory=lambda: _empty("judge"))
    elicitation: pd.DataFrame = field(default_factory=lambda: _empty("elicitation"))
    steering: pd.DataFrame = field(default_factory=lambda: _empty("steering"))
    monitoring: pd.DataFrame = field(default_factory=lambda: _empty("monitoring"))
    projections: pd.DataFrame = field(default_factory=lambda: _empty("projections"))
    mmlu: pd.DataFrame = field(default_factory=lambda: _empty("mmlu"))
    vectors: pd.DataFrame = field(default_factory=lambda: _empty("vectors"))
    tokens: pd.DataFrame = field(default_factory=lambda: _empty("tokens"))
    panel: pd.DataFrame = field(default_factory=lambda: _empty("panel"))
    cosines: pd.DataFrame = field(default_factory=lambda: _empty("cosines"))
    finetuning: pd.DataFrame = field(default_factory=lambda: _empty("finetuning"))
    shifts: pd.DataFrame = field(default_factory=lambda: _empty("shifts"))
    training: pd.DataFrame = field(default_factory=lambda: _empty("training"))
    flagging: pd.DataFrame = field(default_factory=lambda: _empty("flagging"))
    flagging_trained: pd.DataFrame = field(default_factory=lambda: _empty("flagging_trained"))
    scenes: pd.DataFrame = field(default_factory=lambda: _empty("scenes"))
    monitors: pd.DataFrame = field(default_factory=lambda: _empty("monitors"))
    evasion: pd.DataFrame = field(default_factory=lambda: _empty("evasion"))
    readings: pd.DataFrame = field(default_factory=lambda: _empty("readings"))
    variants: pd.DataFrame = field(default_factory=lambda: _empty("variants"))
    sensitivity: pd.DataFrame = field(default_factory=lambda: _empty("sensitivity"))
    twins: pd.DataFrame = field(default_factory=lambda: _empty("twins"))

    def __post_init__(self) -> None:
        for name in SAMPLE_COLUMNS:
            frame: pd.DataFrame = getattr(self, name)
            missing = [column for column in SAMPLE_COLUMNS[name] if column not in frame.columns]
            if missing:
                raise DataError(
                    f"The sample frame '{name}' lacks the column(s) {', '.join(missing)}: "
                    f"it must have {', '.join(SAMPLE_COLUMNS[name])}"
                )

    @property
    def traits(self) -> list[str]:
        """The traits that occur in any frame, sorted."""
        found: set[str] = set()
        for frame in (getattr(self, part.name) for part in fields(self)):
            found |= {str(trait) for trait in frame["trait"].dropna().unique()}
        return sorted(found - {""})


def number(found: Any) -> float:
    """What a log holds as a number: NaN where it holds none."""
    return math.nan if found is None else float(found)
