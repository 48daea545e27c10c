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

# Sums are taken over runs of this many elements, in float64, in four interleaved accumulators that hide the
# latency of the addition: an element's position in the tensor tells where it is added, so a sum does not depend
# on how the tensor was cut into blocks. The partial sums are then added exactly.
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
def digit_histogram(bits, shift, prefix, counts):  # type: ignore[no-untyped-def]
    """Count the 16-bit digit at ``shift`` of the unsigned ``bits`` whose higher digits equal ``prefix``."""
    for i in range(bits.shape[0]):
        if (bits[i] >> shift) >> 16 == prefix:
            counts[(bits[i] >> shift) & 0xFFFF] += 1


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
