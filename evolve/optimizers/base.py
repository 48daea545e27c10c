"""The contract between the search and an optimizer, and the registry of optimizers.

An optimizer proposes points of the unit cube and is told what they lost. It knows nothing of recipes,
models or workers. Adding one is adding one file to this package::

    @optimizer("hill-climber")
    class HillClimber:
        '''Gaussian steps from the best point so far.'''

        def __init__(self, *, dimensions: int, initial: Vector, seed: int, **hints: float | None) -> None:
            self._rng = np.random.default_rng(seed)
            self._best, self._loss = initial, math.inf

        def ask(self) -> Vector:
            return np.clip(self._best + 0.1 * self._rng.standard_normal(self._best.size), 0.0, 1.0)

        def tell(self, x: Vector, loss: float | None) -> None:
            if loss is not None and loss < self._loss:
                self._best, self._loss = x, loss

        def mean(self) -> Vector | None:
            return self._best
"""

from collections.abc import Callable
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float64]


class Optimizer(Protocol):
    """Minimises a loss over the unit cube, one question at a time.

    The driver asks whenever a worker is free and tells whenever one has finished, so any number of asks
    may come before their tells, and tells come in any order or, for a trial that was lost, not at all.

    An optimizer's proposals are a function of what it was made with and of the order of asks and tells,
    and of nothing else: not of time, of numpy's global random state or of files. A run is resumed
    by replaying that order, which is why no optimizer has any state to save. For the same reason a run
    can be extended only if ``budget`` does not change the proposals: it is a hint for what must know it.
    """

    def ask(self) -> Vector:
        """The next point to try, ``[dimensions]`` within [0, 1]; a fresh array."""
        ...

    def tell(self, x: Vector, loss: float | None) -> None:
        """Takes in a result.

        Args:
            x: A point that ``ask`` gave, value for value, or any other point of the cube whose loss is known
                (a baseline). Not modified or kept.
            loss: Smaller is better. None (or a value that is not finite) says that the trial failed:
                the point counts as worse than every point that did not.
        """
        ...

    def mean(self) -> Vector | None:
        """The centre of the current search distribution, itself a good candidate; None if there is none."""
        ...


class OptimizerFactory(Protocol):
    """Makes an optimizer; a class with this constructor will do."""

    def __call__(
        self,
        *,
        dimensions: int,
        initial: Vector,
        seed: int,
        sigma0: float | None,
        popsize: int | None,
        budget: int,
    ) -> Optimizer:
        """Makes an optimizer.

        Args:
            dimensions: Of the cube, at least 1.
            initial: Where to start, ``[dimensions]`` within [0, 1].
            seed: At least 0; every seed is a seed, 0 too.
            sigma0: First standard deviation as a fraction of a range; None for the optimizer's own.
            popsize: Results between two updates; None for the optimizer's own.
            budget: How many trials are planned; more may follow.
        """
        ...


OPTIMIZERS: dict[str, OptimizerFactory] = {}

_Factory = TypeVar("_Factory", bound=OptimizerFactory)


def optimizer(name: str) -> Callable[[_Factory], _Factory]:
    """Registers a factory under ``name``, the name that configs use."""

    def register(factory: _Factory) -> _Factory:
        other = OPTIMIZERS.get(name)
        if other is not None:
            raise ValueError(
                f"two optimizers are called {name!r}: one in {other.__module__} and one in {factory.__module__}"
            )
        OPTIMIZERS[name] = factory
        return factory

    return register
