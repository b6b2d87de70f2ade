"""The main job from first to last, and the parts of it that other commands run."""

from __future__ import annotations

import json
import platform
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_bench.errors import AssetError, ExtractionError, RunError
from persona_bench.files import file_lock, write_atomic
from persona_bench.pipeline.pool import Pool
from persona_bench.pipeline.settings import (
    OF_RUN,
    OF_VECTOR,
    VERSIONED,
    Say,
    Settings,
    finished,
    is_published,
    model_spec,
    note_begun,
    refuse_other,
    run_folder,
)
from persona_bench.pipeline.training import Training

if TYPE_CHECKING:
    import pandas as pd
    from inspect_ai.log import EvalLog

    from persona_bench.analysis.samples.baselines import Embed
    from persona_bench.analysis.samples.frames import Samples
    from persona_bench.vectors.question_sums import QuestionSums
    from persona_bench.vectors.vector import PersonaVector


def run(settings: Settings, out: Path, say: Say, command: str = "", processes: int = 1) -> dict[str, Any]:
    """Do what is missing of a run and return its run.json.

    Args:
        settings: what to run.
        out: the results folder.
        say: told what happens, a line at a time.
        command: the command line, for the report.
        processes: how many share the evals.

    Raises:
        PersonaBenchError: anything a user can mend; nothing half-written is left.
    """
    from persona_bench.models.loading import resolve

    if processes < 1:
        raise RunError(f"{processes} processes cannot share a run; give --processes 1 or more")
    folder = run_folder(settings, out)
    if is_published(folder) and finished(settings, out) is None:
        raise RunError(
            f"{folder} holds a published run with other settings, or made by another version, and none of its "
            "responses; choose another --out"
        )
    # Weights that cannot be had leave no folder behind.
    resolve(model_spec(settings.model).removeprefix("persona/"))
    if settings.corpus:
        from persona_bench.vectors.scan.inputs import find_sources

        # A file that is not there is said before the run, not hours after.
        find_sources([item.strip() for item in settings.corpus.split(",")])
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / ".lock", on_wait=lambda: say(f"another run is at work in {folder}; waiting for it")):
        held = finished(settings, out)
        if held is not None:
            return held
        way_out = "choose another --out; another grader alone can judge a finished run again: `persona-bench rejudge`"
        refuse_other(settings, folder, OF_RUN, way_out)
        work = Run(settings, folder, say, command)
        if processes > 1:
            with closing(Pool(partial(Run, settings, folder, _nothing), processes, say)) as work.pool:
                return work.go()
        return work.go()


def _nothing(_: str) -> None:
    """What a process that shares evals says: the one that shares them out tells what is done."""


def extract_one(settings: Settings, folder: Path, out: Path, say: Say) -> PersonaVector:
    """Elicit, judge and extract one trait's vector into a file of its own; logs go to `folder`.

    Raises:
        PersonaBenchError: anything a user can mend, such as logs there of another model, preset, grader or seed.
    """
    refuse_other(settings, folder, OF_VECTOR, "choose another --logs or another --out")
    work = Run(settings, folder, say)
    work.set_aside()
    work.load()
    note_begun(settings, folder, OF_VECTOR)
    work.validate_judge()
    work.elicit()
    vectors = work.extract({settings.traits[0]: out.resolve()})
    if not vectors:
        raise ExtractionError(work.record.warnings[-1])
    return next(iter(vectors.values()))


@dataclass(frozen=True)
class Checked:
    """What the evals of a check gave.

    Attributes:
        logs: by logical name.
        gate: why the judge may not decide about the trait, "" if it may.
    """

    logs: dict[str, EvalLog]
    gate: str


def check_evals(settings: Settings, folder: Path, vector: Path, layer: int, say: Say) -> Checked:
    """Judge, steer, monitor and measure MMLU with one vector at one layer; go on where an earlier call stopped.

    Only questions of the report half are asked, as nothing is chosen here. Where the judge fails its gate, or there is
    none, nothing that needs it is run.

    Args:
        settings: of one trait, with a preset of checks; a grader of "" is none.
        folder: of the logs.
        vector: the file.
        layer: 1-based.
        say: told what happens, a line at a time.
    """
    from evals.mmlu_preservation import mmlu_preservation
    from evals.trait_monitoring import trait_monitoring
    from evals.trait_steering import trait_steering
    from persona_bench.vectors.vector import PersonaVector

    work = Run(settings, folder, say)
    work.load()
    gate = "no grader"
    if work.graders:
        work.validate_judge()
        found = work._gate().get(work.traits[0].name)
        gate = "" if found and found["passes"] else "judge gate: it was not checked on labelled answers of this trait"
        if found and not found["passes"]:
            gate = f"judge gate: AUROC {found['auroc']:.2f}, balanced accuracy {found['balanced_accuracy']:.2f}"
    shared: dict[str, Any] = {
        "trait": settings.traits[0],
        "preset": settings.preset,
        "vector": str(vector.resolve()),
        "vector_sha256": PersonaVector.load(vector).hash,
        "layers": str(layer),
        "seed": settings.seed,
    }
    if not gate:
        tasks = [trait_steering(**shared)]
        tasks += [trait_monitoring(**shared, condition=name) for name in work._conditions(work.traits[0])]
        for task in tasks:
            task.dataset = task.dataset.filter(lambda sample: bool((sample.metadata or {})["half"] == "report"))
        work.evaluate("steering", tasks)
    work.evaluate("mmlu", [mmlu_preservation(**shared)])
    return Checked(work._logs(), gate)


class Run(Training):
    """Every stage in order, then tables, verdicts, figures and report."""

    def go(self) -> dict[str, Any]:
        """Do what is missing of every stage; returns the run.json."""
        self.record.go_on(self.folder / "timings.json", self.settings.fingerprint)
        self.set_aside()
        with self.record.timed("load"):
            self.load()
        # What cannot be loaded has begun nothing.
        note_begun(self.settings, self.folder, OF_RUN)
        with self.record.timed("judge"):
            self.validate_judge()
        with self.record.timed("elicit"):
            self.elicit()
        with self.record.timed("extract"):
            vectors = self.extract()
        with self.record.timed("steer and monitor"):
            self.steer(vectors)
        with self.record.timed("mmlu"):
            layers = self.mmlu(vectors)
        with self.record.timed("limits"):
            self.limits(vectors, layers)
        with self.record.timed("limits of the method"):
            self.limits_of_method(vectors, layers)
        with self.record.timed("finetune"):
            self.finetune(vectors, layers)
        with self.record.timed("flag"):
            self.flag(vectors, layers)
        with self.record.timed("analyse"):
            return self.analyse(vectors, layers)

    def analyse(self, vectors: dict[str, PersonaVector], layers: dict[str, int]) -> dict[str, Any]:
        """Logs -> tables, verdicts, figures, report and run.json."""
        from persona_bench.analysis.figures.draw import Caption, draw_all
        from persona_bench.analysis.report import write_report
        from persona_bench.analysis.samples.collect import collect, with_readings
        from persona_bench.analysis.tables.build import build_tables
        from persona_bench.analysis.tables.files import write_tables
        from persona_bench.analysis.tables.steering import unsure_layers
        from persona_bench.analysis.verdicts.claims import judge_claims

        self.say("writing tables, claims, figures and report")
        logs = self._logs()
        sums = self._question_sums(vectors)
        samples = with_readings(collect(logs, list(vectors.values()), self._filter, layers, sums), self.method)
        methods = dict(zip(samples.judge["trait"], samples.judge["method"], strict=True))
        samples = self._with_monitors(self._with_baselines(samples), vectors)
        tables = build_tables(samples, seed=self.settings.seed, judge_methods=methods)
        claims = judge_claims(
            samples,
            tables,
            seed=self.settings.seed,
            traits=[trait.name for trait in self.traits],
            no_vector=self.record.no_vector,
        )
        files = write_tables(tables, self.folder / "tables")
        beside = self.compare(claims)
        files += write_tables({"claims": claims, **beside}, self.folder)
        self.record.warnings += [
            vector.provenance["warning"] for vector in vectors.values() if vector.provenance["warning"]
        ]
        self.record.warnings += unsure_layers(tables["steering_choice"])
        held = self._run_json(logs, vectors)
        caption = Caption(
            model=self.settings.model,
            preset=self.settings.preset,
            grader=self.settings.grader,
            date=held["date"],
            seed=self.settings.seed,
        )
        figures = draw_all({**tables, "claims": claims}, self.folder / "figures", caption)
        report = write_report(self.folder, held, {**tables, **beside}, claims, figures)
        pages = [self.folder / page for page in held["pages"]]
        paths = [*files, *figures, *report, *pages, *map(self._vector_path, vectors)]
        held["files"] = sorted(str(Path(path).resolve().relative_to(self.folder.resolve())) for path in paths)
        write_atomic(self.folder / "run.json", json.dumps(held, indent=1, sort_keys=True) + "\n")
        return held

    def _question_sums(self, vectors: dict[str, PersonaVector]) -> dict[str, QuestionSums]:
        """Trait -> what its vector is made of, where that was kept.

        Raises:
            RunError: it belongs to another vector.
        """
        from persona_bench.vectors.question_sums import QuestionSums

        found = {}
        for trait, vector in vectors.items():
            path = self._sums_path(trait)
            if path.exists():
                found[trait] = QuestionSums.load(path)
                if found[trait].hash != vector.hash:
                    raise RunError(f"{path} is not of the {trait} vector; remove both and run again")
        return found

    def compare(self, claims: pd.DataFrame) -> dict[str, pd.DataFrame]:
        """Tables that hold the verdicts beside others, by name; a run by itself has none."""
        del claims
        return {}

    def _with_baselines(self, samples: Samples) -> Samples:
        """Trivial judges of the same labelled answers, text-only monitors of the same prompts, text classifiers."""
        import pandas as pd

        from persona_bench.analysis.samples.baselines import baseline_rows, text_flags, text_monitors

        embedding = self._embedding
        judged = [row for trait in sorted(set(samples.judge["trait"])) for row in baseline_rows(trait, embedding)]
        if judged:
            samples = replace(samples, judge=pd.concat([samples.judge, pd.DataFrame(judged)]))
        samples = replace(samples, flagging=text_flags(samples.flagging))
        read = text_monitors(samples.monitoring, embedding)
        return replace(samples, projections=pd.concat([samples.projections, read])) if len(read) else samples

    @cached_property
    def _embedding(self) -> Embed | None:
        """Sentence embeddings for baselines, or None where they cannot be had, which is then warned of."""
        from persona_bench.models.embeddings import embed

        try:
            embed(["a"])
        except AssetError as error:
            self.record.warnings.append(f"no sentence embeddings, so those baselines are left out: {error}")
            return None
        return embed

    def _with_monitors(self, samples: Samples, vectors: dict[str, PersonaVector]) -> Samples:
        """What monitors of behaviours say of the scenes, from the sidecars and the run's vectors."""
        from persona_bench.analysis import statistics as st
        from persona_bench.analysis.grouping import Draw
        from persona_bench.analysis.samples.monitors import monitor_rows
        from persona_bench.inspect_ext.scenes import read_activations

        if samples.scenes.empty:
            return samples
        directions = {name: vector.directions["persona"].numpy() for name, vector in vectors.items()}
        draw = Draw(self.settings.seed, st.RESAMPLES)
        found = monitor_rows(
            samples.scenes, lambda name: read_activations(self._activations, name), directions, draw, self._embedding
        )
        return replace(samples, monitors=found)

    def _run_json(self, logs: dict[str, EvalLog], vectors: dict[str, PersonaVector]) -> dict[str, Any]:
        import torch

        from persona_bench.definitions.claims import CLAIMS

        root = self.folder.resolve()
        return {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.settings).items()},
            "fingerprint": self.settings.fingerprint,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "command": self.command,
            "versions": {name: version(name) for name in VERSIONED} | {"python": platform.python_version()},
            "weights": self._weights(),
            "vectors": {name: vector.hash for name, vector in sorted(vectors.items())},
            "logs": {
                name: {"file": _relative(log.location, root), "eval_id": log.eval.eval_id}
                for name, log in sorted(logs.items())
            },
            "pages": sorted(str(page.relative_to(self.folder)) for page in self.folder.glob("flagging/*/flagged.html")),
            "machine": {"threads": torch.get_num_threads(), "processes": self.pool.n if self.pool else 1},
            "timings": self.record.so_far(),
            "warnings": sorted(set(self.record.warnings)),
            "deviations": self._deviations(),
            "rules": {claim.id: claim.revision for claim in CLAIMS if claim.revision > 1},
        }

    def _deviations(self) -> list[str]:
        """Where the run leaves the paper."""
        from persona_bench.definitions.claim_types import LLAMA, PAPER_JUDGE, QWEN

        judged = f"judged by {self.settings.grader}" if self.settings.grader else "judged by nobody"
        return [
            f"{self.loaded.name} {judged}; the paper: {QWEN} and {LLAMA} judged by {PAPER_JUDGE}",
            "instructions, questions and rubrics of the traits are this suite's own",
            f"{self.preset.max_tokens} tokens a response at temperature {self.preset.temperature}; "
            "the paper uses up to 1,000 at temperature 1",
            "steering strengths are set as relative doses |alpha v| / mean |h|, the same for every layer; "
            "the paper's coefficients stand beside them",
            f"vectors from {self.preset.extraction_questions} questions x 5 instruction pairs x "
            f"{self.preset.extraction_rollouts} rollouts a side; the paper uses 20 x 5 x 10",
        ]


def _relative(location: str, root: Path) -> str:
    path = Path(location.removeprefix("file://")).resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
