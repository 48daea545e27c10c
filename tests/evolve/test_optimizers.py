"""Conformance of every registered optimizer, and what CMA-ES alone promises."""

import importlib
from itertools import pairwise

import numpy as np
import pytest

from heterosis.errors import InputError
from heterosis.evolve import optimizers
from heterosis.evolve.optimizers import Optimizer, Vector, get_optimizer, optimizer, optimizer_names

NAMES = optimizer_names()
DIMENSIONS = (1, 2, 5)


def make(name: str, dimensions: int = 3, seed: int = 1, popsize: int | None = None) -> Optimizer:
    return get_optimizer(name)(
        dimensions=dimensions,
        initial=np.full(dimensions, 0.5),
        seed=seed,
        sigma0=None,
        popsize=popsize,
        budget=100,
    )


def sphere(x: Vector) -> float:
    """Smallest, 0, near a corner of the cube."""
    return float(np.sum((x - 0.85) ** 2))


def play(subject: Optimizer, rounds: int, workers: int, seed: int = 7) -> list[Vector]:
    """Asks and tells as several unequal workers would: out of order, some late, some failed, some lost."""
    rng = np.random.default_rng(seed)
    asked: list[Vector] = []
    running: list[Vector] = []
    for _ in range(rounds):
        while len(running) < workers:
            running.append(subject.ask())
            asked.append(running[-1].copy())
        x = running.pop(int(rng.integers(len(running))))
        luck = rng.random()
        if luck > 0.1:
            subject.tell(x, sphere(x))
        elif luck > 0.05:
            subject.tell(x, None)
    return asked


def test_every_file_is_found() -> None:
    assert {"cma", "random"} <= set(NAMES)
    assert list(NAMES) == sorted(NAMES)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown optimizer 'cam'; did you mean 'cma'\?"):
        get_optimizer("cam")


def test_a_name_belongs_to_one_optimizer() -> None:
    with pytest.raises(
        ValueError, match=r"two optimizers are called 'random': one in .*random and one in .*random"
    ):
        optimizer("random")(get_optimizer("random"))
    assert optimizers.OPTIMIZERS.keys() == set(NAMES)


@pytest.mark.parametrize("dimensions", DIMENSIONS)
@pytest.mark.parametrize("name", NAMES)
class TestConformance:
    def test_proposals_lie_in_the_cube(self, name: str, dimensions: int) -> None:
        for x in play(make(name, dimensions), rounds=80, workers=3):
            assert x.shape == (dimensions,)
            assert x.dtype == np.float64
            assert np.all((x >= 0) & (x <= 1))

    def test_the_same_seed_and_order_give_the_same_proposals(self, name: str, dimensions: int) -> None:
        one, other = (play(make(name, dimensions), rounds=60, workers=3) for _ in range(2))
        np.testing.assert_array_equal(one, other)

    def test_every_seed_is_a_seed(self, name: str, dimensions: int) -> None:
        first = {seed: tuple(make(name, dimensions, seed=seed).ask()) for seed in (0, 1, 2**32)}
        assert len(set(first.values())) == 3
        assert first[0] == tuple(make(name, dimensions, seed=0).ask())

    def test_a_recorded_sequence_replays(self, name: str, dimensions: int) -> None:
        """As a resumed run does: values go through text, and the new optimizer answers with the same points."""
        subject, log = make(name, dimensions), []
        for step in range(50):
            x = subject.ask()
            log.append(("ask", [float(repr(float(u))) for u in x], None))
            if step % 3:
                loss = None if step % 7 == 0 else sphere(x)
                subject.tell(x, loss)
                log.append(("tell", log[-1][1], loss))
        again = make(name, dimensions)
        for action, point, loss in log:
            if action == "ask":
                assert again.ask().tolist() == point
            else:
                again.tell(np.array(point), loss)
        assert again.ask().tolist() == subject.ask().tolist()

    def test_numpys_global_random_state_is_left_alone(self, name: str, dimensions: int) -> None:
        np.random.seed(5)
        expected = np.random.random(40)
        np.random.seed(5)
        subject, proposals, drawn = make(name, dimensions), [], []
        for _ in range(40):
            drawn.append(np.random.random())
            proposals.append(subject.ask())
            subject.tell(proposals[-1], sphere(proposals[-1]))
        undisturbed = make(name, dimensions)
        for x in proposals:
            np.testing.assert_array_equal(undisturbed.ask(), x)
            undisturbed.tell(x, sphere(x))
        np.testing.assert_array_equal(drawn, expected)

    def test_survives_nothing_but_failures(self, name: str, dimensions: int) -> None:
        subject = make(name, dimensions)
        for _ in range(40):
            subject.tell(subject.ask(), None)
        assert np.all(np.isfinite(subject.ask()))

    def test_a_loss_that_is_not_finite_is_a_failure(self, name: str, dimensions: int) -> None:
        one, other = make(name, dimensions), make(name, dimensions)
        for index in range(40):
            x = one.ask()
            np.testing.assert_array_equal(other.ask(), x)
            loss = None if index % 4 else sphere(x)
            one.tell(x, loss)
            other.tell(x, [loss, float("nan"), float("inf"), -float("inf")][index % 4])

    def test_survives_equal_losses(self, name: str, dimensions: int) -> None:
        subject = make(name, dimensions)
        for _ in range(80):
            subject.tell(subject.ask(), 0.25)
        assert np.all(np.isfinite(subject.ask()))

    def test_takes_points_that_it_did_not_propose(self, name: str, dimensions: int) -> None:
        subject = make(name, dimensions)
        for u in np.linspace(0, 1, 30):
            point = np.full(dimensions, u)
            subject.tell(point, sphere(point))
            assert np.all(point == u)
        assert np.all(np.isfinite(subject.ask()))

    def test_proposals_belong_to_the_caller(self, name: str, dimensions: int) -> None:
        careless, careful = make(name, dimensions), make(name, dimensions)
        for _ in range(60):
            x, y = careless.ask(), careful.ask()
            np.testing.assert_array_equal(x, y)
            careless.tell(x, 0.25)  # all equal, so that what restarts does so, around what it took for the best
            careful.tell(y.copy(), 0.25)
            x[:] = 0.0

    def test_the_mean_is_a_point_of_the_cube(self, name: str, dimensions: int) -> None:
        subject = make(name, dimensions)
        play(subject, rounds=30, workers=2)
        mean = subject.mean()
        if mean is not None:
            assert mean.shape == (dimensions,)
            assert np.all((mean >= 0) & (mean <= 1))


@pytest.mark.parametrize(("dimensions", "limit"), [(1, 1e-3), (4, 1e-2)])
@pytest.mark.parametrize("workers", [1, 6])
def test_cma_approaches_the_best_point_despite_late_and_failed_trials(
    dimensions: int, limit: float, workers: int
) -> None:
    reached, control = [], []
    for seed in range(7):
        subject = make("cma", dimensions, seed)
        play(subject, rounds=200, workers=workers, seed=seed)
        mean = subject.mean()
        assert mean is not None
        reached.append(sphere(mean))
        control.append(min(map(sphere, play(make("random", dimensions, seed), 200, workers, seed))))
    assert np.median(reached) < limit
    assert dimensions == 1 or np.median(reached) < np.median(control) / 3


def test_cma_finds_an_optimum_on_the_boundary() -> None:
    subject = make("cma", 3)
    for _ in range(250):
        x = subject.ask()
        subject.tell(x, float(np.sum((x - np.array([0.0, 1.0, 0.5])) ** 2)))
    np.testing.assert_allclose(subject.mean(), [0.0, 1.0, 0.5], atol=0.02)


def test_cma_keeps_away_from_failures() -> None:
    """Half of the cube fails, and the losses there would be the best."""
    subject = make("cma", 2)
    for _ in range(200):
        x = subject.ask()
        subject.tell(x, None if x[0] > 0.5 else float(1.0 - x[0]))
    mean = subject.mean()
    assert mean is not None
    assert 0.35 < mean[0] <= 0.5


def test_cma_stays_where_it_is_as_long_as_everything_fails() -> None:
    subject = make("cma", 3, popsize=5)
    for _ in range(50):
        subject.tell(subject.ask(), None)
    np.testing.assert_allclose(subject.mean(), 0.5)
    for _ in range(5):
        x = subject.ask()
        subject.tell(x, sphere(x))
    assert not np.allclose(subject.mean(), 0.5)  # type: ignore[arg-type]


def test_cma_starts_at_the_initial_point_with_the_given_spread() -> None:
    factory = get_optimizer("cma")
    initial = np.array([0.3, 0.6])
    subject = factory(dimensions=2, initial=initial, seed=3, sigma0=0.01, popsize=None, budget=10)
    np.testing.assert_allclose(subject.mean(), initial)
    points = np.array([subject.ask() for _ in range(400)])
    np.testing.assert_allclose(points.mean(axis=0), initial, atol=0.002)
    np.testing.assert_allclose(points.std(axis=0), 0.01, rtol=0.15)


def test_cma_updates_after_every_popsize_results_whichever_they_are() -> None:
    subject = make("cma", 3, popsize=5)
    waiting = [subject.ask() for _ in range(12)]
    means = []
    for x in waiting:
        subject.tell(x, sphere(x))
        means.append(subject.mean())
    moved = [not np.array_equal(a, b) for a, b in pairwise(means)]
    assert moved == [index + 2 in (5, 10) for index in range(11)]


def test_cma_restarts_around_the_best_when_there_is_nothing_left_to_gain() -> None:
    """Converged to a plateau, it would propose the same point over and over."""
    subject = make("cma", 2, popsize=4)
    points = []
    for _ in range(400):
        x = subject.ask()
        subject.tell(x, 0.0 if np.all(np.abs(x - 0.85) < 0.05) else sphere(x) + 0.1)
        points.append(x)
    assert np.std(points[:100], axis=0).min() > 0.05
    assert np.std(points[200:], axis=0).min() > 0.05
    np.testing.assert_allclose(subject.mean(), 0.85, atol=0.1)


def test_cma_is_not_thrown_off_by_late_results_from_a_wider_distribution() -> None:
    subject = make("cma", 2, popsize=6)
    waiting = [subject.ask() for _ in range(20)]
    for _ in range(132):
        x = subject.ask()
        subject.tell(x, sphere(x))
    before = subject.mean()
    spread = np.std([subject.ask() for _ in range(20)], axis=0).max()
    far = sorted(waiting, key=sphere)[-6:]
    for x in far:
        subject.tell(x, -1.0)  # noise has it that they are the best of all
    assert before is not None
    assert min(np.abs(x - before).max() for x in far) > 30 * spread
    assert np.abs(subject.mean() - before).max() < 10 * spread  # type: ignore[operator]
    assert np.std([subject.ask() for _ in range(100)], axis=0).max() < 10 * spread


def test_cma_is_not_imported_before_it_is_used() -> None:
    module = importlib.import_module("heterosis.evolve.optimizers.cma_es")
    assert not hasattr(module, "cma")
