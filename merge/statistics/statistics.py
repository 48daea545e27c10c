"""What a method may ask of a whole tensor: sums, dot products, thresholds.

Every answer is exact or summed in an order that does not depend on how the tensor is cut into blocks.
A *quantity* is a bound map formula: a number for every element, from the values of all models there. A *row
quantity* is one for every row, along the last dimension.
"""

import math
from collections.abc import Callable, Hashable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from heterosis.merge.formulas import Bound, Cut, formula, per_model
from heterosis.merge.kernels import (
    LANES,
    RUN,
    Inputs,
    Values,
    add_columns,
    add_products,
    are_told_apart,
    row_loop,
    step_loop,
    totals_loop,
    widen,
)
from heterosis.merge.statistics.quantities import (
    Blocks,
    Quantities,
    between,
    clipped,
    cuts_in,
    is_kept,
    key_of,
    models_of,
    origin_of,
    pieces,
    typed,
)
from heterosis.merge.statistics.reductions import Cache, Cached
from heterosis.merge.statistics.selection import Selection
from heterosis.merge.workspace import Workspace

Vector: TypeAlias = npt.NDArray[np.float64]

_PIECE = 1 << 19  # floats that stay in the L2 cache
_GRAMS_AT_ONCE = 1 << 17  # dot products
_STEPPED = 1 << 12  # elements that a step works on at a time, in the L1 cache
_NO_SUMS = np.empty(0)


@per_model
def absolute(x):  # type: ignore[no-untyped-def]
    """``|x_j|``."""
    return abs(x)


@formula
def magnitudes(i, x):  # type: ignore[no-untyped-def]
    """``|x_j|`` of every model, to be summed."""
    return absolute(x)


class Statistics:
    """Statistics of the inputs of one tensor, computed when asked for.

    Args:
        blocks: The tensor's blocks; calling it again begins again.
        dtype: The values' type, float32 or float64.
        models: The number of models m.
        shape: Of the tensor.
        keys: Each model's address of random masks.
        workspace: Where blocks of floats, and counts, are kept.
        owned: Whether `absolute_sums` may leave in the blocks what the step makes of them; it is told whether this
            is worth copies of them.
        cache: Where to keep what needs no numbers of a recipe; None computes it anew.

    Attributes:
        applied: The step whose results the blocks hold now, where they were left there.
    """

    def __init__(
        self,
        blocks: Blocks,
        dtype: np.dtype[Any],
        models: int,
        shape: tuple[int, ...],
        keys: tuple[tuple[int, int], ...],
        workspace: Workspace | None = None,
        owned: Callable[[bool], bool] = lambda copied: False,
        cache: Cache | None = None,
    ) -> None:
        self._blocks = blocks
        self._dtype = dtype
        self.models = models
        self.shape = shape
        self.keys = keys
        self._workspace = workspace or Workspace()
        self._owned = owned
        self._cache = cache
        self.applied: Bound | None = None
        self._quantities = Quantities(blocks, dtype, self.numel, self._workspace)
        self._selection = Selection(self._quantities, self._workspace, cache)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """The length of the last dimension."""
        return self.shape[-1] if self.shape else 1

    def gram(self) -> tuple[tuple[float, ...], ...]:
        """Dot products of the inputs, ``[m, m]``."""
        return tuple(map(tuple, self._cached("gram", self._gram).tolist()))

    def _gram(self) -> Vector:
        partials = self._partials(len(self._pairs))
        for start, inputs in self._quantities.pieces(self._wide_piece):
            self._add_products(inputs, start, RUN, partials)
        return self._square(np.array([_total(sums) for sums in partials]))

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        return [(a, b) for a in range(self.models) for b in range(a, self.models)]

    def _add_products(self, inputs: Inputs, start: int, run: int, sums: Vector) -> None:
        """Add the products of each pair of models to its sums of runs (see `add_products`)."""
        floats = self.floats(inputs)
        for (a, b), own in zip(self._pairs, sums, strict=True):
            add_products(floats[a], floats[b], start, run, own)

    def _square(self, of_pairs: Vector) -> Vector:
        """From ``[pairs, *]`` to ``[m, m, *]``."""
        square = np.empty((self.models, self.models, *of_pairs.shape[1:]))
        for (a, b), own in zip(self._pairs, of_pairs, strict=True):
            square[a, b] = square[b, a] = own
        return square

    def grams(self, dim: int) -> Vector:
        """Dot products of the inputs along one dimension: -1, the last, or 0, the first.

        They are all in memory; of many models, a number for each row may be had instead (see `of_grams`).

        Returns:
            ``[m, m, rows, 1]`` or ``[m, m, columns]``: numbers for formulas with `row_length` of ``dim``.
        """
        grams = self._cached(("grams", dim), lambda: self._grams(dim))
        return grams if self._is_along_columns(dim) else grams[..., None]

    def _grams(self, dim: int) -> Vector:
        length = self.row_length(dim)
        if not self._is_along_columns(dim):
            sums = np.empty((len(self._pairs), LANES + self.numel // length))
            for start, inputs in self._quantities.pieces(self._wide_piece):
                self._add_products(inputs, start, length, sums)
            return self._square(sums[:, LANES:])
        sums = np.zeros((len(self._pairs), length))
        for start, inputs in self._quantities.pieces(self._wide_piece):
            floats = self.floats(inputs)
            for (a, b), own in zip(self._pairs, sums, strict=True):
                add_columns(floats[a], floats[b], start, own)
        return self._square(sums)

    def of_grams(self, function: Callable[[Vector], Vector]) -> Values:
        """What a function makes of the dot products along each row, ``[rows, 1]``: a number for formulas.

        Args:
            function: From ``[m, m, k]``, of any k rows, to ``[k]``: of each what it would be alone.
        """
        numbers = (
            self._cached(("of grams", *origin_of(function)), lambda: self._of_grams(function))
            if are_told_apart(function)
            else self._of_grams(function)
        )
        return np.array(numbers, self._dtype)[:, None]

    def _of_grams(self, function: Callable[[Vector], Vector]) -> Vector:
        numbers = np.empty(self.numel // self.width)
        at_once = max(1, _GRAMS_AT_ONCE // self.models**2)
        sums = np.empty((len(self._pairs), LANES + at_once))
        for start, inputs in self._blocks(self.width):
            for at, piece in pieces(start, inputs, at_once * self.width):
                first, count = at // self.width, piece.size // self.width
                for begin, part in pieces(at, piece, self._wide_piece):
                    self._add_products(part, begin - at, self.width, sums)
                numbers[first : first + count] = function(self._square(sums[:, LANES : LANES + count]))
        return numbers

    def totals(self, quantity: Bound) -> tuple[float, ...]:
        """The sums over the tensor of the numbers that a quantity has for each element, a tuple."""
        if not is_kept(quantity):
            return tuple(self._totals(quantity).tolist())
        return tuple(self._cached(("totals", key_of(quantity)), lambda: self._totals(quantity)).tolist())

    def _totals(self, quantity: Bound) -> Vector:
        segments = self._quantities.segments(quantity)
        zeros = (self._dtype.type(0),) * len(quantity.models or range(self.models))
        count = len(quantity.formula(0, zeros, *segments[0][2]))
        loop, dtype = totals_loop(quantity.formula.function), np.float64 if quantity.formula.wide else self._dtype
        scratch, partials = np.empty(count * LANES, dtype), self._partials(count)
        for start, inputs in self._blocks():
            for at, stop, numbers in clipped(segments, start, start + inputs.size):
                part = inputs.part(at - start, stop - start)
                loop(models_of(quantity, part), part.base, at, numbers, scratch, partials)
        return np.array([_total(sums) for sums in partials])

    def row_length(self, dim: int = -1) -> int:
        """Elements of a row: lines along the last dimension are rows, those along the first have one of each."""
        return self.numel // self.shape[0] if self._is_along_columns(dim) else self.width

    def _is_along_columns(self, dim: int) -> bool:
        assert dim in (-1, 0)
        return dim == 0 and len(self.shape) > 1

    def of_rows(self, quantity: Bound) -> Values:
        """A row quantity of all rows along the last dimension, ``[rows, 1]``: a number for formulas."""
        if not is_kept(quantity):
            numbers = self._of_rows(quantity)
        else:
            numbers = self._cached(("rows", key_of(quantity)), lambda: self._of_rows(quantity))
        return np.array(numbers, self._dtype)[:, None]

    def _of_rows(self, quantity: Bound) -> Vector:
        numbers = np.empty(self.numel // self.width)
        scratch = tuple(self._workspace.array("wide rows", (self.models, self.width), np.float64))
        loop = row_loop(quantity.formula.function)
        for start, inputs in self._blocks(self.width):
            first, count = start // self.width, inputs.size // self.width
            loop(inputs.models, inputs.base, quantity.numbers, scratch, numbers[first : first + count])
        return numbers

    def absolute_sums(self, each: Bound) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The L1 norm of every input, ``[m]``, and that of what a step makes of it; ask for it last.

        The blocks may hold what the step made of them from now on (`applied`).
        """
        after = self._partials(self.models, "after")
        # The norms before the step need no numbers of a recipe: candidates of a search have them in common.
        norms = None if self._cache is None else self.totals(magnitudes.bind())
        before = self._partials(self.models, "before") if norms is None else [_NO_SUMS] * self.models
        in_place = self._owned(each.formula.per_row)  # ranks take longer than copies, random numbers do not
        for start, inputs in self._blocks(each.row_length or 1):
            apart = None if in_place else self._workspace.array("after a step", (inputs.size,), self._dtype)
            for j, values in enumerate(inputs.models):
                self.step(each, j, start, inputs, values if apart is None else apart, before[j], after[j])
        if in_place:
            self.applied = each
        return norms or tuple(map(_total, before)), tuple(map(_total, after))

    def step(
        self,
        each: Bound,
        model: int,
        start: int,
        inputs: Inputs,
        out: Values,
        before: Vector = _NO_SUMS,
        after: Vector = _NO_SUMS,
    ) -> None:
        """Apply a step to one model's values in a block of whole rows; sum magnitudes before and after it."""
        length = each.row_length or 1
        at_once = max(1, _STEPPED // length) * length
        scratch = self._workspace.array("values", (at_once,), self._dtype)
        u = self._workspace.array("random numbers", (at_once,), np.float32)
        loop = step_loop(each.formula.function, each.formula.per_row, each.formula.random)
        own = tuple(number[model] for number in each.numbers)
        key = self.keys[model] if each.formula.random else (0, 0)
        for at, stop in between(start, start + inputs.size, cuts_in(own)):
            part, to = inputs.part(at - start, stop - start), out[at - start : stop - start]
            numbers = typed(own, self._dtype, at)
            loop(part.models[model], part.base, at, length, key, numbers, scratch, u, before, after, to)

    def floats(self, inputs: Inputs) -> list[Values]:
        """What formulas get of a block's models, to be changed at will."""
        floats = list(self._workspace.array("floats", (self.models, inputs.size), self._dtype))
        for values, out in zip(inputs.models, floats, strict=True):
            widen(values, inputs.base, out)
        return floats

    def cut(self, quantity: Bound, keep: int) -> Cut:
        """The cut that keeps the ``keep`` largest values of a quantity (see `cuts`)."""
        return self.cuts((quantity, keep))[0]

    def cuts(self, *wanted: tuple[Bound, int]) -> list[Cut]:
        """The cuts that keep the largest values of quantities, in as few passes together as one takes.

        Values equal at a cut are kept in the order of their positions.

        Args:
            wanted: Quantities that are never negative, and how many values to keep, in ``[0, n]``.
        """
        return self._selection.cuts(*wanted)

    def ascending(self, quantity: Bound, *indices: int) -> list[float]:
        """The values at indices, from 0, of a quantity's sorted values; the quantity is never negative."""
        return self._selection.largest(quantity, *(self.numel - index for index in indices))

    def positive(self, quantity: Bound) -> int:
        """How many values of a quantity, which is never negative, are not zero."""
        return self._selection.positive(quantity)

    @property
    def _wide_piece(self) -> int:
        """Elements of which the floats of all models stay in the L2 cache."""
        return max(RUN, _PIECE // max(4, self.models))

    def _cached(self, key: Hashable, make: Callable[[], Cached]) -> Cached:
        """What needs no numbers of a recipe, from where it is kept."""
        return make() if self._cache is None else np.asarray(self._cache(key, make))

    def _partials(self, count: int, name: str = "partial sums") -> Vector:
        """Room for sums over the tensor, ``[count, LANES + runs]``."""
        return self._workspace.array(name, (count, LANES + -(-self.numel // RUN)), np.float64)


def _total(partials: Vector) -> float:
    """The sum of all runs; NaN where that of one is not finite, as infinities of both signs have no sum."""
    runs = partials[LANES:]
    return math.fsum(runs) if np.isfinite(runs).all() else math.nan
