"""Ranks of a row's entries by magnitude, without sorting them where the magnitudes have few bits.

An entry's rank is the number of entries with smaller magnitudes, from a histogram, and of equal ones before it.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload, register_jitable

# A digit has at most this many bits: its counts stay in the L2 cache, and 15 are all that bfloat16 has.
WIDEST = 15
# So many keys are those of zeros.
ZEROS = 8


@register_jitable
def rank_rows(rows, ranks):  # type: ignore[no-untyped-def]
    """The rank of every entry in its row by magnitude, from 0; of equals the first has the lowest.

    Zeros have the lowest ranks, in any order: whether they are kept makes no difference.

    Args:
        rows: Floats, ``[rows, length]``.
        ranks: int32, ``[rows, length]``.
    """
    length = rows.shape[1]
    bits = _bits(rows)
    keys = np.empty(length, bits.dtype)
    order, following = np.empty(length, np.uint32), np.empty(length, np.uint32)
    widest = min(max(_length(length) + 1, 6), WIDEST)
    counts = np.empty(1 << widest, np.int32)
    for j in range(rows.shape[0]):
        largest, unused = _reduced(bits[j], keys)
        places = np.int64(largest >> unused) + 1
        if places <= counts.shape[0]:
            _rank(keys, unused, ranks[j], counts[:places])
        else:
            _rank_by_digits(keys, unused, _length(places - 1), widest, ranks[j], order, following, counts)


@register_jitable
def _reduced(bits, keys):  # type: ignore[no-untyped-def]
    """Write magnitudes to ``keys``, less the smallest but zero: as numbers of fewer bits, in the same order.

    Zeros take the first eight keys in turn.

    Returns:
        The largest key, and how many of the lowest bits all keys have as zero, as those of bfloat16.
    """
    unsigned = keys.dtype.type
    one = unsigned(1)
    magnitude = unsigned(~unsigned(0) >> one)
    most, least, some = unsigned(0), unsigned(~unsigned(0)), unsigned(0)
    for k in range(bits.shape[0]):
        key = unsigned(bits[k] & magnitude)
        below = unsigned(key - one)  # of zero, the largest number
        most = key if key > most else most
        least = below if below < least else least
        some = unsigned(some | key)
    unused = unsigned(0)
    while unused < 4 * bits.itemsize and not (some >> unused) & one:
        unused = unsigned(unused + one)
    unit = unsigned(one << unused)
    less = unsigned((min(least, most) >> unused << unused) - unsigned((ZEROS - 1) * unit))
    for k in range(bits.shape[0]):
        key = unsigned(bits[k] & magnitude)
        keys[k] = unsigned(key - less) if key else unsigned(unsigned(k % ZEROS) * unit)
    return unsigned(most - less), unused


@register_jitable
def _rank(keys, unused, ranks, place):  # type: ignore[no-untyped-def]
    """Ranks of keys, for which ``place`` has room; of equals the first has the lowest.

    Each entry waits until the one before with the same key has been counted. As nothing is as frequent as zero,
    zeros have keys in turn.
    """
    place[:] = 0
    for k in range(keys.shape[0]):
        place[keys[k] >> unused] += 1
    below = np.int32(0)
    for k in range(place.shape[0]):
        below += place[k]
        place[k] = below - place[k]
    for k in range(keys.shape[0]):
        key = np.uint64(keys[k] >> unused)  # an index that is never taken for one from the end
        ranks[k] = place[key]
        place[key] += 1


@register_jitable
def _rank_by_digits(keys, unused, bits, widest, ranks, order, following, counts):  # type: ignore[no-untyped-def]
    """The same for keys of more ``bits`` than a digit: a stable radix sort, from the lowest digit on."""
    n = keys.shape[0]
    unsigned = keys.dtype.type
    passes = -(-bits // widest)
    width = -(-bits // passes)
    mask = unsigned((1 << width) - 1)
    place = counts[: 1 << width]
    zero = unsigned(unsigned(ZEROS - 1) << unused)
    for k in range(n):
        order[k] = k
        keys[k] = unsigned(max(keys[k], zero) - zero)
    for p in range(passes):
        shift = unsigned(unused + p * width)
        place[:] = 0
        for k in range(n):
            place[(keys[k] >> shift) & mask] += 1
        below = np.int32(0)
        for digit in range(place.shape[0]):
            below += place[digit]
            place[digit] = below - place[digit]
        last = p + 1 == passes
        for k in range(n):
            at = order[k]
            digit = (keys[at] >> shift) & mask
            rank = place[digit]
            place[digit] = rank + 1
            if last:
                ranks[at] = rank
            else:
                following[rank] = at
        order, following = following, order


@register_jitable
def _length(x):  # type: ignore[no-untyped-def]
    """How many bits a number has."""
    bits = 0
    while x:
        x >>= 1
        bits += 1
    return bits


def _bits(rows: Any) -> Any:
    """Floats as unsigned integers."""


@overload(_bits)
def _bits_overload(rows):  # type: ignore[no-untyped-def]
    unsigned = np.uint32 if rows.dtype == types.float32 else np.uint64
    return lambda rows: rows.view(unsigned)
