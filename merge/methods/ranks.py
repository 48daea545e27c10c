"""Mean ranks of a row's entries by magnitude, from a histogram.

An entry's rank is the number of entries with smaller magnitudes, and of equal ones half of the others. Magnitudes
are compared in the eight significant bits of bfloat16: those less than one part in 128 apart may count as equal.
"""

import numpy as np
from numba.extending import register_jitable

# Magnitudes of bfloat16.
MOST = 1 << 15
# Zeros are counted in so many places in turn: nothing is as frequent, and a count waits for the one before.
ZEROS = 8
# Rows whose counts share a number of 64 bits, so that they are added up together, and the longest that may.
TOGETHER = 4
LONGEST = MOST - 1


@register_jitable
def rank_rows(rows, ranks):  # type: ignore[no-untyped-def]
    """The mean rank of every entry in its row by magnitude, from 0. Zeros have none that counts: theirs is 0.

    Args:
        rows: Floats, ``[rows, length]``.
        ranks: float32, ``[rows, length]``.
    """
    length = rows.shape[1]
    together = TOGETHER if length <= LONGEST else 1
    keys = np.empty((together, length), np.uint16)
    counts, means = np.empty(MOST + ZEROS, np.uint64), np.empty(MOST + ZEROS, np.float32)
    for first in range(0, rows.shape[0], together):
        some, of_some = rows[first : first + together], ranks[first : first + together]
        own = keys[: some.shape[0]]
        places = _number(some, own)
        _sum_counts(own, counts[:places])
        for j in range(own.shape[0]):
            _look_up(own[j], j, counts[:places], means[:places], of_some[j])


@register_jitable
def _number(rows, keys):  # type: ignore[no-untyped-def]
    """Number the magnitudes of rows in their order, from `ZEROS` on; zeros get the numbers below that in turn.

    Returns:
        One more than the largest number.
    """
    most, least = np.uint16(0), np.uint16(MOST)
    for j in range(rows.shape[0]):
        row, own = rows[j], keys[j]
        for k in range(row.shape[0]):
            key = np.uint16((np.float32(row[k]).view(np.uint32) >> np.uint32(16)) & np.uint32(MOST - 1))
            own[k] = key
            most = key if key > most else most
            below = np.uint16(key - np.uint16(1))  # of zero, the largest number
            least = below if below < least else least
    for j in range(rows.shape[0]):
        own = keys[j]
        for k in range(own.shape[0]):
            own[k] = np.uint16(own[k] - least + np.uint16(ZEROS - 1)) if own[k] else np.uint16(k % ZEROS)
    return np.int64(max(most, least)) - np.int64(least) + ZEROS


@register_jitable
def _sum_counts(keys, counts):  # type: ignore[no-untyped-def]
    """For each key twice the mean rank, plus one: of every row in bits of its own."""
    counts[:] = 0
    for j in range(keys.shape[0]):
        own, one = keys[j], np.uint64(1) << _shift(j)
        for k in range(own.shape[0]):
            counts[own[k]] += one
    below = np.uint64(0)
    for key in range(counts.shape[0]):
        equal = counts[key]
        counts[key] = below + below + equal
        below += equal


@register_jitable
def _look_up(keys, j, counts, means, ranks):  # type: ignore[no-untyped-def]
    """The mean ranks of row ``j`` of those that were counted together."""
    mask = np.uint64(2 * MOST - 1) if keys.shape[0] <= LONGEST else ~np.uint64(0)
    for key in range(counts.shape[0]):
        means[key] = np.float32(0.5) * np.float32(np.int64((counts[key] >> _shift(j)) & mask) - 1)
    means[:ZEROS] = 0
    for k in range(keys.shape[0]):
        ranks[k] = means[keys[k]]


@register_jitable
def _shift(j):  # type: ignore[no-untyped-def]
    return np.uint64(np.uint64(64 // TOGETHER) * np.uint64(j))
