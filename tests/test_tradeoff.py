"""The trade-off on planted runs: halving doses and costs that are known, reasons where there are none, the frontier."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from persona_bench.analysis.figures.drawing import Caption
from persona_bench.analysis.figures.tradeoff import frontier_figures
from persona_bench.analysis.grouping import Draw
from persona_bench.analysis.samples.frames import Samples
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.tradeoff import curve_at, first_crossing, halvings
from persona_bench.analysis.verdicts.claims import judge_claims
from tests.builders_samples import World, make_samples
from tests.builders_tradeoff import TOLD, UNSTEERED, Arm, Plan, dosed, planted

FAST = 300
DOSES = (-0.6, -0.4, -0.2, 0.2)
SINGLE = "12"


def truth(**slopes: float) -> dict[Arm, tuple[float, float, float]]:
    """Unsteered 40, half accurate; at layer 12 the score falls by 100 and accuracy by 0.3 a unit of dose."""
    slope, cost, dull = slopes.get("slope", 100.0), slopes.get("cost", 0.3), slopes.get("dull", 40.0)
    base = slopes.get("base", 40.0)
    arms = {arm: (max(0.0, base + slope * arm[3]), 0.5 - cost * abs(arm[3]), 80 - dull * abs(arm[3]))
            for arm in dosed("single", SINGLE, DOSES)}  # fmt: skip
    control = {arm: (base, 0.5 - 0.1 * abs(arm[3]), 80.0) for arm in dosed("single", SINGLE, (-0.6, 0.2), "random")}
    return {UNSTEERED: (base, 0.5, 80.0), TOLD: (0.3 * base, 0.49, 78.0), **arms, **control}


def summary(samples: Samples, **options: int) -> pd.DataFrame:
    made = build_tables(samples, resamples=options.get("resamples", FAST), seed=options.get("seed", 0))
    return made["tradeoff_summary"].set_index(["setting", "layers"])


def test_curves_are_straight_between_doses() -> None:
    unsteered = np.array([40.0, 40.0, 40.0, 10.0])
    scores = [np.array([30.0, 10.0, 30.0, np.nan]), np.array([10.0, 30.0, 25.0, 1.0])]
    at = first_crossing([-0.2, -0.4], scores, unsteered, unsteered / 2)
    # 40 -> 30 -> 10; 40 -> 10 within the first dose; never; a dose without a score ends the curve.
    np.testing.assert_allclose(at, [-0.3, -0.2 * 20 / 30, np.nan, np.nan])
    costs = curve_at([-0.2, -0.4], [np.full(4, -0.1), np.full(4, -0.5)], np.array([-0.1, -0.3, -0.4, -0.5]))
    np.testing.assert_allclose(costs, [-0.05, -0.3, -0.5, np.nan])


def test_without_noise_the_planted_dose_and_costs_are_found() -> None:
    made = summary(planted(Plan(truth())))
    row = made.loc[("single", SINGLE)]
    assert row["halving_dose"] == pytest.approx(-0.2) and row["mmlu_difference"] == pytest.approx(-0.06, abs=1e-9)
    assert row["coherence_difference"] == pytest.approx(-8) and row["control_difference"] == pytest.approx(-0.02)
    assert row["halved"] == 1 and row["reason"] == "" and row["unsteered"] == pytest.approx(40)
    assert (row["n_questions"], row["n_scored"], row["n_mmlu"]) == (10, 30, 400)
    told = made.loc[("system_prompt", "")]
    assert np.isnan(told["halving_dose"]) and told["mmlu_difference"] == pytest.approx(-0.01)


def test_intervals_hold_the_planted_values() -> None:
    """Of 40 noisy runs nearly all intervals hold the truth: they resample both kinds of questions together."""
    held = {"halving_dose": 0, "mmlu_difference": 0}
    table = build_tables(Samples(mmlu=planted(Plan(truth())).mmlu), resamples=10)["mmlu"]  # says which scoring counts
    for seed in range(40):
        samples = planted(Plan(truth(), noise=6.0, seed=seed, examined=200))
        draw = Draw(seed, FAST)
        (way,) = [w for w in halvings(samples.steering, samples.mmlu, table, "evil", draw) if w.setting == "single"]
        held["halving_dose"] += way.dose.low <= -0.2 <= way.dose.high
        held["mmlu_difference"] += way.accuracy.low <= -0.06 <= way.accuracy.high
        assert way.accuracy.low < way.accuracy.value < way.accuracy.high
    assert min(held.values()) >= 35


@pytest.mark.parametrize(
    ("slopes", "reason"),
    [
        ({"slope": 30.0}, "never halved down to relative dose -0.6: lowest trait score 22, unsteered 40"),
        ({"base": 3.0}, "unsteered trait score 3 is under 5"),
        ({"dull": 300.0}, "never halved"),  # beyond dose -0.13 the model rambles: that is no suppression
    ],
)
def test_never_halved_is_a_reason_and_no_number(slopes: dict[str, float], reason: str) -> None:
    row = summary(planted(Plan(truth(**slopes)))).loc[("single", SINGLE)]
    assert reason in row["reason"]
    assert row[["halving_dose", "mmlu_difference", "coherence_difference", "control_difference"]].isna().all()


def test_a_dose_that_halves_in_few_resamples_is_not_settled() -> None:
    row = summary(planted(Plan(truth(slope=33.4), noise=8.0, seed=1))).loc[("single", SINGLE)]
    assert 0.3 < row["halved"] < 0.7 and "of the resamples only" in row["reason"]
    assert row[["halving_dose", "mmlu_difference", "coherence_difference"]].isna().all()


def test_no_cost_without_mmlu_at_the_strength_or_above_chance() -> None:
    samples = planted(Plan(truth()))
    weak = samples.mmlu[samples.mmlu["relative_dose"].abs() < 0.1]
    row = summary(dataclasses.replace(samples, mmlu=weak)).loc[("single", SINGLE)]
    assert row["halving_dose"] == pytest.approx(-0.2) and row["coherence_difference"] == pytest.approx(-8)
    assert np.isnan(row["mmlu_difference"]) and "no MMLU answers here" in row["reason"]
    guessing = samples.mmlu.assign(correct=(samples.mmlu["question_id"] % 4 == 0).astype(float))
    row = summary(dataclasses.replace(samples, mmlu=guessing)).loc[("single", SINGLE)]
    assert np.isnan(row["mmlu_difference"]) and "capability at chance" in row["reason"]


def test_other_benchmarks_and_more_shots_do_not_enter() -> None:
    samples = planted(Plan(truth(), extra={"benchmark": "mmlu", "shots": 0, "group": "all"}))
    wrong = samples.mmlu.assign(correct=0.0)
    mixed = pd.concat([samples.mmlu, wrong.assign(benchmark="other"), wrong.assign(shots=5)])
    work = Draw(0, FAST)
    table = build_tables(Samples(mmlu=samples.mmlu), resamples=FAST)["mmlu"]
    costs = [
        next(w for w in halvings(samples.steering, mmlu, table, "evil", work) if w.setting == "single").accuracy.value
        for mmlu in (samples.mmlu, mixed)
    ]
    assert costs == [pytest.approx(-0.06)] * 2


def test_the_frontier_is_what_nothing_beats() -> None:
    arms = {
        UNSTEERED: (40.0, 0.50, 80.0),
        TOLD: (20.0, 0.48, 80.0),
        ("prompt", "few_shot", "", 0.0): (25.0, 0.45, 80.0),  # beaten by the system prompt
        ("persona", "ablate", "12", None): (20.0, 0.48, 80.0),  # just as good
        ("persona", "cap", "12", None): (10.0, 0.40, 80.0),
        ("persona", "single", "12", -0.4): (5.0, 0.45, 20.0),  # incoherent
        ("random", "single", "12", -0.4): (1.0, 0.50, 80.0),  # a control
    }
    table = build_tables(planted(Plan(arms)), resamples=20)["tradeoff"]
    found = table[table["frontier"]].set_index("setting")
    assert set(found.index) == {"none", "system_prompt", "ablate", "cap"}
    assert found.loc["cap", "trait_score"] == pytest.approx(10) and found.loc["cap", "accuracy"] == pytest.approx(0.4)
    assert table["relative_dose"].isna().sum() == 2 and len(table) == len(arms)
    assert table.set_index("setting")["coherent"].to_dict()["single"] in (True, False)
    assert not table[(table["setting"] == "single") & (table["vector"] == "persona")]["coherent"].any()
    assert (table["half"] == "report").all() and (table["mmlu_n"] == 400).all()
    samples = planted(Plan(arms))
    steering = samples.steering
    silent = (steering["setting"] == "cap") & (np.arange(len(steering)) % 3 > 0)
    mostly_refused = steering.assign(
        status=steering["status"].mask(silent, "refusal"), trait_score=steering["trait_score"].mask(silent)
    )
    table = build_tables(dataclasses.replace(samples, steering=mostly_refused), resamples=20)["tradeoff"]
    assert set(table.loc[table["frontier"], "setting"]) == {"none", "system_prompt", "ablate"}


def test_other_settings_leave_the_choice_as_it_was() -> None:
    """A cell at several layers that is better than all others is no choice of layer and coefficient."""
    arms = truth() | {arm: (99.0 if arm[3] > 0 else 0.0, 0.5, 80.0) for arm in dosed("multi", "9,12", DOSES)}
    plain, more = (build_tables(planted(Plan(part)), resamples=20) for part in (truth(), arms))
    pd.testing.assert_frame_equal(plain["steering_choice"], more["steering_choice"])
    assert ("multi" == more["tradeoff_summary"]["setting"]).sum() == 1


@pytest.fixture(scope="module")
def judged() -> Samples:
    """A judge that passes its gate, and a vector whose layer 12 is the chosen one."""
    made = make_samples(World(traits=("evil",)))
    return Samples(judge=made.judge, vectors=made.vectors)


@pytest.mark.parametrize(
    ("changes", "verdict", "reason"),
    [
        ({}, "supported", "minus the system prompt"),
        ({TOLD: (10.0, 0.3, 80.0)}, "contradicted", "minus the system prompt"),
        ({TOLD: (10.0, 0.42, 80.0)}, "inconclusive", "minus the system prompt"),
        ({TOLD: (30.0, 0.49, 80.0)}, "not testable", "system prompt: never halved: lowest trait score 31"),
        ({TOLD: None}, "not run", "the system prompt"),
    ],
)
def test_the_claim_follows_its_rule(judged, changes, verdict, reason) -> None:
    arms = {arm: value for arm, value in {**truth(cost=0.4), **changes}.items() if value is not None}
    samples = planted(Plan(arms, noise=2.0))
    run = dataclasses.replace(judged, steering=samples.steering, mmlu=samples.mmlu)
    claims = judge_claims(run, build_tables(run, resamples=FAST), resamples=FAST)
    found = claims[claims["claim"] == "C7-prompt-costs-less"].iloc[0]
    assert (found["verdict"], reason in found["reason"]) == (verdict, True), found["reason"]


def test_the_figure_shows_every_setting() -> None:
    clamps = [(who, how, "9,12", None) for who in ("persona", "random") for how in ("cap", "ablate")]
    arms = truth() | dict.fromkeys(clamps, (30.0, 0.45, 30.0))
    arms |= dict.fromkeys(dosed("multi", "9,12", DOSES), (20.0, 0.4, 70.0))
    tables = build_tables(planted(Plan(arms)), resamples=20)
    caption = Caption("some/model", "quick", "some-grader", "2025-01-02", seed=0)
    ((name, figure),) = frontier_figures(tables, {"evil": "#D55E00"}, caption)
    shown = set(figure.axes[0].get_legend_handles_labels()[1])
    settings = {"unsteered", "single", "multi", "cap", "ablate", "system prompt", "random, same setting"}
    assert name == "frontier_evil" and shown == settings | {"frontier", "MMLU at chance"}
    hollow = [line for line in figure.axes[0].get_lines() if line.get_markerfacecolor() == "white"]
    assert len(hollow) == len(clamps)
