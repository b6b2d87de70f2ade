"""The main job: eval sets, vectors, tables, verdicts, figures and report, each step done only if it is missing."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_bench.definitions.evasion import EVASION, has_texts, system_prompts
from persona_bench.definitions.evasion import texts as evasion_texts
from persona_bench.definitions.outcomes import FILTERS, UNFILTERED
from persona_bench.definitions.presets import Preset, load_limits_preset, load_preset
from persona_bench.definitions.scenarios import BEHAVIOURS, load_scenes
from persona_bench.definitions.trait_review import load_reviewed
from persona_bench.definitions.traits import Trait, load_labelled, load_trait
from persona_bench.errors import AssetError, ExtractionError, RunError
from persona_bench.files import file_lock, model_folder, write_atomic

if TYPE_CHECKING:
    from inspect_ai import Task
    from inspect_ai.log import EvalLog

    from persona_bench.analysis.baselines import Embed
    from persona_bench.analysis.tables import Samples
    from persona_bench.vectors.vector import PersonaVector

CORE_EVALS = ("judge_validity", "trait_elicitation", "trait_steering", "trait_monitoring", "mmlu_preservation")
ALL_EVALS = (*CORE_EVALS, "stated_limits", "preventative_steering", "data_flagging")
DEFAULT_MODEL = "smollm2-135m"
DEFAULT_GRADER = "qwen2.5-coder-1.5b"
NEED_VECTORS = frozenset(ALL_EVALS[2:])
JUDGED = NEED_VECTORS - {"mmlu_preservation"}
"""Evals whose verdicts need a judge that was checked, so that asking for one of them checks it."""
VERSIONED = ("persona-bench", "inspect-ai", "torch", "transformers", "numpy", "pandas", "scipy", "scikit-learn")

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """What a run was asked for.

    Attributes:
        model: the model under test, as `loading.load` takes it.
        preset: quick, standard or paper.
        traits: names of traits.
        grader: an Inspect model, or local weights by the names `loading.load` takes; several, comma-separated, are a
            panel.
        evals: which evals.
        seed: of sampling, subsets and resampling.
        extraction_filter: stated or coded.
        corpus: files, folders or Hub datasets of real conversations to flag, comma-separated.
    """

    model: str = DEFAULT_MODEL
    preset: str = "quick"
    traits: tuple[str, ...] = ("evil", "sycophancy", "hallucination")
    grader: str = DEFAULT_GRADER
    evals: tuple[str, ...] = CORE_EVALS
    seed: int = 0
    extraction_filter: str = "stated"
    corpus: str = ""

    def __post_init__(self) -> None:
        load_preset(self.preset)
        if self.extraction_filter not in FILTERS:
            raise RunError(f"unknown filter {self.extraction_filter!r}; choose from {', '.join(FILTERS)}")
        for name in self.traits:
            load_trait(name)
        unknown = [name for name in self.evals if name not in ALL_EVALS]
        if unknown:
            raise RunError(f"unknown eval(s) {', '.join(unknown)}; choose from {', '.join(ALL_EVALS)}, core or all")
        if not self.traits or not self.evals:
            raise RunError("a run needs at least one trait and one eval")
        if self.corpus and "data_flagging" not in self.evals:
            raise RunError("--corpus is flagged by data_flagging alone; have it among --evals, or leave the corpus out")

    @property
    def fingerprint(self) -> str:
        """Changes whenever a run with these settings could come out differently: settings, texts, version."""
        texts = [load_trait(name).hash for name in self.traits]
        if "stated_limits" in self.evals:
            texts += [evasion_texts(), *(scene.choice.prompt for name in BEHAVIOURS for scene in load_scenes(name))]
        labels = [[item.model_dump() for item in load_labelled(name)] for name in self.traits]
        content = json.dumps([asdict(self), texts, labels, version("persona-bench")], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass
class _Record:
    """What run.json will hold, gathered on the way."""

    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    no_vector: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.timings[stage] = round(time.monotonic() - started, 2)


def model_spec(name: str) -> str:
    """An Inspect model name: local weights get the `persona/` provider, names with a known provider stay."""
    from persona_bench.models.assets import CATALOGUE
    from persona_bench.models.loading import split_adapter

    weights = split_adapter(name)[0]
    if name.startswith("persona/") or weights in CATALOGUE or Path(os.path.expanduser(weights)).exists():
        return name if name.startswith("persona/") else f"persona/{name}"
    return name


def run_folder(settings: Settings, out: Path) -> Path:
    """Where a run's files are: OUT/<model>/<preset>."""
    return out / model_folder(settings.model.removeprefix("persona/")) / settings.preset


def finished(settings: Settings, out: Path) -> dict[str, Any] | None:
    """The run.json of a finished run with these settings whose files are all there, or None."""
    path = run_folder(settings, out) / "run.json"
    if not path.exists():
        return None
    held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if held.get("fingerprint") != settings.fingerprint:
        return None
    return held if all((path.parent / name).exists() for name in held["files"]) else None


def run(settings: Settings, out: Path, say: Say, command: str = "") -> dict[str, Any]:
    """Do what is missing of a run and return its run.json.

    Args:
        settings: what to run.
        out: the results folder.
        say: told what happens, a line at a time.
        command: the command line, for the report.

    Raises:
        PersonaBenchError: anything a user can mend; nothing half-written is left.
    """
    from persona_bench.models.loading import resolve

    # Weights that cannot be had leave no folder behind.
    resolve(model_spec(settings.model).removeprefix("persona/"))
    if settings.corpus:
        from persona_bench.vectors.scan.inputs import find_sources

        # A file that is not there is said before the run, not hours after.
        find_sources([item.strip() for item in settings.corpus.split(",")])
    folder = run_folder(settings, out)
    folder.mkdir(parents=True, exist_ok=True)
    with file_lock(folder / ".lock", on_wait=lambda: say(f"another run is at work in {folder}; waiting for it")):
        held = finished(settings, out)
        return held if held is not None else _Run(settings, folder, say, command).go()


def extract_one(settings: Settings, folder: Path, out: Path, say: Say) -> PersonaVector:
    """Elicit, judge and extract one trait's vector into a file of its own; logs go to `folder`."""
    work = _Run(settings, folder, say)
    work.load()
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

    work = _Run(settings, folder, say)
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
        work._eval_set("steering", tasks)
    work._eval_set("mmlu", [mmlu_preservation(**shared)])
    return Checked(work._logs(), gate)


class _Run:
    def __init__(self, settings: Settings, folder: Path, say: Say, command: str = "") -> None:
        self.settings, self.folder, self.say, self.command = settings, folder, say, command
        self.preset: Preset = load_preset(settings.preset)
        self.record = _Record()
        self.traits = [load_reviewed(name, say) for name in settings.traits]
        self.method: list[dict[str, list[dict[str, Any]]]] = []

    def go(self) -> dict[str, Any]:
        with self.record.timed("load"):
            self.load()
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

    # -- weights -------------------------------------------------------------------------------------------------

    def load(self) -> None:
        from persona_bench.inspect_ext.judging import open_graders
        from persona_bench.models.loading import load
        from persona_bench.models.worker import WORKER

        spec = model_spec(self.settings.model)
        name = spec.removeprefix("persona/")
        self.say(f"loading {name}")
        self.loaded = load(name)
        self.engine = WORKER.engine(self.loaded)
        self.model = f"persona/{name}"
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
        if load(name).weights_hash == self.loaded.weights_hash:
            self.record.warnings.append("the grader is the model under test: it judges itself")

    # -- evals ---------------------------------------------------------------------------------------------------

    def _wants(self, name: str) -> bool:
        asked = self.settings.evals
        return name in asked or (name == "judge_validity" and not JUDGED.isdisjoint(asked))

    def _eval_set(self, stage: str, tasks: Sequence[Task]) -> None:
        from inspect_ai import eval_set

        from persona_bench.analysis.samples import check_log

        if not tasks:
            return
        n = sum(len(task.dataset) * (task.epochs or 1) for task in tasks)
        self.say(f"{stage}: {len(tasks)} evals, {n} samples")
        success, logs = eval_set(
            list(tasks),
            log_dir=str(self.folder / "logs" / stage),
            model=self.model,
            model_roles={"grader": list(self.graders) if len(self.graders) > 1 else self.graders[0]}
            if self.graders
            else None,
            max_tasks=len(tasks),
            max_connections=2 * self.engine.max_batch,
            max_samples=2 * self.engine.max_batch,
            retry_attempts=0,
            log_dir_allow_dirty=True,
            log_realtime=False,
            display="rich" if sys.stdout.isatty() else "plain",
            fail_on_error=True,
        )
        for log in logs:
            check_log(_full(log))
        if not success:
            raise RunError(f"{stage} did not finish; run the same command again to go on")

    def validate_judge(self) -> None:
        """Calibrate local graders, judge the labelled answers, and say which traits the judge may decide about."""
        from evals.judge_validity import judge_validity

        self._announce_calls()
        asyncio.run(self._calibrate())
        if not self._wants("judge_validity"):
            return
        self._eval_set("judge", [judge_validity(trait=name) for name in self.settings.traits if load_labelled(name)])
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
        from persona_bench.analysis.samples import collect
        from persona_bench.analysis.tables import build_tables

        samples = collect(self._logs(), [], self._filter)
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
            calls, tokens = (sum(column) for column in zip(*plans, strict=True))
            self.say(
                f"grader {spec}: at most {calls:,} calls with about {tokens:,} input tokens (three times the calls "
                "where it gives no logprobs); identical responses are judged once"
            )

    def _planned_responses(self, trait: Trait) -> int:
        """How many responses the run will have judged for a trait, at most."""
        from persona_bench.inspect_ext.cells import plan, preset_plan
        from persona_bench.inspect_ext.conditions import conversations

        sizes = self.preset
        n = sum(item.half == "report" for item in load_labelled(trait.name)) if self._wants("judge_validity") else 0
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
        if self._wants("stated_limits") and has_texts(trait):
            limits = load_limits_preset(sizes.name)
            n += questions * len(system_prompts(trait, limits)) * limits.evasion_rollouts
        return n + (self._planned_of_method(trait, questions) if self._wants("stated_limits") else 0)

    def _planned_of_method(self, trait: Trait, questions: int) -> int:
        """Those under other descriptions and other vectors, if every vector can be made."""
        from persona_bench.definitions.descriptions import description_groups, load_descriptions
        from persona_bench.definitions.method_sizes import load_method_sizes
        from persona_bench.vectors.sensitivity import QUESTION_SETS

        own, doses = load_method_sizes(self.settings.preset), sum(dose > 0 for dose in self.preset.doses)
        asked = min(own.questions, len(trait.extraction_questions)) * own.rollouts
        steered = sum(name.split(":")[0] in own.steered for name in description_groups(trait.name))
        steered += QUESTION_SETS * ("questions" in own.steered)
        # Of a trait without a vector, that of all responses at every layer, on both halves, with what stands beside it.
        raw = 1 + len(self.preset.layers(self.loaded.n_layers)) * doses + self.preset.random_vectors
        most = max(steered * doses * (questions // 2), raw * questions)
        return 2 * len(load_descriptions(trait.name)) * asked + most * self.preset.steering_rollouts

    def _conditions(self, trait: Trait) -> list[str]:
        """The preset's conditions of monitoring that the trait has texts for."""
        from persona_bench.inspect_ext.conditions import part_of

        return [name for name in self.preset.monitoring_conditions if getattr(trait, part_of(name)) is not None]

    def elicit(self) -> None:
        from evals.trait_elicitation import trait_elicitation

        tasks: list[Task] = []
        if self._wants("trait_elicitation") or NEED_VECTORS & set(self.settings.evals):
            tasks += [
                trait_elicitation(trait=name, preset=self.settings.preset, seed=self.settings.seed)
                for name in self.settings.traits
            ]
        self._eval_set("elicitation", tasks)

    def steer(self, vectors: dict[str, PersonaVector]) -> None:
        from evals.trait_monitoring import trait_monitoring
        from evals.trait_steering import trait_steering

        tasks: list[Task] = []
        for name, trait in zip(self.settings.traits, self.traits, strict=True):
            if trait.name not in vectors:
                continue
            shared = self._vector_arguments(name, vectors[trait.name])
            if self._wants("trait_steering"):
                tasks.append(trait_steering(**shared))
            if self._wants("trait_monitoring"):
                others = [str(self._vector_path(other)) for other in vectors if other != trait.name]
                tasks += [
                    trait_monitoring(**shared, condition=condition, others=",".join(others))
                    for condition in self._conditions(trait)
                ]
        self._eval_set("steering", tasks)

    def mmlu(self, vectors: dict[str, PersonaVector]) -> dict[str, int]:
        """Run MMLU at each trait's chosen layer, and where the preset says so at the others; returns the chosen."""
        from evals.mmlu_preservation import mmlu_preservation

        layers = self._choose_layers(vectors)
        if self._wants("mmlu_preservation"):
            tasks = [
                mmlu_preservation(
                    **self._vector_arguments(name, vectors[trait.name]), layers=self._asked(layers[trait.name])
                )
                for name, trait in zip(self.settings.traits, self.traits, strict=True)
                if trait.name in vectors
            ]
            self._eval_set("mmlu", tasks)
        return layers

    def _asked(self, chosen: int) -> str:
        """The layers of MMLU, the chosen one first, which has the controls."""
        others = self.preset.layers(self.loaded.n_layers) if self.preset.mmlu_every_layer else ()
        return ",".join(map(str, dict.fromkeys((chosen, *others))))

    def limits(self, vectors: dict[str, PersonaVector], layers: dict[str, int]) -> None:
        """What the paper does not show its vectors to detect: every behaviour, and evasion of each trait's vector."""
        from evals.stated_limits import stated_limits

        if not self._wants("stated_limits"):
            return
        preset = self.settings.preset
        tasks = [
            stated_limits(behaviour=name, preset=preset, activations=str(self._activations)) for name in BEHAVIOURS
        ]
        tasks += [
            stated_limits(
                behaviour=EVASION, **self._vector_arguments(name, vectors[trait.name]), layers=str(layers[trait.name])
            )
            for name, trait in zip(self.settings.traits, self.traits, strict=True)
            if trait.name in vectors and has_texts(trait)
        ]
        self._eval_set("limits", tasks)

    @property
    def _activations(self) -> Path:
        from persona_bench.inspect_ext.scenes import FOLDER

        return (self.folder / FOLDER).resolve()

    def limits_of_method(self, vectors: dict[str, PersonaVector], layers: dict[str, int]) -> None:
        """Other descriptions, vectors made otherwise, and what the elicited responses tell: stated limits S1 to S6."""
        from evals.stated_limits.method import limits_descriptions
        from persona_bench.definitions.descriptions import load_descriptions

        if not self._wants("stated_limits"):
            return
        tasks = [
            limits_descriptions(trait=name, preset=self.settings.preset, seed=self.settings.seed)
            for name, trait in zip(self.settings.traits, self.traits, strict=True)
            if load_descriptions(trait.name)
        ]
        self._eval_set("limits-descriptions", tasks)
        logs = self._logs()
        named = zip(self.settings.traits, self.traits, strict=True)
        variants = [self._variants(*pair, logs, vectors, layers) for pair in named]
        self._eval_set("limits-variants", [task for task in variants if task is not None])
        self.method = [self._read_again(trait, logs, vectors, layers) for trait in self.traits]

    def _responses(self, trait: Trait, logs: dict[str, EvalLog]) -> tuple[Any, Any, dict[str, str]]:
        """The trait's own responses, those under other descriptions, and the ids of their logs."""
        from persona_bench.analysis.samples import rollouts

        names = [f"{task}/{trait.name}" for task in ("trait_elicitation", "limits_descriptions")]
        own, described = (rollouts(logs[name]) if name in logs else [] for name in names)
        return own, described, {name: logs[name].eval.eval_id for name in names if name in logs}

    def _variants(
        self,
        name: str,
        trait: Trait,
        logs: dict[str, EvalLog],
        vectors: dict[str, PersonaVector],
        layers: dict[str, int],
    ) -> Task | None:
        """Steering with the vectors of other descriptions; without a vector, with that of all responses."""
        from evals.stated_limits.method import limits_variants
        from persona_bench.analysis.grouping import Draw
        from persona_bench.analysis.method import induced_row
        from persona_bench.analysis.samples import collect
        from persona_bench.analysis.statistics import RESAMPLES
        from persona_bench.definitions.method_sizes import load_method_sizes
        from persona_bench.vectors.variants import RAW, make_vectors, plan_variants
        from persona_bench.vectors.vector import PersonaVector

        own, described, ids = self._responses(trait, logs)
        seed, rule, plan = self.settings.seed, self._filter, {RAW: own}
        if trait.name in vectors:
            plan = dict(plan_variants(trait, own, described, load_method_sizes(self.settings.preset), seed))
        else:
            elicited = collect({name: logs[name] for name in ids}, [], self._filter).elicitation
            if induced_row(elicited, trait.name, Draw(seed, RESAMPLES))["induced"]:
                return None
            rule = UNFILTERED
        folder = self._vector_path(trait.name).parent / "variants"
        made = make_vectors(self.engine, trait, plan, rule, seed, folder, list(ids.values()), self.say)
        if not made:
            return None
        return limits_variants(
            trait=name,
            preset=self.settings.preset,
            variants=",".join(f"{key}={path}" for key, path in made.items()),
            sha256=",".join(PersonaVector.load(path).hash for path in made.values()),
            layers=str(layers[trait.name]) if trait.name in vectors else "",
            seed=seed,
        )

    def _read_again(
        self, trait: Trait, logs: dict[str, EvalLog], vectors: dict[str, PersonaVector], layers: dict[str, int]
    ) -> dict[str, list[dict[str, Any]]]:
        """What one pass over the trait's responses tells; kept, and made again only where what is behind it changed."""
        from persona_bench.definitions.method_sizes import load_method_sizes
        from persona_bench.vectors.sensitivity import SAME_NUMBER
        from persona_bench.vectors.variants import kept_rows, read_trait

        own, described, ids = self._responses(trait, logs)
        sizes, swept = load_method_sizes(self.settings.preset), self.preset.layers(self.loaded.n_layers)
        chosen = {trait.name: swept[len(swept) // 2], **layers}
        hashes = {name: vector.hash for name, vector in sorted(vectors.items())}
        behind = {"logs": ids, "vectors": hashes, "layers": chosen, "sizes": asdict(sizes)}
        settings = {"filter": self._filter, "seed": self.settings.seed, "trait": trait.hash}

        def make() -> dict[str, list[dict[str, Any]]]:
            self.say(f"reading the responses of {trait.name} again")
            return read_trait(
                self.engine,
                trait,
                own,
                described,
                vectors,
                chosen,
                swept,
                rule=self._filter,
                sizes=sizes,
                seed=self.settings.seed,
            )

        rows = kept_rows(self.folder / "limits" / f"{trait.name}.json", {**behind, **settings}, make)
        own_log, *other_log = ids

        def log_of(row: dict[str, Any]) -> str:
            described_by = other_log and row.get("aspect") == "description" and not row["setting"].endswith(SAME_NUMBER)
            return other_log[0] if described_by else own_log

        return {name: [{**row, "log": log_of(row)} for row in found] for name, found in rows.items()}

    def finetune(self, vectors: dict[str, PersonaVector], layers: dict[str, int]) -> None:
        """Train every trial's adapter and measure it before the next: merged weights are held one at a time.

        For data flagging alone, those that it holds training sets against: plain ones of the first seed, and the base.
        """
        from evals.preventative_steering import preventative_steering
        from persona_bench.definitions.presets import load_finetuning_preset
        from persona_bench.definitions.trials import BASE, plan_trials

        wanted = self._wants("preventative_steering") or (self._wants("data_flagging") and vectors)
        if not wanted or not self._finetuned_traits:
            return
        sizes = load_finetuning_preset(self.settings.preset)
        trials = plan_trials(sizes, tuple(vectors))
        if not self._wants("preventative_steering"):
            trials = [t for t in trials if t.arm == BASE or (t.arm == "plain" and t.seed == sizes.seeds[0])]
        shared = self._training_arguments(vectors, layers)
        for number, trial in enumerate(trials, 1):
            stage = f"finetuning/{trial.name}"
            self.say(f"finetuning, {number} of {len(trials)}: {trial.name}")
            task = preventative_steering(
                family=trial.family,
                version=trial.version,
                arm=trial.arm,
                train_seed=trial.seed,
                **shared,
            )
            self._eval_set(stage, [task])
            if task.model is not None:
                asyncio.run(task.model.api.aclose())

    @property
    def _finetuned_traits(self) -> list[str]:
        from persona_bench.definitions.traits import MAIN_TRAITS

        return [name for name in MAIN_TRAITS if name in self.settings.traits]

    def _training_arguments(self, vectors: dict[str, PersonaVector], layers: dict[str, int]) -> dict[str, Any]:
        """What the evals that train take alike."""
        names = self._finetuned_traits
        return {
            "preset": self.settings.preset,
            "base": self.loaded.name,
            "traits": ",".join(names),
            "vectors": ",".join(str(self._vector_path(name)) if name in vectors else "none" for name in names),
            "layers": ",".join(str(layers.get(name, 0)) for name in names),
            "judged": self._write_judged(),
            "adapters": str((self.folder / "adapters").resolve()),
            "seed": self.settings.seed,
        }

    def flag(self, vectors: dict[str, PersonaVector], layers: dict[str, int]) -> None:
        """Flag training sets, samples, and real conversations where there are some; train on what was flagged."""
        from evals.data_flagging import data_flagging
        from persona_bench.definitions.presets import load_flagging_preset

        if not self._wants("data_flagging") or not set(vectors) & set(self._finetuned_traits):
            return
        sizes = load_flagging_preset(self.settings.preset)
        shared = self._training_arguments(vectors, layers)
        pools = ("mixture", "corpus", "passed") if self.settings.corpus else ("mixture",)
        for pool in pools:
            shared["corpus"] = self.settings.corpus if pool != "mixture" else ""
            if pool != "passed":
                self.say(f"flagging, {pool}: measuring samples")
                self._eval_set(f"flagging/{pool}", [data_flagging(pool=pool, **shared)])
            for trait in sizes.traits:
                if trait in vectors:
                    self._train_on_flagged(pool, trait, sizes.picked, shared)

    def _train_on_flagged(self, pool: str, trait: str, n: int, shared: dict[str, Any]) -> None:
        """The highest, random and lowest samples of a pool, an adapter each, if there are enough of them."""
        from evals.data_flagging import data_flagging
        from persona_bench.definitions.flagging import PICKS
        from persona_bench.inspect_ext.flagging import rankable

        usable = rankable(self._logs()[f"data_flagging/{'mixture' if pool == 'mixture' else 'corpus'}"], trait, pool)
        if len(usable) < 2 * n:
            self.say(f"flagging, {pool}, {trait}: {len(usable)} samples are too few to train on {n} at either end")
            return
        passed = ""
        if pool == "passed":
            passed = str((self.folder / "flagging" / "corpus" / f"passed-{trait}.json").resolve())
            write_atomic(passed, json.dumps(usable) + "\n")
        for pick in PICKS:
            self.say(f"flagging, {pool}: training on the {pick} samples for {trait}")
            task = data_flagging(part=pick, pool=pool, trait=trait, passed=passed, **shared)
            self._eval_set(f"flagging/{pool}-{pick}-{trait}", [task])
            if task.model is not None:
                asyncio.run(task.model.api.aclose())

    def _write_judged(self) -> str:
        """The model's own judged responses of the elicitation, which trait families are made of; one file for all."""
        from persona_bench.analysis.samples import rollouts
        from persona_bench.vectors.trials import judged_rollouts

        logs = self._logs()
        lines = [
            json.dumps({"trait": trait.name, **item._asdict()})
            for trait in self.traits
            if f"trait_elicitation/{trait.name}" in logs
            for item in judged_rollouts(rollouts(logs[f"trait_elicitation/{trait.name}"]))
        ]
        path = self.folder / "adapters" / "judged.jsonl"
        if not lines:
            return ""
        write_atomic(path, "".join(line + "\n" for line in lines))
        return str(path)

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
        from persona_bench.analysis.samples import collect
        from persona_bench.analysis.tables import build_tables, chosen_layers

        samples = collect(self._logs(), [], self._filter)
        tables = build_tables(samples, seed=self.settings.seed, resamples=1)
        chosen = {
            trait: int(layer) for trait, layer in chosen_layers(samples.vectors, tables["steering_choice"]).items()
        }
        swept = self.preset.layers(self.loaded.n_layers)
        for trait in vectors:
            if trait not in chosen:
                chosen[trait] = swept[len(swept) // 2]
                self.record.warnings.append(
                    f"{trait}: steering chose no layer on the select half; layer {chosen[trait]} (the middle one) "
                    "serves monitoring and MMLU"
                )
        return chosen

    # -- vectors -------------------------------------------------------------------------------------------------

    @property
    def _filter(self) -> Any:
        return self.settings.extraction_filter

    def _vector_path(self, trait: str) -> Path:
        return (self.folder / "vectors" / f"{trait}.safetensors").resolve()

    def extract(self, targets: dict[str, Path] | None = None) -> dict[str, PersonaVector]:
        from persona_bench.analysis.samples import rollouts
        from persona_bench.vectors.extraction import extract
        from persona_bench.vectors.vector import PersonaVector

        logs = self._logs()
        vectors: dict[str, PersonaVector] = {}
        for name, trait in zip(self.settings.traits, self.traits, strict=True):
            log = logs.get(f"trait_elicitation/{trait.name}")
            if log is None:
                continue
            path = (targets or {}).get(name, self._vector_path(trait.name))
            if path.exists():
                vector = PersonaVector.load(path)
                if vector.provenance.get("log_ids") == [log.eval.eval_id]:
                    vectors[trait.name] = vector
                    continue
            self.say(f"extracting the {trait.name} vector")
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
                )
            except ExtractionError as error:
                self.record.warnings.append(str(error))
                self.record.no_vector[trait.name] = str(error)
                self.say(f"warning: {error}")
                continue
            vector.save(path)
            vectors[trait.name] = vector
        return vectors

    # -- analysis ------------------------------------------------------------------------------------------------

    def _logs(self) -> dict[str, EvalLog]:
        from persona_bench.analysis.samples import read_logs

        return read_logs(self.folder / "logs")

    def analyse(self, vectors: dict[str, PersonaVector], layers: dict[str, int]) -> dict[str, Any]:
        from persona_bench.analysis.figures import Caption, draw_all
        from persona_bench.analysis.report import write_report
        from persona_bench.analysis.samples import collect, with_readings
        from persona_bench.analysis.tables import build_tables, write_tables
        from persona_bench.analysis.verdicts import judge_claims

        self.say("writing tables, claims, figures and report")
        logs = self._logs()
        samples = with_readings(collect(logs, list(vectors.values()), self._filter, layers), self.method)
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
        files += write_tables({"claims": claims}, self.folder)
        self.record.warnings += [
            vector.provenance["warning"] for vector in vectors.values() if vector.provenance["warning"]
        ]
        held = self._run_json(logs, vectors)
        caption = Caption(
            model=self.settings.model,
            preset=self.settings.preset,
            grader=self.settings.grader,
            date=held["date"],
            seed=self.settings.seed,
        )
        figures = draw_all({**tables, "claims": claims}, self.folder / "figures", caption)
        report = write_report(self.folder, held, tables, claims, figures)
        pages = [self.folder / page for page in held["pages"]]
        paths = [*files, *figures, *report, *pages, *map(self._vector_path, vectors)]
        held["files"] = sorted(str(Path(path).resolve().relative_to(self.folder.resolve())) for path in paths)
        write_atomic(self.folder / "run.json", json.dumps(held, indent=1, sort_keys=True) + "\n")
        return held

    def _with_baselines(self, samples: Samples) -> Samples:
        """Trivial judges of the same labelled answers, text-only monitors of the same prompts, text classifiers."""
        import pandas as pd

        from persona_bench.analysis.baselines import baseline_rows, text_flags, text_monitors

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
        from persona_bench.analysis.monitors import monitor_rows
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
        root = self.folder.resolve()
        return {
            **{key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.settings).items()},
            "fingerprint": self.settings.fingerprint,
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "command": self.command,
            "versions": {name: version(name) for name in VERSIONED} | {"python": platform.python_version()},
            "weights": {
                "model": {
                    "name": self.loaded.name,
                    "source": self.loaded.source,
                    "sha256": self.loaded.weights_hash,
                    "dtype": str(self.loaded.dtype).removeprefix("torch."),
                    "device": str(self.loaded.device),
                    "family": str(self.loaded.model.config.model_type),
                    "parameters": sum(part.numel() for part in self.loaded.model.parameters()),
                }
            },
            "vectors": {name: vector.hash for name, vector in sorted(vectors.items())},
            "logs": {
                name: {"file": _relative(log.location, root), "eval_id": log.eval.eval_id}
                for name, log in sorted(logs.items())
            },
            "pages": sorted(str(page.relative_to(self.folder)) for page in self.folder.glob("flagging/*/flagged.html")),
            "timings": self.record.timings,
            "warnings": sorted(set(self.record.warnings)),
            "deviations": [
                f"{self.preset.max_tokens} tokens a response at temperature {self.preset.temperature}; "
                "the paper uses up to 1,000 at temperature 1",
                "steering strengths are set as relative doses |alpha v| / mean |h|, the same for every layer; "
                "the paper's coefficients stand beside them",
                f"vectors from {self.preset.extraction_questions} questions x 5 instruction pairs x "
                f"{self.preset.extraction_rollouts} rollouts a side; the paper uses 20 x 5 x 10",
            ],
        }


def _full(log: EvalLog) -> EvalLog:
    """A log with its samples (eval_set returns headers)."""
    from inspect_ai.log import read_eval_log

    return log if log.samples is not None else read_eval_log(log.location)


def _relative(location: str, root: Path) -> str:
    path = Path(location.removeprefix("file://")).resolve()
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
