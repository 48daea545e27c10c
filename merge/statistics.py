"""What a method may ask of a whole tensor: sums, dot products, thresholds.

Every answer is exact or summed in an order that does not depend on how the tensor is cut into blocks.
A *quantity* is a bound map formula: a number for every element, from the values of all models there. A *row
quantity* is one for every row, along the last dimension.
"""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from heterosis.merge.kernels import (
    LANES,
    RUN,
    Inputs,
    Row,
    Unrounded,
    add_columns,
    add_products,
    count_digits,
    count_magnitudes,
    find_equal,
    map_loop,
    part_of,
    row_loop,
    source_hash,
    step_loop,
    totals_loop,
    widen_row,
)
from heterosis.merge.methods.base import Bound, Cut, formula, per_model
from heterosis.merge.reductions import Keep, Kept
from heterosis.merge.selection import Digit, Histogram, select, select_values
from heterosis.merge.workspace import Workspace

Vector: TypeAlias = npt.NDArray[np.float64]

_PARTS = 8  # that positions of equal entries are searched in, at most
_SMALLEST_PART = 1 << 20
_PIECE = 1 << 17  # elements whose floats stay in the L2 cache
_AT_ONCE = 8  # digits whose counts stay in the L3 cache
_GRAMS_AT_ONCE = 1 << 17  # dot products
_STEPPED = 1 << 12  # elements that a step works on at a time, in the L1 cache
_COUNTS_BYTES = 4 << 16  # of one digit in one part
MOST_COUNTS = _AT_ONCE * _PARTS * _COUNTS_BYTES
_NO_SUMS = np.empty(0)


class Blocks(Protocol):
    """A tensor's inputs, block after block."""

    def __call__(self, row_length: int = 1, start: int = 0) -> Iterable[tuple[int, Inputs]]:
        """Blocks of whole rows, in order from ``start`` on: where each begins, and the values there.

        The next block may overwrite them.
        """


@formula
def magnitude(i, x):  # type: ignore[no-untyped-def]
    """``|x_j|``, of the one model j that it is bound to."""
    return abs(x[0])


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
        counts: Bytes of counts, but for those of one digit, which are taken in any case; with fewer of them, more
            passes count.
        in_place: Whether `absolute_sums` may leave in the blocks what the step makes of them.
        keep: Where to keep what needs no numbers of a recipe; None computes it anew.

    Attributes:
        stepped: The step whose results the blocks hold, where it was left there.
    """

    def __init__(
        self,
        blocks: Blocks,
        dtype: np.dtype[Any],
        models: int,
        shape: tuple[int, ...],
        keys: tuple[tuple[int, int], ...],
        workspace: Workspace | None = None,
        counts: int = MOST_COUNTS,
        in_place: bool = False,
        keep: Keep | None = None,
    ) -> None:
        self._blocks = blocks
        self._dtype = dtype
        self.models = models
        self.shape = shape
        self.keys = keys
        self._workspace = workspace or Workspace()
        self._counts = counts
        self._in_place = in_place
        self._keep = keep
        self.stepped: Bound | None = None
        self._counted: tuple[Bound, Histogram] | None = None
        self._numbers: dict[int, tuple[Bound, list[tuple[int, int, tuple[object, ...]]]]] = {}

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def width(self) -> int:
        """The length of the last dimension."""
        return self.shape[-1] if self.shape else 1

    def gram(self) -> tuple[tuple[float, ...], ...]:
        """Dot products of the inputs, ``[m, m]``."""
        return tuple(map(tuple, self._kept("gram", self._gram).tolist()))

    def _gram(self) -> Vector:
        partials = self._partials(len(self._pairs))
        for start, inputs in self._pieces(self._wide_piece):
            self._add_products(inputs, start, RUN, partials)
        return self._square(np.array([_total(sums) for sums in partials]))

    @property
    def _pairs(self) -> list[tuple[int, int]]:
        return [(a, b) for a in range(self.models) for b in range(a, self.models)]

    def _add_products(self, inputs: Inputs, start: int, run: int, sums: Vector) -> None:
        """Add the products of each pair of models to its sums of runs (see `add_products`)."""
        rows = self.floats(inputs)
        for (a, b), own in zip(self._pairs, sums, strict=True):
            add_products(rows[a], rows[b], start, run, own)

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
        grams = self._kept(("grams", dim), lambda: self._grams(dim))
        return grams if self._is_along_columns(dim) else grams[..., None]

    def _grams(self, dim: int) -> Vector:
        length = self.row_length(dim)
        if not self._is_along_columns(dim):
            sums = np.empty((len(self._pairs), LANES + self.numel // length))
            for start, inputs in self._pieces(self._wide_piece):
                self._add_products(inputs, start, length, sums)
            return self._square(sums[:, LANES:])
        sums = np.zeros((len(self._pairs), length))
        for start, inputs in self._pieces(self._wide_piece):
            rows = self.floats(inputs)
            for (a, b), own in zip(self._pairs, sums, strict=True):
                add_columns(rows[a], rows[b], start, own)
        return self._square(sums)

    def of_grams(self, function: Callable[[Vector], Vector]) -> Row:
        """What a function makes of the dot products along each row, ``[rows, 1]``: a number for formulas.

        Args:
            function: From ``[m, m, k]``, of any k rows, to ``[k]``: of each what it would be alone.
        """
        key = "of grams", *_origin(function)
        return np.array(self._kept(key, lambda: self._of_grams(function)), self._dtype)[:, None]

    def _of_grams(self, function: Callable[[Vector], Vector]) -> Vector:
        numbers = np.empty(self.numel // self.width)
        at_once = max(1, min(self._wide_piece // self.width, _GRAMS_AT_ONCE // self.models**2))
        sums = np.empty((len(self._pairs), LANES + at_once))
        for start, inputs in self._blocks(self.width):
            for at, piece in _pieces(start, inputs, at_once * self.width):
                first, count = at // self.width, len(piece.rows[0]) // self.width
                self._add_products(piece, 0, self.width, sums)
                numbers[first : first + count] = function(self._square(sums[:, LANES : LANES + count]))
        return numbers

    def totals(self, quantity: Bound) -> tuple[float, ...]:
        """The sums over the tensor of the numbers that a quantity has for each element, a tuple."""
        if quantity.numbers:
            return tuple(self._totals(quantity).tolist())
        return tuple(self._kept(("totals", _name(quantity)), lambda: self._totals(quantity)).tolist())

    def _totals(self, quantity: Bound) -> Vector:
        segments = self._segments(quantity)
        zeros = (self._dtype.type(0),) * len(quantity.models or range(self.models))
        count = len(quantity.formula(0, zeros, *segments[0][2]))
        loop, dtype = totals_loop(quantity.formula.function), np.float64 if quantity.formula.wide else self._dtype
        values, partials = np.empty(count * LANES, dtype), self._partials(count)
        for start, inputs in self._blocks():
            for first, last, numbers in segments:
                at, end = max(start, first), min(start + len(inputs.rows[0]), last)
                if at < end:
                    part = inputs.part(slice(at - start, end - start))
                    loop(_rows_of(quantity, part), part.base, at, numbers, values, partials)
        return np.array([_total(sums) for sums in partials])

    def row_length(self, dim: int = -1) -> int:
        """Elements of a row: lines along the last dimension are rows, those along the first have one of each."""
        return self.numel // self.shape[0] if self._is_along_columns(dim) else self.width

    def _is_along_columns(self, dim: int) -> bool:
        assert dim in (-1, 0)
        return dim == 0 and len(self.shape) > 1

    def of_rows(self, quantity: Bound) -> Row:
        """A row quantity of all rows along the last dimension, ``[rows, 1]``: a number for formulas."""
        if quantity.numbers:
            numbers = self._of_rows(quantity)
        else:
            numbers = self._kept(("rows", _name(quantity)), lambda: self._of_rows(quantity))
        return np.array(numbers, self._dtype)[:, None]

    def _of_rows(self, quantity: Bound) -> Vector:
        numbers = np.empty(self.numel // self.width)
        scratch = tuple(self._workspace.array("wide rows", (self.models, self.width), np.float64))
        loop = row_loop(quantity.formula.function)
        for start, inputs in self._blocks(self.width):
            first, count = start // self.width, len(inputs.rows[0]) // self.width
            loop(inputs.rows, inputs.base, quantity.numbers, scratch, numbers[first : first + count])
        return numbers

    def absolute_sums(self, each: Bound) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The L1 norm of every input, ``[m]``, and that of what a step makes of it; ask for it last.

        The blocks may hold what the step made of them from now on (`stepped`).
        """
        after = self._partials(self.models, "after")
        # The norms before the step need no numbers of a recipe: candidates of a search have them in common.
        norms = None if self._keep is None else self.totals(magnitudes.bind())
        before = self._partials(self.models, "before") if norms is None else [_NO_SUMS] * self.models
        for start, inputs in self._blocks(each.row_length or 1):
            for j, row in enumerate(inputs.rows):
                out = row if self._in_place else self._workspace.array("stepped", (len(row),), self._dtype)
                self.step(each, j, start, inputs, out, before[j], after[j])
        if self._in_place:
            self.stepped = each
        return norms or tuple(map(_total, before)), tuple(map(_total, after))

    def step(
        self,
        each: Bound,
        model: int,
        start: int,
        inputs: Inputs,
        out: Row,
        before: Vector = _NO_SUMS,
        after: Vector = _NO_SUMS,
    ) -> None:
        """Apply a step to one model's values in a block of whole rows; sum magnitudes before and after it."""
        row, length = inputs.rows[model], each.row_length or 1
        at_once = max(1, _STEPPED // length) * length
        values = self._workspace.array("values", (at_once,), self._dtype)
        u = self._workspace.array("random numbers", (at_once,), np.float32)
        loop = step_loop(each.formula.function, each.formula.per_row, each.formula.random)
        own = tuple(number[model] for number in each.numbers)
        key = self.keys[model] if each.formula.random else (0, 0)
        for at, stop in between(start, start + len(row), cuts_in(own)):
            part = slice(at - start, stop - start)
            numbers = typed(own, self._dtype, at)
            base = part_of(inputs.base, part)
            loop(row[part], base, at, length, key, numbers, values, u, before, after, out[part])

    def floats(self, inputs: Inputs) -> list[Row]:
        """What formulas get of a block's models, one row each, to be changed at will."""
        rows = list(self._workspace.array("floats", (self.models, len(inputs.rows[0])), self._dtype))
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
        searched = iter(select(self, self._dtype, [(q, keep) for q, keep in wanted if keep not in plain]))
        return [plain[keep] if keep in plain else next(searched) for _, keep in wanted]

    def ascending(self, quantity: Bound, *indices: int) -> list[float]:
        """The values at indices, from 0, of a quantity's sorted values; the quantity is never negative."""
        return select_values(self, self._dtype, [(quantity, self.numel - index) for index in indices])

    # ------------------------------------------------------------------ for selection

    @property
    def part(self) -> int:
        """Elements of each of the parts that positions are searched in: whole blocks, of any usual size."""
        least = max(_SMALLEST_PART, -(-self.numel // _PARTS))
        return -(-least // _SMALLEST_PART) * _SMALLEST_PART

    @property
    def _parts(self) -> int:
        return -(-self.numel // self.part)

    def whole(self, quantities: Sequence[Bound]) -> list[Row]:
        """All values of quantities of a small tensor."""
        rows = [np.empty(self.numel, self._dtype) for _ in quantities]
        for start, inputs in self._blocks():
            for quantity, row in zip(quantities, rows, strict=True):
                values = self._values(quantity, start, inputs)
                row[start : start + len(values)] = values
        return rows

    def positive(self, quantity: Bound) -> int:
        """How many values of a quantity, which is never negative, are not zero."""
        (histogram,) = self.histograms([(quantity, self._first_digit, 0)])
        self._counted = quantity, histogram  # a cut is asked for next
        return self.numel - int(histogram.zeros.sum())

    @property
    def _first_digit(self) -> int:
        """The position of the highest digit's lowest bit."""
        return self._dtype.itemsize * 8 - 16

    def histograms(self, digits: Sequence[Digit]) -> list[Histogram]:
        """The histogram of each digit, from one pass for a handful unless they are kept."""
        first = self._first_digit
        if self._counted and [d[:2] for d in digits] == [(self._counted[0], first)]:
            return [self._counted[1]]
        if self._keep is None or any(shift != first or quantity.numbers for quantity, shift, _ in digits):
            size = max(1, min(_AT_ONCE, self._counts // (self._parts * _COUNTS_BYTES)))
            batches = (digits[at : at + size] for at in range(0, len(digits), size))
            return [histogram for batch in batches for histogram in self._histograms(batch)]
        return [
            Histogram.of_array(self._kept(("histogram", _name(d[0])), partial(self._array, d))) for d in digits
        ]

    def _array(self, digit: Digit) -> Kept:
        return self._histograms([digit])[0].array

    def _histograms(self, digits: Sequence[Digit]) -> list[Histogram]:
        counts = self._workspace.array("counts", (len(digits), self._parts, 1 << 16), np.uint32)
        counts.fill(0)
        deeper, zeros = [False] * len(digits), np.zeros((len(digits), self._parts), np.uint32)
        of_quantities: dict[int, list[int]] = {}  # the values of each are computed once
        for k, (quantity, _, _) in enumerate(digits):
            of_quantities.setdefault(id(quantity), []).append(k)
        for start, inputs in self._pieces(self.part):
            part = start // self.part
            for own in of_quantities.values():
                found = self._count([digits[k] for k in own], start, inputs, [counts[k, part] for k in own])
                for k, (more, none) in zip(own, found, strict=True):
                    deeper[k] |= more
                    zeros[k, part] += none
        return [
            _histogram(count, shift == self._first_digit, more, none)
            for count, (_, shift, _), more, none in zip(counts, digits, deeper, zeros, strict=True)
        ]

    def _count(
        self, digits: Sequence[Digit], start: int, inputs: Inputs, counts: Sequence[npt.NDArray[np.uint32]]
    ) -> list[tuple[bool, int]]:
        """Count digits of one quantity in a block.

        Returns:
            For each, whether there are bits below it, and how many values are zero.
        """
        quantity = digits[0][0]
        if quantity.models is not None and self._has_one_digit(quantity, inputs):
            before = int(counts[0][0]) + int(counts[0][1 << 15])
            count_magnitudes(inputs.rows[quantity.models[0]], inputs.base, counts[0])
            return [(False, int(counts[0][0]) + int(counts[0][1 << 15]) - before)]
        unsigned = np.dtype(f"u{self._dtype.itemsize}")
        found = [(False, 0)] * len(digits)
        for at, piece in _pieces(start, inputs, _PIECE):
            bits = self._values(quantity, at, piece).view(unsigned)
            for k, (_, shift, prefix) in enumerate(digits):
                numbers = map(unsigned.type, (shift, (1 << shift) - 1, prefix))
                more, none = count_digits(bits, *numbers, counts[k])
                found[k] = (found[k][0] or bool(more), found[k][1] + int(none))
        return found

    def _has_one_digit(self, quantity: Bound, inputs: Inputs) -> bool:
        """Whether a quantity is a magnitude of bfloat16."""
        if quantity.formula is not magnitude or quantity.models is None:
            return False
        row, base = inputs.rows[quantity.models[0]], inputs.base
        floats = isinstance(base, np.ndarray) and base.dtype != row.dtype
        return bool(row.dtype == np.uint16) and not floats and not isinstance(base, Unrounded)

    def find(self, quantity: Bound, value: float, count: int, start: int) -> int:
        """The position of the ``count``-th value equal to ``value``, from ``start`` on."""
        for at, inputs in self._blocks(start=start):
            row = self._values(quantity, at, inputs)
            skipped = max(start - at, 0)
            position, seen = find_equal(row[skipped:], self._dtype.type(value), count)
            if position >= 0:
                return at + skipped + int(position)
            count -= seen
        raise AssertionError("the histogram has counted what is not there")

    @property
    def _wide_piece(self) -> int:
        """Elements of which the floats of all models stay in the L2 cache."""
        return max(RUN, _PIECE * 4 // max(4, self.models))

    def _pieces(self, size: int) -> Iterator[tuple[int, Inputs]]:
        """The tensor in pieces that end where multiples of ``size`` do, at the latest."""
        for start, inputs in self._blocks():
            yield from _pieces(start, inputs, size)

    def _values(self, quantity: Bound, start: int, inputs: Inputs) -> Row:
        """A quantity's values in a block; the next call overwrites them."""
        dtype = np.dtype(np.float64) if quantity.formula.wide else self._dtype
        values = self._workspace.array("values", (len(inputs.rows[0]),), dtype)
        rows = _rows_of(quantity, inputs)
        loop, length = map_loop(quantity.formula.function), quantity.row_length or self.numel
        stop = start + len(values)
        for first, last, numbers in self._segments(quantity):
            if first <= start and stop <= last:
                loop(rows, inputs.base, None, start, length, None, None, None, numbers, values)
            elif start < last and first < stop:
                at, end = max(start, first), min(stop, last)
                part = slice(at - start, end - start)
                of_rows, base = tuple(row[part] for row in rows), part_of(inputs.base, part)
                loop(of_rows, base, None, at, length, None, None, None, numbers, values[part])
        return values

    def _segments(self, quantity: Bound) -> list[tuple[int, int, tuple[object, ...]]]:
        """The tensor in pieces where the thresholds of a quantity's cuts stay the same, and its numbers there."""
        known = self._numbers.get(id(quantity))
        if known is None:
            ranges = between(0, self.numel, cuts_in(quantity.numbers))
            numbers = [(at, stop, typed(quantity.numbers, self._dtype, at)) for at, stop in ranges]
            known = self._numbers[id(quantity)] = (quantity, numbers)
        return known[1]

    def _kept(self, key: Hashable, make: Callable[[], Kept]) -> Kept:
        """What needs no numbers of a recipe, from where it is kept."""
        return make() if self._keep is None else self._keep(key, make)

    def _partials(self, count: int, name: str = "partial sums") -> Vector:
        """Room for sums over the tensor, ``[count, LANES + runs]``."""
        return self._workspace.array(name, (count, LANES + -(-self.numel // RUN)), np.float64)


def _pieces(start: int, inputs: Inputs, size: int) -> Iterator[tuple[int, Inputs]]:
    """A block in pieces that end where multiples of ``size`` do, at the latest."""
    stop = start + len(inputs.rows[0])
    if start // size == (stop - 1) // size:
        yield start, inputs
        return
    for at in range(start // size * size, stop, size):
        piece = slice(max(at - start, 0), min(at + size, stop) - start)
        yield start + piece.start, inputs.part(piece)


def _histogram(
    counts: npt.NDArray[np.uint32], halves: bool, deeper: bool, zeros: npt.NDArray[np.uint32]
) -> Histogram:
    """From counts ``[parts, 2 ** 16]``; in two halves where these count in turn."""
    summed = counts[:, : 1 << 15] + counts[:, 1 << 15 :] if halves else counts
    digits = np.flatnonzero(summed.any(axis=0))
    return Histogram(digits.astype(np.uint16), summed[:, digits], deeper, zeros)


def _rows_of(quantity: Bound, inputs: Inputs) -> tuple[Row, ...]:
    """The rows of the models that a quantity is of."""
    return inputs.rows if quantity.models is None else tuple(inputs.rows[j] for j in quantity.models)


def _name(quantity: Bound) -> tuple[object, ...]:
    """What a quantity without numbers depends on, beside the inputs."""
    return *_origin(quantity.formula.function), quantity.models


def _origin(function: Callable[..., Any]) -> tuple[str, str, str]:
    """What tells a function of a module, and its source, from others."""
    return function.__module__, function.__qualname__, source_hash(function)


def _total(partials: Vector) -> float:
    return math.fsum(partials[LANES:])


def cuts_in(numbers: Iterable[object]) -> Iterator[Cut]:
    """The cuts among a formula's numbers."""
    for number in numbers:
        if isinstance(number, Cut):
            yield number
        elif isinstance(number, tuple):
            yield from cuts_in(number)


def between(start: int, stop: int, cuts: Iterable[Cut], length: int | None = None) -> list[tuple[int, int]]:
    """A range in pieces in which the thresholds of cuts stay the same, up to multiples of a ``length``."""
    ends = {cut.last + 1 for cut in cuts if start <= cut.last < stop - 1}
    if length is not None:
        ends.update(range((start // length + 1) * length, stop, length))
    return list(pairwise(sorted({start, *ends, stop})))


def typed(numbers: tuple[object, ...], dtype: np.dtype[Any], position: int = 0) -> tuple[object, ...]:
    """Numbers of a formula with floats in the values' type, so that nothing is widened by accident.

    Args:
        numbers: Cuts among them become their thresholds.
        dtype: The values' type.
        position: Where in the tensor.
    """
    with np.errstate(over="ignore"):  # what becomes infinite is found in the merged tensor
        return tuple(_typed(number, dtype, position) for number in numbers)


def _typed(number: object, dtype: np.dtype[Any], position: int) -> object:
    if isinstance(number, tuple):
        return typed(number, dtype, position)
    if isinstance(number, Cut):
        return number.threshold(position, dtype)
    if isinstance(number, np.ndarray) and number.dtype.kind == "f":
        return number.astype(dtype, copy=False)
    return dtype.type(number) if isinstance(number, float) else number
