"""Model Breadcrumbs: task vectors without their smallest and their very largest entries."""

import math

from heterosis.merge.formulas import ZERO, Bound, formula
from heterosis.merge.methods.base import Fractions, PerInput, Program, Uniform, merge_method
from heterosis.merge.methods.combine import combine, scaling
from heterosis.merge.methods.elect import election
from heterosis.merge.methods.rescale import rescaled
from heterosis.merge.statistics import Statistics
from heterosis.merge.statistics.quantities import magnitude

PAPER = "https://arxiv.org/abs/2312.06795"
SEARCH = {"weight": Uniform(0.0, 1.5), "density": Uniform(0.05, 1.0), "gamma": Uniform(0.0, 0.05)}


@formula
def keep_band(i, d, low, high):  # type: ignore[no-untyped-def]
    """Drop ``d`` below one cut, and from another on. Of NaN and infinity NaN stays, to be found at the end."""
    return d if low <= abs(d) < high else d * ZERO


def _masking(deltas: Statistics, density: PerInput, gamma: PerInput) -> Bound:
    n = deltas.numel
    keep = [math.floor(fraction * n) for fraction in density]
    outliers = [min(math.floor(fraction * n), n - kept) for fraction, kept in zip(gamma, keep, strict=True)]
    sizes = [magnitude.bind(models=(j,)) for j in range(deltas.models)]
    # Entries above the first cuts count, unless they are outliers, above the second.
    cuts = deltas.cuts(
        *((size, a + b) for size, a, b in zip(sizes, keep, outliers, strict=True)),
        *zip(sizes, outliers, strict=True),
    )
    return keep_band.bind(tuple(cuts[: len(sizes)]), tuple(cuts[len(sizes) :]))


@merge_method("breadcrumbs", paper=PAPER, base="required", search=SEARCH)
def breadcrumbs(
    deltas: Statistics,
    *,
    weight: PerInput,
    density: Fractions = (1.0,),
    gamma: Fractions = (0.01,),
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Program:
    """A weighted sum of task vectors without their ``gamma`` largest and then their smallest entries.

    Args:
        deltas: Task vectors.
        weight: Factor of each task vector.
        density: Fraction of each task vector's n entries kept, ``floor(density n)`` of them, in [0, 1].
        gamma: Fraction of the largest entries by magnitude dropped, ``floor(gamma n)``, in [0, 1]; fewer where
            not enough would be left to keep.
        normalize: Whether to divide by the sum of the weights.
        rescale: Whether to restore each task vector's L1 norm per tensor.
        lambda_: Factor of the sum.

    Differs from the paper: it has the fractions dropped at either end, here are the fractions kept and dropped at
    the top, as in mergekit; of equal magnitudes at a cut the first count as the larger ones.
    """
    merged = combine.bind(scaling(weight, normalize, lambda_))
    return rescaled(deltas, merged, _masking(deltas, density, gamma), density, rescale)


@merge_method("breadcrumbs_ties", paper=PAPER, base="required", search=SEARCH)
def breadcrumbs_ties(
    deltas: Statistics,
    *,
    weight: PerInput,
    density: Fractions = (1.0,),
    gamma: Fractions = (0.01,),
    normalize: bool = False,
    rescale: bool = False,
    lambda_: float = 1.0,
) -> Program:
    """The masks of Breadcrumbs, then the sign election of TIES. Arguments as of ``breadcrumbs``."""
    merged = election(weight, normalize, lambda_)
    return rescaled(deltas, merged, _masking(deltas, density, gamma), density, rescale)
