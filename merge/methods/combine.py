"""The linear combination of m models, and what methods make of their weights to get there."""

import numpy as np
import numpy.typing as npt

from heterosis.merge.formulas import ZERO, Bound, formula
from heterosis.merge.methods.base import PerInput, Program

Vector = npt.NDArray[np.float64]


@formula
def combine(i, x, coefficients):  # type: ignore[no-untyped-def]
    """``sum_j c_j x_j``, summed in the order of the models."""
    total = ZERO
    for j in range(len(x)):
        total += coefficients[j] * x[j]
    return total


def is_copy(program: Program | None) -> bool:
    """Whether a program leaves a single input as it is."""
    match program:  # not ==, which has no one answer where numbers are arrays
        case Program(Bound(formula=bound, numbers=((float() | int() as factor,),)), None, None):
            return bound is combine and factor == 1
    return False


def averaging(weight: PerInput, option: str = "normalize") -> PerInput:
    """Coefficients of the weighted mean, ``w_j / sum_k w_k``; ``option`` asked for it.

    Raises:
        ValueError: If the weights sum to zero.
    """
    total = sum(weight)
    if abs(total) < 1e-8:
        raise ValueError(f"`sum of weights != 0` must hold with {option}, but got weight={list(weight)}")
    return tuple(w / total for w in weight)


def scaling(weight: PerInput, normalize: bool, lambda_: float) -> PerInput:
    """Coefficients of a sum of task vectors, ``lambda w_j``, over the sum of weights with ``normalize``."""
    return tuple(lambda_ * w for w in (averaging(weight) if normalize else weight))


def arc(t: float, cosine: npt.ArrayLike, linear: npt.ArrayLike) -> Vector:
    """Coefficients of two vectors' spherical interpolation, ``sin(s theta) / sin theta`` for s = 1 - t and t.

    Args:
        t: Position, 0 at the first vector.
        cosine: ``cos theta`` of as many pairs of vectors as there are, ``[*]``, in [-1, 1].
        linear: Where to take 1 - t and t themselves, ``[*]``, for angles too close to 0 or pi.

    Returns:
        ``[2, *]``.
    """
    theta = np.arccos(np.where(linear, 0.0, cosine))
    return np.stack([np.where(linear, s, np.sin(s * theta) / np.sin(theta)) for s in (1.0 - t, t)])
