"""Numbers of rows and columns: sums along them, formulas that take them, and the divergence of rows."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numba import njit

from heterosis.merge.formulas import formula, row_quantity
from heterosis.merge.kernels import Inputs, map_loop, row_loop
from heterosis.merge.methods import arcee_fusion as fusion
from heterosis.merge.methods.combine import combine
from heterosis.merge.methods.random_mask import drop
from heterosis.merge.statistics import Statistics
from heterosis.merge.statistics.selection import SMALL, Selection

Array = npt.NDArray[Any]
SHAPES = [(1, 7), (7, 1), (5, 40), (3, 4, 10), (2, 1000), (900,), ()]


def statistics(
    rows: Sequence[Array], shape: tuple[int, ...], at: Sequence[int] = (), base: Array | None = None
) -> Any:
    """Of models that are read in blocks which begin at some positions."""

    def blocks(row_length: int = 1, start: int = 0) -> Iterator[tuple[int, Inputs]]:
        edges = {0, rows[0].size, *(e // row_length * row_length for e in at if e < rows[0].size)}
        for first, last in pairwise(sorted(edges)):
            if last > start:
                part = tuple(row.ravel()[first:last].copy() for row in rows)
                yield first, Inputs(part, None if base is None else base.ravel()[first:last])

    dtype = np.dtype(np.float32) if rows[0].dtype == np.uint16 else rows[0].dtype
    return Statistics(blocks, dtype, len(rows), shape, ((0, 0),) * len(rows))


@formula
def weighted_size(i, x, weight):  # type: ignore[no-untyped-def]
    return abs(x[0]) * weight


@row_quantity
def dot_at_most(rows, most):  # type: ignore[no-untyped-def]
    total = 0.0
    for k in range(len(rows[0])):
        total += rows[0][k] * rows[1][k]
        rows[0][k] = np.nan  # it may overwrite them
    return min(total, most)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dot_products_of_lines_depend_on_no_blocks_and_are_right(shape: tuple[int, ...], dtype: type) -> None:
    models = [np.random.default_rng(j).normal(size=shape).astype(dtype) for j in range(3)]
    wide = [np.atleast_1d(model).astype(float) for model in models]
    for dim in (-1, 0):
        grams = statistics([np.atleast_1d(model) for model in models], shape).grams(dim)
        lines = [(a * b).sum(dim) for a in wide for b in wide]
        length = (
            math.prod(shape[1:]) if dim == 0 and len(shape) > 1 else (*shape, 1)[len(shape) - 1] if shape else 1
        )
        assert statistics(wide, shape).row_length(dim) == length
        assert np.broadcast_shapes(grams.shape[2:], (wide[0].size // length, length)) == (
            wide[0].size // length,
            length,
        )
        np.testing.assert_allclose(grams.reshape(9, -1), np.reshape(lines, (9, -1)), rtol=1e-12, atol=1e-12)
        for at in ([3, 41, 130], range(0, 2000, 7), [999, 1001]):
            assert np.array_equal(statistics([np.atleast_1d(m) for m in models], shape, at).grams(dim), grams)


TAKEN: list[int] = []


def angle(grams: Array) -> Array:
    TAKEN.append(grams.shape[2])
    return np.array(grams[0, 1] / np.sqrt(grams[0, 0] * grams[1, 1]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("most", [1, 9 * 5, 1 << 17])
def test_numbers_from_dot_products_of_rows_depend_on_no_blocks(
    shape: tuple[int, ...], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [np.atleast_1d(np.random.default_rng(j).normal(size=shape)) for j in range(3)]
    expected = angle(statistics(models, shape).grams(-1)[..., 0])[:, None]
    monkeypatch.setattr("heterosis.merge.statistics.statistics._GRAMS_AT_ONCE", most)
    TAKEN.clear()
    for at in ((), [3, 41, 130], range(0, 2000, 7), [999, 1001]):
        assert np.array_equal(statistics(models, shape, at).of_grams(angle), expected)
    assert max(TAKEN) <= max(1, most // 9)


@pytest.mark.parametrize("stepped", [False, True], ids=["map", "step"])
@pytest.mark.parametrize(("start", "size"), [(0, 60), (0, 12), (3, 7), (7, 20), (23, 37), (36, 1)])
def test_formulas_get_the_numbers_of_their_row_and_column(stepped: bool, start: int, size: int) -> None:
    g = np.random.default_rng(0)
    x = tuple(g.normal(size=(2, 60)).astype(np.float32))
    of_rows, of_columns = (g.normal(size=s).astype(np.float32) for s in ((5, 1), (12,)))
    loop = map_loop(combine.function, drop.function if stepped else None)
    block, out = slice(start, start + size), np.empty(size, np.float32)
    steps, keys = ((np.float32(1),),) * 2, ((0, 0),) * 2  # a step that keeps everything
    steps_and_keys = (steps, keys) if stepped else (None, None)
    loop(tuple(r[block] for r in x), None, None, start, 12, *steps_and_keys, None, ((of_rows, of_columns),), out)
    a, b = (r.reshape(5, 12) for r in x)
    assert np.array_equal(out, (of_rows * a + of_columns * b).ravel()[block])


def test_numbers_of_rows_beside_others() -> None:
    x = tuple(np.random.default_rng(0).normal(size=(2, 60)))
    of_rows, out = np.arange(5.0)[:, None], np.empty(60)
    bound = fusion.choose.bind(of_rows, 0.7, row_length=12)
    map_loop(bound.formula.function)(x, None, None, 0, bound.row_length, None, None, None, bound.numbers, out)
    assert out.tolist() == [fusion.choose(i, (x[0][i], x[1][i]), of_rows[i // 12, 0], 0.7) for i in range(60)]
    assert {*out} & {*x[0]}
    assert {*out} & {*x[1]}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("based", [False, True])
def test_numbers_of_rows_are_computed_from_whole_rows(shape: tuple[int, ...], based: bool) -> None:
    g = np.random.default_rng(0)
    bits = [
        (g.normal(size=shape or 1).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16) for _ in range(3)
    ]
    a, b, base = (r.reshape(-1, (1, *shape)[-1]).astype(np.uint32) << 16 for r in bits)
    x, y, under = (r.view(np.float32).astype(float) for r in (a, b, base))
    if based:  # rounded to bfloat16 where the base is bits
        import torch

        x, y = (torch.from_numpy(r - under).float().bfloat16().double().numpy() for r in (x, y))
    for at in ([], [3, 41, 130], range(0, 2000, 7)):
        tensor = statistics(bits[:2], shape, at, bits[2] if based else None)
        numbers = tensor.of_rows(dot_at_most.bind(2.5))
        assert numbers.dtype == np.float32
        assert numbers.shape == (len(x), 1)
        np.testing.assert_allclose(numbers, np.minimum((x * y).sum(1, keepdims=True), 2.5), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("width", [40, 2 * SMALL])
def test_sorted_values_of_a_quantity_with_numbers_of_rows(
    dtype: type, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Selection, "_find", None)  # nobody asks where they are
    x = np.random.default_rng(0).normal(size=(6, width)).astype(dtype)
    weight = np.arange(6, dtype=dtype)[:, None]
    tensor = statistics([x], x.shape, [width // 2, 3 * width + 7])
    indices = (0, x.size // 4, x.size // 2, x.size // 2 + 1, x.size - 1)
    expected = np.sort((abs(x) * weight).ravel())[list(indices)]
    assert tensor.ascending(weighted_size.bind(weight, row_length=width), *indices) == expected.tolist()


# --- the divergence of two rows ---------------------------------------------------------------------------------


@njit
def exponentials_of(x, out):  # type: ignore[no-untyped-def]
    for k in range(len(x)):
        out[k] = fusion.exponential(x[k])


@njit
def parts_of(p, q, out):  # type: ignore[no-untyped-def]
    for k in range(len(p)):
        out[k] = fusion.part(p[k], q[k])


def test_exponential_is_accurate() -> None:
    x = -np.concatenate([np.linspace(0, 40, 20001), np.geomspace(1e-20, 699, 5000), [0.0, np.log(2) / 2]])
    out = np.empty_like(x)
    exponentials_of(x, out)
    exact = np.exp(x.astype(np.longdouble))
    assert np.all(abs(out / exact - 1) < 2e-14 + 2e-16 * abs(x))


def test_exponential_of_extremes() -> None:
    x = np.array([-700.0, -701.0, -1e308, -np.inf, np.nan])
    out = np.empty_like(x)
    exponentials_of(x, out)
    assert np.all((out[:4] > 0) & (out[:4] < 1e-303))
    assert math.isnan(out[4])


def test_parts_of_divergences_are_accurate() -> None:
    g = np.random.default_rng(0)
    q = np.exp(-18 * g.random(40000))
    change = np.concatenate([g.normal(0, 10.0**-e, 10000) for e in (0, 2, 4)] + [18 * (g.random(10000) - 0.5)])
    p = q * np.exp(change)
    out = np.empty_like(p)
    parts_of(p, q, out)
    wide, to = p.astype(np.longdouble), q.astype(np.longdouble)
    s = (wide - to) / (wide + to)
    # Where p is close to q, as a series in s, as the terms of the formula cancel in long doubles too.
    series = to * s**2 / (1 - s) * 2 * (1 + (1 + s) * s * (1 / np.longdouble(3) + s**2 / 5 + s**4 / 7 + s**6 / 9))
    exact = np.where(abs(s) < 0.01, series, wide * np.log(wide / to) - wide + to)
    assert np.all(out >= 0)
    keep = exact > 0
    assert np.all(abs(out[keep] / exact[keep] - 1) < 1e-11)


@pytest.mark.parametrize("width", [1, 2, 63, 64, 65, 100, 2048])
@pytest.mark.parametrize("spread", [1e-4, 2e-3, 0.1, 3.0, 400.0])
def test_divergence_agrees_with_long_doubles(width: int, spread: float) -> None:
    g = np.random.default_rng(width)
    b = g.normal(0, max(0.02, spread / 10), (4, width)).astype(np.float32)
    x = (b + g.normal(0, spread, b.shape)).astype(np.float32)
    out = np.empty(4)
    scratch = np.empty(width), np.empty(width)
    row_loop(fusion.divergence.function)((b.ravel(), x.ravel()), None, (), scratch, out)

    def softmax(v: Array) -> Array:
        e = np.exp(v.astype(np.longdouble) - v.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True) + np.longdouble(1e-8)  # type: ignore[no-any-return]

    p, q = softmax(x), softmax(b)
    exact = (p * np.log(p / q) - p + q).sum(1)
    assert np.all(abs(out - exact) <= 1e-9 * exact + 1e-19)
    assert width < 3 or np.all(exact > 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_divergence_of_rows_with_bad_values_is_not_a_number_or_theirs_is_not_chosen(bad: float) -> None:
    b, x = np.random.default_rng(0).normal(size=(2, 100))
    x[70] = bad
    out = np.empty(1)
    row_loop(fusion.divergence.function)((b, x), None, (), (np.empty(100), np.empty(100)), out)
    chosen = fusion.choose(70, (b[70], x[70]), out[0], 1e-3)
    assert not math.isfinite(chosen)
