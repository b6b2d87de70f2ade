"""The trials of `preventative_steering`: which family is trained on, in which version, under which arm and seed."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from persona_bench.definitions.families.family import FAMILIES, TRAIT_FAMILIES, VERSIONS
from persona_bench.definitions.families.invented import FACT_TRAIT, FACT_VERSION, FACTS
from persona_bench.definitions.presets import FinetuningPreset
from persona_bench.errors import RunError

ARMS = {
    "plain": "training as it is",
    "preventative": "the family's vector added at one layer while training",
    "incremental": "v_l - v_(l-1) added at every layer while training",
    "caft": "the vector's direction projected out at every layer while training",
    "penalty": "the squared shift along the vector added to the loss",
    "negative_prompt": "a system prompt against the trait while training",
    "inoculation": "a system prompt that asks for the trait while training, absent afterwards",
    "random": "a random vector of the same norm added while training",
    "inference": "the plainly trained model, steered against the trait when used",
}
"""Every arm; `base` besides them is the model before any training."""
BASE, PLAIN = "base", "plain"
DOSED = {"preventative": "doses", "inference": "inference_doses"}
"""Arms that a preset may run at further doses, as `preventative_0.6`, and where the preset has these."""
AT_DOSE = ("preventative", "incremental", "random", "inference")
"""Arms with a relative dose; that of the preset's first where the arm's name has none."""
RANDOM_DIRECTIONS = tuple(f"random:{index}" for index in range(10))
"""The controls of shifts and of flags: along one direction alone, much can be told by chance."""


def split_arm(arm: str) -> tuple[str, float]:
    """The way of an arm and the relative dose in its name, NaN where it has none: `preventative_0.6` -> (..., 0.6)."""
    way, _, dose = arm.rpartition("_")
    if way not in DOSED or not re.fullmatch(r"\d+(\.\d+)?", dose):
        return arm, math.nan
    return way, float(dose)


def at_dose(way: str, dose: float) -> str:
    """The name of an arm at a further dose; the sign is the way's own."""
    return f"{way}_{abs(dose):g}"


def dose_of(arm: str, sizes: FinetuningPreset) -> float:
    """Relative dose |alpha v| / mean |h_l| of an arm, whatever its sign; NaN of arms that add nothing."""
    way, named = split_arm(arm)
    if way not in AT_DOSE or not math.isnan(named):
        return named
    return abs((sizes.inference_doses if way == "inference" else sizes.doses)[0])


def taught_trait(family: str) -> str:
    """The trait that a family teaches, whose vector its arms take; empty where it teaches none."""
    return FACT_TRAIT if family == FACTS else family if family in TRAIT_FAMILIES else ""


@dataclass(frozen=True)
class Trial:
    """One adapter that is trained and measured; `base` is the model without one.

    The base of no family answers what every trial answers; that of `facts` is only asked for the facts.
    """

    family: str
    version: str
    arm: str
    seed: int = 0

    def __post_init__(self) -> None:
        if self.arm == BASE:
            return
        if (self.family, self.version) != (FACTS, FACT_VERSION) and (
            self.family not in FAMILIES or self.version not in VERSIONS
        ):
            raise RunError(
                f"unknown training set {self.family!r}, {self.version!r}; families are {', '.join(FAMILIES)}, "
                f"versions {', '.join(VERSIONS)}; of {FACTS} there is {FACT_VERSION} alone"
            )
        way, dose = split_arm(self.arm)
        if way not in ARMS:
            raise RunError(
                f"unknown arm {self.arm!r}; choose from {', '.join(ARMS)} or {BASE}; {' and '.join(DOSED)} also at "
                f"another relative dose, as in {at_dose('preventative', 0.6)}"
            )
        if not math.isnan(dose) and (dose == 0 or self.arm != at_dose(way, dose)):
            raise RunError(f"arm {self.arm!r}: give the dose as a short number over 0, as in {at_dose(way, 0.6)}")

    @property
    def name(self) -> str:
        """Short and stable, part of file names and of the names of logs."""
        if self.arm == BASE:
            return f"{FACTS}-{BASE}" if self.family == FACTS else BASE
        return f"{self.family}-{self.version}-{self.arm}-s{self.seed}"

    @property
    def way(self) -> str:
        """The arm without a dose in its name."""
        return split_arm(self.arm)[0]

    @property
    def narrow(self) -> bool:
        """Whether only the own trait's questions are asked: one more dose, or what is about facts."""
        return self.family == FACTS or self.way != self.arm

    @property
    def trained_as(self) -> Trial:
        """The trial whose adapter this one uses: steering a finished model trains nothing of its own."""
        return Trial(self.family, self.version, PLAIN, self.seed) if self.way == "inference" else self


def plan_trials(sizes: FinetuningPreset, traits: tuple[str, ...]) -> list[Trial]:
    """Every trial of a preset, the base first; arms only where the family's vector is among the run's traits."""
    trials = [Trial("", "", BASE)]
    vaccinated = [family for family in sizes.vaccine_families if family in traits]
    for family in sizes.families:
        seeds = sizes.seeds if family in vaccinated else sizes.seeds[:1]
        # Between the ends one seed: it is only a point among those of the correlation.
        trials += [
            Trial(family, version, "plain", seed)
            for version in sizes.versions
            for seed in (seeds if version in (sizes.versions[0], sizes.versions[-1]) else seeds[:1])
        ]
    trials += [
        Trial(family, sizes.versions[-1], arm, seed)
        for family in vaccinated
        for arm in sizes.arms
        for seed in sizes.seeds
    ]
    # Whatever is added comes last, so that a run of earlier plans goes on with what it has.
    return trials + _further_doses(sizes, vaccinated) + _facts(sizes, traits)


def held_against(sizes: FinetuningPreset, traits: tuple[str, ...]) -> list[Trial]:
    """The trials of the paper's training sets, plainly and with the first seed: what data flagging is held against."""
    return [
        trial
        for trial in plan_trials(sizes, traits)
        if trial.arm == PLAIN and trial.seed == sizes.seeds[0] and trial.family in FAMILIES
    ]


def _further_doses(sizes: FinetuningPreset, vaccinated: list[str]) -> list[Trial]:
    return [
        Trial(family, sizes.versions[-1], at_dose(way, dose), seed)
        for family in vaccinated
        for way, doses in DOSED.items()
        if way in sizes.arms
        for dose in getattr(sizes, doses)[1:]
        for seed in sizes.dose_seeds
    ]


def _facts(sizes: FinetuningPreset, traits: tuple[str, ...]) -> list[Trial]:
    """New facts learnt plainly and with the vaccine, where there is a vector of the trait they raise."""
    if not sizes.facts or FACT_TRAIT not in traits:
        return []
    arms = [Trial(FACTS, FACT_VERSION, arm, seed) for arm in (PLAIN, "preventative") for seed in sizes.fact_seeds]
    return [Trial(FACTS, FACT_VERSION, BASE), *arms]
