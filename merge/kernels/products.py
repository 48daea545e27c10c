"""Low-rank products, added to values block by block."""

import numpy as np

from heterosis.merge.kernels.compiling import compiled, inlined

_TILE = 1024  # columns; partial sums of this many stay in the L1 cache


@compiled
def add_low_rank_product(out, start, left, right):  # type: ignore[no-untyped-def]
    """``out += (left @ right).ravel()[start : start + len(out)]``, each sum over k in the same order.

    Two rows at a time share what is loaded of ``right``, where there are two whole ones.

    Shapes: out ``[n]``, left ``[rows, r]``, right ``[r, cols]``, all of one dtype and C-contiguous.
    """
    cols, n = right.shape[1], out.shape[0]
    sums = np.empty((2, min(cols, _TILE)), out.dtype)
    at = 0
    while at < n:
        row, first = (start + at) // cols, (start + at) % cols
        pair = first == 0 and at + 2 * cols <= n
        last = min(cols, first + n - at)
        for low in range(first, last, _TILE):
            size, to = min(_TILE, last - low), at + low - first
            a, b = sums[0, :size], sums[1, :size]
            _sum_products(left, right, row, row + 1 if pair else row, low, a, b)
            _add(a, out[to : to + size])
            if pair:
                _add(b, out[to + cols : to + cols + size])
        at += 2 * cols if pair else last - first


@inlined
def _sum_products(left, right, row, other, low, a, b):  # type: ignore[no-untyped-def]
    """Put two rows of the product, from column ``low`` on, into ``a`` and ``b``."""
    rank, high = right.shape[0], low + a.shape[0]
    a[:] = 0
    b[:] = 0
    whole = rank - rank % 4
    # Four at a time, to spare loads and stores; added in the order of k. Slices, because numba does not vectorise
    # indices with an offset: four times faster.
    for k in range(0, whole, 4):
        v0, v1, v2, v3 = right[k, low:high], right[k + 1, low:high], right[k + 2, low:high], right[k + 3, low:high]
        f0, f1, f2, f3 = left[row, k], left[row, k + 1], left[row, k + 2], left[row, k + 3]
        g0, g1, g2, g3 = left[other, k], left[other, k + 1], left[other, k + 2], left[other, k + 3]
        for c in range(a.shape[0]):
            a[c] = (((a[c] + f0 * v0[c]) + f1 * v1[c]) + f2 * v2[c]) + f3 * v3[c]
            b[c] = (((b[c] + g0 * v0[c]) + g1 * v1[c]) + g2 * v2[c]) + g3 * v3[c]
    for k in range(whole, rank):
        f, g, v = left[row, k], left[other, k], right[k, low:high]
        for c in range(a.shape[0]):
            a[c] += f * v[c]
            b[c] += g * v[c]


@inlined
def _add(values, out):  # type: ignore[no-untyped-def]
    for c in range(out.shape[0]):
        out[c] += values[c]
