"""What a method may ask of a whole tensor: sums, dot products, thresholds.

Every answer is exact or summed in an order that does not depend on how the tensor is cut into blocks.
A *quantity* is a bound map formula: a number for every element, from the values of all models there.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from heterosis.merge.kernels import (
    RUN,
    Inputs,
    Row,
    add_dot_runs,
    add_groups,
    add_runs,
    each_loop,
    max_groups,
    quantity_loop,
    rows_loop,
    widen_row,
)
from heterosis.merge.methods.base import Bound, formula
from heterosis.merge.selection import Cut, select

# Called with a length of rows, gives a tensor's blocks in order, each of whole rows: the start, and the values
# there, which the next block may overwrite.
Blocks: TypeAlias = Callable[[int], Iterable[tuple[int, Inputs]]]
Vector: TypeAlias = npt.NDArray[np.float64]

_WIDE = np.dtype(np.float64)


@formula
def magnitude(i, x):  # type: ignore[no-untyped-def]
    """``|x_j|``, of the one model j that it is bound to."""
    return abs(x[0])


@formula
def product(i, x, a, b):  # type: ignore[no-untyped-def]
    """``x_a x_b``, of float32 values exact in float64."""
    return np.float64(x[a]) * np.float64(x[b])


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
        for start, inputs in self._blocks(1):
            rows = self.floats(inputs)
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
        for start, values in self._passes(quantities, _WIDE):
            for row, sums in zip(values, partials, strict=True):
                add_runs(row, start, sums)
        return tuple(map(_total, partials))

    def grouped_totals(self, quantity: Bound, dim: int = -1) -> Vector:
        """The sums of a quantity along a dimension.

        Args:
            quantity: What is summed.
            dim: -1 sums along the last dimension, ``[rows]``; 0 along the first, one for each of what is left.
        """
        stride, groups = self.groups(dim)
        totals = np.zeros(groups)
        for start, (values,) in self._passes([quantity], _WIDE):
            add_groups(values, start, stride, totals)
        return totals

    def row_maxima(self, quantity: Bound) -> Vector:
        """The maxima of a quantity along the last dimension, ``[rows]``."""
        stride, groups = self.groups(-1)
        maxima = np.full(groups, -np.inf)
        for start, (values,) in self._passes([quantity], _WIDE):
            max_groups(values, start, stride, maxima)
        return maxima

    def groups(self, dim: int) -> tuple[int, int]:
        """The lines along a dimension, as (stride, groups): element i is in group ``i // stride % groups``."""
        assert dim in (-1, 0)
        if dim == 0 and len(self.shape) > 1:
            return 1, self.numel // self.shape[0]
        return self.width, self.numel // self.width

    def absolute_sums(self, each: Bound) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The L1 norm of every input, ``[m]``, and that of what a step makes of it."""
        before, after = ([self._partials() for _ in range(self.models)] for _ in range(2))
        for start, inputs in self._blocks(each.row_length):
            for j, row in enumerate(self.floats(inputs)):
                add_runs(np.abs(row), start, before[j])
                apply_each(each, j, start, row)
                add_runs(np.abs(row, out=row), start, after[j])
        return tuple(map(_total, before)), tuple(map(_total, after))

    def floats(self, inputs: Inputs) -> list[Row]:
        """What formulas get of a block's models, one row each, to be changed at will."""
        rows = [np.empty(len(row), self._dtype) for row in inputs.rows]
        for row, out in zip(inputs.rows, rows, strict=True):
            widen_row(row, inputs.base, out)
        return rows

    def cut(self, quantity: Bound, keep: int) -> Cut:
        """The cut that keeps the ``keep`` largest values of a quantity (see `cuts`)."""
        return self.cuts((quantity, keep))[0]

    def cuts(self, *wanted: tuple[Bound, int]) -> list[Cut]:
        """The cuts that keep the largest values of quantities, in as few passes together as one takes.

        Values equal at a cut are kept in the order of their positions.

        Args:
            wanted: Quantities that are never negative, and how many values to keep, in ``[0, n]``.
        """
        plain = {0: Cut(math.inf, -1), self.numel: Cut(-1.0, -1)}
        searched = iter(self._select([(quantity, keep) for quantity, keep in wanted if keep not in plain]))
        return [plain[keep] if keep in plain else next(searched) for _, keep in wanted]

    def ascending(self, quantity: Bound, *indices: int) -> list[float]:
        """The values at indices, from 0, of a quantity's sorted values; the quantity is never negative."""
        return [cut.value for cut in self._select([(quantity, self.numel - index) for index in indices])]

    def _select(self, wanted: Sequence[tuple[Bound, int]]) -> list[Cut]:
        return select(lambda asked: self._passes(asked, self._dtype), self._dtype, self.numel, wanted)

    def _passes(self, quantities: Sequence[Bound], dtype: np.dtype[Any]) -> Iterator[tuple[int, list[Row]]]:
        """The values of quantities, block after block; the next block overwrites them."""
        scratch: list[Row] = []
        for start, inputs in self._blocks(1):
            size = len(inputs.rows[0])
            if not scratch or len(scratch[0]) < size:
                scratch = [np.empty(size, dtype) for _ in quantities]
            values = [row[:size] for row in scratch]
            for quantity, out in zip(quantities, values, strict=True):
                rows = inputs.rows if quantity.model is None else (inputs.rows[quantity.model],)
                loop = quantity_loop(quantity.formula.function)
                loop(rows, inputs.base, start, typed(quantity.numbers, self._dtype), out)
            yield start, values

    def _partials(self) -> Vector:
        return np.zeros((-(-self.numel // RUN), 4))


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
