"""The linear combination of m models, and what methods make of their weights to get there."""

from heterosis.merge.methods.base import ZERO, PerInput, formula


@formula
def combine(i, x, coefficients):  # type: ignore[no-untyped-def]
    """``sum_j c_j x_j``, summed in the order of the models."""
    total = ZERO
    for j in range(len(x)):
        total += coefficients[j] * x[j]
    return total


def averaging(weight: PerInput) -> PerInput:
    """Coefficients of the weighted mean, ``w_j / sum_k w_k``.

    Raises:
        ValueError: If the weights sum to zero.
    """
    total = sum(weight)
    if abs(total) < 1e-8:
        raise ValueError(f"`sum of weights != 0` must hold with normalize, but got weight={list(weight)}")
    return tuple(w / total for w in weight)


def scaling(weight: PerInput, normalize: bool, lambda_: float) -> PerInput:
    """Coefficients of a sum of task vectors, ``lambda w_j``, over the sum of weights with ``normalize``."""
    return tuple(lambda_ * w for w in (averaging(weight) if normalize else weight))
