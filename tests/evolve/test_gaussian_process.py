"""Gaussian processes of the terms of a loss, against scikit-learn's, and the improvement that they expect."""

import math
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from heterosis.evolve.optimizers import Axis, Detail, Limits, Optimizer, Vector, get_optimizer
from heterosis.evolve.optimizers.surrogates.bayesian import BayesianOptimizer, log_expected_improvement
from heterosis.evolve.optimizers.surrogates.gaussian_process import SumOfProcesses, fitted

CONTINUOUS = np.zeros(3, dtype=bool)


def curve(x: Vector) -> Vector:
    """Two terms of points ``[n, 3]``: one depends on the first axis alone, one on the other two."""
    return np.stack([np.sin(4 * x[:, 0]), (x[:, 1] - 0.3) ** 2 - x[:, 2]], axis=1)


def drawn(n: int, seed: int = 0) -> Vector:
    return np.random.default_rng(seed).random((n, 3))


def model(n: int = 20, shares: Vector | None = None) -> SumOfProcesses:
    points = drawn(n)
    return fitted(points, curve(points), np.ones(n) if shares is None else shares, CONTINUOUS)


def make(d: int, seed: int = 0) -> Optimizer:
    return get_optimizer("gp")(
        axes=[Axis()] * d,
        objectives=1,
        initial=np.full(d, 0.5),
        seed=seed,
        sigma0=None,
        popsize=None,
        budget=25,
    )


class TestPosterior:
    def test_is_the_sum_of_scikit_learns(self) -> None:
        shares = np.linspace(0.1, 1.0, 20)
        found, x = model(shares=shares), drawn(50, seed=1)
        mean, variance = (part.numpy() for part in found.posterior(torch.from_numpy(x)))
        terms, means, variances = curve(drawn(20)), [], []
        for k, parameters in enumerate(found.parameters.exp().numpy()):
            level, scale = terms[:, k].mean(), terms[:, k].std()
            kernel = ConstantKernel(parameters[-2]) * Matern(parameters[:-2] ** -0.5, nu=2.5)
            noise = (parameters[-1] + 1e-6) / shares
            oracle = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)
            oracle.fit(drawn(20), (terms[:, k] - level) / scale)
            expected, deviation = oracle.predict(x, return_std=True)
            means.append(level + scale * expected)
            variances.append((scale * deviation) ** 2)
        assert mean == pytest.approx(np.sum(means, axis=0), abs=1e-7)
        assert variance == pytest.approx(np.sum(variances, axis=0), abs=1e-7)

    def test_learns_which_axes_a_term_depends_on(self) -> None:
        one, other = model(40).parameters[:, :3]
        assert one[0] > one[1:].max() + 1
        assert other[1:].min() > other[0] + 0.5

    def test_terms_learn_length_scales_from_each_other(self) -> None:
        """One that says nothing of the axes takes after the other; alone it has the same for all."""
        points = drawn(20)
        terms = np.stack([np.sin(6 * points[:, 0]), np.zeros(20)], axis=1)
        _, other = fitted(points, terms, np.ones(20), CONTINUOUS).parameters[:, :3]
        (alone,) = fitted(points, terms[:, 1:], np.ones(20), CONTINUOUS).parameters[:, :3]
        assert other[0] > other[1:].max() + 1
        assert torch.all((alone - alone[0]).abs() < 0.5)

    def test_predicts_the_sum(self) -> None:
        x = drawn(50, seed=1)
        truth = curve(x).sum(1)
        mean, _ = model(40).posterior(torch.from_numpy(x))
        assert np.std(mean.numpy() - truth) < 0.1 * np.std(truth)

    def test_trusts_few_documents_less(self) -> None:
        points = np.vstack([drawn(12), [[0.5, 0.5, 0.5]]])
        terms = np.vstack([curve(drawn(12)), [[5.0, 5.0]]])
        centre = torch.full((1, 3), 0.5, dtype=torch.float64)
        parameters = fitted(points, terms, np.ones(13), CONTINUOUS).parameters
        low, high = (
            SumOfProcesses(
                torch.from_numpy(points), torch.from_numpy(terms.T), torch.from_numpy(1 / shares),
                torch.from_numpy(CONTINUOUS), parameters, torch.zeros(2, dtype=torch.float64),
                torch.ones(2, dtype=torch.float64), torch.full((2, 2), math.nan, dtype=torch.float64),
            ).posterior(centre)[0]
            for shares in (np.append(np.ones(12), 0.05), np.ones(13))
        )  # fmt: skip
        assert low < high - 0.3

    def test_expects_what_it_expected(self) -> None:
        """A believed result changes no mean and leaves less to learn there."""
        found, more = model(), drawn(3, seed=2)
        believing, x = found.expecting(more), torch.from_numpy(np.vstack([more, drawn(10, seed=3)]))
        before, after = found.posterior(x), believing.posterior(x)
        assert after[0].numpy() == pytest.approx(before[0].numpy(), abs=1e-6)
        assert torch.all(after[1][:3] < before[1][:3])
        assert torch.all(after[1] <= before[1] + 1e-12)

    def test_of_a_term_between_limits_lies_there_too(self) -> None:
        """Its mean and variance are those of a logistic function of a normal number, whose logits are learned."""
        points = drawn(30)
        shares = 1 / (1 + np.exp(-4 * curve(points)[:, :1]))
        limits = Limits(-2.0, 1.0, 1000)
        found = fitted(points, -2 + 3 * shares, np.ones(30), CONTINUOUS, [limits])
        x = torch.from_numpy(drawn(40, seed=1))
        mean, variance = found.posterior(x)
        assert torch.all((mean > -2) & (mean < 1))
        assert -2 + 3 / (1 + np.exp(-4 * curve(x.numpy())[:, 0])) == pytest.approx(mean.numpy(), abs=0.2)
        plain = replace(found, limits=torch.full((1, 2), math.nan, dtype=torch.float64)).posterior(x)
        for k in range(3):
            z = norm(plain[0][k].item(), plain[1][k].item() ** 0.5)
            first = z.expect(lambda z: -2 + 3 / (1 + math.exp(-z)))
            second = z.expect(lambda z, first=first: (-2 + 3 / (1 + math.exp(-z)) - first) ** 2)
            assert (mean[k].item(), variance[k].item()) == pytest.approx((first, second), rel=1e-4, abs=1e-6)

    def test_of_terms_beyond_their_limits(self) -> None:
        """Estimates of results that were stopped early may lie there: they count as if they lay at the limit."""
        points, limits = drawn(12), [Limits(0.0, 1.0, 50)]
        at, beyond = (fitted(points, np.full((12, 1), y), np.ones(12), CONTINUOUS, limits) for y in (1.0, 1.3))
        x = torch.from_numpy(drawn(4, seed=1))
        assert torch.equal(at.posterior(x)[0], beyond.posterior(x)[0])
        assert torch.all(at.posterior(x)[0] < 1)

    def test_of_equal_points_and_equal_losses(self) -> None:
        """What scores that do not differ give: an unchanging loss, known nowhere better than elsewhere."""
        points = np.full((5, 3), 0.5)
        found = fitted(points, np.full((5, 1), 0.25), np.ones(5), CONTINUOUS)
        mean, variance = found.posterior(torch.from_numpy(drawn(4)))
        assert mean.numpy() == pytest.approx(np.full(4, 0.25))
        assert torch.isfinite(variance).all()


class TestExpectedImprovement:
    @pytest.mark.parametrize("z", [3.0, 0.5, -0.9, -1.1, -5.0, -20.0])
    def test_is_the_integral(self, z: float) -> None:
        mean, deviation = 0.7, 0.2
        best = mean + z * deviation
        # Over the improvement, in units of its standard deviation, with what makes it small taken out.
        weight = quad(lambda t: t * math.exp(-t * t / 2 + z * t), 0, 40)[0] * deviation
        expected = math.log(weight) + norm.logpdf(z)
        at = torch.tensor([mean]).double(), torch.tensor([deviation**2]).double()
        found = log_expected_improvement(*at, best)
        assert found.item() == pytest.approx(expected, rel=1e-6)

    def test_has_a_slope_where_nothing_is_expected(self) -> None:
        mean = torch.tensor([5.0], dtype=torch.float64, requires_grad=True)
        log_expected_improvement(mean, torch.tensor([1e-4]).double(), 0.0).sum().backward()
        assert mean.grad is not None
        assert math.isfinite(mean.grad.item())
        assert mean.grad.item() < 0


class TestTerms:
    @staticmethod
    def regret(seed: int, *, detailed: bool) -> float:
        """After 25 points, of four terms that each depend on two of six axes, with noise."""
        rng = np.random.default_rng(seed)
        best = rng.random(4)
        subject = make(6, seed)

        def terms(x: Vector) -> Vector:
            return np.array([(x[k] - best[k]) ** 2 + 0.5 * x[k] * x[k + 2] for k in range(4)])

        lowest = math.inf
        for _ in range(25):
            x = subject.ask()
            told = terms(x) + 0.02 * rng.standard_normal(4)
            subject.tell(x, [float(told.sum())], Detail(tuple(told), 1.0) if detailed else None)
            lowest = min(lowest, float(terms(x).sum()))
        return lowest

    def test_find_more_than_their_sum(self) -> None:
        seeds = range(5)
        with_terms, without = (
            [self.regret(seed, detailed=detailed) for seed in seeds] for detailed in (True, False)
        )
        assert np.mean(with_terms) < np.mean(without)


class TestMean:
    def test_is_where_it_begins_until_there_is_a_model(self) -> None:
        subject = make(2)
        assert subject.mean() is not None
        for _ in range(9):
            x = subject.ask()
            subject.tell(x, [float(x.sum())])
        np.testing.assert_array_equal(subject.mean(), [0.5, 0.5])

    def test_is_better_than_the_luckiest_result(self) -> None:
        means, luckiest = [], []
        for seed in range(4):
            subject, rng, losses = make(4, seed), np.random.default_rng(seed), dict[tuple[float, ...], float]()
            for _ in range(20):
                x = subject.ask()
                losses[tuple(x)] = float(np.sum((x - 0.3) ** 2)) + 0.1 * rng.standard_normal()
                subject.tell(x, [losses[tuple(x)]])
            mean = subject.mean()
            assert mean is not None
            means.append(np.sum((mean - 0.3) ** 2))
            luckiest.append(np.sum((np.array(min(losses, key=lambda x: losses[x])) - 0.3) ** 2))
        assert np.mean(means) < 0.7 * np.mean(luckiest)

    def test_proposals_do_not_depend_on_whether_it_was_asked_for(self) -> None:
        one, other = make(2), make(2)
        for _ in range(14):
            x = one.ask()
            np.testing.assert_array_equal(x, other.ask())
            for subject in (one, other):
                subject.tell(x, [float(np.sum((x - 0.3) ** 2))])
            np.testing.assert_array_equal(other.mean(), other.mean())


def test_workers_get_different_points() -> None:
    subject = make(3)
    for x in drawn(12):
        subject.tell(x, [float(curve(x[None]).sum())])
    asked = [subject.ask() for _ in range(4)]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(asked) for b in asked[:i])


def test_proposals_stay_near_the_best_known() -> None:
    """Losses that hardly differ: all improvement is expected where nothing is known, in the corners."""
    subject, best = make(5), np.array([0.4, 0.6, 0.3, 0.7, 0.5])
    for x in drawn(12):
        subject.tell(np.array([*x, *x[:2]]), [1.0 + 1e-3 * float(x[0])])
    subject.tell(best, [0.0])
    _, *asked = [subject.ask() for _ in range(6)]
    farthest = np.abs(np.array(asked) - best).max()
    assert 0.1 < farthest <= 0.25 + 1e-9


@pytest.mark.parametrize("end", ["scored", "failed", "running"])
def test_what_was_proposed_is_not_proposed_again(end: str) -> None:
    """The least loss is in a corner, where a search would go on scoring nothing new."""
    subject, asked = make(2), []
    for i in range(40):
        x = subject.ask()
        asked.append(x)
        if end == "scored" or i < 12:
            subject.tell(x, [float(x.sum())])
        elif end == "failed":
            subject.tell(x, None)
    assert any(np.array_equal(x, [0.0, 0.0]) for x in asked) or end == "failed"
    assert all(np.abs(x - y).max() >= 1e-3 for i, x in enumerate(asked) for y in asked[:i])
    if end == "scored":
        assert np.array_equal(cast(BayesianOptimizer, subject).mean(), [0.0, 0.0])


def test_goes_on_where_everything_was_proposed() -> None:
    axes = [Axis(levels=2)] * 2
    subject = get_optimizer("gp")(
        axes=axes, objectives=1, initial=np.zeros(2), seed=0, sigma0=None, popsize=None, budget=25
    )
    asked = []
    for _ in range(15):
        asked.append(subject.ask())
        subject.tell(asked[-1], [float(asked[-1].sum())])
    assert len(np.unique(asked, axis=0)) == 4


def test_many_terms_are_added_up() -> None:
    """Sixty tasks take as long as eight, and the sum stays what it was."""
    subject = make(3)
    for x in drawn(15):
        told = np.repeat(curve(x[None]) / 30, 30)
        subject.tell(x, [float(told.sum())], Detail(tuple(told), 1.0))
    assert np.all((subject.ask() >= 0) & (subject.ask() <= 1))
    found = cast(BayesianOptimizer, subject)._model()
    assert len(found.values) == 8
    known = found.posterior(torch.from_numpy(drawn(15)))[0].numpy()
    assert known == pytest.approx(curve(drawn(15)).sum(1), abs=0.05)


def test_results_of_which_some_have_no_terms_are_totals() -> None:
    """A run that an earlier version began has totals only."""
    one, other = make(3), make(3)
    for i, x in enumerate(drawn(14)):
        told = curve(x[None])[0]
        one.tell(x, [float(told.sum())], Detail(tuple(told), 1.0) if i % 2 else None)
        other.tell(x, [float(told.sum())])
    assert one.ask() == pytest.approx(other.ask(), abs=1e-6)
