"""NuSLERP: spherical interpolation with a weight for each model, of models or task vectors, whole or by line."""

import numpy as np

from heterosis.merge.methods.base import PerInput, Program, Uniform, merge_method
from heterosis.merge.methods.combine import Vector, arc, combine
from heterosis.merge.statistics import Statistics

SHORTEST = 1e-7  # smaller norms count as this one

# Vectors whose 1 - cos^2 is below the rounding of a sum in float64 are collinear.
COLLINEAR = 1e-12


@merge_method(
    "nuslerp",
    paper="https://dl.acm.org/doi/10.1145/325334.325242",
    base="optional",
    inputs=(2, 2),
    search={"weight": Uniform(0.0, 1.0)},
)
def nuslerp(
    tensor: Statistics, *, weight: PerInput, nuslerp_flatten: bool = True, nuslerp_row_wise: bool = False
) -> Program:
    """``[sin((1-t) theta) x_1 + sin(t theta) x_2] / sin theta``, ``t = w_2 / (w_1 + w_2)``, theta their angle.

    With a base model, x_1 and x_2 are the task vectors ``d_j``, and the base is added. Collinear vectors, also
    opposite ones, are interpolated linearly. The formula is applied to the vectors themselves, not to unit
    vectors.

    Args:
        tensor: The two inputs.
        weight: Share of each input; weights that sum to zero count as equal.
        nuslerp_flatten: Whether the tensor is one vector; else each of its lines is one.
        nuslerp_row_wise: Which lines: those along the first dimension instead of the last.

    Differs from the paper (Shoemake, 1985): there the ends have norm one.

    Differs from mergekit: it takes as collinear what rounding to the dtype of the merge makes so, which for
    opposite vectors is a matter of chance; we take what is so within the rounding of float64.
    """
    total = sum(weight)
    t = 0.5 if abs(total) < 1e-6 else weight[1] / total
    if nuslerp_flatten:
        return Program(combine.bind(tuple(_coefficients(t, np.array(tensor.gram())).tolist())))
    dim = 0 if nuslerp_row_wise else -1
    coefficients = tuple(_coefficients(t, tensor.grams(dim)))
    return Program(combine.bind(coefficients, row_length=tensor.row_length(dim)))


def _coefficients(t: float, grams: Vector) -> Vector:
    """From dot products ``[2, 2, *]`` to coefficients ``[2, *]``."""
    squares = np.maximum((grams[0, 0], grams[1, 1]), SHORTEST**2)
    cosine = np.clip(grams[0, 1] / np.sqrt(squares[0] * squares[1]), -1.0, 1.0)
    return arc(t, cosine, 1.0 - cosine**2 <= COLLINEAR)
