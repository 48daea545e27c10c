"""Loops that call a formula: for every element, for sums over elements, for rows, for one model's values."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from numba import types

from heterosis.merge.kernels.compiling import FormulaLoop, inlined, inlined_overload, written_out
from heterosis.merge.kernels.sums import LANES, RUN, add_magnitudes
from heterosis.merge.kernels.uniform import fill_uniform, uniform
from heterosis.merge.kernels.values import (
    is_finite_in,
    magnitude_in,
    narrow,
    onto_base,
    size_of,
    slice_each,
    slice_of,
    store,
    store_finite,
    values_at,
    widen,
    widen_each,
)


@cache
def map_loop(formula: Callable[..., Any], each: Callable[..., Any] | None = None) -> Callable[..., bool]:
    """Merge the values of all models into one, for every element of a block.

    Args:
        formula: ``formula(i, x, *numbers)``.
        each: Applied before it to every model's value: ``each(i, x_j, *steps[j])``, or with keys, where u is the
            element's random number, ``each(i, x_j, u_j, *steps[j])``.

    Returns:
        ``loop(models, base, onto, start, length, steps, keys, scales, numbers, out)``. ``length`` is that of a row
        of the tensor, for the arrays among ``numbers`` (see `Bound`); a block may begin and end inside of rows.
        Values, after their steps, are multiplied by ``scales[j]`` unless that is None; ``onto`` is added to what
        the formula gives, unless it is None; ``out`` takes floats, bits of bfloat16, or is `Rounded`. With keys,
        no multiple of 2 ** 32 lies inside the block. The loop tells whether all that it put there is finite.
    """
    jitable, step_each = inlined(formula), _step_each(each)

    def loop(models, base, onto, start, length, steps, keys, scales, numbers, out):  # type: ignore[no-untyped-def]
        done, end, largest = 0, size_of(out), magnitude_in(np.float32(0), out)
        while done < end:
            at = start + done
            row, column = divmod(at, length)
            size = min(length - column, min(end - done, 1 << 30))  # which the loop's 32 bits hold
            stop = done + size
            own = _in_row(numbers, row, column, column + size)
            part, of_base = slice_each(models, done, stop), slice_of(base, done, stop)
            below, to = slice_of(onto, done, stop), slice_of(out, done, stop)
            for k in range(np.int32(size)):
                x = _scaled(step_each(at, k, values_at(part, of_base, k), keys, steps), scales)
                merged = onto_base(jitable(at + k, x, *_in_column(own, k)), below, k)
                largest = max(largest, magnitude_in(merged, out))
                store_finite(merged, to, k)
            done = stop
        return is_finite_in(largest, out)

    return FormulaLoop(loop, *filter(None, (formula, each)))


@cache
def _step_each(each: Callable[..., Any] | None) -> Callable[..., Any]:
    """A step for every model as a function of their tuple, for compiled code; None for what leaves it as it is."""
    jitable = inlined(each) if each else None

    def apply(start: Any, k: Any, x: Any, keys: Any, steps: Any) -> Any:
        """The steps, one after another."""

    @inlined_overload(apply)
    def apply_overload(start, k, x, keys, steps):  # type: ignore[no-untyped-def]
        if jitable is None:
            return lambda start, k, x, keys, steps: x
        random = "" if isinstance(keys, types.NoneType) else "uniform(start, k, keys[j]), "
        step = f"step(start + k, x[j], {random}*steps[j])"
        return written_out(step, len(x), "start, k, x, keys, steps", step=jitable, uniform=uniform)

    return apply


def _scaled(x: Any, scales: Any) -> Any:
    """Every model's value times its factor, if there are factors."""


@inlined_overload(_scaled)
def _scaled_overload(x, scales):  # type: ignore[no-untyped-def]
    if isinstance(scales, types.NoneType):
        return lambda x, scales: x
    return written_out("x[j] * scales[j]", len(x), "x, scales")


def _has_arrays(number: Any) -> bool:
    """Whether a number is an array, or a tuple with one inside; by their types."""
    if isinstance(number, types.BaseTuple):
        return any(map(_has_arrays, number))
    return isinstance(number, types.Array)


def _in_row(number: Any, row: Any, start: Any, stop: Any) -> Any:
    """A number in some columns of a row: of an array ``[rows, 1]`` the row's entry, of ``[columns]`` a slice."""


@inlined_overload(_in_row)
def _in_row_overload(number, row, start, stop):  # type: ignore[no-untyped-def]
    if not _has_arrays(number):
        return lambda number, row, start, stop: number
    if isinstance(number, types.Array):
        if number.ndim == 2:
            return lambda number, row, start, stop: number[row, 0]
        return lambda number, row, start, stop: number[start:stop]
    entry = "in_row(number[j], row, start, stop)"
    return written_out(entry, len(number), "number, row, start, stop", in_row=_in_row)


def _in_column(number: Any, k: Any) -> Any:
    """What `_in_row` gives, in one of its columns."""


@inlined_overload(_in_column)
def _in_column_overload(number, k):  # type: ignore[no-untyped-def]
    if not _has_arrays(number):
        return lambda number, k: number
    if isinstance(number, types.Array):
        return lambda number, k: number[k]
    return written_out("in_column(number[j], k)", len(number), "number, k", in_column=_in_column)


@cache
def totals_loop(formula: Callable[..., Any]) -> Callable[..., None]:
    """Add what a formula gives for every element of a block to sums of runs.

    Args:
        formula: ``formula(i, x, *numbers)``, which gives a tuple of q numbers.

    Returns:
        ``loop(models, base, start, numbers, scratch, sums)``. ``scratch`` is room for ``q * LANES`` numbers, and
        ``sums`` is ``[q, LANES + runs]``, as of `add_magnitudes`.
    """
    jitable = inlined(formula)

    def loop(models, base, start, numbers, scratch, sums):  # type: ignore[no-untyped-def]
        done, end = 0, models[0].shape[0]
        while done < end:
            index, within = divmod(start + done, RUN)
            lane = within % LANES
            stop = min(done + LANES - lane, end)
            at, size = start + done, stop - done
            part, of_base = slice_each(models, done, stop), slice_of(base, done, stop)
            for k in range(np.int32(size)):
                _spread(jitable(at + k, values_at(part, of_base, k), *numbers), scratch, k)
            for q in range(sums.shape[0]):
                if within == 0:
                    sums[q, :LANES] = 0
                given, lanes = scratch[q * LANES : q * LANES + size], sums[q, lane : lane + size]
                for k in range(size):
                    lanes[k] += np.float64(given[k])
                if stop == end or within + size == RUN:
                    sums[q, LANES + index] = sums[q, :LANES].sum()
            done = stop

    return FormulaLoop(loop, formula)


def _spread(numbers: Any, out: Any, k: Any) -> None:
    """Put a tuple's numbers into a result, `LANES` apart: of one array, LLVM sees that they do not overlap."""


@inlined_overload(_spread)
def _spread_overload(numbers, out, k):  # type: ignore[no-untyped-def]
    put = f"store(numbers[j], out, k + j * {LANES})"
    return written_out(put, len(numbers), "numbers, out, k", store=store)


@cache
def row_loop(formula: Callable[..., Any]) -> Callable[..., None]:
    """A number for every row of a block of whole rows, from the values of all models there.

    Args:
        formula: ``formula(rows, *numbers)``; it gets a row of float64 of each model, which it may overwrite.

    Returns:
        ``loop(models, base, numbers, scratch, out)``. ``scratch`` is room for a row of each model, a tuple.
    """
    jitable = inlined(formula)

    def loop(models, base, numbers, scratch, out):  # type: ignore[no-untyped-def]
        length = scratch[0].shape[0]
        for r in range(out.shape[0]):
            start, stop = r * length, (r + 1) * length
            widen_each(slice_each(models, start, stop), slice_of(base, start, stop), scratch)
            out[r] = jitable(scratch, *numbers)

    return FormulaLoop(loop, formula)


@cache
def step_loop(formula: Callable[..., Any], per_row: bool, random: bool) -> Callable[..., None]:
    """Apply a step to one model's values; where there is room for sums, add up magnitudes before and after it.

    Args:
        formula: ``formula(i, x, *numbers)``, or ``formula(i, x, u, *numbers)`` if it is random. Per row, x and u
            are whole rows ``[rows, length]``, and x is changed in place.
        per_row: Whether it takes whole rows.
        random: Whether it takes random numbers.

    Returns:
        ``loop(values, base, start, length, key, numbers, scratch, u, before, after, out)``. ``length`` is that of
        a row; ``scratch`` and ``u`` are room for some whole rows of floats, which are worked on at a time;
        ``before`` and ``after`` are sums (see `add_magnitudes`), or empty; ``out`` takes floats or bits of
        bfloat16, and may be ``values``.
    """
    jitable = inlined(formula)

    def loop(values, base, start, length, key, numbers, scratch, u, before, after, out):  # type: ignore[no-untyped-def]
        for first in range(0, values.shape[0], scratch.shape[0]):
            stop = min(first + scratch.shape[0], values.shape[0])
            at, x, of_x = start + first, scratch[: stop - first], u[: stop - first]
            widen(values[first:stop], slice_of(base, first, stop), x)
            if before.shape[0]:
                add_magnitudes(x, x, at, RUN, before)
            if random:
                fill_uniform(at, key, of_x)
            if per_row:
                if random:
                    jitable(at, x.reshape((-1, length)), of_x.reshape((-1, length)), *numbers)
                else:
                    jitable(at, x.reshape((-1, length)), *numbers)
            elif random:
                for k in range(x.shape[0]):
                    x[k] = jitable(at + k, x[k], of_x[k], *numbers)
            else:
                for k in range(x.shape[0]):
                    x[k] = jitable(at + k, x[k], *numbers)
            if after.shape[0]:
                add_magnitudes(x, x, at, RUN, after)
            narrow(x, out[first:stop])

    return FormulaLoop(loop, formula)
