"""Loops over blocks: per-element formulas and sums, compiled by numba for the CPU.

A formula is an ordinary function of scalars and of tuples with one entry per model. Because a tuple's
length is part of its type, the loop over models inside a formula unrolls and the loop over elements
vectorises (docs/design/0001-the-spine.md has the figures). Nothing here reassociates sums, so results do not
depend on blocks, threads or order.

What a loop reads is `Inputs`: a row for each model, of float32 (float64 for float64 recipes) or of the bits of
bfloat16 as 16-bit integers, which are widened in registers. With a base, rows of bits are models, and formulas get
task vectors, rounded to bfloat16 if the base is bits too; rows of floats are task vectors already, and so are rows
of bits if the base is `Subtracted`.

LLVM vectorises a loop that runs from 0 over slices, but not one whose indices have an offset.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic, overload, register_jitable

Row = np.ndarray[tuple[int], np.dtype[Any]]

# Sums are taken over runs of this many elements, in float64, in interleaved lanes that vectorise: an element's
# position in the tensor tells where it is added, so a sum does not depend on how the tensor was cut into blocks.
# The partial sums are then added exactly.
RUN = 16384
LANES = 256


def compiled(loop: Callable[..., Any], *formulas: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Compile a loop for this CPU without the GIL, and keep the machine code on disk for the next process.

    numba finds code there by the name and the line of the loop, and watches only the file that this is in; several
    loops of one name, or two processes at once, could mix it up. So the name tells of the formulas that the loop
    calls, and of the content of all files that formulas may come from.
    """
    names = [f"{formula.__module__}.{formula.__qualname__}" for formula in formulas]
    files = [Path(formula.__code__.co_filename) for formula in (loop, *formulas)]
    # Without a file, as in a notebook, there is nothing to tell a new version by; of functions that one function
    # makes, names do not tell which is which.
    if not all(file.is_file() for file in files) or any("<locals>" in name for name in names):
        return numba.njit(nogil=True, **options)(loop)  # type: ignore[no-any-return]
    loop.__qualname__ = ".".join([loop.__qualname__, *names, source_hash(loop, *formulas)])
    try:
        return numba.njit(nogil=True, cache=True, **options)(loop)  # type: ignore[no-any-return]
    except RuntimeError:  # there is no folder to keep it in
        return numba.njit(nogil=True, **options)(loop)  # type: ignore[no-any-return]


@cache
def source_hash(*functions: Callable[..., Any]) -> str:
    """A hash of the files that functions are in, and of those that may hold what they call."""
    files = {Path(function.__code__.co_filename) for function in functions}
    own = [Path(__file__), *(Path(__file__).parent / "methods").glob("*.py")]
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted({*own, *filter(Path.is_file, files)}):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Rounded(NamedTuple):
    """A result of floats that takes values of bfloat16, as a live model in float32 does."""

    row: Row


class Unrounded(NamedTuple):
    """A base of bits from which task vectors are not rounded."""

    row: Row


class Subtracted(NamedTuple):
    """A base of bits that has been subtracted from the rows already."""

    row: Row


class Inputs(NamedTuple):
    """The values of all models in a block, and the base's where it is still to be subtracted."""

    rows: tuple[Row, ...]
    base: Row | Unrounded | Subtracted | None = None

    def part(self, elements: slice) -> "Inputs":
        """Some of them."""
        return Inputs(tuple(row[elements] for row in self.rows), part_of(self.base, elements))


def part_of(row: Any, elements: slice) -> Any:
    """Some elements of what loops take: of a row, of one that is marked, or of None."""
    if isinstance(row, Rounded | Unrounded | Subtracted):
        return type(row)(row.row[elements])
    return None if row is None else row[elements]


# --- bfloat16 as bits: the upper half of a float32 --------------------------------------------------------------


@register_jitable
def _rounded_bits(x):  # type: ignore[no-untyped-def]
    """The bits of a float32 rounded to bfloat16, to nearest and ties to even, in the upper half."""
    return np.uint32(0x7FC00000) if x != x else _rounded_difference(x)  # a NaN could become a number else


@register_jitable
def _rounded_difference(x):  # type: ignore[no-untyped-def]
    """The same of a difference of values of bfloat16: in a NaN the lower half is zero, and so it stays one."""
    bits = np.float32(x).view(np.uint32)
    even = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + even)


def _wide(value: Any) -> Any:
    """A row's entry as a float."""


@overload(_wide)
def _wide_overload(value):  # type: ignore[no-untyped-def]
    if isinstance(value, types.Integer):
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: value


def _delta(row: Any, base: Any, i: Any) -> Any:
    """A row's entry as a task vector's."""


@overload(_delta)
def _delta_overload(row, base, i):  # type: ignore[no-untyped-def]
    if not isinstance(row.dtype, types.Integer):
        return lambda row, base, i: row[i]
    if isinstance(base, types.BaseTuple):
        if base.instance_class is Subtracted:
            return lambda row, base, i: _wide(row[i])
        return lambda row, base, i: _wide(row[i]) - _wide(base.row[i])
    if isinstance(base.dtype, types.Integer):
        return lambda row, base, i: np.uint32(
            np.uint32(_rounded_difference(_wide(row[i]) - _wide(base[i]))) & np.uint32(0xFFFF0000)
        ).view(np.float32)
    return lambda row, base, i: _wide(row[i]) - base[i]


def _entry(row: Any, base: Any, i: Any) -> Any:
    """What formulas get of element ``i`` of one model."""


@overload(_entry)
def _entry_overload(row, base, i):  # type: ignore[no-untyped-def]
    if isinstance(base, types.NoneType):
        return lambda row, base, i: _wide(row[i])
    return lambda row, base, i: _delta(row, base, i)


@register_jitable
def _magnitude_bits(row, base, i):  # type: ignore[no-untyped-def]
    """The bits of the magnitude of what formulas get of element ``i``, a value of bfloat16."""
    bits = np.uint32(np.float32(_entry(row, base, i)).view(np.uint32) >> np.uint32(16))
    return np.uint16(bits & np.uint32(0x7FFF))


def _part(base: Any, start: Any, stop: Any) -> Any:
    """A slice of the base, if there is one, or of a result."""


@overload(_part)
def _part_overload(base, start, stop):  # type: ignore[no-untyped-def]
    if isinstance(base, types.NoneType):
        return lambda base, start, stop: None
    if isinstance(base, types.BaseTuple):
        kind = base.instance_class
        return lambda base, start, stop: kind(base.row[start:stop])
    return lambda base, start, stop: base[start:stop]


def _parts(rows: Any, start: Any, stop: Any) -> Any:
    """A slice of every row."""


@overload(_parts)
def _parts_overload(rows, start, stop):  # type: ignore[no-untyped-def]
    if len(rows) == 1:
        return lambda rows, start, stop: (rows[0][start:stop],)
    return lambda rows, start, stop: (rows[0][start:stop], *_parts(rows[1:], start, stop))


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
        return lambda rows, base, i: (_delta(rows[0], base, i),)
    return lambda rows, base, i: (_delta(rows[0], base, i), *_column(rows[1:], base, i))


def _onto(value: Any, base: Any, i: Any) -> Any:
    """A merged value on top of the base, if there is one."""


@overload(_onto)
def _onto_overload(value, base, i):  # type: ignore[no-untyped-def]
    if isinstance(base, types.NoneType):
        return lambda value, base, i: value
    if isinstance(base, types.BaseTuple):
        return lambda value, base, i: value + _wide(base.row[i])
    return lambda value, base, i: value + _wide(base[i])


def _store(value: Any, out: Any, i: Any) -> Any:
    """Put a merged value into a result."""


@overload(_store)
def _store_overload(value, out, i):  # type: ignore[no-untyped-def]
    if isinstance(out, types.BaseTuple):

        def rounded(value, out, i):  # type: ignore[no-untyped-def]
            out.row[i] = np.uint32(_rounded_bits(value) & np.uint32(0xFFFF0000)).view(np.float32)

        return rounded
    if isinstance(out.dtype, types.Integer):

        def narrowed(value, out, i):  # type: ignore[no-untyped-def]
            out[i] = np.uint16(_rounded_bits(value) >> np.uint32(16))

        return narrowed

    def plain(value, out, i):  # type: ignore[no-untyped-def]
        out[i] = value

    return plain


@register_jitable
def _size(out):  # type: ignore[no-untyped-def]
    return _row(out).shape[0]


def _row(out: Any) -> Any:
    """The array of a result."""


@overload(_row)
def _row_overload(out):  # type: ignore[no-untyped-def]
    if isinstance(out, types.BaseTuple):
        return lambda out: out.row
    return lambda out: out


def _scaled(x: Any, scales: Any) -> Any:
    """Every model's value times its factor, if there are factors."""


@overload(_scaled)
def _scaled_overload(x, scales):  # type: ignore[no-untyped-def]
    if isinstance(scales, types.NoneType):
        return lambda x, scales: x
    if len(x) == 1:
        return lambda x, scales: (x[0] * scales[0],)
    return lambda x, scales: (x[0] * scales[0], *_scaled(x[1:], scales[1:]))


# --- arithmetic -------------------------------------------------------------------------------------------------


def fused(a: Any, b: Any, c: Any) -> Any:
    """``a b + c`` of float64, for compiled code rounded once: one instruction, and the same on every processor."""
    return a * b + c


@overload(fused)
def _fused_overload(a, b, c):  # type: ignore[no-untyped-def]
    return lambda a, b, c: _fma(np.float64(a), np.float64(b), np.float64(c))


@intrinsic
def _fma(context, a, b, c):  # type: ignore[no-untyped-def]
    signature = types.float64(types.float64, types.float64, types.float64)
    return signature, lambda context, builder, signature, arguments: builder.fma(*arguments)


# --- random numbers ---------------------------------------------------------------------------------------------

# Multipliers of a 32-bit mixing function with low bias (C. Wellons, hash-prospector, 2018).
_M1 = np.uint32(0x7FEB352D)
_M2 = np.uint32(0x846CA68B)


@register_jitable
def _mix(x):  # type: ignore[no-untyped-def]
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * _M1)
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * _M2)
    return np.uint32(x ^ (x >> np.uint32(16)))


@register_jitable
def uniform(start, k, key):  # type: ignore[no-untyped-def]
    """The random number of element ``start + k``, in [0, 1).

    It depends on the element and the key alone. No multiple of 2 ** 32 lies in between: what is above the lower 32
    bits is taken from ``start``, for which the loop over k stays within 32 bits and is twice as fast.
    """
    x = _mix(np.uint32(np.uint32((start + key[0]) & 0xFFFFFFFF) + np.uint32(k)))
    x = _mix(np.uint32(x ^ np.uint32((key[1] ^ (start >> 32)) & 0xFFFFFFFF)))
    # The upper 24 bits, which float32 holds exactly.
    return np.float32(np.int32(x >> np.uint32(8))) * np.float32(2.0**-24)


@compiled
def fill_uniform(start, key, out):  # type: ignore[no-untyped-def]
    """The random numbers of the elements from ``start`` on."""
    at = 0
    while at < out.shape[0]:
        part = out[at : min(out.shape[0], at + (1 << 32) - (start + at) % (1 << 32))]
        for k in range(np.int32(part.shape[0])):
            part[k] = uniform(start + at, k, key)
        at += part.shape[0]


# --- numbers of rows and columns --------------------------------------------------------------------------------


def _has_arrays(number: Any) -> bool:
    """Whether a number is an array, or a tuple with one inside; by their types."""
    if isinstance(number, types.BaseTuple):
        return any(map(_has_arrays, number))
    return isinstance(number, types.Array)


def _in_row(number: Any, row: Any, start: Any, stop: Any) -> Any:
    """A number in some columns of a row: of an array ``[rows, 1]`` the row's entry, of ``[columns]`` a slice."""


@overload(_in_row)
def _in_row_overload(number, row, start, stop):  # type: ignore[no-untyped-def]
    if not _has_arrays(number):
        return lambda number, row, start, stop: number
    if isinstance(number, types.Array):
        if number.ndim == 2:
            return lambda number, row, start, stop: number[row, 0]
        return lambda number, row, start, stop: number[start:stop]
    if len(number) == 1:
        return lambda number, row, start, stop: (_in_row(number[0], row, start, stop),)
    return lambda number, row, start, stop: (
        _in_row(number[0], row, start, stop),
        *_in_row(number[1:], row, start, stop),
    )


def _in_column(number: Any, k: Any) -> Any:
    """What `_in_row` gives, in one of its columns."""


@overload(_in_column)
def _in_column_overload(number, k):  # type: ignore[no-untyped-def]
    if not _has_arrays(number):
        return lambda number, k: number
    if isinstance(number, types.Array):
        return lambda number, k: number[k]
    if len(number) == 1:
        return lambda number, k: (_in_column(number[0], k),)
    return lambda number, k: (_in_column(number[0], k), *_in_column(number[1:], k))


# --- formulas ---------------------------------------------------------------------------------------------------


@cache
def map_loop(formula: Callable[..., Any], each: Callable[..., Any] | None = None) -> Callable[..., None]:
    """Merge the values of all models into one, for every element of a block.

    Args:
        formula: ``formula(i, x, *numbers)``.
        each: Applied before it to every model's value: ``each(i, x_j, *steps[j])``, or with keys, where u is the
            element's random number, ``each(i, x_j, u_j, *steps[j])``.

    Returns:
        ``loop(rows, base, onto, start, length, steps, keys, scales, numbers, out)``. ``length`` is that of a row
        of the tensor, for the arrays among ``numbers`` (see `Bound`); a block may begin and end inside of rows.
        Values, after their steps, are multiplied by ``scales[j]`` unless that is None; ``onto`` is added to what
        the formula gives, unless it is None; ``out`` takes floats, bits of bfloat16, or is `Rounded`. With keys,
        no multiple of 2 ** 32 lies inside the block.
    """
    jitable, stepped = register_jitable(formula), _stepped(each)

    def loop(rows, base, onto, start, length, steps, keys, scales, numbers, out):  # type: ignore[no-untyped-def]
        done, end = 0, _size(out)
        while done < end:
            at = start + done
            row, column = divmod(at, length)
            size = min(length - column, end - done)
            stop = done + size
            own = _in_row(numbers, row, column, column + size)
            part, of_base = _parts(rows, done, stop), _part(base, done, stop)
            below, to = _part(onto, done, stop), _part(out, done, stop)
            for k in range(np.int32(size)):
                x = _scaled(stepped(at, k, _column(part, of_base, k), keys, steps), scales)
                _store(_onto(jitable(at + k, x, *_in_column(own, k)), below, k), to, k)
            done = stop

    return compiled(loop, *filter(None, (formula, each)), error_model="numpy")


@cache
def totals_loop(formula: Callable[..., Any]) -> Callable[..., None]:
    """Add what a formula gives for every element of a block to sums of runs.

    Args:
        formula: ``formula(i, x, *numbers)``, which gives a tuple of q numbers.

    Returns:
        ``loop(rows, base, start, numbers, values, sums)``. ``values`` is room for ``q * LANES`` numbers, and
        ``sums`` is ``[q, LANES + runs]``, as of `add_magnitudes`.
    """
    jitable = register_jitable(formula)

    def loop(rows, base, start, numbers, values, sums):  # type: ignore[no-untyped-def]
        done, end = 0, rows[0].shape[0]
        while done < end:
            index, within = divmod(start + done, RUN)
            lane = within % LANES
            stop = min(done + LANES - lane, end)
            at, size = start + done, stop - done
            part, of_base = _parts(rows, done, stop), _part(base, done, stop)
            for k in range(np.int32(size)):
                _spread(jitable(at + k, _column(part, of_base, k), *numbers), values, k)
            for q in range(sums.shape[0]):
                if within == 0:
                    sums[q, :LANES] = 0
                given, lanes = values[q * LANES : q * LANES + size], sums[q, lane : lane + size]
                for k in range(size):
                    lanes[k] += np.float64(given[k])
                if stop == end or within + size == RUN:
                    sums[q, LANES + index] = sums[q, :LANES].sum()
            done = stop

    return compiled(loop, formula, error_model="numpy")


def _spread(numbers: Any, out: Any, k: Any) -> None:
    """Put a tuple's numbers into a result, `LANES` apart: of one array, LLVM sees that they do not overlap."""


@overload(_spread)
def _spread_overload(numbers, out, k):  # type: ignore[no-untyped-def]
    if len(numbers) == 1:

        def last(numbers, out, k):  # type: ignore[no-untyped-def]
            out[k] = numbers[0]

        return last

    def first(numbers, out, k):  # type: ignore[no-untyped-def]
        out[k] = numbers[0]
        _spread(numbers[1:], out, k + LANES)

    return first


@cache
def row_loop(formula: Callable[..., Any]) -> Callable[..., None]:
    """A number for every row of a block of whole rows, from the values of all models there.

    Args:
        formula: ``formula(rows, *numbers)``; it gets a row of float64 of each model, which it may overwrite.

    Returns:
        ``loop(rows, base, numbers, scratch, out)``. ``scratch`` is room for a row of each model, a tuple.
    """
    jitable = register_jitable(formula)

    def loop(rows, base, numbers, scratch, out):  # type: ignore[no-untyped-def]
        length = scratch[0].shape[0]
        for r in range(out.shape[0]):
            start, stop = r * length, (r + 1) * length
            _widen(_parts(rows, start, stop), _part(base, start, stop), scratch)
            out[r] = jitable(scratch, *numbers)

    return compiled(loop, formula, error_model="numpy")


def _widen(rows: Any, base: Any, out: Any) -> None:
    """What formulas get of each model, as floats."""


@overload(_widen)
def _widen_overload(rows, base, out):  # type: ignore[no-untyped-def]
    if len(rows) == 1:
        return lambda rows, base, out: widen_row(rows[0], base, out[0])

    def widen(rows, base, out):  # type: ignore[no-untyped-def]
        widen_row(rows[0], base, out[0])
        _widen(rows[1:], base, out[1:])

    return widen


@cache
def _stepped(each: Callable[..., Any] | None) -> Callable[..., Any]:
    """A step for every model as a function of their tuple, for compiled code; None for what leaves it as it is."""
    jitable = register_jitable(each) if each else None

    def apply(start: Any, k: Any, x: Any, keys: Any, steps: Any) -> Any:
        """The steps, one after another."""

    @overload(apply)
    def apply_overload(start, k, x, keys, steps):  # type: ignore[no-untyped-def]
        if jitable is None:
            return lambda start, k, x, keys, steps: x
        if isinstance(keys, types.NoneType):
            if len(x) == 1:
                return lambda start, k, x, keys, steps: (jitable(start + k, x[0], *steps[0]),)
            return lambda start, k, x, keys, steps: (
                jitable(start + k, x[0], *steps[0]),
                *apply(start, k, x[1:], keys, steps[1:]),
            )
        if len(x) == 1:
            return lambda start, k, x, keys, steps: (
                jitable(start + k, x[0], uniform(start, k, keys[0]), *steps[0]),
            )
        return lambda start, k, x, keys, steps: (
            jitable(start + k, x[0], uniform(start, k, keys[0]), *steps[0]),
            *apply(start, k, x[1:], keys[1:], steps[1:]),
        )

    return apply


@compiled
def widen_row(row, base, out):  # type: ignore[no-untyped-def]
    """What formulas get of one model, as floats."""
    for i in range(out.shape[0]):
        out[i] = _entry(row, base, i)


@compiled
def subtract_base(bits, base, out):  # type: ignore[no-untyped-def]
    """Make the bits of a model those of its task vector, rounded to bfloat16; ``out`` may be ``bits``."""
    for i in range(out.shape[0]):
        out[i] = np.uint16(_rounded_difference(_wide(bits[i]) - _wide(base[i])) >> np.uint32(16))


@compiled
def add_rounded(bits, values, out):  # type: ignore[no-untyped-def]
    """``bits + values`` as bits of bfloat16."""
    for i in range(out.shape[0]):
        _store(_wide(bits[i]) + values[i], out, i)


@compiled
def narrow_row(values, out):  # type: ignore[no-untyped-def]
    """Put floats into a row: as they are, or as bits of bfloat16."""
    for i in range(values.shape[0]):
        _store(values[i], out, i)


def _adding(term: Callable[..., Any]) -> Callable[..., Any]:
    """``add(a, b, start, run, sums)``: add the terms of two blocks, which begin at ``start``, to sums of runs.

    Blocks come in order. ``sums`` is ``[LANES + runs]``: the lanes of the run that is being added up, then the sum
    of every run, as far as it has come. ``run`` is the length of one.
    """
    jitable = register_jitable(term)

    def add(a, b, start, run, sums):  # type: ignore[no-untyped-def]
        at, end = 0, a.shape[0]
        while at < end:
            index, within = divmod(start + at, run)
            if within == 0:
                sums[: min(run, LANES)] = 0
            of_run = min(at + run - within, end)
            lane = within % LANES
            while at < of_run:
                stop = min(at + LANES - lane, of_run)
                left, right, lanes = a[at:stop], b[at:stop], sums[lane : lane + stop - at]
                for k in range(left.shape[0]):
                    lanes[k] += jitable(left[k], right[k])
                at, lane = stop, 0
            sums[LANES + index] = sums[: min(run, LANES)].sum()

    return compiled(add, term)


def _magnitude(a: Any, b: Any) -> Any:
    return np.float64(abs(a))


def _product(a: Any, b: Any) -> Any:
    return np.float64(a) * np.float64(b)


add_magnitudes, add_products = map(_adding, (_magnitude, _product))


@cache
def step_loop(formula: Callable[..., Any], per_row: bool, random: bool) -> Callable[..., None]:
    """Apply a step to one model's values, and sum their magnitudes before and after it.

    Args:
        formula: ``formula(i, x, *numbers)``, or ``formula(i, x, u, *numbers)`` if it is random. Per row, x and u
            are whole rows ``[rows, length]``, and x is changed in place.
        per_row: Whether it takes whole rows.
        random: Whether it takes random numbers.

    Returns:
        ``loop(row, base, start, length, key, numbers, values, u, before, after, out)``. ``length`` is that of a
        row; ``values`` and ``u`` are room for some whole rows of floats, which are worked on at a time; ``before``
        and ``after`` are sums (see `add_magnitudes`), or empty; ``out`` takes floats or bits of bfloat16, and may
        be the row.
    """
    jitable = register_jitable(formula)

    def loop(row, base, start, length, key, numbers, values, u, before, after, out):  # type: ignore[no-untyped-def]
        for first in range(0, row.shape[0], values.shape[0]):
            stop = min(first + values.shape[0], row.shape[0])
            at, x, of_x = start + first, values[: stop - first], u[: stop - first]
            widen_row(row[first:stop], _part(base, first, stop), x)
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
            narrow_row(x, out[first:stop])

    return compiled(loop, formula, error_model="numpy")


@compiled
def add_columns(a, b, start, sums):  # type: ignore[no-untyped-def]
    """Add the products of two blocks, which begin at ``start``, to sums of columns."""
    at, end = 0, a.shape[0]
    while at < end:
        column = (start + at) % sums.shape[0]
        stop = min(at + sums.shape[0] - column, end)
        left, right, own = a[at:stop], b[at:stop], sums[column : column + stop - at]
        for k in range(left.shape[0]):
            own[k] += np.float64(left[k]) * np.float64(right[k])
        at = stop


@compiled
def count_magnitudes(row, base, counts):  # type: ignore[no-untyped-def]
    """Count the magnitudes of a model's bits, less the base's if there are such.

    Args:
        row: Bits of bfloat16, ``[n]``.
        base: Likewise, or None.
        counts: ``[2 ** 16]``: a histogram in each half, taken in turn, so that equal neighbours wait less for
            each other.
    """
    sizes = np.empty(LANES, np.uint16)
    for at in range(0, row.shape[0], LANES):
        stop = min(at + LANES, row.shape[0])
        part, onto, size = row[at:stop], _part(base, at, stop), sizes[: stop - at]
        for i in range(size.shape[0]):
            size[i] = _magnitude_bits(part, onto, i)
        _count_in_turn(size, counts)


@compiled
def count_digits(bits, shift, lower, prefix, counts):  # type: ignore[no-untyped-def]
    """Count the 16-bit digit at ``shift`` of the unsigned ``bits`` whose higher digits equal ``prefix``.

    Args:
        bits: ``[n]``; of zeros, the sign may be set.
        shift: Position of the digit's lowest bit.
        lower: A mask of the bits below it.
        prefix: The higher digits without the sign, 0 where there are none.
        counts: ``[2 ** 16]``; of the first digit, which has no sign, a histogram in each half, taken in turn.

    Returns:
        Whether of the values counted, one has a bit below the digit; and of the first digit, how many are zero.
    """
    unsigned = bits.dtype.type
    below, zeros = unsigned(0), np.int64(0)
    top = bits.itemsize * 8 - shift
    magnitude, above = unsigned(~unsigned(0) >> unsigned(1)), unsigned(shift + unsigned(16))
    digits, flags = np.empty(LANES, np.uint16), np.zeros(LANES, np.uint8)
    words = flags.view(np.uint64)
    for at in range(0, bits.shape[0], LANES):
        part = bits[at : at + LANES]
        digit, flag = digits[: part.shape[0]], flags[: part.shape[0]]
        if top == 16:
            zero = np.uint16(0)
            for i in range(part.shape[0]):
                size = unsigned(part[i] & magnitude)
                below |= unsigned(size & lower)
                zero += np.uint16(size == 0)
                digit[i] = np.uint16(size >> shift)
            zeros += np.int64(zero)
            _count_in_turn(digit, counts)
            continue
        flags[:] = 0
        for i in range(part.shape[0]):
            flag[i] = np.uint8(unsigned(part[i] & magnitude) >> above == prefix)
        for word in range(words.shape[0]):
            if words[word]:  # in most, there is none with the prefix
                for i in range(8 * word, min(8 * word + 8, part.shape[0])):
                    if flag[i]:
                        below |= unsigned(part[i] & lower)
                        counts[(part[i] >> shift) & unsigned(0xFFFF)] += np.uint32(1)
    return below != 0, zeros


@register_jitable
def _count_in_turn(sizes, counts):  # type: ignore[no-untyped-def]
    """Count numbers below ``2 ** 15``, in two histograms in turn: equal neighbours wait less for each other."""
    whole = sizes.shape[0] // 8 * 8
    for i in range(0, whole, 8):
        for k in range(8):
            counts[(k & 1) << 15 | sizes[i + k]] += np.uint32(1)
    for i in range(whole, sizes.shape[0]):
        counts[sizes[i]] += np.uint32(1)


@compiled
def find_equal(row, value, count):  # type: ignore[no-untyped-def]
    """The position of the ``count``-th entry (from 1) equal to ``value`` or -1, and how many were seen."""
    seen = np.int64(0)
    for at in range(0, row.shape[0], LANES):
        part = row[at : at + LANES]
        equal = np.uint16(0)
        for i in range(part.shape[0]):
            equal += np.uint16(part[i] == value)
        if seen + equal >= count:
            for i in range(part.shape[0]):
                seen = seen + (part[i] == value)
                if seen == count:
                    return at + i, seen
        seen = seen + np.int64(equal)
    return -1, seen
