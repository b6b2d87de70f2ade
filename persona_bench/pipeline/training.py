"""The stages that train: finetuning under interventions, and models trained on flagged data."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from persona_bench.files import write_atomic
from persona_bench.pipeline.limits import Limits

if TYPE_CHECKING:
    from persona_bench.definitions.traits import Trait
    from persona_bench.definitions.trials import Trial
    from persona_bench.pipeline.pool import Planned
    from persona_bench.vectors.vector import PersonaVector


class Training(Limits):
    """Trains adapters, measures them, and flags data beforehand."""

    def finetune(self, vectors: dict[str, PersonaVector], layers: dict[str, int]) -> None:
        """Train every trial's adapter and measure it before the next: a process holds one's merged weights at a time.

        For data flagging alone, those that it holds training sets against: plain ones of the first seed, and the base,
        which are asked the traits' questions alone where an earlier call did not measure all of them.
        """
        from evals.preventative_steering import preventative_steering

        wanted = self._wants("preventative_steering") or (self._wants("data_flagging") and vectors)
        if not wanted or not self._finetuned_traits:
            return
        shared = self._training_arguments(vectors, layers)
        planned: dict[str, Planned] = {}
        for trial in self._trials(tuple(vectors)):
            folder, only = f"finetuning/{trial.name}", dict[str, Any]()
            if not self._wants("preventative_steering") and not (self.folder / "logs" / folder).exists():
                folder, only = f"finetuning-traits/{trial.name}", {"traits_only": True}
            planned[folder] = partial(
                preventative_steering,
                family=trial.family,
                version=trial.version,
                arm=trial.arm,
                train_seed=trial.seed,
                **only,
                **shared,
            )
        self._one_by_one("finetuning", planned)

    def _trials(self, traits: tuple[str, ...]) -> list[Trial]:
        """What is trained, the base first, where these traits have vectors."""
        from persona_bench.definitions.presets import load_finetuning_preset
        from persona_bench.definitions.trials import held_against, plan_trials

        sizes = load_finetuning_preset(self.settings.preset)
        trials = plan_trials(sizes, traits)
        return trials if self._wants("preventative_steering") else [trials[0], *held_against(sizes, traits)]

    def _planned_responses(self, trait: Trait) -> int:
        return super()._planned_responses(trait) + self._planned_finetuned(trait) + self._planned_flagged(trait)

    def _planned_finetuned(self, trait: Trait) -> int:
        """Those of every trial that is asked about the trait, if every vector can be made."""
        from persona_bench.definitions.presets import load_finetuning_preset
        from persona_bench.definitions.trials import BASE
        from persona_bench.inspect_ext.trained import Bench

        if not self._wants("preventative_steering") and not self._wants("data_flagging"):
            return 0
        sizes = load_finetuning_preset(self.settings.preset)
        bench = Bench(sizes, tuple(self._finetuned_traits), {}, {}, {}, None)
        trials = [item for item in self._trials(tuple(t.name for t in self.traits)) if trait.name in bench.asked(item)]
        times = sum(len(sizes.seeds) if trial.arm == BASE else 1 for trial in trials)
        return times * min(sizes.questions, len(trait.evaluation_questions)) * sizes.rollouts

    def _planned_flagged(self, trait: Trait) -> int:
        """Samples that are judged for the trait, and the answers of the models that are trained on what it flags."""
        from persona_bench.definitions.flagging import PICKS
        from persona_bench.definitions.presets import load_finetuning_preset, load_flagging_preset
        from persona_bench.inspect_ext.flagging import judged_traits

        if not self._wants("data_flagging") or trait.name not in self._finetuned_traits:
            return 0
        sizes, trained = load_flagging_preset(self.settings.preset), load_finetuning_preset(self.settings.preset)
        judged_for = judged_traits(sizes.families, self._finetuned_traits)
        n = sum(trait.name in found for found in judged_for.values()) * len(sizes.versions) * sizes.samples
        if trait.name not in sizes.traits:
            return n
        answers = min(trained.questions, len(trait.evaluation_questions)) * trained.rollouts
        return n + len(self._pools) * len(PICKS) * answers + (sizes.corpus if self.settings.corpus else 0)

    @property
    def _pools(self) -> tuple[str, ...]:
        return ("mixture", "corpus", "passed") if self.settings.corpus else ("mixture",)

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
        for pool in self._pools:
            shared["corpus"] = self.settings.corpus if pool != "mixture" else ""
            if pool != "passed":
                self.say(f"flagging, {pool}: measuring samples")
                self._eval_set(f"flagging/{pool}", [partial(data_flagging, pool=pool, **shared)])
            planned: dict[str, Planned] = {}
            for trait in sizes.traits:
                if trait in vectors:
                    planned |= self._train_on_flagged(pool, trait, sizes.picked, shared)
            self._one_by_one(f"flagging, {pool}: training", planned)

    def _train_on_flagged(self, pool: str, trait: str, n: int, shared: dict[str, Any]) -> dict[str, Planned]:
        """The highest, random and lowest samples of a pool, an adapter each, if there are enough of them."""
        from evals.data_flagging import data_flagging
        from persona_bench.definitions.flagging import PICKS
        from persona_bench.inspect_ext.flagging import rankable

        measured = "mixture" if pool == "mixture" else "corpus"
        usable = rankable(self._logs(f"flagging/{measured}")[f"data_flagging/{measured}"], trait, pool)
        if len(usable) < 2 * n:
            self.say(f"flagging, {pool}, {trait}: {len(usable)} samples are too few to train on {n} at either end")
            return {}
        passed = ""
        if pool == "passed":
            passed = str((self.folder / "flagging" / "corpus" / f"passed-{trait}.json").resolve())
            write_atomic(passed, json.dumps(usable) + "\n")
        return {
            f"flagging/{pool}-{pick}-{trait}": partial(
                data_flagging, part=pick, pool=pool, trait=trait, passed=passed, **shared
            )
            for pick in PICKS
        }

    def _write_judged(self) -> str:
        """The model's own judged responses of the elicitation, which trait families are made of; one file for all."""
        from persona_bench.analysis.samples.collect import rollouts
        from persona_bench.vectors.trials import judged_rollouts

        logs = self._logs("elicitation")
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
