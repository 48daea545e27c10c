"""CMA-ES, asynchronous: a normal distribution that moves to where the better points lie.

The algorithm is Hansen's, in his own implementation (``cma``); see https://arxiv.org/abs/1604.00772.
This file keeps it apart from numpy's global random state; generations.py makes it asynchronous.

Differs from the paper: a late result is pulled into the ellipsoid where the present distribution samples, as in
https://arxiv.org/abs/1110.4181, so that a point from an older, wider distribution cannot blow up the step size.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from heterosis.evolve.optimizers.base import SIGMA0, Axis, Detail, Vector, optimizer
from heterosis.evolve.optimizers.generations import Generations


@optimizer("cma", recommends=True)
class CmaEs:
    """CMA-ES on the unit cube.

    A failed trial ranks below every result so far. When the distribution has converged (all losses
    equal, no more progress), it starts again around the best point with twice the population. Axes with
    levels are sampled as all others and rounded when asked; a result moves the point that was sampled.

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
        self._generations = Generations(axes, initial, popsize)
        self._sigma0 = SIGMA0 if sigma0 is None else sigma0
        self._rng = np.random.default_rng(seed)
        self._start()

    def ask(self) -> Vector:
        self._sampled = True
        sample: Vector = self._es.ask(1)[0]
        return self._generations.propose(sample, sample)

    def tell(self, x: Vector, losses: Sequence[float] | None, detail: Detail | None = None) -> None:
        generation = self._generations.tell(x, losses)
        if not generation:
            return
        if not self._sampled:
            self._es.ask(1)  # cma takes results only after it was asked since its last update
        # Points that are late, or that cma did not propose, it pulls closer by itself.
        self._es.tell([sample for sample, _ in generation], [loss for _, loss in generation])
        self._sampled = False
        if self._es.stop():
            self._generations.restart()
            self._start()

    def mean(self) -> Vector | None:
        return self._generations.point(self._es.result.xfavorite)

    def _start(self) -> None:
        """Begins with a fresh distribution around the best point so far."""
        with warnings.catch_warnings():  # cma warns at its first import that it cannot plot without matplotlib
            warnings.simplefilter("ignore", UserWarning)
            import cma

        options: dict[str, Any] = {
            "bounds": [0.0, 1.0],
            "popsize": self._generations.popsize,
            "CMA_mirrors": 0,  # mirrored samples belong to cma's own evaluation loop
            "randn": lambda *shape: self._rng.standard_normal(shape),
            "seed": math.nan,  # leaves numpy's global random state alone
            "verbose": -10,  # no output, no log files, and no options read from a file in the current folder
        }
        self._es = cma.CMAEvolutionStrategy(self._generations.centre, self._sigma0, options)
        self._sampled = False
