"""CMA-ES, asynchronous: a normal distribution that moves to where the better points lie.

The algorithm is Hansen's, in his own implementation (``cma``); see https://arxiv.org/abs/1604.00772.
This file makes it asynchronous, restarts it where it has converged, and keeps it apart from numpy's global
random state.

Differs from the paper: generations are counted in results, not in proposals. Every ask is a fresh sample of the
current distribution, and every ``popsize`` results update it, whichever generation they were sampled
from, so that no worker waits for the slowest candidate of a population. A late result is pulled into
the ellipsoid where the present distribution samples, as in https://arxiv.org/abs/1110.4181, so that a point
from an older, wider distribution cannot blow up the step size.
"""

import math
import warnings
from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from heterosis.evolve.optimizers.base import SIGMA0, Axis, Detail, Vector, at_levels, finite, optimizer

MAX_POPULATION_GROWTH = 8  # three doublings; more would leave a small budget without any update


@optimizer("cma")
class CmaEs:
    """CMA-ES on the unit cube.

    A failed trial ranks below every result so far. When the distribution has converged (all losses
    equal, no more progress), it starts again around the best point with twice the population. Axes with
    levels are sampled as all others and rounded when asked; a result moves the point that was sampled.

    Args:
        axes: Of the cube. A single one is padded by a second that changes nothing, since a covariance
            matrix needs two.
        objectives: One.
        initial: First mean.
        seed: Of this optimizer's own random stream.
        sigma0: First standard deviation, 0.2 by default.
        popsize: Results per update, at least 4; 4 + 3 ln(dimensions) by default.
        budget: Not used, so that a run can be extended.
    """

    def __init__(
        self,
        *,
        axes: Sequence[Axis],
        objectives: int,
        initial: Vector,
        seed: int,
        sigma0: float | None = None,
        popsize: int | None = None,
        budget: int = 0,
    ) -> None:
        self._axes = tuple(axes)
        self._dimensions = len(self._axes)
        self._rng = np.random.default_rng(seed)
        self._sigma0 = SIGMA0 if sigma0 is None else sigma0
        # The paper's 4 + 3 ln n, with n = 2 for the padded case.
        self._first_popsize = popsize or 4 + int(3 * math.log(max(self._dimensions, 2)))
        self._popsize = self._first_popsize
        self._best = np.clip(np.asarray(initial, dtype=np.float64), 0.0, 1.0)
        self._best_loss = math.inf
        self._worst_loss = -math.inf
        # Proposals without a result, and what cma sampled for them: several, where rounding makes them equal.
        self._asked: defaultdict[bytes, deque[Vector]] = defaultdict(deque)
        self._results: list[tuple[Vector, float | None]] = []
        self._start()

    def ask(self) -> Vector:
        self._sampled = True
        sample: Vector = self._es.ask(1)[0]
        x = at_levels(sample[: self._dimensions], self._axes)
        self._asked[x.tobytes()].append(sample)
        return x

    def tell(self, x: Vector, losses: Sequence[float] | None, detail: Detail | None = None) -> None:
        x = np.array(x, dtype=np.float64)
        known = finite(losses)
        loss = None if known is None else known[0]
        samples = self._asked.get(x.tobytes())
        sample = samples.popleft() if samples else self._padded(x)
        if loss is not None:
            self._worst_loss = max(self._worst_loss, loss)
            if loss < self._best_loss:
                self._best, self._best_loss = x, loss
        self._results.append((sample, loss))
        if len(self._results) >= self._popsize:
            self._update()

    def mean(self) -> Vector | None:
        return at_levels(self._es.result.xfavorite[: self._dimensions], self._axes)

    def _update(self) -> None:
        """Moves the distribution by one population of results."""
        results, self._results = self._results, []
        if all(loss is None for _, loss in results):
            return  # nothing to rank: a step would be a random one
        if not self._sampled:
            self._es.ask(1)  # cma takes results only after it was asked since its last update
        failed = self._worst_loss + 1.0
        # Points that are late, or that cma did not propose, it pulls closer by itself.
        self._es.tell([x for x, _ in results], [failed if loss is None else loss for _, loss in results])
        self._sampled = False
        if self._es.stop():
            self._popsize = min(2 * self._popsize, MAX_POPULATION_GROWTH * self._first_popsize)
            self._start()

    def _start(self) -> None:
        """Begins with a fresh distribution around the best point so far."""
        with warnings.catch_warnings():  # cma warns at its first import that it cannot plot without matplotlib
            warnings.simplefilter("ignore", UserWarning)
            import cma

        options: dict[str, Any] = {
            "bounds": [0.0, 1.0],
            "popsize": self._popsize,
            "CMA_mirrors": 0,  # mirrored samples belong to cma's own evaluation loop
            "randn": lambda *shape: self._rng.standard_normal(shape),
            "seed": math.nan,  # leaves numpy's global random state alone
            "verbose": -10,  # no output, no log files, and no options read from a file in the current folder
        }
        self._es = cma.CMAEvolutionStrategy(self._padded(self._best), self._sigma0, options)
        self._sampled = False

    def _padded(self, x: Vector) -> Vector:
        """``x`` as cma sees it, with at least two dimensions."""
        return np.append(x, 0.5) if self._dimensions == 1 else x.copy()
