"""Loops over blocks: per-element formulas and sums, compiled by numba for the CPU.

A formula is an ordinary function of scalars and of tuples with one entry per model. Because a tuple's
length is part of its type, the loop over models inside a formula unrolls and the loop over elements
vectorises (docs/design/0001-the-spine.md has the figures). Rows are float32, or float64 for float64
recipes. Nothing here reassociates sums, so results do not depend on blocks, threads or order.
"""

import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from numba.extending import overload, register_jitable

Row = np.ndarray[tuple[int], np.dtype[Any]]

# Sums are taken over runs of this many elements, in order and in float64; the partial sums are then
# added exactly. Blocks begin at multiples of it, so a sum does not depend on how a tensor was cut.
RUN = 4096


def column(rows: tuple[Row, ...], i: int) -> tuple[Any, ...]:
    """Element ``i`` of every row."""
    return tuple(row[i] for row in rows)


@overload(column)
def _column(rows, i):  # type: ignore[no-untyped-def]
    # One expression per length, because numba builds tuples only from fixed expressions.
    if len(rows) == 0:
        return lambda rows, i: ()
    if len(rows) == 1:
        return lambda rows, i: (rows[0][i],)
    return lambda rows, i: (rows[0][i], *column(rows[1:], i))


def _stamp(formula: Callable[..., Any]) -> str:
    """A hash of the file that a formula lives in, to make it part of the key of the compiled loop.

    numba's on-disk cache watches the file of the loop, which is this one, and not that of the formula.
    """
    return hashlib.blake2b(
        inspect.getsource(inspect.getmodule(formula) or formula).encode(), digest_size=8
    ).hexdigest()


@cache
def map_loop(formula: Callable[..., Any]) -> Callable[..., None]:
    """``loop(rows, start, numbers, out)``: ``out[i] = formula(start + i, column(rows, i), *numbers)``."""
    jitable, stamp = register_jitable(formula), _stamp(formula)

    @numba.njit(nogil=True, cache=True, error_model="numpy")
    def loop(rows, start, numbers, out):  # type: ignore[no-untyped-def]
        stamp  # noqa: B018
        for i in range(out.shape[0]):
            out[i] = jitable(start + i, column(rows, i), *numbers)

    return loop  # type: ignore[no-any-return]


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
def dot_partials(a, b):  # type: ignore[no-untyped-def]
    """Sums of ``a * b`` over each run, in float64. ``a``, ``b``: ``[n]``."""
    runs = (a.shape[0] + RUN - 1) // RUN
    partials = np.zeros(runs)
    for r in range(runs):
        # Four interleaved accumulators hide the latency of the addition; their order is fixed.
        s0 = s1 = s2 = s3 = 0.0
        start, stop = r * RUN, min((r + 1) * RUN, a.shape[0])
        whole = stop - (stop - start) % 4
        for i in range(start, whole, 4):
            s0 += np.float64(a[i]) * np.float64(b[i])
            s1 += np.float64(a[i + 1]) * np.float64(b[i + 1])
            s2 += np.float64(a[i + 2]) * np.float64(b[i + 2])
            s3 += np.float64(a[i + 3]) * np.float64(b[i + 3])
        for i in range(whole, stop):
            s0 += np.float64(a[i]) * np.float64(b[i])
        partials[r] = (s0 + s1) + (s2 + s3)
    return partials


@numba.njit(nogil=True, cache=True)
def absolute_partials(a):  # type: ignore[no-untyped-def]
    """Sums of ``|a|`` over each run, in float64. ``a``: ``[n]``."""
    runs = (a.shape[0] + RUN - 1) // RUN
    partials = np.zeros(runs)
    for r in range(runs):
        s0 = s1 = s2 = s3 = 0.0
        start, stop = r * RUN, min((r + 1) * RUN, a.shape[0])
        whole = stop - (stop - start) % 4
        for i in range(start, whole, 4):
            s0 += abs(np.float64(a[i]))
            s1 += abs(np.float64(a[i + 1]))
            s2 += abs(np.float64(a[i + 2]))
            s3 += abs(np.float64(a[i + 3]))
        for i in range(whole, stop):
            s0 += abs(np.float64(a[i]))
        partials[r] = (s0 + s1) + (s2 + s3)
    return partials


@numba.njit(nogil=True, cache=True)
def digit_histogram(bits, shift, prefix, counts):  # type: ignore[no-untyped-def]
    """Count the 16-bit digit at ``shift`` of the unsigned ``bits`` whose higher digits equal ``prefix``."""
    for i in range(bits.shape[0]):
        if (bits[i] >> shift) >> 16 == prefix:
            counts[(bits[i] >> shift) & 0xFFFF] += 1


@numba.njit(nogil=True, cache=True)
def find_equal(row, value, count):  # type: ignore[no-untyped-def]
    """The position of the ``count``-th entry (from 1) with ``|entry| == value`` or -1, and how many were seen."""
    seen = 0
    for i in range(row.shape[0]):
        if abs(row[i]) == value:
            seen += 1
            if seen == count:
                return i, seen
    return -1, seen
