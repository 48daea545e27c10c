"""What a plan's tensors are by the naive references, in float64, and how exactly one may ask for them.

The references (tests/reference) get the inputs rounded to the dtype of the arithmetic, and task vectors rounded
too, as both programs do. All that follows is exact.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from heterosis.merge.kernels.uniform import fill_uniform
from heterosis.merge.models.lora import LoraTensor
from heterosis.merge.models.sources import TensorSource
from heterosis.merge.plan import TensorOp

from ..reference.inputs import Inputs
from ..reference.test_methods import REFERENCES

RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
ELECTING = ("ties", "dare_ties", "breadcrumbs_ties", "della")
_BANDS = ("breadcrumbs", "breadcrumbs_ties")


@dataclass(frozen=True)
class Exact:
    """One tensor, merged exactly.

    Attributes:
        values: Its elements, float64.
        decided: Where no comparison (a cut, a vote, a threshold) is so close that rounding decides it.
        unit: A unit in the last place, of the coarser of the dtypes of arithmetic and output, at the size of what
            an element is summed from: the largest of the base, the result, and the sum of the sizes of the
            weighted inputs.
        their_unit: That of mergekit, which rounds an adapted model to its stored dtype.
        slack: How far a single undecided element moves all others.
    """

    values: Tensor
    decided: Tensor
    unit: Tensor
    their_unit: Tensor
    slack: float


def ulp(at: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbours of a dtype at each value."""
    info = torch.finfo(dtype)
    step: Tensor = info.eps * torch.exp2(torch.floor(torch.log2(at.abs().clamp_min(info.tiny))))
    return step


def exact(op: TensorOp) -> Exact:
    """Merge one tensor by the book."""
    base, rows = inputs_of(op)
    if op.method is None:
        values = sizes = rows[0]
        decided, slack = torch.ones_like(values, dtype=torch.bool), 0.0
    else:
        reference = REFERENCES[op.method.name]
        shape = op.shape or (1,)
        naive = reference(Inputs((row.flatten().tolist() for row in rows), shape, op.keys), **op.arguments)
        values = torch.tensor(naive, dtype=torch.float64).view(op.shape)
        sizes = _terms(op, rows)
        undecided = _undecided(op, rows)
        decided, slack = ~undecided, _slack(op, rows, undecided)
        if base is not None:
            values = values + base
            sizes = torch.maximum(sizes, base.abs())
    sizes = torch.maximum(sizes, values.abs())
    unit, their_unit = ulp(sizes, _coarsest(op.compute, op.dtype)), ulp(sizes, _their_grain(op))
    return Exact(values, decided, unit, their_unit, slack)


def _coarsest(*dtypes: torch.dtype) -> torch.dtype:
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _their_grain(op: TensorOp) -> torch.dtype:
    adapted = [source.dtype for source in op.inputs if isinstance(source, LoraTensor)]
    return _coarsest(op.compute, op.dtype, *adapted)


def inputs_of(op: TensorOp) -> tuple[Tensor | None, list[Tensor]]:
    """The base, and the models' tensors or task vectors, rounded to the dtype of the arithmetic."""
    base = None if op.base is None else _read(op, op.base)
    rows = [_read(op, source) for source in op.inputs]
    if base is not None:
        rows = [(row - base).to(op.compute).double() for row in rows]
    return base, rows


def _read(op: TensorOp, source: TensorSource) -> Tensor:
    # An adapter's product is as exact as it can be had, and narrowed only with the whole model.
    out = torch.empty(op.numel, dtype=torch.float64 if isinstance(source, LoraTensor) else torch.float32)
    source.read(0, op.numel, out)
    narrowed = op.compute not in (torch.float32, source.dtype)
    return (out.to(op.compute) if narrowed else out).double().view(op.shape)


def _terms(op: TensorOp, rows: list[Tensor]) -> Tensor:
    """The sum of the sizes of the inputs, with their weights where it is a weighted sum."""
    assert op.method is not None
    given, name = op.arguments, op.method.name
    weight = given.get("scale", (1.0,) * len(rows))
    if name in ("linear", "task_arithmetic", "dare_linear", "della_linear", "breadcrumbs"):
        weight = given["weight"]
        if given["normalize"]:
            weight = [w / sum(weight) for w in weight]
    factor: float = abs(given.get("lambda_", 1.0))
    sizes = [abs(w * s) * row.abs() for w, s, row in zip(weight, _scales(op, rows), rows, strict=True)]
    return factor * torch.stack(sizes).sum(0)


def _scales(op: TensorOp, rows: list[Tensor]) -> Iterator[float]:
    """For every model, about the factor that restores the L1 norm of what is kept."""
    for j, row in enumerate(rows):
        if not op.arguments.get("rescale"):
            yield 1.0
        elif op.method is not None and op.method.name in RANDOM:
            expected = float((_probabilities(op, j, row) * row.abs()).sum())
            yield float(row.abs().sum()) / expected if expected else 1.0
        else:
            first, last = _band(op, j)
            kept = float(row.abs().flatten().sort(descending=True).values[first:last].sum())
            yield float(row.abs().sum()) / kept if kept else 1.0


# --- comparisons ------------------------------------------------------------------------------------------------


def _undecided(op: TensorOp, rows: list[Tensor]) -> Tensor:
    assert op.method is not None
    name, given, d = op.method.name, op.arguments, torch.stack(rows)
    result = torch.zeros(op.shape, dtype=torch.bool)
    eps = torch.finfo(_their_grain(op) if op.dtype == op.compute else op.compute).eps
    if name in ("ties", *_BANDS):
        start = _read(op, op.base)
        for j, (row, source) in enumerate(zip(d, op.inputs, strict=True)):
            # Task vectors are the same in both programs, but that of an adapter, which mergekit rounds.
            near = 2 * eps * (row + start).abs() if isinstance(source, LoraTensor) else 0.0
            for count in _band(op, j):
                if 0 < count < op.numel:
                    cut = row.abs().flatten().topk(count).values[-1]
                    result |= ((row.abs() - cut).abs() <= near) & (row != 0)
    if "epsilon" in given and name in RANDOM:
        for j, (row, source) in enumerate(zip(d, op.inputs, strict=True)):
            if isinstance(source, LoraTensor):  # as above: its ranks are as exact as it is
                near = 2 * eps * (row + _read(op, op.base)).abs()
                low, high = (_probabilities(op, j, row, (row.abs() + by).clamp_min(0)) for by in (-near, near))
                result |= (low <= _drawn(op, j)) & (_drawn(op, j) <= high)
    if name in ELECTING or name == "sce":
        weights = given.get("weight", (1.0,) * len(rows))
        entries = torch.stack([w * s * x for w, s, x in zip(weights, _scales(op, rows), rows, strict=True)])
        for chosen in product([False, True], repeat=len(rows)):
            if sum(chosen) > 1:
                part = entries[list(chosen)]
                result |= part.sum(0).abs() <= 2 * eps * part.abs().sum(0)
    if name == "sce" and 0 < given["select_topk"] < 1 and len(rows) > 1:
        variance = d.var(0, unbiased=False)
        keep = math.floor(given["select_topk"] * int((variance > 0).sum()))
        if keep:
            result |= (variance - variance.flatten().topk(keep).values[-1]).abs() <= 4 * eps * variance
    if name == "arcee_fusion":
        importance, threshold = importances(rows[0], rows[1])
        result |= ((importance - threshold).abs() <= 1e-4 * threshold) & (rows[0] != rows[1])
    if name.startswith("ram"):
        result |= ((d.abs() - given["epsilon"]).abs() <= eps * given["epsilon"]).any(0)
    return result


def _slack(op: TensorOp, rows: list[Tensor], undecided: Tensor) -> float:
    """SCE's weights are of what it selects, so which of several is selected changes all elements a little."""
    assert op.method is not None
    if op.method.name != "sce" or op.arguments["select_topk"] == 1 or undecided.sum() < 2:
        return 0.0
    shares = [float((row[undecided] ** 2).sum() / (row**2).sum().clamp_min(1e-30)) for row in rows]
    return 2 * max(shares) * float(torch.stack(rows).abs().max())


def _band(op: TensorOp, model: int) -> tuple[int, int]:
    """Which entries of a model are kept, from one to another in descending order of magnitude."""
    n, density = op.numel, op.arguments["density"][model]
    keep = math.floor(density * n)
    if "gamma" not in op.arguments:
        return 0, max(1, keep) if density > 0 else 0
    top = min(math.floor(op.arguments["gamma"][model] * n), n - keep)
    return top, keep + top


def importances(base: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """What Arcee Fusion goes by, and its threshold."""
    p, q = (t.softmax(-1) + 1e-8 for t in (other, base))
    importance = (other - base).abs() * (p * (p / q).log()).sum(-1, keepdim=True)
    order = importance.flatten().sort().values
    q1, median, q3 = (order[int(at * (order.numel() - 1))] for at in (0.25, 0.5, 0.75))
    return importance, median + 1.5 * (q3 - q1)


# --- chance -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chances:
    """What a random method makes of one tensor.

    Attributes:
        base: The base's values.
        mean: Of the merged task vector, per element.
        variance: Of it.
        dropped: The probability that the element stays the base's.
        visible: Where every other outcome differs from the base by more than rounding.
        unit: A unit in the last place of the base.
    """

    base: Tensor
    mean: Tensor
    variance: Tensor
    dropped: Tensor
    visible: Tensor
    unit: Tensor


def chances(op: TensorOp) -> Chances:
    """Go through all that can be kept of an element, with the probability of each."""
    assert op.method is not None
    base, rows = inputs_of(op)
    assert base is not None
    given = op.arguments
    keep = torch.stack([_probabilities(op, j, row) for j, row in enumerate(rows)])
    d = torch.stack(rows)
    d = d * torch.tensor(list(_scales(op, rows)), dtype=torch.float64).view(-1, *[1] * base.ndim)
    smallest = torch.full_like(base, math.inf)
    mean, square, dropped = (torch.zeros_like(base) for _ in range(3))
    weight = torch.tensor(given["weight"], dtype=torch.float64).view(-1, *[1] * base.ndim)
    combine = _elected if op.method.name in ELECTING else _summed
    for chosen in product([0.0, 1.0], repeat=len(rows)):
        mask = torch.tensor(chosen, dtype=torch.float64).view(weight.shape)
        chance = torch.where(mask > 0, keep, 1 - keep).prod(0)
        outcome = combine(mask * d, weight, given["normalize"]) * given["lambda_"]
        mean += chance * outcome
        square += chance * outcome**2
        if any(chosen):
            smallest = torch.where(chance > 0, torch.minimum(smallest, outcome.abs()), smallest)
        else:
            dropped += chance
    unit = ulp(base, _their_grain(op))
    return Chances(base, mean, (square - mean**2).clamp_min(0), dropped, smallest > 4 * unit, unit)


Combine = Callable[[Tensor, Tensor, bool], Tensor]


def _summed(d: Tensor, weight: Tensor, normalize: bool) -> Tensor:
    total = (weight * d).sum(0)
    return total / weight.sum() if normalize else total


def _elected(d: Tensor, weight: Tensor, normalize: bool) -> Tensor:
    entries = weight * d
    sign = torch.where(entries.sum(0) >= 0, 1.0, -1.0)
    kept = entries * sign > 0
    mass = (weight * kept).sum(0)
    return (entries * kept).sum(0) / (torch.where(mass == 0, 1.0, mass) if normalize else 1.0)


def _probabilities(op: TensorOp, model: int, row: Tensor, sizes: Tensor | None = None) -> Tensor:
    """With which a model's entries are kept, or entries of other sizes among them."""
    density = op.arguments["density"][model]
    if "epsilon" not in op.arguments or density in (0.0, 1.0):
        return torch.full_like(row, density)
    epsilon = op.arguments["epsilon"][model]
    lines, wanted = (_shortened(x).view(_lines(row)) for x in (row.abs(), row.abs() if sizes is None else sizes))
    ordered = lines.sort(dim=1).values
    below, not_above = (torch.searchsorted(ordered, wanted, side=side) for side in ("left", "right"))
    rank = (below + not_above - 1).double() / 2
    chance: Tensor = density - epsilon + 2 * epsilon * rank / (lines.shape[1] - 1)
    return chance.view(row.shape)


def _lines(row: Tensor) -> tuple[int, int]:
    """The shape of a tensor as rows, as DELLA takes them."""
    return (row.shape[0], -1) if row.ndim > 1 else (1, -1)


def _shortened(sizes: Tensor) -> Tensor:
    """The bits of magnitudes, as many as bfloat16 has."""
    return sizes.float().contiguous().view(torch.int32) >> 16


def _drawn(op: TensorOp, model: int) -> Tensor:
    """The random number of each element."""
    numbers = torch.empty(op.numel, dtype=torch.float32)
    fill_uniform(0, op.keys[model], numbers.numpy())
    return numbers.double().view(op.shape)
