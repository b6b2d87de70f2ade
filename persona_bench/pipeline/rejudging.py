"""Another grader judges the responses of a finished run again: which verdicts hang on the grader?

Nothing is generated. The vectors, the responses they steered, MMLU, adapters and flagged sets are those of the run; the
new grader is calibrated and gated as the first was, on the same labelled answers, and every choice that rests on scores
is made anew from its own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_bench.definitions.traits import Trait
from persona_bench.errors import DataError, RunError
from persona_bench.files import file_lock, write_atomic
from persona_bench.pipeline.job import Run
from persona_bench.pipeline.limits import by_log
from persona_bench.pipeline.settings import Say, Settings, finished, run_folder

if TYPE_CHECKING:
    import pandas as pd
    from inspect_ai.log import EvalLog

    from persona_bench.vectors.vector import PersonaVector

OF = "rejudged_run.json"
"""Says whose responses a folder's logs hold, so that an interrupted call goes on with the same."""
STAYS = (
    "The vectors are those of the first run, made of the responses that its grader let pass: what is asked is whether "
    "the verdicts change given the same vectors, not whether another grader would have made another vector.",
    "Gate, layer and strength of steering, the filter's counts and all scores are the second grader's; layer and "
    "strength are chosen anew on the select half.",
    "What was generated or measured at the first grader's choice stays where it was: MMLU, evasion, adapters, what was "
    "flagged, and what another pass over the elicited responses told (tables left_out and sensitivity).",
)


def rejudge(source: Path, grader: str, out: Path, say: Say, command: str = "") -> tuple[Path, dict[str, Any]]:
    """Judge a finished run's responses again and write OUT/<model>/<preset>/, as `run` does, and grader_change.csv.

    Args:
        source: the folder of the run, with its full logs.
        grader: an Inspect model or local weights; several, comma-separated, are a panel.
        out: the results folder to write to, not that of the run.
        say: told what happens, a line at a time.
        command: the command line, for the report.

    Returns:
        The folder and its run.json. An interrupted call goes on with the logs that are still to be judged.

    Raises:
        RunError: the folder holds no finished run, none of its responses, or the target another run.
    """
    first = _read(source)
    names = {item.name for item in fields(Settings)}
    told: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in first.items() if key in names
    }
    settings = Settings(**{**told, "grader": grader})
    folder = run_folder(settings, out)
    if folder.resolve() == source.resolve():
        raise RunError(f"{folder} is the run itself; choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / ".lock", on_wait=lambda: say(f"another run is at work in {folder}; waiting for it")):
        _claim_folder(folder, first, grader)
        held = finished(settings, out)
        if held is None:
            held = Rejudged(settings, source, first, folder, say, command).go()
    return folder, held


def _read(source: Path) -> dict[str, Any]:
    path = source / "run.json"
    if not path.is_file():
        raise RunError(f"{source} holds no finished run: no run.json; name a folder OUT/<model>/<preset>")
    try:
        first: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        logs = [entry["file"] for entry in first["logs"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"cannot read {path}: {type(error).__name__}: {error}; run it again") from error
    if first.get("published"):
        raise RunError(f"{source} is header-only; rejudge needs the full logs: name the run that it was made from")
    missing = [name for name in logs if not (source / name).is_file()]
    if missing:
        raise RunError(f"{source / missing[0]} is missing; rejudge needs the full logs of the run")
    return first


def _ids(held: dict[str, Any]) -> dict[str, str]:
    return {name: entry["eval_id"] for name, entry in held["logs"].items()}


def _claim_folder(folder: Path, first: dict[str, Any], grader: str) -> None:
    """Write down whose responses the folder is about; refuse it if it is about others."""
    told = json.dumps({"logs": _ids(first), "grader": grader}, indent=1, sort_keys=True) + "\n"
    path = folder / OF
    taken = path.read_text(encoding="utf-8") != told if path.exists() else any(folder.glob("*.json"))
    if taken:
        raise RunError(f"{folder} holds another run or another grader's judgement; choose another --out")
    write_atomic(path, told)


class Rejudged(Run):
    """The stages that judging again needs."""

    def __init__(
        self, settings: Settings, source: Path, first: dict[str, Any], folder: Path, say: Say, command: str = ""
    ) -> None:
        super().__init__(settings, folder, say, command)
        self.source, self.first = source, first

    def go(self) -> dict[str, Any]:
        """Judge what is still to be judged, choose anew, and analyse."""
        with self.record.timed("load"):
            self.load_graders()
            vectors = self._vectors()
        with self.record.timed("judge"):
            self._announce_calls()
            asyncio.run(self._calibrate())
            self._judge_logs()
        self.method = self._read_before()
        with self.record.timed("analyse"):
            return self.analyse(vectors, self._choose_layers(vectors))

    def _weights(self) -> dict[str, Any]:
        return dict(self.first["weights"])

    def _planned_responses(self, trait: Trait) -> int:
        """How many of the run's responses there are to judge for a trait, at most."""
        return sum(_responses(self._source_log(name), trait.name) for name in self.first["logs"])

    def _source_log(self, name: str) -> EvalLog:
        from persona_bench.inspect_ext.judging import full_log

        try:
            return full_log(self.source / self.first["logs"][name]["file"])
        except DataError as error:
            raise RunError(f"{error}; rejudge needs the full logs of the run") from error

    def _judge_logs(self) -> None:
        """Each log again: judged ones under the new grader, the others as they are; the labelled answers first."""
        names = sorted(self.first["logs"])
        labelled = [name for name in names if name.startswith("judge_validity/")]
        for number, name in enumerate([*labelled, *(name for name in names if name not in labelled)], 1):
            target = self.folder / self.first["logs"][name]["file"]
            if not self._judged_already(name, target):
                self.say(f"judging {name}, {number} of {len(names)}")
                self._judge_log(name, target)
            if number == len(labelled):
                self.write_gate()

    def _new_id(self, name: str) -> str:
        """An id of its own, the same for the same responses and grader."""
        told = f"{self.first['logs'][name]['eval_id']} {self.settings.grader}"
        return hashlib.sha256(told.encode()).hexdigest()[:22]

    def _judged_already(self, name: str, target: Path) -> bool:
        from inspect_ai.log import read_eval_log

        from persona_bench.inspect_ext.outage import grader_failures

        if not target.exists():
            return False
        header = read_eval_log(str(target), header_only=True).eval
        if header.eval_id == self._new_id(name):
            return not grader_failures(read_eval_log(str(target))).too_many
        return bool(header.eval_id == self.first["logs"][name]["eval_id"])

    def _judge_log(self, name: str, target: Path) -> None:
        from inspect_ai.log import write_eval_log

        from persona_bench.files import atomic_path
        from persona_bench.inspect_ext.judging import open_graders, rescored, scorers_of
        from persona_bench.inspect_ext.outage import grader_failures

        log = self._source_log(name)
        scorers = scorers_of(log)
        with atomic_path(target) as temporary:
            if not scorers:
                shutil.copyfile(self.source / self.first["logs"][name]["file"], temporary)
                return
            judged = rescored(log, open_graders(self.graders), scorers)
            failures = grader_failures(judged)
            if failures.too_many:
                raise RunError(f"{name}: {failures}; once it answers, run the same command again to go on")
            judged.eval.eval_id = self._new_id(name)
            judged.eval.metadata = {**(judged.eval.metadata or {}), "rejudged": self.first["logs"][name]["eval_id"]}
            write_eval_log(judged, str(temporary), format="eval")

    def _vectors(self) -> dict[str, PersonaVector]:
        """The run's own vectors, copied; `record.no_vector` keeps why the others have none."""
        from persona_bench.vectors.vector import PersonaVector

        vectors: dict[str, PersonaVector] = {}
        for trait, told in self.first["vectors"].items():
            path = self.source / "vectors" / f"{trait}.safetensors"
            vectors[trait] = PersonaVector.load(path)
            if vectors[trait].hash != told:
                raise RunError(f"{path} is not the vector that run.json names; run it again")
            write_atomic(self._vector_path(trait), path.read_bytes())
            beside = self._sums_path(trait).relative_to(self.folder.resolve())
            if (self.source / beside).exists():
                write_atomic(self._sums_path(trait), (self.source / beside).read_bytes())
        prefix = "no vector: "
        for _, row in self._first_claims.iterrows():
            if row["reason"].startswith(prefix) and row["trait"] not in vectors:
                self.record.no_vector.setdefault(row["trait"], row["reason"].removeprefix(prefix))
        return vectors

    def _choose_layers(self, vectors: dict[str, PersonaVector]) -> dict[str, int]:
        """As the new scores choose, else as the first run did."""
        import pandas as pd

        table = pd.read_csv(self.source / "tables" / "vectors.csv", keep_default_na=False)
        table = table[table["chosen"].astype(str) == "True"]
        before = {str(trait): int(layer) for trait, layer in zip(table["trait"], table["layer"], strict=True)}
        chosen = {**before, **self._steered_layers()}
        self.record.warnings += [
            f"{trait}: the first grader's scores chose layer {before[trait]}, where MMLU was asked; the second's "
            f"choose layer {chosen[trait]}"
            for trait in vectors
            if chosen[trait] != before.get(trait, chosen[trait])
        ]
        return {trait: chosen[trait] for trait in vectors}

    def _read_before(self) -> list[dict[str, list[dict[str, Any]]]]:
        """What another pass over the elicited responses told in the first run."""
        found = []
        for trait in self.traits:
            path = self.source / "limits" / f"{trait.name}.json"
            if path.exists() and self._wants("stated_limits"):
                held = json.loads(path.read_text(encoding="utf-8"))
                found.append(by_log(held["rows"], trait.name))
        return found

    @property
    def _activations(self) -> Path:
        from persona_bench.inspect_ext.scenes import FOLDER

        return (self.source / FOLDER).resolve()

    @property
    def _first_claims(self) -> pd.DataFrame:
        from persona_bench.analysis.terminal import read_claims

        return read_claims(self.source / "claims.csv")

    def compare(self, claims: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Both graders' verdicts."""
        from persona_bench.analysis.changes.verdicts import GRADER_CHANGE, verdict_change

        return {GRADER_CHANGE: verdict_change(self._first_claims, claims)}

    def _run_json(self, logs: dict[str, EvalLog], vectors: dict[str, PersonaVector]) -> dict[str, Any]:
        told = {
            "grader": self.first["grader"],
            "date": self.first["date"],
            "logs": _ids(self.first),
            "stays": list(STAYS),
        }
        return {**super()._run_json(logs, vectors), "rejudged": told}

    def _deviations(self) -> list[str]:
        return [str(text) for text in self.first["deviations"]]


def _responses(log: EvalLog, trait: str) -> int:
    """How many responses of a log a grader is asked about, for one trait."""
    scorers = {spec.name.rpartition("/")[2] for spec in log.eval.scorers or []}
    n = 0
    for sample in log.samples or []:
        said = sample.metadata
        if "trait_judge" in scorers:
            n += (said.get("trait") == trait) * max(1, len(said.get("turns") or ()))
        elif "by_kind" in scorers:
            n += said["kind"] == "trait" and said["trait"] == trait
        elif "flag_score" in scorers:
            n += bool(said["judged"]) and trait in said["traits"]
    return n
