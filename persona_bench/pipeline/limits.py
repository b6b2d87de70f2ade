"""The stages of `stated_limits`: behaviours, evasion, and the limits of the method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_bench.definitions.evasion import EVASION, has_texts, system_prompts
from persona_bench.definitions.outcomes import UNFILTERED
from persona_bench.definitions.presets import load_limits_preset, load_method_sizes
from persona_bench.definitions.scenarios import BEHAVIOURS, load_scenes
from persona_bench.definitions.traits import Trait
from persona_bench.pipeline.core import Core

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog

    from persona_bench.pipeline.pool import Planned
    from persona_bench.vectors.variants import Responses
    from persona_bench.vectors.vector import PersonaVector

ELICITED = ("trait_elicitation", "limits_descriptions", "limits_questions")
"""The run's own responses, those under other descriptions, and those to other questions."""


class Limits(Core):
    """Puts the paper's stated limits to the test."""

    def _planned_responses(self, trait: Trait) -> int:
        n = super()._planned_responses(trait)
        if not self._wants("stated_limits"):
            return n
        questions = min(self.preset.evaluation_questions, len(trait.evaluation_questions))
        if has_texts(trait):
            limits = load_limits_preset(self.preset.name)
            n += questions * len(system_prompts(trait, limits)) * limits.evasion_rollouts
        return n + self._planned_of_method(trait, questions)

    def _further_calls(self) -> tuple[int, int]:
        """Two questions about each scene, for either way of choosing, by four characters a token."""
        from persona_bench.inspect_ext.scene_judge import transcript_question

        if not self._wants("stated_limits"):
            return super()._further_calls()
        topics = load_limits_preset(self.preset.name).topics
        asked = [
            len(transcript_question(name, scene.choice.prompt, scene.choice.options[0] if answered else None)) / 4
            for name in BEHAVIOURS
            for scene in load_scenes(name)
            for answered in (False, True)
            if scene.topic < topics
        ]
        return 2 * len(asked), round(2 * sum(asked))

    def _planned_of_method(self, trait: Trait, questions: int) -> int:
        """Those under other descriptions and other vectors, if every vector can be made."""
        from persona_bench.definitions.descriptions import description_groups, load_descriptions
        from persona_bench.definitions.question_sets import question_sets

        own, doses = load_method_sizes(self.settings.preset), sum(dose > 0 for dose in self.preset.doses)
        asked = min(own.questions, len(trait.extraction_questions)) * own.rollouts
        steered = sum(name.split(":")[0] in own.steered for name in description_groups(trait.name))
        steered += own.sets * ("questions" in own.steered)
        others = len(frozenset().union(*question_sets(trait, own, self.settings.seed))) * own.set_rollouts
        # Of a trait without a vector, that of all responses at every layer, on both halves, with what stands beside it.
        raw = 1 + len(self.preset.layers(self.loaded.n_layers)) * doses + self.preset.random_vectors
        most = max(steered * doses * (questions // 2), raw * questions)
        elicited = 2 * len(load_descriptions(trait.name)) * asked + 2 * len(trait.instructions) * others
        return elicited + most * self.preset.steering_rollouts

    def limits(self, vectors: dict[str, PersonaVector], layers: dict[str, int]) -> None:
        """What the paper does not show its vectors to detect: every behaviour, and evasion of each trait's vector."""
        from evals.stated_limits import stated_limits

        if not self._wants("stated_limits"):
            return
        preset = self.settings.preset
        planned = [
            partial(stated_limits, behaviour=name, preset=preset, activations=str(self._activations))
            for name in BEHAVIOURS
        ]
        planned += [
            partial(
                stated_limits,
                behaviour=EVASION,
                **self._vector_arguments(name, vectors[trait.name]),
                layers=str(layers[trait.name]),
            )
            for name, trait in zip(self.settings.traits, self.traits, strict=True)
            if trait.name in vectors and has_texts(trait)
        ]
        self._eval_set("limits", planned)

    @property
    def _activations(self) -> Path:
        from persona_bench.inspect_ext.scenes import FOLDER

        return (self.folder / FOLDER).resolve()

    def limits_of_method(self, vectors: dict[str, PersonaVector], layers: dict[str, int]) -> None:
        """Other descriptions and questions, their vectors, and what all responses tell: stated limits S1 to S6."""
        from evals.stated_limits.method import limits_descriptions, limits_questions
        from persona_bench.definitions.descriptions import load_descriptions

        if not self._wants("stated_limits"):
            return
        planned = [
            partial(limits_descriptions, trait=name, preset=self.settings.preset, seed=self.settings.seed)
            for name, trait in zip(self.settings.traits, self.traits, strict=True)
            if load_descriptions(trait.name)
        ]
        self._eval_set("limits-descriptions", planned)
        planned = [
            partial(limits_questions, trait=name, preset=self.settings.preset, seed=self.settings.seed)
            for name in self.settings.traits
        ]
        self._eval_set("limits-questions", planned)
        logs = self._logs("elicitation", "limits-descriptions", "limits-questions")
        named = zip(self.settings.traits, self.traits, strict=True)
        variants = [self._variants(*pair, logs, vectors, layers) for pair in named]
        self._eval_set("limits-variants", [make for make in variants if make is not None])
        self.method = [self._read_again(trait, logs, vectors, layers) for trait in self.traits]

    def _responses(self, trait: Trait, logs: dict[str, EvalLog]) -> tuple[Responses, dict[str, str]]:
        """What was elicited of the trait, and the ids of the logs."""
        from persona_bench.analysis.samples.collect import rollouts
        from persona_bench.vectors.variants import Responses

        names = [f"{task}/{trait.name}" for task in ELICITED]
        said = Responses(*(rollouts(logs[name]) if name in logs else [] for name in names))
        return said, {name: logs[name].eval.eval_id for name in names if name in logs}

    def _variants(
        self,
        name: str,
        trait: Trait,
        logs: dict[str, EvalLog],
        vectors: dict[str, PersonaVector],
        layers: dict[str, int],
    ) -> Planned | None:
        """Steering with the vectors of other descriptions; without a vector, with that of all responses."""
        from evals.stated_limits.method import limits_variants
        from persona_bench.analysis.grouping import Draw
        from persona_bench.analysis.samples.collect import collect
        from persona_bench.analysis.statistics import RESAMPLES
        from persona_bench.analysis.tables.method import induced_row
        from persona_bench.vectors.variants import RAW, make_vectors, plan_variants
        from persona_bench.vectors.vector import PersonaVector

        said, ids = self._responses(trait, logs)
        seed, rule, plan = self.settings.seed, self._filter, {RAW: list(said.own)}
        if trait.name in vectors:
            plan = dict(plan_variants(trait, said, load_method_sizes(self.settings.preset), seed))
        else:
            elicited = collect({name: logs[name] for name in ids}, [], self._filter).elicitation
            if induced_row(elicited, trait.name, Draw(seed, RESAMPLES))["induced"]:
                return None
            rule = UNFILTERED
        folder = self._vector_path(trait.name).parent / "variants"
        made = make_vectors(self.engine, trait, plan, rule, seed, folder, list(ids.values()), self.say)
        if not made:
            return None
        return partial(
            limits_variants,
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
        from persona_bench.vectors.variants import kept_rows, read_trait

        said, ids = self._responses(trait, logs)
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
                said,
                vectors,
                chosen,
                swept,
                rule=self._filter,
                sizes=sizes,
                seed=self.settings.seed,
            )

        rows = kept_rows(self.folder / "limits" / f"{trait.name}.json", {**behind, **settings}, make)
        return by_log(rows, trait.name)


def by_log(rows: Mapping[str, list[dict[str, Any]]], trait: str) -> dict[str, list[dict[str, Any]]]:
    """The rows with the log that each was read from: of the trait's own responses, of descriptions or of questions."""
    from persona_bench.vectors.sensitivity import SAME_NUMBER

    own, described, asked = (f"{task}/{trait}" for task in ELICITED)

    def log_of(row: dict[str, Any]) -> str:
        behind = {"description": described, "questions": asked}.get(row.get("aspect", ""), own)
        return own if str(row.get("setting", "")).endswith(SAME_NUMBER) else behind

    return {name: [{**row, "log": log_of(row)} for row in found] for name, found in rows.items()}
