"""The verdict code on simulated runs: how often it calls nothing an effect, and how often it sees the paper's effects.

A claim is `supported` in a null run with probability at most 0.05 if the code keeps its promise. Of n runs the count is
then binomial, so a rule fails the test only where the count is so high that a share of 0.05 would give it or more with
probability under 0.001 for any one claim. Power is read the other way round: at least 90 % of the runs. It is
held with the correlations of each of the paper's three traits. Hallucination's within-prompt r (0.245) is why preset
paper monitors on 70 questions: on the paper's own 20, halved, it was supported in 9 of 40 runs.
"""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from persona_bench.analysis.samples.frames import Samples
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.monitoring import monitoring_points
from persona_bench.analysis.verdicts import claims as vd
from persona_bench.definitions.claims import CLAIMS
from persona_bench.definitions.presets import PRESETS
from tests.builders_samples import World, make_samples

RESAMPLES = 200
LEVEL, DOUBT = 0.05, 0.001
# What the simulated run measures: no many-shot conversations.
DECIDED = [entry for entry in CLAIMS if entry.id in vd._RULES and entry.id.startswith("C")]
TESTED = [entry.id for entry in DECIDED if entry.condition in ("", "ladder")]
SMALL = World(
    traits=("evil",), questions=6, layers=(8,), doses=(-0.3, 0.3), mmlu_questions=100, mmlu=0.6, scripts=2, base=40.0
)
PAPER = World(
    traits=("evil",),
    questions=PRESETS["paper"].evaluation_questions // 2,
    epochs=PRESETS["paper"].steering_rollouts,
    layers=(8,),
    doses=(-0.5, 0.5),
    base=40.0,
    steer=60.0,  # tens of points: 30 at this dose
    random=0.0,
    mmlu=0.6,
    mmlu_cost=0.1,  # 5 points at this dose
    mmlu_questions=PRESETS["paper"].mmlu_questions,
    monitored=PRESETS["paper"].monitoring_questions // 2,
    scripts=2,
)
# Effect of a rung and of an SD within it that, with the noise of ten rollouts, give the paper's r overall and within.
PLANTED = {
    "evil": (0.83, 1.13, 0.747, 0.511),
    "sycophancy": (0.95, 1.71, 0.798, 0.669),
    "hallucination": (1.37, 0.48, 0.830, 0.245),
}


def planted(trait: str) -> World:
    """A run at preset paper in which monitoring works as well as the paper reports for a trait."""
    rung_effect, within, *_ = PLANTED[trait]
    return dataclasses.replace(PAPER, rung_effect=rung_effect, within=within)


def shuffled(samples: Samples, rng: np.random.Generator) -> Samples:
    """Every score dealt out anew within its question and half, so that nothing but the question tells it."""

    def deal(frame: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
        frame = frame.reset_index(drop=True)
        order = np.arange(len(frame))
        for where in frame.groupby(
            ["question_id", "half"] if "half" in frame else ["question_id", "scoring"]
        ).indices.values():
            order[where] = rng.permutation(where)
        dealt = frame[columns].to_numpy()[order]
        return frame.assign(**{name: dealt[:, i] for i, name in enumerate(columns)})

    ladder = samples.monitoring["condition"] == "ladder"
    return dataclasses.replace(
        samples,
        steering=deal(samples.steering, ["status", "trait_score", "coherence"]),
        monitoring=deal(samples.monitoring[ladder], ["status", "trait_score"]),
        mmlu=deal(samples.mmlu, ["correct"]),
    )


def supported(samples: Samples, seed: int, known: dict[str, pd.DataFrame]) -> set[str]:
    """The claims supported; the layer and coefficient are chosen anew, what does not change is `known`."""
    changing = Samples(steering=samples.steering, mmlu=samples.mmlu, vectors=samples.vectors)
    made = build_tables(changing, resamples=2, seed=seed)
    tables = known | {name: made[name] for name in ("steering", "steering_choice", "mmlu")}
    claims = vd.judge_claims(samples, tables, resamples=RESAMPLES, seed=seed)
    assert not (claims.loc[claims["claim"].isin(TESTED), "verdict"] == "not run").any()
    return set(claims.loc[claims["verdict"] == "supported", "claim"])


def known_tables(samples: Samples) -> dict[str, pd.DataFrame]:
    """Tables of what every run shares: the judge, which passes, elicitation and the vector."""
    shared = Samples(judge=samples.judge, elicitation=samples.elicitation, vectors=samples.vectors)
    tables = build_tables(shared, resamples=RESAMPLES)
    assert tables["judge"]["passes"].any()
    return tables


def null_counts(runs: int, world: World) -> dict[str, int]:
    """How often each claim was supported where the scores of a run with effects were shuffled."""
    counts = dict.fromkeys(TESTED, 0)
    base = make_samples(world)
    known = known_tables(base)
    for seed in range(runs):
        found = supported(shuffled(base, np.random.default_rng(seed)), seed, known)
        for name in TESTED:
            counts[name] += name in found
    return counts


def most(runs: int) -> int:
    """The largest count that a share of 0.05 does not make incredible."""
    return int(stats.binom.isf(DOUBT, runs, LEVEL))


def powers(runs: int, world: World) -> dict[str, float]:
    counts = dict.fromkeys(TESTED, 0)
    known = known_tables(make_samples(world))
    for seed in range(runs):
        found = supported(make_samples(dataclasses.replace(world, seed=seed)), seed, known)
        for name in TESTED:
            counts[name] += name in found
    return {name: count / runs for name, count in counts.items()}


def test_shuffling_leaves_no_effect_and_every_score() -> None:
    base = make_samples(SMALL)
    dealt = shuffled(base, np.random.default_rng(0))
    assert sorted(dealt.steering["trait_score"].dropna()) == sorted(base.steering["trait_score"].dropna())
    persona = dealt.steering[(dealt.steering["vector"] == "persona") & (dealt.steering["relative_dose"] > 0)]
    plain = dealt.steering[dealt.steering["vector"] == "none"]
    before = base.steering[(base.steering["vector"] == "persona") & (base.steering["relative_dose"] > 0)]
    unsteered = base.steering[base.steering["vector"] == "none"]
    assert before["trait_score"].mean() - unsteered["trait_score"].mean() > 15
    assert abs(persona["trait_score"].mean() - plain["trait_score"].mean()) < 10


def test_nulls_are_rarely_supported() -> None:
    counts = null_counts(20, SMALL)
    assert max(counts.values()) <= most(20), counts


@pytest.mark.parametrize("trait", PLANTED)
def test_the_planted_correlations_are_the_paper_s(trait: str) -> None:
    worlds = [make_samples(dataclasses.replace(planted(trait), seed=seed)) for seed in range(4)]
    points = [monitoring_points(samples, "evil", "persona", 8.0) for samples in worlds]
    overall = np.mean([part["value"].corr(part["trait_score"]) for part in points])
    within = np.mean([rung["value"].corr(rung["trait_score"]) for part in points for _, rung in part.groupby("rung")])
    assert overall == pytest.approx(PLANTED[trait][2], abs=0.03)
    assert within == pytest.approx(PLANTED[trait][3], abs=0.05)


def test_effects_of_the_paper_s_size_are_seen_at_its_sizes() -> None:
    found = powers(4, planted("sycophancy"))
    assert min(found.values()) == 1.0, found


@pytest.mark.long
def test_200_nulls_are_rarely_supported() -> None:
    counts = null_counts(200, SMALL)
    assert max(counts.values()) <= LEVEL * 200, counts


@pytest.mark.long
@pytest.mark.parametrize("trait", PLANTED)
def test_effects_of_the_paper_s_size_are_seen_in_nine_of_ten_runs(trait: str) -> None:
    found = powers(100, planted(trait))
    assert min(found.values()) >= 0.9, found
