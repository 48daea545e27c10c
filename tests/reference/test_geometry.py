"""Methods about angles and counts at their edges, against the same naive references."""

import math
from typing import Any

import pytest
import torch

from heterosis.merge.computing.executor import MergeError
from heterosis.merge.methods import get_method

from .geometry import REFERENCES, karcher, norm
from .inputs import Inputs
from .test_methods import ours

GROUPED: list[tuple[str, dict[str, Any]]] = [
    ("nuslerp", {"weight": (0.7, 0.5), "nuslerp_flatten": False}),
    ("nuslerp", {"weight": (0.7, 0.5), "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("model_stock", {"filter_wise": True}),
]


def run(method: str, rows: list[Any], dtype: torch.dtype = torch.float64, **arguments: Any) -> torch.Tensor:
    """Ours on models as they are, or as task vectors of a zero base."""
    inputs = [torch.tensor(row, dtype=dtype) for row in rows]
    base = torch.zeros_like(inputs[0]) if get_method(method).base == "required" else None
    return ours(method, inputs, base, arguments, dtype, ())


def naive(method: str, rows: list[Any], **arguments: Any) -> torch.Tensor:
    inputs = [torch.tensor(row, dtype=torch.float64) for row in rows]
    shape = tuple(inputs[0].shape)
    return torch.tensor(
        REFERENCES[method](Inputs((x.flatten().tolist() for x in inputs), shape), **arguments), dtype=torch.float64
    ).view(shape)


def random(*shape: int, seed: int = 0) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()


# --- shapes, bases, blocks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1,), (40,), (5, 1), (1, 6), (3, 4, 5)])
@pytest.mark.parametrize(("method", "arguments"), GROUPED)
def test_lines_of_tensors_of_any_shape(method: str, arguments: dict[str, Any], shape: tuple[int, ...]) -> None:
    rows = [random(*shape, seed=seed) for seed in range(2)]
    torch.testing.assert_close(run(method, rows, **arguments), naive(method, rows, **arguments))


@pytest.mark.parametrize(("method", "arguments"), GROUPED)
def test_lines_do_not_depend_on_blocks(method: str, arguments: dict[str, Any]) -> None:
    inputs = [torch.tensor(random(7, 90, 33, seed=seed), dtype=torch.float32) for seed in range(2)]
    base = torch.zeros_like(inputs[0]) if get_method(method).base == "required" else None
    whole, parts = (
        ours(method, inputs, base, arguments, torch.float32, (), memory_limit=limit) for limit in (1 << 29, 1)
    )
    assert torch.equal(whole, parts)
    assert whole.isfinite().all()


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("nuslerp", {"weight": (0.7, 0.5)}),
        ("nuslerp", {"weight": (0.7, 0.5), "nuslerp_flatten": False}),
        ("multislerp", {"weight": (0.7, 0.5)}),
    ],
)
def test_with_a_base_task_vectors_are_merged(method: str, arguments: dict[str, Any]) -> None:
    base, *rows = (torch.tensor(random(6, 9, seed=seed), dtype=torch.float64) for seed in range(3))
    got = ours(method, rows, base, arguments, torch.float64, ())
    torch.testing.assert_close(got, base + naive(method, [(x - base).tolist() for x in rows], **arguments))
    assert not torch.allclose(got, naive(method, [x.tolist() for x in rows], **arguments), atol=0.01)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("nuslerp", {"weight": (0.7, 0.5)}),
        ("nuslerp", {"weight": (0.7, 0.5), "nuslerp_flatten": False}),
        ("multislerp", {"weight": (0.7, 0.5)}),
        ("karcher", {}),
        ("model_stock", {}),
        ("model_stock", {"filter_wise": True}),
        ("nearswap", {"t": 0.1}),
        ("ram", {}),
        ("ramplus_tl", {}),
    ],
)
def test_zero_tensors_stay_zero(method: str, arguments: dict[str, Any]) -> None:
    assert not run(method, [[[0.0, 0.0, 0.0]] * 2] * 2, **arguments).any()


# --- nuslerp ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weight", [(0.7, 0.3), (1.0, -1.0), (0.0, 0.0), (-0.5, 2.0)])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, 2.0], [0.0, 0.0]),
        ([1.0, 2.0], [-1.0, -2.0]),
        ([0.1, 0.3, 0.7], [-0.3, -0.9, -2.1]),
        ([0.1, 0.3, 0.7], [0.3, 0.9, 2.1]),
        ([1.0, 0.0], [1.0, 1e-3]),
        ([1.0, 0.0], [-1.0, 0.02]),
        ([1e-8, 0.0], [1e-8, 1e-8]),
    ],
    ids=["zero", "opposite", "opposite-longer", "parallel", "close", "almost opposite", "short"],
)
def test_nuslerp_at_its_edges(a: list[float], b: list[float], weight: tuple[float, float]) -> None:
    expected = naive("nuslerp", [a, b], weight=weight)
    torch.testing.assert_close(run("nuslerp", [a, b], weight=weight), expected, rtol=1e-9, atol=1e-16)
    lines = run("nuslerp", [[a, b], [b, b]], weight=weight, nuslerp_flatten=False)
    torch.testing.assert_close(lines[0], expected, rtol=1e-9, atol=1e-16)
    torch.testing.assert_close(lines[1], naive("nuslerp", [b, b], weight=weight), rtol=1e-9, atol=1e-16)


def test_nuslerp_between_opposite_models_is_linear_after_rounding_too() -> None:
    a = torch.tensor(random(5000), dtype=torch.float64)
    rows = [x.float().tolist() for x in (a, -3 * a)]
    got = run("nuslerp", rows, torch.float32, weight=(0.75, 0.25))
    assert got.abs().max() < 1e-6


# --- multislerp -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [-1.0, -3.0])
def test_multislerp_of_two_opposite_inputs_is_their_weighted_sum(factor: float) -> None:
    a = torch.tensor(random(300), dtype=torch.float64)
    rows = [a.tolist(), (factor * a).tolist()]
    got = run("multislerp", rows, weight=(2.0, 2.0))
    torch.testing.assert_close(got, (1 + factor) / 2 * a)
    uneven = run("multislerp", rows, weight=(3.0, 1.0), normalize_weights=False)
    torch.testing.assert_close(uneven, naive("multislerp", rows, weight=(3.0, 1.0), normalize_weights=False))


def test_multislerp_of_more_inputs_that_cancel_out_is_an_error() -> None:
    a = torch.tensor(random(300), dtype=torch.float64)
    rows = [a.tolist(), (-3 * a).tolist(), (0 * a).tolist()]
    with pytest.raises(MergeError, match=r"w: the weighted directions of the inputs cancel out.*\[1\.0, 1\.0"):
        run("multislerp", rows, weight=(1.0, 1.0, 0.5))
    assert not run("multislerp", [(0 * a).tolist()] * 3, weight=(1.0, 1.0, 1.0)).any()
    with pytest.raises(MergeError, match=r"w: `sum of weights != 0` must hold with normalize_weights"):
        run("multislerp", rows, weight=(1.0, -1.0, 0.0))


# --- karcher ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_iter", [0, 1, 3, 10])
@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [-0.2, 0.4, 1.0]],
        [[1.0, 0.0, 0.0], [0.0, 5.0, 0.0], [0.0, 0.0, 0.0], [1.0, 1.0, 3.0]],
        [[1.0, 2.0], [-1.0, -2.0]],
        [[1.0, 2.0], [-1.0, -2.0], [2.0, 1.0]],
        [[1e-6, 2e-6], [3e-6, 0.0]],
    ],
    ids=["uneven", "with zero", "opposite", "opposite and a third", "tiny"],
)
def test_karcher_equals_iterating_over_vectors(rows: list[list[float]], max_iter: int) -> None:
    torch.testing.assert_close(run("karcher", rows, max_iter=max_iter), naive("karcher", rows, max_iter=max_iter))


def test_karchers_mean_has_the_least_squared_angles() -> None:
    rows = Inputs([[1.0, 0.0, 0.0], [0.9, 0.3, 0.0], [-0.2, 0.4, 1.0]], (3,))

    def cost(direction: list[float]) -> float:
        cosines = (sum(u * v for u, v in zip(x, direction, strict=True)) / norm(x) / norm(direction) for x in rows)
        return sum(math.acos(c) ** 2 for c in cosines)

    best = run("karcher", list(rows), max_iter=100, tol=1e-9).tolist()
    assert cost(best) < cost(karcher(rows, max_iter=0)) - 1e-3
    for i in range(3):
        for step in (-1e-3, 1e-3):
            assert cost(best) < cost([v + step * (i == k) for k, v in enumerate(best)])


# --- model stock ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        [[1.0, 2.0], [-1.0, -2.0]],
        [[0.1, 0.3, 0.7], [-0.3, -0.9, -2.1]],
        [[1.0, 0.0], [-0.5, math.sqrt(0.75)], [-0.5, -math.sqrt(0.75)]],
    ],
    ids=["opposite", "opposite-longer", "triangle"],
)
def test_model_stock_of_opposing_task_vectors_is_the_base(rows: list[list[float]]) -> None:
    assert not run("model_stock", rows).any()
    lines = run("model_stock", [[row, rows[0]] for row in rows], filter_wise=True)
    assert not lines[0].any()
    torch.testing.assert_close(lines[1], torch.tensor(rows[0], dtype=torch.float64))


def test_model_stock_trusts_short_task_vectors_less() -> None:
    rows = [[1e-4, 0.0], [1e-4, 0.0]]
    got = run("model_stock", rows)
    assert got[0] == pytest.approx(2 * 0.01 / 1.01 * 1e-4)
    torch.testing.assert_close(got, naive("model_stock", rows), rtol=1e-9, atol=0)


# --- nearswap and ram -------------------------------------------------------------------------------------------


def test_nearswap_takes_what_is_near_and_moves_by_t_elsewhere() -> None:
    base, other = torch.zeros(5), torch.tensor([0.0, 0.01, -0.05, 0.06, -3.0])
    got = ours("nearswap", [base, other], None, {"t": 0.05}, torch.float32, ())
    torch.testing.assert_close(
        got, torch.tensor([0.0, 0.01, -0.05, 0.05, -0.05], dtype=torch.float64), atol=1e-8, rtol=0
    )


def test_ram_averages_what_is_shared_and_keeps_what_is_not() -> None:
    rows = [[4.0, 4.0, 0.5, 4.0], [0.0, 2.0, -0.5, -8.0], [-1.0, 3.0, 0.25, 1.0]]
    assert run("ram", rows, epsilon=1.0).tolist() == [4.0, 3.0, 0.0, -2.0]


def test_ramplus_reinforces_by_the_ratio_of_shared_to_unique_entries() -> None:
    rows = [[4.0, 4.0, 1.0, 0.0], [0.0, 2.0, 0.0, -8.0]]  # one entry is shared; two and one are unique
    assert run("ramplus_tl", rows, r=0.5, alpha=9.0).tolist() == [5.0, 3.0, 1.25, -12.0]
    assert run("ramplus_tl", rows, r=0.5, alpha=0.75).tolist() == [5.0, 3.0, 1.25, -11.0]
    assert run("ramplus_tl", [[1.0, 2.0], [3.0, 4.0]], r=0.5).tolist() == [2.0, 3.0]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("nuslerp", {"weight": (0.7, 0.5)}),
        ("nuslerp", {"weight": (0.7, 0.5), "nuslerp_flatten": False}),
        ("multislerp", {"weight": (0.7, 0.5)}),
        ("multislerp", {"weight": (0.7, 0.5, 0.1)}),
        ("karcher", {}),
        ("model_stock", {}),
        ("model_stock", {"filter_wise": True}),
        ("nearswap", {"t": 0.1}),
        ("ram", {}),
        ("ramplus_tl", {}),
    ],
)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.filterwarnings("error")
def test_bad_values_do_not_vanish(method: str, arguments: dict[str, Any], bad: float) -> None:
    rows = [[[1.0, 2.0]] * 2, [[3.0, bad]] * 2, [[3.0, 1.0]] * 2]
    with pytest.raises(MergeError, match="NaN or infinity"):
        run(method, rows[: len(arguments.get("weight", "ab"))], **arguments)
