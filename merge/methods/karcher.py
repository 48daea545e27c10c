"""Karcher mean: the point of the sphere with the least squared angles to all models, at their mean norm."""

import math
from typing import Annotated

import numpy as np

from heterosis.merge.methods.base import Program, Within, merge_method
from heterosis.merge.methods.combine import Vector, combine
from heterosis.merge.statistics import Statistics


@merge_method("karcher", paper="https://arxiv.org/abs/2603.04972", base="ignored")
def karcher(
    tensor: Statistics,
    *,
    max_iter: Annotated[int, Within(0)] = 10,
    tol: Annotated[float, Within(0.0)] = 1e-5,
) -> Program:
    """``(mean_j |x_j|) m``, where the unit vector m minimises ``sum_j angle(m, x_j)^2``.

    Each tensor is one vector, all models count alike, and those with a norm up to ``tol`` have no direction.
    All iterates are linear combinations of the models, so their coefficients and the models' dot products are
    all that it takes: the tensor is read once more, at the end.

    Args:
        tensor: The inputs.
        max_iter: Steps at most; 0 gives the normalised mean of directions.
        tol: Length of a step, an angle or a norm that counts as zero.

    Differs from mergekit: a model opposite to m, with no shortest way from there, does not pull; and if all
    norms are up to ``tol``, the result is the plain mean instead of zero.
    """
    m, gram = tensor.models, np.array(tensor.gram())
    norms = np.sqrt(gram.diagonal())
    kept = np.flatnonzero(norms > tol)
    if m == 1 or not kept.size:
        return Program(combine.bind((1.0 / m,) * m))
    cosines = gram[np.ix_(kept, kept)] / np.outer(norms[kept], norms[kept])
    coefficients = np.zeros(m)
    coefficients[kept] = norms.mean() * mean_direction(cosines, max_iter, tol) / norms[kept]
    return Program(combine.bind(tuple(coefficients.tolist())))


def mean_direction(cosines: Vector, max_iter: int, tol: float) -> Vector:
    """The Karcher mean of unit vectors u_j, by Riemannian gradient descent.

    Args:
        cosines: Their dot products, ``[m, m]``.
        max_iter: Steps at most.
        tol: Length that counts as zero.

    Returns:
        The mean's coefficients a, ``[m]``: it is ``sum_j a_j u_j``.
    """

    def length(a: Vector) -> float:
        return math.sqrt(max(float(a @ cosines @ a), 0.0))

    n = len(cosines)
    mean = np.full(n, 1.0 / n)
    mean = mean / length(mean) if length(mean) > tol else np.eye(n)[0]
    for _ in range(max_iter):
        cosine = np.clip(cosines @ mean, -1.0, 1.0)
        theta = np.arccos(cosine)
        sine = np.sin(theta)
        pulls = np.divide(theta, n * sine, out=np.zeros(n), where=sine > tol)
        tangent = pulls - (pulls @ cosine) * mean  # sum_j pull_j (u_j - cos theta_j mean)
        step = length(tangent)
        if step <= tol:
            break
        mean = math.cos(step) * mean + math.sin(step) / step * tangent
        mean /= length(mean)
    return mean
