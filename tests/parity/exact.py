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

from heterosis.merge.lora import LoraTensor
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
        summands: The size of what each element is summed from, the largest of the base, the result, and the sum
            of the sizes of the weighted inputs.
        decided: Where no comparison (a cut, a vote, a threshold) is so close that rounding decides it.
        grain: The coarser of the dtypes of the arithmetic and of the output.
    """

    values: Tensor
    summands: Tensor
    decided: Tensor
    grain: torch.dtype

    @property
    def unit(self) -> Tensor:
        """A unit in the last place of the summands."""
        return ulp(self.summands, self.grain)


def ulp(at: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbours of a dtype at each value."""
    info = torch.finfo(dtype)
    return info.eps * 2.0 ** torch.floor(torch.log2(at.abs().clamp_min(info.tiny)))


def exact(op: TensorOp) -> Exact:
    """Merge one tensor by the book."""
    base, rows = inputs_of(op)
    grain = max(op.compute, op.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    if op.method is None:
        return Exact(rows[0], rows[0].abs(), torch.ones_like(rows[0], dtype=torch.bool), grain)
    name = op.method.name
    naive = REFERENCES[name](Inputs((r.flatten().tolist() for r in rows), op.shape or (1,), op.keys), **op.arguments)
    values = torch.tensor(naive, dtype=torch.float64).view(op.shape)
    if base is not None:
        values = values + base
    sizes = torch.stack([values.abs(), _terms(op, rows), *([base.abs()] if base is not None else [])]).amax(0)
    return Exact(values, sizes, ~_undecided(op, rows), grain)


def inputs_of(op: TensorOp) -> tuple[Tensor | None, list[Tensor]]:
    """The base, and the models' tensors or task vectors, rounded to the dtype of the arithmetic."""
    base = None if op.base is None else _read(op, op.base)
    rows = [_read(op, source) for source in op.inputs]
    if base is not None:
        rows = [(row - base).to(op.compute).double() for row in rows]
    return base, rows


def _read(op: TensorOp, source: object) -> Tensor:
    # An adapter's product is not rounded before it counts as a task vector.
    unrounded = isinstance(source, LoraTensor) and op.compute == torch.float32
    out = torch.empty(op.numel, dtype=torch.float64 if unrounded else torch.float32)
    source.read(0, op.numel, out)  # type: ignore[attr-defined]
    return (out if unrounded else out.to(op.compute)).double().view(op.shape)


def _terms(op: TensorOp, rows: list[Tensor]) -> Tensor:
    """The sum of the sizes of the inputs, with their weights where it is a weighted sum."""
    assert op.method is not None
    given, name = op.arguments, op.method.name
    weight = given.get("scale", (1.0,) * len(rows))
    if name in ("linear", "task_arithmetic", "dare_linear", "della_linear", "breadcrumbs"):
        weight = given["weight"]
        if given["normalize"]:
            weight = [w / sum(weight) for w in weight]
    factor = abs(given.get("lambda_", 1.0))
    return factor * torch.stack([abs(w) * row.abs() for w, row in zip(weight, rows, strict=True)]).sum(0)


# --- comparisons ------------------------------------------------------------------------------------------------


def _undecided(op: TensorOp, rows: list[Tensor]) -> Tensor:
    assert op.method is not None
    name, given, d = op.method.name, op.arguments, torch.stack(rows)
    result = torch.zeros(op.shape, dtype=torch.bool)
    eps = torch.finfo(op.compute).eps
    if name in ("ties", *_BANDS):
        for row, source, counts in zip(d, op.inputs, _cuts(op), strict=True):
            # Task vectors are the same in both programs, but that of an adapter, which mergekit rounds.
            near = 4 * eps * 2 if isinstance(source, LoraTensor) else 0.0
            for count in counts:
                if 0 < count < op.numel:
                    cut = row.abs().flatten().topk(count).values[-1]
                    result |= (row.abs() - cut).abs() <= near
    if name in ELECTING or name == "sce":
        weights = given.get("weight", (1.0,) * len(rows))
        entries = torch.stack([w * row for w, row in zip(weights, rows, strict=True)])
        for chosen in product([False, True], repeat=len(rows)):
            if sum(chosen) > 1:
                part = entries[list(chosen)]
                result |= part.sum(0).abs() <= 2 * eps * part.abs().sum(0)
    if name == "sce" and 0 < given["select_topk"] < 1 and len(rows) > 1:
        variance = d.var(0, unbiased=False)
        keep = math.floor(given["select_topk"] * int((variance > 0).sum()))
        if keep:
            cut = variance.flatten().topk(keep).values[-1]
            result |= (variance - cut).abs() <= 4 * eps * cut
    if name == "arcee_fusion":
        importance, threshold = importances(rows[0], rows[1])
        result |= (importance - threshold).abs() <= 1e-4 * threshold
    if name.startswith("ram"):
        result |= ((d.abs() - given["epsilon"]).abs() <= eps * given["epsilon"]).any(0)
    return result


def _cuts(op: TensorOp) -> Iterator[tuple[int, ...]]:
    """For every model, how many entries are above each of its cuts."""
    n, given = op.numel, op.arguments
    for j, density in enumerate(given["density"]):
        keep = math.floor(density * n)
        if "gamma" in given:
            top = min(math.floor(given["gamma"][j] * n), n - keep)
            yield keep + top, top
        else:
            yield (max(1, keep) if density > 0 else 0,)


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
    """

    base: Tensor
    mean: Tensor
    variance: Tensor
    dropped: Tensor
    visible: Tensor


def chances(op: TensorOp) -> Chances:
    """Go through all that can be kept of an element, with the probability of each."""
    assert op.method is not None
    base, rows = inputs_of(op)
    assert base is not None
    given = op.arguments
    keep = torch.stack([_probabilities(op, j, row) for j, row in enumerate(rows)])
    d = torch.stack(rows)
    if given["rescale"]:  # what is left is scaled up to the sum of all
        expected = (keep * d.abs()).flatten(1).sum(1)
        scale = d.abs().flatten(1).sum(1) / expected.clamp_min(1e-30)
        d = d * scale.view(-1, *[1] * base.ndim)
    grain = max(op.compute, op.dtype, key=lambda dtype: torch.finfo(dtype).eps)
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
    visible = smallest > 4 * ulp(base, grain)
    return Chances(base, mean, (square - mean**2).clamp_min(0), dropped, visible)


Combine = Callable[[Tensor, Tensor, bool], Tensor]


def _summed(d: Tensor, weight: Tensor, normalize: bool) -> Tensor:
    return (weight * d).sum(0) / (weight.sum() if normalize else 1.0)


def _elected(d: Tensor, weight: Tensor, normalize: bool) -> Tensor:
    entries = weight * d
    sign = torch.where(entries.sum(0) >= 0, 1.0, -1.0)
    kept = entries * sign > 0
    mass = (weight * kept).sum(0)
    return (entries * kept).sum(0) / (torch.where(mass == 0, 1.0, mass) if normalize else 1.0)


def _probabilities(op: TensorOp, model: int, row: Tensor) -> Tensor:
    density = op.arguments["density"][model]
    if "epsilon" not in op.arguments or density in (0.0, 1.0):
        return torch.full_like(row, density)
    epsilon = op.arguments["epsilon"][model]
    lines = row.reshape(row.shape[0], -1) if row.ndim > 1 else row.view(1, -1)
    rank = lines.abs().argsort(dim=1, stable=True).argsort(dim=1).double()
    return (density - epsilon + 2 * epsilon * rank / (lines.shape[1] - 1)).view(row.shape)
