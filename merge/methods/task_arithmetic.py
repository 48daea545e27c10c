"""Task arithmetic: the base plus a weighted sum of task vectors."""

from heterosis.merge.methods.base import PerInput, Program, Uniform, merge_method
from heterosis.merge.methods.combine import combine, scaling


@merge_method(
    "task_arithmetic",
    paper="https://arxiv.org/abs/2212.04089",
    base="required",
    search={"weight": Uniform(0.0, 1.5)},
)
def task_arithmetic(*, weight: PerInput, normalize: bool = False, lambda_: float = 1.0) -> Program:
    """``b + lambda sum_j w_j d_j`` over task vectors ``d_j = x_j - b``.

    Args:
        weight: Factor of each task vector, dimensionless, any sign.
        normalize: Whether to divide by the sum of the weights.
        lambda_: Factor of the sum.

    Raises:
        ValueError: If the weights sum to zero under ``normalize``.
    """
    return Program(combine.bind(scaling(weight, normalize, lambda_)))
