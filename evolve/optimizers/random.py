"""Uniform random points: the control that every other optimizer has to beat."""

from collections.abc import Sequence

import numpy as np

from heterosis.evolve.optimizers.base import Axis, Detail, Vector, at_levels, optimizer


@optimizer("random", multi_objective=True)
class RandomSearch:
    """Independent uniform points of the cube; learns nothing from their results."""

    def __init__(self, *, axes: Sequence[Axis], seed: int, **unused: object) -> None:
        self._axes = tuple(axes)
        self._rng = np.random.default_rng(seed)

    def ask(self) -> Vector:
        return at_levels(self._rng.random(len(self._axes)), self._axes)

    def tell(self, x: Vector, losses: Sequence[float] | None, detail: Detail | None = None) -> None:
        """Nothing to learn: the points do not depend on results."""

    def mean(self) -> Vector | None:
        return None
