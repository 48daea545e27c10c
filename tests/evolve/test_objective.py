"""Objectives: what they say of one model, of two, and of one that has met some of the documents."""

import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from heterosis.evaluate.scores import Scores
from heterosis.evolve.judging.objective import PENALTY, Judge, Objective
from heterosis.evolve.optimizers import Limits

KEY = "acc,none"


def scores(**tasks: Mapping[int, float] | list[float]) -> Scores:
    documents = {
        task: {
            d: {KEY: float(v)} for d, v in (values.items() if isinstance(values, Mapping) else enumerate(values))
        }
        for task, values in tasks.items()
    }
    return Scores(documents)


def judge(kind: str = "weighted", parents: list[Scores] | None = None, **options: Any) -> Judge:
    weights = options.pop("weights", {"a": 1.0, "b": 1.0})
    objective = Objective(weights, dict.fromkeys(weights, KEY), options.pop("groups", {}), kind, **options)
    return objective.judge(PARENTS if parents is None else parents)


# Their best: 0.75 on a, 0.5 on b.
PARENTS = [scores(a=[1, 1, 1, 0], b=[0, 0, 0, 1]), scores(a=[1, 0, 0, 0], b=[1, 0, 1, 0])]
CHILD = scores(a=[1, 1, 0, 0], b=[1, 1, 1, 0])  # 0.5 on a, 0.75 on b


class TestOneModel:
    def test_the_weighted_sum(self) -> None:
        assert judge(weights={"a": 2.0, "b": 1.0}).score(CHILD) == pytest.approx(1.75)
        assert judge(weights={"a": 2.0, "b": 1.0}).losses(CHILD) == (pytest.approx(-1.75),)

    def test_between_what_its_terms_lie(self) -> None:
        weights = {"a": 2.0, "b": 1.0}
        few = scores(a=[1, 0], b=[0])
        assert judge(weights=weights).limits([few, CHILD]) == (Limits(-2.0, 0.0, 4), Limits(-1.0, 0.0, 4))
        assert judge(weights=weights, lower=frozenset("a")).limits([CHILD])[0] == Limits(0.0, 2.0, 4)
        assert judge("gain").limits([CHILD]) == (Limits(-0.125, 0.375, 4), Limits(-0.25, 0.25, 4))
        assert judge("gain", constraints={"a": 0.1}).limits([CHILD])[2] is None
        for odd in (3.0, -0.5, math.nan):
            one = scores(a=[0.5, odd], b=[0.0, 1.0])
            assert judge().limits([one, CHILD]) == (None, Limits(-1.0, 0.0, 4))
        assert judge(weights=weights, lower=frozenset("a")).limits([scores(a=[-0.5], b=[0])])[0] is None
        assert judge(weights={"a": 0.0, "b": 1.0}).limits([CHILD])[0] is None
        assert judge("worst").limits([CHILD]) == judge("pareto").limits([CHILD]) == ()
        assert judge().limits([]) == (None, None)

    def test_nothing_is_a_plain_zero(self) -> None:
        nothing = judge().score(scores(a=[0.0, 0.0], b=[0.0, 0.0]))
        assert f"{nothing:.1f}" == "0.0"

    def test_what_is_better_when_lower_is_turned(self) -> None:
        assert judge(weights={"a": 2.0, "b": 1.0}, lower={"a"}).score(CHILD) == pytest.approx(-2 * 0.5 + 0.75)

    def test_a_metric_without_weight_keeps_its_direction(self) -> None:
        judged = judge(weights={"a": 0.0, "b": 1.0}, lower={"a"}, constraints={"a": 0.05})
        assert judged.violated(scores(a=[1, 1, 1, 0], b=[1, 1, 1, 1])) == ["a"]
        assert judged.violated(scores(a=[0, 0, 0, 0], b=[0, 0, 0, 0])) == []

    def test_the_mean_gain_over_each_tasks_best_parent(self) -> None:
        assert judge("gain").gains(CHILD) == {"a": pytest.approx(-0.25), "b": pytest.approx(0.25)}
        assert judge("gain", weights={"a": 3.0, "b": 1.0}).score(CHILD) == pytest.approx((3 * -0.25 + 0.25) / 4)

    def test_the_smallest_gain(self) -> None:
        assert judge("worst").score(CHILD) == pytest.approx(-0.25)

    @pytest.mark.parametrize("kind", ["weighted", "gain", "worst", "pareto"])
    @pytest.mark.parametrize("silent", ["a", "b"])
    def test_a_task_without_its_metric_leaves_no_number(self, kind: str, silent: str) -> None:
        documents = {task: {0: {} if task == silent else {KEY: 1.0}} for task in ("a", "b")}
        assert np.isnan(judge(kind).score(Scores(documents)))

    def test_a_front_has_a_loss_for_each_task(self) -> None:
        assert judge("pareto").losses(CHILD) == (pytest.approx(0.25), pytest.approx(-0.25))
        assert judge("pareto").score(CHILD) == pytest.approx(0.0)

    def test_a_task_without_weight_counts_nowhere(self) -> None:
        better = scores(a=[1, 1, 1, 1], b=[0, 0, 0, 0])
        for kind in ("worst", "pareto"):
            judged = judge(kind, weights={"a": 1.0, "b": 0.0})
            assert judged.losses(better) == (pytest.approx(-0.25),)
            assert len(judged.objective.names) == 1
            assert judged.score(better) == pytest.approx(0.25)
        assert judge("worst", weights={"a": 1.0, "b": 0.0}).difference(better, PARENTS[0]).mean == 0.25

    def test_a_constraint_is_counted_by_how_far_it_is_broken(self) -> None:
        free, bound = judge(), judge(constraints={"a": 0.1, "b": 0.0})
        assert bound.score(CHILD) == pytest.approx(free.score(CHILD) - PENALTY * 0.15)
        assert bound.violated(CHILD) == ["a"]
        assert bound.score(PARENTS[0]) < free.score(PARENTS[0])
        assert judge(constraints={"a": 0.25}).score(CHILD) == free.score(CHILD)

    def test_gains_of_unbounded_metrics_are_shares(self) -> None:
        parents = [scores(a=[-4.0, -6.0], b=[1, 0]), scores(a=[-8.0, -8.0], b=[0, 0])]
        gains = judge("gain", parents).gains(scores(a=[-4.0, -4.0], b=[1, 1]))
        assert gains == {"a": pytest.approx(0.2), "b": pytest.approx(0.5)}

    def test_a_parent_near_zero_is_no_unit(self) -> None:
        parents = [scores(a=[-0.001, -0.003], b=[1, 0]), scores(a=[-12.0, -12.0], b=[0, 1])]
        gains = judge("gain", parents).gains(scores(a=[-6.0, -6.0], b=[1, 1]))
        assert gains == {"a": pytest.approx(-5.0, abs=1e-2), "b": pytest.approx(0.5)}

    def test_gains_of_perplexities_are_positive_when_they_fall(self) -> None:
        parents = [scores(a=[10.0, 30.0], b=[1, 0]), scores(a=[50.0, 50.0], b=[0, 0])]
        gains = judge("gain", parents, lower={"a"}).gains(scores(a=[5.0, 5.0], b=[1, 0]))
        assert gains == {"a": pytest.approx(0.75), "b": 0.0}


class TestEstimate:
    def test_is_the_reference_and_the_paired_difference(self) -> None:
        reference = scores(a=[1, 0, 1, 0], b=[0, 0, 0, 0])
        found = judge().estimate(scores(a=[0, 0], b=[1]), reference)
        assert found.score == pytest.approx((0.5 - 0.5) + (0 + 1))
        assert found.losses == (-found.score,)

    def test_of_all_documents_is_the_score(self) -> None:
        for kind in ("weighted", "gain", "worst", "pareto"):
            found = judge(kind).estimate(CHILD, PARENTS[0])
            assert found.score == pytest.approx(judge(kind).score(CHILD))
            assert found.losses == pytest.approx(judge(kind).losses(CHILD))


def drawn(seed: int, a: float, b: float, n: int = 200) -> Scores:
    own = random.Random(seed)
    return scores(a=[own.random() < a for _ in range(n)], b=[own.random() < b for _ in range(n)])


def some(whole: Scores, n: int) -> Scores:
    return Scores({task: {d: v for d, v in own.items() if d < n} for task, own in whole.documents.items()})


class TestBeaten:
    @pytest.mark.parametrize("kind", ["weighted", "gain", "worst", "pareto"])
    def test_much_worse_is_soon_beaten_and_better_never(self, kind: str) -> None:
        parents = [drawn(1, 0.5, 0.5), drawn(2, 0.5, 0.5)]
        best, worse, better = drawn(3, 0.8, 0.8), drawn(4, 0.2, 0.2), drawn(5, 0.95, 0.95)
        judged = judge(kind, parents)
        assert judged.beaten(some(worse, 40), best, 0.05)
        assert not judged.beaten(some(better, 40), best, 0.05)
        assert not judged.beaten(some(best, 40), best, 0.05)

    def test_tasks_without_a_difference_yet_do_not_keep_a_candidate_in_the_race(self) -> None:
        """It lost five documents of a and none of four others, with eight of each."""
        weights = dict.fromkeys("abcde", 0.2)
        same = {task: [1.0, 0.0] * 4 for task in "bcde"}
        incumbent, candidate = scores(a=[1.0] * 8, **same), scores(a=[0.0] * 5 + [1.0] * 3, **same)
        judged = judge("weighted", [incumbent], weights=weights)
        assert judged.beaten(candidate, incumbent, 0.05)
        assert judged.difference(candidate, incumbent, 0.1).high > 0

    def test_of_a_front_only_what_is_worse_in_everything(self) -> None:
        parents = [drawn(1, 0.5, 0.5), drawn(2, 0.5, 0.5)]
        assert not judge("pareto", parents).beaten(drawn(6, 0.9, 0.1), drawn(7, 0.6, 0.6), 0.05)
        assert judge("weighted", parents).beaten(drawn(6, 0.7, 0.1), drawn(7, 0.6, 0.6), 0.05)

    @pytest.mark.parametrize("kind", ["worst", "pareto"])
    def test_a_task_without_weight_saves_and_costs_nobody_the_race(self, kind: str) -> None:
        parents = [drawn(1, 0.5, 0.5), drawn(2, 0.5, 0.5)]
        judged, incumbent = judge(kind, parents, weights={"a": 1.0, "b": 0.0}), drawn(3, 0.6, 0.5)
        assert judged.beaten(drawn(4, 0.2, 0.9), incumbent, 0.05)
        assert not judged.beaten(drawn(5, 0.7, 0.1), incumbent, 0.05)

    def test_a_broken_constraint_ends_a_race(self) -> None:
        parents = [drawn(1, 0.9, 0.1), drawn(2, 0.1, 0.5)]
        candidate, incumbent = drawn(3, 0.4, 1.0), drawn(4, 0.85, 0.5)
        assert judge("weighted", parents, constraints={"a": 0.2}).beaten(candidate, incumbent, 0.05)
        assert not judge("weighted", parents).beaten(candidate, incumbent, 0.05)

    @pytest.mark.parametrize("turn", [1, -1])
    def test_a_constraint_is_against_the_best_parent_of_its_task(self, turn: int) -> None:
        parents = [drawn(1, 0.9, 0.1), drawn(2, 0.1, 0.5)][::turn]
        candidate, incumbent = drawn(3, 0.4, 1.0), drawn(4, 0.85, 0.5)
        assert judge("weighted", parents, constraints={"a": 0.2}).beaten(candidate, incumbent, 0.05)

    def test_constraints_share_the_error(self) -> None:
        """So it takes more differences to be beaten where there are some, though they are kept."""
        incumbent, limits = scores(a=[1.0] * 40), {"a": 0.9}

        def least(**options: Any) -> int:
            judged = judge(parents=[incumbent], weights={"a": 1.0}, **options)
            lost = (scores(a=[0.0] * k + [1.0] * (40 - k)) for k in range(40))
            return next(k for k, candidate in enumerate(lost) if judged.beaten(candidate, incumbent, 0.05))

        assert least() < least(constraints=limits) < 30

    @pytest.mark.parametrize("kind", ["weighted", "gain", "worst"])
    def test_who_breaks_a_constraint_beats_nobody(self, kind: str) -> None:
        """The penalty counts: of two that break it, who breaks it less may be better."""
        parents = [drawn(1, 0.9, 0.1), drawn(2, 0.1, 0.5)]
        candidate, incumbent = drawn(3, 0.6, 0.2), drawn(4, 0.1, 1.0)
        judged = judge(kind, parents, constraints={"a": 0.1})
        assert judged.score(candidate) > judged.score(incumbent)
        assert not judged.beaten(candidate, incumbent, 0.05)
        assert not judged.beaten(incumbent, incumbent, 0.05)

    @pytest.mark.parametrize("kind", ["weighted", "gain", "worst"])
    def test_an_equal_is_beaten_no_oftener_than_alpha(self, kind: str) -> None:
        parents = [drawn(1, 0.5, 0.5), drawn(2, 0.5, 0.5)]
        judged, alpha = judge(kind, parents), 0.1
        lost = sum(
            judged.beaten(some(drawn(2 * k + 10, 0.6, 0.6), 40), some(drawn(2 * k + 11, 0.6, 0.6), 40), alpha)
            for k in range(400)
        )
        assert lost <= 400 * alpha + 3 * (400 * alpha * (1 - alpha)) ** 0.5


class TestATaskThatBothModelsHaveNoDocumentOf:
    """Its metric may be given for the last documents only."""

    INCUMBENT = scores(a=[1.0] * 20, b=[0.0] * 10 + [1.0] * 10)
    CANDIDATE = Scores({"a": {d: {KEY: 0.0} for d in range(10)}, "b": {d: {} for d in range(10)}})

    @pytest.mark.parametrize("kind", ["weighted", "gain", "worst", "pareto"])
    def test_leaves_open_who_is_better(self, kind: str) -> None:
        judged = judge(kind, [self.INCUMBENT])
        assert not judged.beaten(self.CANDIDATE, self.INCUMBENT, 0.05)
        assert not judged.behind(self.CANDIDATE, self.INCUMBENT, 0.05)
        assert not judged.alike(some(self.INCUMBENT, 0), self.INCUMBENT)

    def test_does_so_with_a_constraint(self) -> None:
        judged = judge(parents=[self.INCUMBENT], weights={"a": 1.0, "b": 0.0}, constraints={"b": 0.1})
        assert not judged.beaten(self.CANDIDATE, self.INCUMBENT, 0.05)

    def test_decides_nothing_without_a_weight(self) -> None:
        judged = judge(parents=[self.INCUMBENT], weights={"a": 1.0, "b": 0.0})
        assert judged.beaten(self.CANDIDATE, self.INCUMBENT, 0.05)
        assert judged.behind(self.CANDIDATE, self.INCUMBENT, 0.05)


class TestDifference:
    def test_equals_of_wide_scores_have_wide_intervals(self) -> None:
        """Log-likelihoods are in no [0, 1]; another document's might differ by as much as these are apart."""
        same = scores(a=[-1000.0, -900.0, -950.0, -920.0], b=[1, 0, 1, 0])
        narrow, wide = (judge(weights={t: 1.0}, parents=[same]).difference(same, same) for t in "ba")
        assert wide.high == pytest.approx(100 * narrow.high)
        pooled = judge(weights={"a": 1.0}, parents=[same])._comparison(same, same).pooled({"a": 1.0}, 0.05)
        assert pooled.high == pytest.approx(wide.high)

    def test_is_that_of_the_scores(self) -> None:
        for kind in ("weighted", "gain", "worst", "pareto"):
            judged = judge(kind)
            expected = judged.score(CHILD) - judged.score(PARENTS[0])
            assert judged.difference(CHILD, PARENTS[0]).mean == pytest.approx(expected)

    def test_of_the_smallest_gain_covers_the_truth(self) -> None:
        """True smallest gains: 0.7 and 0.6, less the same parents' best."""
        parents = [drawn(1, 0.5, 0.5), drawn(2, 0.5, 0.5)]
        judged, covered = judge("worst", parents), 0
        truth = min(0.7 - judged._best["a"], 0.8 - judged._best["b"]) - min(
            0.6 - judged._best["a"], 0.65 - judged._best["b"]
        )
        for k in range(100):
            interval = judged.difference(drawn(2 * k + 10, 0.7, 0.8), drawn(2 * k + 11, 0.6, 0.65))
            covered += interval.low <= truth <= interval.high
        assert covered >= 85

    def test_of_the_smallest_gain_keeps_groups_together(self) -> None:
        twice = {task: {d: str(d // 10) for d in range(200)} for task in ("a", "b")}
        base = np.random.default_rng(0).random(20) < 0.5
        model = scores(a=[float(base[d // 10]) for d in range(200)], b=[1.0] * 200)
        other = scores(a=[0.0] * 200, b=[1.0] * 200)
        parents = [scores(a=[1.0] * 200, b=[0.0] * 200)]
        alone = judge("worst", parents).difference(model, other)
        together = judge("worst", parents, groups=twice).difference(model, other)
        assert together.high - together.low > 2 * (alone.high - alone.low)

    def test_without_any_variance_has_a_width_still(self) -> None:
        for kind in ("weighted", "gain", "worst", "pareto"):
            same = judge(kind).difference(CHILD, CHILD)
            assert same.low < same.mean == 0 < same.high
