"""Logs of `stated_limits` -> rows of its frames."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from persona_bench.analysis.samples.frames import number
from persona_bench.inspect_ext.evasion import RANDOM
from persona_bench.inspect_ext.scene_judge import SEES
from persona_bench.inspect_ext.scenes import WAYS

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.scorer import Score


def scene_rows(name: str, log: EvalLog) -> Iterator[dict[str, Any]]:
    """Rows of `SCENES` from one log of `stated_limits`."""
    for sample in log.samples or []:
        said, score = sample.metadata, (sample.scores or {}).get("chosen")
        value = score.value if score is not None and isinstance(score.value, dict) else {}
        judge = (sample.scores or {}).get("scene_judge")
        for way in WAYS:
            listed = "\n".join(
                f"{letter}. {text}" for letter, text in zip("AB", said["choice"]["options"], strict=True)
            )
            yield {
                "trait": "",
                **{key: said[key] for key in ("behaviour", "topic", "pair", "half", "rewarded")},
                "way": way,
                "shown": number(value.get(way)),
                "check": number(value.get(f"{way}_check")),
                "prompt": said["choice"]["text"] + (f"\n{listed}" if way == "letter" else ""),
                "sample_id": str(sample.id),
                "layers": ",".join(map(str, said.get("layers", ()))),
                "activations": said.get("activations", {}).get(way, ""),
                **_judged(judge, way),
                "log": name,
            }


def _judged(score: Score | None, way: str) -> dict[str, Any]:
    """What the grader said of a scene; nothing where none was asked."""
    value = score.value if score is not None and isinstance(score.value, dict) else {}
    told = (score.metadata if score is not None else None) or {}
    row: dict[str, Any] = {"grader": told.get("grader", "")}
    for sees in SEES:
        key = f"{way}_{sees}"
        row[f"judge_{sees}"] = number(value.get(key))
        row[f"judge_{sees}_status"] = told.get("outcomes", {}).get(key, {}).get("status", "")
    return row


def _evaded_row(sample: EvalSample, judged: dict[str, Any], name: str) -> dict[str, Any]:
    """One row of `EVADED`."""
    said = sample.metadata
    seen = (sample.output.metadata or {}).get("projections", {})

    def at(direction: str) -> float:
        return float(seen.get(direction, {}).get(str(said["layer"]), {}).get("prompt_last", math.nan))

    return {
        **{key: said[key] for key in ("trait", "way", "number", "question_id", "half", "layer")},
        "epoch": sample.epoch,
        **{key: judged[key] for key in ("status", "trait_score", "coherence")},
        "projection": at("persona"),
        "random": at(RANDOM),
        "log": name,
    }


def evaded_rows(name: str, log: EvalLog, judged: Any) -> Iterator[dict[str, Any]]:
    """Rows of `EVADED` from a log; `judged` reads how a sample was judged."""
    for sample in log.samples or []:
        yield _evaded_row(sample, judged(sample), name)
