"""Flagging data: planted truths through the real tables, rules, figures and report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from persona_bench.analysis import statistics as st
from persona_bench.analysis.detection import average_precision, precision_recall, recall_at
from persona_bench.analysis.figures.draw import Caption, draw_all, trait_colours
from persona_bench.analysis.figures.flagging import flagging_figures
from persona_bench.analysis.report.content import rerun_command
from persona_bench.analysis.report.controls import controls
from persona_bench.analysis.report.seen import seen
from persona_bench.analysis.samples.baselines import text_flags
from persona_bench.analysis.samples.frames import Samples
from persona_bench.analysis.tables.build import build_tables
from persona_bench.analysis.tables.files import read_tables, write_tables
from persona_bench.analysis.tables.flagging import BOTH, CLASSIFIER, DETECTORS, FITTED
from persona_bench.analysis.verdicts import claims as verdicts
from persona_bench.analysis.verdicts.decision import Run
from persona_bench.analysis.verdicts.flagging import FLAGGING_RULES
from persona_bench.definitions.claims import CLAIMS, claim
from tests.builders_flagging import Flagged


def verdict(samples: Samples, claim_id: str, trait: str = "evil") -> tuple[str, str]:
    """Verdict and reason, before Holm's correction and whatever the judge's gate says."""
    found = verdicts._ruled(Run(samples, {}, {}, 0, 400), claim(claim_id), trait)
    return found.verdict, found.reason


@pytest.fixture(scope="module")
def truth() -> Samples:
    return Flagged().make()


# How a detector is judged


def test_rates_and_precision_are_those_of_sklearn_at_any_share() -> None:
    from sklearn.metrics import average_precision_score, roc_curve

    draw = np.random.default_rng(0)
    labels = (draw.random(300) < 0.3).astype(float)
    scores = np.round(labels + draw.normal(size=300), 1)  # with ties
    ids, natural = np.arange(300), labels.mean()
    found = average_precision(scores, labels, ids, natural, rng=st.stream(0), resamples=200)
    assert (
        found.value == pytest.approx(average_precision_score(labels, scores)) and found.low < found.value < found.high
    )
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    recall = recall_at(scores, labels, ids, 0.05, rng=st.stream(0), resamples=200)
    assert recall.value == pytest.approx(true[false <= 0.05].max())
    # A mixture of 2 % is what many copies of the negatives make.
    n = round(labels.sum() * 49 / (1 - labels).sum())
    many = np.concatenate([scores, *[scores[labels == 0]] * (n - 1)])
    marks = np.concatenate([labels, np.zeros(len(many) - 300)])
    rare = average_precision(scores, labels, ids, marks.mean(), rng=st.stream(0), resamples=2).value
    assert rare == pytest.approx(average_precision_score(marks, many))
    # Scores that know nothing have the share's precision at every recall.
    flat = precision_recall(np.zeros(300), labels, 0.05, np.linspace(0, 1, 5))
    assert flat == pytest.approx(0.05)
    missing = np.where(labels == 1, np.nan, scores)
    assert np.isnan(average_precision(missing, labels, ids, 0.1, rng=st.stream(0)).value)


# Rules


def test_every_claim_of_the_eval_has_a_rule() -> None:
    assert {entry.id for entry in CLAIMS if entry.eval == "data_flagging"} == set(FLAGGING_RULES)


@pytest.mark.parametrize("name", [name for name in FLAGGING_RULES if name[:3] not in ("D8-", "D9-", "D10")])
def test_planted_truths_are_found(name: str, truth: Samples) -> None:
    assert verdict(truth, name)[0] == "supported", verdict(truth, name)


@pytest.mark.parametrize(
    ("name", "world", "expected"),
    [
        ("D1-difference-tells-shift", {"sets": -10.0}, "contradicted"),
        ("D1-difference-tells-shift", {"sets": 0.0}, "inconclusive"),
        ("D2-difference-tells-trait", {"sets": -10.0}, "contradicted"),
        ("D2-difference-tells-trait", {"control": 10.0}, "inconclusive"),  # a random direction tells as much
        ("D3-raw-projection", {"acquired": -25.0}, "contradicted"),
        ("D4-no-generation-needed", {"acquired": -25.0}, "contradicted"),
        ("D5-samples-separable", {"seen": 0.0}, "contradicted"),
        ("D5-samples-separable", {"seen": 1.75}, "inconclusive"),
        ("D5-samples-separable", {"control": 4.0}, "inconclusive"),
        ("D6-real-data-ordered", {"top": -20.0}, "contradicted"),
        ("D6-real-data-ordered", {"bottom": 0.0}, "inconclusive"),
        ("D7-survives-filtering", {"bottom": 20.0}, "contradicted"),
        ("D8-filter-best", {"judged": 3.0, "seen": 1.0}, "supported"),
        ("D8-filter-best", {"judged": 0.0, "seen": 3.0}, "contradicted"),
        ("D9-difference-best", {"judged": 0.0, "seen": 3.0}, "supported"),
        ("D9-difference-best", {"judged": 1.0, "seen": 1.0}, "inconclusive"),
        ("D9-difference-best", {"judged": 3.0, "seen": 1.0}, "contradicted"),
        ("D10-both-best", {"judged": 1.5, "seen": 1.5, "samples": 600}, "supported"),
        ("D10-both-best", {"judged": 0.0, "seen": 4.0}, "inconclusive"),
    ],
)
def test_other_worlds_are_told_from_it(name: str, world: dict[str, Any], expected: str) -> None:
    samples = Flagged(**world).make()
    assert verdict(samples, name)[0] == expected, verdict(samples, name)


def test_what_cannot_be_told_says_why(truth: Samples) -> None:
    few = Flagged(families=("evil", "sycophancy")).make()
    assert verdict(few, "D1-difference-tells-shift") == (
        "not testable",
        "too few valid samples: training sets 6, needed 8",
    )
    assert "SD" in verdict(Flagged(acquired=0.0).make(), "D2-difference-tells-trait")[1]
    untrained = replace(truth, finetuning=Samples().finetuning, shifts=Samples().shifts)
    assert verdict(untrained, "D1-difference-tells-shift")[0] == "not run"
    assert verdict(truth, "D5-samples-separable", "hallucination")[0] == "not testable"
    short = verdict(Flagged(samples=40).make(), "D5-samples-separable")
    assert short == ("not testable", "too few valid samples: normal samples 40, inducing samples 40, needed 50")
    bare = replace(truth, flagging=truth.flagging[truth.flagging["family"] != "opinions"])
    assert "no labelled opinions" in verdict(bare, "D9-difference-best", "sycophancy")[1]
    told = verdict(Flagged(taught=0.0).make(), "D9-difference-best", "sycophancy")
    assert told[0] == "not testable" and "need not carry the trait: plain finetuning on opinions did not" in told[1]
    alone = Flagged(corpus=False).make()
    for name in ("D6-real-data-ordered", "D7-survives-filtering"):
        assert verdict(alone, name)[0] == "not testable" and "no corpus" in verdict(alone, name)[1]
    still = Flagged(moved=0.0, top=0.0, bottom=0.0).make()
    assert "no training changes the trait" in verdict(still, "D6-real-data-ordered")[1]
    unfiltered = truth.flagging_trained[truth.flagging_trained["pool"] != "passed"]
    found = verdict(replace(truth, flagging_trained=unfiltered), "D7-survives-filtering")
    assert found == ("not testable", "the filter leaves too few samples: 50 of 100")
    untaught = replace(truth, flagging_trained=Samples().flagging_trained)
    assert verdict(untaught, "D6-real-data-ordered")[0] == "not run"


def test_real_conversations_are_decided_on_the_report_half(truth: Samples) -> None:
    frame = truth.flagging_trained
    on = {half: (frame["half"] == half) & (frame["pick"] == "top") for half in ("select", "report")}
    spoilt = {
        half: replace(truth, flagging_trained=frame.assign(trait_score=frame["trait_score"].mask(rows, 0.0)))
        for half, rows in on.items()
    }
    assert verdict(spoilt["select"], "D6-real-data-ordered") == verdict(truth, "D6-real-data-ordered")
    assert verdict(spoilt["report"], "D6-real-data-ordered")[0] == "contradicted"


def test_what_has_no_number_is_counted_and_compared_on_the_same_samples(truth: Samples) -> None:
    frame = truth.flagging
    lost = (frame["kind"] == "sample") & (frame["sample_id"].str.endswith(("0", "5")))
    spoilt = frame.assign(judge=frame["judge"].mask(lost), status=frame["status"].mask(lost, "refusal"))
    table = build_tables(replace(truth, flagging=spoilt), resamples=50)["flagging_samples"]
    rows = table[(table["family"] == "opinions") & (table["half"] == "all")].set_index(["trait", "detector"])
    judge, difference = rows.loc[("evil", "judge")], rows.loc[("evil", "difference")]
    assert (judge["n_missing"], difference["n_missing"]) == (48, 0)
    assert judge["n_positive"] + judge["n_negative"] + 48 == difference["n_positive"] + difference["n_negative"] == 240
    found = verdicts._ruled(
        Run(replace(truth, flagging=spoilt), {}, {}, 0, 100), claim("D9-difference-best"), "sycophancy"
    )
    assert found.n == 192


def test_tables_hold_the_planted_numbers(truth: Samples) -> None:
    tables = build_tables(replace(truth, flagging=text_flags(truth.flagging)), resamples=100)
    r = tables["flagging_correlation"].set_index(["trait", "measure", "outcome"])
    assert len(r) == 3 * 3 * 2 and (r["n_sets"] == 12).all()
    assert r.loc[("evil", "difference", "shift")]["r"] > 0.9 > abs(r.loc[("evil", "difference", "shift")]["r_random"])
    assert "0.839" in r.loc[("evil", "difference", "shift")]["paper"]
    single = tables["flagging_samples"].set_index(["trait", "family", "half", "detector"]).sort_index()
    report = single.loc[("evil", "evil", "report")]
    assert set(report.index) == set(DETECTORS)
    assert set(single.loc[("evil", "evil", "all")].index) == set(DETECTORS) - {*FITTED, "judge"}
    assert "judge" in single.loc[("evil", "opinions", "all")].index
    assert report.loc["difference"]["auroc"] > 0.95 and report.loc["difference"]["excess_random_low"] > 0
    assert report.loc[CLASSIFIER]["auroc"] > 0.9  # the version is among the words
    assert report.loc[BOTH]["auroc"] >= report.loc["judge"]["auroc"]
    for name in ("random direction", "random numbers", "perplexity"):
        assert report.loc[name]["auroc"] == pytest.approx(0.5, abs=0.15)
    row = report.loc["judge"]
    assert row["average_precision_01"] < row["average_precision_05"] < row["average_precision_20"]
    assert report.loc["random numbers"]["average_precision_01"] < 0.1
    counts = tables["flagging_values"].groupby(["trait", "family", "version", "measure"])["count"].sum()
    assert (counts == 120).all()
    causal = tables["flagging_causal"].set_index(["pool", "pick"])
    assert causal.loc[("mixture", "top")]["to_random"] == pytest.approx(20, abs=3)
    assert causal.loc[("mixture", "bottom")]["to_base"] == pytest.approx(5, abs=4)
    sets = tables["flagging_sets"].set_index(["trait", "family", "version"])
    assert sets.loc[("evil", "evil", "misaligned_2")]["difference"] == pytest.approx(10, abs=1)
    assert sets.loc[("evil", "evil", "misaligned_2")]["shift"] == pytest.approx(10, abs=1)


def test_a_classifier_reads_the_select_half_alone(truth: Samples) -> None:
    frame = truth.flagging
    report = (frame["half"] == "report") & (frame["kind"] == "sample")
    told = text_flags(frame)["classifier"]
    assert told[frame["kind"] == "sample"].notna().all() and told[frame["kind"] != "sample"].isna().all()
    flipped = frame.assign(version=frame["version"].mask(report, "normal"))
    assert np.array_equal(text_flags(flipped)["classifier"], told, equal_nan=True)
    one = frame.assign(version=frame["version"].mask(frame["kind"] == "sample", "normal"))
    assert text_flags(one)["classifier"].isna().all()


def test_nothing_flagged_makes_empty_tables_and_no_verdicts() -> None:
    tables = build_tables(Samples(), resamples=20)
    assert all(tables[name].empty for name in tables if name.startswith("flagging"))
    claims = verdicts.judge_claims(Samples(), tables, traits=["evil"])
    own = claims[claims["claim"].str.startswith("D")]
    assert set(own["verdict"]) == {"not run"} and isinstance(own, pd.DataFrame)


def test_figures_and_reports_show_them(truth: Samples, tmp_path: Path) -> None:
    few = truth.flagging[truth.flagging["trait"] == "evil"]
    tables = build_tables(replace(truth, flagging=text_flags(few)), resamples=50)
    write_tables(tables, tmp_path)
    again = read_tables(tmp_path)
    caption = Caption("tiny", "quick", "mock", "2026")
    drawn = {path.stem for path in draw_all(again, tmp_path / "f", caption) if path.suffix == ".png"}
    own = {"flagsets_evil", "flaghistogram_evil", "flagtrained_evil"}
    own |= {"flagprecision_evil_evil", "flagprecision_evil_opinions"}
    assert {name for name in drawn if name.startswith("flag")} == own
    figures = dict(flagging_figures(again, trait_colours(["evil"]), caption))
    precision = figures["flagprecision_evil_evil"]
    assert [axes.get_title(loc="left")[:4] for axes in precision.axes] == ["1 % ", "5 % ", "20 %"]
    assert len(precision.axes[0].get_legend_handles_labels()[1]) == len(DETECTORS)
    assert seen("flagsets_evil", tables).endswith("over 12 training sets.") and "r = " in seen("flagsets_evil", tables)
    assert seen("flagprecision_evil_opinions", tables).endswith("opinions: evil")
    record = {"model": "m", "traits": ["evil", "sycophancy"], "corpus": "a.jsonl"}
    for name, columns in (("D1", "r"), ("D5", "AUROC"), ("D7", "to random"), ("D10", "AUROC")):
        about = next(entry for entry in CLAIMS if entry.id.startswith(f"{name}-"))
        rows = controls(about, "evil", tables)
        assert len(rows) > 2 and columns in rows
        command = rerun_command(record, about, "evil")
        assert "data_flagging" in command and "--corpus a.jsonl" in command and "evil,sycophancy" in command
