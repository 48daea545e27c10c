"""Loops over blocks, each against a few lines of numpy or plain Python; and what `compiled` keeps on disk."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise, product
from pathlib import Path
from types import FunctionType
from typing import Any, TypeAlias

import numba
import numpy as np
import numpy.typing as npt
import pytest
import torch

from heterosis.merge import kernels
from heterosis.merge.formulas import ONE, ZERO, Formula, per_model
from heterosis.merge.kernels import (
    LANES,
    RUN,
    Rounded,
    Subtracted,
    Unrounded,
    add_columns,
    add_magnitudes,
    add_products,
    add_rounded,
    compiled,
    count_digits,
    count_magnitudes,
    fill_uniform,
    find_equal,
    find_magnitude,
    map_loop,
    narrow,
    row_loop,
    step_loop,
    totals_loop,
    widen,
)
from heterosis.merge.methods.elect import elect, elect_mean
from heterosis.merge.methods.ties import trim

from .sparsity import uniform

Array: TypeAlias = npt.NDArray[Any]

# numpy's own arithmetic overflows on purpose here.
pytestmark = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")

# Lengths around the vectors and lanes of the loops.
LENGTHS = [1, 7, 8, LANES - 1, LANES, LANES + 1, 1000]
# Those of bfloat16 that rounding, signs and widening could get wrong.
EDGES = [0.0, -0.0, 1.0, -1.0, 1.0078125, 2.0, 3e38, -3e38, 1e-40, -1e-40, 9.2e-41, math.inf, -math.inf, math.nan]


def bits_of(values: Array | list[float]) -> Array:
    """As bits of bfloat16, by torch."""
    wide = torch.from_numpy(np.array(values, np.float32))
    return wide.to(torch.bfloat16).view(torch.uint16).numpy()


def floats_of(bits: Array) -> Array:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rounded(values: Array) -> Array:
    """To values of bfloat16."""
    return floats_of(bits_of(values))


def drawn(n: int, seed: int = 0, scale: float = 1.0) -> Array:
    """Floats with all their bits, and edges of bfloat16 among them."""
    values = (scale * np.random.default_rng(seed).normal(size=n)).astype(np.float32)
    values[: n // 3] = np.resize(np.array(EDGES[:-3], np.float32), n // 3)
    return values


def same(a: Array, b: Array) -> bool:
    """Bit for bit, but for what a NaN holds."""
    nan = np.isnan(a)
    return a.dtype == b.dtype and np.array_equal(nan, np.isnan(b)) and a[~nan].tobytes() == b[~nan].tobytes()


def less(bits: Array, base: Array) -> Array:
    """Values of bfloat16 less others, rounded to it: zeros have no sign, and what is too large is NaN."""
    exact = floats_of(bits) - floats_of(base)
    difference = rounded(exact) + np.float32(0)
    difference[~(abs(exact) < 2.0**112 * (1 + 2.0**-16))] = np.nan
    return difference


def numbers(values: Array) -> Array:
    """With NaN for what is infinite."""
    return np.where(np.isfinite(values), values, np.float32(np.nan))


# --- arithmetic -------------------------------------------------------------------------------------------------


@numba.njit
def fused_row(a, b, c, out):  # type: ignore[no-untyped-def]
    for k in range(len(out)):
        out[k] = kernels.fused(a[k], b[k], c[k])


def test_products_are_added_before_they_are_rounded() -> None:
    a, b = np.full(37, 1 + 2.0**-30), np.full(37, 1 - 2.0**-30)
    out = np.empty(37)
    fused_row(a, b, np.full(37, -1.0), out)
    assert out.tolist() == [-(2.0**-60)] * 37
    assert kernels.fused(2.0, 3.0, 4.0) == 10.0  # the same function, not compiled


# --- random numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [(0, 0), (1, 2), (0xFFFFFFFF, 0xFFFFFFFF), (0x9E3779B9, 0x80000000)])
@pytest.mark.parametrize("start", [0, 3, (1 << 31) - 50, (1 << 32) - 50, 1 << 32, (5 << 32) - 50, (7 << 40) + 11])
def test_random_numbers_are_those_of_plain_integers(start: int, key: tuple[int, int]) -> None:
    expected = [uniform(i, *key) for i in range(start, start + 100)]
    out = np.empty(100, np.float32)
    fill_uniform(start, key, out)
    assert out.tolist() == expected
    cut = (1 << 32) - start % (1 << 32)
    plain = [kernels.uniform(start, k, key) for k in range(min(cut, 100))]  # the same function, not compiled
    plain += [kernels.uniform(start + cut, k, key) for k in range(100 - cut)]
    assert plain == expected
    parts = np.empty(100, np.float32)
    for at, end in pairwise([0, 1, 48, 50, 51, 100]):
        fill_uniform(start + at, key, parts[at:end])
    assert parts.tolist() == expected


def test_random_numbers_are_even() -> None:
    out = np.empty(1 << 18, np.float32)
    fill_uniform(0, (1, 2), out)
    assert 0 <= out.min() < 1e-4
    assert 1 - 1e-4 < out.max() < 1
    counts = np.histogram(out, 64, (0, 1))[0]
    assert abs(counts - 4096).max() < 5 * math.sqrt(4096)


# --- bits of bfloat16 -------------------------------------------------------------------------------------------


def test_every_pattern_of_bits_is_widened_and_narrowed() -> None:
    bits = np.arange(1 << 16).astype(np.uint16)
    wide = np.empty(1 << 16, np.float32)
    widen(bits, None, wide)
    assert same(wide, floats_of(bits))
    back = np.zeros_like(bits)
    narrow(wide, back)
    nan = np.isnan(wide)
    assert np.array_equal(back[~nan], bits[~nan])
    assert np.isnan(floats_of(back[nan])).all()


def test_floats_are_narrowed_to_nearest_and_ties_to_even() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    values[: 1 << 17] = values[: 1 << 17] & np.uint32(0xFFFF0000) | rng.choice(
        np.array([0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32), 1 << 17
    )
    wide = values.view(np.float32)
    bits = np.empty(len(wide), np.uint16)
    narrow(wide, bits)
    assert same(floats_of(bits), rounded(wide))
    kept = np.empty_like(wide)
    narrow(wide, kept)
    assert kept.tobytes() == wide.tobytes()
    # Results of the step may be narrowed to float64 too.
    result, doubles = np.empty(len(wide)), np.where(np.isnan(wide), np.float32(0), wide).astype(np.float64)
    narrow(doubles, result)
    assert same(result, doubles)


SPECIAL = [0x0000, 0x8000, 0x0001, 0x007F, 0x0080, 0x3F80, 0x7780, 0x7F7F, 0x7F80, 0xFF80, 0x7F81, 0x7FFF, 0xFFFF]


@pytest.mark.parametrize("base", [*SPECIAL, *np.random.default_rng(0).integers(0, 1 << 16, 50).tolist()])
def test_every_value_less_a_base_is_rounded(base: int) -> None:
    bits = np.arange(1 << 16).astype(np.uint16)
    bases = np.full_like(bits, base)
    out, wide = np.empty_like(bits), np.empty(len(bits), np.float32)
    kernels.subtract_base(bits, bases, out)
    widen(bits, bases, wide)
    assert same(floats_of(out), wide)
    assert same(numbers(wide), less(bits, bases))


@pytest.mark.parametrize("n", LENGTHS)
def test_task_vectors_are_rounded_unless_the_base_says_otherwise(n: int) -> None:
    model, base = bits_of(drawn(n)), bits_of(drawn(n, 1)[::-1].copy())
    exact = floats_of(model) - floats_of(base)
    out = np.empty(n, np.float32)
    widen(model, base, out)
    assert same(numbers(out), less(model, base))
    widen(model, Unrounded(base), out)
    assert same(out, exact)
    widen(model, floats_of(base), out)
    assert same(out, exact)
    floats = drawn(n, 2)
    widen(floats, floats_of(base), out)  # a task vector already
    assert same(out, floats)


@pytest.mark.parametrize("n", LENGTHS)
def test_floats_are_added_to_bits(n: int) -> None:
    bits, values, out = bits_of(drawn(n)), drawn(n, 1, 0.01), np.empty(n, np.uint16)
    add_rounded(bits, values, out)
    assert same(floats_of(out), rounded(floats_of(bits) + values))


def mean(i: Any, x: Any, share: Any) -> Any:
    return share * x[0] + (ONE - share) * x[1]


def turned(i: Any, x: Any, above: Any) -> Any:
    return -x if abs(x) > above else ZERO


@pytest.mark.parametrize("stepped", [False, True])
@pytest.mark.parametrize("base", ["none", "bits", "unrounded", "floats"])
def test_results_are_bits_or_take_values_of_bfloat16(base: str, stepped: bool) -> None:
    n, share = 1001, np.float32(0.3)
    models = tuple(bits_of(drawn(n, seed)) for seed in (1, 2))
    bits = bits_of(drawn(n, 3))
    bases = {"none": None, "bits": bits, "unrounded": Unrounded(bits), "floats": floats_of(bits)}
    loop = map_loop(mean, turned if stepped else None)
    scales = (np.float32(1.5), np.float32(-0.25))
    steps = ((np.float32(0.2),), (np.float32(0.4),)) if stepped else None

    a, b = (floats_of(model) for model in models)
    if base != "none":
        a, b = ((rounded if base == "bits" else np.array)(x - floats_of(bits)) for x in (a, b))
    if steps:
        a, b = (np.where(abs(x) > above, -x, ZERO) for x, (above,) in zip((a, b), steps, strict=True))
    a, b = (x * scale for x, scale in zip((a, b), scales, strict=True))
    expected = share * a + (ONE - share) * b
    if base != "none":
        expected = expected + floats_of(bits)

    wide, narrow, live = np.empty(n, np.float32), np.empty(n, np.uint16), np.empty(n, np.float32)
    for out in (wide, narrow, Rounded(live)):
        loop(models, bases[base], bases[base], 0, n, steps, None, scales, (share,), out)
    assert same(wide, expected)
    assert same(floats_of(narrow), rounded(wide))
    assert same(live, rounded(wide))


def scaled(i: Any, x: Any, by: Any) -> Any:
    return by * x[0]


@pytest.mark.parametrize("kind", ["bits", "rounded", "float32", "float64"])
@pytest.mark.parametrize("at", [0, 999, 1000, 2002])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("length", [1000, 2003])
def test_a_loop_tells_whether_its_result_is_finite(kind: str, at: int, bad: float, length: int) -> None:
    n, largest = 2003, float(torch.finfo(torch.bfloat16).max)
    floats = np.float64 if kind == "float64" else np.float32
    values = np.resize(np.array([largest, -largest, 0.0, -0.0], floats), n)
    out = np.empty(n, np.uint16 if kind == "bits" else floats)
    to = Rounded(out) if kind == "rounded" else out
    assert map_loop(scaled)((values,), None, None, 0, length, None, None, None, (floats(1),), to)
    # What is rounded to infinity is not finite either.
    rounds = kind in ("bits", "rounded")
    assert map_loop(scaled)((values,), None, None, 0, length, None, None, None, (floats(1.003),), to) is not rounds
    values[at] = bad
    assert not map_loop(scaled)((values,), None, None, 0, length, None, None, None, (floats(1),), to)


# --- sums -------------------------------------------------------------------------------------------------------


def summed(add: Callable[..., None], pair: tuple[Array, Array], edges: Iterable[int]) -> tuple[float, Array]:
    """The sum over blocks that end at ``edges``, and the sums of the runs."""
    n = len(pair[0])
    sums = np.full(LANES + -(-n // RUN), np.nan)
    for start, stop in pairwise(sorted({0, n, *(edge for edge in edges if edge < n)})):
        add(pair[0][start:stop], pair[1][start:stop], start, RUN, sums)
    return math.fsum(sums[LANES:]), sums[LANES:].copy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [*LENGTHS, RUN, RUN + 1, 3 * RUN + 300])
def test_sums_do_not_depend_on_blocks_and_are_right(n: int, dtype: type) -> None:
    rng = np.random.default_rng(n)
    a, b = ((rng.normal(size=n) * 10.0 ** rng.integers(-3, 3, n)).astype(dtype) for _ in range(2))
    terms = {add_magnitudes: abs(a).astype(float), add_products: a.astype(float) * b.astype(float)}
    for add, term in terms.items():
        whole, runs = summed(add, (a, b), [])
        assert whole == pytest.approx(math.fsum(term), rel=1e-13, abs=1e-13 * math.fsum(abs(term)))
        for k, run in enumerate(runs):
            part = term[k * RUN : (k + 1) * RUN]
            assert run == pytest.approx(math.fsum(part), rel=1e-13, abs=1e-13 * math.fsum(abs(part)))
        for edges in (
            range(0, n, LANES),
            range(0, n, 4096),
            range(0, n, 1000),
            [1, 2, LANES - 1, LANES + 3, RUN - 1, RUN + 1, 2 * RUN],
            [5, 6, n - 1],
        ):
            assert np.array_equal(summed(add, (a, b), edges)[1], runs)


def test_sums_take_whole_numbers_exactly() -> None:
    ones = np.ones(3 * RUN + 7, np.float32)
    for add in (add_magnitudes, add_products):
        assert summed(add, (ones, ones), [10, RUN + 3])[0] == len(ones)
    assert summed(add_products, (-ones, ones), [10])[0] == -len(ones)


@pytest.mark.parametrize("run", [1, 3, LANES - 1, LANES + 1, 2 * LANES, 600])
def test_sums_of_runs_of_any_length(run: int) -> None:
    a, b = np.random.default_rng(run).normal(size=(2, 5 * run)).astype(np.float32)
    sums, again = (np.full(LANES + 5, np.nan) for _ in range(2))
    add_products(a, b, 0, run, sums)
    products = a.astype(float) * b
    expected = [math.fsum(products[k * run : (k + 1) * run]) for k in range(5)]
    np.testing.assert_allclose(sums[LANES:], expected, rtol=1e-12, atol=1e-12)
    for start, stop in pairwise(sorted({0, 1, run // 2, run, 2 * run + 1, 5 * run})):
        add_products(a[start:stop], b[start:stop], start, run, again)
    assert np.array_equal(again[LANES:], sums[LANES:])


@pytest.mark.parametrize("columns", [1, 7, 500, 600])
def test_columns_are_those_of_positions(columns: int) -> None:
    (a, b), start = np.random.default_rng(0).normal(size=(2, 500)).astype(np.float32), 33
    sums = np.zeros(columns)
    add_columns(a, b, start, sums)
    where = (start + np.arange(500)) % columns
    for k in range(columns):
        products = (a.astype(float) * b)[where == k].tolist()
        assert sums[k] == pytest.approx(math.fsum(products), rel=1e-12, abs=1e-12)


# --- counts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [*LENGTHS, 1003, 70001])
@pytest.mark.parametrize("base", [False, True])
def test_magnitudes_of_bits_are_counted(n: int, base: bool) -> None:
    rng = np.random.default_rng(n)
    bits, of_base = (rng.integers(0, 1 << 16, n).astype(np.uint16) for _ in range(2))
    bits[n // 2 :] = bits[n // 2]  # mostly one value, as zeros are
    of_base[n // 2 :] = of_base[n // 2]
    values = less(bits, of_base) if base else numbers(floats_of(bits))
    nan = np.isnan(values)
    counts = np.zeros(1 << 16, np.uint32)
    count_magnitudes(bits, of_base if base else None, counts)
    got = counts[: 1 << 15] + counts[1 << 15 :]
    expected = np.bincount((values.view(np.uint32) >> 16 & 0x7FFF)[~nan], minlength=1 << 15)
    infinity = 0x7F80
    assert np.array_equal(got[:infinity], expected[:infinity])
    assert got[infinity:].sum() == nan.sum()
    before = counts.copy()
    count_magnitudes(bits[:10], of_base[:10] if base else None, counts)
    assert (counts - before).sum() == min(n, 10)


@pytest.mark.parametrize("unsigned", [np.uint32, np.uint64])
@pytest.mark.parametrize("n", [1, 2, 1001])
def test_digits_are_counted_where_those_above_are_the_prefix(n: int, unsigned: type) -> None:
    rng = np.random.default_rng(n)
    top = np.dtype(unsigned).itemsize * 8
    # Few digits, so that prefixes are shared; bits of numbers that are not negative, but for a zero.
    digits = np.array([[0x3F80, 0x3F81, 0], *[[0, 1, 0xFFFF, 0x8000]] * (top // 16 - 1)], dtype=object)
    bits = np.zeros(n, unsigned)
    for choices in digits:
        bits = bits << unsigned(16) | rng.choice(np.array(choices, unsigned), n)
    bits[0] |= unsigned(1 << (top - 1)) if bits[0] == 0 else unsigned(0)
    plain = [int(v) & (1 << (top - 1)) - 1 for v in bits]
    for shift in range(top - 16, -1, -16):
        lower = (1 << shift) - 1
        for prefix in {v >> shift + 16 for v in plain}:
            counts = np.zeros(1 << 16, np.uint32)
            numbers = map(unsigned, (shift, lower, prefix))
            deeper, zeros = count_digits(bits, *numbers, counts)
            of_prefix = [v for v in plain if v >> shift + 16 == prefix]
            assert deeper == any(v & lower for v in of_prefix)
            assert shift < top - 16 or zeros == plain.count(0)
            got = counts[: 1 << 15] + counts[1 << 15 :] if shift == top - 16 else counts
            expected = np.bincount([v >> shift & 0xFFFF for v in of_prefix], minlength=len(got))
            assert np.array_equal(got, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [*LENGTHS, 3 * LANES + 5])
def test_equal_entries_are_found_in_order(n: int, dtype: type) -> None:
    values = np.random.default_rng(n).choice(np.array([0.5, 1.5, 1.0], dtype), n, p=[0.8, 0.1, 0.1])
    for value in np.array([0.5, 1.5, 7.0], dtype):
        positions = np.flatnonzero(values == value).tolist()
        for count, position in enumerate(positions, 1):
            assert find_equal(values, value, count) == (position, count)
        assert find_equal(values, value, len(positions) + 1) == (-1, len(positions))


@pytest.mark.parametrize("n", [*LENGTHS, 3 * LANES + 5])
def test_equal_magnitudes_are_found_in_order(n: int) -> None:
    sizes = np.random.default_rng(n).choice(np.array([0.5, -1.5, 1.5], np.float32), n, p=[0.8, 0.1, 0.1])
    ones = bits_of(np.ones(n))
    for base, values in ((None, sizes), (ones, sizes + 1), (Subtracted(ones), sizes)):
        positions = np.flatnonzero(np.abs(sizes) == 1.5).tolist()
        for count, position in enumerate(positions, 1):
            assert find_magnitude(bits_of(values), base, bits_of(np.array([1.5]))[0], count) == (position, count)
        none = find_magnitude(bits_of(values), base, bits_of(np.array([1.5]))[0], len(positions) + 1)
        assert none == (-1, len(positions))


def test_more_equal_entries_than_a_small_counter_holds_are_found() -> None:
    values = np.ones(70000, np.float32)
    assert find_equal(values, np.float32(1), 70000) == (69999, 70000)
    assert find_equal(values, np.float32(1), 66000) == (65999, 66000)


# --- steps ------------------------------------------------------------------------------------------------------


def shifted(i: Any, x: Any, u: Any, by: Any) -> Any:
    return x + u * by


def reversed_rows(i: Any, rows: Any, u: Any, by: Any) -> Any:
    for j in range(rows.shape[0]):
        for k in range(rows.shape[1] // 2):
            other = rows.shape[1] - 1 - k
            rows[j, k], rows[j, other] = rows[j, other], rows[j, k]
    rows += u * by


@pytest.mark.parametrize("at_once", [5, 40, 1000])
@pytest.mark.parametrize("start", [0, RUN - 60, (1 << 32) - 75])
@pytest.mark.parametrize("per_row", [False, True])
def test_a_step_sums_before_and_after_it(per_row: bool, start: int, at_once: int) -> None:
    n, length, by, key = 300, 5, np.float32(-2), (3, 4)
    values = np.random.default_rng(1).normal(size=n).astype(np.float32)
    u = np.array([uniform(i, *key) for i in range(start, start + n)], np.float32)
    expected = (values.reshape(-1, length)[:, ::-1].reshape(-1) if per_row else values) + u * by
    loop = step_loop(reversed_rows if per_row else shifted, per_row, True)
    scratch, room = np.empty(at_once, np.float32), np.empty(at_once, np.float32)
    runs = (start + n) // RUN + 1 if start < RUN else 0  # else sums of all before would take much memory
    for place in ("apart", "in place", "as bits"):
        given = values.copy()
        out = {"apart": np.empty_like(values), "in place": given, "as bits": np.empty(n, np.uint16)}[place]
        before, after = (np.zeros(LANES + runs if runs else 0) for _ in range(2))
        loop(given, None, start, length, key, (by,), scratch, room, before, after, out)
        assert same(floats_of(out), rounded(expected)) if place == "as bits" else same(out, expected)
        assert place == "in place" or same(given, values)
        for sums, of in ((before, values), (after, expected)) if runs else ():
            assert math.fsum(sums[LANES:]) == pytest.approx(math.fsum(abs(of).tolist()), rel=1e-12)


def ramp(i: Any, x: Any, by: Any) -> Any:
    return x[0] * by + i % 4


def test_a_quantity_gets_positions_and_values() -> None:
    bits, start = bits_of(drawn(500)), (3 << 32) + 2
    out = np.empty(500)
    map_loop(ramp)((bits,), None, None, start, 1 << 40, None, None, None, (np.float32(0.5),), out)
    expected = floats_of(bits).astype(float) * 0.5 + (start + np.arange(500)) % 4
    np.testing.assert_array_equal(out, expected)


def weighted(i: Any, x: Any, weight: Any) -> Any:
    total = ZERO
    for j in range(len(x)):
        total += weight[j] * x[j]
    return total


def thinned(i: Any, x: Any, u: Any, by: Any) -> Any:
    return x * u * by


@per_model
def doubled(x: Any) -> Any:
    return x + x


def doubles(i: Any, x: Any) -> Any:
    return doubled(x)


def corner(rows: Any) -> Any:
    return rows[0][0] + rows[len(rows) - 1][1]


def test_models_may_be_more_than_numba_recurses_for() -> None:
    """Loops, with all that they do for each model, against the same by numpy."""
    models, height, width = 40, 5, 12
    n = height * width
    rng = np.random.default_rng(0)
    bits = [bits_of(rng.normal(size=n)) for _ in range(models)]
    base = bits_of(rng.normal(size=n))
    deltas = [rounded(floats_of(model) - floats_of(base)) for model in bits]

    keys = tuple((j, 7 * j) for j in range(models))
    steps = tuple((np.float32(1 + j),) for j in range(models))
    scales = tuple(np.float32(j / 8) for j in range(models))
    weight = tuple(rng.normal(size=(height, 1)).astype(np.float32) for _ in range(models))
    out, total = np.empty(n, np.float32), np.zeros(n, np.float32)
    loop = map_loop(weighted, thinned)
    loop(tuple(bits), base, None, 0, width, steps, keys, scales, (weight,), out)
    for j, delta in enumerate(deltas):
        u = np.array([uniform(i, *keys[j]) for i in range(n)], np.float32)
        total += np.repeat(weight[j], width) * (delta * u * steps[j][0] * scales[j])
    assert same(out, total)

    sums = np.empty((models, LANES + 1))
    totals_loop(doubles)(tuple(bits), base, 0, (), np.empty(models * LANES, np.float32), sums)
    assert [math.fsum(own[LANES:]) for own in sums] == pytest.approx([2.0 * math.fsum(d) for d in deltas])

    numbers, scratch = np.empty(height), tuple(np.empty((models, width)))
    row_loop(corner)(tuple(bits), base, (), scratch, numbers)
    first, last = (deltas[j].reshape(height, width).astype(float) for j in (0, -1))
    assert numbers.tolist() == (first[:, 0] + last[:, 1]).tolist()


# --- machine code on disk ---------------------------------------------------------------------------------------

FORMULAS = """
def first(i, x):
    return x[0] + {number}


def second(i, x):
    return x[0] * 10
"""
PROGRAM = """
import numpy as np
from heterosis.merge.kernels import map_loop
import formulas

x, out, results = np.array([1.0, 2.0, 3.0]), np.empty(3), []
for formula in (formulas.first, formulas.second):
    map_loop(formula)((x,), None, None, 0, 3, None, None, None, (), out)
    results.append(out.tolist())
hits = sum(sum(map_loop(f).compiled.stats.cache_hits.values()) for f in (formulas.first, formulas.second))
print(results, hits)
"""


def run(folder: Path, **environment: str) -> str:
    """What `PROGRAM` prints in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def expected(number: int) -> str:
    first, second = [1.0 + number, 2.0 + number, 3.0 + number], [10.0, 20.0, 30.0]
    return str([first, second])


def test_code_is_kept_for_each_formula_until_its_source_changes(tmp_path: Path) -> None:
    module, cache = tmp_path / "formulas.py", str(tmp_path / "cache")
    module.write_text(FORMULAS.format(number=1))
    assert run(tmp_path, NUMBA_CACHE_DIR=cache) == f"{expected(1)} 0"
    assert run(tmp_path, NUMBA_CACHE_DIR=cache) == f"{expected(1)} 2"
    stat = module.stat()
    module.write_text(FORMULAS.format(number=2))
    os.utime(module, ns=(stat.st_atime_ns, stat.st_mtime_ns + 2 * 10**9))  # for Python's own cache to notice
    assert run(tmp_path, NUMBA_CACHE_DIR=cache) == f"{expected(2)} 0"
    assert run(tmp_path, NUMBA_CACHE_DIR=cache) == f"{expected(2)} 2"


def times(number: int) -> Callable[..., Any]:
    def formula(i: Any, x: Any) -> Any:
        return x * number

    return formula


def first_times(number: int) -> Callable[..., Any]:
    def formula(i: Any, x: Any) -> Any:
        return x[0] * number

    return formula


def test_formulas_of_one_name_are_told_apart() -> None:
    x, out, empty = np.array([1.0, 2.0]), np.empty(2), np.empty(0)
    for number in (3, 4):
        map_loop(first_times(number))((x,), None, None, 0, 2, None, None, None, (), out)
        assert out.tolist() == [number, 2.0 * number]
        map_loop(first_times(1), times(number))((x,), None, None, 0, 2, ((),), None, None, (), out)
        assert out.tolist() == [number, 2.0 * number]
        room = np.empty(2, np.float32)
        step_loop(times(number), False, False)(x, None, 0, 1, (0, 0), (), np.empty(2), room, empty, empty, out)
        assert out.tolist() == [number, 2.0 * number]


def without_file(source: str) -> Callable[..., Any]:
    """A function ``f`` as one types it into a prompt."""
    content: dict[str, Any] = {"__name__": "prompt"}
    exec(compile(source, "<prompt>", "exec"), content)
    function: Callable[..., Any] = content["f"]
    return function


def test_where_no_code_can_be_kept_loops_are_compiled_all_the_same() -> None:
    loop = compiled(without_file("def f(row):\n    return row[0] + row[-1]"))
    assert loop(np.array([1.0, 5.0, 2.0])) == 3.0


def not_kept(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function under a name for which no code is kept: of code from the disk, nothing can be read."""
    copy = FunctionType(function.__code__, function.__globals__, function.__name__)
    copy.__qualname__ = f"<locals>.{function.__name__}"
    return copy


@pytest.mark.parametrize("models", [2, 5, 8, 16])
@pytest.mark.parametrize("election", [elect, elect_mean])
def test_loops_vectorise_for_many_models(models: int, election: Formula) -> None:
    base, *others = bits_of(np.linspace(-1, 1, 1000 * (models + 1))).reshape(models + 1, 1000)
    loop: Any = map_loop(not_kept(election.function), not_kept(trim.function))
    weights, steps = (np.float32(0.4),) * models, ((np.float32(0.1),),) * models
    out = np.empty(1000, np.uint16)
    loop(tuple(others), base, base, 0, 1000, steps, None, None, (weights, np.float32(1)), out)
    (code,) = loop.compiled.inspect_llvm().values()
    assert re.search(r"fmul <\d+ x float>", code)
    assert not re.search(r"fmul float", code.split("vector.body")[1].split("middle.block")[0])
    assert not re.search(r"(call|invoke) [^\n]*(elect|trim)", code.split("define")[1])


def singles(*values: float) -> tuple[np.float32, ...]:
    return tuple(map(np.float32, values))


def same_bits(ours: np.float32, theirs: np.float32) -> bool:
    """Whether two numbers are the same, the sign of zero included; one NaN is as good as another."""
    return bool(np.isnan(ours) and np.isnan(theirs)) or ours.tobytes() == theirs.tobytes()


def sum_of_elected(x: tuple[np.float32, ...], weight: tuple[np.float32, ...]) -> np.float32:
    """The election where every sum begins with zero, so that its sign is never that of -0."""
    entries = [w * value for w, value in zip(weight, x, strict=True)]
    sign = np.copysign(ONE, sum(entries, ZERO))
    return sum((entry for entry in entries if not entry * sign <= 0), ZERO)


def test_an_election_of_zeros_of_any_sign_gives_zero() -> None:
    for weight in product(singles(1, -0.5, 0), repeat=3):
        for x in product(singles(*EDGES), repeat=3):
            merged = elect(0, x, weight, None)
            assert same_bits(merged, sum_of_elected(x, weight))
            assert same_bits(merged, elect(0, x, weight, ONE))


def test_formulas_need_no_file() -> None:
    x, out = np.array([1.0, 2.0]), np.empty(2)
    for number in (3, 4):  # of one name
        loop = map_loop(without_file(f"def f(i, x):\n    return x[0] * {number}"))
        loop((x,), None, None, 0, 2, None, None, None, (), out)
        assert out.tolist() == [number, 2.0 * number]
