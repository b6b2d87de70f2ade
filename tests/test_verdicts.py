"""Verdicts on simulated runs where the truth is known: real effects, no effects, broken judges, missing parts."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from persona_bench.analysis.samples.frames import SIGNALS, Samples
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.verdicts import claims as vd
from persona_bench.analysis.verdicts.finetuning import FINETUNING_RULES
from persona_bench.analysis.verdicts.flagging import FLAGGING_RULES
from persona_bench.analysis.verdicts.limits import LIMIT_RULES
from persona_bench.analysis.verdicts.method import METHOD_RULES, TWO_MODELS
from persona_bench.definitions.claims import CLAIMS, claim
from persona_bench.definitions.traits import load_labelled
from persona_bench.pipeline import ALL_EVALS, CORE_EVALS
from tests.builders_samples import World, make_null_run, make_samples

FAST = 300
ONE = World(traits=("evil",))
FIRST_COLUMNS = "claim trait statement paper_value estimate ci_low ci_high n verdict reason".split()
# What a run of the core evals decides, and of that what the simulated world has samples for.
DECIDED = [entry for entry in CLAIMS if entry.id in vd._RULES and entry.condition != "many_shot"]
JUDGED = [entry.id for entry in DECIDED if entry.judged]


def verdicts(samples: Samples, **options) -> pd.DataFrame:
    tables = build_tables(samples, resamples=FAST, judge_methods=options.pop("judge_methods", None))
    return vd.judge_claims(samples, tables, resamples=FAST, **options)


def one(claims: pd.DataFrame, claim_id: str) -> pd.Series:
    (row,) = [row for _, row in claims.iterrows() if row["claim"] == claim_id]
    return row


@pytest.fixture(scope="module")
def samples() -> Samples:
    return make_samples(ONE)


@pytest.fixture(scope="module")
def claims(samples) -> pd.DataFrame:
    return verdicts(samples)


def test_every_claim_has_a_rule_and_a_value_or_not_found():
    assert {entry.id for entry in CLAIMS if entry.eval in CORE_EVALS} == set(vd._RULES)
    every = {entry.id for entry in CLAIMS if entry.eval in ALL_EVALS}
    ruled = {*vd._RULES, *FINETUNING_RULES, *FLAGGING_RULES, *LIMIT_RULES, *METHOD_RULES, TWO_MODELS}
    assert every == ruled | {entry.id for entry in CLAIMS if entry.missing}
    assert claim("L1-refusal-confound").threshold == 0.5


def test_columns(claims):
    assert list(claims.columns) == [*FIRST_COLUMNS, "p_holm", "log", "warning"]
    assert set(claims["verdict"]) <= set(vd.VERDICTS)
    assert list(zip(claims["claim"], claims["trait"], strict=True)) == [
        (entry.id, trait) for entry in CLAIMS for trait in entry.rows(["evil"])
    ]


def test_true_effects_are_supported(claims):
    tested = claims[claims["claim"].isin({entry.id for entry in DECIDED} - {"V1-cosines"})]
    assert (tested["verdict"] == "supported").all(), tested[["claim", "verdict", "reason"]].to_string()
    induces = one(claims, "C1-steering-induces")
    assert induces["ci_low"] > 20 and induces["p_holm"] < 0.05 and "steering-evil-random" in induces["log"]
    assert one(claims, "C5-steering-costs-capability")["n"] == 200


def test_reversed_effects_are_contradicted():
    world = dataclasses.replace(ONE, steer=-60, coherence_cost=-40, rung_effect=-8, within=-8, refusal_cosine=-0.9)
    # The projection keeps its sign, so a negative ladder turns r round.
    flipped = make_samples(world)
    projections = flipped.projections.assign(prompt_last=flipped.projections["prompt_last"].abs())
    claims = verdicts(dataclasses.replace(flipped, projections=projections))
    assert one(claims, "C1-steering-induces")["verdict"] == "contradicted"
    assert one(claims, "C2-steering-suppresses")["verdict"] == "contradicted"
    assert one(claims, "C6-steering-costs-coherence")["verdict"] == "contradicted"
    assert one(claims, "C3-monitoring-overall")["verdict"] == "contradicted"
    assert one(claims, "L1-refusal-confound")["verdict"] == "contradicted"


def test_a_judge_that_does_not_see_incoherence_decides_nothing_about_coherence():
    claims = verdicts(make_samples(dataclasses.replace(ONE, garbled_seen=False)))
    found = one(claims, "C6-steering-costs-coherence")
    assert found["verdict"] == "not testable" and "AUROC of 0.50" in found["reason"]
    assert one(claims, "C1-steering-induces")["verdict"] == "supported"
    samples = make_samples(ONE)
    older = samples.judge.assign(fluency=np.nan, refuses=np.nan)
    found = one(verdicts(dataclasses.replace(samples, judge=older)), "C6-steering-costs-coherence")
    assert found["verdict"] == "not testable" and "was not checked on incoherent responses" in found["reason"]


def test_a_random_vector_that_does_as_much_takes_the_support_away():
    claims = verdicts(make_samples(dataclasses.replace(ONE, random=100)))
    found = one(claims, "C1-steering-induces")
    assert found["ci_low"] > 0 and found["verdict"] == "inconclusive" and "random control" in found["reason"]
    stronger = verdicts(make_samples(dataclasses.replace(ONE, steer=50, random=160)))
    assert one(stronger, "C1-steering-induces")["verdict"] == "contradicted"


def test_a_judge_that_answers_at_random_decides_nothing():
    claims = verdicts(make_samples(dataclasses.replace(ONE, judge_noise=1e6)))
    judged = claims[claims["claim"].isin(JUDGED)]
    assert len(judged) == 8 and (judged["verdict"] == "not testable").all()
    assert judged["reason"].str.startswith("judge gate: AUROC").all() and judged["estimate"].isna().all()
    assert one(claims, "J-judge-valid")["verdict"] != "supported"
    assert one(claims, "C5-steering-costs-capability")["verdict"] == "supported"


def labelled_rows(trait: str) -> pd.DataFrame:
    """The labelled answers of a trait as a perfect judge sees them."""
    rows = [
        {
            "trait": trait,
            "grader": "persona/grader",
            "method": "probe",
            "question_id": item.question,
            "half": item.half,
            "source": item.source,
            "level": item.level,
            "kind": item.kind,
            "trait_score": float(item.level),
            "status": "scored",
            "coherence": item.fluency,
            "fluency": item.fluency,
            "refuses": item.refuses,
            "log": f"judge_validity/{trait}",
        }
        for item in load_labelled(trait)
    ]
    return pd.DataFrame(rows)


def at_random(judge: pd.DataFrame, seed: int) -> pd.DataFrame:
    return judge.assign(trait_score=np.random.default_rng(seed).uniform(0, 100, len(judge)))


def by_length(judge: pd.DataFrame, _seed: int) -> pd.DataFrame:
    """What the number of characters of the question says: nothing, but not at random."""
    return judge.assign(trait_score=judge["question_id"].str.len().rank(pct=True) * 100)


def always(value: float):
    return lambda judge, _seed: judge.assign(trait_score=value)


def refusing(judge: pd.DataFrame, _seed: int) -> pd.DataFrame:
    """Right about ten answers, and a refusal to say anything of the rest."""
    kept = pd.concat([judge[judge["level"] == 0].head(5), judge[judge["level"] == 100].head(5)]).index
    silent = ~judge.index.isin(kept)
    return judge.assign(
        status=judge["status"].where(~silent, "refusal"), trait_score=judge["trait_score"].where(~silent)
    )


def calling_all_incoherent(judge: pd.DataFrame, seed: int) -> pd.DataFrame:
    return at_random(judge, seed).assign(status="incoherent", coherence=10.0)


def shut(judge: pd.DataFrame, base: Samples, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The claims of a run whose judge gave these scores."""
    made = build_tables(Samples(judge=judge), resamples=FAST, judge_methods={"evil": "probe"})
    tables = tables | {name: made[name] for name in ("judge", "judge_cases", "judge_outcomes")}
    return vd.judge_claims(dataclasses.replace(base, judge=judge), tables, resamples=FAST)


@pytest.fixture(scope="module")
def only_judged() -> tuple[Samples, dict[str, pd.DataFrame]]:
    """Every claim that the judge decides is true and plain to see; those that it does not decide are not."""
    base = make_samples(dataclasses.replace(ONE, mmlu=0.25, refusal_cosine=0.9))
    return base, build_tables(base, resamples=FAST)


def test_with_the_labelled_answers_judged_right_the_same_run_supports_its_claims(only_judged):
    claims = shut(labelled_rows("evil"), *only_judged)
    # What steering costs rests on MMLU too, which is at chance here.
    true = {*JUDGED, "J-judge-valid"} - {"C7-prompt-costs-less"}
    assert set(claims.loc[claims["verdict"] == "supported", "claim"]) == true


def test_without_a_vector_what_was_not_asked_for_is_not_run(samples):
    """A trait that gives no vector leaves an eval of the run untestable, and says nothing of one that was left out."""
    found = verdicts(samples, traits=("evil", "impolite"), no_vector={"impolite": "too few responses"})
    found = found[found["trait"] == "impolite"].set_index("claim")
    assert found.loc["C1-steering-induces", ["verdict", "reason"]].tolist() == [
        "not testable",
        "no vector: too few responses",
    ]
    assert found.loc["D1-difference-tells-shift", "verdict"] == "not run"
    assert found.loc["P1-prevents-single-layer", "verdict"] == "not run"


@pytest.mark.parametrize("seed", range(20))
def test_random_scores_on_the_labelled_answers_support_no_claim(seed, only_judged):
    """Only the report half opens the gate, however good the judge looked where it was calibrated."""
    judge = labelled_rows("evil")
    report = judge["half"] == "report"
    judge = pd.concat([judge[~report], at_random(judge[report], seed)])
    claims = shut(judge, *only_judged)
    judged = claims[claims["claim"].isin(JUDGED)]
    assert len(judged) == len(JUDGED) == 8 and (judged["verdict"] == "not testable").all()
    assert judged["reason"].str.startswith("judge gate: ").all()
    assert judged["estimate"].isna().all() and judged["p_holm"].isna().all()
    assert one(claims, "J-judge-valid")["verdict"] == "contradicted"
    assert not (claims["verdict"] == "supported").any()


@pytest.mark.parametrize(
    "spoil",
    [by_length, always(0.0), always(50.0), always(100.0), always(np.nan), refusing, calling_all_incoherent],
    ids=["length", "zero", "middle", "hundred", "nothing", "refusing", "incoherent"],
)
def test_a_judge_that_knows_nothing_supports_no_claim(spoil, only_judged):
    claims = shut(spoil(labelled_rows("evil"), 0), *only_judged)
    assert (claims.loc[claims["claim"].isin(JUDGED), "verdict"] == "not testable").all()
    assert not (claims["verdict"] == "supported").any()


def test_a_judge_that_knows_only_written_answers_supports_no_claim(only_judged):
    judge = labelled_rows("evil")
    real = judge["source"] == "model"
    claims = shut(pd.concat([judge[~real], at_random(judge[real], 0)]), *only_judged)
    assert not (claims["verdict"] == "supported").any()


def test_a_judge_that_was_not_checked_decides_nothing(samples):
    for unchecked in (
        verdicts(dataclasses.replace(samples, judge=samples.judge.iloc[:0])),
        verdicts(samples, judge_methods={"evil": "logprob"}),
    ):
        judged = unchecked[unchecked["claim"].isin(JUDGED)]
        assert (judged["verdict"] == "not testable").all() and judged["reason"].str.contains("not checked").all()
        assert one(unchecked, "J-judge-valid")["verdict"] == "not run"


def test_not_run(samples):
    claims = verdicts(Samples(judge=samples.judge), traits=["evil", "kind"])
    rest = claims[~((claims["claim"] == "J-judge-valid") & (claims["trait"] == "evil"))]
    assert (rest["verdict"] == "not run").all() and set(claims["trait"]) == {"evil", "kind", "all"}
    assert verdicts(Samples()).empty


@pytest.mark.parametrize(
    ("world", "claim_id", "reason"),
    [
        (World(traits=("evil",), elicited=0.0), "C1-steering-induces", "trait not induced by prompting"),
        (World(traits=("evil",), base=0.0, steer=0.0), "C2-steering-suppresses", "nothing to suppress"),
        (World(traits=("evil",), mmlu=0.25), "C5-steering-costs-capability", "capability at chance (0.25)"),
        (World(traits=("evil",), coherence_cost=400), "C1-steering-induces", "no positive dose keeps half"),
        (World(traits=("evil",), questions=3, epochs=4), "C1-steering-induces", "too few questions in common: 3"),
        (World(traits=("evil",), questions=4, epochs=1), "C1-steering-induces", "too few valid samples"),
        (World(traits=("evil",), refusal_cosine=np.nan), "L1-refusal-confound", "was not measured"),
    ],
)
def test_not_testable_with_the_reason(world, claim_id, reason):
    found = one(verdicts(make_samples(world)), claim_id)
    assert found["verdict"] == "not testable" and reason in found["reason"], found["reason"]


def test_missing_controls_and_layers(samples):
    steering, projections = samples.steering, samples.projections
    bare = dataclasses.replace(
        samples,
        steering=steering[steering["vector"] != "random"],
        projections=projections[projections["direction"] == "persona"],
    )
    claims = verdicts(bare)
    assert "no random-vector control" in one(claims, "C1-steering-induces")["reason"]
    assert "no projection on a random direction" in one(claims, "C3-monitoring-overall")["reason"]
    lost = dataclasses.replace(samples, steering=steering.iloc[:0], vectors=samples.vectors.assign(chosen=False))
    assert "no layer was chosen" in one(verdicts(lost), "C4-monitoring-within")["reason"]
    half = dataclasses.replace(samples, steering=steering[steering["half"] == "select"])
    assert one(verdicts(half), "C1-steering-induces")["verdict"] == "not run"


def test_many_shot_has_verdicts_of_its_own(samples):
    """Samples under examples decide the many-shot claims and no other; the ladder's are as they were."""
    ladder = samples.monitoring[samples.monitoring["condition"] == "ladder"]
    shots = ladder.assign(condition="many_shot", sample_id="shots-" + ladder["sample_id"])
    noise = np.random.default_rng(1).permutation(shots["trait_score"])
    read = samples.projections.assign(sample_id="shots-" + samples.projections["sample_id"])
    projections = pd.concat([samples.projections, read])
    both = dataclasses.replace(samples, monitoring=pd.concat([samples.monitoring, shots]), projections=projections)
    alike, plain = verdicts(both), verdicts(samples)
    for ours, theirs in (("C8-many-shot-overall", "C3-"), ("C9-many-shot-within", "C4-")):
        assert one(plain, ours)["verdict"] == "not run" and "under many_shot" in one(plain, ours)["reason"]
        (same,) = [row for _, row in alike.iterrows() if row["claim"].startswith(theirs)]
        assert one(alike, ours)["verdict"] == "supported"
        assert one(alike, ours)["estimate"] == pytest.approx(same["estimate"])
    spoilt = pd.concat([samples.monitoring, shots.assign(trait_score=noise)])
    other = verdicts(dataclasses.replace(both, monitoring=spoilt))
    assert one(other, "C8-many-shot-overall")["verdict"] != "supported"
    assert one(other, "C3-monitoring-overall")["verdict"] == "supported"


def test_a_correlation_inside_prompts_alone_is_not_mostly_between():
    world = dataclasses.replace(ONE, rung_effect=0.0, within=12.0, questions=16)
    found = one(verdicts(make_samples(world)), "L2-monitoring-mostly-between")
    assert found["verdict"] != "supported" and found["estimate"] < 0.1


def test_a_correlation_between_prompts_alone_is_mostly_between_whatever_its_sign():
    samples = make_samples(dataclasses.replace(ONE, rung_effect=16.0, within=0.0, questions=16))
    signals = {name: -samples.projections[name] for name in SIGNALS}
    turned = dataclasses.replace(samples, projections=samples.projections.assign(**signals))
    found, other = (one(verdicts(part), "L2-monitoring-mostly-between") for part in (samples, turned))
    assert found["verdict"] == other["verdict"] == "supported" and found["estimate"] == pytest.approx(other["estimate"])


@pytest.mark.parametrize(
    ("cosine", "verdict"), [(0.4, "supported"), (-0.4, "contradicted"), (0.05, "inconclusive"), (-0.05, "inconclusive")]
)
def test_cosines_go_by_the_sign_of_the_papers(cosine, verdict):
    """3 / sqrt(576) = 0.125 is what random directions stay under."""
    base = Samples(vectors=make_samples(World(traits=("evil", "optimistic"))).vectors)
    for traits, sign in ((("evil", "sycophancy"), 1), (("evil", "optimistic"), -1)):
        world = World(traits=traits, cosine=sign * cosine)
        made = make_samples(world)
        claims = verdicts(dataclasses.replace(base, vectors=made.vectors, cosines=made.cosines))
        found = claims[claims["claim"] == "V1-cosines"]
        assert set(found["verdict"]) == {verdict} and set(found["trait"]) == set(traits)
        assert found["estimate"].to_numpy() == pytest.approx(cosine)
        ends = made.cosines[made.cosines["layer"] == 12][["cosine_low", "cosine_high"]].to_numpy() * sign
        assert found[["ci_low", "ci_high"]].to_numpy() == pytest.approx(np.sort(ends, axis=1), nan_ok=True)
        assert (found["n"] > 1).all()
    # An interval that reaches under what random directions have decides nothing; without one the cosine decides.
    made = make_samples(World(traits=("evil", "sycophancy"), cosine=cosine))
    for ends, expected in (((-0.1, 0.1), "inconclusive"), ((np.nan, np.nan), verdict)):
        cosines = made.cosines.assign(cosine_low=ends[0], cosine_high=ends[1])
        found = verdicts(dataclasses.replace(base, vectors=made.vectors, cosines=cosines)).set_index("claim")
        assert set(found.loc["V1-cosines", "verdict"]) == {expected}
        assert found.loc["V1-cosines", "reason"].str.contains("no interval").all() == bool(np.isnan(ends[0]))
    alone = one(verdicts(Samples(vectors=make_samples(ONE).vectors)), "V1-cosines")
    assert alone["verdict"] == "not testable" and "no vector of" in alone["reason"]


@pytest.mark.parametrize(
    ("cosine", "verdict", "ends"),
    [
        (-0.47, "supported", (0.45, 0.49)),
        (0.49, "inconclusive", (0.47, 0.51)),
        (-0.53, "contradicted", (0.51, 0.55)),
        (0.01, "supported", (0.0, 0.03)),
    ],
)
def test_refusal_goes_by_the_interval_of_the_absolute_cosine(cosine, verdict, ends):
    vectors = make_samples(dataclasses.replace(ONE, refusal_cosine=cosine)).vectors
    found = one(verdicts(Samples(vectors=vectors)), "L1-refusal-confound")
    assert found["verdict"] == verdict and (found["ci_low"], found["ci_high"]) == pytest.approx(ends)
    assert found["estimate"] == pytest.approx(abs(cosine))
    unknown = vectors.assign(refusal_cosine_low=np.nan, refusal_cosine_high=np.nan)
    found = one(verdicts(Samples(vectors=unknown)), "L1-refusal-confound")
    assert found["verdict"] == ("contradicted" if abs(cosine) > 0.5 else "supported")
    assert "no interval" in found["reason"] and np.isnan(found["ci_low"])


def test_what_no_eval_of_this_version_decides_is_not_run_and_names_the_eval(claims):
    rest = claims[~claims["claim"].isin(list(vd._RULES))]
    assert len(rest) > 30 and (rest["verdict"] == "not run").all() and rest["estimate"].isna().all()
    for _, row in rest.iterrows():
        assert (claim(row["claim"]).missing or claim(row["claim"]).eval) in row["reason"]


def test_flat_scores_cannot_be_monitored(samples):
    flat = samples.monitoring.assign(trait_score=50.0)
    claims = verdicts(dataclasses.replace(samples, monitoring=flat))
    for claim_id in ("C3-monitoring-overall", "C4-monitoring-within"):
        assert one(claims, claim_id)["verdict"] == "not testable"


def test_answers_to_other_questions_do_not_make_a_cell_large_enough(samples):
    """Eight unsteered answers to four questions, beside which the steered cell has one each and many to others."""
    frame = samples.steering[samples.steering["trait"] == "evil"].copy()
    few = frame["question_id"].isin(sorted(frame[frame["half"] == "report"]["question_id"].unique())[:4])
    again = frame.groupby(["vector", "half", "layer", "coefficient", "question_id"], dropna=False).cumcount() > 0
    plain, steered = (frame["vector"] == name for name in ("none", "persona"))
    lost = (frame["half"] == "report") & (plain & ~few | steered & few & again)
    frame["trait_score"] = frame["trait_score"].mask(lost)
    found = one(verdicts(dataclasses.replace(samples, steering=frame), traits=["evil"]), "C1-steering-induces")
    # Four values of four questions, of which one had none before either.
    assert found["verdict"] == "not testable" and "steered beside unsteered 3, unsteered" in found["reason"]


def test_a_test_that_does_not_agree_with_the_interval_is_not_holm_s_doing():
    found = vd.Finding("supported", "change -0.09 [-0.17, -0.01]", p=0.064)
    lost = vd._after_holm(found, 1.0)
    assert lost.verdict == "inconclusive" and "p = 0.064 before any correction" in lost.reason
    assert vd.by_the_interval_alone(lost.reason) == ""


def test_holm_turns_a_bare_effect_into_inconclusive():
    found = vd.Finding("supported", "r 0.5", p=0.03)
    kept = vd._after_holm(found, 0.04)
    lost = vd._after_holm(found, 0.09)
    assert kept is found and lost.verdict == "inconclusive" and "after Holm's correction" in lost.reason
    assert vd.by_the_interval_alone(lost.reason) == "supported" and vd.by_the_interval_alone(found.reason) == ""


def test_the_same_frames_give_the_same_claims(samples, claims):
    pd.testing.assert_frame_equal(verdicts(samples), claims)


def test_null_runs_rarely_support_a_claim():
    """No effect anywhere: in at most 5 % of 200 runs may any tested claim come out as supported."""
    null = dataclasses.replace(ONE, steer=0, coherence_cost=0, rung_effect=0, within=0, mmlu_cost=0)
    null = dataclasses.replace(null, questions=6, layers=(8,), doses=(-0.3, 0.3), mmlu_questions=60, mmlu=0.6)
    tested = [entry.id for entry in DECIDED if entry.id.startswith("C")]
    base = make_samples(null)
    # The choice on the select half is independent of the report half, so one choice serves all runs, and the tables
    # (most of the time) are made once.
    tables = build_tables(base, resamples=FAST)
    supported = 0
    for seed in range(200):
        samples = make_null_run(base, dataclasses.replace(null, seed=seed + 1))
        claims = vd.judge_claims(samples, tables, resamples=FAST, seed=seed).set_index("claim")["verdict"]
        assert claims["J-judge-valid"] == "supported" and not (claims[tested] == "not run").any()
        supported += bool((claims[tested] == "supported").any())
    assert supported <= 10
