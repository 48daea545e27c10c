"""Loops over blocks: per-element formulas and sums, compiled by numba for the CPU.

A formula is an ordinary function of scalars and of tuples with one entry per model. Because a tuple's
length is part of its type, the loop over models inside a formula unrolls and the loop over elements
vectorises (docs/design/0001-the-spine.md has the figures). Nothing here reassociates sums, so results do not
depend on blocks, threads or order.

LLVM vectorises a loop that runs from 0 over slices, but not one whose indices have an offset.

compiling.py   numba, and machine code that outlives the process
values.py      what loops read and write: floats, or bits of bfloat16
loops.py       loops that call a formula
sums.py        sums that do not depend on blocks
counting.py    histograms of magnitudes
uniform.py     random numbers of elements
products.py    low-rank products, of adapters
arithmetic.py  operations of formulas that numba does not have
"""

from heterosis.merge.kernels.arithmetic import fused
from heterosis.merge.kernels.compiling import are_told_apart, compiled, inlined, inlined_overload, source_hash
from heterosis.merge.kernels.counting import (
    count_digits,
    count_magnitudes,
    find_equal,
    find_magnitude,
    largest_magnitude,
    take_counts,
)
from heterosis.merge.kernels.loops import map_loop, row_loop, step_loop, totals_loop
from heterosis.merge.kernels.products import add_low_rank_product
from heterosis.merge.kernels.sums import LANES, RUN, add_columns, add_magnitudes, add_products
from heterosis.merge.kernels.uniform import fill_uniform, uniform
from heterosis.merge.kernels.values import (
    INFINITY,
    Inputs,
    Rounded,
    Subtracted,
    Unrounded,
    Values,
    add_rounded,
    narrow,
    slice_of,
    subtract_base,
    widen,
)

__all__ = [
    "INFINITY",
    "LANES",
    "RUN",
    "Inputs",
    "Rounded",
    "Subtracted",
    "Unrounded",
    "Values",
    "add_columns",
    "add_magnitudes",
    "add_low_rank_product",
    "add_products",
    "add_rounded",
    "are_told_apart",
    "compiled",
    "count_digits",
    "count_magnitudes",
    "fill_uniform",
    "find_equal",
    "find_magnitude",
    "fused",
    "inlined",
    "inlined_overload",
    "largest_magnitude",
    "map_loop",
    "narrow",
    "row_loop",
    "slice_of",
    "source_hash",
    "step_loop",
    "subtract_base",
    "take_counts",
    "totals_loop",
    "uniform",
    "widen",
]
