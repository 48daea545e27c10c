"""CMA-ES with margin: CMA-ES for cubes with levels, asynchronous as cma_es.py is.

The algorithm is that of https://arxiv.org/abs/2205.13482, in the implementation of ``cmaes``: the
distribution keeps a least probability of leaving the level where its mean lies, so that no axis with levels gets
stuck. Categories are levels in the order in which they come.

Differs from the paper: results of points that the present distribution did not sample lately move only the
centre of the next restart, since ``cmaes`` cannot pull them closer.
"""

from collections.abc import Sequence

import numpy as np

from heterosis.evolve.optimizers.base import SIGMA0, Axis, Detail, Vector, at_levels, optimizer
from heterosis.evolve.optimizers.generations import Generations

MAX_AGE = 5  # updates since a point was sampled


@optimizer("cmawm", recommends=True)
class CmaEsWithMargin:
    """CMA-ES with margin on the unit cube.

    A failed trial ranks below every result so far. When the distribution has converged, it starts again around
    the best point with twice the population.

    Args:
        axes: Of the cube.
        initial: First mean.
        seed: Of this optimizer's own random stream.
        sigma0: First standard deviation, 0.2 by default.
        popsize: Results per update, at least 4; 4 + 3 ln(dimensions) by default.
    """

    def __init__(
        self,
        *,
        axes: Sequence[Axis],
        initial: Vector,
        seed: int,
        sigma0: float | None = None,
        popsize: int | None = None,
        **unused: object,
    ) -> None:
        self._generations = Generations(axes, at_levels(initial, axes), popsize, MAX_AGE)
        self._sigma0 = SIGMA0 if sigma0 is None else sigma0
        self._rng = np.random.default_rng(seed)
        self._start()

    def ask(self) -> Vector:
        rounded, sample = self._es.ask()
        return self._generations.propose(rounded, sample)

    def tell(self, x: Vector, losses: Sequence[float] | None, detail: Detail | None = None) -> None:
        generation = self._generations.tell(x, losses)
        if not generation:
            return
        self._es.tell(generation)
        if self._es.should_stop():
            self._generations.restart()
            self._start()

    def mean(self) -> Vector | None:
        return self._generations.point(self._es.mean)

    def _start(self) -> None:
        """Begins with a fresh distribution around the best point so far."""
        from cmaes import CMAwM

        # The first and the last level lie half a step inside the cube.
        steps = np.array([0.0 if axis.levels is None else 1.0 / axis.levels for axis in self._generations.axes])
        self._es = CMAwM(
            mean=self._generations.centre,
            sigma=self._sigma0,
            bounds=np.stack([steps / 2, 1.0 - steps / 2], axis=1),
            steps=steps,
            seed=int(self._rng.integers(2**32)),
            population_size=self._generations.popsize,
        )
