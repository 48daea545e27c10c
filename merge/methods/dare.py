"""DARE: drop entries of the task vectors at random and rescale the rest."""

from heterosis.merge.methods.base import Fractions, PerInput, Program, Uniform, merge_method
from heterosis.merge.methods.combine import combine, scaling
from heterosis.merge.methods.elect import election
from heterosis.merge.methods.random_mask import drop
from heterosis.merge.methods.rescale import rescaled
from heterosis.merge.statistics import Statistics

PAPER = "https://arxiv.org/abs/2311.03099"
SEARCH = {"weight": Uniform(0.0, 1.5), "density": Uniform(0.05, 1.0)}


@merge_method("dare_linear", paper=PAPER, base="required", search=SEARCH)
def dare_linear(
    deltas: Statistics,
    *,
    weight: PerInput,
    density: Fractions = (1.0,),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
) -> Program:
    """A weighted sum of task vectors of which each keeps a random fraction of its entries.

    Args:
        deltas: Task vectors.
        weight: Factor of each task vector.
        density: Probability with which each entry is kept, in [0, 1].
        normalize: Whether to divide by the sum of the weights.
        rescale: Whether to restore each task vector's L1 norm per tensor.
        lambda_: Factor of the sum.

    Differs from the paper: it divides by the density; we restore the L1 norm, as mergekit does.
    """
    merged = combine.bind(scaling(weight, normalize, lambda_))
    return rescaled(deltas, merged, drop.bind(density), density, rescale)


@merge_method("dare_ties", paper=PAPER, base="required", search=SEARCH)
def dare_ties(
    deltas: Statistics,
    *,
    weight: PerInput,
    density: Fractions = (1.0,),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
) -> Program:
    """DARE's random mask, then the sign election of TIES. Arguments as of ``dare_linear``."""
    merged = election(weight, normalize, lambda_)
    return rescaled(deltas, merged, drop.bind(density), density, rescale)
