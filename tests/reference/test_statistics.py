"""Cuts and sums: exact, whatever blocks a tensor is read in."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heterosis.merge.kernels import RUN, Inputs
from heterosis.merge.methods.base import ONE
from heterosis.merge.methods.random_mask import drop, mask_key
from heterosis.merge.selection import Cut
from heterosis.merge.statistics import Statistics, apply_each, magnitude, product

Row = np.ndarray[tuple[int], np.dtype[Any]]
# Few magnitudes, so that most are equal; and the extremes of the format.
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 0.5, -0.5, 1e-45, -1e-40, 3e38, -3e38])


def statistics(
    rows: Sequence[Row], ends: Sequence[int] = (), keys: tuple[tuple[int, int], ...] = (), width: int = 1
) -> Statistics:
    """Of rows that are read in blocks which end at ``ends`` and which the next block overwrites."""
    n = len(rows[0])

    def blocks(row_length: int) -> Iterator[tuple[int, Inputs]]:
        buffers = [np.empty_like(row) for row in rows]
        edges = sorted({0, n, *(end // row_length * row_length for end in ends if end < n)})
        for start, stop in pairwise(edges):
            for buffer, row in zip(buffers, rows, strict=True):
                buffer[:] = np.nan
                buffer[: stop - start] = row[start:stop]
            yield start, Inputs(tuple(buffer[: stop - start] for buffer in buffers))

    return Statistics(blocks, rows[0].dtype, len(rows), (n // width, width), keys)


def kept(cut: Cut, row: Row) -> list[int]:
    return [i for i, v in enumerate(abs(row)) if v > cut.value or (v == cut.value and i <= cut.last)]


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(VALUES | st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60),
    density=st.sampled_from([0.0, 1.0, 1e-9, 0.5, math.nextafter(1.0, 0.0)]) | st.floats(0, 1),
    ends=st.lists(st.integers(1, 60), max_size=4),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_cut_keeps_what_a_stable_sort_keeps(
    values: list[float], density: float, ends: list[int], dtype: type
) -> None:
    row = np.array(values, dtype=dtype)
    count = 0 if density == 0 else max(1, math.floor(density * len(row)))
    expected = sorted(np.argsort(-abs(row), kind="stable")[:count].tolist())
    whole = statistics([row]).cut(magnitude.bind(model=0), count)
    assert kept(whole, row) == expected
    assert statistics([row], ends).cut(magnitude.bind(model=0), count) == whole


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 3, RUN, RUN + 1, 5 * RUN + 7])
def test_sums_depend_on_no_blocks_and_are_right(dtype: type, n: int) -> None:
    rng = np.random.default_rng(n)
    rows = [(rng.normal(size=n) * 10.0 ** rng.integers(-6, 6, n)).astype(dtype) for _ in range(3)]
    whole = statistics(rows)
    exact = [[math.fsum((a.astype(float) * b.astype(float)).tolist()) for b in rows] for a in rows]
    np.testing.assert_allclose(whole.gram(), exact, rtol=1e-11, atol=1e-9 * np.max(exact))
    step = drop.bind((0.3, 0.6, 1.0), (1.0, 2.0, 1.0), (1, 2, 3), (3, 4, 5))
    before, after = whole.absolute_sums(step)
    np.testing.assert_allclose(before, [math.fsum(abs(r).tolist()) for r in rows], rtol=1e-6)
    assert after[2] == before[2]
    squares = [product.bind(j, j) for j in range(3)]
    np.testing.assert_allclose(whole.totals(*squares), np.diag(exact), rtol=1e-11)
    for ends in ([RUN], [RUN, 2 * RUN], [3 * RUN], range(0, n, RUN), [1, 2, 7, RUN - 1, RUN + 6, 3 * RUN + 2]):
        parts = statistics(rows, ends)
        assert parts.gram() == whole.gram()
        assert parts.absolute_sums(step) == (before, after)
        assert parts.totals(*squares) == whole.totals(*squares)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [1, 5, 40])
def test_sums_and_maxima_along_rows_and_columns(dtype: type, width: int) -> None:
    rng = np.random.default_rng(width)
    a, b = (rng.normal(size=200).astype(dtype) for _ in range(2))
    whole, parts = statistics([a, b], width=width), statistics([a, b], [3, 41, 130], width=width)
    products = (a.astype(float) * b.astype(float)).reshape(-1, width)
    for dim in (-1, 0):
        np.testing.assert_allclose(whole.grouped_totals(product.bind(0, 1), dim), products.sum(dim), rtol=1e-9)
        assert np.array_equal(
            parts.grouped_totals(product.bind(0, 1), dim), whole.grouped_totals(product.bind(0, 1), dim)
        )
        np.testing.assert_allclose(whole.grams(dim)[1, 0], products.sum(dim), rtol=1e-9)
    largest = abs(b).reshape(-1, width).max(-1)
    assert np.array_equal(whole.row_maxima(magnitude.bind(model=1)), largest)
    assert np.array_equal(parts.row_maxima(magnitude.bind(model=1)), largest)


def test_sums_after_a_step_depend_on_no_blocks_and_leave_rows_alone() -> None:
    rows = [np.random.default_rng(j).normal(size=3 * RUN + 5).astype(np.float32) for j in range(2)]
    before = [row.copy() for row in rows]
    step = drop.bind((0.3, 0.6), (1.0, 2.0), (1, 2), (3, 4))
    _, whole = statistics(rows).absolute_sums(step)
    assert all(np.array_equal(a, b) for a, b in zip(before, rows, strict=True))
    for j, row in enumerate(rows):
        apply_each(step, j, 0, row)
    np.testing.assert_allclose(whole, [abs(row).sum() for row in rows], rtol=1e-5)


# --- random masks -----------------------------------------------------------------------------------------------


def mask(density: float, key: tuple[int, int], n: int = 1 << 18, start: int = 0) -> Row:
    row = np.full(n, ONE)
    apply_each(drop.bind((density,), (1.0,), (key[0],), (key[1],)), 0, start, row)
    return row != 0


@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 0.5, 0.9, 1.0])
def test_a_mask_keeps_its_density_everywhere(density: float) -> None:
    n = 1 << 18
    drawn = mask(density, mask_key(0, "a", 1))
    error = math.sqrt(density * (1 - density) / n)
    assert abs(drawn.mean() - density) <= 4.5 * error
    # Neighbours, rows of a matrix and halves are as good as independent.
    for lag in (1, 2, 64, 4096):
        both = (drawn[:-lag] & drawn[lag:]).mean()
        assert abs(both - density**2) <= 4.5 * math.sqrt(density**2 * (1 - density**2) / n) + 2 * density * error
    assert abs(drawn[: n // 2].mean() - density) <= 4.5 * math.sqrt(2) * error


def test_masks_are_nested_and_addressed() -> None:
    key = mask_key(0, "a", 1)
    masks = [mask(density, key) for density in (0.1, 0.3, 0.31, 0.8)]
    assert all((small <= large).all() for small, large in pairwise(masks))
    assert np.array_equal(mask(0.3, key, 1000, start=5000), masks[1][5000:6000])


@pytest.mark.parametrize("other", [(1, "a", 1), (0, "b", 1), (0, "a", 2), (0, "a1", 1)])
def test_masks_of_other_addresses_are_independent(other: tuple[int, str, int]) -> None:
    first, second = mask(0.5, mask_key(0, "a", 1)), mask(0.5, mask_key(*other))
    assert abs((first == second).mean() - 0.5) <= 4.5 * 0.5 / math.sqrt(len(first))


def test_masks_beyond_four_billion_elements_do_not_repeat() -> None:
    key = mask_key(0, "a", 1)
    assert abs((mask(0.5, key) == mask(0.5, key, start=1 << 32)).mean() - 0.5) < 0.01
