"""Optimizers that are samplers of Optuna: a study in memory that is asked and told.

A sampler of Optuna sees a list of trials, finished, failed or running. This file keeps that list for one search
and translates between its parameters and points of the unit cube. Everything else is the sampler's.
"""

import logging
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from heterosis.evolve.logs import optuna_quietly
from heterosis.evolve.optimizers.base import Axis, Detail, Vector, at_levels, finite
from heterosis.evolve.optimizers.startup import STARTUP, losses_of_failure

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler


class SamplerOptimizer:
    """Proposes what a sampler of Optuna suggests, and ``initial`` first.

    A point that nobody asked for enters as a finished trial. The samplers ignore failed trials, which would
    have them fail at the same place again; so a failed one gets losses that are worse than all known ones. Where
    none is known yet it stays a running trial, which the samplers keep away from, until one is.

    Args:
        make_sampler: Called once, without warnings about experimental parts.
        axes: Of the cube.
        objectives: How many losses each result has.
        initial: The first proposal, unless its losses are known before.
        nearby: Proposed after it, instead of the sampler's own points, until ten results are known.
    """

    def __init__(
        self,
        make_sampler: "Callable[[], BaseSampler]",
        axes: Sequence[Axis],
        objectives: int,
        initial: Vector,
        nearby: Iterator[Vector] | None = None,
    ) -> None:
        import optuna

        self._axes = tuple(axes)
        self._distributions = {f"x{i:04}": _distribution(axis) for i, axis in enumerate(self._axes)}
        with _quietly():
            self._sampler = make_sampler()
            self._study = optuna.create_study(directions=["minimize"] * objectives, sampler=self._sampler)
        self._first: Vector | None = at_levels(initial, self._axes)
        self._nearby, self._results = nearby, 0
        self._running: defaultdict[bytes, deque[int]] = defaultdict(deque)  # numbers of the trials at a point
        self._failed: list[int] = []  # trials that failed before any losses were known
        self._best, self._worst = np.full((2, objectives), np.inf) * [[1.0], [-1.0]]

    def ask(self) -> Vector:
        if self._first is not None:
            self._study.enqueue_trial(self._params(self._first))
            self._first = None
        elif self._nearby and self._results < STARTUP:
            self._study.enqueue_trial(self._params(next(self._nearby)))
        with _quietly():
            trial = self._study.ask(self._distributions)
        x = self._point(trial.params)
        self._running[x.tobytes()].append(trial.number)
        return x

    def tell(self, x: Vector, losses: Sequence[float] | None, detail: Detail | None = None) -> None:
        x = np.array(x, dtype=np.float64)
        running = self._running.get(x.tobytes())
        trial = running.popleft() if running else self._added(x)
        known = finite(losses)
        if known is None:
            self._failed.append(trial)
        else:
            self._best, self._worst = np.minimum(self._best, known), np.maximum(self._worst, known)
            self._study.tell(trial, known)
            self._results += 1
        if np.all(np.isfinite(self._worst)):
            failed, self._failed = self._failed, []
            for number in failed:
                self._study.tell(number, losses_of_failure(self._best, self._worst).tolist())

    def mean(self) -> Vector | None:
        return None

    def _added(self, x: Vector) -> int:
        """The number of a new running trial at a point that the sampler did not propose."""
        import optuna

        if self._first is not None and np.array_equal(x, self._first):
            self._first = None
        self._study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState.RUNNING, params=self._params(x), distributions=self._distributions
            )
        )
        trial = self._study.get_trials(deepcopy=False)[-1]
        if isinstance(self._sampler, optuna.samplers.BaseGASampler):
            self._sampler.get_trial_generation(self._study, trial)  # makes it a member of the current generation
        return int(trial.number)

    def _params(self, x: Vector) -> dict[str, float]:
        return {
            name: float(u) if axis.levels is None else axis.level(u)
            for name, axis, u in zip(self._distributions, self._axes, x, strict=True)
        }

    def _point(self, params: dict[str, Any]) -> Vector:
        values = (
            params[name] if axis.levels is None else (params[name] + 0.5) / axis.levels
            for name, axis in zip(self._distributions, self._axes, strict=True)
        )
        return np.fromiter(values, dtype=np.float64, count=len(self._axes))


def _distribution(axis: Axis) -> "BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if axis.levels is None:
        return FloatDistribution(0.0, 1.0)
    return IntDistribution(0, axis.levels - 1) if axis.ordered else CategoricalDistribution(range(axis.levels))


@contextmanager
def _quietly() -> Iterator[None]:
    """Without Optuna's messages, and without its warnings of what it calls experimental."""
    from optuna.exceptions import ExperimentalWarning

    with optuna_quietly(logging.ERROR), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        yield
