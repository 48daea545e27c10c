"""Conformance of every registered optimizer, and what CMA-ES alone promises."""

import importlib
from itertools import pairwise

import numpy as np
import pytest

from heterosis.errors import InputError
from heterosis.evolve import optimizers
from heterosis.evolve.optimizers import (
    Axis,
    Optimizer,
    Vector,
    choose_optimizer,
    get_optimizer,
    optimizer,
    optimizer_names,
)
from heterosis.evolve.optimizers.base import at_levels

NAMES = optimizer_names()
SPACES = {
    "one": (Axis(),),
    "five": (Axis(),) * 5,
    "mixed": (Axis(), Axis(2), Axis(), Axis(7), Axis(3, ordered=False)),
    "levels": (Axis(3), Axis(2, ordered=False)),
}


def make(name: str, axes: int | tuple[Axis, ...] = 3, seed: int = 1, popsize: int | None = None) -> Optimizer:
    axes = (Axis(),) * axes if isinstance(axes, int) else axes
    return get_optimizer(name)(
        axes=axes,
        objectives=1,
        initial=np.full(len(axes), 0.5),
        seed=seed,
        sigma0=None,
        popsize=popsize,
        budget=100,
    )


def sphere(x: Vector) -> list[float]:
    """Smallest, 0, near a corner of the cube."""
    return [float(np.sum((x - 0.85) ** 2))]


def first_asks(subject: Optimizer) -> bytes:
    return np.array([subject.ask() for _ in range(20)]).tobytes()


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


def test_auto_names_an_optimizer_that_takes_the_objectives() -> None:
    for objectives in (1, 2, 4):
        for axes in SPACES.values():
            name, why = choose_optimizer(axes, objectives, 100)
            assert name in optimizer_names(objectives)
            assert why


@pytest.mark.parametrize(
    ("levels", "ordered", "message"),
    [(1, True, "`levels >= 2` must hold, but got levels=1"), (None, False, "categories need levels")],
)
def test_an_axis_is_checked(levels: int | None, ordered: bool, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Axis(levels, ordered)


def test_levels_lie_in_the_middle_of_equal_parts() -> None:
    axes = (Axis(4), Axis(), Axis(3, ordered=False))
    np.testing.assert_array_equal(at_levels(np.array([0.49, 0.49, 1.5]), axes), [0.375, 0.49, 2.5 / 3])
    np.testing.assert_array_equal(at_levels(np.array([0.5, 2.0, -1.0]), axes), [0.625, 1.0, 0.5 / 3])
    for n in range(2, 50):
        levels = np.array([(k + 0.5) / n for k in range(n)])
        np.testing.assert_array_equal(at_levels(levels, (Axis(n),) * n), levels)


@pytest.mark.parametrize("axes", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("name", NAMES)
class TestConformance:
    def test_proposals_lie_in_the_cube(self, name: str, axes: tuple[Axis, ...]) -> None:
        for x in play(make(name, axes), rounds=80, workers=3):
            assert x.shape == (len(axes),)
            assert x.dtype == np.float64
            assert np.all((x >= 0) & (x <= 1))
            np.testing.assert_array_equal(x, at_levels(x, axes))

    def test_the_same_seed_and_order_give_the_same_proposals(self, name: str, axes: tuple[Axis, ...]) -> None:
        one, other = (play(make(name, axes), rounds=60, workers=3) for _ in range(2))
        np.testing.assert_array_equal(one, other)

    def test_every_seed_is_a_seed(self, name: str, axes: tuple[Axis, ...]) -> None:
        first = {seed: first_asks(make(name, axes, seed=seed)) for seed in (0, 1, 2**32)}
        assert len(set(first.values())) == 3
        assert first[0] == first_asks(make(name, axes, seed=0))

    def test_a_recorded_sequence_replays(self, name: str, axes: tuple[Axis, ...]) -> None:
        """As a resumed run does: values go through text, and the new optimizer answers with the same points."""
        subject, log = make(name, axes), []
        for step in range(50):
            x = subject.ask()
            log.append(("ask", [float(repr(float(u))) for u in x], None))
            if step % 3:
                losses = None if step % 7 == 0 else sphere(x)
                subject.tell(x, losses)
                log.append(("tell", log[-1][1], losses))
        again = make(name, axes)
        for action, point, losses in log:
            if action == "ask":
                assert again.ask().tolist() == point
            else:
                again.tell(np.array(point), losses)
        assert again.ask().tolist() == subject.ask().tolist()

    def test_numpys_global_random_state_is_left_alone(self, name: str, axes: tuple[Axis, ...]) -> None:
        np.random.seed(5)
        expected = np.random.random(40)
        np.random.seed(5)
        subject, proposals, drawn = make(name, axes), [], []
        for _ in range(40):
            drawn.append(np.random.random())
            proposals.append(subject.ask())
            subject.tell(proposals[-1], sphere(proposals[-1]))
        undisturbed = make(name, axes)
        for x in proposals:
            np.testing.assert_array_equal(undisturbed.ask(), x)
            undisturbed.tell(x, sphere(x))
        np.testing.assert_array_equal(drawn, expected)

    def test_survives_nothing_but_failures(self, name: str, axes: tuple[Axis, ...]) -> None:
        subject = make(name, axes)
        for _ in range(40):
            subject.tell(subject.ask(), None)
        assert np.all(np.isfinite(subject.ask()))

    def test_a_loss_that_is_not_finite_is_a_failure(self, name: str, axes: tuple[Axis, ...]) -> None:
        one, other = make(name, axes), make(name, axes)
        for index in range(40):
            x = one.ask()
            np.testing.assert_array_equal(other.ask(), x)
            one.tell(x, None if index % 4 else sphere(x))
            other.tell(x, [sphere(x), [float("nan")], [float("inf")], [-float("inf")]][index % 4])

    def test_survives_equal_losses(self, name: str, axes: tuple[Axis, ...]) -> None:
        subject = make(name, axes)
        for _ in range(80):
            subject.tell(subject.ask(), [0.25])
        assert np.all(np.isfinite(subject.ask()))

    def test_takes_points_that_it_did_not_propose(self, name: str, axes: tuple[Axis, ...]) -> None:
        subject = make(name, axes)
        for u in np.linspace(0, 1, 30):
            point = np.full(len(axes), u)
            subject.tell(point, sphere(point))
            assert np.all(point == u)
        assert np.all(np.isfinite(subject.ask()))

    def test_proposals_belong_to_the_caller(self, name: str, axes: tuple[Axis, ...]) -> None:
        careless, careful = make(name, axes), make(name, axes)
        for _ in range(60):
            x, y = careless.ask(), careful.ask()
            np.testing.assert_array_equal(x, y)
            careless.tell(x, [0.25])  # all equal, so that what restarts does so, around what it took for the best
            careful.tell(y.copy(), [0.25])
            x[:] = 0.0

    def test_the_mean_is_a_point_of_the_cube(self, name: str, axes: tuple[Axis, ...]) -> None:
        subject = make(name, axes)
        play(subject, rounds=30, workers=2)
        mean = subject.mean()
        if mean is not None:
            assert mean.shape == (len(axes),)
            assert np.all((mean >= 0) & (mean <= 1))
            np.testing.assert_array_equal(mean, at_levels(mean, axes))


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
        reached.append(sphere(mean)[0])
        control.append(min(map(sphere, play(make("random", dimensions, seed), 200, workers, seed)))[0])
    assert np.median(reached) < limit
    assert dimensions == 1 or np.median(reached) < np.median(control) / 3


def test_cma_finds_an_optimum_on_the_boundary() -> None:
    subject = make("cma", 3)
    for _ in range(250):
        x = subject.ask()
        subject.tell(x, [float(np.sum((x - np.array([0.0, 1.0, 0.5])) ** 2))])
    np.testing.assert_allclose(subject.mean(), [0.0, 1.0, 0.5], atol=0.02)


def test_cma_keeps_away_from_failures() -> None:
    """Half of the cube fails, and the losses there would be the best."""
    subject = make("cma", 2)
    for _ in range(200):
        x = subject.ask()
        subject.tell(x, None if x[0] > 0.5 else [float(1.0 - x[0])])
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
    subject = factory(
        axes=(Axis(), Axis()), objectives=1, initial=initial, seed=3, sigma0=0.01, popsize=None, budget=10
    )
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
        subject.tell(x, [0.0] if np.all(np.abs(x - 0.85) < 0.05) else [sphere(x)[0] + 0.1])
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
        subject.tell(x, [-1.0])  # noise has it that they are the best of all
    assert before is not None
    assert min(np.abs(x - before).max() for x in far) > 30 * spread
    assert np.abs(subject.mean() - before).max() < 10 * spread  # type: ignore[operator]
    assert np.std([subject.ask() for _ in range(100)], axis=0).max() < 10 * spread


def test_cma_is_not_imported_before_it_is_used() -> None:
    module = importlib.import_module("heterosis.evolve.optimizers.cma_es")
    assert not hasattr(module, "cma")
