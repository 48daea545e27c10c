"""Model Stock: how far to go from the base to the mean of the models, from the angles between them."""

from itertools import combinations

import numpy as np

from heterosis.merge.methods.base import Program, merge_method
from heterosis.merge.methods.combine import Vector, combine
from heterosis.merge.statistics import Statistics

SMALLEST = 1e-6  # products of norms, and denominators, below this count as this and as zero


@merge_method("model_stock", paper="https://arxiv.org/abs/2403.19522", base="required", inputs=(2, None))
def model_stock(deltas: Statistics, *, filter_wise: bool = False) -> Program:
    """``b + t mean_j d_j`` with ``t = m c / (1 + (m - 1) c)``, c the mean cosine of all pairs of task vectors.

    The cosine of two task vectors counts for less if the product of their norms is below 1e-6, in proportion.
    Where they are opposed so that the denominator vanishes, t is 0.

    Args:
        deltas: Task vectors, two or more.
        filter_wise: Whether t is that of each row, along the last dimension, instead of the tensor's.

    Differs from the paper: t is a tensor's or a row's, where the paper takes it by layer; and the paper's c is
    one angle that all pairs share, which here is their mean.
    """
    m = deltas.models
    if filter_wise:
        return Program(combine.bind((deltas.of_grams(share),) * m, row_length=deltas.width))
    return Program(combine.bind((float(share(np.array(deltas.gram()))),) * m))


def share(grams: Vector) -> Vector:
    """``t / m`` from dot products: from ``[m, m]`` to a number, or from ``[m, m, rows]`` to ``[rows]``."""
    m = len(grams)
    norms = [np.sqrt(grams[j, j]) for j in range(m)]
    cosines = [grams[j, k] / np.maximum(norms[j] * norms[k], SMALLEST) for j, k in combinations(range(m), 2)]
    cosines = np.clip(cosines, -1.0, 1.0)
    # Of rows, added one after another: numpy's order would be another one for a single row than for several.
    c = cosines.mean() if cosines.ndim == 1 else np.cumsum(cosines, axis=0)[-1] / len(cosines)
    denominator = 1.0 + (m - 1) * c
    opposed = np.abs(denominator) < SMALLEST
    return np.where(opposed, 0.0, c / np.where(opposed, 1.0, denominator))
