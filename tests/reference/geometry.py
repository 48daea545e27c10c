"""Naive references of the methods about angles, distances and counts, step by step as they are published."""

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

from .inputs import Inputs, Vector


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(u * v for u, v in zip(a, b, strict=True))


def norm(a: Vector) -> float:
    return math.sqrt(dot(a, a))


def scaled(a: Vector, factor: float) -> Vector:
    return [factor * v for v in a]


def total(vectors: Sequence[Vector], weight: Sequence[float]) -> Vector:
    return [math.fsum(w * v for w, v in zip(weight, column, strict=True)) for column in zip(*vectors, strict=True)]


def on_the_arc(a: Vector, b: Vector, t: float) -> Vector:
    cosine = dot(scaled(a, 1 / max(norm(a), 1e-7)), scaled(b, 1 / max(norm(b), 1e-7)))
    if 1 - min(1.0, cosine**2) <= 1e-12:
        return total([a, b], [1 - t, t])
    theta = math.acos(cosine)
    return total([a, b], [math.sin((1 - t) * theta) / math.sin(theta), math.sin(t * theta) / math.sin(theta)])


def nuslerp(
    x: Inputs, *, weight: Sequence[float], nuslerp_flatten: bool = True, nuslerp_row_wise: bool = False
) -> Vector:
    t = 0.5 if abs(sum(weight)) < 1e-6 else weight[1] / sum(weight)
    a, b = x
    result = [math.nan] * len(a)
    for line in [list(range(len(a)))] if nuslerp_flatten else x.along(0 if nuslerp_row_wise else -1):
        for i, v in zip(line, on_the_arc([a[i] for i in line], [b[i] for i in line], t), strict=True):
            result[i] = v
    return result


def multislerp(x: Inputs, *, weight: Sequence[float], normalize_weights: bool = True, eps: float = 1e-8) -> Vector:
    if len(x) == 1:
        return x[0]
    w = [v / sum(weight) for v in weight] if normalize_weights else list(weight)
    units = [scaled(v, 1 / (norm(v) + eps)) for v in x]
    mean = total(units, w)
    if norm(mean) < eps:
        assert len(x) == 2
        return total(x, w)
    mean = scaled(mean, 1 / norm(mean))
    tangents = [total([u, mean], [1, -dot(u, mean)]) for u in units]
    tangent = total(tangents, w)
    n = norm(tangent) + eps
    direction = total([mean, tangent], [math.cos(n), math.sin(n) / n])
    return scaled(direction, sum(k * norm(v) for k, v in zip(w, x, strict=True)))


def karcher(x: Inputs, *, max_iter: int = 10, tol: float = 1e-5) -> Vector:
    if len(x) == 1:
        return x[0]
    units = [scaled(v, 1 / norm(v)) for v in x if norm(v) > tol]
    if not units:
        return total(x, [1 / len(x)] * len(x))
    equal = [1 / len(units)] * len(units)
    mean = total(units, equal)
    mean = units[0] if norm(mean) < tol else scaled(mean, 1 / norm(mean))
    for _ in range(max_iter):
        tangent = [0.0] * len(mean)
        for u in units:
            theta = math.acos(max(-1.0, min(1.0, dot(u, mean))))
            if math.sin(theta) < tol:
                continue
            pull = theta / math.sin(theta) / len(units)
            tangent = total([tangent, u, mean], [1, pull, -pull * math.cos(theta)])
        length = norm(tangent)
        if length < tol:
            break
        mean = total([mean, tangent], [math.cos(length), math.sin(length) / length])
        mean = scaled(mean, 1 / norm(mean))
    return scaled(mean, sum(map(norm, x)) / len(x))


def model_stock(d: Inputs, *, filter_wise: bool = False) -> Vector:
    n = len(d)
    result = [math.nan] * len(d[0])
    for line in d.along(-1) if filter_wise else [list(range(len(d[0])))]:
        parts = [[v[i] for i in line] for v in d]
        cosines = [dot(a, b) / max(norm(a) * norm(b), 1e-6) for a, b in combinations(parts, 2)]
        cosine = sum(max(-1.0, min(1.0, c)) for c in cosines) / len(cosines)
        denominator = 1 + (n - 1) * cosine
        t = 0.0 if abs(denominator) < 1e-6 else n * cosine / denominator
        for i, v in zip(line, total(parts, [t / n] * n), strict=True):
            result[i] = v
    return result


def nearswap(x: Inputs, *, t: float) -> Vector:
    shares = [max(0.0, min(1.0, t / max(abs(b - v), 1e-6))) for b, v in zip(*x, strict=True)]
    return [s * v + (1 - s) * b for s, b, v in zip(shares, *x, strict=True)]


def ramplus_tl(d: Inputs, *, epsilon: float = 1e-5, r: float = 0.1, alpha: float = 0.2) -> Vector:
    who = [[j for j, v in enumerate(column) if abs(v) > epsilon] for column in zip(*d, strict=True)]
    factors = []
    for j in range(len(d)):
        shared = sum(j in changed and len(changed) > 1 for changed in who)
        unique = sum(changed == [j] for changed in who)
        factors.append(1 + r * max(0.0, min(alpha, shared / max(unique, epsilon))))
    return [
        factors[changed[0]] * d[changed[0]][i]
        if len(changed) == 1
        else sum(d[j][i] for j in changed) / max(1, len(changed))
        for i, changed in enumerate(who)
    ]


def ram(d: Inputs, *, epsilon: float = 1e-5) -> Vector:
    return ramplus_tl(d, epsilon=epsilon, r=0.0)


REFERENCES: dict[str, Callable[..., Vector]] = {
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "karcher": karcher,
    "model_stock": model_stock,
    "nearswap": nearswap,
    "ram": ram,
    "ramplus_tl": ramplus_tl,
}
# fmt: off
CASES: list[tuple[str, int, dict[str, Any]]] = [
    ("nuslerp", 2, {"weight": (0.3, 0.5)}),
    ("nuslerp", 2, {"weight": (1.0, -1.0)}),
    ("nuslerp", 2, {"weight": (2.0, -0.5)}),
    ("nuslerp", 2, {"weight": (0.3, 0.5), "nuslerp_flatten": False}),
    ("nuslerp", 2, {"weight": (0.7, 0.5), "nuslerp_flatten": False, "nuslerp_row_wise": True}),
    ("nuslerp", 2, {"weight": (0.3, 0.5), "nuslerp_row_wise": True}),
    ("multislerp", 1, {"weight": (0.3,)}),
    ("multislerp", 2, {"weight": (0.3, 0.5)}),
    ("multislerp", 3, {"weight": (0.3, 0.5, 0.9)}),
    ("multislerp", 3, {"weight": (0.3, -0.2, 0.9), "normalize_weights": False, "eps": 0.1}),
    ("karcher", 1, {}),
    ("karcher", 2, {}),
    ("karcher", 3, {}),
    ("karcher", 4, {"max_iter": 1, "tol": 1e-3}),
    ("karcher", 3, {"max_iter": 0}),
    ("model_stock", 2, {}),
    ("model_stock", 3, {}),
    ("model_stock", 3, {"filter_wise": True}),
    ("nearswap", 2, {"t": 0.3}),
    ("nearswap", 2, {"t": 0.0}),
    ("nearswap", 2, {"t": 100.0}),
    ("ram", 1, {}),
    ("ram", 3, {"epsilon": 0.5}),
    ("ramplus_tl", 3, {"epsilon": 1.25}),
    ("ramplus_tl", 2, {"epsilon": 0.5, "r": 0.7, "alpha": 10.0}),
]
# fmt: on
