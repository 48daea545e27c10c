"""Exact selection of a tensor's largest entries by one quantity: how many values of each size, then where."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from heterosis.merge.kernels import Row
from heterosis.merge.methods.base import Bound, Cut

# Tensors up to this size are sorted instead: histograms would take longer.
SMALL = 1 << 12

# A quantity, the position of a digit's lowest bit, and the digits above it.
Digit: TypeAlias = tuple[Bound, int, int]


@dataclass(frozen=True)
class Histogram:
    """How often each digit occurs among a quantity's values that have the same higher digits.

    Attributes:
        digits: Those that occur, ascending, ``[k]``.
        counts: In each part of the tensor, ``[parts, k]``.
        deeper: Whether a value has bits below the digit.
        zeros: How many values are zero in each part, ``[parts]``.
    """

    digits: npt.NDArray[np.uint16]
    counts: npt.NDArray[np.uint32]
    deeper: bool
    zeros: npt.NDArray[np.uint32]

    @property
    def array(self) -> npt.NDArray[np.uint32]:
        """All of it in one array."""
        array = np.empty((1 + len(self.counts), 1 + len(self.digits)), np.uint32)
        array[0, 0], array[1:, 0] = self.deeper, self.zeros
        array[0, 1:], array[1:, 1:] = self.digits, self.counts
        return array

    @classmethod
    def of_array(cls, array: npt.NDArray[np.uint32]) -> "Histogram":
        """The inverse of `array`."""
        return cls(array[0, 1:].astype(np.uint16), array[1:, 1:], bool(array[0, 0]), array[1:, 0])


class Values(Protocol):
    """A tensor's quantities, as selection asks for them. None of their values is negative."""

    @property
    def numel(self) -> int:
        """How many there are of each."""

    @property
    def part(self) -> int:
        """Elements of each of the parts that positions are searched in."""

    def whole(self, quantities: Sequence[Bound]) -> list[Row]:
        """All values of quantities of a small tensor."""

    def histograms(self, digits: Sequence[Digit]) -> list[Histogram]:
        """The histogram of each, from one pass for all."""

    def find(self, quantity: Bound, value: float, count: int, start: int) -> int:
        """The position of the ``count``-th value equal to ``value``, from ``start`` on."""


@dataclass
class _Search:
    """The search for the ``keep``-th largest value: its higher digits so far."""

    quantity: Bound
    keep: int
    prefix: int = 0
    deeper: bool = True
    above: int = 0  # values that are larger than any with this prefix
    equal: npt.NDArray[np.uint32] | None = None  # values with this prefix in each part

    def narrow(self, histogram: Histogram) -> None:
        """Fix the next digit."""
        totals = histogram.counts.sum(axis=0, dtype=np.int64)
        down_to = self.above + np.cumsum(totals[::-1])
        at = len(totals) - 1 - int(np.searchsorted(down_to, self.keep))
        self.above += int(totals[at + 1 :].sum())
        self.equal = histogram.counts[:, at]
        self.prefix = self.prefix << 16 | int(histogram.digits[at])
        self.deeper = histogram.deeper

    def cut(self, values: Values, value: float) -> Cut:
        """The cut at the value found, up to the position where enough are kept."""
        assert self.equal is not None
        if math.isnan(value):  # equals nothing: then nothing is cut off, and NaN is found in what is merged
            return Cut(value, values.numel)
        down_to = self.above + np.cumsum(self.equal, dtype=np.int64)
        if down_to[-1] == self.keep:
            return Cut(value, values.numel)
        part = int(np.searchsorted(down_to, self.keep))
        left = self.keep - int(down_to[part]) + int(self.equal[part])
        return Cut(value, values.find(self.quantity, value, left, part * values.part))


def select(values: Values, dtype: np.dtype[Any], wanted: Sequence[tuple[Bound, int]]) -> list[Cut]:
    """The cuts that keep the largest values of quantities.

    Values equal at a cut are kept in the order of their positions, which are searched in one part of the tensor.

    Args:
        values: What they are.
        dtype: Their type, float32 or float64.
        wanted: Quantities, and how many values to keep, in ``[1, numel]``.
    """
    searches = [_Search(quantity, keep) for quantity, keep in wanted]
    if values.numel <= SMALL:
        return _sorted(values, searches)
    return [s.cut(values, number) for s, number in zip(searches, _searched(values, dtype, searches), strict=True)]


def select_values(values: Values, dtype: np.dtype[Any], wanted: Sequence[tuple[Bound, int]]) -> list[float]:
    """The same cuts' values alone."""
    searches = [_Search(quantity, keep) for quantity, keep in wanted]
    if values.numel <= SMALL:
        return [cut.value for cut in _sorted(values, searches)]
    return _searched(values, dtype, searches)


def _searched(values: Values, dtype: np.dtype[Any], searches: Sequence[_Search]) -> list[float]:
    """The values searched for.

    Radix selection over the bit patterns, which order as the values do, 16 bits a pass for all quantities at once.
    It stops where no value has bits below: magnitudes of bfloat16 take one pass.
    """
    unsigned = np.dtype(f"u{dtype.itemsize}")
    for shift in range(dtype.itemsize * 8 - 16, -1, -16):
        digits = {(id(s.quantity), s.prefix): (s.quantity, shift, s.prefix) for s in searches if s.deeper}
        found = dict(zip(digits, values.histograms(list(digits.values())), strict=True)) if digits else {}
        for search in searches:
            if search.deeper:
                search.narrow(found[id(search.quantity), search.prefix])
            else:
                search.prefix <<= 16
    return [float(number) for number in np.array([s.prefix for s in searches], dtype=unsigned).view(dtype)]


def _sorted(values: Values, searches: Sequence[_Search]) -> list[Cut]:
    quantities = list({id(search.quantity): search.quantity for search in searches}.values())
    rows = dict(zip(map(id, quantities), values.whole(quantities), strict=True))
    orders = {key: np.argsort(-row, kind="stable") for key, row in rows.items()}
    cuts = []
    for search in searches:
        row, last = rows[id(search.quantity)], orders[id(search.quantity)][search.keep - 1]
        whole = np.count_nonzero(row >= row[last]) == search.keep
        cuts.append(Cut(float(row[last]), values.numel if whole else int(last)))
    return cuts
