"""Exact selection of a tensor's largest entries by one quantity: how many values of each size, then where."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from heterosis.merge.formulas import Bound, Cut
from heterosis.merge.kernels import (
    Inputs,
    Unrounded,
    count_digits,
    count_magnitudes,
    find_equal,
    find_magnitude,
    take_counts,
)
from heterosis.merge.statistics.quantities import Quantities, is_kept, key_of, magnitude, models_of, pieces
from heterosis.merge.statistics.reductions import Cache, Cached
from heterosis.merge.workspace import Workspace

# Tensors up to this size are sorted instead: histograms would take longer.
SMALL = 1 << 12

# A region of a tensor is where a position is searched. Where histograms are kept, searches are many.
_REGIONS = 8  # at most
_REGIONS_KEPT = 32
_SMALLEST_REGION = 1 << 17
_PIECE = 1 << 17  # elements whose floats stay in the L2 cache
_AT_ONCE = 8  # digits whose counts, 256 KiB each, stay in the L3 cache

# A quantity, the position of a digit's lowest bit, and the digits above it.
Digit: TypeAlias = tuple[Bound, int, int]


@dataclass(frozen=True)
class Histogram:
    """How often each digit occurs among a quantity's values that have the same higher digits.

    Attributes:
        digits: Those that occur, ascending, ``[k]``.
        down_to: How many values have one of the largest digits, from one of these to all k, ``[k]``.
        counts: In each region of the tensor, ``[regions, k]``.
        deeper: Whether a value has bits below the digit.
        zeros: How many values are zero in each region, ``[regions]``.
        region: Elements of a region.
    """

    digits: npt.NDArray[np.uint16]
    down_to: npt.NDArray[np.int64]
    counts: npt.NDArray[np.uint32]
    deeper: bool
    zeros: npt.NDArray[np.uint32]
    region: int

    @property
    def array(self) -> npt.NDArray[np.uint32]:
        """All of it in one array."""
        array = np.zeros((3 + len(self.counts), 1 + len(self.digits)), np.uint32)
        array[0, 0], array[3:, 0] = self.deeper, self.zeros
        array[0, 1:], array[3:, 1:] = self.digits, self.counts
        array[1:3] = np.array([self.region, *self.down_to], np.int64).view(np.uint32).reshape(-1, 2).T
        return array

    @classmethod
    def of_array(cls, array: npt.NDArray[np.uint32]) -> "Histogram":
        """The inverse of `array`."""
        region, down_to = np.split(np.ascontiguousarray(array[1:3].T).view(np.int64)[:, 0], [1])
        digits, counts, deeper, zeros = array[0, 1:], array[3:, 1:], bool(array[0, 0]), array[3:, 0]
        return cls(digits.astype(np.uint16), down_to, counts, deeper, zeros, int(region[0]))


class _Count:
    """The count of one digit, of which only the digits that occur are kept when a region ends.

    Args:
        digit: What is counted.
        halves: Whether the two halves of `counts` count the same in turn.
        counts: Room for the region's, ``[2 ** 16]``.
    """

    def __init__(self, digit: Digit, halves: bool, counts: npt.NDArray[np.uint32]) -> None:
        self.digit = digit
        self.counts = counts
        self.deeper, self.zeros = False, 0
        self._halves = halves
        self._regions: list[tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint32], int]] = []
        counts.fill(0)

    def end_region(self) -> None:
        """Keep what was counted in a region, and begin anew."""
        self._regions.append((*take_counts(self.counts, self._halves), self.zeros))
        self.zeros = 0

    def histogram(self, region: int) -> Histogram:
        """That of the whole tensor, of regions of so many elements."""
        occurs = np.zeros(len(self.counts), np.bool_)
        for occurring, _, _ in self._regions:
            occurs[occurring] = True
        digits = np.flatnonzero(occurs).astype(np.uint16)
        counts = np.zeros((len(self._regions), len(digits)), np.uint32)
        for own, (occurring, count, _) in zip(counts, self._regions, strict=True):
            own[np.searchsorted(digits, occurring)] = count
        zeros = np.array([zeros for _, _, zeros in self._regions], np.uint32)
        down_to = np.cumsum(counts.sum(axis=0, dtype=np.int64)[::-1])
        return Histogram(digits, down_to, counts, self.deeper, zeros, region)


@dataclass
class _Search:
    """The search for the ``keep``-th largest value: its higher digits so far."""

    quantity: Bound
    keep: int
    prefix: int = 0
    deeper: bool = True
    above: int = 0  # values that are larger than any with this prefix
    equal: npt.NDArray[np.uint32] | None = None  # values with this prefix in each region
    region: int = 0  # elements of one

    def narrow(self, histogram: Histogram) -> None:
        """Fix the next digit."""
        larger = int(np.searchsorted(histogram.down_to, self.keep - self.above))
        if larger:
            self.above += int(histogram.down_to[larger - 1])
        at = len(histogram.digits) - 1 - larger
        self.equal, self.region = histogram.counts[:, at], histogram.region
        self.prefix = self.prefix << 16 | int(histogram.digits[at])
        self.deeper = histogram.deeper


class Selection:
    """The largest values of a tensor's quantities, none of which is negative.

    Args:
        quantities: Of the tensor.
        workspace: Where counts are kept.
        cache: Where to keep histograms that need no numbers of a recipe; None computes them anew.
    """

    def __init__(self, quantities: Quantities, workspace: Workspace, cache: Cache | None = None) -> None:
        self._quantities = quantities
        self._dtype, self._numel = quantities.dtype, quantities.numel
        self._workspace = workspace
        self._cache = cache
        self._counted: tuple[Bound, Histogram] | None = None

    def cuts(self, *wanted: tuple[Bound, int]) -> list[Cut]:
        """The cuts that keep the largest values (see `Statistics.cuts`)."""
        plain = {0: Cut(math.inf, -1), self._numel: Cut(-1.0, -1)}
        searches = [_Search(quantity, keep) for quantity, keep in wanted if keep not in plain]
        if self._numel <= SMALL:
            found = iter(self._sorted(searches))
        else:
            values = self._searched(searches)
            found = iter([self._cut(search, value) for search, value in zip(searches, values, strict=True)])
        return [plain[keep] if keep in plain else next(found) for _, keep in wanted]

    def largest(self, quantity: Bound, *keep: int) -> list[float]:
        """The ``keep``-th largest value, from 1, for each ``keep``."""
        searches = [_Search(quantity, count) for count in keep]
        if self._numel <= SMALL:
            return [cut.value for cut in self._sorted(searches)]
        return self._searched(searches)

    def positive(self, quantity: Bound) -> int:
        """How many values are not zero."""
        (histogram,) = self._histograms([(quantity, self._first_digit, 0)])
        self._counted = quantity, histogram  # a cut is asked for next
        return self._numel - int(histogram.zeros.sum())

    # ------------------------------------------------------------------ the search

    def _sorted(self, searches: Sequence[_Search]) -> list[Cut]:
        """The cuts of a small tensor."""
        ordered: dict[int, npt.NDArray[np.float64]] = {}
        cuts = []
        for search in searches:
            quantity, keep = search.quantity, search.keep
            if id(quantity) not in ordered:
                ordered[id(quantity)] = self._kept("sorted", quantity, partial(self._ordered, quantity))
            values, positions = ordered[id(quantity)]
            whole = keep == self._numel or values[keep] != values[keep - 1]
            cuts.append(Cut(float(values[keep - 1]), self._numel if whole else int(positions[keep - 1])))
        return cuts

    def _ordered(self, quantity: Bound) -> npt.NDArray[np.float64]:
        """All values of a quantity, the largest first, and their positions, ``[2, n]``."""
        values = np.empty(self._numel, self._dtype)
        for start, inputs in self._quantities.blocks():
            values[start : start + inputs.size] = self._quantities.values(quantity, start, inputs)
        order = np.argsort(-values, kind="stable")
        return np.array([values[order], order], np.float64)

    def _searched(self, searches: Sequence[_Search]) -> list[float]:
        """The values searched for.

        Radix selection over the bit patterns, which order as the values do, 16 bits a pass for all quantities at
        once. It stops where no value has bits below: magnitudes of bfloat16 take one pass.
        """
        unsigned = np.dtype(f"u{self._dtype.itemsize}")
        for shift in range(self._first_digit, -1, -16):
            of_digits: dict[tuple[int, int], list[_Search]] = {}
            for search in searches:
                if search.deeper:
                    of_digits.setdefault((id(search.quantity), search.prefix), []).append(search)
                else:
                    search.prefix <<= 16
            digits = [(same[0].quantity, shift, same[0].prefix) for same in of_digits.values()]
            for same, histogram in zip(of_digits.values(), self._histograms(digits), strict=True):
                for search in same:
                    search.narrow(histogram)
        return [float(x) for x in np.array([s.prefix for s in searches], dtype=unsigned).view(self._dtype)]

    def _cut(self, search: _Search, value: float) -> Cut:
        """The cut at the value found, up to the position where enough are kept."""
        assert search.equal is not None
        if math.isnan(value):  # equals nothing; NaN stays, and is found in what is merged
            return Cut(value, self._numel)
        down_to = search.above + np.cumsum(search.equal, dtype=np.int64)
        if down_to[-1] == search.keep:
            return Cut(value, self._numel)
        region = int(np.searchsorted(down_to, search.keep))
        left = search.keep - int(down_to[region]) + int(search.equal[region])
        return Cut(value, self._find(search.quantity, value, left, region * search.region))

    def _find(self, quantity: Bound, value: float, count: int, start: int) -> int:
        """The position of the ``count``-th value equal to ``value``, from ``start`` on."""
        for at, inputs in self._quantities.blocks(start=start):
            skipped = max(start - at, 0)
            position, seen = self._find_in_block(
                quantity, value, count, at + skipped, inputs.part(skipped, inputs.size)
            )
            if position >= 0:
                return at + skipped + int(position)
            count -= seen
        raise AssertionError("the histogram has counted what is not there")

    def _find_in_block(
        self, quantity: Bound, value: float, count: int, start: int, inputs: Inputs
    ) -> tuple[int, int]:
        """The same within a block, or -1; and how many were seen."""
        number = self._dtype.type(value)
        if not _has_one_digit(quantity, inputs):
            return find_equal(self._quantities.values(quantity, start, inputs), number, count)  # type: ignore[no-any-return]
        (model,) = models_of(quantity, inputs)
        bits = np.uint16(np.float32(number).view(np.uint32) >> 16)
        return find_magnitude(model, inputs.base, bits, count)  # type: ignore[no-any-return]

    def _region(self, most: int) -> int:
        """Elements of a region, of which there are so many at most."""
        least = max(_SMALLEST_REGION, -(-self._numel // most))
        return -(-least // _SMALLEST_REGION) * _SMALLEST_REGION

    @property
    def _first_digit(self) -> int:
        """The position of the highest digit's lowest bit."""
        return self._dtype.itemsize * 8 - 16

    # ------------------------------------------------------------------ histograms

    def _histograms(self, digits: Sequence[Digit]) -> Iterator[Histogram]:
        """The histogram of each digit, one after another, from one pass for a handful unless they are kept."""
        first = self._first_digit
        if self._counted and [d[:2] for d in digits] == [(self._counted[0], first)]:
            yield self._counted[1]
            return
        if self._cache is None or any(shift != first or not is_kept(quantity) for quantity, shift, _ in digits):
            for at in range(0, len(digits), _AT_ONCE):
                yield from self._count(digits[at : at + _AT_ONCE], self._region(_REGIONS))
            return
        for digit in digits:
            yield self._kept("histogram", digit[0], partial(self._array, digit), Histogram.of_array)

    def _kept(
        self,
        name: str,
        quantity: Bound,
        make: Callable[[], Cached],
        read: Callable[[Cached], Any] = np.asarray,
    ) -> Any:
        """What is read from an array that depends on a quantity, from the cache if it may be kept."""
        if self._cache is None or not is_kept(quantity):
            return read(make())
        return self._cache((name, key_of(quantity)), make, read)

    def _array(self, digit: Digit) -> Cached:
        (histogram,) = self._count([digit], self._region(_REGIONS_KEPT))
        return histogram.array

    def _count(self, digits: Sequence[Digit], region: int) -> Iterator[Histogram]:
        """The histogram of each digit, one after another, from one pass."""
        room = self._workspace.array("counts", (len(digits), 1 << 16), np.uint32)
        counts = [
            _Count(digit, digit[1] == self._first_digit, own) for digit, own in zip(digits, room, strict=True)
        ]
        of_quantities: dict[int, list[_Count]] = {}  # the values of each are computed once
        for count in counts:
            of_quantities.setdefault(id(count.digit[0]), []).append(count)
        for start, inputs in self._quantities.pieces(region):
            for own in of_quantities.values():
                self._count_block(own, start, inputs)
            stop = start + inputs.size
            if stop % region == 0 or stop == self._numel:
                for count in counts:
                    count.end_region()
        of_quantities.clear()
        while counts:
            yield counts.pop(0).histogram(region)

    def _count_block(self, counts: Sequence[_Count], start: int, inputs: Inputs) -> None:
        """Count digits of one quantity in a block."""
        quantity = counts[0].digit[0]
        if _has_one_digit(quantity, inputs):
            (model,) = models_of(quantity, inputs)
            (count,) = counts
            count.zeros += int(count_magnitudes(model, inputs.base, count.counts))
            return
        unsigned = np.dtype(f"u{self._dtype.itemsize}")
        for at, piece in pieces(start, inputs, _PIECE):
            bits = self._quantities.values(quantity, at, piece).view(unsigned)
            for count in counts:
                _, shift, prefix = count.digit
                numbers = map(unsigned.type, (shift, (1 << shift) - 1, prefix))
                deeper, zeros = count_digits(bits, *numbers, count.counts)
                count.deeper |= bool(deeper)
                count.zeros += int(zeros)


def _has_one_digit(quantity: Bound, inputs: Inputs) -> bool:
    """Whether a quantity is a magnitude of bfloat16."""
    if quantity.formula is not magnitude or quantity.models is None:
        return False
    values, base = inputs.models[quantity.models[0]], inputs.base
    floats = isinstance(base, np.ndarray) and base.dtype != values.dtype
    return bool(values.dtype == np.uint16) and not floats and not isinstance(base, Unrounded)
