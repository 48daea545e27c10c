"""Arcee Fusion: take over the most important changes of one model to another, whole."""

import math

import numpy as np

from heterosis.merge.methods.base import Bound, Program, formula, merge_method, wide_formula
from heterosis.merge.statistics import Statistics, Vector

BASE, OTHER = 0, 1
EPSILON = 1e-8
INFINITY = np.float32(np.inf)


@formula
def value(i, x):  # type: ignore[no-untyped-def]
    """``x_j``, of the one model j that it is bound to."""
    return x[0]


@wide_formula
def exponential(i, x, width, maximum):  # type: ignore[no-untyped-def]
    """``exp(x_j - max x_j)``, the numerator of the softmax over a row of ``width``."""
    return math.exp(np.float64(x[0]) - np.float64(maximum[i // width]))


@wide_formula
def divergence(i, x, width, maximum, mass):  # type: ignore[no-untyped-def]
    """An element's part ``p log(p / q) - p + q`` in the divergence of two rows, with softmaxes p of x, q of b.

    The sum is that of ``p log(p / q)``, as p and q sum to the same. But no part is negative, so nothing cancels
    where the rows are nearly equal, and the rounding of ``mass`` matters to second order only.
    """
    row = i // width
    q = math.exp(np.float64(x[0]) - np.float64(maximum[0][row])) / np.float64(mass[0][row]) + EPSILON
    p = math.exp(np.float64(x[1]) - np.float64(maximum[1][row])) / np.float64(mass[1][row]) + EPSILON
    return p * math.log(p / q) - p + q


@formula
def importance(i, x, width, divergences):  # type: ignore[no-untyped-def]
    """``|x - b|`` times the divergence of the row."""
    return abs(x[1] - x[0]) * divergences[i // width]


@formula
def choose(i, x, width, divergences, threshold):  # type: ignore[no-untyped-def]
    """x where its importance reaches the threshold, else b; NaN and infinity stay, to be found at the end."""
    size = abs(x[1] - x[0]) * divergences[i // width]
    return x[0] if size < threshold else x[1] if size < INFINITY else size


def _divergences(models: Statistics) -> Vector:
    """``KL(softmax(x) || softmax(b))`` of every row."""
    width = models.width
    maxima = tuple(models.row_maxima(value.bind(models=(j,))) for j in (BASE, OTHER))
    masses = tuple(models.grouped_totals(exponential.bind(width, maxima[j], models=(j,))) for j in (BASE, OTHER))
    # Rounding may leave almost equal rows a hair below zero.
    return np.maximum(models.grouped_totals(divergence.bind(width, maxima, masses)), 0.0)


def _threshold(models: Statistics, quantity: Bound) -> float:
    """The median and one and a half interquartile ranges."""
    q1, median, q3 = models.ascending(quantity, *(k * (models.numel - 1) // 4 for k in (1, 2, 3)))
    return median + 1.5 * (q3 - q1)


@merge_method("arcee_fusion", paper="https://arcee.ai", base="input", inputs=(2, 2))
def arcee_fusion(models: Statistics) -> Program:
    """x where ``|x - b| KL(softmax(x) || softmax(b)) >= median + 1.5 (q3 - q1)`` over the tensor, else b.

    b is the base model and x the other one. Softmaxes are along the last dimension, with 1e-8 added to every
    probability; so is the divergence, one number for a row. The quartiles of n sorted importances are those at
    ``floor((n - 1) / 4)`` and so on.

    Args:
        models: The two inputs, base first.

    Differs from mergekit: quartiles are exact, where it takes them from a random sample of tensors above a
    million elements. Divergences are summed in float64; between lightly tuned models they are so small that in
    mergekit's dtypes, float32 too, a tenth of the elements and more are chosen by rounding. The result has the
    recipe's dtype, where mergekit gives float32 for bfloat16 models, and each element is b's or x's, unrounded.
    """
    width, divergences = models.width, _divergences(models)
    threshold = _threshold(models, importance.bind(width, divergences))
    return Program(choose.bind(width, divergences, threshold))
