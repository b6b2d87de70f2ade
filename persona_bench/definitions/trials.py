"""The trials of `preventative_steering`: which family is trained on, in which version, under which arm and seed."""

from __future__ import annotations

from dataclasses import dataclass

from persona_bench.definitions.families.family import FAMILIES, VERSIONS
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
BASE = "base"


@dataclass(frozen=True)
class Trial:
    """One adapter that is trained and measured; `base` is the model without one."""

    family: str
    version: str
    arm: str
    seed: int = 0

    def __post_init__(self) -> None:
        if self.arm == BASE:
            return
        if self.family not in FAMILIES or self.version not in VERSIONS:
            raise RunError(
                f"unknown training set {self.family!r}, {self.version!r}; families are {', '.join(FAMILIES)}, "
                f"versions {', '.join(VERSIONS)}"
            )
        if self.arm not in ARMS:
            raise RunError(f"unknown arm {self.arm!r}; choose from {', '.join(ARMS)} or {BASE}")

    @property
    def name(self) -> str:
        """Short and stable, part of file names and of the names of logs."""
        return BASE if self.arm == BASE else f"{self.family}-{self.version}-{self.arm}-s{self.seed}"

    @property
    def trained_as(self) -> Trial:
        """The trial whose adapter this one uses: steering a finished model trains nothing of its own."""
        return Trial(self.family, self.version, "plain", self.seed) if self.arm == "inference" else self


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
    return trials
