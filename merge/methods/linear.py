"""Linear: the weighted mean of the models (model soups)."""

from heterosis.merge.methods.base import PerInput, Program, Uniform, merge_method
from heterosis.merge.methods.combine import averaging, combine


@merge_method(
    "linear",
    paper="https://arxiv.org/abs/2203.05482",
    base="ignored",
    search={"weight": Uniform(0.0, 1.0)},
)
def linear(*, weight: PerInput, normalize: bool = True) -> Program:
    """``sum_j w_j x_j``, divided by ``sum_j w_j`` with ``normalize``.

    Args:
        weight: Factor of each model, dimensionless, any sign.
        normalize: Whether to divide by the sum of the weights.

    Raises:
        ValueError: If the weights sum to zero under ``normalize``.
    """
    return Program(combine.bind(averaging(weight) if normalize else weight))
