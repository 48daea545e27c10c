"""Sobol points: a control that covers the cube more evenly than independent random points do."""

from collections.abc import Sequence

import numpy as np

from heterosis.evolve.optimizers.base import Axis, Detail, Vector, at_levels, optimizer


@optimizer("sobol", multi_objective=True)
class SobolSearch:
    """A scrambled Sobol sequence; learns nothing from results."""

    def __init__(self, *, axes: Sequence[Axis], seed: int, **unused: object) -> None:
        from scipy.stats import qmc

        self._axes = tuple(axes)
        self._sequence = qmc.Sobol(len(self._axes), scramble=True, seed=np.random.default_rng(seed))

    def ask(self) -> Vector:
        return at_levels(self._sequence.random(1)[0], self._axes)

    def tell(self, x: Vector, losses: Sequence[float] | None, detail: Detail | None = None) -> None:
        """Nothing to learn: the points do not depend on results."""

    def mean(self) -> Vector | None:
        return None
