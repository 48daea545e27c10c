"""The k largest values of quantities over a tensor, exactly, in a pass for each 16 bits that tell them apart."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from heterosis.merge.kernels import Row, digit_histogram, find_equal
from heterosis.merge.methods.base import Bound

# Gives the values of quantities, block after block: the start, and each one's values there.
Passes = Callable[[Sequence[Bound]], Iterable[tuple[int, Sequence[Row]]]]


SMALL = 1 << 16


@dataclass(frozen=True)
class Cut:
    """The largest entries of a quantity: those above ``value``, and at it up to position ``last``."""

    value: float
    last: int


@dataclass
class _Search:
    """The search for the ``keep``-th largest value: its higher digits so far."""

    quantity: Bound
    keep: int
    prefix: int = 0
    above: int = 0  # values that are larger than any with this prefix
    equal: int = 0  # values with this prefix
    last: int = -1

    @property
    def takes_all(self) -> bool:
        """Whether all values equal at the cut are kept."""
        return self.keep - self.above == self.equal

    def narrow(self, counts: np.ndarray[Any, np.dtype[np.int64]]) -> None:
        """Fix the next digit, given how many values with the prefix have which."""
        down_to = self.above + np.cumsum(counts[::-1])
        skipped = int(np.searchsorted(down_to, self.keep))
        digit = counts.size - 1 - skipped
        self.equal = int(counts[digit])
        self.above = int(down_to[skipped]) - self.equal
        self.prefix = self.prefix << 16 | digit


def select(passes: Passes, dtype: np.dtype[Any], numel: int, wanted: Sequence[tuple[Bound, int]]) -> list[Cut]:
    """The cuts that keep the largest values of quantities.

    Radix selection over the bit patterns, which order as the values do. Values that need only 16 bits, such as
    magnitudes of bfloat16, take one pass for all quantities together. Values equal at a cut are kept in the
    order of their positions, which takes another pass where not all of them are kept.

    Args:
        passes: The quantities' values, never negative.
        dtype: Their type, float32 or float64.
        numel: How many there are of each.
        wanted: Quantities, and how many values to keep, in ``[1, numel]``.
    """
    searches = [_Search(quantity, keep) for quantity, keep in wanted]
    if not searches:
        return []
    if numel <= SMALL:
        return _sorted(passes, numel, searches)
    width = dtype.itemsize * 8
    unsigned = np.dtype(f"u{dtype.itemsize}")
    for shift in range(width - 16, -1, -16):
        if not _fix_digit(passes, unsigned, shift, searches):
            for search in searches:
                search.prefix <<= shift
            break
    _find_last(passes, dtype, unsigned, [search for search in searches if not search.takes_all])
    return [
        Cut(_value(search, dtype, unsigned), numel if search.takes_all else search.last) for search in searches
    ]


def _sorted(passes: Passes, numel: int, searches: Sequence[_Search]) -> list[Cut]:
    """The same for few values, whose histograms would take longer than sorting them."""
    quantities = _distinct(searches)
    parts = [[row.copy() for row in values] for _, values in passes(quantities)]
    rows = {id(q): np.concatenate([part[k] for part in parts]) for k, q in enumerate(quantities)}
    orders = {key: np.argsort(-row, kind="stable") for key, row in rows.items()}
    cuts = []
    for search in searches:
        row, last = rows[id(search.quantity)], orders[id(search.quantity)][search.keep - 1]
        whole = np.count_nonzero(row >= row[last]) == search.keep
        cuts.append(Cut(float(row[last]), numel if whole else int(last)))
    return cuts


def _fix_digit(passes: Passes, unsigned: np.dtype[Any], shift: int, searches: Sequence[_Search]) -> bool:
    """Fix one more digit of every search; returns whether values differ in bits below it."""
    quantities = _distinct(searches)
    counts = {(id(search.quantity), search.prefix): np.zeros((4, 1 << 16), dtype=np.uint32) for search in searches}
    lower = unsigned.type((1 << shift) - 1)
    more = False
    for _, values in passes(quantities):
        for quantity, row in zip(quantities, values, strict=True):
            bits = row.view(unsigned)
            for (of, prefix), count in counts.items():
                if of == id(quantity):
                    more |= digit_histogram(bits, unsigned.type(shift), lower, unsigned.type(prefix), count)
    totals = {key: count.sum(axis=0, dtype=np.int64) for key, count in counts.items()}
    for search in searches:
        search.narrow(totals[id(search.quantity), search.prefix])
    return more


def _find_last(passes: Passes, dtype: np.dtype[Any], unsigned: np.dtype[Any], searches: Sequence[_Search]) -> None:
    """Find the positions of the last values kept among those equal at the cuts."""
    if not searches:
        return
    left = [search.keep - search.above for search in searches]
    quantities = _distinct(searches)
    for start, values in passes(quantities):
        rows = {id(quantity): row for quantity, row in zip(quantities, values, strict=True)}
        for k, search in enumerate(searches):
            if search.last < 0:
                value = dtype.type(_value(search, dtype, unsigned))
                position, seen = find_equal(rows[id(search.quantity)], value, left[k])
                left[k] -= seen
                search.last = start + position if position >= 0 else -1
        if all(search.last >= 0 for search in searches):
            return


def _distinct(searches: Sequence[_Search]) -> list[Bound]:
    """Each quantity once, however many cuts of it are searched."""
    return list({id(search.quantity): search.quantity for search in searches}.values())


def _value(search: _Search, dtype: np.dtype[Any], unsigned: np.dtype[Any]) -> float:
    return float(np.array([search.prefix], dtype=unsigned).view(dtype)[0])
