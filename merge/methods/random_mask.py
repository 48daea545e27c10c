"""Random masks addressed by seed, tensor, model and element.

An element's random number depends on nothing else, so any block, thread, device or order gives the same
mask, and elements dropped at one density stay dropped at every lower one.
"""

import hashlib

import numpy as np
from numba.extending import register_jitable

from heterosis.merge.methods.base import ZERO, formula, row_formula

# Multipliers of a 32-bit mixing function with low bias (C. Wellons, hash-prospector, 2018).
_M1 = 0x7FEB352D
_M2 = 0x846CA68B
_MASK = 0xFFFFFFFF


def mask_key(seed: int, tensor: str, position: int) -> tuple[int, int]:
    """Two 32-bit words that address the mask of one tensor of the model at ``position`` in the recipe."""
    digest = hashlib.blake2b(f"{seed}\0{tensor}\0{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


@register_jitable
def uniform(i, low, high):  # type: ignore[no-untyped-def]
    """The random number of element ``i``, in [0, 1). ``low``, ``high``: a mask's key."""
    x = (i + low) & _MASK
    x = ((x ^ (x >> 16)) * _M1) & _MASK
    x = ((x ^ (x >> 15)) * _M2) & _MASK
    x = (x ^ (x >> 16)) ^ ((high ^ (i >> 32)) & _MASK)
    x = ((x ^ (x >> 16)) * _M1) & _MASK
    x = ((x ^ (x >> 15)) * _M2) & _MASK
    x = x ^ (x >> 16)
    # The upper 24 bits, which float32 holds exactly.
    return np.float32(x >> 8) * np.float32(2.0**-24)


@formula
def drop(i, d, density, scale, low, high):  # type: ignore[no-untyped-def]
    """Keep ``d`` with probability ``density``, times ``scale``. ``low``, ``high``: a mask's key."""
    return d * scale if uniform(i, low, high) < density else ZERO


@register_jitable
def ascending(sizes):  # type: ignore[no-untyped-def]
    """The positions of numbers that are not negative, from the smallest to the largest; of equals the first first.

    A radix sort by bytes, from the least significant (the first) on: the bits order as the numbers do. Over a
    row of thousands it takes a seventh of the time of numba's merge sort.
    """
    n = len(sizes)
    digits = sizes.view(np.uint8).reshape((n, -1))
    order, following = np.arange(n), np.empty(n, np.int64)
    for k in range(digits.shape[1]):
        counts = np.zeros(256, np.int64)
        for i in range(n):
            counts[digits[i, k]] += 1
        if counts[digits[0, k]] == n:  # as of bytes that bfloat16 does not have
            continue
        place = np.cumsum(counts) - counts
        for at in order:
            following[place[digits[at, k]]] = at
            place[digits[at, k]] += 1
        order, following = following, order
    return order


@row_formula
def drop_by_rank(i, row, least, step, scale, low, high):  # type: ignore[no-untyped-def]
    """Keep entries with probability ``least + step r``, times ``scale``; r = 0, 1, ... in order of magnitude.

    Of equal magnitudes the first has the lowest rank. ``low``, ``high``: a mask's key.
    """
    order = ascending(np.abs(row))
    for rank in range(len(order)):
        at = int(order[rank])
        kept = uniform(i + at, low, high) < np.float64(least) + np.float64(step) * rank
        row[at] = row[at] * scale if kept else ZERO
