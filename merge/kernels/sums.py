"""Sums over elements, in float64, that do not depend on how the tensor was cut into blocks."""

from collections.abc import Callable
from typing import Any

import numpy as np

from heterosis.merge.kernels.compiling import compiled, inlined

# Sums are taken over runs of this many elements, in float64, in interleaved lanes that vectorise: an element's
# position in the tensor tells where it is added, so a sum does not depend on how the tensor was cut into blocks.
# The partial sums are then added exactly.
RUN = 16384
LANES = 256


def _adding(term: Callable[..., Any]) -> Callable[..., Any]:
    """``add(a, b, start, run, sums)``: add the terms of two blocks, which begin at ``start``, to sums of runs.

    Blocks come in order. ``sums`` is ``[LANES + runs]``: the lanes of the run that is being added up, then the sum
    of every run, as far as it has come. ``run`` is the length of one.
    """
    jitable = inlined(term)

    def add(a, b, start, run, sums):  # type: ignore[no-untyped-def]
        at, end = 0, a.shape[0]
        while at < end:
            index, within = divmod(start + at, run)
            if within == 0:
                sums[: min(run, LANES)] = 0
            of_run = min(at + run - within, end)
            lane = within % LANES
            while at < of_run:
                stop = min(at + LANES - lane, of_run)
                left, right, lanes = a[at:stop], b[at:stop], sums[lane : lane + stop - at]
                for k in range(left.shape[0]):
                    lanes[k] += jitable(left[k], right[k])
                at, lane = stop, 0
            sums[LANES + index] = sums[: min(run, LANES)].sum()

    return compiled(add, term)


def _magnitude(a: Any, b: Any) -> Any:
    return np.float64(abs(a))


def _product(a: Any, b: Any) -> Any:
    return np.float64(a) * np.float64(b)


add_magnitudes, add_products = map(_adding, (_magnitude, _product))


@compiled
def add_columns(a, b, start, sums):  # type: ignore[no-untyped-def]
    """Add the products of two blocks, which begin at ``start``, to sums of columns."""
    at, end = 0, a.shape[0]
    while at < end:
        column = (start + at) % sums.shape[0]
        stop = min(at + sums.shape[0] - column, end)
        left, right, own = a[at:stop], b[at:stop], sums[column : column + stop - at]
        for k in range(left.shape[0]):
            own[k] += np.float64(left[k]) * np.float64(right[k])
        at = stop
