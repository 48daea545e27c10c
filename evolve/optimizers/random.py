"""Uniform random points: the control that every other optimizer has to beat."""

import numpy as np

from heterosis.evolve.optimizers.base import Vector, optimizer


@optimizer("random")
class RandomSearch:
    """Independent uniform points of the cube; learns nothing from their results."""

    def __init__(
        self,
        *,
        dimensions: int,
        initial: Vector,
        seed: int,
        sigma0: float | None = None,
        popsize: int | None = None,
        budget: int = 0,
    ) -> None:
        self._dimensions = dimensions
        self._rng = np.random.default_rng(seed)

    def ask(self) -> Vector:
        return self._rng.random(self._dimensions)

    def tell(self, x: Vector, loss: float | None) -> None:
        """Nothing to learn: the points do not depend on results."""

    def mean(self) -> Vector | None:
        return None
