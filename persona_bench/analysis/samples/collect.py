"""Inspect logs -> sample frames: one row a sample, nothing aggregated, every row with the name of its log."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from inspect_ai.log import EvalLog, EvalLogInfo, EvalSample, list_eval_logs, read_eval_log

from persona_bench.analysis.samples.flagging import flagging_frames
from persona_bench.analysis.samples.frames import CELL, SAMPLE_COLUMNS, SIGNALS, Samples
from persona_bench.analysis.samples.limits import evaded_rows, scene_rows
from persona_bench.analysis.samples.vectors import vector_rows
from persona_bench.definitions.evasion import EVASION
from persona_bench.definitions.outcomes import Filter
from persona_bench.definitions.presets import load_finetuning_preset
from persona_bench.definitions.trials import dose_of
from persona_bench.errors import DataError, RunError
from persona_bench.inspect_ext.answering import key
from persona_bench.inspect_ext.cells import half
from persona_bench.inspect_ext.finetuned import WAYS_ASKED
from persona_bench.inspect_ext.solvers import TWINS
from persona_bench.models.finetuning import PROJECTION
from persona_bench.vectors.extraction import Rollout, drop_reasons
from persona_bench.vectors.question_sums import QuestionSums
from persona_bench.vectors.vector import PersonaVector


def read_logs(folder: Path, task: str = "") -> dict[str, EvalLog]:
    """The finished logs under a folder by logical name (`task/trait`); of two with one name the one begun last counts.

    Args:
        folder: and those below it.
        task: whose logs are read; by default all, of which some take seconds each.

    Raises:
        DataError: a log cannot be read.
        RunError: a log did not end well, or holds samples that failed.
    """
    logs: dict[str, EvalLog] = {}
    # The name of a log begins with the time at which it was begun, and copying keeps it.
    for info in sorted(list_eval_logs(str(folder)), key=lambda item: path_of(item).name):
        if task and read_log(info, header_only=True).eval.task.rsplit("/", 1)[-1] != task:
            continue
        log = read_log(info)
        if log.status != "success":
            continue
        check_log(log)
        logs[log_name(log)] = log
    return logs


def read_log(info: EvalLogInfo, *, header_only: bool = False) -> EvalLog:
    """A log of a run, with its samples or without.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return read_eval_log(info, header_only=header_only)
    except Exception as error:
        # Readers raise errors of zip, zstd, JSON and pydantic alike.
        raise DataError(f"cannot read log {path_of(info)}: {type(error).__name__}; remove it and run again") from error


def path_of(info: EvalLogInfo) -> Path:
    """Where a log is."""
    return Path(info.name.removeprefix("file://"))


def check_log(log: EvalLog) -> None:
    """Refuse a log that did not succeed or that holds failed samples.

    Raises:
        RunError: naming the first failure.
    """
    if log.status != "success":
        reason = log.error.message.splitlines()[0] if log.error and log.error.message else log.status
        raise RunError(f"{log.eval.task} did not finish ({reason}); see {log.location}")
    failed = [sample for sample in log.samples or [] if sample.error is not None]
    if failed and failed[0].error is not None:
        message = failed[0].error.message.splitlines()[0]
        raise RunError(
            f"{len(failed)} samples of {log.eval.task} failed, the first with: {message}; see {log.location}"
        )


def log_name(log: EvalLog) -> str:
    """The name by which tables refer to a log, the same in every run: `task/trait`, or `task/trait/condition`."""
    task = log.eval.task.rsplit("/", 1)[-1]
    metadata = log.eval.metadata or {}
    if "behaviour" in metadata:
        return "/".join(filter(None, (task, metadata["behaviour"], metadata.get("trait", ""))))
    if "trial" in metadata or "flagging" in metadata:
        return f"{task}/{metadata['name']}"
    name = f"{task}/{metadata.get('trait') or log.eval.task_args.get('trait', 'evil')}"
    # Conditions of one trait are logs of their own.
    return name if metadata.get("condition", "ladder") == "ladder" else f"{name}/{metadata['condition']}"


def rollouts(log: EvalLog) -> list[Rollout]:
    """The judged responses of a `trait_elicitation` log."""
    out = []
    for sample in log.samples or []:
        judged = _judged(sample)
        said = judged["raw_trait"] if judged["status"] == "incoherent" else judged["trait_score"]
        out.append(
            Rollout(
                side=sample.metadata["side"],
                pair=sample.metadata["pair"],
                question_id=sample.metadata["question_id"],
                epoch=sample.epoch,
                messages=tuple((message.role, message.text) for message in _input(sample)),
                response=sample.output.completion,
                status=judged["status"],
                trait_score=said,
                coherence=judged["coherence"],
            )
        )
    return sorted(out, key=lambda item: (item.question_id, item.pair, item.side, item.epoch))


def collect(
    logs: dict[str, EvalLog],
    vectors: Sequence[PersonaVector],
    rule: Filter,
    chosen: dict[str, int] | None = None,
    sums: Mapping[str, QuestionSums] | None = None,
) -> Samples:
    """All sample frames of a run.

    Args:
        logs: by logical name.
        vectors: of the run's traits.
        rule: the extraction filter, which decides the `kept` column.
        chosen: trait -> layer used for monitoring and MMLU.
        sums: trait -> what its vector is made of by question; without, cosines have no intervals.
    """
    readers = {
        "judge_validity": ("judge", _judge_rows),
        "trait_steering": ("steering", _steering_rows),
        "trait_monitoring": ("monitoring", _monitoring_rows),
        "mmlu_preservation": ("mmlu", _mmlu_rows),
        "limits_variants": ("variants", _steering_rows),
    }
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SAMPLE_COLUMNS}
    for name, log in sorted(logs.items()):
        task = name.split("/")[0]
        if task == "preventative_steering":
            for frame, found in finetuned_rows(name, log).items():
                rows[frame] += found
        elif task == "data_flagging":
            for frame, found in flagging_frames(name, log, _judged).items():
                rows[frame] += found
        elif task == "stated_limits":
            if (log.eval.metadata or {})["behaviour"] == EVASION:
                rows["evasion"] += evaded_rows(name, log, _judged)
            else:
                rows["scenes"] += scene_rows(name, log)
        elif task == "trait_elicitation":
            rows["elicitation"] += _elicitation_rows(name, log, rule)
        elif task in readers:
            frame, reader = readers[task]
            rows[frame] += [{**row, "log": name} for sample in log.samples or [] for row in reader(sample, log)]
            if task == "trait_monitoring":
                rows["projections"] += [row for sample in log.samples or [] for row in _projection_rows(sample)]
                rows["tokens"] += [row for sample in log.samples or [] for row in _token_rows(sample)]
        members = [row for sample in log.samples or [] if not _is_twin(sample) for row in _panel_rows(sample, name)]
        rows["panel"] += [{**row, "eval": task, "log": name} for row in members]
    rows["mmlu"] = _once(rows["mmlu"])
    rows["twins"] = [row for row in rows["judge"] if row["set"] == TWINS]
    rows["judge"] = [row for row in rows["judge"] if row["set"] != TWINS]
    for frame, found in vector_rows(vectors, chosen or {}, sums or {}).items():
        rows[frame] += found
    return Samples(**{name: _frame(name, items) for name, items in rows.items()})


def with_readings(samples: Samples, method: Sequence[Mapping[str, list[dict[str, Any]]]]) -> Samples:
    """The frames with what another pass over the elicited responses told (`vectors.variants.read_trait`, with a log).

    Args:
        samples: the frames from the logs.
        method: one entry a trait.
    """
    if not method:
        return samples
    rows = {name: [row for part in method for row in part[name]] for name in ("readings", "sensitivity")}
    read = [{**row, "half": half(row["question_id"])} for row in rows["readings"]]
    return replace(samples, readings=_frame("readings", read), sensitivity=_frame("sensitivity", rows["sensitivity"]))


def _once(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The unsteered model answers the same questions in every trait's log, with the same result: count it once."""
    seen: set[tuple[Any, ...]] = set()
    out = []
    for row in rows:
        if row["vector"] == "none" and row["setting"] == "none":
            same = tuple(row[name] for name in ("question_id", "scoring", "source", "benchmark", "shots"))
            if same in seen:
                continue
            seen.add(same)
            out.append({**row, "trait": ""})
        else:
            out.append(row)
    return out


def _frame(name: str, rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS[name]))
    measured = ("trait_score", "coherence", "correct", "margin", "letter", "cloze", "loss", "shown", "check")
    keys = [column for column in frame.columns if column not in measured]
    return frame.sort_values(keys, kind="stable", ignore_index=True)


def _input(sample: EvalSample) -> Iterable[Any]:
    return sample.messages[: len(sample.messages) - 1] if not isinstance(sample.input, list) else sample.input


def _judged(sample: EvalSample) -> dict[str, Any]:
    score = (sample.scores or {}).get("trait_judge")
    if score is None:
        missing = dict.fromkeys(("trait_score", "coherence", "raw_trait"), math.nan)
        return {"status": "unscored", "method": "", **missing}
    assert isinstance(score.value, dict)
    return _as_judged(score.value, score.metadata or {})


def _as_judged(value: Mapping[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    def number(key: str) -> float:
        found = value.get(key)
        return math.nan if found is None else float(found)

    return {
        "status": metadata.get("status", "unscored"),
        "trait_score": number("trait"),
        "coherence": number("coherence"),
        "method": metadata.get("method", ""),
        "raw_trait": metadata.get("raw_trait", math.nan),
    }


def _is_twin(sample: EvalSample) -> bool:
    return sample.metadata.get("set") == TWINS


def _judge_rows(sample: EvalSample, log: EvalLog) -> Iterator[dict[str, Any]]:
    bound = (log.eval.model_roles or {}).get("grader")
    models = bound if isinstance(bound, list) else [bound]
    keys = ("trait", "question_id", "half", "source", "level", "kind")
    # An answer that could not be judged names no method: the log's method names the rows.
    found = [_judged(other) for other in log.samples or [] if not _is_twin(other)]
    methods = [other["method"] for other in found if other["status"] in ("scored", "incoherent")]
    judged = _judged(sample)
    yield {
        **{key: sample.metadata[key] for key in keys},
        # Logs of older versions do not hold what its readers say of an answer besides the trait.
        **{key: sample.metadata.get(key, math.nan) for key in ("fluency", "refuses")},
        **judged,
        "set": sample.metadata.get("set", ""),
        "grader": " + ".join(model.model for model in models if model is not None),
        "trait_score": judged["raw_trait"] if judged["status"] == "incoherent" else judged["trait_score"],
        "method": methods[0] if methods else "",
    }


def _panel_rows(sample: EvalSample, log: str) -> Iterator[dict[str, Any]]:
    """What each grader of a panel said of each response of a sample."""
    scores = sample.scores or {}
    score = scores.get("trait_judge") or scores.get("by_kind")
    metadata = (score.metadata if score is not None else None) or {}
    for number, judged in enumerate(metadata.get("turns") or [metadata]):
        for member, status, trait_score in judged.get("panel", ()):
            yield {
                "trait": sample.metadata["trait"],
                "sample_id": f"{log}/{sample.id}-e{sample.epoch}-t{number}",
                "question_id": sample.metadata["question_id"],
                "member": member,
                "status": status,
                "trait_score": math.nan if trait_score is None else trait_score,
            }


def _elicitation_rows(name: str, log: EvalLog, rule: Filter) -> Iterator[dict[str, Any]]:
    items = rollouts(log)
    trait = (log.eval.metadata or {})["trait"]
    for item, reason in zip(items, drop_reasons(items, rule), strict=True):
        yield {
            "trait": trait,
            "side": item.side,
            "pair": item.pair,
            "question_id": item.question_id,
            "epoch": item.epoch,
            "status": item.status,
            "trait_score": item.trait_score,
            "coherence": item.coherence,
            "kept": not reason,
            "drop_reason": reason,
            "log": name,
        }


def _steering_rows(sample: EvalSample, _log: EvalLog) -> Iterator[dict[str, Any]]:
    keys = ("trait", *CELL, "question_id", "half")
    yield {**{key: sample.metadata[key] for key in keys}, "epoch": sample.epoch, **_judged(sample)}


def _monitoring_rows(sample: EvalSample, _log: EvalLog) -> Iterator[dict[str, Any]]:
    """One row a response: of a conversation with several, each with the text before it."""
    keys = ("trait", "condition", "side", "question_id", "half")
    shared = {**{key: sample.metadata[key] for key in keys}, "epoch": sample.epoch}
    said = [message.text for message in _input(sample)]
    for number, (turn, judged) in enumerate(_turns(sample)):
        if number:
            said.append(turn["user"])
        rung = number if sample.metadata["user_turns"] else sample.metadata["rung"]
        identity = {"sample_id": _turn_id(sample, number), "rung": rung, "prompt": "\n".join(said)}
        yield {**shared, **identity, **judged}
        said.append(turn["answer"])


def _turns(sample: EvalSample) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(what was said and projected, how it was judged) for each response of a sample."""
    turns = sample.metadata.get("turns")
    if not turns:
        return [({"answer": sample.output.completion, **(sample.output.metadata or {})}, _judged(sample))]
    score = (sample.scores or {}).get("trait_judge")
    judged = (score.metadata or {}).get("turns", []) if score is not None else []
    missing: dict[str, Any] = {"value": {}}
    return [(turn, _as_judged(*_parts(judged[i] if i < len(judged) else missing))) for i, turn in enumerate(turns)]


def _parts(judged: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    return judged["value"], {key: value for key, value in judged.items() if key != "value"}


def _turn_id(sample: EvalSample, turn: int) -> str:
    name = f"{sample.id}-e{sample.epoch}"
    return f"{name}-t{turn}" if sample.metadata["user_turns"] else name


def _projection_rows(sample: EvalSample) -> Iterator[dict[str, Any]]:
    for number, (turn, _) in enumerate(_turns(sample)):
        for direction, layers in turn.get("projections", {}).items():
            for layer, values in layers.items():
                yield {
                    "sample_id": _turn_id(sample, number),
                    "trait": sample.metadata["trait"],
                    "direction": direction,
                    "layer": int(layer),
                    **{signal: values.get(signal, math.nan) for signal in SIGNALS},
                }


def _token_rows(sample: EvalSample) -> Iterator[dict[str, Any]]:
    """Every response token's projection on the persona direction, where it was kept."""
    for number, (turn, _) in enumerate(_turns(sample)):
        for layer, values in turn.get("projections", {}).get("persona", {}).items():
            tokens = zip(turn.get("tokens", []), values.get("per_token", []), strict=False)
            for position, (token, projection) in enumerate(tokens):
                yield {
                    "sample_id": _turn_id(sample, number),
                    **{key: sample.metadata[key] for key in ("trait", "condition")},
                    "rung": number if sample.metadata["user_turns"] else sample.metadata["rung"],
                    "layer": int(layer),
                    "position": position,
                    "token": token,
                    "projection": projection,
                }


def _mmlu_rows(sample: EvalSample, _log: EvalLog) -> Iterator[dict[str, Any]]:
    """One row a way of asking."""
    score = (sample.scores or {}).get("right_choice")
    value = score.value if score is not None and isinstance(score.value, dict) else {}
    outcomes = (score.metadata or {}).get("outcomes", {}) if score is not None else {}
    held = sample.metadata
    cell = {name: held[name] for name in ("trait", *CELL, "question_id", "source", "benchmark", "group")}
    for way, shots in held["asked"]:
        name = key(way, shots)
        yield {
            **cell,
            "scoring": way,
            "shots": shots,
            "chance": math.nan if way == "likelihood" else 1 / len(sample.choices or []),
            "correct": _number(value.get(name)),
            "margin": _number(value.get(f"{name}_margin")),
            "status": outcomes.get(name, "unscored"),
        }


def _number(found: Any) -> float:
    return math.nan if found is None else float(found)


def finetuned_rows(name: str, log: EvalLog) -> dict[str, list[dict[str, Any]]]:
    """The rows of one `preventative_steering` log: what was measured, the projections, and the training's steps."""
    metadata = log.eval.metadata or {}
    trial = metadata["trial"]
    dose = dose_of(trial["arm"], load_finetuning_preset(str(log.eval.task_args["preset"])))
    rows: dict[str, list[dict[str, Any]]] = {"finetuning": [], "shifts": [], "training": []}
    for sample in log.samples or []:
        said = sample.metadata
        rows["finetuning"].append({**trial, "dose": dose, **_finetuned_row(sample), "log": name})
        for direction, layers in (sample.output.metadata or {}).get("projections", {}).items():
            rows["shifts"] += [
                {
                    **trial,
                    "trait": said["trait"],
                    "question_id": str(said["question_id"]),
                    "direction": direction,
                    "layer": int(layer),
                    "prompt_last": values["prompt_last"],
                }
                for layer, values in layers.items()
            ]
    for step in metadata.get("history", []):
        watched = {key.removeprefix(PROJECTION): value for key, value in step.items() if key.startswith(PROJECTION)}
        rows["training"] += [
            {**trial, "step": step["step"], "loss": step.get("loss", math.nan), "trait": key, "projection": value}
            for key, value in (watched or {"": math.nan}).items()
        ]
    return rows


def _finetuned_row(sample: EvalSample) -> dict[str, Any]:
    said, score = sample.metadata, (sample.scores or {}).get("by_kind")
    value = score.value if score is not None and isinstance(score.value, dict) else {}
    numbers = {key: math.nan if value.get(key) is None else value[key] for key in (*WAYS_ASKED, "loss", "recall")}
    told = (score.metadata if score is not None else None) or {}
    outcomes = {told.get("outcome"), *told.get("outcomes", {}).values()}
    status = "unscored" if score is None else "too_long" if "too_long" in outcomes else "scored"
    judged: dict[str, Any] = {"status": status, "trait_score": math.nan, "coherence": math.nan}
    if said["kind"] == "trait" and score is not None:
        judged = {key: item for key, item in _as_judged(value, told).items() if key in judged}
    texts = {key: said.get(key, "") for key in ("trait", "set", "half")}
    # Questions of MMLU are named by a hash, the others by a number.
    return {
        "kind": said["kind"],
        **texts,
        "question_id": str(said["question_id"]),
        "rollout": said.get("rollout", 0),
    } | {
        **judged,
        **numbers,
    }
