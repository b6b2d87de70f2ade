"""Judging outside an eval: a file of answers, or a finished log again with another grader."""

from __future__ import annotations

import asyncio
import contextvars
import csv
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_bench.definitions.outcomes import Method
from persona_bench.definitions.traits import Trait
from persona_bench.errors import DataError, RunError
from persona_bench.files import atomic_path, read_jsonl
from persona_bench.inspect_ext.judge import judge_panel, trait_judge

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog
    from inspect_ai.model import Model
    from inspect_ai.scorer import Scorer

COLUMNS = ("index", "score", "status", "coherence", "method", "reason")
STATUS_NAMES = {"unscored": "failed"}  # the word the command line uses
CHUNK = 256


def open_graders(specs: Sequence[str]) -> list[Model]:
    """The Inspect models of these names.

    Raises:
        RunError: one cannot be had: an unknown provider, a missing package or key.
    """
    from inspect_ai.model import get_model

    return [opened(f"grader {spec}", partial(get_model, spec)) for spec in specs]


def opened(what: str, make: Callable[[], Model]) -> Model:
    """A model, or one line on why it cannot be had.

    Raises:
        RunError: an unknown provider, a missing package or key.
    """
    try:
        return make()
    except Exception as error:
        # Inspect and its providers raise errors of their own for an unknown name, a missing package or key, of
        # several lines with marks for the screen.
        said = re.sub(r"\[/?[a-z ]+\]", "", " ".join(str(error).split())) or type(error).__name__
        raise RunError(f"{what} cannot be used: {said.removeprefix('ERROR: ')}") from error


def judge_file(
    graders: Sequence[Model],
    trait: Trait,
    source: Path,
    target: Path,
    method: Method = "auto",
    progress: Callable[[str], None] | None = None,
) -> Counter[str]:
    """Judge every line `{"question", "answer"}` of a JSONL file into a CSV; returns how often each status came.

    Memory does not grow with the file. Judgements are kept, so an interrupted call goes on where it stopped.

    Raises:
        DataError: the input is broken, or the output cannot be written.
        RunError: the grader cannot judge this trait, or not at all.
    """
    counts: Counter[str] = Counter()
    lines = read_jsonl(source)

    async def write(file: Path) -> None:
        done = 0
        with file.open("w", newline="", encoding="utf-8") as opened:
            writer = csv.writer(opened, lineterminator="\n")
            writer.writerow(COLUMNS)
            while chunk := list(islice(lines, CHUNK)):
                texts = [_texts(item, f"{source}, line {number}") for number, item in chunk]
                results = await asyncio.gather(*(judge_panel(graders, trait, *text, method) for text in texts))
                for offset, result in enumerate(results):
                    status = STATUS_NAMES.get(result.status, result.status)
                    counts[status] += 1
                    numbers = (_number(result.trait), status, _number(result.coherence))
                    writer.writerow([done + offset, *numbers, result.method, result.reason])
                done += len(chunk)
                if progress is not None:
                    progress(f"{done} answers judged")

    with atomic_path(target) as temporary:
        # In a context of its own: where the caller has a transcript, Inspect keeps every call there.
        contextvars.Context().run(lambda: asyncio.run(write(temporary)))
    return counts


def _texts(item: dict[str, object], where: str) -> tuple[str, str]:
    question, answer = item.get("question"), item.get("answer")
    if not isinstance(question, str) or not isinstance(answer, str):
        raise DataError(f"{where}: needs `question` and `answer` as text")
    return question, answer


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def judge_log(
    graders: Sequence[Model], trait: str, source: Path, target: Path, method: Method = "auto"
) -> Counter[str]:
    """Judge the responses of a finished Inspect log again and write the log anew; nothing is generated.

    The new log names the new graders; the old ones, which may be gone, are not opened.

    Raises:
        DataError: the log cannot be read or holds no samples, or the output cannot be written.
        RunError: the grader cannot judge this trait, or not at all.
    """
    from inspect_ai.log import write_eval_log

    judged = rescored(full_log(source), graders, [trait_judge(trait, method)])
    with atomic_path(target) as temporary:
        write_eval_log(judged, str(temporary), format="eval")
    counts: Counter[str] = Counter()
    for sample in judged.samples or []:
        for found in (sample.scores or {}).values():
            status = str((found.metadata or {}).get("status", "unscored"))
            counts[STATUS_NAMES.get(status, status)] += 1
    return counts


def full_log(source: Path) -> EvalLog:
    """A log with its samples.

    Raises:
        DataError: it cannot be read, or holds headers only.
    """
    from inspect_ai.log import read_eval_log

    try:
        log = read_eval_log(str(source))
    except Exception as error:
        # Readers raise errors of zip, zstd, JSON and pydantic alike.
        raise DataError(f"cannot read log {source}: {type(error).__name__}; is it an Inspect .eval file?") from error
    if not log.samples:
        raise DataError(f"log {source} holds no samples; judge a full log, not one with headers only")
    return log


def rescored(log: EvalLog, graders: Sequence[Model], scorers: list[Scorer]) -> EvalLog:
    """The log with what scorers give under other graders, which its header then names; nothing is generated."""
    from inspect_ai import score
    from inspect_ai.model import ModelConfig

    # Inspect opens every model that the log names in a role, and keeps their names in the new log.
    others = {role: bound for role, bound in (log.eval.model_roles or {}).items() if role != "grader"}
    log.eval.model_roles = None
    judged = score(
        log,
        scorers,
        model="none/none",
        model_roles={"grader": list(graders)},
        action="overwrite",
        display="none",
        copy=False,
    )
    configs = [
        ModelConfig(model=str(model), config=model.config, base_url=model.api.base_url, args=_plain(model.model_args))
        for model in graders
    ]
    judged.eval.model_roles = {**others, "grader": configs if len(configs) > 1 else configs[0]}
    return judged


def scorers_of(log: EvalLog) -> list[Scorer]:
    """The scorers of one of the suite's logs, with the method left to the grader; none where no grader is asked."""
    from persona_bench.inspect_ext.finetuned import by_kind
    from persona_bench.inspect_ext.flagging import flag_score
    from persona_bench.inspect_ext.scene_judge import scene_judge
    from persona_bench.inspect_ext.scenes import chosen

    asking: dict[str, Callable[..., Scorer]] = {
        "trait_judge": trait_judge,
        "by_kind": by_kind,
        "flag_score": flag_score,
        "scene_judge": scene_judge,
    }
    specs = {spec.name.rpartition("/")[2]: spec.options or {} for spec in log.eval.scorers or []}
    if asking.keys().isdisjoint(specs):
        return []
    found = [asking[name](**{**options, "method": "auto"}) for name, options in specs.items() if name in asking]
    # Every score of a log is written anew; this one reads what the model did, whoever judges.
    return [chosen(), *found] if "chosen" in specs else found


def _plain(model_args: dict[str, Any]) -> dict[str, Any]:
    """A model's arguments as a log may hold them: values that JSON has, and no credentials."""
    return {
        name: value
        for name, value in model_args.items()
        if isinstance(value, str | int | float | bool) and not re.search("key|token|secret|aws_", name)
    }
