"""SCE: select the positions where models differ, calculate weights, erase the minority's signs."""

import math
from typing import Annotated

import numpy as np
from numba.extending import register_jitable

from heterosis.merge.formulas import ONE, ZERO, Cut, formula, per_model, wide_formula
from heterosis.merge.methods.base import Program, Uniform, Within, merge_method
from heterosis.merge.statistics import Statistics

# Of the sum of mean squares, and of an element's weights, as in mergekit.
NEGLIGIBLE = 1e-6
LEAST_MASS = np.float32(NEGLIGIBLE)


@register_jitable
def spread(d):  # type: ignore[no-untyped-def]
    """``sum_{j<k} (d_j - d_k)^2``: m^2 times the variance, and exactly zero where all are equal."""
    total = ZERO
    for k in range(1, len(d)):
        for j in range(k):
            total += (d[k] - d[j]) * (d[k] - d[j])
    return total


@register_jitable
def is_selected(d, cut):  # type: ignore[no-untyped-def]
    """Whether the models differ enough. NaN is selected, to be found at the end."""
    return not spread(d) < cut


@formula
def variation(i, d):  # type: ignore[no-untyped-def]
    """The models' variance, up to a factor."""
    return spread(d)


@per_model
def square(d, counts):  # type: ignore[no-untyped-def]
    """``d_j^2``, or zero."""
    return np.float64(d) * np.float64(d) if counts else np.float64(0)


@wide_formula
def selected_squares(i, d, cut):  # type: ignore[no-untyped-def]
    """``d_j^2`` of every model where selected."""
    return square(d, is_selected(d, cut))


@formula
def fuse(i, d, weight, cut):  # type: ignore[no-untyped-def]
    """The weighted mean of the entries whose sign is that of the plain sum, where selected, else zero.

    A sum of zero counts as positive.
    """
    total = ZERO
    for j in range(len(d)):
        total += d[j]
    sign = math.copysign(ONE, total)  # never of -0, as no sum that begins with 0 is
    merged, mass = ZERO, ZERO
    for j in range(len(d)):
        opposes = d[j] * sign <= 0  # false for NaN, which must not vanish
        merged += ZERO if opposes else weight[j] * d[j]
        mass += ZERO if opposes else weight[j]
    mean = merged / max(mass, LEAST_MASS)
    return mean if is_selected(d, cut) else ZERO


def _select(deltas: Statistics, fraction: float) -> Cut:
    """The cut that keeps a fraction of the positions where the models differ at all."""
    quantity = variation.bind()
    keep = math.floor(fraction * deltas.positive(quantity)) if fraction < 1 else deltas.numel
    return deltas.cut(quantity, keep)


@merge_method(
    "sce",
    paper="https://arxiv.org/abs/2408.07990",
    base="required",
    search={"select_topk": Uniform(0.05, 1.0)},
)
def sce(deltas: Statistics, *, select_topk: Annotated[float, Within(0.0, 1.0)] = 1.0) -> Program:
    """Merge task vectors where they vary most, weighted by their mean squares there, summing only entries that
    agree with the sign of the plain sum.

    Args:
        deltas: Task vectors.
        select_topk: Fraction of the positions where the task vectors differ that counts, those with the largest
            variance; of n, ``floor(select_topk n)``. 1 takes all positions, also those without variance. A
            single task vector has no variance: below 1 it merges to the base.

    Differs from the paper: weights are per tensor, as in mergekit; they are equal where the mean squares sum to
    less than 1e-6, which is usual for lightly tuned models; of equal variances the first positions count.
    Differs from mergekit: variances are not rounded to the recipe's dtype.
    """
    cut = _select(deltas, select_topk)
    squares = deltas.totals(selected_squares.bind(cut))
    total = math.fsum(squares)
    uniform = total / deltas.numel < NEGLIGIBLE
    weight = tuple(1 / deltas.models if uniform else square / total for square in squares)
    return Program(fuse.bind(weight, cut))
