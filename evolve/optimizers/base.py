"""The contract between the search and an optimizer, and the registry of optimizers.

An optimizer proposes points of the unit cube and is told what they lost. It knows nothing of recipes,
models or workers. Adding one is adding one file to this package::

    @optimizer("hill-climber", recommends=True)
    class HillClimber:
        '''Gaussian steps from the best point so far.'''

        def __init__(self, *, axes: Sequence[Axis], initial: Vector, seed: int, **unused: object) -> None:
            self._axes = axes
            self._rng = np.random.default_rng(seed)
            self._best, self._loss = initial.copy(), math.inf

        def ask(self) -> Vector:
            return at_levels(self._best + 0.1 * self._rng.standard_normal(len(self._axes)), self._axes)

        def tell(self, x: Vector, losses: Sequence[float] | None, detail: Detail | None = None) -> None:
            losses = finite(losses)
            if losses is not None and losses[0] < self._loss:
                self._best, self._loss = x.copy(), losses[0]

        def mean(self) -> Vector | None:
            return self._best.copy()
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

Vector: TypeAlias = NDArray[np.float64]

SIGMA0 = 0.2  # of the first points, as a fraction of each range: from the middle, 2.5 of it reach the bounds


@dataclass(frozen=True)
class Axis:
    """One coordinate of the unit cube.

    Attributes:
        levels: None if every value counts; else n >= 2, and the coordinate takes only the n *levels*
            (k + 0.5) / n, k = 0..n-1.
        ordered: Whether neighbouring levels are alike; False for categories. True without levels.
    """

    levels: int | None = None
    ordered: bool = True

    def __post_init__(self) -> None:
        if self.levels is not None and self.levels < 2:
            raise ValueError(f"`levels >= 2` must hold, but got levels={self.levels}")
        if self.levels is None and not self.ordered:
            raise ValueError("categories need levels, but got levels=None, ordered=False")

    def level(self, u: float) -> int:
        """The number k of the level nearest to ``u``; an axis without levels has none."""
        assert self.levels is not None
        return min(max(int(u * self.levels), 0), self.levels - 1)


@dataclass(frozen=True)
class Detail:
    """What is known of a single loss beside its value.

    Attributes:
        terms: What the loss is the sum of: the tasks' shares of it, in the same order for all results.
        share: How many documents of a random sample would tell as much, as a share of all, in (0, 1]: its noise is
            that of such a sample.
    """

    terms: tuple[float, ...]
    share: float


@dataclass(frozen=True)
class Limits:
    """What lies between two ends: a term of a loss that is a share of right answers, or the like.

    Attributes:
        low: The least that it can be.
        high: The most, above it.
        documents: Of how many documents it is the mean, about.
    """

    low: float
    high: float
    documents: int


def at_levels(x: Vector, axes: Sequence[Axis]) -> Vector:
    """The point of the cube nearest to ``x``, ``[d]``, every axis with levels exactly at one; a new array."""
    x = np.clip(np.asarray(x, dtype=np.float64), 0.0, 1.0)
    for i, axis in enumerate(axes):
        if axis.levels is not None:
            x[i] = (axis.level(x[i]) + 0.5) / axis.levels
    return x


def finite(losses: Sequence[float] | None) -> list[float] | None:
    """The losses as floats, or None for a trial that failed: told None, or any loss that is not finite."""
    if losses is None or not all(math.isfinite(loss) for loss in losses):
        return None
    return [float(loss) for loss in losses]


def seed32(seed: int) -> int:
    """A seed of 32 bits, which is all that some libraries take, from one of any size."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


class Optimizer(Protocol):
    """Minimises one or several losses over the unit cube, one question at a time.

    The driver asks whenever a worker is free and tells whenever one has finished, so any number of asks
    may come before their tells, and tells come in any order or, for a trial that was lost, not at all.

    An optimizer's proposals are a function of what it was made with and of the order of asks and tells,
    and of nothing else: not of time, of hash seeds, of global random states or of files. A run is resumed
    by replaying that order, which is why no optimizer has any state to save.
    """

    def ask(self) -> Vector:
        """The next point to try, ``[d]`` within [0, 1], level axes exactly at a level; a fresh array."""
        ...

    def tell(self, x: Vector, losses: Sequence[float] | None, detail: Detail | None = None) -> None:
        """Takes in a result.

        Args:
            x: A point that ``ask`` gave, value for value, or any other point of the cube whose losses are
                known (a baseline). Not modified or kept.
            losses: One for each objective, smaller is better. None (or any that is not finite) says that
                the trial failed: the point counts as worse than every point that did not.
            detail: Of a single loss, what it is made of. An optimizer may leave it alone.
        """
        ...

    def mean(self) -> Vector | None:
        """What it recommends, with levels as in ``ask``, or None.

        The mean of its distribution, or the point of which its model expects least.
        """
        ...


class OptimizerFactory(Protocol):
    """Makes an optimizer; a class with this constructor will do. What it has no use for, ``**unused`` may take."""

    def __call__(
        self,
        *,
        axes: Sequence[Axis],
        objectives: int,
        initial: Vector,
        seed: int,
        sigma0: float | None,
        popsize: int | None,
        budget: int,
        limits: Sequence[Limits | None] = (),
        others: Sequence[Vector] = (),
    ) -> Optimizer:
        """Makes an optimizer.

        Args:
            axes: Of the cube, at least one; there are ``d``.
            objectives: How many losses each result has. More than one only comes to a factory that was
                registered with ``multi_objective=True``.
            initial: Where to start, ``[d]`` within [0, 1].
            seed: At least 0; every seed is a seed, 0 too.
            sigma0: First standard deviation as a fraction of a range; None for the optimizer's own.
            popsize: Results between two updates; None for the optimizer's own.
            budget: How many trials were planned when the run began; more may follow. A run that is
                resumed or extended gives the same number again.
            limits: Of each of a single loss's terms (see `Detail`) that has some, None of others; empty where
                nothing is known of them.
            others: Where to start too, best first, ``[d]`` each: ``initial`` may lie in a worse valley than they.
        """
        ...


@dataclass(frozen=True)
class Registration:
    """What the registry knows of an optimizer."""

    factory: OptimizerFactory
    multi_objective: bool
    model_based: bool
    recommends: bool


OPTIMIZERS: dict[str, Registration] = {}

_Factory = TypeVar("_Factory", bound=OptimizerFactory)


def optimizer(
    name: str, *, multi_objective: bool = False, model_based: bool = False, recommends: bool = False
) -> Callable[[_Factory], _Factory]:
    """Registers a factory under ``name``, the name that configs use.

    Args:
        name: Of the optimizer.
        multi_objective: Whether it takes several objectives; each takes one.
        model_based: Whether it learns as much from any known point as from one that it has proposed.
        recommends: Whether its ``mean`` is a point where it has a single objective; it is not asked otherwise.
    """

    def register(factory: _Factory) -> _Factory:
        if name in OPTIMIZERS:
            one, other = OPTIMIZERS[name].factory.__module__, factory.__module__
            raise ValueError(f"two optimizers are called {name!r}: one in {one} and one in {other}")
        OPTIMIZERS[name] = Registration(factory, multi_objective, model_based, recommends)
        return factory

    return register
