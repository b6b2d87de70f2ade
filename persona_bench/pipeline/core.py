"""The evals of the core, and what every stage needs: weights, graders, eval sets, vectors."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_bench.definitions.presets import Preset, load_preset
from persona_bench.definitions.trait_review import load_reviewed
from persona_bench.definitions.traits import Trait, load_labelled, load_twins
from persona_bench.errors import ExtractionError, RunError
from persona_bench.files import write_atomic
from persona_bench.pipeline.pool import Pool, folders, hand_over
from persona_bench.pipeline.settings import JUDGED, NEED_VECTORS, Say, Settings, model_spec

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog
    from inspect_ai.model import GenerateConfig, Model
    from inspect_ai.util import DisplayType

    from persona_bench.pipeline.pool import Planned
    from persona_bench.vectors.vector import PersonaVector


@dataclass
class Record:
    """What run.json will hold, gathered on the way."""

    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    no_vector: dict[str, str] = field(default_factory=dict)
    _kept: tuple[Path, str] | None = None
    _at_work: tuple[str, float] | None = None

    def go_on(self, path: Path, fingerprint: str) -> None:
        """Keep the seconds of stages in a file, beginning with what calls with these settings left there.

        Raises:
            RunError: the file is broken.
        """
        self._kept = (path, fingerprint)
        if path.exists():
            try:
                held = json.loads(path.read_text(encoding="utf-8"))
                if held["fingerprint"] == fingerprint:
                    self.timings = {str(stage): float(seconds) for stage, seconds in held["timings"].items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise RunError(f"{path} is broken; remove it, and the run goes on without those timings") from error

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Seconds of a stage, all calls that did part of it together; of one that was killed they are lost."""
        self._at_work = (stage, time.monotonic() - self.timings.get(stage, 0.0))
        try:
            yield
        finally:
            self.timings, self._at_work = self.so_far(), None
            if self._kept is not None:
                path, fingerprint = self._kept
                write_atomic(path, json.dumps({"fingerprint": fingerprint, "timings": self.timings}) + "\n")

    def so_far(self) -> dict[str, float]:
        """Seconds of every stage, of the one at work until now."""
        if self._at_work is None:
            return self.timings
        stage, started = self._at_work
        return {**self.timings, stage: round(time.monotonic() - started, 2)}


class Core:
    """Loads, calibrates, elicits, extracts, steers, monitors and asks for knowledge."""

    def __init__(self, settings: Settings, folder: Path, say: Say, command: str = "") -> None:
        self.settings, self.folder, self.say, self.command = settings, folder, say, command
        self.pool: Pool | None = None
        self.preset: Preset = load_preset(settings.preset)
        self.record = Record()
        self.traits = [load_reviewed(name, say) for name in settings.traits]
        self.method: list[dict[str, list[dict[str, Any]]]] = []

    def load(self) -> None:
        """Open the model under test and the graders."""
        from persona_bench.models.loading import load
        from persona_bench.models.worker import WORKER

        spec = model_spec(self.settings.model)
        name = spec.removeprefix("persona/")
        self.say(f"loading {name}")
        self.loaded = load(name)
        self.engine = WORKER.engine(self.loaded)
        self.model = f"persona/{name}"
        self.load_graders()

    def load_graders(self) -> None:
        """Open the graders; local ones are loaded."""
        from persona_bench.inspect_ext.judging import open_graders

        self.graders = [model_spec(name.strip()) for name in self.settings.grader.split(",") if name.strip()]
        open_graders([spec for spec in self.graders if not spec.startswith("persona/")])
        for spec in self.graders:
            if spec.startswith("persona/"):
                self._load_grader(spec.removeprefix("persona/"))

    def _load_grader(self, name: str) -> None:
        from persona_bench.models.loading import load

        for trait in self.traits:
            if not load_labelled(trait.name):
                raise RunError(
                    f"trait {trait.name} has no labelled answers, which a local grader needs; use one with logprobs, "
                    "such as --grader openai/gpt-4.1-mini-2025-04-14"
                )
        self.say(f"loading grader {name}")
        if load(name).weights_hash == self._weights()["model"]["sha256"]:
            self.record.warnings.append("the grader is the model under test: it judges itself")

    def _weights(self) -> dict[str, Any]:
        """What is under test, for run.json."""
        return {
            "model": {
                "name": self.loaded.name,
                "source": self.loaded.source,
                "sha256": self.loaded.weights_hash,
                "dtype": str(self.loaded.dtype).removeprefix("torch."),
                "device": str(self.loaded.device),
                "family": str(self.loaded.model.config.model_type),
                "parameters": sum(part.numel() for part in self.loaded.model.parameters()),
            }
        }

    def set_aside(self) -> None:
        """Move the logs of a trait whose texts are others now out of the run's.

        Inspect knows a trait by the name or the path that it was asked for by, and would take them for done.

        Raises:
            DataError: a log cannot be read.
        """
        from inspect_ai.log import list_eval_logs

        from persona_bench.analysis.samples.collect import path_of, read_log

        root, moved = (self.folder / "logs").resolve(), list[str]()
        for info in list_eval_logs(str(root)):
            told = read_log(info, header_only=True).eval.metadata or {}
            held = told.get("trait_hash")
            if held and any(held != trait.hash for trait in self.traits if trait.name == told.get("trait")):
                target = self.folder / "stale" / path_of(info).relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                path_of(info).rename(target)
                moved.append(told["trait"])
        if moved:
            self.say(
                f"the texts of {', '.join(sorted(set(moved)))} have changed: evals with the old ones are done anew, "
                f"their logs ({len(moved)}) are in {self.folder / 'stale'} now"
            )

    def _wants(self, name: str) -> bool:
        asked = self.settings.evals
        return name in asked or (name == "judge_validity" and not JUDGED.isdisjoint(asked))

    def _eval_set(self, stage: str, planned: Sequence[Planned]) -> None:
        """Do what is missing of a stage's evals: all at once, or shared among processes."""
        if self.pool is None or len(planned) < 2:
            self.evaluate(stage, [make() for make in planned])
            return
        # The longest first: one that is begun last would be waited for.
        apart = folders(stage, sorted(planned, key=lambda make: _n_samples(make()), reverse=True))
        hand_over(self.folder / "logs", stage, apart)
        self.pool.evaluate(stage, apart)

    def _one_by_one(self, what: str, planned: Mapping[str, Planned]) -> None:
        """Do evals that make weights of their own, each with its folder of logs: one after another, or shared."""
        if self.pool is not None:
            self.pool.evaluate(what, planned)
            return
        for number, (folder, make) in enumerate(planned.items(), 1):
            self.say(f"{what}, {number} of {len(planned)}: {folder.rpartition('/')[2]}")
            self.evaluate(folder, [make()])

    def evaluate(self, folder: str, tasks: Sequence[Task], display: DisplayType | None = None) -> None:
        """Do what is missing of these evals, in this process.

        Args:
            folder: of their logs, within the run's.
            tasks: the evals; a model of their own is closed in the end.
            display: how Inspect shows its progress; by default as the terminal allows.

        Raises:
            RunError: an eval did not finish, a sample failed, or a grader failed at more than single responses.
        """
        from inspect_ai import eval_set
        from inspect_ai._eval.task.constants import TASK_FILE_ATTR
        from inspect_ai.log import list_eval_logs

        from persona_bench.analysis.samples.collect import check_log, path_of

        if not tasks:
            return
        for task in tasks:
            # Inspect tells evals apart by their file too, as it is called from the current directory: without it, a
            # run goes on from any directory.
            setattr(task, TASK_FILE_ATTR, None)
            if task.model is not None:
                task.model.config = task.model.config.merge(self._connections)
        self.say(f"{folder}: {len(tasks)} evals, {sum(map(_n_samples, tasks))} samples")
        slots, log_dir = self.engine.max_batch, str(self.folder / "logs" / folder)
        before = {path_of(info).name for info in list_eval_logs(log_dir)}
        success, logs = eval_set(
            list(tasks),
            log_dir=log_dir,
            model=self._local(self.model),
            model_roles={"grader": [self._local(spec) for spec in self.graders]} if self.graders else None,
            max_tasks=len(tasks),
            max_samples=slots + slots // len(tasks),  # of each eval; Inspect looks at every one of them once a second
            retry_attempts=0,
            retry_immediate=False,  # which has a meaning with retries alone, but warns without them
            log_dir_allow_dirty=True,
            log_realtime=False,
            score_display=False,  # a mean over conditions says nothing, and is computed anew all the time
            display=display or ("rich" if sys.stdout.isatty() else "plain"),
            fail_on_error=True,
        )
        if len(logs) < len(tasks):  # Inspect takes an interrupt itself, and then gives no log and calls it a success
            raise RunError(f"{folder} was interrupted; run the same command again to go on")
        unjudged = []
        for log in map(full, logs):
            check_log(log)
            unjudged += self._unjudged(log, again=Path(log.location).name in before)
        if not success:
            raise RunError(f"{folder} did not finish; run the same command again to go on")
        for task in tasks:
            if task.model is not None:
                asyncio.run(task.model.api.aclose())
        if unjudged:
            more = f"; so it did in {len(unjudged) - 1} more evals" if len(unjudged) > 1 else ""
            raise RunError(f"{unjudged[0]}{more}; once it answers, run the same command again to go on")

    @property
    def _connections(self) -> GenerateConfig:
        """Of a model that runs here: rows that finish find others waiting."""
        from inspect_ai.model import GenerateConfig

        return GenerateConfig(max_connections=2 * self.engine.max_batch)

    def _local(self, spec: str) -> Model | str:
        """A model with the engine's connections; one over the network by its name, with connections of its own."""
        from inspect_ai.model import get_model

        return get_model(spec, config=self._connections) if str(spec).startswith("persona/") else spec

    def _unjudged(self, log: EvalLog, *, again: bool) -> list[str]:
        """What a grader failed at, if it is too much; in a log of an earlier call only if it fails once more."""
        from persona_bench.analysis.samples.collect import log_name
        from persona_bench.inspect_ext.judging import open_graders
        from persona_bench.inspect_ext.outage import grader_failures, judge_again

        failures = grader_failures(log)
        if failures.too_many and again:
            self.say(f"{log_name(log)}: {failures}; judging it again")
            failures = grader_failures(judge_again(log, open_graders(self.graders)))
        return [f"{log_name(log)}: {failures}"] if failures.too_many else []

    def validate_judge(self) -> None:
        """Calibrate local graders, judge the labelled answers, and say which traits the judge may decide about."""
        from evals.judge_validity import judge_validity

        self._announce_calls()
        asyncio.run(self._calibrate())
        if not self._wants("judge_validity"):
            return
        self._eval_set(
            "judge", [partial(judge_validity, trait=name) for name in self.settings.traits if load_labelled(name)]
        )
        self.write_gate()

    def write_gate(self) -> None:
        """Say and write which traits the judge may decide about, from the logs of `judge_validity`."""
        gate = self._gate()
        for trait, found in gate.items():
            self.say(
                f"judge of {trait}: {found['method']}, AUROC {found['auroc']:.2f} ({found['auroc_low']:.2f} to "
                f"{found['auroc_high']:.2f}), balanced accuracy {found['balanced_accuracy']:.2f}: "
                + ("passes the gate" if found["passes"] else "fails the gate, so its claims cannot be tested")
            )
        write_atomic(self.folder / "judge.json", json.dumps(gate, indent=1, sort_keys=True) + "\n")

    def _gate(self) -> dict[str, dict[str, Any]]:
        """Trait -> the grader and method in use, how well they do on the report half, and whether that passes."""
        from persona_bench.analysis.samples.collect import collect
        from persona_bench.analysis.tables.build import build_tables

        samples = collect(self._logs("judge"), [], self._filter)
        methods = dict(zip(samples.judge["trait"], samples.judge["method"], strict=True))
        table = build_tables(samples, seed=self.settings.seed, judge_methods=methods)["judge"]
        chosen = table[table["chosen"].astype(bool) & (table["half"] == "report")]
        keep = [name for name in chosen.columns if name not in ("trait", "chosen", "warning", "source", "half")]
        return {row["trait"]: {name: row[name] for name in keep} for row in chosen.to_dict("records")}

    async def _calibrate(self) -> None:
        from persona_bench.inspect_ext.calibration import calibrated
        from persona_bench.inspect_ext.judging import open_graders

        for grader in open_graders([spec for spec in self.graders if spec.startswith("persona/")]):
            for trait in self.traits:
                await calibrated(grader, trait, progress=self.say)

    def _announce_calls(self) -> None:
        """What a grader that is asked over the network will be asked, before the first call."""
        from persona_bench.inspect_ext.graders import planned_calls

        asked = [spec for spec in self.graders if not spec.startswith(("persona/", "mockllm/"))]
        for spec in asked:
            plans = [
                planned_calls("logprob", responses, self.preset.max_tokens, trait)
                for trait in self.traits
                for responses in [self._planned_responses(trait)]
            ]
            calls, tokens = (sum(column) for column in zip(*plans, self._further_calls(), strict=True))
            self.say(
                f"grader {spec}: at most {calls:,} calls with about {tokens:,} input tokens (three times the calls "
                "where it gives no logprobs); identical responses are judged once"
            )

    def _further_calls(self) -> tuple[int, int]:
        """(calls, input tokens) beside those about a trait's responses, at most."""
        return 0, 0

    def _planned_responses(self, trait: Trait) -> int:
        """How many responses the run will have judged for a trait, at most."""
        from persona_bench.inspect_ext.cells import plan, preset_plan
        from persona_bench.inspect_ext.conditions import conversations

        sizes = self.preset
        labelled = sum(item.half == "report" for item in load_labelled(trait.name))
        n = labelled + len(load_twins(trait.name)) if self._wants("judge_validity") else 0
        n += min(sizes.extraction_questions, len(trait.extraction_questions)) * (
            2 * len(trait.instructions) * sizes.extraction_rollouts
        )
        questions = min(sizes.evaluation_questions, len(trait.evaluation_questions))
        if self._wants("trait_steering"):
            layers = sizes.layers(self.loaded.n_layers)
            how = preset_plan(sizes, trait, self.loaded.n_layers, layers)
            n += questions * (1 + len(plan(layers, sizes.doses, sizes.random_vectors, **how))) * sizes.steering_rollouts
        if self._wants("trait_monitoring"):
            said = [
                item
                for name in self._conditions(trait)
                for item in conversations(name, trait, sizes.monitoring_questions)
            ]
            n += sum(1 + len(item.turns) for item in said) * sizes.monitoring_rollouts
        return n

    def _conditions(self, trait: Trait) -> list[str]:
        """The preset's conditions of monitoring that the trait has texts for."""
        from persona_bench.inspect_ext.conditions import part_of

        return [name for name in self.preset.monitoring_conditions if getattr(trait, part_of(name)) is not None]

    def elicit(self) -> None:
        """Responses under instructions to show each trait and not to, judged."""
        from evals.trait_elicitation import trait_elicitation

        planned: list[Planned] = []
        if self._wants("trait_elicitation") or NEED_VECTORS & set(self.settings.evals):
            planned += [
                partial(trait_elicitation, trait=name, preset=self.settings.preset, seed=self.settings.seed)
                for name in self.settings.traits
            ]
        self._eval_set("elicitation", planned)

    def steer(self, vectors: dict[str, PersonaVector]) -> None:
        """Steer with and monitor by every vector."""
        from evals.trait_monitoring import trait_monitoring
        from evals.trait_steering import trait_steering

        planned: list[Planned] = []
        for name, trait in zip(self.settings.traits, self.traits, strict=True):
            if trait.name not in vectors:
                continue
            shared = self._vector_arguments(name, vectors[trait.name])
            if self._wants("trait_steering"):
                planned.append(partial(trait_steering, **shared))
            if self._wants("trait_monitoring"):
                others = [str(self._vector_path(other)) for other in vectors if other != trait.name]
                planned += [
                    partial(trait_monitoring, **shared, condition=condition, others=",".join(others))
                    for condition in self._conditions(trait)
                ]
        self._eval_set("steering", planned)

    def mmlu(self, vectors: dict[str, PersonaVector]) -> dict[str, int]:
        """Run MMLU at each trait's chosen layer, and where the preset says so at the others; returns the chosen."""
        from evals.mmlu_preservation import mmlu_preservation

        layers = self._choose_layers(vectors)
        if self._wants("mmlu_preservation"):
            planned = [
                partial(
                    mmlu_preservation,
                    **self._vector_arguments(name, vectors[trait.name]),
                    layers=self._asked(layers[trait.name]),
                )
                for name, trait in zip(self.settings.traits, self.traits, strict=True)
                if trait.name in vectors
            ]
            self._eval_set("mmlu", planned)
        return layers

    def _asked(self, chosen: int) -> str:
        """The layers of MMLU, the chosen one first, which has the controls."""
        others = self.preset.layers(self.loaded.n_layers) if self.preset.mmlu_every_layer else ()
        return ",".join(map(str, dict.fromkeys((chosen, *others))))

    def _vector_arguments(self, name: str, vector: PersonaVector) -> dict[str, Any]:
        return {
            "trait": name,
            "preset": self.settings.preset,
            "vector": str(self._vector_path(vector.trait)),
            "vector_sha256": vector.hash,
            "seed": self.settings.seed,
        }

    def _choose_layers(self, vectors: dict[str, PersonaVector]) -> dict[str, int]:
        """The layer chosen on the select half of the steering questions, else the middle of those swept."""
        chosen = self._steered_layers()
        swept = self.preset.layers(self.loaded.n_layers)
        for trait in vectors:
            if trait not in chosen:
                chosen[trait] = swept[len(swept) // 2]
                self.record.warnings.append(
                    f"{trait}: steering chose no layer on the select half; layer {chosen[trait]} (the middle one) "
                    "serves monitoring and MMLU"
                )
        return chosen

    def _steered_layers(self) -> dict[str, int]:
        """Trait -> the layer that steering chose on the select half, of those where it chose one."""
        from persona_bench.analysis.samples.collect import collect, read_logs
        from persona_bench.analysis.tables.build import build_tables
        from persona_bench.analysis.tables.vectors import chosen_layers

        # Monitoring has logs of the same stage, and takes ten times as long to read and to tabulate.
        logs = read_logs(self.folder / "logs" / "steering", "trait_steering")
        samples = collect(logs, [], self._filter)
        tables = build_tables(samples, seed=self.settings.seed, resamples=1)
        return {trait: int(layer) for trait, layer in chosen_layers(samples.vectors, tables["steering_choice"]).items()}

    @property
    def _filter(self) -> Any:
        return self.settings.extraction_filter

    def _vector_path(self, trait: str) -> Path:
        return (self.folder / "vectors" / f"{trait}.safetensors").resolve()

    def _sums_path(self, trait: str) -> Path:
        """What the vector is made of by question."""
        path = self._vector_path(trait)
        return path.parent / "by_question" / path.name

    def extract(self, targets: dict[str, Path] | None = None) -> dict[str, PersonaVector]:
        """Trait -> vector, of those that have one; `record.no_vector` says why the others have none."""
        from persona_bench.analysis.samples.collect import rollouts
        from persona_bench.vectors.extraction import differing, extract
        from persona_bench.vectors.question_sums import QuestionSums
        from persona_bench.vectors.vector import PersonaVector

        logs = self._logs("elicitation")
        vectors: dict[str, PersonaVector] = {}
        for name, trait in zip(self.settings.traits, self.traits, strict=True):
            log = logs.get(f"trait_elicitation/{trait.name}")
            if log is None:
                continue
            path, why = (targets or {}).get(name, self._vector_path(trait.name)), ""
            if path.exists():
                vector = PersonaVector.load(path)
                why = differing(vector, [log.eval.eval_id], trait, self._filter)
                if not why:
                    vectors[trait.name] = vector
                    continue
            sums = QuestionSums()
            self.say(f"extracting the {trait.name} vector" + (f" anew: {path} was made with {why}" if why else ""))
            try:
                vector = extract(
                    self.engine,
                    trait,
                    rollouts(log),
                    rule=self._filter,
                    seed=self.settings.seed,
                    provenance={
                        "log_ids": [log.eval.eval_id],
                        "grader": self.settings.grader,
                        "preset": self.settings.preset,
                    },
                    sums=sums,
                )
            except ExtractionError as error:
                self.record.warnings.append(str(error))
                self.record.no_vector[trait.name] = str(error)
                self.say(f"warning: {error}")
                continue
            if not targets:
                # First, so that no vector of a run that was cut off lacks it.
                sums.save(self._sums_path(trait.name))
            vector.save(path)
            vectors[trait.name] = vector
        return vectors

    def _logs(self, *stages: str) -> dict[str, EvalLog]:
        """The finished logs of these stages, by logical name; of all if none is named, which takes minutes later on."""
        from persona_bench.analysis.samples.collect import read_logs

        found: dict[str, EvalLog] = {}
        for stage in stages or ("",):
            found |= read_logs(self.folder / "logs" / stage)
        return found


def _n_samples(task: Task) -> int:
    return len(task.dataset) * (task.epochs or 1)


def full(log: EvalLog) -> EvalLog:
    """A log with its samples (eval_set returns headers)."""
    from inspect_ai.log import read_eval_log

    return log if log.samples is not None else read_eval_log(log.location)
