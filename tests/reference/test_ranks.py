"""Mean ranks by magnitude, as scipy has them for the magnitudes in the bits of bfloat16."""

from collections.abc import Callable
from typing import Any, TypeAlias

import numba
import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import rankdata

from heterosis.merge.methods.ranks import rank_rows

Array: TypeAlias = npt.NDArray[Any]

ranked = numba.njit(rank_rows)


def bfloat16(x: Array) -> Array:
    """Rounded towards zero to values of bfloat16."""
    return (np.asarray(x, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def extremes(rng: np.random.Generator, n: int, dtype: type) -> Array:
    """Few magnitudes, so that most are equal; and the ends of the format."""
    info = np.finfo(dtype)
    tiny = info.smallest_subnormal
    few = [0, 1, 1 + info.eps, tiny, 2 * tiny, info.tiny, 0.5, 1e-20, info.max, np.inf]
    return rng.choice(np.array([*few, *(-v for v in few), -0.0], dtype), n)


KINDS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "bfloat16": lambda rng, n: bfloat16(rng.normal(0, 0.02, n)),
    "bfloat16, wide": lambda rng, n: bfloat16(rng.normal(0, 1, n) * 10.0 ** rng.integers(-38, 38, n)),
    "bfloat16, mostly zeros": lambda rng, n: bfloat16(rng.normal(0, 0.02, n)) * (rng.random(n) < 0.1),
    "bfloat16, one binade": lambda rng, n: bfloat16(1 + rng.random(n)),
    "float32": lambda rng, n: rng.normal(0, 0.02, n).astype(np.float32),
    "float32, mostly zeros": lambda rng, n: (rng.normal(0, 1, n) * (rng.random(n) < 0.1)).astype(np.float32),
    "float32, wide": lambda rng, n: (rng.normal(0, 1, n) * 10.0 ** rng.integers(-40, 37, n)).astype(np.float32),
    "float32, extremes": lambda rng, n: extremes(rng, n, np.float32),
    "float32, equal": lambda rng, n: np.copysign(np.float32(0.3), rng.normal(size=n).astype(np.float32)),
    "float32, zeros": lambda rng, n: np.copysign(np.float32(0), rng.normal(size=n).astype(np.float32)),
    "float64": lambda rng, n: rng.normal(0, 0.02, n),
    "float64, wide": lambda rng, n: rng.normal(0, 1, n) * 10.0 ** rng.integers(-320, 308, n),
    "float64, extremes": lambda rng, n: extremes(rng, n, np.float64),
    "float64 of bfloat16": lambda rng, n: bfloat16(rng.normal(0, 0.02, n)).astype(np.float64),
}


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 100, 5632, 32767, 32768, 40000])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_magnitudes_share_their_mean_rank(kind: str, length: int) -> None:
    rng = np.random.default_rng(length)
    rows = np.stack([KINDS[kind](rng, length) for _ in range(6 if length < 10000 else 2)])
    rows[0, rng.integers(0, length, 3)] = 0.0, -0.0, 0.0
    before = rows.copy()
    ranks = np.full(rows.shape, -1, np.float32)
    ranked(rows, ranks)
    assert rows.tobytes() == before.tobytes()
    with np.errstate(over="ignore"):
        compared = bfloat16(np.abs(rows))
    expected = np.where(compared == 0, 0, rankdata(compared, axis=1) - 1)
    assert np.array_equal(ranks, expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_of_different_kinds_do_not_disturb_each_other(dtype: type) -> None:
    rng = np.random.default_rng(1)
    rows = np.stack(
        [KINDS[kind](rng, 700).astype(dtype) for kind in KINDS if "64" not in kind or dtype is np.float64]
    )
    together, alone = np.empty(rows.shape, np.float32), np.empty(rows.shape, np.float32)
    ranked(rows, together)
    for j in range(len(rows)):
        ranked(rows[j : j + 1], alone[j : j + 1])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_ranks_above_infinity(dtype: type) -> None:
    rows = np.array([[np.nan, 1, np.inf, -np.nan, 0, -np.inf, 2]], dtype)
    ranks = np.empty(rows.shape, np.float32)
    ranked(rows, ranks)
    assert ranks.tolist() == [[5.5, 1, 3.5, 5.5, 0, 3.5, 2]]


def test_the_order_of_neighbours_in_bfloat16_is_kept_and_of_what_is_between_not() -> None:
    rows = np.array([[1.0078125, 1.0, 1.005, -1.0, 1.0234375]], np.float32)
    ranks = np.empty(rows.shape, np.float32)
    ranked(rows, ranks)
    assert ranks.tolist() == [[3, 1, 1, 1, 4]]
