"""Every method against a naive loop over the elements, in float64 and by the book."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from heterosis.merge.computing.executor import execute
from heterosis.merge.computing.sinks import ModelSink
from heterosis.merge.methods import get_method, methods
from heterosis.merge.methods.random_mask import mask_key
from heterosis.merge.plan import MergePlan, TensorOp

from . import geometry, sparsity
from .inputs import Inputs, Vector


def linear(x: Sequence[Vector], *, weight: Sequence[float], normalize: bool = True) -> Vector:
    total = sum(weight) if normalize else 1.0
    return [sum(w * v for w, v in zip(weight, column, strict=True)) / total for column in zip(*x, strict=True)]


def passthrough(x: Sequence[Vector], *, scale: Sequence[float] = (1.0,)) -> Vector:
    return [scale[0] * v for v in x[0]]


def slerp(x: Sequence[Vector], *, t: float) -> Vector:
    a, b = x
    length_a, length_b = (math.sqrt(sum(v * v for v in row)) for row in x)
    unit_a = [v / (length_a if length_a > 1e-8 else 1.0) for v in a]
    unit_b = [v / (length_b if length_b > 1e-8 else 1.0) for v in b]
    cosine = max(-1.0, min(1.0, sum(u * v for u, v in zip(unit_a, unit_b, strict=True))))
    if abs(cosine) > 0.9995:
        return [(1 - t) * u + t * v for u, v in zip(a, b, strict=True)]
    theta = math.acos(cosine)
    return [
        (math.sin((1 - t) * theta) * u + math.sin(t * theta) * v) / math.sin(theta)
        for u, v in zip(a, b, strict=True)
    ]


# A reference takes `Inputs` and the method's arguments; methods of one family have theirs in a file of their own.
REFERENCES: dict[str, Callable[..., Vector]] = {
    "linear": linear,
    "passthrough": passthrough,
    "slerp": slerp,
    **sparsity.REFERENCES,
    **geometry.REFERENCES,
}


# fmt: off
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("linear", 3, {"weight": (0.2, 0.5, 0.9)}),
    ("linear", 3, {"weight": (0.2, -0.5, 0.9), "normalize": False}),
    ("linear", 1, {"weight": (2.0,)}),
    ("passthrough", 1, {}),
    ("passthrough", 1, {"scale": (-0.7,)}),
    ("slerp", 2, {"t": 0.3}),
    ("slerp", 2, {"t": 0.0}),
    ("slerp", 2, {"t": 1.4}),
    *sparsity.CASES,
    *geometry.CASES,
]
# fmt: on


@dataclass(frozen=True, eq=False)
class Memory:
    """A tensor in memory (a `TensorSource`)."""

    exact = True
    tensor: torch.Tensor
    name: str = "w"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.tensor.dtype

    @property
    def identity(self) -> Hashable:
        return id(self.tensor)

    def view(self, start: int, stop: int) -> torch.Tensor | None:
        return None

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        out.copy_(self.tensor.view(-1)[start:stop])


def ours(
    method: str,
    inputs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
    arguments: dict[str, Any],
    compute: torch.dtype,
    keys: tuple[tuple[int, int], ...],
    **options: Any,
) -> torch.Tensor:
    known = get_method(method).parameters.values()
    defaults = {p.argument: p.default * len(inputs) if p.per_input else p.default for p in known if not p.required}
    sources = tuple(Memory(x) for x in inputs)
    op = TensorOp(
        "w",
        tuple(inputs[0].shape),
        torch.float64,
        compute,
        get_method(method),
        sources,
        Memory(base) if base is not None else None,
        defaults | arguments,
        keys,
    )
    out = torch.full(inputs[0].shape, torch.nan, dtype=torch.float64)
    execute(cast(MergePlan, SimpleNamespace(ops=(op,))), ModelSink({"w": out}), threads=1, **options)
    return out


@pytest.mark.parametrize(("method", "m", "arguments"), CASES)
@pytest.mark.parametrize("compute", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_equals_the_naive_loop(method: str, m: int, arguments: dict[str, Any], compute: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(m)
    base: torch.Tensor | None = None
    inputs = [torch.randn(37, 31, generator=generator).to(compute) for _ in range(m)]
    if get_method(method).base == "required":
        base = torch.randn(37, 31, generator=generator).to(compute)
        if method in sparsity.COMPARING:
            # Multiples of 1/8 are often equal in magnitude, at the cut and with opposite signs. They are exact
            # in every dtype, and so are their multiples by the weights: rounding decides no election.
            base, *inputs = ((x.double() * 8).round().div(8).to(compute) for x in (base, *inputs))
        inputs = [base + x for x in inputs]
    keys = tuple(mask_key(5, "w", j) for j in range(m))
    rows = [x if base is None else x - base for x in inputs]  # rounded to the compute dtype, as is ours
    naive = REFERENCES[method](Inputs((r.double().flatten().tolist() for r in rows), (37, 31), keys), **arguments)
    expected = torch.tensor(naive, dtype=torch.float64).view(37, 31) + (0 if base is None else base.double())
    got = ours(method, inputs, base, arguments, compute, keys)
    precision = torch.finfo(torch.float64 if compute == torch.float64 else torch.float32).eps
    torch.testing.assert_close(got, expected, rtol=8 * precision, atol=8 * precision)


def test_every_method_has_a_case() -> None:
    assert {method for method, _, _ in CASES} == set(methods())


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([1.0, 2.0], [0.0, 0.0]),
        ([1.0, 2.0], [-1.0, -2.0]),
        ([1.0, 0.0], [1.0, 0.02]),
        ([3.0, 0.0], [1.0, 0.04]),
        ([1e-3, 0.0], [1e-3, 1e-3]),
    ],
    ids=["zero", "opposite", "collinear", "almost", "small"],
)
def test_slerp_at_its_edges(a: Vector, b: Vector) -> None:
    got = ours("slerp", [torch.tensor(a), torch.tensor(b)], None, {"t": 0.3}, torch.float32, ())
    torch.testing.assert_close(got, torch.tensor(slerp([a, b], t=0.3), dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_a_tied_election_is_positive() -> None:
    base, up = torch.zeros(3), torch.tensor([1.0, -2.0, 0.0])
    got = ours("ties", [up, -up], base, {"weight": (1.0, 1.0)}, torch.float32, ())
    assert got.tolist() == [1.0, 2.0, 0.0]
