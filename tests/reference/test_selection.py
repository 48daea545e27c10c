"""Selection from histograms, as tensors too large to be sorted need it: cuts are those of a stable sort."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heterosis.merge.formulas import Bound, Cut, formula
from heterosis.merge.kernels import Inputs, Unrounded, widen
from heterosis.merge.statistics import Statistics, selection
from heterosis.merge.statistics.quantities import Quantities, magnitude
from heterosis.merge.statistics.selection import SMALL, Histogram, Selection
from heterosis.merge.workspace import Workspace

Array: TypeAlias = npt.NDArray[Any]

A, B = magnitude.bind(models=(0,)), magnitude.bind(models=(1,))
REGION = 1 << 17  # the fewest elements of a region


@formula
def distance(i, x):  # type: ignore[no-untyped-def]
    """``|x_a - x_b|``."""
    return abs(x[0] - x[1])


@formula
def beyond(i, x, cut):  # type: ignore[no-untyped-def]
    """``|x|`` where it reaches a cut."""
    return abs(x[0]) if abs(x[0]) >= cut else np.float32(0)


@formula
def size_beyond(i, x, cut):  # type: ignore[no-untyped-def]
    """The same, to be summed."""
    return (abs(x[0]) if abs(x[0]) >= cut else np.float32(0),)


class Counted(Selection):
    """Selection from a tensor in memory that notes what was counted.

    Args:
        inputs: Of the whole tensor, of which each block is a part.
        ends: Where blocks end.
        region: Elements of each region, other than usual.
    """

    def __init__(self, inputs: Inputs, ends: tuple[int, ...] = (), region: int | None = None) -> None:
        n = inputs.size
        edges = sorted({0, n, *(end for end in ends if 0 < end < n)})

        def blocks(row_length: int = 1, start: int = 0) -> Iterator[tuple[int, Inputs]]:
            for first, last in pairwise(edges):
                if last > start:
                    yield first, inputs.part(first, last)

        dtype = inputs.models[0].dtype if inputs.models[0].dtype.kind == "f" else np.dtype(np.float32)
        super().__init__(Quantities(blocks, dtype, n, Workspace()), Workspace())
        self.region = region
        self.counted: list[int] = []
        self.searched: list[int] = []

    def _region(self, most: int) -> int:
        return super()._region(most) if self.region is None else self.region

    def _histograms(self, digits: Any) -> Iterator[Histogram]:
        self.counted += [len(digits)] if digits else []
        return super()._histograms(digits)

    def _find(self, quantity: Bound, value: float, count: int, start: int) -> int:
        self.searched.append(start // self._region(8))
        return super()._find(quantity, value, count, start)


def values_of(inputs: Inputs, model: int) -> Array:
    """What formulas get of one model."""
    values = inputs.models[model]
    out = np.empty(len(values), values.dtype if values.dtype.kind == "f" else np.float32)
    widen(values, inputs.base, out)
    return out


def kept_by(cut: Cut, sizes: Array) -> Array:
    """Which values reach the cut's threshold at their positions."""
    after = min(cut.last + 1, len(sizes))
    thresholds = (cut.threshold(0, sizes.dtype), cut.threshold(after, sizes.dtype))
    assert thresholds[0].dtype == sizes.dtype
    return np.concatenate([sizes[:after] >= thresholds[0], sizes[after:] >= thresholds[1]])


def sorted_kept(sizes: Array, *keep: int) -> list[Array]:
    """Which values a stable sort keeps, those of equals that come first."""
    order = np.argsort(-sizes, kind="stable")
    kept = np.zeros((len(keep), len(sizes)), bool)
    for row, count in zip(kept, keep, strict=True):
        row[order[:count]] = True
    return list(kept)


# --- tensors of several regions --------------------------------------------------------------------------------


def mostly_equal(n: int, seed: int) -> Array:
    """Four fifths of equal magnitude, of either sign; the others smaller and larger, or zero."""
    rng = np.random.default_rng(seed)
    values = np.full(n, 0.75, np.float32)
    some = rng.integers(0, n, n // 4)
    values[some] = np.resize(rng.normal(0, 1, 5000).astype(np.float32), len(some))
    values[rng.integers(0, n, n // 20)] = 0.0
    return values * np.resize(rng.choice(np.array([-1, 1], np.float32), 999), n)


def bits_of(values: Array) -> Array:
    return torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()


def inputs_of(kind: str, n: int) -> Inputs:
    a, b, base = (mostly_equal(n, seed) for seed in range(3))
    if kind == "float64":
        return Inputs((a.astype(np.float64) * (1 + 1e-12), b.astype(np.float64)))
    if kind == "float32":
        return Inputs((a, b * np.float32(1.0000001)))
    if kind == "float32 of bfloat16":  # without bits below the first digit
        return Inputs(tuple((bits_of(x).astype(np.uint32) << 16).view(np.float32) for x in (a, b)))
    bits = tuple(map(bits_of, (a, b)))
    if kind == "bits":
        return Inputs(bits)
    base[abs(base) == 0.75] = 0  # so that most differences are equal too
    of_base: Any = {"base": bits_of(base), "unrounded": Unrounded(bits_of(base)), "wide": base}[kind.split()[-1]]
    return Inputs(bits, of_base)


KINDS = ["bits", "bits, base", "bits, unrounded", "bits, wide", "float32", "float32 of bfloat16", "float64"]


@pytest.mark.parametrize("kind", KINDS)
def test_cuts_of_several_regions_are_those_of_a_stable_sort(kind: str) -> None:
    n = 2 * REGION + 12345
    inputs = inputs_of(kind, n)
    a, b = (abs(values_of(inputs, j)) for j in range(2))
    value = np.median(a)
    above, equal = int((a > value).sum()), np.flatnonzero(a == value)
    assert len(equal) > n / 3
    position = int(equal[equal > 2 * REGION + 777][0])  # in the third region
    keep = above + int(np.searchsorted(equal, position)) + 1

    deltas = Counted(inputs, tuple(range(0, n, REGION // 2)))
    of_a, of_b = (keep, n // 100, above, 0, n), (n // 3, keep)
    cuts = deltas.cuts(*((A, count) for count in of_a), *((B, count) for count in of_b))
    assert cuts[0] == Cut(float(value), position)
    assert 2 in deltas.searched
    passes = {"float64": 4, "float32": 2, "bits, unrounded": 2, "bits, wide": 2}.get(kind, 1)
    assert len(deltas.counted) == passes
    assert deltas.counted[0] == 2  # the cuts of one quantity share a histogram
    sizes = [*[a] * len(of_a), *[b] * len(of_b)]
    for cut, row, kept in zip(cuts, sizes, [*sorted_kept(a, *of_a), *sorted_kept(b, *of_b)], strict=True):
        assert np.array_equal(kept_by(cut, row), kept)
    odd = Counted(
        inputs, (1, 5, REGION - 1, REGION + 3, 2 * REGION, 2 * REGION + 776, n - 1)
    )  # blocks across regions
    assert odd.cuts((A, keep), (B, n // 3)) == [cuts[0], cuts[5]]


def test_of_nothing_but_equal_values_the_first_are_kept() -> None:
    n = 2 * REGION + 5
    inputs = Inputs((np.full(n, -0.5, np.float32), bits_of(np.zeros(n, np.float32))))
    for keep in (1, REGION, REGION + 1, 2 * REGION + 1, n - 1):
        deltas = Counted(Inputs(inputs.models[:1]))
        assert deltas.cuts((A, keep)) == [Cut(0.5, keep - 1)]
        bits = Counted(Inputs(inputs.models[1:]))
        assert bits.cuts((A, keep)) == [Cut(0.0, keep - 1)]
        assert bits.searched == deltas.searched == [(keep - 1) // REGION]


def test_a_quantity_of_several_models_and_one_with_a_cut_are_selected_by() -> None:
    n = REGION + 999
    inputs = inputs_of("bits, base", n)
    a, b = (values_of(inputs, j) for j in range(2))
    deltas = Counted(inputs, (REGION // 2, REGION))
    (first,) = deltas.cuts((A, n // 2))
    assert first.last < n
    apart, band = distance.bind(), beyond.bind(first, models=(0,))
    cuts = deltas.cuts((apart, n // 3), (band, n // 4), (apart, n // 5))
    within = np.where(kept_by(first, abs(a)), abs(a), np.float32(0))
    for cut, sizes, keep in zip(cuts, (abs(a - b), within, abs(a - b)), (n // 3, n // 4, n // 5), strict=True):
        assert np.array_equal(kept_by(cut, sizes), sorted_kept(sizes, keep)[0])
    order = np.sort(abs(a - b))
    assert deltas.largest(apart, n, n - n // 7, 1) == [order[0], order[n // 7], order[-1]]


def test_regions_are_few_whatever_the_size() -> None:
    for n in (1, REGION, REGION + 1, 8 * REGION, 8 * REGION + 1, 100 * REGION + 3):
        deltas = Selection(Quantities(lambda *_: [], np.dtype(np.float32), n, Workspace()), Workspace())
        assert deltas._region(8) % REGION == 0
        assert -(-n // deltas._region(8)) <= 8


# --- tensors of any values --------------------------------------------------------------------------------------

FLOATS = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 0.5, -0.5, 1e-45, -1e-40, 3e38, -3e38, 1 / 3])


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(FLOATS | st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=80),
    fractions=st.lists(st.sampled_from([0.0, 1.0, 0.5]) | st.floats(0, 1), min_size=1, max_size=4),
    ends=st.lists(st.integers(1, 80), max_size=3),
    kind=st.sampled_from(["bits", "float32", "float64"]),
    region=st.integers(20, 100),
)
def test_histograms_of_any_values_give_the_cuts_of_sorting(
    values: list[float], fractions: list[float], ends: list[int], kind: str, region: int
) -> None:
    row = np.array(values, np.float32)
    inputs = Inputs((bits_of(row) if kind == "bits" else row.astype(kind),))
    sizes = abs(values_of(inputs, 0))
    wanted = [(A, int(fraction * len(row))) for fraction in fractions]
    assert len(row) <= SMALL
    plain = Counted(inputs).cuts(*wanted)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "SMALL", 0)
        searched = Counted(inputs, tuple(ends), region).cuts(*wanted)
    assert searched == plain
    for cut, (_, keep) in zip(plain, wanted, strict=True):
        assert np.array_equal(kept_by(cut, sizes), sorted_kept(sizes, keep)[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_threshold_rises_after_the_last_position(dtype: type) -> None:
    cut = Cut(0.5, 7)
    value = dtype(0.5)
    above = np.nextafter(value, dtype(1))
    assert [cut.threshold(i, np.dtype(dtype)) for i in (0, 7, 8, 1 << 40)] == [value, value, above, above]
    assert cut.threshold(8, np.dtype(dtype)).dtype == dtype
    zeros = Cut(0.0, 3)  # a subnormal number, which has to count
    assert zeros.threshold(3, np.dtype(dtype)) == 0 < zeros.threshold(4, np.dtype(dtype))
    nothing, everything = Cut(np.inf, -1), Cut(-1.0, -1)
    assert nothing.threshold(0, np.dtype(dtype)) == np.inf
    assert everything.threshold(0, np.dtype(dtype)) < 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loops_cut_off_at_subnormal_thresholds(dtype: type) -> None:
    tiny = np.finfo(dtype).smallest_subnormal
    row = np.array([0, tiny, 2 * tiny, 0, tiny, 2 * tiny], dtype)
    deltas = Statistics(lambda *_: [(0, Inputs((row,)))], row.dtype, 1, row.shape, ((0, 0),))
    got = deltas.totals(size_beyond.bind(Cut(float(tiny), 2), models=(0,)))
    assert got == (5 * float(tiny),)
