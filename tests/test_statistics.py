"""The intervals and tests against scipy, scikit-learn, hand-made numbers and simulation."""

import importlib
import itertools
import math
import pkgutil

import numpy as np
import pytest
from scipy import stats
from scipy.stats import norm
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from persona_bench.analysis import statistics as st


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_all_is_what_the_package_offers():
    rooms = [importlib.import_module(f"{st.__name__}.{room.name}") for room in pkgutil.iter_modules(st.__path__)]
    held = [(room, name, getattr(thing, "__module__", "")) for room in rooms for name, thing in vars(room).items()]
    public = {name for room, name, home in held if home == room.__name__ and not name.startswith("_")}
    shared = {name for room, name, home in held if home != room.__name__ and home.startswith(f"{st.__name__}.")}
    assert public and public - shared <= set(st.__all__)
    here = {name for name, thing in vars(st).items() if getattr(thing, "__module__", "").startswith(f"{st.__name__}.")}
    assert here <= set(st.__all__)
    assert all(hasattr(st, name) for name in st.__all__)


def test_mean_counts_what_is_unscored_and_ignores_it():
    estimate = st.mean([1.0, 3.0, math.nan, 8.0], ["a", "a", "b", "b"], rng=rng())
    assert estimate.value == 4.0
    assert (estimate.n, estimate.n_unscored, estimate.n_clusters) == (3, 1, 2)
    assert estimate.low <= 4.0 <= estimate.high


@pytest.mark.parametrize("values", [[], [math.nan, math.nan]])
def test_nothing_valid_is_nan_never_zero(values):
    ids = list(range(len(values)))
    for estimate in (
        st.mean(values, ids, rng=rng()),
        st.paired_difference(values, ids, values, ids, rng=rng()),
        st.pearson(values, values, ids, rng=rng()),
        st.spearman(values, values, ids, rng=rng()),
        st.within_condition_r(values, values, ids, ids, rng=rng()).estimate,
        st.auroc(values, values, ids, rng=rng()),
        st.balanced_accuracy(values, values, ids, rng=rng()),
        st.pairwise_agreement(values, values, ids, rng=rng()),
        st.weighted_kappa(values, values, ids, rng=rng()),
    ):
        assert math.isnan(estimate.value) and math.isnan(estimate.low) and math.isnan(estimate.high)
        assert (estimate.n, estimate.n_unscored) == (0, len(values))
        assert math.isnan(st.bootstrap_p(estimate))
    assert math.isnan(st.wilson(0, 0).value)


def test_one_question_has_no_interval():
    estimate = st.mean([1.0, 2.0, 3.0], ["q"] * 3, rng=rng())
    assert estimate.value == 2.0 and math.isnan(estimate.low) and math.isnan(st.bootstrap_p(estimate))


def test_resampling_is_by_question():
    """Ten copies of each answer add no information: the interval must not shrink."""
    values = rng(1).normal(size=12)
    single = st.mean(values, np.arange(12), rng=rng())
    copied = st.mean(np.repeat(values, 10), np.repeat(np.arange(12), 10), rng=rng())
    np.testing.assert_allclose([single.low, single.high], [copied.low, copied.high])


def test_mean_interval_is_near_the_t_interval():
    values = rng(2).normal(50, 10, size=30)
    estimate = st.mean(values, np.arange(30), rng=rng(), resamples=20000)
    low, high = stats.t.interval(0.95, 29, loc=values.mean(), scale=stats.sem(values))
    assert abs(estimate.low - low) < 0.3 and abs(estimate.high - high) < 0.3


def test_paired_difference_by_hand():
    estimate = st.paired_difference(
        [10.0, 20.0, 40.0, 99.0, math.nan], [1, 1, 2, 3, 2], [5.0, 10.0, 20.0, 7.0], [1, 2, 2, 4], rng=rng()
    )
    assert estimate.value == ((15 - 5) + (40 - 15)) / 2
    assert (estimate.n, estimate.n_clusters, estimate.n_unscored) == (3, 2, 1)


def test_paired_difference_takes_question_effects_out():
    question = rng(3).normal(50, 30, size=20)
    a, b = question + 5 + rng(4).normal(size=20), question + rng(5).normal(size=20)
    estimate = st.paired_difference(a, np.arange(20), b, np.arange(20), rng=rng())
    assert estimate.low > 3 and estimate.high < 7
    p = stats.ttest_1samp(a - b, 4.5).pvalue
    assert abs(st.bootstrap_p(estimate, 4.5) - p) < 0.03


def test_correlations_match_scipy():
    x = rng(6).normal(size=80)
    y = np.round(0.6 * x + rng(7).normal(size=80), 1)
    ids = np.arange(80) % 20
    assert st.pearson(x, y, ids, rng=rng()).value == pytest.approx(stats.pearsonr(x, y).statistic)
    assert st.spearman(x, y, ids, rng=rng()).value == pytest.approx(stats.spearmanr(x, y).statistic)
    whole = st.pearson(x, y, np.arange(80), rng=rng(), resamples=5000)
    reference = stats.pearsonr(x, y).confidence_interval()
    assert abs(whole.low - reference.low) < 0.05 and abs(whole.high - reference.high) < 0.05


def test_draws_equal_the_statistic_on_an_explicit_resample():
    """The weight-matrix form must give what copying the drawn questions gives."""
    n = 24
    x, y = rng(8).normal(size=n), rng(9).normal(size=n)
    y = np.round(y + x, 1)
    labels = (y > 0).astype(float)
    ids = np.arange(n) // 4
    weights = rng(0).multinomial(6, np.full(6, 1 / 6), size=3)
    for r, counts in enumerate(weights):
        rows = np.concatenate([np.repeat(np.flatnonzero(ids == c), k) for c, k in enumerate(counts)])
        xs, ys, ls = x[rows], y[rows], labels[rows]
        expected = {
            st.mean: (xs.mean(), (x, ids)),
            st.pearson: (stats.pearsonr(xs, ys).statistic, (x, y, ids)),
            st.spearman: (stats.spearmanr(xs, ys).statistic, (x, y, ids)),
            st.auroc: (roc_auc_score(ls, xs), (x, labels, ids)),
            st.balanced_accuracy: (balanced_accuracy_score(ls, xs >= 50), (x, labels, ids)),
        }
        for statistic, (value, arguments) in expected.items():
            assert statistic(*arguments, rng=rng(0), resamples=3).draws[r] == pytest.approx(value), statistic


def test_within_condition_leaves_flat_conditions_out():
    x = np.tile(np.arange(5.0), 4)
    y = np.concatenate([np.arange(5.0) * 10, -np.arange(5.0) * 10, np.full(5, 3.0), 50 + np.arange(5) * 0.1])
    groups = np.repeat(["up", "down", "flat", "nearly"], 5)
    result = st.within_condition_r(x, y, groups, np.tile(np.arange(5), 4), rng=rng())
    assert (result.n_conditions, result.n_left_out) == (2, 2)
    assert result.estimate.value == pytest.approx(0.0) and result.estimate.n == 10


def test_within_condition_is_the_mean_of_scipy_rs():
    x, y = rng(10).normal(size=60), rng(11).normal(size=60) * 20
    groups, ids = np.repeat(np.arange(6), 10), np.tile(np.arange(10), 6)
    expected = np.mean([stats.pearsonr(x[groups == g], y[groups == g]).statistic for g in range(6)])
    result = st.within_condition_r(x, y, groups, ids, rng=rng())
    assert result.estimate.value == pytest.approx(expected) and result.n_left_out == 0


def test_controls_count_by_their_mean_strength():
    ids = np.arange(40)
    x = rng().normal(size=(40, 4))
    y = x[:, 0] + x[:, 1:].sum(axis=1) / 4
    own, *controls = (st.pearson(x[:, k] * (-1) ** k, y, ids, rng=rng(1)) for k in range(4))
    control = st.strength_of_controls(controls)
    assert control.value == pytest.approx(np.mean([abs(one.value) for one in controls]))
    assert np.allclose(control.draws, np.mean([np.abs(one.draws) for one in controls], axis=0))
    assert st.excess_strength(own, control).value == pytest.approx(own.value - control.value)
    labels = (y > 0).astype(float)
    areas = [st.auroc(x[:, k] * (-1) ** k, labels, ids, rng=rng(1)) for k in range(4)]
    both = st.area_of_controls(areas)
    assert both.value == pytest.approx(np.mean([max(one.value, 1 - one.value) for one in areas])) and both.low >= 0.5
    fewer = st.auroc(x[:30, 0], labels[:30], ids[:30], rng=rng(1))
    assert math.isnan(st.area_of_controls([*areas, fewer]).value)


def test_excess_strength_is_paired():
    x, noise, ids = rng(13).normal(size=40), rng(14).normal(size=40), np.arange(40) % 10
    y = x + 0.3 * rng(15).normal(size=40)
    first, control = st.pearson(x, y, ids, rng=rng()), st.pearson(noise, y, ids, rng=rng())
    excess = st.excess_strength(first, control)
    assert excess.value == pytest.approx(first.value - abs(control.value)) and excess.low > 0
    assert math.isnan(st.excess_strength(first, st.pearson(x[:8], y[:8], ids[:8], rng=rng())).value)


def test_a_constant_column_has_no_correlation():
    assert math.isnan(st.pearson([0.1] * 9, np.arange(9.0), np.arange(9), rng=rng()).value)
    assert math.isnan(st.spearman([0.1] * 9, np.arange(9.0), np.arange(9), rng=rng()).value)


def test_auroc_and_balanced_accuracy():
    scores = np.array([0.0, 100.0, 50.0, 50.0, 20.0, math.nan])
    labels = np.array([0, 1, 1, 0, math.nan, 1])
    ids = np.arange(6)
    area = st.auroc(scores, labels, ids, rng=rng())
    assert area.value == pytest.approx(roc_auc_score(labels[:4], scores[:4])) and (area.n, area.n_unscored) == (4, 2)
    assert st.balanced_accuracy(scores, labels, ids, rng=rng()).value == pytest.approx(0.75)
    assert math.isnan(st.auroc([1.0, 2.0], [1, 1], [0, 1], rng=rng()).value)


def areas_at(true: float, questions: int, a_question: int, n: int) -> list[tuple[st.Estimate, st.Estimate]]:
    """(AUROC of a clear detector, of one whose AUROC is `true`), simulated, each question with an effect of its own."""
    source, found = rng(11), []
    ids = np.repeat(np.arange(questions), a_question)
    for _ in range(n):
        effect = math.sqrt(0.3) * source.standard_normal(questions)[ids]
        neutral, plain, other = (effect + math.sqrt(0.7) * source.standard_normal(ids.size) for _ in range(3))
        labels, both = np.repeat([0, 1], ids.size), np.tile(ids, 2)
        found.append(
            tuple(
                st.auroc(np.concatenate([neutral, shown]), labels, both, rng=rng(5), resamples=300)
                for shown in (plain + 8, other + math.sqrt(2) * norm.ppf(true))
            )
        )
    return found


@pytest.mark.parametrize("a_question", [1, 3])
def test_an_auroc_near_one_of_few_questions_is_seldom_surely_over_a_threshold_that_it_is_at(a_question):
    simulated = areas_at(0.9, 10, a_question, 300)
    above = [area for _, area in simulated if area.value > 0.9]
    lost = [pair for pair in simulated if st.excess(*pair).value < 0.1]
    for level, most in ((0.05, 0.07), (0.01, 0.01)):
        assert sum(st.area_p(area, 0.9) < level for area in above) <= most * 300
        assert sum(st.area_loss_p(*pair, 0.1) < level for pair in lost) <= most * 300
    # The draws alone let it pass several times as often.
    assert sum(st.bootstrap_p(area, 0.9) < 0.01 for area in above) > 0.02 * 300


def test_an_auroc_on_the_far_side_is_tested_by_its_draws():
    for clear, area in areas_at(0.6, 10, 3, 5):
        assert st.area_p(area, 0.9) == st.bootstrap_p(area, 0.9)
        loss = st.excess(clear, area)
        assert st.area_loss_p(clear, area, 0.1) == st.bootstrap_p(loss, 0.1)


def test_an_auroc_of_many_questions_is_surely_over_a_threshold():
    (_, area), *_ = areas_at(0.99, 200, 3, 1)
    assert st.area_p(area, 0.9) < 1e-4


def brute_force_agreement(scores, levels, ids, min_gap: float = 75.0) -> float:
    wins = []
    for i, j in itertools.combinations(range(len(scores)), 2):
        if ids[i] != ids[j] or abs(levels[i] - levels[j]) < min_gap:
            continue
        high, low = (i, j) if levels[i] > levels[j] else (j, i)
        wins.append(1.0 if scores[high] > scores[low] else 0.5 if scores[high] == scores[low] else 0.0)
    return float(np.mean(wins)) if wins else math.nan


def labelled(seed: int, questions: int = 12, answers: int = 6, noise: float = 40.0):
    """Scores, levels and questions of a labelled set; scores in steps of 10, so that there are ties."""
    source = rng(seed)
    levels = source.choice([0.0, 25.0, 50.0, 75.0, 100.0], size=questions * answers)
    ids = np.arange(questions * answers) // answers
    own = source.normal(0, 10, size=questions)[ids]
    scores = np.clip(np.round((levels + own + source.normal(0, noise, size=levels.size)) / 10) * 10, 0, 100)
    return scores, levels, ids


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("gap", [25.0, 50.0, 75.0, 100.0])
def test_pairwise_agreement_matches_brute_force(seed, gap):
    scores, levels, ids = labelled(seed)
    scores[3] = math.nan
    kept = np.isfinite(scores)
    found = st.pairwise_agreement(scores, levels, ids, rng=rng(), min_gap=gap)
    assert found.value == pytest.approx(brute_force_agreement(scores[kept], levels[kept], ids[kept], gap))
    assert 0 < found.low <= found.value <= found.high <= 1
    assert found.value == 1 or found.low < found.value < found.high
    assert (found.n, found.n_unscored, found.n_clusters) == (71, 1, 12)


def test_pairs_are_of_one_question_and_far_apart():
    assert st.pairwise_agreement([90, 10, 5], [100, 25, 0], ["q"] * 3, rng=rng()).value == 1.0
    assert st.pairwise_agreement([10, 10, 10], [100, 25, 0], ["q"] * 3, rng=rng()).value == 0.5
    assert st.pairwise_agreement([1, 2, 30], [100, 25, 0], ["q"] * 3, rng=rng()).value == 0.0
    # Nothing to compare: other questions, or levels too near. That is no agreement of 0.
    assert math.isnan(st.pairwise_agreement([90, 10], [100, 0], ["p", "q"], rng=rng()).value)
    assert math.isnan(st.pairwise_agreement([90, 10], [100, 50], ["q", "q"], rng=rng()).value)


@pytest.mark.parametrize("seed", range(5))
def test_weighted_kappa_matches_sklearn(seed):
    scores, levels, ids = labelled(seed)
    scores = np.where(scores % 25 == 12.5, scores + 1, scores)
    found = st.weighted_kappa(scores, levels, ids, rng=rng())
    rounded = [round(score / 25) for score in scores]
    assert found.value == pytest.approx(cohen_kappa_score(rounded, levels / 25, weights="quadratic", labels=range(5)))
    assert found.low < found.value < found.high


def test_weighted_kappa_at_its_ends():
    levels, ids = np.tile([0.0, 25, 50, 75, 100], 4), np.repeat(np.arange(4), 5)
    assert st.weighted_kappa(levels, levels, ids, rng=rng()).value == pytest.approx(1)
    assert st.weighted_kappa(100 - levels, levels, ids, rng=rng()).value == pytest.approx(-1)
    assert st.weighted_kappa(np.full(20, 60.0), levels, ids, rng=rng()).value == pytest.approx(0)
    assert math.isnan(st.weighted_kappa(np.full(20, 60.0), np.full(20, 50.0), ids, rng=rng()).value)
    # Halves go up, as 12.5 is as near to 25 as to 0.
    halves = st.weighted_kappa(levels + np.where(levels < 100, 12.4, 0), levels, ids, rng=rng())
    assert halves.value == pytest.approx(1)


def test_draws_of_agreement_equal_the_statistic_on_an_explicit_resample():
    scores, levels, ids = labelled(3, questions=6)
    weights = rng(0).multinomial(6, np.full(6, 1 / 6), size=4)
    agreement = st.pairwise_agreement(scores, levels, ids, rng=rng(0), resamples=4, min_gap=50.0)
    kappa = st.weighted_kappa(scores, levels, ids, rng=rng(0), resamples=4)
    for r, counts in enumerate(weights):
        rows, copies = [], []
        for question, times in enumerate(counts):
            for copy in range(times):
                found = np.flatnonzero(ids == question)
                rows += found.tolist()
                # A question drawn twice is two questions: pairs are never made across its copies.
                copies += [f"{question}-{copy}"] * len(found)
        expected = brute_force_agreement(scores[rows], levels[rows], copies, 50.0)
        assert agreement.draws[r] == pytest.approx(expected)
        rounded = np.floor(scores[rows] / 25 + 0.5)
        assert kappa.draws[r] == pytest.approx(cohen_kappa_score(rounded, levels[rows] / 25, weights="quadratic"))


def test_wilson_matches_scipy():
    for hits, n in ((0, 10), (3, 10), (10, 10), (60, 200)):
        reference = stats.binomtest(hits, n).proportion_ci(method="wilson")
        estimate = st.wilson(hits, n)
        assert (estimate.low, estimate.high) == pytest.approx((reference.low, reference.high))
    for n in range(1, 60):
        assert st.wilson(0, n).low == 0 and st.wilson(n, n).high == 1  # not a hair away, by rounding


def test_mcnemar():
    assert st.mcnemar_exact(0, 0) == 1.0
    for first, second in ((1, 9), (9, 1), (5, 5), (0, 3), (40, 22)):
        assert st.mcnemar_exact(first, second) == pytest.approx(stats.binomtest(first, first + second).pvalue)


def test_holm_by_hand():
    adjusted = st.holm([0.01, math.nan, 0.04, 0.03, 0.5])
    assert adjusted[0] == pytest.approx(0.04) and math.isnan(adjusted[1])
    assert adjusted[2:] == pytest.approx([0.09, 0.09, 0.5])
    assert st.holm([]) == []


def test_p_value_agrees_with_the_interval():
    for seed in range(20):
        estimate = st.mean(rng(seed).normal(0.5, 1, size=12), np.arange(12), rng=rng(seed))
        p = st.bootstrap_p(estimate)
        # The quantile interpolates between draws, so only a p on the edge may differ.
        assert (p < 0.05) == (estimate.low > 0 or estimate.high < 0) or abs(p - 0.05) < 0.01


def test_p_value_where_no_draw_reaches_the_threshold():
    strong = st.mean(rng(1).normal(40, 5, size=10), np.arange(10), rng=rng())
    assert 0 < st.bootstrap_p(strong) < 1e-5
    same = st.mean(np.full(6, 100.0), np.arange(6), rng=rng())
    assert st.bootstrap_p(same) == pytest.approx(2 / 2**6)
    assert st.bootstrap_p(same, 100.0) == 1.0


def test_streams_are_named():
    assert st.stream(0, "a", 1).random() == st.stream(0, "a", 1).random()
    assert st.stream(0, "a", 1).random() != st.stream(0, "a", 2).random()
    assert st.stream(0, "a", 1).random() != st.stream(1, "a", 1).random()


@pytest.mark.parametrize("n_questions", [5, 10, 20])
def test_coverage_on_clustered_data(n_questions):
    """Four answers a question that share a question effect: 95 % intervals must cover the truth about so often."""
    source, covered, runs = rng(12), 0, 400
    ids = np.repeat(np.arange(n_questions), 4)
    for _ in range(runs):
        values = source.normal(0, 10, size=n_questions)[ids] + source.normal(0, 5, size=ids.size)
        estimate = st.mean(values, ids, rng=source, resamples=400)
        covered += estimate.low <= 0 <= estimate.high
    assert 0.91 <= covered / runs <= 0.985


@pytest.mark.parametrize("statistic", [st.pairwise_agreement, st.weighted_kappa])
@pytest.mark.parametrize("noise", [45.0, 80.0])
def test_coverage_of_agreement(statistic, noise):
    """A judge whose noise is partly shared within a question: intervals must cover what many questions would give."""
    truth = statistic(*labelled(99, questions=600, answers=5, noise=noise), rng=rng(), resamples=2).value
    covered, runs = 0, 200
    for seed in range(runs):
        found = statistic(*labelled(seed, questions=40, answers=5, noise=noise), rng=rng(seed), resamples=300)
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / runs <= 0.995
