"""Methods that drop entries, at their edges: what is kept of tiny, long and odd tensors."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from heterosis.merge import kernels
from heterosis.merge.computing.computation import Computation
from heterosis.merge.computing.executor import MergeError
from heterosis.merge.methods import get_method
from heterosis.merge.methods.della import SEARCH, della
from heterosis.merge.methods.random_mask import mask_key
from heterosis.merge.plan import TensorOp
from heterosis.merge.statistics import Statistics
from heterosis.merge.workspace import Workspace

from .inputs import Inputs
from .sparsity import REFERENCES
from .test_methods import ours

WEIGHTS = {"weight": (0.5, 0.75)}
SHAPED: list[tuple[str, dict[str, Any]]] = [
    ("ties", {**WEIGHTS, "density": (0.3, 0.6), "rescale": True}),
    ("breadcrumbs", {**WEIGHTS, "density": (0.3, 0.6), "gamma": (0.1, 0.2)}),
    ("della", {**WEIGHTS, "density": (0.3, 0.6), "epsilon": (0.2, 0.3), "rescale": False}),
    ("della_linear", {**WEIGHTS, "density": (0.3, 0.6), "epsilon": (0.2, 0.3)}),
    ("sce", {"select_topk": 0.4}),
    ("arcee_fusion", {}),
]
SHAPES = [(), (1,), (2,), (3,), (4,), (500,), (7, 1), (1, 9), (6, 5, 4), (3, 2, 2, 5), (60, 1, 3)]


def at_zero(
    method: str, *deltas: list[float], compute: torch.dtype = torch.float32, **arguments: Any
) -> list[float]:
    """What a method makes of task vectors of zeros, which are the base."""
    rows = [torch.tensor(d, dtype=torch.float64) for d in deltas]
    keys = tuple(mask_key(5, "w", j) for j in range(len(rows)))
    result: list[float] = ours(method, rows, torch.zeros_like(rows[0]), arguments, compute, keys).tolist()
    return result


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("method", "arguments"), SHAPED, ids=[method for method, _ in SHAPED])
def test_every_shape_equals_the_naive_loop(method: str, arguments: dict[str, Any], shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(7)
    a, b = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    keys = tuple(mask_key(5, "w", j) for j in range(2))
    naive = REFERENCES[method](Inputs((x.flatten().tolist() for x in (a, b)), shape or (1,), keys), **arguments)
    base = torch.zeros(shape, dtype=torch.float64) if get_method(method).takes_deltas else None
    got = ours(method, [a, b], base, arguments, torch.float64, keys)
    torch.testing.assert_close(got.flatten(), torch.tensor(naive, dtype=torch.float64), rtol=1e-14, atol=1e-14)


class Huge:
    """A tensor that would not fit into memory: zeros, or a few numbers in turn (a `TensorSource`)."""

    name, dtype, exact = "w", torch.float32, True

    def __init__(self, shape: tuple[int, ...], values: tuple[float, ...]) -> None:
        self.shape = shape
        self.identity = values
        self.values = torch.tensor(values)

    def view(self, start: int, stop: int) -> torch.Tensor | None:
        return None

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        out.copy_(self.values[torch.arange(start, stop) % len(self.values)])


@pytest.mark.parametrize(
    ("method", "given"), [("dare_linear", {}), ("dare_ties", {}), ("della_linear", {"epsilon": (0.2, 0.1)})]
)
def test_masks_of_huge_tensors_equal_the_naive_loop(method: str, given: dict[str, Any]) -> None:
    width = 40
    shape = ((1 << 28) + 3, width)
    settings: dict[str, Any] = {"weight": (0.5, 1.0), "density": (0.3, 0.6), "rescale": False, **given}
    sources = Huge(shape, (0.5, -1.0, 2.0, 4.0, -8.0)), Huge(shape, (-0.25, 1.0, 3.0))
    keys = mask_key(5, "w", 0), mask_key(5, "w", 1)
    arguments = {"normalize": False, "lambda_": 1.0, **settings}
    zeros, wide = Huge(shape, (0.0,)), torch.float32
    computed = Computation(
        TensorOp("w", shape, wide, wide, get_method(method), sources, zeros, arguments, keys), Workspace()
    )
    for edge in (0, 1 << 32, 2 << 32):
        first, last = max(edge // width - 2, 0) * width, (edge // width + 3) * width
        rows = ([s.values[i % len(s.values)].item() for i in range(first, last)] for s in sources)
        some = Inputs(rows, ((last - first) // width, width), keys, first)
        expected = REFERENCES[method](some, **settings)
        assert computed.read(first, last).tolist() == expected
        assert computed.read(first + 3, last - 7).tolist() == expected[3:-7]


# --- which entries are kept -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("density", "gamma", "kept"),
    [
        (0.5, 0.2, [3, 4, 5, 6, 7]),
        (0.5, 0.19, [4, 5, 6, 7, 8]),
        (0.5, 0.09, [5, 6, 7, 8, 9]),  # gamma n < 1: there are no outliers
        (0.9, 0.2, [0, 1, 2, 3, 4, 5, 6, 7, 8]),  # 1 - density < gamma: fewer outliers
        (1.0, 0.5, list(range(10))),
        (0.09, 0.1, []),  # no minimum of one
        (0.0, 0.0, []),
        (0.3, 1.0, [0, 1, 2]),
    ],
)
def test_breadcrumbs_keep_a_band_of_ranks(density: float, gamma: float, kept: list[int]) -> None:
    values = [float((-1) ** i * (i + 1)) for i in range(10)]
    order = [3, 8, 1, 0, 9, 5, 2, 7, 4, 6]
    got = at_zero("breadcrumbs", [values[i] for i in order], weight=(1.0,), density=(density,), gamma=(gamma,))
    assert got == [values[i] if i in kept else 0.0 for i in order]


def test_of_equal_magnitudes_at_a_cut_the_first_are_the_larger_ones() -> None:
    row = [1.0, -1.0, 1.0, -1.0, 1.0, 1.0]
    got = at_zero("breadcrumbs", row, weight=(1.0,), density=(0.5,), gamma=(0.2,))
    assert got == [0.0, -1.0, 1.0, -1.0, 0.0, 0.0]
    assert at_zero("ties", row, weight=(1.0,), density=(0.5,)) == [1.0, -1.0, 1.0, 0.0, 0.0, 0.0]
    assert at_zero("sce", row, [-v for v in row], select_topk=0.5) == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_ties_keeps_at_least_one() -> None:
    assert at_zero("ties", [1.0, -3.0, 2.0], weight=(1.0,), density=(0.1,)) == [0.0, -3.0, 0.0]
    assert at_zero("ties", [1.0, -3.0, 2.0], weight=(1.0,), density=(0.0,)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("method", ["ties", "breadcrumbs_ties", "della"])
def test_a_negative_weight_votes_the_other_way(method: str) -> None:
    deltas = [2.0, 1.0, -1.0], [1.0, 4.0, 1.0]
    # Entries 1, 0.5, -0.5 and -0.25, -1, -0.25; divided by 0.5, -0.25, and both where they agree.
    got = at_zero(method, *deltas, weight=(0.5, -0.25), normalize=True)
    assert got == [2.0, 4.0, -3.0]


@pytest.mark.parametrize("method", ["ties", "breadcrumbs_ties", "della"])
def test_a_tied_vote_is_positive(method: str) -> None:
    assert at_zero(method, [1.0, -2.0, 0.0], [-1.0, 2.0, 0.0], weight=(1.0, 1.0)) == [1.0, 2.0, 0.0]
    assert at_zero("sce", [1.0, -2.0, 0.0], [-1.0, 2.0, 0.0]) == [1.0, 2.0, 0.0]


# --- rescaling --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "given"),
    [("ties", {}), ("breadcrumbs", {"gamma": (0.1,)}), ("dare_linear", {}), ("della_linear", {"epsilon": (0.2,)})],
)
def test_rescaling_restores_the_l1_norm(method: str, given: dict[str, Any]) -> None:
    drawn = np.random.default_rng(0).normal(size=400)
    settings = {"weight": (1.0,), "density": (0.4,), **given}
    plain, scaled = (np.array(at_zero(method, drawn.tolist(), rescale=r, **settings)) for r in (False, True))
    factor = np.abs(drawn).sum() / np.abs(plain).sum()
    assert factor > 1.1
    np.testing.assert_allclose(scaled, plain * factor, rtol=1e-6)


@pytest.mark.parametrize("rescale", [False, True])
def test_nothing_left_and_next_to_nothing_are_not_rescaled(rescale: bool) -> None:
    settings: dict[str, Any] = {"weight": (1.0,), "rescale": rescale}
    assert at_zero("breadcrumbs", [1.0, 2.0], density=(0.4,), **settings) == [0.0, 0.0]
    small = [1e-8, -2e-8, 3e-8]
    expected = pytest.approx([0.0, -2e-8, 3e-8])
    assert at_zero("ties", small, density=(0.7,), compute=torch.float64, **settings) == expected


# --- DELLA ------------------------------------------------------------------------------------------------------


def kept_by_rank(density: float, epsilon: float, key: int, rows: int = 4000, n: int = 50) -> Any:
    """Which entries of random rows are kept, [rows, n], from the smallest to the largest of a row."""
    values = torch.randn(rows, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    arguments = {"weight": (1.0,), "density": (density,), "epsilon": (epsilon,), "rescale": False}
    keys = (mask_key(0, "w", key),)
    got = ours("della_linear", [values], torch.zeros_like(values), arguments, torch.float64, keys)
    return torch.gather(got != 0, 1, values.abs().argsort(1)).numpy()


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.49), (0.3, 0.15), (0.7, 0.0)])
def test_della_keeps_each_rank_with_its_probability(density: float, epsilon: float) -> None:
    kept = kept_by_rank(density, epsilon, key=0)
    expected = density + epsilon * np.linspace(-1, 1, 50)
    error = np.sqrt(expected * (1 - expected) / len(kept))
    assert np.all(abs(kept.mean(0) - expected) < 4.5 * error)
    assert abs(kept.mean() - density) < 4.5 * math.sqrt(np.sum(error**2)) / 50


def test_della_drops_independently_in_every_model_and_rank() -> None:
    one, other = kept_by_rank(0.5, 0.2, key=0), kept_by_rank(0.5, 0.2, key=1)
    bound = 4.5 * 0.25 / math.sqrt(one.size)
    assert abs(np.mean((one - one.mean(0)) * (other - other.mean(0)))) < bound
    assert abs(np.mean((one - one.mean(0))[:, 1:] * (one - one.mean(0))[:, :-1])) < bound
    assert abs(np.mean((one - one.mean(0))[1:] * (one - one.mean(0))[:-1])) < bound


@pytest.mark.parametrize(("density", "epsilon"), [(0.9, 0.15), (0.1, 0.15), (0.85, 0.15), (1e-9, 0.5)])
def test_della_names_a_probability_outside_its_range(density: float, epsilon: float) -> None:
    with pytest.raises(MergeError, match=r"w: .*`density \+ epsilon < 1` must hold, but got density=.*; give eps"):
        at_zero("della", [1.0, 2.0], weight=(1.0,), density=(density,), epsilon=(epsilon,))


def test_dellas_search_ranges_hold_valid_pairs_only() -> None:
    row = np.arange(4, dtype=np.float32)
    for density in (SEARCH["density"].low, SEARCH["density"].high):
        for epsilon in (SEARCH["epsilon"].low, SEARCH["epsilon"].high):
            deltas = Statistics(lambda *_: [(0, kernels.Inputs((row,)))], row.dtype, 1, (4,), ((1, 2),))
            della(deltas, weight=(1.0,), density=(density,), epsilon=(epsilon,))


# --- SCE and Arcee Fusion ---------------------------------------------------------------------------------------


def test_sce_counts_only_positions_that_vary() -> None:
    a, b = [1.0, 5.0, 2.0, 3.0, 9.0, 0.0], [1.0, 5.0, 4.0, 3.1, 9.0, 0.0]
    weight = [v * v for v in (2.0, 4.0)]
    merged = (weight[0] * 2 + weight[1] * 4) / sum(weight)
    got = at_zero("sce", a, b, select_topk=0.99)
    assert got == pytest.approx([0.0, 0.0, merged, 0.0, 0.0, 0.0])  # floor(0.99 * 2) positions


def test_sce_of_light_tuning_weighs_models_alike() -> None:
    got = at_zero("sce", [4e-4, 2e-4], [2e-4, 1e-4], compute=torch.float64)
    assert got == pytest.approx([3e-4, 1.5e-4])


def test_sce_of_one_model() -> None:
    assert at_zero("sce", [1.0, -2.0], select_topk=1.0) == [1.0, -2.0]
    assert at_zero("sce", [1.0, -2.0], select_topk=0.9) == [0.0, 0.0]


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_arcee_fusion_sees_small_changes(compute: torch.dtype) -> None:
    # Changes of a percent change probabilities by so little that a divergence in float32 is mostly rounding.
    generator = torch.Generator().manual_seed(0)
    base = (0.02 * torch.randn(64, 256, generator=generator)).to(compute)
    other = (base.double() + 2e-4 * torch.randn(64, 256, generator=generator)).to(compute)
    inputs = Inputs((x.double().flatten().tolist() for x in (base, other)), (64, 256))
    expected = torch.tensor(REFERENCES["arcee_fusion"](inputs), dtype=torch.float64).view(64, 256)
    got = ours("arcee_fusion", [base, other], None, {}, compute, ())
    taken = float(((expected == other) & (base != other)).double().mean())
    assert 0.02 < taken < 0.3
    assert int((got != expected).sum()) <= 2


# --- NaN and infinity -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["base", "a", "b"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("ties", {**WEIGHTS, "density": (0.5, 0.5)}),
        ("breadcrumbs", {**WEIGHTS, "density": (0.5, 0.5), "gamma": (0.2, 0.2)}),
        ("della", {**WEIGHTS, "density": (0.5, 0.5)}),
        ("sce", {"select_topk": 0.3}),
        ("sce", {}),
        ("arcee_fusion", {}),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_values_are_found_and_not_dropped(
    method: str, arguments: dict[str, Any], bad: float, model: str
) -> None:
    drawn = dict(
        zip(("base", "a", "b"), torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0)), strict=True)
    )
    drawn[model][2, 3] = bad
    if get_method(method).takes_deltas:
        base, inputs = drawn["base"], [drawn["a"], drawn["b"]]
    else:
        base, inputs = None, [drawn["base"], drawn[model if model != "base" else "a"]]
    keys = tuple(mask_key(5, "w", j) for j in range(2))
    with pytest.raises(MergeError, match="w: the merged tensor has NaN or infinity"):
        ours(method, inputs, base, arguments, torch.float32, keys)
