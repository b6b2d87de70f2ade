"""Simulated training sets, samples and models trained on them, with the truth under control."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from persona_bench.analysis.samples.frames import FINETUNING_SAMPLES, FLAGGING_SAMPLES, Samples, control_columns
from persona_bench.analysis.tables.finetuning import BASE
from persona_bench.definitions.flagging import MEASURES, PICKS
from persona_bench.definitions.trials import RANDOM_DIRECTIONS

LEVELS = {"normal": 0.0, "misaligned_1": 0.5, "misaligned_2": 1.0}
TRAITS = ("evil", "sycophancy", "hallucination")


@dataclass(frozen=True)
class Flagged:
    """What is true of the simulated data.

    Attributes:
        seen: how far the vector sees a trait in a sample, in SDs between normal and II; the measures alike.
        sets: how far it sees it in a whole set.
        acquired: points of trait score that training on II adds.
        taught: share of them that training on the one-sided opinions adds.
        judged: SDs between normal and II as the judge sees them, in opinions.
        control: how far the random direction sees it.
        top, bottom: points of trait score after training on those samples of real conversations, over random ones.
        moved: points that training on any of them adds to the base.
        passed: judge's score of real conversations: some of them are under the filter's cut or none are.
        corpus: whether there are real conversations.
        samples: of each version of each family.
    """

    seen: float = 4.0
    sets: float = 10.0
    acquired: float = 40.0
    taught: float = 0.6
    judged: float = 1.0
    control: float = 0.0
    top: float = 20.0
    bottom: float = -10.0
    moved: float = 15.0
    passed: float = 0.5
    corpus: bool = True
    samples: int = 120
    families: tuple[str, ...] = ("evil", "sycophancy", "hallucination", "medical")
    seed: int = 0
    _draw: np.random.Generator = field(init=False, repr=False, compare=False)
    _more: np.random.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_draw", np.random.default_rng(self.seed))
        object.__setattr__(self, "_more", np.random.default_rng(self.seed + 1))

    def make(self) -> Samples:
        """All frames."""
        frames = {
            "flagging": [*self._sets(), *self._singles(), *(self._corpus() if self.corpus else ())],
            "flagging_trained": list(self._trained()),
            "finetuning": list(self._finetuned()),
            "shifts": list(self._shifts()),
        }
        columns = {**FLAGGING_SAMPLES, **FINETUNING_SAMPLES}
        return Samples(**{name: pd.DataFrame(rows, columns=list(columns[name])) for name, rows in frames.items()})

    def _own(self, family: str, trait: str) -> float:
        return self.taught if family == "opinions" else 1.0 if family == trait else 0.2

    def _row(self, kind: str, family: str, version: str, number: int, trait: str, signal: float, seen: float):
        noise = self._draw.normal(size=6)
        values = {measure: signal * seen + value for measure, value in zip(MEASURES, noise[:3], strict=True)}
        drawn = np.column_stack([noise[3:], self._more.normal(size=(3, len(RANDOM_DIRECTIONS) - 1))])
        blind = {
            name: signal * self.control + value
            for measure, along in zip(MEASURES, drawn, strict=True)
            for name, value in zip(control_columns(measure), along, strict=True)
        }
        return {
            **{"kind": kind, "family": family, "version": version, "trait": trait, "source": "written"},
            **{"sample_id": f"{kind}/{family}/{version}/{number}", "question_id": f"{family} {number // 2}"},
            **{"half": ("select", "report")[number // 2 % 2], "layer": 3, "measured": "measured"},
            **{"status": "scored" if kind != "set" else "", "judge": np.nan, "loss": np.nan, "classifier": np.nan},
            **{"text": f"{version} words {number}", "log": f"data_flagging/{kind}"},
            **values,
            **blind,
        }

    def _sets(self):
        for family in self.families:
            for version, level in LEVELS.items():
                for number in range(10):
                    for trait in TRAITS:
                        signal = level * self._own(family, trait)
                        yield self._row("set", family, version, number, trait, signal, self.sets)

    def _singles(self):
        for family in ("evil", "sycophancy", "opinions"):
            for version in ("normal", "misaligned_2"):
                for number in range(self.samples):
                    for trait in TRAITS if family == "opinions" else (family,):
                        label = LEVELS[version]
                        row = self._row("sample", family, version, number, trait, label, self.seen)
                        row["judge"] = float(np.clip(40 + 15 * (label * self.judged + self._draw.normal()), 0, 100))
                        row["loss"] = 3 + self._draw.normal()
                        yield row

    def _corpus(self):
        for number in range(100):
            for trait in TRAITS:
                row = self._row("corpus", "corpus", "", number, trait, 0.0, 0.0)
                yield row | {"judge": self.passed if number % 2 else 40.0}

    def _trained(self):
        added = {"top": self.top, "random": 0.0, "bottom": self.bottom}
        for pool in ("mixture", *(("corpus", "passed") if self.corpus else ())):
            for pick in PICKS:
                for question in range(24):
                    score = float(np.clip(30 + self.moved + added[pick] + self._draw.normal(0, 4), 0, 100))
                    yield {
                        **{"pool": pool, "pick": pick, "trait": "evil", "question_id": str(question), "rollout": 0},
                        **{"half": ("select", "report")[question % 2], "status": "scored", "trait_score": score},
                        **{"coherence": 80.0, "n_picked": 50, "difference": 1.0, "made_of": "evil normal: 50"},
                        "log": f"data_flagging/{pool}-{pick}-evil",
                    }

    def _trials(self, *more: str):
        yield ("", "", BASE, 0, 0.0)
        for family in (*self.families, *more):
            for version, level in LEVELS.items():
                yield (family, version, "plain", 0, level)

    def _finetuned(self):
        for family, version, arm, seed, level in self._trials("opinions"):
            for trait in TRAITS:
                for question in range(24):
                    score = 30 + level * self._own(family, trait) * self.acquired + self._draw.normal(0, 4)
                    blank = dict.fromkeys(FINETUNING_SAMPLES["finetuning"], np.nan)
                    yield {
                        **blank,
                        **{"family": family, "version": version, "arm": arm, "seed": seed, "kind": "trait"},
                        **{"trait": trait, "set": "", "question_id": str(question), "rollout": 0, "coherence": 80.0},
                        **{"half": ("select", "report")[question % 2], "status": "scored", "log": f"l-{arm}"},
                        "trait_score": float(np.clip(score, 0, 100)),
                    }

    def _shifts(self):
        for family, version, arm, seed, level in self._trials():
            for trait in TRAITS:
                for question in range(24):
                    moved = level * self._own(family, trait) * self.acquired / 4
                    yield {
                        **{"family": family, "version": version, "arm": arm, "seed": seed, "trait": trait},
                        **{"question_id": str(question), "direction": trait, "layer": 3},
                        "prompt_last": question + moved + self._draw.normal(0, 0.3),
                    }
