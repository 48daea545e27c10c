"""What a method may ask of a whole tensor: sums, dot products, thresholds.

Every answer is exact or summed in an order that does not depend on how the tensor is cut into blocks.
A *quantity* is a bound map formula: a number for every element, from the values of all models there.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from heterosis.merge.kernels import (
    RUN,
    Row,
    add_dot_runs,
    add_groups,
    add_runs,
    digit_histogram,
    each_loop,
    find_equal,
    map_loop,
    max_groups,
    rows_loop,
)
from heterosis.merge.methods.base import Bound, formula

# Called with a length of rows, gives a tensor's blocks in order, each of whole rows: the start, and each model's
# values. They may be overwritten by the next block.
Blocks: TypeAlias = Callable[[int], Iterable[tuple[int, tuple[Row, ...]]]]
Vector: TypeAlias = npt.NDArray[np.float64]

_WIDE = np.dtype(np.float64)


@formula
def magnitude(i, x, model):  # type: ignore[no-untyped-def]
    """``|x_j|``."""
    return abs(x[model])


@formula
def product(i, x, a, b):  # type: ignore[no-untyped-def]
    """``x_a x_b``, of float32 values exact in float64."""
    return np.float64(x[a]) * np.float64(x[b])


@dataclass(frozen=True)
class Cut:
    """The largest entries of a quantity: those above ``value``, and at it up to position ``last``."""

    value: float
    last: int


class Statistics:
    """Statistics of the inputs of one tensor, computed when asked for.

    Args:
        blocks: The tensor's blocks; calling it again begins again.
        dtype: The values' type, float32 or float64.
        models: The number of models m.
        shape: Of the tensor.
        keys: Each model's address of random masks.
    """

    def __init__(
        self,
        blocks: Blocks,
        dtype: np.dtype[Any],
        models: int,
        shape: tuple[int, ...],
        keys: tuple[tuple[int, int], ...],
    ) -> None:
        self._blocks = blocks
        self._dtype = dtype
        self.models = models
        self.shape = shape
        self.keys = keys

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """The length of the last dimension."""
        return self.shape[-1] if self.shape else 1

    def gram(self) -> tuple[tuple[float, ...], ...]:
        """Dot products of the inputs, ``[m, m]``."""
        return self._gram

    @cached_property
    def _gram(self) -> tuple[tuple[float, ...], ...]:
        m = self.models
        partials = {(a, b): self._partials() for a in range(m) for b in range(a, m)}
        for start, rows in self._blocks(1):
            for (a, b), sums in partials.items():
                add_dot_runs(rows[a], rows[b], start, sums)
        dots = {pair: _total(sums) for pair, sums in partials.items()}
        return tuple(tuple(dots[min(a, b), max(a, b)] for b in range(m)) for a in range(m))

    def grams(self, dim: int) -> Vector:
        """Dot products of the inputs along one dimension, ``[m, m, groups]`` (see `groups`)."""
        m = self.models
        grams = np.empty((m, m, self.groups(dim)[1]))
        for a in range(m):
            for b in range(a, m):
                grams[a, b] = grams[b, a] = self.grouped_totals(product.bind(a, b), dim)
        return grams

    def totals(self, *quantities: Bound) -> tuple[float, ...]:
        """The sum of every quantity over the tensor, in one pass."""
        partials = [self._partials() for _ in quantities]
        for start, rows in self._blocks(1):
            for quantity, sums in zip(quantities, partials, strict=True):
                add_runs(self._values(quantity, start, rows, _WIDE), start, sums)
        return tuple(map(_total, partials))

    def grouped_totals(self, quantity: Bound, dim: int = -1) -> Vector:
        """The sums of a quantity along a dimension.

        Args:
            quantity: What is summed.
            dim: -1 sums along the last dimension, ``[rows]``; 0 along the first, one for each of what is left.
        """
        stride, groups = self.groups(dim)
        totals = np.zeros(groups)
        for start, rows in self._blocks(1):
            add_groups(self._values(quantity, start, rows, _WIDE), start, stride, totals)
        return totals

    def row_maxima(self, quantity: Bound) -> Vector:
        """The maxima of a quantity along the last dimension, ``[rows]``."""
        stride, groups = self.groups(-1)
        maxima = np.full(groups, -np.inf)
        for start, rows in self._blocks(1):
            max_groups(self._values(quantity, start, rows, _WIDE), start, stride, maxima)
        return maxima

    def groups(self, dim: int) -> tuple[int, int]:
        """The lines along a dimension, as (stride, groups): element i is in group ``i // stride % groups``."""
        assert dim in (-1, 0)
        if dim == 0 and len(self.shape) > 1:
            return 1, self.numel // self.shape[0]
        return self.width, self.numel // self.width

    def absolute_sums(self, each: Bound | None = None) -> tuple[float, ...]:
        """The L1 norm of every input, ``[m]``; with ``each``, of what that step makes of it."""
        partials = [self._partials() for _ in range(self.models)]
        for start, rows in self._blocks(each.row_length if each else 1):
            for j, row in enumerate(rows):
                row = row.copy()
                if each is not None:
                    apply_each(each, j, start, row)
                add_runs(np.abs(row, out=row), start, partials[j])
        return tuple(map(_total, partials))

    def cut(self, quantity: Bound, keep: int) -> Cut:
        """The cut that keeps the ``keep`` largest values of a quantity.

        Values equal at the cut are kept in the order of their positions.

        Args:
            quantity: Never negative.
            keep: How many, in ``[0, n]``.
        """
        assert 0 <= keep <= self.numel
        if keep == self.numel:
            return Cut(-1.0, -1)
        if keep == 0:
            return Cut(math.inf, -1)
        return self._select(quantity, keep)

    def ascending(self, quantity: Bound, index: int) -> float:
        """The value at an index, from 0, of a quantity's sorted values; the quantity is never negative."""
        assert 0 <= index < self.numel
        return self._select(quantity, self.numel - index).value

    def _select(self, quantity: Bound, keep: int) -> Cut:
        """Radix selection over the bit patterns, which order as the values do, 16 bits in each pass."""
        width = self._dtype.itemsize * 8
        unsigned = np.dtype(f"u{self._dtype.itemsize}")
        positive = unsigned.type((1 << (width - 1)) - 1)  # without the sign of a zero
        prefix = above = equal = 0  # the cut's higher digits; values above it; values that share them
        for shift in range(width - 16, -1, -16):
            counts = np.zeros(1 << 16, dtype=np.int64)
            for start, rows in self._blocks(1):
                bits = self._values(quantity, start, rows, self._dtype).view(unsigned) & positive
                digit_histogram(bits, unsigned.type(shift), unsigned.type(prefix), counts)
            down_to = above + np.cumsum(counts[::-1])
            skipped = int(np.searchsorted(down_to, keep))
            digit = counts.size - 1 - skipped
            equal = int(counts[digit])
            above = int(down_to[skipped]) - equal
            prefix = prefix << 16 | digit
        value = np.array([prefix], dtype=unsigned).view(self._dtype)[0]
        wanted = keep - above
        if wanted < equal:
            for start, rows in self._blocks(1):
                position, seen = find_equal(self._values(quantity, start, rows, self._dtype), value, wanted)
                if position >= 0:
                    return Cut(float(value), start + position)
                wanted -= seen
        return Cut(float(value), self.numel)

    def _partials(self) -> Vector:
        return np.zeros((-(-self.numel // RUN), 4))

    def _values(self, quantity: Bound, start: int, rows: tuple[Row, ...], dtype: np.dtype[Any]) -> Row:
        """A quantity's values in a block."""
        values = np.empty(len(rows[0]), dtype)
        map_loop(quantity.formula.function)(rows, start, typed(quantity.numbers, self._dtype), values)
        return values


def _total(partials: Vector) -> float:
    return math.fsum((partials[:, 0] + partials[:, 1]) + (partials[:, 2] + partials[:, 3]))


def apply_each(step: Bound, model: int, start: int, row: Row) -> None:
    """Apply a program's ``each`` step to one model's values in place."""
    numbers = typed(tuple(n[model] for n in step.numbers), row.dtype)
    if step.formula.per_row:
        rows_loop(step.formula.function)(row, start, step.row_length, numbers)
    else:
        each_loop(step.formula.function)(row, start, numbers)


def typed(numbers: tuple[object, ...], dtype: np.dtype[Any]) -> tuple[object, ...]:
    """Numbers of a formula with floats in the values' type, so that nothing is widened by accident."""
    with np.errstate(over="ignore"):  # what becomes infinite is found in the merged tensor
        return tuple(_typed(number, dtype) for number in numbers)


def _typed(number: object, dtype: np.dtype[Any]) -> object:
    if isinstance(number, tuple):
        return typed(number, dtype)
    if isinstance(number, np.ndarray) and number.dtype.kind == "f":
        return number.astype(dtype)
    return dtype.type(number) if isinstance(number, float) else number
