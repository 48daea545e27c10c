"""CMA-ES with margin: CMA-ES for cubes with levels, asynchronous as cma_es.py is.

The algorithm is that of https://arxiv.org/abs/2205.13482, in the implementation of ``cmaes``: the
distribution keeps a least probability of leaving the level where its mean lies, so that no axis with levels gets
stuck. Categories are levels in the order in which they come.

Differs from the paper: generations are counted in results, as in cma_es.py. Results of points that this
distribution did not sample lately move only the centre of the next restart: ``cmaes`` cannot pull them closer.
"""

import math
from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np

from heterosis.evolve.optimizers.base import SIGMA0, Axis, Detail, Vector, at_levels, finite, optimizer

MAX_POPULATION_GROWTH = 8  # as in cma_es.py
MAX_AGE = 5  # updates since a point was sampled


@optimizer("cmawm")
class CmaEsWithMargin:
    """CMA-ES with margin on the unit cube.

    A failed trial ranks below every result so far. When the distribution has converged, it starts again around
    the best point with twice the population.

    Args:
        axes: Of the cube. A single one is padded by a second that changes nothing, since a covariance
            matrix needs two.
        objectives: One.
        initial: First mean.
        seed: Of this optimizer's own random stream.
        sigma0: First standard deviation, 0.2 by default.
        popsize: Results per update, at least 4; 4 + 3 ln(d) by default.
        budget: Not used.
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
        self._padded = (*self._axes, Axis()) if len(self._axes) == 1 else self._axes
        self._rng = np.random.default_rng(seed)
        self._sigma0 = SIGMA0 if sigma0 is None else sigma0
        self._first_popsize = popsize or 4 + int(3 * math.log(len(self._padded)))
        self._popsize = self._first_popsize
        self._best = at_levels(initial, self._axes)
        self._best_loss = math.inf
        self._worst_loss = -math.inf
        self._updates = 0
        # Proposals without a result: what cmaes sampled for them (several where points are equal), and when.
        self._asked: defaultdict[bytes, deque[tuple[Vector, int]]] = defaultdict(deque)
        self._results: list[tuple[Vector, float | None]] = []
        self._start()

    def ask(self) -> Vector:
        encoded, sample = self._es.ask()
        x = at_levels(encoded[: len(self._axes)], self._axes)
        self._asked[x.tobytes()].append((sample, self._updates))
        return x

    def tell(self, x: Vector, losses: Sequence[float] | None, detail: Detail | None = None) -> None:
        x = np.array(x, dtype=np.float64)
        known = finite(losses)
        loss = None if known is None else known[0]
        if loss is not None:
            self._worst_loss = max(self._worst_loss, loss)
            if loss < self._best_loss:
                self._best, self._best_loss = x, loss
        asked = self._asked.get(x.tobytes())
        sample, then = asked.popleft() if asked else (x, -math.inf)
        if self._updates - then <= MAX_AGE:
            self._results.append((sample, loss))
        if len(self._results) >= self._popsize:
            self._update()

    def mean(self) -> Vector | None:
        return at_levels(self._es.mean[: len(self._axes)], self._axes)

    def _update(self) -> None:
        """Moves the distribution by one population of results."""
        results, self._results = self._results, []
        if all(loss is None for _, loss in results):
            return  # nothing to rank: a step would be a random one
        failed = self._worst_loss + 1.0
        self._es.tell([(x, failed if loss is None else loss) for x, loss in results])
        self._updates += 1
        if self._es.should_stop():
            self._popsize = min(2 * self._popsize, MAX_POPULATION_GROWTH * self._first_popsize)
            self._start()

    def _start(self) -> None:
        """Begins with a fresh distribution around the best point so far."""
        from cmaes import CMAwM

        # The first and the last level lie half a step inside the cube.
        steps = np.array([0.0 if axis.levels is None else 1.0 / axis.levels for axis in self._padded])
        self._es = CMAwM(
            mean=self._best.copy() if self._padded is self._axes else np.append(self._best, 0.5),
            sigma=self._sigma0,
            bounds=np.stack([steps / 2, 1.0 - steps / 2], axis=1),
            steps=steps,
            seed=int(self._rng.integers(2**32)),
            population_size=self._popsize,
        )
        self._updates += MAX_AGE + 1  # what the distribution before sampled is late for this one
