"""What gp.py and sampling.py share: where a model of the loss begins, and what a failure counts as."""

import math
from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np

from heterosis.evolve.optimizers.base import Axis, Vector, at_levels

PENALTY = 0.1  # a failed trial loses this part of the range of all losses more than the worst of them

# Results that a model needs. Until it has them, points are drawn around the best known ones: in twelve dimensions
# ten points anywhere in the cube tell a model nothing of the neighbourhood that the search begins in.
STARTUP = 10


def losses_of_failure(best: Vector, worst: Vector) -> Vector:
    """What a failed trial loses, ``[k]``, where all known losses lie between ``best`` and ``worst``, ``[k]``."""
    return worst + PENALTY * np.where(worst > best, worst - best, 1.0)


def spread_around(centres: Sequence[Vector], axes: Sequence[Axis], sigma: float, seed: int) -> Iterator[Vector]:
    """Points of boxes around some, ``[d]`` each, by turns: one Latin hypercube of `STARTUP` after the other.

    A box has the standard deviation ``sigma`` on every axis, and ends at the faces of the cube: points beyond
    would all lie on them, most on several at once. Categories, which have no neighbours, are any. (McKay et
    al., "A comparison of three methods for selecting values of input variables", Technometrics 1979.)
    """
    from scipy.stats import qmc

    hypercube = qmc.LatinHypercube(len(axes), seed=np.random.default_rng(seed))
    reach = np.where([axis.ordered for axis in axes], math.sqrt(3) * sigma, 1.0)
    boxes = cycle([np.clip([centre - reach, centre + reach], 0.0, 1.0) for centre in centres])
    while True:
        for x, (low, high) in zip(hypercube.random(STARTUP), boxes, strict=False):
            yield at_levels(low + (high - low) * x, axes)
