"""Tables from synthetic frames: known truths come back, files are byte-identical, nothing valid stays NaN."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from persona_bench.analysis import tables as tb
from persona_bench.errors import DataError
from tests.builders_samples import World, make_samples

FAST = 200


@pytest.fixture(scope="module")
def samples() -> tb.Samples:
    return make_samples()


@pytest.fixture(scope="module")
def tables(samples) -> dict[str, pd.DataFrame]:
    return tb.build_tables(samples, resamples=FAST)


def test_every_table_has_its_columns_full_or_empty(tables):
    for made in (tables, tb.build_tables(tb.Samples(), resamples=FAST)):
        assert {name: tuple(table.columns) for name, table in made.items()} == dict(tb.TABLE_COLUMNS)
    assert all(len(table) for table in tables.values())


def test_a_frame_without_a_column_is_refused(samples):
    with pytest.raises(DataError, match=r"'steering' lacks the column\(s\) epoch"):
        tb.Samples(steering=samples.steering.drop(columns="epoch"))


def test_traits_are_those_of_any_frame(samples):
    assert samples.traits == ["evil", "sycophancy"]
    assert tb.Samples(mmlu=samples.mmlu).traits == ["evil", "sycophancy"]
    assert tb.Samples().traits == []


def test_files_are_byte_identical_and_do_not_depend_on_row_order(samples, tables, tmp_path):
    first = tb.write_tables(tables, tmp_path / "a")
    shuffled = {
        field.name: getattr(samples, field.name).sample(frac=1, random_state=3).reset_index(drop=True)
        for field in dataclasses.fields(samples)
    }
    second = tb.write_tables(tb.build_tables(tb.Samples(**shuffled), resamples=FAST), tmp_path / "b")
    assert [path.name for path in first] == [path.name for path in second] and len(first) == len(tb.TABLE_COLUMNS)
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
        assert b"\r" not in one.read_bytes()


def test_another_seed_moves_the_intervals_only(samples, tables):
    other = tb.build_tables(samples, seed=1, resamples=FAST)["steering"]
    pd.testing.assert_series_equal(other["trait_score"], tables["steering"]["trait_score"])
    assert not other["trait_score_low"].equals(tables["steering"]["trait_score_low"])


def test_adding_a_trait_leaves_the_other_rows_alone(samples, tables):
    alone = {f.name: getattr(samples, f.name) for f in dataclasses.fields(samples)}
    alone = {name: frame[frame["trait"].isin(["evil", ""])] for name, frame in alone.items()}
    made = tb.build_tables(tb.Samples(**alone), resamples=FAST)
    for name, table in made.items():
        before = tables[name][tables[name]["trait"].isin(["evil", ""])].reset_index(drop=True)
        pd.testing.assert_frame_equal(table, before, check_dtype=False)


def test_read_gives_back_what_was_written(tables, tmp_path):
    odd = {name: table.assign(trait=table["trait"].replace("evil", "NA")) for name, table in tables.items()}
    tb.write_tables(odd, tmp_path)
    back = tb.read_tables(tmp_path)
    for name, table in odd.items():
        assert set(back[name]["trait"]) == set(table["trait"])
        numbers = table.select_dtypes("number").columns
        np.testing.assert_allclose(back[name][numbers].astype(float), table[numbers].astype(float), rtol=1e-5)
    with pytest.raises(DataError, match="No table found"):
        tb.read_tables(tmp_path / "nowhere")


def test_counts_add_up_and_refusals_have_no_score(tables, samples):
    cells = tables["steering"]
    assert (cells["n"] == cells["n_scored"] + cells["n_refusal"] + cells["n_unscored"]).all()
    cell = cells[(cells["vector"] == "persona") & (cells["trait"] == "evil") & (cells["half"] == "report")].iloc[0]
    rows = samples.steering.query(
        f"trait == 'evil' and vector == 'persona' and half == 'report' and layer == {cell['layer']} "
        f"and coefficient == {cell['coefficient']}"
    )
    assert cell["trait_score"] == pytest.approx(rows.loc[rows["status"] == "scored", "trait_score"].mean())
    assert cell["refusal_rate"] == pytest.approx(
        (rows["status"] == "refusal").sum() / (rows["status"] != "unscored").sum()
    )
    assert cell["trait_score_low"] < cell["trait_score"] < cell["trait_score_high"]
    assert cell["log"] == rows["log"].iloc[0]


def test_a_score_on_a_refused_sample_is_not_used():
    frame = pd.DataFrame({"trait_score": [90.0, 10.0], "status": ["refusal", "scored"]})
    assert tb.scored(frame).tolist()[1] == 10.0 and np.isnan(tb.scored(frame).iloc[0])


def test_judge_table_leaves_the_middle_out_of_the_gate():
    judge = make_samples(World(judge_noise=0.0)).judge
    wrong_middle = judge.assign(trait_score=judge["trait_score"].where(judge["level"] != 50, 100.0))
    table = tb.build_tables(tb.Samples(judge=wrong_middle), resamples=FAST)["judge"]
    assert (table["auroc"] == 1).all() and (table["balanced_accuracy"] == 1).all() and table["passes"].all()
    assert (table["spearman"] < 1).all()


def test_judge_method_is_the_best_on_the_calibrate_half_or_the_one_named(samples):
    good = samples.judge
    shuffled = np.random.default_rng(0).permutation(good["trait_score"].to_numpy())
    bad = good.assign(method="yes_no", trait_score=np.where(good["half"] == "calibrate", shuffled, good["level"]))
    both = tb.Samples(judge=pd.concat([good, bad]))
    table = tb.build_tables(both, resamples=FAST)["judge"]
    assert set(table.loc[table["chosen"], "method"]) == {"contrast"}
    named = tb.build_tables(both, resamples=FAST, judge_methods={"evil": "yes_no"})["judge"]
    assert set(named.loc[named["chosen"] & (named["trait"] == "evil"), "method"]) == {"yes_no"}
    absent = tb.build_tables(both, resamples=FAST, judge_methods={"evil": "logprob"})["judge"]
    assert not absent.loc[absent["trait"] == "evil", "chosen"].any()


def test_elicitation_difference_and_drops(tables, samples):
    row = tables["elicitation"].query("trait == 'evil' and side == 'positive'").iloc[0]
    assert row["difference_low"] > 30 and row["difference_p"] < 0.001
    assert row["kept"] + row["dropped_refusal"] == row["n"] == 20


def _steering(**changes) -> pd.DataFrame:
    """A steering table of three persona cells and the unsteered one, all on the select half."""
    cells = pd.DataFrame(
        {
            "trait": "evil",
            "vector": ["none", "persona", "persona", "persona", "persona"],
            "layer": [0, 8, 8, 12, 12],
            "coefficient": [0.0, 1.0, 2.0, 2.0, -2.0],
            "relative_dose": [0.0, 0.1, 0.2, 0.3, -0.3],
            "half": "select",
            "n": 20,
            "n_scored": 20,
            "trait_score": [20.0, 40.0, 60.0, 90.0, 5.0],
            "coherence": [80.0, 75.0, 60.0, 30.0, 70.0],
            "log": list("abcde"),
        }
    )
    return cells.assign(**changes)


def _choice(steering: pd.DataFrame, sign: str) -> pd.Series:
    choice = tb.choose_steering(steering)
    return choice[choice["sign"] == sign].iloc[0]


def test_choice_takes_the_highest_coherent_score():
    best = _choice(_steering(), "positive")
    assert (best["layer"], best["coefficient"], best["log"], best["reason"]) == (8, 2.0, "c", "")
    assert _choice(_steering(), "negative")["coefficient"] == -2.0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"coherence": [80.0, 30.0, 20.0, 10.0, 10.0]}, "no positive dose keeps half of the unsteered coherence"),
        ({"n_scored": [20, 5, 5, 5, 5]}, "under half of its answers"),
        ({"half": "report"}, "no positive dose was run on the select half"),
        ({"coherence": np.nan}, "no unsteered coherence"),
    ],
)
def test_choice_says_why_nothing_qualifies(changes, reason):
    best = _choice(_steering(**changes), "positive")
    assert np.isnan(best["layer"]) and reason in best["reason"]


def test_choice_breaks_ties_by_the_smaller_dose():
    assert _choice(_steering(trait_score=50.0, coherence=80.0), "positive")["relative_dose"] == 0.1


def test_negative_choice_mirrors_the_positive_one_where_it_was_only_reported():
    steering = _steering()
    mirrored = steering.iloc[[4]].assign(half="report", layer=8)
    best = _choice(pd.concat([steering.iloc[:4], mirrored]), "negative")
    assert (best["layer"], best["coefficient"], best["log"]) == (8, -2.0, "e") and np.isnan(best["trait_score"])
    assert "no negative dose" in _choice(steering.iloc[:4], "negative")["reason"]


def test_control_has_a_near_dose_and_prefers_the_layer_then_the_sign():
    cells = pd.DataFrame(
        [("random", 12, 1.0, 0.3), ("random", 8, 1.0, 0.3), ("random", 8, -1.0, -0.31), ("random", 8, 9.0, 0.9)],
        columns=["vector", "layer", "coefficient", "relative_dose"],
    )
    assert tb.control_of(cells, 8, 0.31)["coefficient"].tolist() == [1.0]
    assert tb.control_of(cells, 8, -0.3)["coefficient"].tolist() == [-1.0]
    assert tb.control_of(cells.iloc[:1], 8, 0.3)["layer"].tolist() == [12]
    assert tb.control_of(cells, 8, 0.6).empty and tb.control_of(cells, 8, 0.0).empty


def test_monitoring_averages_rollouts_and_keeps_halves_apart(tables, samples):
    rows = tables["monitoring"].query("trait == 'evil' and direction == 'persona' and chosen_layer")
    assert rows.set_index("half")["n"].to_dict() == {"all": 160, "report": 80, "select": 80}
    assert (rows["n_scored"] == 2 * rows["n"]).all() and (rows["r"] > 0.9).all() and (rows["n_conditions"] == 8).all()
    point = tables["monitoring_points"].query("trait == 'evil' and rung == 2 and question_id == 3").iloc[0]
    raw = samples.monitoring.query("trait == 'evil' and rung == 2 and question_id == 3")
    assert point["trait_score"] == pytest.approx(raw["trait_score"].mean()) and point["n_scored"] == 2


def test_a_sample_projected_twice_is_refused(samples):
    doubled = dataclasses.replace(samples, projections=pd.concat([samples.projections, samples.projections]))
    with pytest.raises(DataError, match="two projections"):
        tb.build_tables(doubled, resamples=FAST)


def test_mmlu_is_paired_by_question_and_knows_chance(tables):
    mmlu = tables["mmlu"]
    assert not mmlu.loc[mmlu["scoring"] == "letter", "above_chance"].any()
    cell = mmlu.query("scoring == 'cloze' and trait == 'evil' and relative_dose == -0.4").iloc[0]
    assert cell["above_chance"] and cell["difference_high"] < -0.1 and cell["mcnemar_p"] < 1e-6
    assert cell["n_paired"] == 200
    assert mmlu.loc[mmlu["vector"] == "none", "mcnemar_p"].isna().all()


def test_all_unscored_is_nan(samples):
    blind = dataclasses.replace(samples, steering=samples.steering.assign(status="unscored", trait_score=np.nan))
    cells = tb.build_tables(blind, resamples=FAST)["steering"]
    assert cells["trait_score"].isna().all() and cells["difference"].isna().all() and cells["refusal_rate"].isna().all()
    assert (cells["n_unscored"] == cells["n"]).all()
