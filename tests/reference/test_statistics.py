"""Cuts and sums: exact, whatever blocks a tensor is read in."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heterosis.merge.formulas import ONE, Bound, Cut, per_model, wide_formula
from heterosis.merge.kernels import RUN, Inputs, Values
from heterosis.merge.methods.random_mask import drop, mask_key
from heterosis.merge.statistics import Statistics
from heterosis.merge.statistics.quantities import magnitude

# Few magnitudes, so that most are equal; and the extremes of the format.
VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 0.5, -0.5, 1e-45, -1e-40, 3e38, -3e38])
# Of a few models.
KEYS = ((1, 3), (2, 4), (3, 5))


@per_model
def square(x):  # type: ignore[no-untyped-def]
    return np.float64(x) * np.float64(x)


@wide_formula
def squares(i, x):  # type: ignore[no-untyped-def]
    return square(x)


def statistics(models: Sequence[Values], ends: Sequence[int] = (), width: int = 1) -> Statistics:
    """Of models that are read in blocks which end at ``ends`` and which the next block overwrites."""
    n = len(models[0])

    def blocks(row_length: int = 1, start: int = 0) -> Iterator[tuple[int, Inputs]]:
        buffers = [np.empty_like(values) for values in models]
        edges = sorted({0, n, *(end // row_length * row_length for end in ends if end < n)})
        for first, last in pairwise(edges):
            if last <= start:
                continue
            for buffer, values in zip(buffers, models, strict=True):
                buffer[:] = np.nan
                buffer[: last - first] = values[first:last]
            yield first, Inputs(tuple(buffer[: last - first] for buffer in buffers))

    return Statistics(blocks, models[0].dtype, len(models), (n // width, width), KEYS[: len(models)])


def stepped(step: Bound, model: int, values: Values, key: tuple[int, int] = (0, 0), start: int = 0) -> Values:
    """What a step makes of one model's values, which begin at ``start``."""
    out = np.empty_like(values)
    one = Statistics(lambda *_: [], values.dtype, model + 1, (start + len(values),), (key,) * (model + 1))
    one.step(step, model, start, Inputs((values,) * (model + 1)), out)
    return out


def kept(cut: Cut, values: Values) -> list[int]:
    return [i for i, v in enumerate(abs(values)) if v > cut.value or (v == cut.value and i <= cut.last)]


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
    drawn = np.array(values, dtype=dtype)
    count = 0 if density == 0 else max(1, math.floor(density * len(drawn)))
    expected = sorted(np.argsort(-abs(drawn), kind="stable")[:count].tolist())
    whole = statistics([drawn]).cut(magnitude.bind(models=(0,)), count)
    assert kept(whole, drawn) == expected
    assert statistics([drawn], ends).cut(magnitude.bind(models=(0,)), count) == whole


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 3, RUN, RUN + 1, 5 * RUN + 7])
def test_sums_depend_on_no_blocks_and_are_right(dtype: type, n: int) -> None:
    rng = np.random.default_rng(n)
    models = [(rng.normal(size=n) * 10.0 ** rng.integers(-6, 6, n)).astype(dtype) for _ in range(3)]
    whole = statistics(models)
    exact = [[math.fsum((a.astype(float) * b.astype(float)).tolist()) for b in models] for a in models]
    np.testing.assert_allclose(whole.gram(), exact, rtol=1e-11, atol=1e-9 * np.max(exact))
    step = drop.bind((0.3, 0.6, 1.0))
    before, after = whole.absolute_sums(step)
    np.testing.assert_allclose(before, [math.fsum(abs(r).tolist()) for r in models], rtol=1e-6)
    assert after[2] == before[2]
    np.testing.assert_allclose(whole.totals(squares.bind()), np.diag(exact), rtol=1e-11)
    some = whole.totals(squares.bind(models=(2, 0)))
    assert some == tuple(whole.totals(squares.bind())[j] for j in (2, 0))
    for ends in ([RUN], [RUN, 2 * RUN], [3 * RUN], range(0, n, RUN), [1, 2, 7, RUN - 1, RUN + 6, 3 * RUN + 2]):
        parts = statistics(models, ends)
        assert parts.gram() == whole.gram()
        assert parts.absolute_sums(step) == (before, after)
        assert parts.totals(squares.bind()) == whole.totals(squares.bind())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [1, 300, 5000, 3 * RUN + 7])
def test_what_is_not_zero_is_counted(dtype: type, n: int) -> None:
    rng = np.random.default_rng(n)
    tiny = np.finfo(dtype).smallest_subnormal
    values = rng.choice(np.array([0.0, -0.0, tiny, -tiny, 1.0, -1e30], dtype), n)
    quantity = magnitude.bind(models=(0,))
    deltas = statistics([values], [1, 7, RUN])
    assert deltas.positive(quantity) == np.count_nonzero(values)
    for keep in {1, n // 2 or 1, n}:  # what was counted serves the cut
        assert deltas.cut(quantity, keep) == statistics([values]).cut(quantity, keep)


def test_sums_after_a_step_leave_inputs_alone() -> None:
    models = [np.random.default_rng(j).normal(size=3 * RUN + 5).astype(np.float32) for j in range(2)]
    copies = [values.copy() for values in models]
    deltas = Statistics(lambda *_: [(0, Inputs(tuple(models)))], models[0].dtype, 2, models[0].shape, KEYS[:2])
    step = drop.bind((0.3, 0.6))
    before, after = deltas.absolute_sums(step)
    assert deltas.applied is None
    assert all(np.array_equal(values, copy) for values, copy in zip(models, copies, strict=True))
    results = [stepped(step, j, values, KEYS[j]) for j, values in enumerate(models)]
    for sums, of_models in ((before, models), (after, results)):
        np.testing.assert_allclose(sums, [math.fsum(abs(values).tolist()) for values in of_models], rtol=1e-12)
    assert all(0 < after[j] < before[j] for j in range(2))


def test_a_step_in_place_leaves_its_results_in_the_blocks() -> None:
    models = [np.random.default_rng(j).normal(size=3 * RUN + 5).astype(np.float32) for j in range(2)]
    step = drop.bind((0.3, 0.6))
    results = [stepped(step, j, values, KEYS[j]) for j, values in enumerate(models)]
    expected = statistics(models).absolute_sums(step)
    whole = Inputs(tuple(models))
    blocks = [(at, whole.part(at, at + RUN)) for at in range(0, whole.size, RUN)]
    about = models[0].dtype, 2, models[0].shape, KEYS[:2]
    deltas = Statistics(lambda *_: blocks, *about, owned=lambda copied: True)
    assert deltas.absolute_sums(step) == expected
    assert deltas.applied is step
    assert all(np.array_equal(values, result) for values, result in zip(models, results, strict=True))


# --- random masks -----------------------------------------------------------------------------------------------


def mask(density: float, key: tuple[int, int], n: int = 1 << 18, start: int = 0) -> Values:
    return stepped(drop.bind((density,)), 0, np.full(n, ONE), key, start) != 0


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
