"""What loops read and write: rows of floats, or of the bits of bfloat16 as 16-bit integers.

Bits are widened in registers. With a base, rows of bits are models, and formulas get task vectors, rounded to
bfloat16 if the base is bits too; rows of floats are task vectors already, and so are rows of bits if the base is
`Subtracted`.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import types

from heterosis.merge.kernels.compiling import compiled, inlined, inlined_overload, written_out

Row = np.ndarray[tuple[int], np.dtype[Any]]


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

    def part(self, start: int, stop: int) -> "Inputs":
        """Elements ``[start, stop)``."""
        return Inputs(tuple(row[start:stop] for row in self.rows), slice_of(self.base, start, stop))


@inlined
def _rounded_bits(x):  # type: ignore[no-untyped-def]
    """The bits of a float32 rounded to bfloat16, to nearest and ties to even, in the upper half."""
    return np.uint32(0x7FC00000) if x != x else _rounded_difference(x)  # a NaN could become a number else


@inlined
def _rounded_difference(x):  # type: ignore[no-untyped-def]
    """The same of a difference of values of bfloat16: in a NaN the lower half is zero, and so it stays one."""
    bits = np.float32(x).view(np.uint32)
    even = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    return np.uint32(np.uint32(bits + np.uint32(0x7FFF)) + even)


def _wide(value: Any) -> Any:
    """A row's entry as a float."""


@inlined_overload(_wide)
def _wide_overload(value):  # type: ignore[no-untyped-def]
    if isinstance(value, types.Integer):
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: value


def _entry(row: Any, base: Any, i: Any) -> Any:
    """What formulas get of element ``i`` of one model."""


@inlined_overload(_entry)
def _entry_overload(row, base, i):  # type: ignore[no-untyped-def]
    if isinstance(base, types.NoneType) or not isinstance(row.dtype, types.Integer):
        return lambda row, base, i: _wide(row[i])
    if isinstance(base, types.BaseTuple):
        if base.instance_class is Subtracted:
            return lambda row, base, i: _wide(row[i])
        return lambda row, base, i: _wide(row[i]) - _wide(base.row[i])
    if isinstance(base.dtype, types.Integer):
        return lambda row, base, i: np.uint32(
            np.uint32(_rounded_difference(_wide(row[i]) - _wide(base[i]))) & np.uint32(0xFFFF0000)
        ).view(np.float32)
    return lambda row, base, i: _wide(row[i]) - base[i]


@inlined
def magnitude_bits(row, base, i):  # type: ignore[no-untyped-def]
    """The bits of the magnitude of what formulas get of element ``i``, a value of bfloat16."""
    bits = np.uint32(np.float32(_entry(row, base, i)).view(np.uint32) >> np.uint32(16))
    return np.uint16(bits & np.uint32(0x7FFF))


def values_at(rows: Any, base: Any, i: Any) -> Any:
    """What formulas get of element ``i``: a tuple with one value per model."""


@inlined_overload(values_at)
def _values_at_overload(rows, base, i):  # type: ignore[no-untyped-def]
    return written_out("entry(rows[j], base, i)", len(rows), "rows, base, i", entry=_entry)


def slice_of(row: Any, start: Any, stop: Any) -> Any:
    """A slice of what loops take: of a row, of one that is marked, or of None. Compiled code may call it too."""
    if isinstance(row, Rounded | Unrounded | Subtracted):
        return type(row)(row.row[start:stop])
    return None if row is None else row[start:stop]


@inlined_overload(slice_of)
def _slice_of_overload(row, start, stop):  # type: ignore[no-untyped-def]
    if isinstance(row, types.NoneType):
        return lambda row, start, stop: None
    if isinstance(row, types.BaseTuple):
        kind = row.instance_class
        return lambda row, start, stop: kind(row.row[start:stop])
    return lambda row, start, stop: row[start:stop]


def slice_each(rows: Any, start: Any, stop: Any) -> Any:
    """A slice of every row."""


@inlined_overload(slice_each)
def _slice_each_overload(rows, start, stop):  # type: ignore[no-untyped-def]
    return written_out("rows[j][start:stop]", len(rows), "rows, start, stop")


def onto_base(value: Any, base: Any, i: Any) -> Any:
    """A merged value on top of the base, if there is one."""


@inlined_overload(onto_base)
def _onto_base_overload(value, base, i):  # type: ignore[no-untyped-def]
    if isinstance(base, types.NoneType):
        return lambda value, base, i: value
    if isinstance(base, types.BaseTuple):
        return lambda value, base, i: value + _wide(base.row[i])
    return lambda value, base, i: value + _wide(base[i])


def store(value: Any, out: Any, i: Any) -> Any:
    """Put a merged value into a result."""


@inlined_overload(store)
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


def size_of(out: Any) -> Any:
    """How many elements a result has."""


@inlined_overload(size_of)
def _size_of_overload(out):  # type: ignore[no-untyped-def]
    if isinstance(out, types.BaseTuple):
        return lambda out: out.row.shape[0]
    return lambda out: out.shape[0]


@compiled
def widen_row(row, base, out):  # type: ignore[no-untyped-def]
    """What formulas get of one model, as floats."""
    for i in range(out.shape[0]):
        out[i] = _entry(row, base, i)


def widen_rows(rows: Any, base: Any, out: Any) -> None:
    """What formulas get of each model, as floats."""


@inlined_overload(widen_rows)
def _widen_rows_overload(rows, base, out):  # type: ignore[no-untyped-def]
    return written_out("widen(rows[j], base, out[j])", len(rows), "rows, base, out", widen=widen_row)


@compiled
def narrow_row(values, out):  # type: ignore[no-untyped-def]
    """Put floats into a row: as they are, or as bits of bfloat16."""
    for i in range(values.shape[0]):
        store(values[i], out, i)


@compiled
def subtract_base(bits, base, out):  # type: ignore[no-untyped-def]
    """Make the bits of a model those of its task vector, rounded to bfloat16; ``out`` may be ``bits``."""
    for i in range(out.shape[0]):
        out[i] = np.uint16(_rounded_difference(_wide(bits[i]) - _wide(base[i])) >> np.uint32(16))


@compiled
def add_rounded(bits, values, out):  # type: ignore[no-untyped-def]
    """``bits + values`` as bits of bfloat16."""
    for i in range(out.shape[0]):
        store(_wide(bits[i]) + values[i], out, i)
