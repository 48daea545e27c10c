"""Arcee Fusion: take over the most important changes of one model to another, whole."""

import math

import numpy as np
from numba.extending import register_jitable

from heterosis.merge.formulas import INFINITY, Bound, formula, row_quantity
from heterosis.merge.kernels import fused
from heterosis.merge.methods.base import Program, merge_method
from heterosis.merge.statistics import Statistics

EPSILON = 1e-8

# Constants of exp and log in float64, written out because loops over math.exp and math.log do not vectorise.
LN2 = math.log(2)
# Added to a small number, it leaves the nearest integer, in the lowest bits.
ROUNDED = 1.5 * 2.0**52
ROUNDED_BITS = np.float64(ROUNDED).view(np.int64)
# Where the exponent of a float64 begins in its bits, what is added to it there, and a half of its unit.
EXPONENT, BIAS, HALF = 52, 1023, 1 << 51
# The minimax polynomial of exp over [-LN2 / 2, LN2 / 2], from the highest power on: relative error 1.4e-14.
EXP = (
    2.763265575933203e-06,
    2.488447635159146e-05,
    0.0001984119061583585,
    0.0013888801714761622,
    0.008333333367332009,
    0.041666667040776456,
    0.16666666666615607,
    0.4999999999943814,
    1.0000000000000013,
    1.0000000000000135,
)
# (atanh(s) - s) / s ** 3 as a series in s ** 2, likewise.
ATANH = tuple(1 / n for n in (15, 13, 11, 9, 7, 5, 3))

# So many maxima, and partial sums, of a row are taken in turn, in loops that vectorise.
LANES = 64


@register_jitable
def polynomial(coefficients, x):  # type: ignore[no-untyped-def]
    """A polynomial's value, given its coefficients from the highest power on."""
    value = coefficients[0]
    for c in coefficients[1:]:
        value = fused(value, x, c)
    return value


@register_jitable
def power_of_two(k):  # type: ignore[no-untyped-def]
    """``2 ** k`` of an integer in [-1022, 1023]."""
    return np.int64((k + BIAS) << EXPONENT).view(np.float64)


@register_jitable
def exponential(x):  # type: ignore[no-untyped-def]
    """``exp(x)`` for ``x <= 0``, as ``2 ** k exp(r)`` with ``|r| <= LN2 / 2``; 1e-304 stands for less."""
    x = -700.0 if x < -700.0 else x
    shifted = fused(x, 1 / LN2, ROUNDED)
    k = shifted - ROUNDED
    return polynomial(EXP, fused(k, -LN2, x)) * power_of_two(np.float64(shifted).view(np.int64))


@register_jitable
def part(p, q):  # type: ignore[no-untyped-def]
    """``p log(p / q) - p + q`` of positive numbers.

    With q' = 2 ** k q, k so that p / q' is nearly 1, ``log(p / q') = 2 atanh(s)`` for ``s = (p - q') / (p + q')``,
    and |s| < 0.2. There is no cancellation where p is close to q, so k = 0.
    """
    # The bits of a float64 are, in units of its exponent's, within 0.09 of its logarithm to base 2.
    k = (np.float64(p).view(np.int64) - np.float64(q).view(np.int64) + HALF) >> EXPONENT
    near = q * power_of_two(k)
    s = (p - near) / (p + near)
    z = s * s
    close = (p + near) * fused((s + z) * z, polynomial(ATANH, z), z)
    return close + fused(p, (np.int64(k + ROUNDED_BITS).view(np.float64) - ROUNDED) * LN2, q - near)


@register_jitable
def maximum(row):  # type: ignore[no-untyped-def]
    """A row's largest entry."""
    lanes = row[:LANES].copy()
    for at in range(LANES, len(row), LANES):
        piece = row[at : at + LANES]
        for k in range(len(piece)):
            lanes[k] = max(lanes[k], piece[k])
    return lanes.max()


@register_jitable
def total(row):  # type: ignore[no-untyped-def]
    """The sum of a row's entries."""
    lanes = row[:LANES].copy()
    for at in range(LANES, len(row), LANES):
        piece = row[at : at + LANES]
        for k in range(len(piece)):
            lanes[k] += piece[k]
    return lanes.sum()


@register_jitable
def exponentials(row):  # type: ignore[no-untyped-def]
    """Turn a row's entries x into ``exp(x - max x)``; returns their sum."""
    largest = maximum(row)
    for k in range(len(row)):
        row[k] = exponential(row[k] - largest)
    return total(row)


@row_quantity
def divergence(rows):  # type: ignore[no-untyped-def]
    """``KL(softmax(x) || softmax(b))`` of a row b and a row x: p and q are the softmaxes of x and b.

    The sum of ``p log(p / q) - p + q`` is that of ``p log(p / q)``, as p and q sum to the same. But no part is
    negative, so nothing cancels where the rows are nearly equal, and the rounding of the softmaxes' denominators
    matters to second order only.
    """
    b, x = rows
    q, p = 1.0 / exponentials(b), 1.0 / exponentials(x)
    for k in range(len(b)):
        b[k] = part(fused(x[k], p, EPSILON), fused(b[k], q, EPSILON))
    return total(b)


@formula
def importance(i, x, divergence):  # type: ignore[no-untyped-def]
    """``|x - b|`` times the divergence of the row."""
    return abs(x[1] - x[0]) * divergence


@formula
def choose(i, x, divergence, threshold):  # type: ignore[no-untyped-def]
    """x where its importance reaches the threshold, else b; NaN and infinity stay, to be found at the end."""
    size = abs(x[1] - x[0]) * divergence
    return x[0] if size < threshold else x[1] if size < INFINITY else size


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
    width, divergences = models.width, models.of_rows(divergence.bind())
    threshold = _threshold(models, importance.bind(divergences, row_length=width))
    return Program(choose.bind(divergences, threshold, row_length=width))
