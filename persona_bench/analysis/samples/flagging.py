"""The logs of `data_flagging` -> sample frames: a row a sample and trait, and a row an answer of a trained model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from inspect_ai.log import EvalLog, EvalSample

from persona_bench.analysis.samples.frames import control_columns, number
from persona_bench.definitions.flagging import MEASURES
from persona_bench.definitions.trials import RANDOM_DIRECTIONS

Judged = Callable[[EvalSample], dict[str, Any]]


def flagging_frames(name: str, log: EvalLog, judged: Judged) -> dict[str, list[dict[str, Any]]]:
    """Rows by sample frame.

    Args:
        name: of the log.
        log: of any part of the eval.
        judged: reads the judgement of an answer to a question.
    """
    told = (log.eval.metadata or {})["flagging"]
    if "pick" in told:
        return {"flagging_trained": [_answer(sample, told, judged) | {"log": name} for sample in log.samples or []]}
    return {
        "flagging": [
            {**row, "log": name} for sample in log.samples or [] for row in _flagged(sample, told.get("layers", {}))
        ]
    }


def _flagged(sample: EvalSample, layers: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    said = sample.metadata
    score = (sample.scores or {}).get("flag_score")
    value = score.value if score is not None and isinstance(score.value, dict) else {}
    judged = ((score.metadata if score is not None else None) or {}).get("judged", {})
    text = "\n".join([*(str(turn["content"]) for turn in said["messages"]), said["answer"]])
    keys = ("kind", "family", "version", "source", "question_id", "half")
    for trait in said["traits"]:
        own = said["values"][trait]
        controls = [said["values"].get(f"{name} {trait}", {}) for name in RANDOM_DIRECTIONS]
        yield {
            **{key: said[key] for key in keys},
            "sample_id": str(sample.id),
            "trait": trait,
            "layer": layers.get(trait, math.nan),
            "measured": said["status"],
            **{measure: number(own.get(measure)) for measure in MEASURES},
            **{
                name: number(control.get(measure))
                for measure in MEASURES
                for name, control in zip(control_columns(measure), controls, strict=True)
            },
            "status": judged.get(trait, {}).get("status", "unscored" if said["judged"] else ""),
            "judge": number(value.get(trait)),
            "loss": number(value.get("loss")),
            "classifier": math.nan,
            "text": text,
        }


def _answer(sample: EvalSample, told: Mapping[str, Any], judged: Judged) -> dict[str, Any]:
    found = judged(sample)
    return {
        **{key: told[key] for key in ("pool", "pick", "trait", "n_picked", "difference")},
        **{key: sample.metadata[key] for key in ("half", "rollout")},
        "question_id": str(sample.metadata["question_id"]),
        "made_of": ", ".join(f"{name}: {n}" for name, n in told["made_of"].items()),
        **{key: found[key] for key in ("status", "trait_score", "coherence")},
    }
