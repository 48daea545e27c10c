"""TIES-Merging: trim, elect sign, disjoint mean."""

from heterosis.merge.methods.base import ZERO, PerInput, Program, Uniform, formula, merge_method
from heterosis.merge.methods.elect import elect
from heterosis.merge.statistics import Statistics


@formula
def trim(i, d, cut, last):  # type: ignore[no-untyped-def]
    """Keep ``d`` above the cut, and at the cut up to position ``last``. NaN stays, to be found at the end."""
    size = abs(d)
    return ZERO if (size < cut) | ((size == cut) & (i > last)) else d


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
    density: PerInput = (1.0,),
    normalize: bool = True,
    lambda_: float = 1.0,
) -> Program:
    """Merge task vectors, summing only entries that agree with the elected sign.

    Args:
        deltas: Task vectors.
        weight: Factor of each task vector; the election uses the weighted entries.
        density: Fraction of each task vector's entries kept, the largest by magnitude, in [0, 1]; at least
            one is kept unless it is 0.
        normalize: Whether to divide each element by the weights of the entries kept.
        lambda_: Factor of the result.

    Differs from the paper: trimming is per tensor, because we stream; equal magnitudes at the cut are kept
    by position; a tied election is positive.
    """
    cuts = [deltas.cut(j, fraction) for j, fraction in enumerate(density)]
    return Program(
        elect.bind(weight, normalize, lambda_),
        each=trim.bind(tuple(c.value for c in cuts), tuple(c.last for c in cuts)),
    )
