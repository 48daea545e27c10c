"""Generations of results: what both variants of CMA-ES share, whichever library holds their distribution.

A library moves its distribution by a whole generation at a time. A search asks for single points, and tells their
results in any order. `Generations` stands between the two.

Differs from the papers: generations are counted in results, not in proposals. Every ask is a fresh sample of the
present distribution, and every ``popsize`` results update it, whichever generation they were sampled from, so
that no worker waits for the slowest candidate of a population.
"""

import math
from collections import defaultdict, deque
from collections.abc import Sequence

import numpy as np

from heterosis.evolve.optimizers.base import Axis, Vector, at_levels, finite

MARGIN = 0.1  # a first distribution starts at most so near to the faces of the cube, which would cut it in half
MAX_GROWTH = 8  # of the population, three doublings; more would leave a small budget without any update


class Generations:
    """Remembers what was sampled for each proposal, and collects results until a generation is whole.

    A sample has n coordinates: those of the cube, or two if the cube has one, since a covariance matrix needs two.
    The second changes nothing then.

    Args:
        axes: Of the cube; there are ``d``.
        initial: Centre of the first distribution, ``[d]`` within [0, 1]; it is moved off the faces.
        popsize: Results of a generation before any restart; 4 + 3 ln(n) by default.
        max_age: Generations after which a sample's result no longer counts, as none does after a restart, and none
            of a point that was not sampled. None if every result counts.

    Attributes:
        axes: Of the samples; there are ``n``.
        popsize: Results of the present generation.
    """

    def __init__(
        self, axes: Sequence[Axis], initial: Vector, popsize: int | None, max_age: int | None = None
    ) -> None:
        self._cube = tuple(axes)
        self.axes = (*self._cube, Axis()) if len(self._cube) == 1 else self._cube
        self.popsize = popsize or 4 + int(3 * math.log(len(self.axes)))
        self._max_popsize = MAX_GROWTH * self.popsize
        self._max_age = max_age
        levels = [axis.levels is not None for axis in axes]
        self._best, self._best_loss = np.where(levels, initial, np.clip(initial, MARGIN, 1 - MARGIN)), math.inf
        self._worst_loss = -math.inf
        self._number = 0  # of the present generation; a restart skips some
        # Samples without a result and their generations, by proposal: rounding makes some proposals equal.
        self._sampled: defaultdict[bytes, deque[tuple[Vector, int]]] = defaultdict(deque)
        self._results: list[tuple[Vector, float | None]] = []

    @property
    def centre(self) -> Vector:
        """Where a distribution starts, ``[n]``: the best point so far, or the initial one; a new array."""
        return self._padded(self._best)

    def point(self, sample: Vector) -> Vector:
        """The point of the cube, ``[d]``, that is nearest to a sample; a new array."""
        return at_levels(sample[: len(self._cube)], self._cube)

    def propose(self, sample: Vector, raw: Vector) -> Vector:
        """The point to try for a sample; its result belongs to ``raw``, ``[n]``, the sample before rounding."""
        x = self.point(sample)
        self._sampled[x.tobytes()].append((raw, self._number))
        return x

    def tell(self, x: Vector, losses: Sequence[float] | None) -> list[tuple[Vector, float]]:
        """Takes in a result.

        Returns:
            The samples and losses of the generation that it completes, failures with a loss above all so far.
            Nothing if it completes none, or one of failures only: to rank them would be a random step.
        """
        x = np.array(x, dtype=np.float64)
        known = finite(losses)
        loss = None if known is None else known[0]
        if loss is not None:
            self._worst_loss = max(self._worst_loss, loss)
            if loss < self._best_loss:
                self._best, self._best_loss = x, loss
        samples = self._sampled.get(x.tobytes())
        sample, number = samples.popleft() if samples else (self._padded(x), -math.inf)
        if self._max_age is None or self._number - number <= self._max_age:
            self._results.append((sample, loss))
        return self._completed() if len(self._results) >= self.popsize else []

    def restart(self) -> None:
        """Doubles the population, up to a limit; what was sampled before is out of date."""
        self.popsize = min(2 * self.popsize, self._max_popsize)
        self._number += 1 + (self._max_age or 0)

    def _completed(self) -> list[tuple[Vector, float]]:
        results, self._results = self._results, []
        if all(loss is None for _, loss in results):
            return []
        self._number += 1
        return [(sample, self._worst_loss + 1.0 if loss is None else loss) for sample, loss in results]

    def _padded(self, x: Vector) -> Vector:
        return np.append(x, np.full(len(self.axes) - len(x), 0.5))
