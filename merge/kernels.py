"""Loops over blocks: per-element formulas and sums, compiled by numba for the CPU.

A formula is an ordinary function of scalars and of tuples with one entry per model. Because a tuple's
length is part of its type, the loop over models inside a formula unrolls and the loop over elements
vectorises (docs/design/0001-the-spine.md has the figures). Nothing here reassociates sums, so results do not
depend on blocks, threads or order.

What a loop reads is `Inputs`: a row for each model, of float32 (float64 for float64 recipes) or of the bits of
bfloat16 as 16-bit integers, which are widened in registers. With a base, rows of bits are models, and formulas get
task vectors, rounded to bfloat16 if the base is bits too; rows of floats are task vectors already.
"""

import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import overload, register_jitable

Row = np.ndarray[tuple[int], np.dtype[Any]]

# Sums are taken over runs of this many elements, in float64, in four interleaved accumulators that hide the
# latency of the addition: an element's position in the tensor tells where it is added, so a sum does not depend
# on how the tensor was cut into blocks. The partial sums are then added exactly.
RUN = 4096


class Inputs(NamedTuple):
    """The values of all models in a block, and the base's where there is one."""

    rows: tuple[Row, ...]
    base: Row | None = None


# --- bfloat16 as bits: the upper half of a float32 --------------------------------------------------------------


@register_jitable
def _rounded_bits(x):  # type: ignore[no-untyped-def]
    """The bits of a float32 rounded to bfloat16, to nearest and ties to even, in the upper half."""
    bits = np.float32(x).view(np.uint32)
    even = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    up = np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + even)
    return np.uint32(0x7FC00000) if x != x else up  # a NaN could become a number else


def _wide(value: Any) -> Any:
    """A row's entry as a float."""


@overload(_wide)
def _wide_overload(value):  # type: ignore[no-untyped-def]
    if isinstance(value, types.Integer):
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: value


def _delta(value: Any, base: Any) -> Any:
    """A row's entry as a task vector's."""


@overload(_delta)
def _delta_overload(value, base):  # type: ignore[no-untyped-def]
    if not isinstance(value, types.Integer):
        return lambda value, base: value
    if isinstance(base, types.Integer):
        return lambda value, base: np.uint32(
            np.uint32(_rounded_bits(_wide(value) - _wide(base))) & np.uint32(0xFFFF0000)
        ).view(np.float32)
    return lambda value, base: _wide(value) - base


def _column(rows: Any, base: Any, i: Any) -> Any:
    """What formulas get of element ``i``: a tuple with one value per model."""


@overload(_column)
def _column_overload(rows, base, i):  # type: ignore[no-untyped-def]
    # One expression per length, because numba builds tuples only from fixed expressions.
    if isinstance(base, types.NoneType):
        if len(rows) == 1:
            return lambda rows, base, i: (_wide(rows[0][i]),)
        return lambda rows, base, i: (_wide(rows[0][i]), *_column(rows[1:], base, i))
    if len(rows) == 1:
        return lambda rows, base, i: (_delta(rows[0][i], base[i]),)
    return lambda rows, base, i: (_delta(rows[0][i], base[i]), *_column(rows[1:], base, i))


def _merged(value: Any, base: Any, i: Any, out: Any) -> Any:
    """A merged value, on top of the base, as ``out`` holds it."""


@overload(_merged)
def _merged_overload(value, base, i, out):  # type: ignore[no-untyped-def]
    if isinstance(out.dtype, types.Integer):
        if isinstance(base, types.NoneType):
            return lambda value, base, i, out: np.uint16(np.uint32(_rounded_bits(value) >> np.uint32(16)))
        return lambda value, base, i, out: np.uint16(
            np.uint32(_rounded_bits(value + _wide(base[i])) >> np.uint32(16))
        )
    if isinstance(base, types.NoneType):
        return lambda value, base, i, out: value
    return lambda value, base, i, out: value + _wide(base[i])


@numba.njit(nogil=True, cache=True)
def all_finite(bits):  # type: ignore[no-untyped-def]
    """Whether no bfloat16 is NaN or infinite, given their bits."""
    bad = 0
    for i in range(bits.shape[0]):
        bad += (bits[i] & 0x7F80) == 0x7F80
    return bad == 0


# --- formulas ---------------------------------------------------------------------------------------------------


def _stamp(formula: Callable[..., Any]) -> str:
    """A hash of the file that a formula lives in, to make it part of the key of the compiled loop.

    numba's on-disk cache watches the file of the loop, which is this one, and not that of the formula.
    """
    return hashlib.blake2b(
        inspect.getsource(inspect.getmodule(formula) or formula).encode(), digest_size=8
    ).hexdigest()


@cache
def map_loop(formula: Callable[..., Any], each: Callable[..., Any] | None = None) -> Callable[..., None]:
    """Merge the values of all models into one, for every element of a block.

    Args:
        formula: ``formula(i, x, *numbers)``.
        each: Applied before it to every model's value: ``each(i, x_j, *each_numbers[j])``.

    Returns:
        ``loop(rows, base, start, each_numbers, numbers, out)``. With a base, it is added to what the formula
        gives; ``out`` takes floats, or bits of bfloat16.
    """
    jitable, stamp = register_jitable(formula), _stamp(formula)
    if each is None:

        @numba.njit(nogil=True, cache=True, error_model="numpy")
        def loop(rows, base, start, each_numbers, numbers, out):  # type: ignore[no-untyped-def]
            stamp  # noqa: B018
            for i in range(out.shape[0]):
                value = jitable(start + i, _column(rows, base, i), *numbers)
                out[i] = _merged(value, base, i, out)

        return loop  # type: ignore[no-any-return]

    stepped, stamp = _stepped(each), stamp + _stamp(each)

    @numba.njit(nogil=True, cache=True, error_model="numpy")
    def loop_with_step(rows, base, start, each_numbers, numbers, out):  # type: ignore[no-untyped-def]
        stamp  # noqa: B018
        for i in range(out.shape[0]):
            x = stepped(start + i, _column(rows, base, i), each_numbers)
            out[i] = _merged(jitable(start + i, x, *numbers), base, i, out)

    return loop_with_step  # type: ignore[no-any-return]


@cache
def quantity_loop(formula: Callable[..., Any]) -> Callable[..., None]:
    """``loop(rows, base, start, numbers, out)``: the formula's value for every element of a block."""
    jitable, stamp = register_jitable(formula), _stamp(formula)

    @numba.njit(nogil=True, cache=True, error_model="numpy")
    def loop(rows, base, start, numbers, out):  # type: ignore[no-untyped-def]
        stamp  # noqa: B018
        for i in range(out.shape[0]):
            out[i] = jitable(start + i, _column(rows, base, i), *numbers)

    return loop  # type: ignore[no-any-return]


@cache
def _stepped(each: Callable[..., Any]) -> Callable[..., Any]:
    """A step for every model as a function of their tuple, for compiled code."""
    jitable = register_jitable(each)

    def apply(i: Any, x: Any, numbers: Any) -> Any:
        """The steps, one after another."""

    @overload(apply)
    def apply_overload(i, x, numbers):  # type: ignore[no-untyped-def]
        if len(x) == 1:
            return lambda i, x, numbers: (jitable(i, x[0], *numbers[0]),)
        return lambda i, x, numbers: (jitable(i, x[0], *numbers[0]), *apply(i, x[1:], numbers[1:]))

    return apply


@cache
def each_loop(formula: Callable[..., Any]) -> Callable[..., None]:
    """``loop(row, start, numbers)``: ``row[i] = formula(start + i, row[i], *numbers)``, in place."""
    jitable, stamp = register_jitable(formula), _stamp(formula)

    @numba.njit(nogil=True, cache=True, error_model="numpy")
    def loop(row, start, numbers):  # type: ignore[no-untyped-def]
        stamp  # noqa: B018
        for i in range(row.shape[0]):
            row[i] = jitable(start + i, row[i], *numbers)

    return loop  # type: ignore[no-any-return]


@numba.njit(nogil=True, cache=True)
def widen_row(row, base, out):  # type: ignore[no-untyped-def]
    """What formulas get of one model, as floats."""
    for i in range(out.shape[0]):
        out[i] = _column((row,), base, i)[0]


@cache
def rows_loop(formula: Callable[..., Any]) -> Callable[..., None]:
    """``loop(rows, start, length, numbers)``: the formula changes every whole row of ``length`` in place."""
    jitable, stamp = register_jitable(formula), _stamp(formula)

    @numba.njit(nogil=True, cache=True, error_model="numpy")
    def loop(rows, start, length, numbers):  # type: ignore[no-untyped-def]
        stamp  # noqa: B018
        for at in range(0, rows.shape[0], length):
            jitable(start + at, rows[at : at + length], *numbers)

    return loop  # type: ignore[no-any-return]


@numba.njit(nogil=True, cache=True)
def add_runs(values, start, partials):  # type: ignore[no-untyped-def]
    """Add a block's values, which begin at ``start``, to the partial sums ``[runs, 4]``."""
    at, end = 0, values.shape[0]
    while at < end:
        run = (start + at) // RUN
        stop = min(end, (run + 1) * RUN - start)
        while at < stop and (start + at) % 4:
            partials[run, (start + at) % 4] += np.float64(values[at])
            at += 1
        s0, s1, s2, s3 = partials[run, 0], partials[run, 1], partials[run, 2], partials[run, 3]
        while at + 4 <= stop:
            s0 += np.float64(values[at])
            s1 += np.float64(values[at + 1])
            s2 += np.float64(values[at + 2])
            s3 += np.float64(values[at + 3])
            at += 4
        partials[run, 0], partials[run, 1], partials[run, 2], partials[run, 3] = s0, s1, s2, s3
        while at < stop:
            partials[run, (start + at) % 4] += np.float64(values[at])
            at += 1


@numba.njit(nogil=True, cache=True)
def add_dot_runs(a, b, start, partials):  # type: ignore[no-untyped-def]
    """Add the products of two blocks, which begin at ``start``, to the partial sums ``[runs, 4]``."""
    at, end = 0, a.shape[0]
    while at < end:
        run = (start + at) // RUN
        stop = min(end, (run + 1) * RUN - start)
        while at < stop and (start + at) % 4:
            partials[run, (start + at) % 4] += np.float64(a[at]) * np.float64(b[at])
            at += 1
        s0, s1, s2, s3 = partials[run, 0], partials[run, 1], partials[run, 2], partials[run, 3]
        while at + 4 <= stop:
            s0 += np.float64(a[at]) * np.float64(b[at])
            s1 += np.float64(a[at + 1]) * np.float64(b[at + 1])
            s2 += np.float64(a[at + 2]) * np.float64(b[at + 2])
            s3 += np.float64(a[at + 3]) * np.float64(b[at + 3])
            at += 4
        partials[run, 0], partials[run, 1], partials[run, 2], partials[run, 3] = s0, s1, s2, s3
        while at < stop:
            partials[run, (start + at) % 4] += np.float64(a[at]) * np.float64(b[at])
            at += 1


@numba.njit(nogil=True, cache=True)
def add_groups(values, start, stride, totals):  # type: ignore[no-untyped-def]
    """Add a block's values, in order, to ``totals[position // stride % len(totals)]``."""
    for i in range(values.shape[0]):
        totals[(start + i) // stride % totals.shape[0]] += np.float64(values[i])


@numba.njit(nogil=True, cache=True)
def max_groups(values, start, stride, maxima):  # type: ignore[no-untyped-def]
    """Raise ``maxima[position // stride % len(maxima)]`` to a block's values where those are larger."""
    for i in range(values.shape[0]):
        group = (start + i) // stride % maxima.shape[0]
        maxima[group] = max(maxima[group], np.float64(values[i]))


@numba.njit(nogil=True, cache=True)
def digit_histogram(bits, shift, lower, prefix, counts):  # type: ignore[no-untyped-def]
    """Count the 16-bit digit at ``shift`` of the unsigned ``bits`` whose higher digits equal ``prefix``.

    Args:
        bits: ``[n]``; of zeros, the sign may be set.
        shift: Position of the digit's lowest bit.
        lower: A mask of the bits below it.
        prefix: The higher digits, 0 where there are none.
        counts: ``[4, 2 ** 16]``: four histograms in turn, so that equal neighbours do not wait for each other.

    Returns:
        Whether any bit below the digit is set anywhere.
    """
    below = bits[0] & 0
    whole = bits.shape[0] // 4 * 4
    top = bits.itemsize * 8 - shift
    digit = (1 << min(top - 1, 16)) - 1  # without the sign of a zero
    if top == 16:
        for i in range(0, whole, 4):
            for k in range(4):
                below |= bits[i + k] & lower
                counts[k, (bits[i + k] >> shift) & digit] += 1
    else:
        for i in range(0, whole, 4):
            for k in range(4):
                value = bits[i + k]
                below |= value & lower
                if ((value >> shift) >> 16) & (1 << (top - 17)) - 1 == prefix:
                    counts[k, (value >> shift) & 0xFFFF] += 1
    for i in range(whole, bits.shape[0]):
        value = bits[i]
        below |= value & lower
        if top == 16:
            counts[0, (value >> shift) & digit] += 1
        elif ((value >> shift) >> 16) & (1 << (top - 17)) - 1 == prefix:
            counts[0, (value >> shift) & 0xFFFF] += 1
    return below != 0


@numba.njit(nogil=True, cache=True)
def find_equal(row, value, count):  # type: ignore[no-untyped-def]
    """The position of the ``count``-th entry (from 1) equal to ``value`` or -1, and how many were seen."""
    seen = 0
    for i in range(row.shape[0]):
        if row[i] == value:
            seen += 1
            if seen == count:
                return i, seen
    return -1, seen
