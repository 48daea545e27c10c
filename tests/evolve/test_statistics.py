"""Intervals of paired differences: against scipy, by simulation, and where there is no variance."""

import math

import numpy as np
import pytest
from scipy import stats

from heterosis.evolve.judging.statistics import objective_difference, paired_difference

RNG = np.random.default_rng(20261122)


def scores(values: object) -> dict[int, float]:
    return {index: float(value) for index, value in enumerate(np.asarray(values))}


def test_agrees_with_scipys_paired_t_interval() -> None:
    a, b = RNG.random(30), RNG.random(30)
    interval = paired_difference(scores(a), scores(b))
    theirs = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert interval.mean == pytest.approx(np.mean(a - b))
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high))
    assert interval.n == 30


def test_is_antisymmetric_and_does_not_depend_on_the_order_of_documents() -> None:
    a, b = scores(RNG.random(12)), scores(RNG.random(12))
    one, other = paired_difference(a, b), paired_difference(b, a)
    assert (one.mean, one.low, one.high) == (-other.mean, -other.high, -other.low)
    assert paired_difference(dict(reversed(a.items())), b) == one


def test_groups_of_one_change_nothing() -> None:
    a, b = scores(RNG.random(12)), scores(RNG.random(12))
    grouped = paired_difference(a, b, {index: str(index) for index in a})
    plain = paired_difference(a, b)
    assert (grouped.low, grouped.high) == pytest.approx((plain.low, plain.high))


def test_equal_groups_give_the_t_interval_of_their_means() -> None:
    differences = RNG.normal(size=(10, 4))
    interval = paired_difference(
        scores(differences.ravel()), scores(np.zeros(40)), {index: str(index // 4) for index in range(40)}
    )
    means = differences.mean(axis=1)
    theirs = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high))
    assert interval.n == 40


def test_unequal_groups_keep_the_mean_over_documents() -> None:
    a = scores([1, 1, 1, 1, 0])
    interval = paired_difference(a, scores(np.zeros(5)), {0: "x", 1: "x", 2: "x", 3: "x", 4: "y"})
    assert interval.mean == pytest.approx(0.8)


def test_repeating_each_document_within_its_group_adds_no_certainty() -> None:
    a, b = RNG.random(15), RNG.random(15)
    once = paired_difference(scores(a), scores(b))
    thrice = paired_difference(
        scores(np.repeat(a, 3)), scores(np.repeat(b, 3)), {index: str(index // 3) for index in range(45)}
    )
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


@pytest.mark.parametrize("constant", [0.0, 1.0, -1.0, 0.25])
def test_equal_differences_keep_a_width(constant: float) -> None:
    n = 50
    interval = paired_difference(scores(np.full(n, constant)), scores(np.zeros(n)))
    share = 1 - 0.025 ** (1 / n)  # of documents that may differ after n that did not
    assert interval.mean == constant
    assert interval.low == pytest.approx(constant - share * (constant + 1))
    assert interval.high == pytest.approx(constant + share * (1 - constant))


def test_equal_differences_are_the_surer_the_more_documents_there_are() -> None:
    widths = []
    for n in (1, 2, 10, 100, 1000):
        interval = paired_difference(scores(np.zeros(n)), scores(np.zeros(n)))
        assert interval.low < 0 < interval.high
        widths.append(interval.high - interval.low)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] == pytest.approx(1.95)
    assert widths[-1] < 0.01


def test_one_group_is_treated_as_one_observation() -> None:
    a = scores([1, 0, 1, 0])
    grouped = paired_difference(a, scores(np.zeros(4)), dict.fromkeys(a, "same"))
    assert grouped.mean == 0.5
    assert grouped.high - grouped.low == pytest.approx(1.95)


def test_differences_beyond_the_span_widen_it() -> None:
    interval = paired_difference(scores([30.0]), scores([10.0]))
    assert interval.low == pytest.approx(20 - 0.975 * 40)
    assert interval.high == 20


def test_a_weighted_objective_adds_variances_of_tasks() -> None:
    x, y = RNG.normal(0.2, 1, 40), RNG.normal(0.1, 0.5, 25)
    zeros = {"x": scores(np.zeros(40)), "y": scores(np.zeros(25))}
    interval = objective_difference({"x": scores(x), "y": scores(y)}, zeros, {"x": 0.25, "y": 0.75})
    parts = np.array([0.25**2 * x.var(ddof=1) / 40, 0.75**2 * y.var(ddof=1) / 25])
    df = parts.sum() ** 2 / (parts[0] ** 2 / 39 + parts[1] ** 2 / 24)
    half = stats.t.ppf(0.975, df) * math.sqrt(parts.sum())
    assert interval.mean == pytest.approx(0.25 * x.mean() + 0.75 * y.mean())
    assert (interval.low, interval.high) == pytest.approx((interval.mean - half, interval.mean + half))
    assert interval.n == 65


def test_two_tasks_weighted_against_each_other_are_welchs_test() -> None:
    x, y = RNG.normal(0, 1, 12), RNG.normal(0, 3, 8)
    zeros = {"x": scores(np.zeros(12)), "y": scores(np.zeros(8))}
    interval = objective_difference({"x": scores(x), "y": scores(y)}, zeros, {"x": 1.0, "y": -1.0})
    theirs = stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((theirs.low, theirs.high))


def test_one_task_of_weight_one_is_the_paired_difference() -> None:
    a, b = scores(RNG.random(9)), scores(RNG.random(9))
    assert objective_difference({"t": a}, {"t": b}, {"t": 1.0}) == paired_difference(a, b)


def test_a_task_without_variance_widens_the_objectives_interval() -> None:
    a, b = scores(RNG.random(20)), scores(RNG.random(20))
    same = scores(np.ones(20))
    alone = objective_difference({"t": a}, {"t": b}, {"t": 0.5})
    both = objective_difference({"t": a, "s": same}, {"t": b, "s": same}, {"t": 0.5, "s": 0.5})
    share = 0.5 * (1 - 0.025 ** (1 / 20))
    assert both.mean == pytest.approx(alone.mean)
    assert both.high - both.mean == pytest.approx(math.hypot(alone.high - alone.mean, share))


def test_negative_weights_swap_one_sided_limits() -> None:
    ones, zeros = scores(np.ones(10)), scores(np.zeros(10))
    interval = objective_difference({"t": ones}, {"t": zeros}, {"t": -1.0})
    mirrored = paired_difference(ones, zeros)
    assert (interval.low, interval.high) == pytest.approx((-mirrored.high, -mirrored.low))


def coverage(n: int, gain: float, tasks: int) -> float:
    """Share of intervals that hold the true gain: binary scores of two models that mostly agree."""
    rng = np.random.default_rng(n)
    hits, rounds = 0, 400
    for _ in range(rounds):
        a, b = {}, {}
        for task in range(tasks):
            difference = rng.choice([-1.0, 0.0, 1.0], size=n, p=[0.1, 0.8 - gain, 0.1 + gain])
            a[str(task)], b[str(task)] = scores(difference), scores(np.zeros(n))
        interval = objective_difference(a, b, dict.fromkeys(a, 1 / tasks))
        hits += interval.low <= gain <= interval.high
    return hits / rounds


@pytest.mark.parametrize(("n", "tasks"), [(30, 1), (200, 1), (40, 3)])
def test_intervals_hold_the_truth_about_95_times_in_100(n: int, tasks: int) -> None:
    assert 0.92 <= coverage(n, 0.1, tasks) <= 0.98


def test_rare_differences_are_covered_where_plain_t_intervals_have_no_width() -> None:
    rng = np.random.default_rng(1)
    n, p = 50, 0.02
    hits = degenerate = 0
    for _ in range(400):
        difference = (rng.random(n) < p).astype(float)
        interval = paired_difference(scores(difference), scores(np.zeros(n)))
        if not difference.any():
            degenerate += 1
            hits += interval.low <= p <= interval.high
    assert degenerate > 100
    assert hits == degenerate


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one document"):
        paired_difference({}, {})
    with pytest.raises(ValueError, match="the documents must be the same, but 2 have only one score"):
        paired_difference({1: 0.0, 2: 0.0}, {1: 0.0, 3: 0.0})
    with pytest.raises(ValueError, match="finite"):
        paired_difference({1: math.nan}, {1: 0.0})
    with pytest.raises(ValueError, match="the tasks must be the same"):
        objective_difference({"x": {1: 0.0}}, {"y": {1: 0.0}}, {"x": 1.0})
    with pytest.raises(ValueError, match="no group"):
        paired_difference({1: 0.0, 2: 1.0}, {1: 0.0, 2: 0.0}, {1: "x"})
