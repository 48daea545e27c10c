"""Naive references of the methods that drop entries: of task vectors, or of all that one model changed."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .inputs import Inputs, Vector

Numbers = Sequence[float]


def mix(x: int) -> int:
    """A bijection of 32-bit numbers."""
    x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
    x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
    return x ^ (x >> 16)


def uniform(i: int, low: int, high: int) -> float:
    """The random number of element i: 24 bits of a hash of its position and of both words of a key."""
    position, above = (i + low) % 2**32, i // 2**32
    return (mix(mix(position) ^ high ^ above) >> 8) / 2**24


def ascending(values: Vector) -> list[int]:
    """Positions from the smallest to the largest magnitude; of equals, the last one first."""
    return sorted(range(len(values)), key=lambda i: (abs(values[i]), -i))


def only(d: Vector, kept: Sequence[int]) -> Vector:
    chosen = set(kept)
    return [v if i in chosen else 0.0 for i, v in enumerate(d)]


def trimmed(d: Vector, density: float) -> Vector:
    """The largest by magnitude; of equals, those that come first."""
    if density == 0:
        return [0.0] * len(d)
    return only(d, ascending(d)[len(d) - max(1, math.floor(density * len(d))) :])


def without_ends(d: Vector, density: float, gamma: float) -> Vector:
    """What is left after the largest and the smallest are gone."""
    n = len(d)
    keep, top = math.floor(density * n), math.floor(gamma * n)
    bottom = max(0, n - keep - top)
    return only(d, ascending(d)[bottom : bottom + keep])


def dropped(d: Vector, density: float, key: tuple[int, int], first: int) -> Vector:
    return [v if uniform(i, *key) < np.float32(density) else 0.0 for i, v in enumerate(d, first)]


def dropped_by_rank(
    d: Vector, density: float, epsilon: float, key: tuple[int, int], first: int, rows: int
) -> Vector:
    """A random part, of each row's larger entries the greater."""
    if density in (0, 1):
        return [density * v for v in d]
    n = len(d) // rows
    result = [0.0] * len(d)
    for start in range(0, len(d), n):
        sizes = [shortened(abs(v)) for v in d[start : start + n]]
        for k, size in enumerate(sizes):
            rank = sum(other < size for other in sizes) + (sizes.count(size) - 1) / 2
            probability = density - epsilon + 2 * epsilon * rank / (n - 1) if n > 1 else density
            if uniform(first + start + k, *key) < probability:
                result[start + k] = d[start + k]
    return result


def shortened(size: float) -> int:
    """The bits of a magnitude, as many as bfloat16 has."""
    return int(np.float32(size).view(np.uint32)) >> 16


def restored(part: Vector, d: Vector) -> Vector:
    """A part with the L1 norm of all."""
    before, after = sum(map(abs, d)), sum(map(abs, part))
    return [v * (before / after) for v in part] if min(before, after) >= 1e-7 else part


def summed(d: Sequence[Vector], weight: Numbers, normalize: bool, lambda_: float) -> Vector:
    total = sum(weight) if normalize else 1.0
    return [lambda_ * sum(w * v for w, v in zip(weight, c, strict=True)) / total for c in zip(*d, strict=True)]


def elected(d: Sequence[Vector], weight: Numbers, normalize: bool, lambda_: float) -> Vector:
    result = []
    for column in zip(*d, strict=True):
        entries = [w * v for w, v in zip(weight, column, strict=True)]
        positive = sum(entries) >= 0
        kept = [(w, e) for w, e in zip(weight, entries, strict=True) if e != 0 and (e > 0) == positive]
        mass = sum(w for w, _ in kept)
        divisor = mass if normalize and mass != 0 else 1.0
        result.append(lambda_ * sum(e for _, e in kept) / divisor)
    return result


def task_vectors(
    d: Inputs,
    sparsify: Callable[..., Vector],
    combine: Callable[..., Vector],
    defaults: dict[str, Any],
    *,
    weight: Numbers,
    **given: Any,
) -> Vector:
    """Sparsify each, restore its norm, combine."""
    given = {"normalize": False, "rescale": False, "lambda_": 1.0, **defaults} | given
    normalize, rescale, lambda_ = (given.pop(key) for key in ("normalize", "rescale", "lambda_"))
    parts = []
    for j, values in enumerate(d):
        mine = {name: numbers[j] if len(numbers) > 1 else numbers[0] for name, numbers in given.items()}
        if sparsify in (dropped, dropped_by_rank):
            mine |= {"key": d.keys[j], "first": d.start}
        if sparsify is dropped_by_rank:
            mine["rows"] = d.shape[0] if len(d.shape) > 1 else 1
        part = sparsify(values, **mine)
        parts.append(restored(part, values) if rescale else part)
    return combine(parts, weight, normalize, lambda_)


def family(
    sparsify: Callable[..., Vector], combine: Callable[..., Vector], **defaults: Any
) -> Callable[..., Vector]:
    return partial(task_vectors, sparsify=sparsify, combine=combine, defaults=defaults)


def sce(d: Inputs, *, select_topk: float = 1.0) -> Vector:
    m, n = len(d), len(d[0])
    if select_topk < 1:
        variance = []
        for column in zip(*d, strict=True):
            mean = sum(column) / m
            variance.append(sum((v - mean) ** 2 for v in column) / m)
        differing = sum(max(column) > min(column) for column in zip(*d, strict=True))
        # Variances of numbers with few digits are a multiple of some unit: undo the rounding.
        selected = ascending([round(v, 12) for v in variance])[n - math.floor(select_topk * differing) :]
        d = Inputs((only(v, selected) for v in d), d.shape)
    squares = [sum(v * v for v in row) / n for row in d]
    total = sum(squares)
    weight = [s / total if total >= 1e-6 else 1 / m for s in squares]
    result = []
    for column in zip(*d, strict=True):
        sign = 1 if sum(column) >= 0 else -1
        kept = [(w, v) for w, v in zip(weight, column, strict=True) if v * sign > 0]
        result.append(sum(w * v for w, v in kept) / max(sum(w for w, _ in kept), 1e-6))
    return result


def arcee_fusion(x: Inputs) -> Vector:
    base, other = x
    importance = [0.0] * len(base)
    for line in x.along(-1):
        softmaxes = []
        for row in (other, base):
            exponentials = [math.exp(row[i] - max(row[k] for k in line)) for i in line]
            softmaxes.append([e / sum(exponentials) + 1e-8 for e in exponentials])
        divergence = math.fsum(p * math.log(p / q) for p, q in zip(*softmaxes, strict=True))
        for i in line:
            importance[i] = abs(other[i] - base[i]) * divergence
    order = sorted(importance)
    q1, median, q3 = (order[int(q * (len(order) - 1))] for q in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (q3 - q1)
    return [o if s >= threshold else b for o, b, s in zip(other, base, importance, strict=True)]


REFERENCES: dict[str, Callable[..., Vector]] = {
    "task_arithmetic": family(lambda d: d, summed),
    "ties": family(trimmed, elected, density=(1.0,), normalize=True),
    "dare_linear": family(dropped, summed, density=(1.0,), rescale=True),
    "dare_ties": family(dropped, elected, density=(1.0,), rescale=True),
    "breadcrumbs": family(without_ends, summed, density=(1.0,), gamma=(0.01,)),
    "breadcrumbs_ties": family(without_ends, elected, density=(1.0,), gamma=(0.01,)),
    "della": family(dropped_by_rank, elected, density=(1.0,), epsilon=(0.15,), normalize=True, rescale=True),
    "della_linear": family(dropped_by_rank, summed, density=(1.0,), epsilon=(0.15,), rescale=True),
    "sce": sce,
    "arcee_fusion": arcee_fusion,
}

# They compare magnitudes or sums, so that rounding may decide.
COMPARING = REFERENCES.keys() - {"task_arithmetic", "dare_linear", "arcee_fusion"}

# fmt: off
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("task_arithmetic", 2, {"weight": (0.4, 0.7)}),
    ("task_arithmetic", 3, {"weight": (0.4, 0.7, -0.2), "normalize": True, "lambda_": 1.3}),
    ("ties", 2, {"weight": (0.5, 0.75)}),
    ("ties", 3, {"weight": (0.5, 0.75, 0.5), "density": (0.3, 0.5, 1.0)}),
    ("ties", 3, {"weight": (0.5, 0.75, 0.5), "density": (0.3, 0.0, 1.0), "rescale": True}),
    ("ties", 3, {"weight": (0.5, -0.75, 0.5), "density": (0.9, 0.5, 0.0), "normalize": False, "lambda_": 0.5}),
    ("ties", 2, {"weight": (1.0, 1.0), "density": (1e-6, 0.01)}),
    ("dare_linear", 2, {"weight": (0.4, 0.7), "density": (0.3, 0.8)}),
    ("dare_linear", 2, {"weight": (0.4, 0.7), "density": (0.3, 1.0), "rescale": False, "normalize": True}),
    ("dare_linear", 1, {"weight": (0.4,), "density": (0.0,)}),
    ("dare_ties", 3, {"weight": (0.5, 0.75, 0.25), "density": (0.3, 0.8, 0.6), "lambda_": 0.8}),
    ("dare_ties", 2, {"weight": (0.5, 0.75), "density": (0.5, 0.5), "normalize": True, "rescale": False}),
    ("breadcrumbs", 2, {"weight": (0.4, 0.7)}),
    ("breadcrumbs", 3, {"weight": (0.4, 0.7, -0.2), "density": (0.3, 0.8, 0.0), "gamma": (0.1, 0.0, 0.5),
        "lambda_": 1.2}),
    ("breadcrumbs", 2, {"weight": (0.4, 0.7), "density": (0.5, 0.9), "gamma": (0.05, 0.2), "rescale": True,
        "normalize": True}),
    ("breadcrumbs", 2, {"weight": (0.4, 0.7), "density": (0.5, 1e-6), "gamma": (1e-6, 1.0)}),  # floors of zero
    ("breadcrumbs_ties", 3, {"weight": (0.5, -0.75, 0.5), "density": (0.3, 0.6, 0.95), "gamma": (0.02, 0.1, 0.2)}),
    ("breadcrumbs_ties", 2, {"weight": (0.5, 0.75), "density": (0.4, 0.7), "normalize": True, "rescale": True}),
    ("della", 3, {"weight": (0.5, 0.75, 0.25), "density": (0.3, 0.8, 0.5), "epsilon": (0.1, 0.15, 0.45)}),
    ("della", 2, {"weight": (0.5, -0.75), "density": (0.5, 1.0), "epsilon": (0.2, 0.2), "normalize": False,
        "rescale": False}),
    ("della", 2, {"weight": (0.5, 0.75)}),
    ("della_linear", 2, {"weight": (0.4, 0.7), "density": (0.5, 0.5)}),
    ("della_linear", 2, {"weight": (0.4, 0.7), "density": (0.0, 0.5), "epsilon": (0.9, 0.0),
        "normalize": True, "lambda_": 1.3}),
    ("sce", 1, {}),
    ("sce", 1, {"select_topk": 0.5}),
    ("sce", 3, {}),
    ("sce", 3, {"select_topk": 0.35}),
    ("sce", 2, {"select_topk": 0.9}),
    ("sce", 2, {"select_topk": 1e-9}),
    ("sce", 2, {"select_topk": 0.0}),
    ("arcee_fusion", 2, {}),
]
# fmt: on
