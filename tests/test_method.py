"""The method's own limits on planted truths: every rule both ways, identities of the curves, broken input."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evals.stated_limits import limits_questions
from persona_bench.analysis.grouping import Draw
from persona_bench.analysis.samples.collect import with_readings
from persona_bench.analysis.samples.frames import METHOD_SAMPLES, Samples
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.method import METHOD_TABLES, best_of, detectors
from persona_bench.analysis.verdicts import claims as vd
from persona_bench.analysis.verdicts.decision import Run
from persona_bench.analysis.verdicts.method import METHOD_RULES, TWO_MODELS, Evidence, halves_agree, share_not_supported
from persona_bench.definitions.claims import claim
from persona_bench.definitions.descriptions import description_groups, load_descriptions
from persona_bench.definitions.presets import METHOD, PRESETS
from persona_bench.definitions.question_sets import question_pool, question_sets
from persona_bench.definitions.traits import TRAITS, load_trait
from persona_bench.errors import DataError, RunError, VectorError
from persona_bench.inspect_ext.variants import named_vectors, variant_cells
from persona_bench.models.chat import prompt_ids, response_ids
from persona_bench.models.engine import Engine
from persona_bench.models.rows import Reading, Row
from persona_bench.vectors.extraction import Rollout, extract
from persona_bench.vectors.readings import POSITIONS, Readings, read_responses
from persona_bench.vectors.sensitivity import group_rows, sensitivity_rows
from persona_bench.vectors.variants import Responses, kept_rows, make_vectors, plan_variants, question_parts, read_trait
from persona_bench.vectors.vector import PersonaVector
from tests.builders_samples import World, make_samples
from tests.conftest import one_line, talking, tiny_vector
from tests.test_pipeline import run as run_pipeline

FAST = 300
ONE = World(traits=("evil",), mmlu_questions=60, scripts=6)
DRAW = Draw(0, FAST)
Find = Callable[..., Any]


def readings(seen: float, *, others: bool = True, showing: int = 3, random_sees: float = 0.0) -> pd.DataFrame:
    """Elicited responses of which `showing` in six show the trait, `seen` SD apart on another trait's vector."""
    rng = np.random.default_rng(1)
    rows = []
    for question in range(20):
        for number in range(6):
            shown = number < showing
            for direction, gap in (("trait:evil", 5.0), ("trait:other", -seen), ("random:0", random_sees),
                                   ("random:1", 0.0)):  # fmt: skip
                if direction == "trait:other" and not others:
                    continue
                rows.append({
                    "trait": "evil", "direction": direction, "layer": 12, "question_id": question,
                    "half": "report" if question % 2 else "select", "pair": number, "side": "positive", "epoch": 1,
                    "status": "scored", "trait_score": 90.0 if shown else 10.0,
                    "projection": gap * shown + rng.normal(), "log": "trait_elicitation/evil",
                })  # fmt: skip
    return pd.DataFrame(rows, columns=list(METHOD_SAMPLES["readings"]))


_SHOWN = readings(6.0)
RARE = _SHOWN[(_SHOWN["half"] == "select") | (_SHOWN["question_id"] < 4) | (_SHOWN["trait_score"] < 50)]
"""Ten responses of the select half show the trait, and six of the report half."""


@pytest.fixture(scope="module")
def base() -> Samples:
    return dataclasses.replace(make_samples(ONE), readings=readings(0.0))


@pytest.fixture(scope="module")
def tables(base: Samples) -> dict[str, pd.DataFrame]:
    return build_tables(base, resamples=FAST)


@pytest.fixture
def find(base: Samples, tables: dict[str, pd.DataFrame]) -> Find:
    """The finding of one claim in the simulated world, with some of its frames changed and their tables made anew."""

    def found(claim_id: str, no_vector: str = "", **changed: pd.DataFrame) -> Any:
        samples = dataclasses.replace(base, **changed)
        made = build_tables(Samples(**changed), resamples=FAST) if changed else {}
        empty = ("steering", "steering_choice") if "steering" in changed else ()
        told = {**tables, **{name: table for name, table in made.items() if len(table) or name in empty}}
        run = Run(samples, told, {} if no_vector else {"evil": 12.0}, 0, FAST)
        before = {("C1-steering-induces", "evil"): vd._find(run, claim("C1-steering-induces"), "evil", no_vector, {})}
        return vd._find(run, claim(claim_id), "evil", no_vector, before)

    return found


def test_without_the_eval_nothing_is_said_of_the_limits(find: Find) -> None:
    none = pd.DataFrame(columns=list(METHOD_SAMPLES["readings"]))
    for name in (*METHOD_RULES, TWO_MODELS):
        assert find(name, readings=none).verdict == "not run"


# S2: a trait that nobody named

S2 = "S2-trait-named-beforehand"


def test_a_shift_that_no_other_vector_sees_supports_the_limit(find: Find) -> None:
    found = find(S2)
    assert found.verdict == "supported" and found.high < 0.9 and "trait:other" in found.reason
    assert found.n == 60 and found.log == "trait_elicitation/evil"


def test_a_shift_that_another_vector_sees_the_other_way_round_contradicts_it(find: Find) -> None:
    found = find(S2, readings=readings(6.0))
    assert found.verdict == "contradicted" and found.low > 0.9
    table = build_tables(Samples(readings=readings(6.0)), resamples=FAST)["left_out"]
    chosen = table[table["chosen"].astype(bool) & (table["half"] == "report")].set_index("direction")
    assert len(chosen) == 2 and chosen.loc["trait:other", "sign"] == -1
    assert chosen.loc["trait:other", "tpr_1"] > 0.9 and chosen.loc["trait:other", "n_positive"] == 30


def test_which_way_round_a_random_direction_sees_it_means_nothing(find: Find) -> None:
    frame = readings(6.0, random_sees=6.0)
    turned = (frame["direction"] == "random:0") & (frame["half"] == "report")
    frame.loc[turned, "projection"] *= -1
    found = find(S2, readings=frame)
    assert found.verdict == "inconclusive" and "minus a random direction's, whichever way round, 0 [" in found.reason


def test_what_a_random_direction_sees_as_well_is_not_the_vector_s_doing(find: Find) -> None:
    assert find(S2, readings=readings(6.0, random_sees=6.0)).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (readings(6.0, others=False), "no other trait"),
        (readings(6.0, showing=0), "responses that show the trait 0, needed 10"),
        (readings(6.0, showing=6), "others 0, needed 10"),
        (RARE, "responses that show the trait 6, needed 10"),
    ],
    ids=["alone", "never", "always", "on the other half"],
)
def test_a_shift_that_is_not_there_cannot_be_missed(find: Find, frame: pd.DataFrame, reason: str) -> None:
    found = find(S2, readings=frame)
    assert found.verdict == "not testable" and reason in found.reason


def test_the_best_vector_is_chosen_without_the_report_half() -> None:
    frame = readings(1.0)
    spoiled = frame.assign(projection=frame["projection"].where(frame["half"] == "select", 0.0))
    picks = [best_of(detectors(part, "evil", DRAW), "evil", "random") for part in (frame, spoiled)]
    assert picks[0] is not None and picks[1] is not None
    assert (picks[0].direction, picks[0].sign, picks[0].select) == (picks[1].direction, picks[1].sign, picks[1].select)
    assert picks[1].report.value == 0.5


# S1, S5, S6, J2: what a run already has


def test_two_models_counts_the_final_verdicts_of_the_nine(base: Samples, tables: dict[str, pd.DataFrame]) -> None:
    claims = vd.judge_claims(base, tables, resamples=FAST).set_index("claim")
    found = claims.loc[TWO_MODELS]
    nine = claims[claims.index.str.match(r"C[1-9]-") & claims["verdict"].isin(["supported", "contradicted"])]
    assert found["trait"] == "all" and found["estimate"] == 0 and found["n"] == len(nine) == 6
    assert found["verdict"] == "inconclusive" and math.isnan(found["p_holm"])
    s1 = claim(TWO_MODELS)

    def told(supported: int, contradicted: int) -> str:
        rows = [("C1-a", "supported")] * supported + [("C2-b", "contradicted")] * contradicted
        return share_not_supported(s1, [*rows, ("C3-c", "inconclusive"), ("M1-d", "contradicted")])[0]

    assert told(4, 4) == "supported" and told(30, 1) == "contradicted" and told(4, 1) == "not testable"


def test_monitoring_of_drift_against_single_turns(base: Samples, find: Find) -> None:
    drift = base.projections["sample_id"].str.contains("drift")
    noise = np.random.default_rng(0).normal(size=len(base.projections))
    for blind, verdict in ((drift, "supported"), (~drift, "contradicted")):
        told = base.projections.assign(prompt_last=base.projections["prompt_last"].where(~blind, noise))
        samples = dataclasses.replace(base, projections=told)
        evidence = Evidence(samples, {}, {"evil": 12.0}, DRAW, {})
        (bound,) = METHOD_RULES["S5-single-turn"](evidence, claim("S5-single-turn"), "evil").bounds
        assert (bound.clear, bound.broken) == (verdict == "supported", verdict == "contradicted")
    single = base.monitoring[base.monitoring["condition"] == "ladder"]
    alone = find("S5-single-turn", monitoring=single)
    assert alone.verdict == "not testable" and "drifting" in alone.reason


def test_verdicts_on_the_other_half(base: Samples, find: Find) -> None:
    clear = make_samples(dataclasses.replace(ONE, questions=40, random=40)).steering
    agreed = find("S6-twenty-questions", steering=clear)
    assert agreed.verdict == "contradicted" and agreed.low > 0.8 and agreed.n == 17
    score, report = base.steering["trait_score"], base.steering["half"] == "report"
    flipped = base.steering.assign(trait_score=score.where(~report, 100 - score))
    assert find("S6-twenty-questions", steering=flipped).verdict == "supported"
    few = base.steering[base.steering["vector"].isin(["none", "prompt"])]
    assert find("S6-twenty-questions", steering=few).verdict == "not testable"


def test_halves_that_are_the_same_agree_wholly() -> None:
    steering = make_samples(dataclasses.replace(ONE, questions=4)).steering
    select = steering[steering["half"] == "select"]
    twice = pd.concat([select, select.assign(half="report")])
    found = halves_agree(twice, DRAW, "same")
    assert found.value == pytest.approx(1) and found.n == 17
    only_one = halves_agree(select, DRAW, "one")
    assert math.isnan(only_one.value) and only_one.n == 0


def judged(twin: float, hard: float, scored: float = 1.0) -> dict[str, pd.DataFrame]:
    """Labelled answers of the report half and twins, of which a share is judged right, or a share scored at all."""
    rows = []
    for question in range(40):
        level = 100 if question % 2 else 0
        for kind, share in (("twin", twin), ("fluent_trait", hard), ("graded", 1.0), ("clear", 0.0), ("short", 0.0)):
            right = question / 40 < share
            # The short ones are in the middle, and the clear ones no twins: neither counts.
            own = 50 if kind == "short" else level
            refused = kind == "fluent_trait" and question / 40 >= scored
            rows.append({
                "trait": "evil", "grader": "g", "method": "m", "question_id": f"q{question}", "half": "report",
                "source": "written", "level": own, "kind": kind, "status": "refusal" if refused else "scored",
                "trait_score": math.nan if refused else float(own if right else 100 - own), "coherence": 90.0,
                "fluency": 90.0, "refuses": False,
                "log": "judge_validity/evil",
            })  # fmt: skip
    frame = pd.DataFrame(rows)
    return {"judge": frame[frame["kind"] != "twin"], "twins": frame[frame["kind"] == "twin"]}


@pytest.mark.parametrize(
    ("twin", "hard", "verdict"),
    [(1.0, 0.5, "supported"), (0.5, 1.0, "contradicted"), (0.9, 0.9, "inconclusive")],
)
def test_hard_cases_against_their_twins(find: Find, twin: float, hard: float, verdict: str) -> None:
    told = judged(twin, hard)
    found = find("J2-judge-misreads", **told)
    assert found.verdict == verdict and found.n == 40
    assert found.estimate == pytest.approx(twin - hard)
    table = build_tables(Samples(**told), resamples=FAST)["hard_cases"].set_index("kind")
    assert set(table.index) == {"all", "fluent_trait"}
    assert table.loc["all", "twin_right"] == pytest.approx(twin) and table.loc["all", "n_left_out"] == 0


def test_a_hard_case_without_a_score_leaves_its_pair_out_and_is_named(find: Find) -> None:
    found = find("J2-judge-misreads", **judged(1.0, 0.5, scored=0.75))
    assert found.n == 30 and found.estimate == pytest.approx(1 / 3) and "10 of 40 pairs left out" in found.reason
    few = find("J2-judge-misreads", **judged(1.0, 0.5, scored=0.25))
    assert few.verdict == "not testable" and "10" in few.reason


def test_hard_cases_without_twins_test_nothing(find: Find) -> None:
    told = judged(1.0, 1.0)
    found = find("J2-judge-misreads", judge=told["judge"])
    assert found.verdict == "not testable" and "beside a twin" in found.reason


def test_twins_change_nothing_about_the_judge_but_j2(base: Samples) -> None:
    """The gate, its cases, and the method in use are those of the labelled set, whatever a judge says of twins."""
    wrong = judged(0.0, 0.0)["twins"].assign(method="probe", grader=base.judge["grader"].iloc[0])
    for methods in (None, {"evil": str(base.judge["method"].iloc[0])}):
        plain, beside = (
            build_tables(dataclasses.replace(base, twins=twins), resamples=50, judge_methods=methods)
            for twins in (base.twins, wrong)
        )
        for name in ("judge", "judge_cases", "judge_outcomes", "judge_panel"):
            pd.testing.assert_frame_equal(plain[name], beside[name])


# S3: a vague description

S3 = "S3-vague-description"


def variants(base: Samples, gap: float, vector: str = "vague") -> pd.DataFrame:
    """Answers on the report half under a vector that does as much as the full one less `gap` points."""
    own = base.steering[(base.steering["vector"] == "persona") & (base.steering["half"] == "report")]
    own = own[(own["layer"] == 12) & (own["relative_dose"] > 0)]
    noise = np.random.default_rng(5).normal(0, 2, len(own))
    return own.assign(vector=vector, trait_score=own["trait_score"] - gap + noise, log="limits_variants/evil")


@pytest.mark.parametrize(("gap", "verdict"), [(25.0, "supported"), (-25.0, "contradicted")])
def test_a_vague_description(base: Samples, find: Find, gap: float, verdict: str) -> None:
    made = variants(base, gap)
    found = find(S3, variants=made)
    assert found.verdict == verdict and found.estimate == pytest.approx(gap, abs=4)
    table = build_tables(Samples(steering=base.steering, variants=made), resamples=FAST)["variants"]
    cells = table.assign(dose=table["relative_dose"].astype(float).round(6)).set_index(["vector", "dose"])
    assert cells.loc[("vague", 0.4), "below_full"] == pytest.approx(found.estimate)
    assert cells.loc[("persona", 0.4), "slope"] == pytest.approx(100, abs=15)
    assert math.isnan(cells.loc[("persona", 0.4), "below_full"]) and set(table["half"]) == {"report"}


def test_nothing_steers_less_well_than_a_vector_that_does_not_steer(base: Samples, find: Find) -> None:
    lame = make_samples(dataclasses.replace(ONE, steer=0.0)).steering
    found = find(S3, steering=lame, variants=variants(base, 25.0))
    assert found.verdict == "not testable" and "does not steer" in found.reason


def test_after_the_correction_the_full_vector_must_still_steer(base: Samples, tables: dict[str, pd.DataFrame],
                                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    """C1 is supported by its interval, and falls with Holm's correction over the run: then S3 does too."""
    monkeypatch.setattr(vd.st, "holm", lambda p_values: [1.0 for _ in p_values])
    samples = dataclasses.replace(base, variants=variants(base, 25.0))
    claims = vd.judge_claims(samples, tables, resamples=FAST).set_index("claim")
    assert claims.loc["C1-steering-induces", "verdict"] == "inconclusive"
    assert claims.loc[S3, "verdict"] != "supported"


def test_vague_descriptions_that_give_no_vector_are_named(find: Find) -> None:
    row = {"trait": "evil", "aspect": "description", "setting": "vague", "layer": 12, "draw": 0, "n_positive": 3,
           "n_negative": 20, "cosine": 0.4, "norm_ratio": 1.0, "log": "limits_descriptions/evil"}  # fmt: skip
    found = find(S3, sensitivity=pd.DataFrame([row]))
    assert found.verdict == "not testable" and "3 positive and 20 negative" in found.reason
    assert find(S3).verdict == "not run"


# S4: a trait that prompts do not induce

S4 = "S4-inducible-by-prompt"


def refused(elicitation: pd.DataFrame) -> pd.DataFrame:
    """Nothing shows the trait: half of those told to are refusals, and the rest score low."""
    positive = elicitation["side"] == "positive"
    refusal = positive & (elicitation["question_id"] % 2 == 0)
    return elicitation.assign(
        status=np.where(refusal, "refusal", "scored"),
        trait_score=np.where(refusal, np.nan, 5.0),
        kept=~positive,
        drop_reason=np.where(refusal, "refusal", np.where(positive, "score", "")),
    )


def test_the_gate_says_why_a_trait_is_not_induced(base: Samples, tables: dict[str, pd.DataFrame]) -> None:
    made = build_tables(Samples(elicitation=refused(base.elicitation)), resamples=FAST)
    (row,) = made["inducibility"].to_dict("records")
    assert not row["induced"] and row["kept_positive"] == 0 and row["refusal_rate"] == 0.5
    said = "0 of 20 responses told to show it pass the filter, 8 are needed (dropped: 10 refusal, 10 score)"
    assert said in row["reason"]
    (plain,) = tables["inducibility"].to_dict("records")
    assert plain["induced"] and plain["reason"] == "" and plain["difference"] == pytest.approx(60, abs=10)


def raw(world: World) -> pd.DataFrame:
    """Steering on both halves with the vector of all responses, with its controls, as `limits_variants` leaves it."""
    steering = make_samples(world).steering
    made = steering[steering["vector"].isin(["persona", "random", "none"]) & (steering["relative_dose"] >= 0)]
    return made.replace({"vector": {"persona": "raw"}}).assign(log="limits_variants/evil")


@pytest.mark.parametrize(
    ("steer", "verdict"), [(0.0, "supported"), (60.0, "contradicted")], ids=["does nothing", "steers"]
)
def test_an_uninducible_trait(base: Samples, find: Find, steer: float, verdict: str) -> None:
    """The trait has no vector, so that of all responses is steered with; what else needs a vector stays untestable."""
    told = {
        "elicitation": refused(base.elicitation),
        "steering": base.steering.iloc[:0],
        "variants": raw(dataclasses.replace(ONE, steer=steer, questions=40)),
    }
    found = find(S4, "0 positives", **told)
    assert found.verdict == verdict and "unfiltered" in found.reason and "0 of 20" in found.reason
    assert find("S6-twenty-questions", "0 positives", **told).reason == "no vector: 0 positives"
    assert find(S2, "0 positives").verdict == "supported"


def test_an_induced_trait_does_not_test_it(base: Samples, find: Find) -> None:
    found = find(S4)
    assert found.verdict == "not testable" and "is induced by prompting" in found.reason
    assert find(S4, elicitation=refused(base.elicitation), steering=base.steering.iloc[:0]).verdict == "not run"


def test_a_judge_under_the_gate_decides_no_limit(base: Samples, find: Find) -> None:
    judge = make_samples(dataclasses.replace(ONE, judge_noise=1e6)).judge
    for name in (S2, S3, S4, "S5-single-turn", "S6-twenty-questions"):
        found = find(name, judge=judge, variants=variants(base, 20.0))
        assert found.verdict == "not testable" and found.reason.startswith("judge gate: ")


# Sensitivity: the same readings averaged in other ways


def rollout(side: str, number: int, score: float, **more: Any) -> Rollout:
    said = {"pair": number % 5, "question_id": number % 8, "epoch": 1 + number % 2, "status": "scored"} | more
    text = f"{side} {number}"
    return Rollout(side=side, messages=(("system", f"be {side}"), ("user", f"q{number % 8}")), response=text,
                   trait_score=score, coherence=90.0, **said)  # fmt: skip


def planted(n: int = 40, width: int = 64, layers: tuple[int, ...] = (1, 2)) -> tuple[Readings, np.ndarray]:
    """Readings whose positives lie along one axis, with noise; every fourth positive is a refusal along another."""
    rng = np.random.default_rng(2)
    items, means = [], []
    axes = np.eye(width)
    for side, score in (("positive", 90.0), ("negative", 5.0)):
        for number in range(n):
            refusal = side == "positive" and number % 4 == 0
            items.append(rollout(side, number, math.nan if refusal else score,
                                 status="refusal" if refusal else "scored"))  # fmt: skip
            centre = 0.0 if side == "negative" else 20 * axes[1] if refusal else 2 * axes[0]
            means.append(centre + rng.normal(0, 0.5, (len(POSITIONS), len(layers), width)))
    return Readings(tuple(items), layers, np.stack(means).astype(np.float32)), axes[1]


def test_all_responses_give_the_vector_itself_and_more_come_nearer_to_it() -> None:
    held, refusal = planted()
    rows = pd.DataFrame(sensitivity_rows(held, refusal, "stated", 2, 20, np.random.default_rng(0)))
    curve = rows[rows["aspect"] == "responses"].groupby("setting")["cosine"].agg(["mean", "count"])
    assert curve.loc["all", "mean"] == pytest.approx(1, abs=1e-12) and curve.loc["all", "count"] == 1
    assert list(curve.loc[["4", "8", "16"], "count"]) == [20] * 3
    assert curve.loc["4", "mean"] < curve.loc["8", "mean"] < curve.loc["16", "mean"] < 1
    own = rows.set_index(["aspect", "setting"])
    assert own.loc[("filter", "stated"), "cosine"].item() == pytest.approx(1, abs=1e-12)
    assert own.loc[("filter", "stated"), "norm_ratio"].item() == pytest.approx(1, abs=1e-12)
    assert own.loc[("layer", "2"), "cosine"].item() == pytest.approx(1, abs=1e-12)
    whole = rows[(rows["aspect"] == "position") & (rows["setting"] == "response")]
    assert whole["cosine"].to_numpy() == pytest.approx(1, abs=1e-12)
    # Without a filter the refusals turn the vector.
    assert (
        own.loc[("refusal", "unfiltered"), "cosine"].item()
        > 0.9
        > 0.2
        > own.loc[("refusal", "stated"), "cosine"].item()
    )
    assert own.loc[("filter", "unfiltered"), "n_positive"].item() == 40
    assert (rows["cosine"].abs() <= 1 + 1e-9).all()
    split = rows[(rows["aspect"] == "seed") & (rows["setting"] == "random halves")]
    assert len(split) == 20 and (split["n_positive"] == 15).all() and split["cosine"].between(0.5, 0.999).all()
    odd = own.loc[("seed", "odd against even rollouts")]
    assert odd["n_positive"].item() == 10 and odd["cosine"].item() > 0.5


def test_rows_are_the_same_again_and_another_seed_draws_others() -> None:
    held, refusal = planted()
    first, again, other = (
        sensitivity_rows(held, refusal, "stated", 2, 3, np.random.default_rng(seed)) for seed in (0, 0, 1)
    )
    assert first == again and first != other


def test_without_positives_there_are_counts_and_no_cosine() -> None:
    held, refusal = planted()
    flat = Readings(tuple(dataclasses.replace(item, trait_score=5.0) for item in held.items), held.layers, held.means)
    rows = pd.DataFrame(sensitivity_rows(flat, refusal, "stated", 2, 5, np.random.default_rng(0)))
    assert set(rows["aspect"]) == {"filter", "refusal", "layer", "position"}
    stated = rows[(rows["aspect"] == "filter") & (rows["setting"] == "stated")].iloc[0]
    assert stated["n_positive"] == 0 and stated["n_negative"] == 40 and math.isnan(stated["cosine"])
    unfiltered = rows[(rows["aspect"] == "refusal") & (rows["setting"] == "unfiltered")].iloc[0]
    assert unfiltered["cosine"] > 0.9


def test_a_description_stands_beside_as_many_of_the_run_s_responses() -> None:
    full, _ = planted()
    turned = Readings(full.items, full.layers, np.roll(full.means, 3, axis=-1))
    members = {"all": range(5), "description:0": (0,), "clear": (0, 1), "vague": (3, 4)}
    groups = {name: [frozenset({one}) for one in numbers] for name, numbers in members.items()}
    rng = np.random.default_rng(0)
    same = pd.DataFrame(group_rows("description", full, full, groups, "stated", 2, 10, rng))
    means = same.groupby("setting")["cosine"].mean()
    assert means["all"] == pytest.approx(1, abs=1e-12) and means["all, same number"] == pytest.approx(1, abs=1e-12)
    assert means["clear"] == pytest.approx(means["clear, same number"], abs=0.05)
    # Ten pairs of five descriptions, one of two, and none of one.
    pairs = same[same["setting"].str.endswith(", each other")].groupby("setting").size()
    assert dict(pairs) == {"all, each other": 10, "clear, each other": 1, "vague, each other": 1}
    del groups["all"]
    rows = pd.DataFrame(group_rows("description", turned, full, groups, "stated", 2, 10, rng))
    away = rows.groupby("setting")["cosine"].mean()
    assert away["vague"] < 0.3 < 0.8 < away["vague, same number"]


def test_question_sets_are_compared_with_the_run_and_with_each_other() -> None:
    """One set of questions whose responses lie elsewhere is told from the others, and from as many of the run's."""
    full, _ = planted(80)
    odd = np.array([item.question_id in (6, 7) for item in full.items])
    means = np.where(odd[:, None, None, None], np.roll(full.means, 3, axis=-1), full.means)
    sets = [frozenset({0, 1, 2}), frozenset({3, 4, 5}), frozenset({6, 7})]
    groups = {"sets": sets, **{f"questions:{number}": [ids] for number, ids in enumerate(sets)}}
    other = Readings(full.items, full.layers, means)
    rows = pd.DataFrame(group_rows("questions", other, full, groups, "stated", 2, 10, np.random.default_rng(0)))
    cosine = rows.groupby("setting")["cosine"].mean()
    assert set(rows["aspect"]) == {"questions"} and cosine["questions:2"] < 0.3 < 0.8 < cosine["questions:0"]
    assert cosine["questions:2, same number"] > 0.8
    pairs = rows[rows["setting"] == "sets, each other"].set_index("draw")["cosine"]
    assert len(pairs) == 3 and pairs[0] > 0.6 > 0.3 > pairs[1] and pairs[2] < 0.3
    whole = rows[rows["setting"] == "sets"].iloc[0]
    assert whole["n_positive"] == 60 and whole["n_negative"] == 80


@pytest.mark.parametrize("preset", PRESETS)
def test_question_sets_hold_no_evaluation_question_and_are_the_same_again(preset: str) -> None:
    sizes = METHOD[preset]
    for name in TRAITS:
        trait = load_trait(name)
        pool, sets = question_pool(trait), question_sets(trait, sizes, 3)
        assert sets == question_sets(trait, sizes, 3) != question_sets(trait, sizes, 4)
        assert len(sets) == sizes.sets and all(len(ids) == sizes.set_questions for ids in sets)
        assert sum(map(len, sets)) == len(frozenset().union(*sets)), "no question is in two sets"
        asked = {pool[place] for ids in sets for place in ids}
        assert not asked & set(trait.evaluation_questions)
        assert asked <= {*trait.extraction_questions, *trait.monitoring_questions}
        assert asked & set(trait.monitoring_questions), "some are new to the run's own vector"
        parts = question_parts(trait, sizes, 3)
        assert parts["sets"] == list(sets) and len(parts) == 1 + sizes.sets


def test_a_small_pool_is_shared_out_as_far_as_it_goes() -> None:
    trait = load_trait("evil").model_copy(update={"monitoring_questions": ()})
    sets = question_sets(trait, METHOD["paper"], 0)
    assert [len(ids) for ids in sets] == [10] * 5 and not sets[0] & sets[1] and sets[0] == sets[2]
    tiny = trait.model_copy(update={"extraction_questions": ("one?",)})
    assert set(question_sets(tiny, METHOD["paper"], 0)) == {frozenset({0})}


def test_the_task_asks_the_sets_under_the_trait_s_own_instructions() -> None:
    trait, sizes = load_trait("evil"), METHOD["quick"]
    task = limits_questions(trait="evil", seed=3)
    asked = {sample.metadata["question_id"] for sample in task.dataset if sample.metadata}
    assert asked == frozenset().union(*question_sets(trait, sizes, 3))
    assert len(task.dataset) == len(asked) * 10 and task.epochs == sizes.set_rollouts
    for sample in task.dataset:
        system, user = sample.input
        assert sample.metadata is not None and not isinstance(sample.input, str)
        assert system.text == trait.system_prompt(sample.metadata["side"], sample.metadata["pair"])  # type: ignore[union-attr]
        assert user.text == question_pool(trait)[sample.metadata["question_id"]]  # type: ignore[union-attr]


# Through the model


@pytest.fixture(scope="module")
def said() -> list[Rollout]:
    return [rollout(side, number, score) for side, score in (("positive", 90.0), ("negative", 5.0))
            for number in range(12)]  # fmt: skip


def test_one_pass_gives_the_vector_that_extraction_gives(said: list[Rollout]) -> None:
    engine = Engine(talking())
    vector = extract(engine, load_trait("evil"), said)
    held = read_responses(engine, said, (3, 1))
    assert held.layers == (1, 3) and held.means.shape == (24, 3, 2, 32)
    positive = np.array([item.side == "positive" for item in held.items])
    for layer in (1, 3):
        for name, position in (("persona", "response"), ("prompt_last", "prompt_last"), ("prompt_avg", "prompt_avg")):
            hidden = held.at(layer, position)
            own = hidden[positive].mean(0) - hidden[~positive].mean(0)
            assert own == pytest.approx(vector.directions[name][layer].numpy(), abs=2e-4)


def test_what_prompts_have_in_common_is_passed_once_and_changes_no_reading() -> None:
    engine, alone = Engine(talking()), Engine(talking())
    asked = [("system", "Answer as a friendly guide to the old harbour town would, in one or two short sentences.")]
    said = [
        dataclasses.replace(
            rollout("positive", number, 90.0), messages=(*asked, ("user", f"What is in hall {number // 2}?"))
        )
        for number in range(12)
    ]
    held = read_responses(engine, said, (1, 3))
    tokenizer, total = alone.loaded.tokenizer, 0
    for item, means in zip(held.items, held.means, strict=True):
        prompt = prompt_ids(tokenizer, [{"role": role, "content": content} for role, content in item.messages])
        given, n = prompt + response_ids(tokenizer, item.response), len(prompt)
        (whole,) = alone.run([Row(given, reading=Reading((1, 3), ((n - 1, n), (0, n), (n, len(given)))))])
        assert whole.read is not None and means == pytest.approx(whole.read, abs=1e-5)
        total += len(given)
    assert engine.prefill_tokens < 0.6 * total == 0.6 * alone.prefill_tokens


def test_the_rows_of_a_trait_go_through_the_tables_and_are_kept(said: list[Rollout], tmp_path: Path) -> None:
    engine, trait, sizes = Engine(talking()), load_trait("evil"), METHOD["quick"]
    vectors = {"evil": tiny_vector(), "sycophancy": tiny_vector(trait="sycophancy")}
    layers = {"evil": 2, "sycophancy": 3}

    def make() -> dict[str, Any]:
        every = Responses(said, said, said)
        return read_trait(engine, trait, every, vectors, layers, (2, 3), rule="stated", sizes=sizes, seed=0)

    path = tmp_path / "evil.json"
    first = kept_rows(path, {"seed": 0}, make)
    assert kept_rows(path, {"seed": 0}, lambda: pytest.fail("it is there")) == json.loads(json.dumps(first))
    assert kept_rows(path, {"seed": 1}, lambda: {"readings": [], "sensitivity": []}) == {
        "readings": [],
        "sensitivity": [],
    }
    named = {name: [{**row, "log": "trait_elicitation/evil"} for row in rows] for name, rows in first.items()}
    tables = build_tables(with_readings(Samples(), [named]), resamples=50)
    directions = set(tables["left_out"]["direction"])
    assert {"trait:evil", "trait:sycophancy"} < directions and len(directions) == 2 + sizes.random_vectors
    layer_of = tables["left_out"].groupby("direction")["layer"].first()
    assert (layer_of["trait:sycophancy"], layer_of["trait:evil"], layer_of["random:0"]) == (3, 2, 2)
    found = tables["sensitivity"].set_index(["aspect", "setting"])
    assert found.loc[("responses", "all"), "cosine"].item() == pytest.approx(1)
    described = {setting for aspect, setting in found.index if aspect == "description"}
    assert {"clear", "vague", "description:4"} <= described
    assert {"sets", "questions:0", "questions:1"} <= {name for aspect, name in found.index if aspect == "questions"}
    path.write_text('{"key": {}}')
    with pytest.raises(DataError) as error:
        kept_rows(path, {}, make)
    one_line(error, "evil.json", "remove it and run again")


def test_vectors_of_a_plan_are_made_once_and_what_cannot_be_is_said(said: list[Rollout], tmp_path: Path) -> None:
    engine, trait = Engine(talking()), load_trait("evil")
    plan = dict(plan_variants(trait, Responses(said, said, said), METHOD["standard"], 0))
    assert set(plan) == {*description_groups("evil"), *(f"questions:{k}" for k in range(5))}
    sets = question_sets(trait, METHOD["standard"], 0)
    assert [{item.question_id for item in plan[f"questions:{k}"]} <= ids for k, ids in enumerate(sets)] == [True] * 5
    heard: list[str] = []
    some = {name: plan[name] for name in ("clear", "vague")}
    made = make_vectors(engine, trait, some, "stated", 0, tmp_path, ["a"], heard.append)
    assert set(made) == {"clear"} and len(heard) == 1 and heard[0].startswith("no vague vector")
    assert "positive: 4 of 4 kept" in heard[0]
    unfit = [dataclasses.replace(item, status="refusal", trait_score=math.nan) for item in said]
    files = make_vectors(engine, trait, {"raw": unfit}, "unfiltered", 0, tmp_path, ["a"], heard.append)
    times = {path: path.stat().st_mtime_ns for path in files.values()}
    again = make_vectors(engine, trait, {"raw": unfit}, "unfiltered", 0, tmp_path, ["a"], heard.append)
    assert again == files and times == {path: path.stat().st_mtime_ns for path in again.values()}
    assert len(files) == 1 and len(heard) == 1
    held = PersonaVector.load(files["raw"])
    dataclasses.replace(held, provenance={**held.provenance, "filter": "stated"}).save(files["raw"])
    make_vectors(engine, trait, {"raw": unfit}, "unfiltered", 0, tmp_path, ["a"], heard.append)
    assert PersonaVector.load(files["raw"]).provenance["filter"] == "unfiltered"
    assert "made with filter 'stated', not 'unfiltered'" in heard[-1]
    cells = variant_cells("raw", named_vectors(f"raw={files['raw']}")["raw"], (2, 3), (0.2, 0.4), 1)
    assert [cell.vector for cell in cells].count("raw") == 4 and {"none", "random"} < {cell.vector for cell in cells}
    alone = variant_cells("vague", named_vectors(f"vague={files['raw']}")["vague"], (2,), (0.2,), 1)
    assert [(cell.vector, cell.relative_dose) for cell in alone] == [("vague", 0.2)]


def test_a_run_of_stated_limits_has_its_tables_claims_and_figure(
    tmp_path: Path, _saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logs to claims on a tiny model with a planted judge, and again without anything to do."""
    import evals.judge_validity  # noqa: F401 - the module is patched by its name

    few = dataclasses.replace(METHOD["quick"], questions=4, rollouts=3, set_questions=3, draws=4, random_vectors=3)
    monkeypatch.setitem(METHOD, "quick", few)
    evals = ("trait_elicitation", "stated_limits")
    done = run_pipeline(tmp_path, _saved, str(_saved), evals)
    assert {"limits_descriptions/evil", "limits_questions/evil", "limits_variants/evil"} < set(done.logs)
    judged = sum("trait_judge" in (sample.scores or {}) for log in done.logs.values() for sample in log.samples or [])
    assert 0 < judged <= done.planned
    read = {name: pd.read_csv(done.folder / "tables" / f"{name}.csv") for name in METHOD_TABLES}
    assert all(len(table) for table in read.values())
    assert set(read["sensitivity"]["aspect"]) == {
        *("layer", "position", "filter", "refusal", "responses", "seed", "questions", "description")
    }
    full = read["sensitivity"].set_index(["aspect", "setting"]).loc[("responses", "all")]
    assert full["cosine"] == pytest.approx(1) and full["log"] == "trait_elicitation/evil"
    described = read["sensitivity"].set_index("setting")["log"]
    assert described["vague"] == "limits_descriptions/evil" != described["vague, same number"]
    assert described["questions:1"] == "limits_questions/evil" != described["questions:1, same number"]
    claims = pd.read_csv(done.folder / "claims.csv", keep_default_na=False).set_index("claim")
    limits = [name for name in claims.index if name.startswith(("S", "J2"))]
    assert len(limits) == 7 and claims.loc["S2-trait-named-beforehand", "reason"].startswith("judge gate")
    drawn = (done.folder / "figures" / "sensitivity.png").read_bytes()
    assert done.held["weights"]["model"]["family"] == "llama" and done.held["weights"]["model"]["parameters"] > 10_000
    kept = (done.folder / "limits" / "evil.json").stat().st_mtime_ns
    claims_text = (done.folder / "claims.csv").read_text()
    (done.folder / "run.json").unlink()
    again = run_pipeline(tmp_path, _saved, str(_saved), evals)
    assert (done.folder / "limits" / "evil.json").stat().st_mtime_ns == kept
    assert (again.folder / "claims.csv").read_text() == claims_text
    assert (again.folder / "figures" / "sensitivity.png").read_bytes() == drawn
    assert {name: log.eval.eval_id for name, log in again.logs.items()} == {
        name: log.eval.eval_id for name, log in done.logs.items()
    }


@pytest.mark.parametrize(
    ("given", "hashes", "error", "part"),
    [
        ("", "", RunError, "NAME=FILE"),
        ("vague", "", RunError, "'vague' names no vectors"),
        ("vague=none.safetensors", "", VectorError, "none.safetensors"),
        ("vague=a,clear=b", "1", RunError, "2 vectors and 1 hashes"),
    ],
)
def test_vectors_that_are_not_named_or_not_there(given: str, hashes: str, error: Any, part: str) -> None:
    with pytest.raises(error) as found:
        named_vectors(given, hashes)
    one_line(found, part)


def test_every_trait_has_five_descriptions_of_which_some_are_vague() -> None:
    texts = []
    for name in TRAITS:
        found, trait = load_descriptions(name), load_trait(name)
        assert [item.vague for item in found] == [False] * 3 + [True] * 2
        for item in found:
            texts += [item.positive, item.negative]
            assert trait.positive_name not in item.positive.lower()
        assert not {pair.positive for pair in trait.instructions} & {item.positive for item in found}
    assert len(set(texts)) == len(texts) == 70
    assert load_descriptions("terse") == () and description_groups("terse") == {}
    assert set(METHOD) == set(PRESETS)
