"""DELLA: drop entries of the task vectors at random, small ones more often, and rescale the rest."""

from heterosis.merge.formulas import Bound
from heterosis.merge.methods.base import Fractions, PerInput, Program, Uniform, merge_method
from heterosis.merge.methods.combine import combine, scaling
from heterosis.merge.methods.elect import election
from heterosis.merge.methods.random_mask import drop_by_rank
from heterosis.merge.methods.rescale import rescaled
from heterosis.merge.statistics import Statistics

PAPER = "https://arxiv.org/abs/2406.11617"
# Every pair of a density and an epsilon in these ranges is valid.
SEARCH = {"weight": Uniform(0.0, 1.5), "density": Uniform(0.2, 0.8), "epsilon": Uniform(0.0, 0.19)}


def _dropping(deltas: Statistics, density: PerInput, epsilon: PerInput) -> Bound:
    shape = deltas.shape
    length = deltas.numel // shape[0] if len(shape) > 1 else deltas.numel
    least, step = zip(*(_probabilities(d, e, length) for d, e in zip(density, epsilon, strict=True)), strict=True)
    return drop_by_rank.bind(least, step, row_length=length)


def _probabilities(density: float, epsilon: float, length: int) -> tuple[float, float]:
    """The probability of keeping a row's smallest entry, and what each rank adds to it."""
    if density in (0.0, 1.0):
        return density, 0.0
    if not 0 < density - epsilon <= density + epsilon < 1:
        room = min(density, 1 - density)
        raise ValueError(
            "`0 < density - epsilon` and `density + epsilon < 1` must hold, but got "
            f"density={density:g} and epsilon={epsilon:g}; give epsilon below {room:g}, or density 1 to keep all"
        )
    return (density - epsilon, 2 * epsilon / (length - 1)) if length > 1 else (density, 0.0)


@merge_method("della", paper=PAPER, base="required", search=SEARCH)
def della(
    deltas: Statistics,
    *,
    weight: PerInput,
    density: Fractions = (1.0,),
    epsilon: Fractions = (0.15,),
    normalize: bool = True,
    rescale: bool = True,
    lambda_: float = 1.0,
) -> Program:
    """DELLA's random mask, then the sign election of TIES. Arguments as of ``della_linear``."""
    merged = election(weight, normalize, lambda_)
    return rescaled(deltas, merged, _dropping(deltas, density, epsilon), density, rescale)


@merge_method("della_linear", paper=PAPER, base="required", search=SEARCH)
def della_linear(
    deltas: Statistics,
    *,
    weight: PerInput,
    density: Fractions = (1.0,),
    epsilon: Fractions = (0.15,),
    normalize: bool = False,
    rescale: bool = True,
    lambda_: float = 1.0,
) -> Program:
    """A weighted sum of task vectors whose entries are kept with probability ``density - epsilon + 2 epsilon r /
    (n - 1)``, r = 0 ... n - 1 their rank by magnitude in a row of n.

    A row is all that shares an index in the first dimension; a tensor of one dimension is one row. In a row of
    length one the probability is ``density``. Equal magnitudes share the mean of their ranks; they are compared in
    the eight significant bits of bfloat16.

    Args:
        deltas: Task vectors.
        weight: Factor of each task vector.
        density: Mean probability with which entries are kept, in [0, 1].
        epsilon: How far the probability differs for the smallest and the largest entry of a row. Both must lie
            in (0, 1), unless ``density`` is 0 or 1, which keeps nothing or all.
        normalize: Whether to divide by the sum of the weights.
        rescale: Whether to restore each task vector's L1 norm per tensor.
        lambda_: Factor of the sum.

    Raises:
        ValueError: If a probability would leave (0, 1).

    Differs from the paper: it divides each entry kept by its probability; we restore the L1 norm, as mergekit
    does. Differs from mergekit: its ranks of equal magnitudes are in the order that sorting happens to give, and
    those above 256 coarse for bfloat16 models, whose ranks it rounds to bfloat16. It ranks tensors of more than
    two dimensions along the second alone, and fails on rows of length one.
    """
    merged = combine.bind(scaling(weight, normalize, lambda_))
    return rescaled(deltas, merged, _dropping(deltas, density, epsilon), density, rescale)
