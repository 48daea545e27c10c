"""TIES-Merging: trim, elect sign, disjoint mean."""

import math

from heterosis.merge.formulas import ZERO, Bound, formula
from heterosis.merge.methods.base import Fractions, PerInput, Program, Uniform, merge_method
from heterosis.merge.methods.elect import election
from heterosis.merge.methods.rescale import rescaled
from heterosis.merge.statistics import Statistics
from heterosis.merge.statistics.quantities import magnitude


@formula
def trim(i, d, cut):  # type: ignore[no-untyped-def]
    """Drop ``d`` below the cut. NaN stays, to be found at the end."""
    return ZERO if abs(d) < cut else d


def trimming(deltas: Statistics, density: PerInput) -> Bound:
    """Keep the ``max(1, floor(density n))`` largest entries of every task vector; none where it is 0."""
    n = deltas.numel
    keep = [max(1, math.floor(fraction * n)) if fraction > 0 else 0 for fraction in density]
    return trim.bind(tuple(deltas.cuts(*((magnitude.bind(models=(j,)), count) for j, count in enumerate(keep)))))


@merge_method(
    "ties",
    paper="https://arxiv.org/abs/2306.01708",
    base="required",
    search={"weight": Uniform(0.0, 1.5), "density": Uniform(0.05, 1.0)},
)
def ties(
    deltas: Statistics,
    *,
    weight: PerInput,
    density: Fractions = (1.0,),
    normalize: bool = True,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Program:
    """Merge task vectors, summing only entries that agree with the elected sign.

    Args:
        deltas: Task vectors.
        weight: Factor of each task vector; the election uses the weighted entries.
        density: Fraction of each task vector's entries kept, the largest by magnitude, in [0, 1]; at least
            one is kept unless it is 0.
        normalize: Whether to divide each element by the weights of the entries kept.
        rescale: Whether to restore each task vector's L1 norm per tensor after trimming.
        lambda_: Factor of the result.

    Differs from the paper: trimming is per tensor, because we stream; equal magnitudes at the cut are kept
    by position; a tied election is positive.
    """
    return rescaled(deltas, election(weight, normalize, lambda_), trimming(deltas, density), density, rescale)
