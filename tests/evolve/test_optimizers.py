"""Conformance of every registered optimizer, and what single ones promise."""

import importlib
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

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
    recommends_a_point,
)
from heterosis.evolve.optimizers.base import at_levels
from heterosis.evolve.optimizers.generations import Generations

NAMES = optimizer_names()
CONTROLS = {"random", "sobol"}  # these learn nothing
SPACES = {
    "one": (Axis(),),
    "five": (Axis(),) * 5,
    "mixed": (Axis(), Axis(2), Axis(), Axis(7), Axis(3, ordered=False)),
    "levels": (Axis(3), Axis(2, ordered=False)),
}
STEPS = {"gp": 13}  # of most tests; others take 45. A proposal of the model costs it a tenth of a second or more.
ALL = [(name, space) for name in NAMES for space in SPACES if name not in STEPS or space in ("one", "mixed")]
Event = tuple[str, list[float], list[float] | None]  # "ask" or "tell", a point, its losses


def make(
    name: str,
    axes: int | tuple[Axis, ...] = 3,
    seed: int = 1,
    popsize: int | None = None,
    objectives: int = 1,
    initial: float = 0.5,
    others: Sequence[Vector] = (),
) -> Optimizer:
    axes = (Axis(),) * axes if isinstance(axes, int) else axes
    return get_optimizer(name)(
        axes=axes,
        objectives=objectives,
        initial=np.full(len(axes), initial),
        seed=seed,
        sigma0=None,
        popsize=popsize,
        budget=100,
        others=others,
    )


def sphere(x: Vector) -> list[float]:
    """Smallest, 0, near a corner of the cube."""
    return [float(np.sum((x - 0.85) ** 2))]


def play(subject: Optimizer, rounds: int, workers: int, seed: int = 7) -> list[Event]:
    """Asks and tells as unequal workers would: out of order, some late, some failed, some lost, some by others."""
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    running: list[Vector] = []
    for _ in range(rounds):
        while len(running) < workers:
            running.append(subject.ask())
            events.append(("ask", running[-1].tolist(), None))
        x = running.pop(int(rng.integers(len(running))))
        luck = rng.random()
        if luck < 0.05:
            continue  # lost
        if luck < 0.1:
            x = at_levels(rng.random(x.size), (Axis(42),) * x.size)  # known from elsewhere
        losses = None if 0.1 < luck < 0.2 else [float("nan")] if 0.2 < luck < 0.25 else sphere(x)
        subject.tell(x, losses)
        events.append(("tell", x.tolist(), losses))
    return events


def asked(events: list[Event]) -> list[Vector]:
    return [np.array(point) for kind, point, _ in events if kind == "ask"]


@cache
def played(name: str, space: str) -> list[Event]:
    """One such history for each optimizer and space, which several tests look at."""
    return play(make(name, SPACES[space]), STEPS.get(name, 45), workers=3)


def steps(name: str) -> range:
    return range(STEPS.get(name, 45))


def test_every_file_is_found() -> None:
    assert set(NAMES) == {"cma", "cmawm", "gp", "nsga2", "nsga3", "random", "sobol", "tpe"}
    assert list(NAMES) == sorted(NAMES)


def test_some_take_several_objectives() -> None:
    assert set(optimizer_names(2)) == set(NAMES) - {"cma", "cmawm"}


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


@pytest.mark.parametrize(("name", "space"), ALL)
class TestConformance:
    def test_proposals_lie_in_the_cube_and_at_levels(self, name: str, space: str) -> None:
        for x in asked(played(name, space)):
            assert x.shape == (len(SPACES[space]),)
            assert x.dtype == np.float64
            assert np.all((x >= 0) & (x <= 1))
            np.testing.assert_array_equal(x, at_levels(x, SPACES[space]))

    def test_a_record_replays(self, name: str, space: str) -> None:
        """As in a resumed run: values go through text. What is given and taken belongs to the caller."""
        subject = make(name, SPACES[space])
        for kind, point, losses in json.loads(json.dumps(played(name, space))):
            x = np.array(point)
            if kind == "ask":
                proposal = subject.ask()
                np.testing.assert_array_equal(proposal, x)
                proposal[:] = 0.0
            else:
                subject.tell(x, losses)
                np.testing.assert_array_equal(x, point)
                x[:] = 0.0

    def test_global_random_states_are_neither_used_nor_changed(self, name: str, space: str) -> None:
        def states() -> list[Any]:
            return [np.random.get_state()[1].tobytes(), random.getstate(), torch.get_rng_state().tolist()]  # type: ignore[index,union-attr]

        np.random.seed(5)
        random.seed(5)
        torch.manual_seed(5)
        before = states()
        subject, proposals = make(name, SPACES[space]), []
        for index in steps(name):
            proposals.append(subject.ask())
            subject.tell(proposals[-1], [np.cos(index)])
        assert states() == before
        again = make(name, SPACES[space])
        for index, x in enumerate(proposals):
            np.random.seed(index)
            random.seed(index)
            torch.manual_seed(index)
            np.testing.assert_array_equal(again.ask(), x)
            again.tell(x, [np.cos(index)])

    def test_every_seed_is_a_seed(self, name: str, space: str) -> None:
        def first_asks(seed: int) -> list[Any]:
            subject = make(name, SPACES[space], seed)
            return [subject.ask().tolist() for _ in range(20)]

        assert len({str(first_asks(seed)) for seed in (0, 1, 2**32)}) == 3
        assert first_asks(0) == first_asks(0)

    def test_survives_nothing_but_failures(self, name: str, space: str) -> None:
        subject = make(name, SPACES[space])
        for _ in steps(name):
            subject.tell(subject.ask(), None)
        assert np.all(np.isfinite(subject.ask()))
        for _ in range(4):
            x = subject.ask()
            subject.tell(x, sphere(x))

    def test_a_loss_that_is_not_finite_is_a_failure(self, name: str, space: str) -> None:
        one, other = make(name, SPACES[space]), make(name, SPACES[space])
        for index in steps(name):
            x = one.ask()
            np.testing.assert_array_equal(other.ask(), x)
            failed = index % 3 == 0
            one.tell(x, None if failed else sphere(x))
            other.tell(x, [float("nan inf -inf".split()[index // 3 % 3])] if failed else sphere(x))

    def test_survives_equal_losses(self, name: str, space: str) -> None:
        subject = make(name, SPACES[space])
        for _ in range(STEPS.get(name, 80)):
            subject.tell(subject.ask(), [0.25])
        assert np.all(np.isfinite(subject.ask()))

    def test_takes_points_that_it_did_not_propose(self, name: str, space: str) -> None:
        subject = make(name, SPACES[space])
        for u in np.linspace(0, 1, 30):
            point = at_levels(np.full(len(SPACES[space]), u), SPACES[space])
            subject.tell(point, sphere(point) if u < 0.9 else None)
        assert np.all(np.isfinite(subject.ask()))

    def test_the_mean_is_a_point_of_the_cube(self, name: str, space: str) -> None:
        subject = make(name, SPACES[space])
        play(subject, rounds=STEPS.get(name, 30), workers=2)
        mean = subject.mean()
        assert (mean is not None) == recommends_a_point(name, 1)
        if mean is not None:
            assert mean.shape == (len(SPACES[space]),)
            assert np.all((mean >= 0) & (mean <= 1))
            np.testing.assert_array_equal(mean, at_levels(mean, SPACES[space]))


@pytest.mark.parametrize("name", optimizer_names(objectives=2))
def test_of_several_objectives_there_is_no_mean(name: str) -> None:
    assert make(name, objectives=2).mean() is None
    assert not recommends_a_point(name, 2)


HISTORIES = """
import hashlib, json, sys
sys.path.insert(0, sys.argv[1])
from test_optimizers import NAMES, played
print({name: hashlib.sha256(json.dumps(played(name, "mixed")).encode()).hexdigest() for name in NAMES})
"""


def test_proposals_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    digests = set()
    for hash_seed in ("1", "2"):
        result = subprocess.run(
            [sys.executable, "-c", HISTORIES, str(Path(__file__).parent)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stderr == "", "nothing may be written"
        digests.add(result.stdout)
    assert len(digests) == 1
    assert digests.pop().count(",") == len(NAMES) - 1


@pytest.mark.parametrize("name", sorted(set(NAMES) - CONTROLS))
def test_those_that_learn_beat_random(name: str) -> None:
    trials = 30 if name in STEPS else 80

    def best(name: str, seed: int) -> float:
        subject, losses = make(name, 3, seed, popsize=8), []
        for _ in range(trials):
            x = subject.ask()
            losses.append(sphere(x)[0])
            subject.tell(x, losses[-1:])
        return min(losses)

    assert np.median([best(name, s) for s in range(1 if name in STEPS else 3)]) < 0.6 * np.median(
        [best("random", s) for s in range(9)]
    )


def dominated_area(name: str, trials: int, seed: int) -> float:
    """How much of the square below (1, 1) is worse than a point found; each loss is the distance to a corner."""
    subject = make(name, 3, seed, popsize=8, objectives=2)
    corners = np.array([[0.1, 0.1, 0.9], [0.9, 0.1, 0.1]])
    found = []
    for _ in range(trials):
        x = subject.ask()
        found.append(np.sum((x - corners) ** 2, axis=1))
        subject.tell(x, found[-1].tolist())
    grid = np.stack(np.meshgrid(*[np.linspace(0, 1, 50)] * 2), axis=-1)
    return float(np.mean(np.any([np.all(grid >= losses, axis=-1) for losses in found], axis=0)))


@pytest.mark.parametrize("name", sorted(set(optimizer_names(2)) - CONTROLS))
def test_those_for_several_objectives_find_a_spread_front(name: str) -> None:
    trials = 18 if name in STEPS else 100
    mine = np.median([dominated_area(name, trials, s) for s in range(1 if name in STEPS else 3)])
    control = np.median([dominated_area("random", trials, s) for s in range(9)])
    assert mine > control + 0.02


@pytest.mark.parametrize("name", sorted(set(optimizer_names(2)) - CONTROLS))
def test_fails_with_several_objectives_too(name: str) -> None:
    subject = make(name, SPACES["mixed"], popsize=4, objectives=3)
    for index in range(STEPS.get(name, 30)):
        x = subject.ask()
        subject.tell(x, [None, [1.0, float("nan"), 2.0], [float(u) for u in x[:3]]][min(index % 5, 2)])


SAMPLERS = ("gp", "nsga2", "nsga3", "tpe")


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_begin_with_the_initial_point_unless_it_is_known(name: str) -> None:
    assert make(name).ask().tolist() == [0.5, 0.5, 0.5]
    informed = make(name)
    informed.tell(np.full(3, 0.5), [0.1])
    assert informed.ask().tolist() != [0.5, 0.5, 0.5]


@pytest.mark.parametrize("start", [0.5, 0.02])
def test_a_gaussian_process_begins_with_a_latin_hypercube_around_its_start(start: float) -> None:
    subject = make("gp", 12, initial=start)
    first, *around = [subject.ask() for _ in range(11)]
    assert first.tolist() == [start] * 12
    reach = math.sqrt(3) * 0.2
    low, high = max(0.0, start - reach), start + reach  # the box ends where the cube does
    tenths = np.sort(np.floor((np.array(around) - low) / (high - low) * 10), axis=0)
    np.testing.assert_array_equal(tenths, np.tile(np.arange(10.0)[:, None], 12))


def test_a_gaussian_process_begins_around_other_known_points_too() -> None:
    """By turns, so that one that lies in a worse valley does not lead the whole search there."""
    starts = [0.2, 0.8]
    subject = make("gp", 12, initial=starts[0], others=[np.full(12, starts[1])])
    _, *around = [subject.ask() for _ in range(11)]
    means = np.mean(around, axis=1)
    assert np.all(np.abs(means - np.tile(starts, 5)) < 0.25)
    assert len({x.tobytes() for x in around}) == 10


@pytest.mark.parametrize("name", ["cmawm", *SAMPLERS])
def test_all_that_learn_keep_away_from_failures(name: str) -> None:
    """Half of the cube fails, and the losses there would be the best."""
    subject, failed = make(name, 2, popsize=8), []
    for _ in range(30 if name in STEPS else 80):
        x = subject.ask()
        failed.append(x[0] > 0.6)
        subject.tell(x, None if failed[-1] else [float(0.7 - x[0] + (x[1] - 0.5) ** 2)])
    assert any(failed[:20])
    assert np.mean(failed[-15:]) < 0.4


def test_cma_with_margin_finds_the_best_levels() -> None:
    axes = (Axis(), Axis(), *(Axis(2),) * 4, Axis(5))
    best = at_levels(np.array([0.3, 0.7, 0.0, 1.0, 1.0, 0.0, 0.9]), axes)
    subject = make("cmawm", axes)
    for _ in range(300):
        x = subject.ask()
        subject.tell(x, [float(np.sum((x - best) ** 2))])
    mean = subject.mean()
    assert mean is not None
    assert mean[2:].tolist() == best[2:].tolist()
    np.testing.assert_allclose(mean[:2], best[:2], atol=0.05)


def test_cma_with_margin_is_moved_only_by_what_it_sampled_lately() -> None:
    subject = make("cmawm", 3, popsize=5)
    late = [subject.ask() for _ in range(10)]
    for _ in range(60):
        x = subject.ask()
        subject.tell(x, sphere(x))
    before = subject.mean()
    for x in [*late, *np.random.default_rng(0).random((10, 3))]:
        subject.tell(x, [-1.0])
    np.testing.assert_array_equal(subject.mean(), before)


class TestGenerations:
    def test_begin_off_the_faces(self) -> None:
        """Which would cut a distribution in half; an axis with levels has no such places."""
        subject = Generations((Axis(), Axis(), Axis(5)), np.array([0.0, 0.95, 0.9]), popsize=2)
        np.testing.assert_allclose(subject.centre, [0.1, 0.9, 0.9])
        x = subject.propose(np.array([0.0, 0.95, 0.9]), np.array([0.0, 0.95, 0.9]))
        subject.tell(x, [1.0])
        np.testing.assert_allclose(subject.centre, [0.0, 0.95, 0.9])

    def test_are_whole_with_failures_behind_all_results_so_far(self) -> None:
        subject = Generations((Axis(2), Axis()), np.array([0.25, 0.5]), popsize=2)
        sample = np.array([0.3, 0.4])
        x = subject.propose(sample, sample)
        assert x.tolist() == [0.25, 0.4]
        elsewhere = np.array([0.75, 0.1])
        assert subject.tell(elsewhere, [2.0]) == []
        (one, loss), (other, worse) = subject.tell(x, None)
        np.testing.assert_array_equal([one, other], [elsewhere, sample])
        assert loss == 2.0 < worse
        np.testing.assert_array_equal(subject.centre, elsewhere)
        assert subject.tell(x, None) == subject.tell(x, None) == [], "nothing ranks failures only"

    def test_double_with_restarts_three_times(self) -> None:
        subject = Generations((Axis(),) * 5, np.full(5, 0.5), popsize=None)
        sizes = [subject.popsize]
        for _ in range(5):
            subject.restart()
            sizes.append(subject.popsize)
        assert sizes == [8, 16, 32, 64, 64, 64]

    def test_leave_out_what_is_too_old(self) -> None:
        subject = Generations((Axis(), Axis()), np.full(2, 0.5), popsize=1, max_age=2)
        x, before, after = np.full(2, 0.7), np.full(2, 0.1), np.full(2, 0.2)
        for _ in range(4):
            subject.propose(x, x)
        counted = [len(subject.tell(x, [1.0])) for _ in range(4)]
        assert counted == [1, 1, 1, 0]
        assert subject.tell(x, [1.0]) == [], "not sampled any more"
        subject.propose(x, before)
        subject.restart()
        subject.propose(x, after)
        subject.propose(x, after)
        generations = [subject.tell(x, [1.0]) for _ in range(3)]
        assert [len(own) for own in generations] == [0, 0, 2]
        assert all(sample is after for sample, _ in generations[-1])

    def test_pad_a_single_axis(self) -> None:
        subject = Generations((Axis(4),), np.array([0.4]), popsize=1)
        assert subject.axes == (Axis(4), Axis())
        assert subject.centre.tolist() == [0.4, 0.5]
        assert subject.propose(np.array([0.3, 0.9]), np.array([0.3, 0.9])).tolist() == [0.375]
        ((sample, _),) = subject.tell(np.array([0.375]), [0.0])
        assert sample.tolist() == [0.3, 0.9]
        ((sample, _),) = subject.tell(np.array([0.625]), [0.0])
        assert sample.tolist() == [0.625, 0.5]


@pytest.mark.parametrize(
    ("axes", "objectives", "budget", "expected"),
    [
        ((Axis(),) * 30, 1, 100, "cma"),
        ((Axis(),) * 4, 1, 5000, "cma"),
        ((Axis(),) * 4, 1, 50, "gp"),
        ((Axis(), Axis(2)), 1, 50, "cmawm"),
        ((Axis(), Axis(3, ordered=False)), 1, 500, "cmawm"),
        ((Axis(), Axis(2)), 2, 100, "nsga2"),
        ((Axis(),) * 4, 3, 100, "nsga2"),
        ((Axis(),) * 4, 4, 100, "nsga3"),
    ],
)
def test_auto_chooses_by_space_objectives_and_budget(
    axes: tuple[Axis, ...], objectives: int, budget: int, expected: str
) -> None:
    assert choose_optimizer(axes, objectives, budget)[0] == expected


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
        events = play(make("random", dimensions, seed), 200, workers, seed)
        control.append(min(map(sphere, asked(events)))[0])
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
