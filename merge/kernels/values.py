"""What loops read and write: values as floats, or as the bits of bfloat16 in 16-bit integers.

Bits are widened in registers. With a base, bits are a model's, and formulas get task vectors, rounded to bfloat16
if the base is bits too; floats are task vectors already, and so are bits if the base is `Subtracted`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core.errors import TypingError

from heterosis.merge.kernels.arithmetic import fused
from heterosis.merge.kernels.compiling import compiled, inlined, inlined_overload, written_out

# Those of one model, or a result's.
Values = np.ndarray[tuple[int], np.dtype[Any]]

# The bits of infinity by dtype: above those of finite numbers, and below those of NaN, but for the sign.
INFINITY = {"bfloat16": 0xFF << 7, "float16": 0x1F << 10, "float32": 0xFF << 23, "float64": 0x7FF << 52}


class Rounded(NamedTuple):
    """A result of floats that takes values of bfloat16, as a live model in float32 does."""

    values: Values


class Unrounded(NamedTuple):
    """A base of bits from which task vectors are not rounded."""

    values: Values


class Subtracted(NamedTuple):
    """A base of bits that has been subtracted from the models already."""

    values: Values


class Inputs(NamedTuple):
    """The values of all models in a block, and of the base."""

    models: tuple[Values, ...]
    base: Values | Unrounded | Subtracted | None = None

    @property
    def size(self) -> int:
        """How many elements the block has."""
        return len(self.models[0])

    def part(self, start: int, stop: int) -> "Inputs":
        """Elements ``[start, stop)``."""
        return Inputs(tuple(values[start:stop] for values in self.models), slice_of(self.base, start, stop))


@inlined
def _rounded_bits(x):  # type: ignore[no-untyped-def]
    """The bits of a float32 rounded to bfloat16, to nearest and ties to even, in the upper half."""
    return np.uint32(0x7FC00000) if x != x else _rounded_finite(x)


@inlined
def _rounded_finite(x):  # type: ignore[no-untyped-def]
    """The same where NaN may become anything."""
    bits = np.float32(x).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    # Added, it would say the same; of two operations with bits AVX-512 makes one.
    return np.uint32(np.uint32(bits | odd) + np.uint32(0x7FFF))


@inlined
def _rounded_difference(x):  # type: ignore[no-untyped-def]
    """A difference of two values of bfloat16, rounded to bfloat16, to nearest and ties to even.

    ``x - 2 ** 16 x`` keeps of x what bfloat16 has room for (after Dekker 1971, eq. 5.7). Subnormal differences
    need no rounding. From some ``2 ** 112`` on they are not finite any more, of any sign; zero has none.
    """
    factor = np.float32(65536)
    return fused(factor, x, fused(-factor, x, x))


def _wide(value: Any) -> Any:
    """An entry as a float."""


@inlined_overload(_wide)
def _wide_overload(value):  # type: ignore[no-untyped-def]
    if isinstance(value, types.Integer):
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    return lambda value: value


def _entry(values: Any, base: Any, i: Any) -> Any:
    """What formulas get of element ``i`` of one model."""


@inlined_overload(_entry)
def _entry_overload(values, base, i):  # type: ignore[no-untyped-def]
    if isinstance(base, types.NoneType) or not isinstance(values.dtype, types.Integer):
        return lambda values, base, i: _wide(values[i])
    if isinstance(base, types.BaseTuple):
        if base.instance_class is Subtracted:
            return lambda values, base, i: _wide(values[i])
        return lambda values, base, i: _wide(values[i]) - _wide(base.values[i])
    if isinstance(base.dtype, types.Integer):
        return lambda values, base, i: _rounded_difference(_wide(values[i]) - _wide(base[i]))
    return lambda values, base, i: _wide(values[i]) - base[i]


@inlined
def magnitude_bits(values, base, i):  # type: ignore[no-untyped-def]
    """The bits of the magnitude of what formulas get of element ``i``, a value of bfloat16."""
    bits = np.uint32(np.float32(_entry(values, base, i)).view(np.uint32) >> np.uint32(16))
    return np.uint16(bits & np.uint32(0x7FFF))


def values_at(models: Any, base: Any, i: Any) -> Any:
    """What formulas get of element ``i``: a tuple with one value per model."""


@inlined_overload(values_at)
def _values_at_overload(models, base, i):  # type: ignore[no-untyped-def]
    return written_out("entry(models[j], base, i)", len(models), "models, base, i", entry=_entry)


def slice_of(values: Any, start: Any, stop: Any) -> Any:
    """A slice of what loops take: of values, of marked ones, or of None. Compiled code may call it too."""
    if isinstance(values, Rounded | Unrounded | Subtracted):
        return type(values)(values.values[start:stop])
    return None if values is None else values[start:stop]


@inlined_overload(slice_of)
def _slice_of_overload(values, start, stop):  # type: ignore[no-untyped-def]
    if isinstance(values, types.NoneType):
        return lambda values, start, stop: None
    if isinstance(values, types.BaseTuple):
        kind = values.instance_class
        return lambda values, start, stop: kind(values.values[start:stop])
    return lambda values, start, stop: values[start:stop]


def slice_each(models: Any, start: Any, stop: Any) -> Any:
    """A slice of every model's values."""


@inlined_overload(slice_each)
def _slice_each_overload(models, start, stop):  # type: ignore[no-untyped-def]
    return written_out("models[j][start:stop]", len(models), "models, start, stop")


def onto_base(value: Any, base: Any, i: Any) -> Any:
    """A merged value on top of the base, if there is one."""


@inlined_overload(onto_base)
def _onto_base_overload(value, base, i):  # type: ignore[no-untyped-def]
    if isinstance(base, types.NoneType):
        return lambda value, base, i: value
    if isinstance(base, types.BaseTuple):
        return lambda value, base, i: value + _wide(base.values[i])
    return lambda value, base, i: value + _wide(base[i])


def _storing(rounded: Callable[[Any], Any]) -> Callable[[Any, Any, Any], None]:
    """``store(value, out, i)`` puts a value into a result, rounded to bfloat16 by a function that gives bits."""

    def store(value: Any, out: Any, i: Any) -> None:
        """Put a value into a result."""

    @inlined_overload(store)
    def store_overload(value, out, i):  # type: ignore[no-untyped-def]
        if isinstance(out, types.BaseTuple):

            def widened(value, out, i):  # type: ignore[no-untyped-def]
                out.values[i] = np.uint32(rounded(value) & np.uint32(0xFFFF0000)).view(np.float32)

            return widened
        if isinstance(out.dtype, types.Integer):

            def narrowed(value, out, i):  # type: ignore[no-untyped-def]
                out[i] = np.uint16(rounded(value) >> np.uint32(16))

            return narrowed

        def plain(value, out, i):  # type: ignore[no-untyped-def]
            out[i] = value

        return plain

    return store


store = _storing(_rounded_bits)
# For loops that look at the value themselves (`magnitude_in`): of NaN anything is put into a result of bfloat16.
store_finite = _storing(_rounded_finite)


def magnitude_in(value: Any, out: Any) -> Any:
    """The bits of a value's magnitude, as an unsigned integer: the larger, the larger; of NaN the largest."""


@inlined_overload(magnitude_in)
def _magnitude_in_overload(value, out):  # type: ignore[no-untyped-def]
    if not isinstance(value, types.Number | types.Boolean):
        raise TypingError(f"a formula must give a number, but got {value}")
    if _floats(out) == types.float64:
        return lambda value, out: np.float64(value).view(np.uint64) & np.uint64((1 << 63) - 1)
    return lambda value, out: np.uint32(np.float32(value).view(np.uint32) & np.uint32((1 << 31) - 1))


def is_finite_in(magnitude: Any, out: Any) -> Any:
    """Whether a value of this magnitude, as of `magnitude_in`, is finite in a result."""


@inlined_overload(is_finite_in)
def _is_finite_in_overload(magnitude, out):  # type: ignore[no-untyped-def]
    floats = _floats(out)
    unsigned = np.uint64 if floats == types.float64 else np.uint32
    end: Any = unsigned(INFINITY[str(floats)] if floats else 0x7F7F8000)  # from here on it rounds to infinity
    return lambda magnitude, out: magnitude < end


def _floats(out: Any) -> Any:
    """The type of a result's floats, None of bfloat16."""
    return None if isinstance(out, types.BaseTuple) or isinstance(out.dtype, types.Integer) else out.dtype


def size_of(out: Any) -> Any:
    """How many elements a result has."""


@inlined_overload(size_of)
def _size_of_overload(out):  # type: ignore[no-untyped-def]
    if isinstance(out, types.BaseTuple):
        return lambda out: out.values.shape[0]
    return lambda out: out.shape[0]


@compiled
def widen(values, base, out):  # type: ignore[no-untyped-def]
    """What formulas get of one model, as floats."""
    for i in range(out.shape[0]):
        out[i] = _entry(values, base, i)


def widen_each(models: Any, base: Any, out: Any) -> None:
    """What formulas get of each model, as floats."""


@inlined_overload(widen_each)
def _widen_each_overload(models, base, out):  # type: ignore[no-untyped-def]
    return written_out("widen(models[j], base, out[j])", len(models), "models, base, out", widen=widen)


@compiled
def narrow(values, out):  # type: ignore[no-untyped-def]
    """Put floats into a result: as they are, or as bits of bfloat16."""
    for i in range(values.shape[0]):
        store(values[i], out, i)


@compiled
def subtract_base(bits, base, out):  # type: ignore[no-untyped-def]
    """Make the bits of a model those of its task vector, rounded to bfloat16; ``out`` may be ``bits``."""
    for i in range(out.shape[0]):
        out[i] = np.uint16(np.float32(_entry(bits, base, i)).view(np.uint32) >> np.uint32(16))


@compiled
def add_rounded(bits, values, out):  # type: ignore[no-untyped-def]
    """``bits + values`` as bits of bfloat16."""
    for i in range(out.shape[0]):
        store(_wide(bits[i]) + values[i], out, i)
