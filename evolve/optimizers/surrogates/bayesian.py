"""Proposing points by their expected improvement, as Gaussian processes have it."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.stats import qmc

from heterosis.evolve.optimizers.base import Axis, Detail, Limits, Vector, at_levels, finite
from heterosis.evolve.optimizers.startup import STARTUP
from heterosis.evolve.optimizers.surrogates.gaussian_process import SumOfProcesses, fitted

Gain: TypeAlias = Callable[[torch.Tensor], torch.Tensor]  # of points ``[m, d]``, ``[m]``

# Points closer than this in every axis are as good as the same.
NEAR = 1e-3
# No proposal is farther than this from the point of which most is expected, on any axis without levels.
REGION = 0.25
# Where a best point is looked for there: anywhere, around the best known ones, and from the best of all these on.
ANYWHERE, AROUND, BEST, REACH, CLIMBS = 1024, 64, 5, 0.1, 5
# More terms are added up, neighbours with each other, to so many: each has parameters of its own to be fitted.
MOST_TERMS = 8


class BayesianOptimizer:
    """Proposes where the expected improvement is largest, ``initial`` first.

    It is looked for in a region around the point of which most is expected, that moves with it. (Eriksson et al.,
    "Scalable global optimization via local Bayesian optimization", NeurIPS 2019, whose region changes its size.)
    A few dozen results say little of what lies farther away in a dozen dimensions: there improvement is expected
    because nothing is known, most of all in the corners, which are worse.

    After the first ten, nothing is proposed next to what was proposed before, as long as there is anything else:
    scoring it again would give the same. Points that failed count as worse than all others in every term; of those
    without a result, what is expected of them counts as theirs.

    Args:
        axes: Of the cube.
        initial: The first proposal, unless its loss is known before.
        nearby: Proposed after it, until ten results are known.
        seed: Of the candidates among which the best one is looked for.
        limits: Of the loss's terms that have some.
    """

    def __init__(
        self,
        axes: Sequence[Axis],
        initial: Vector,
        nearby: Iterator[Vector],
        seed: int,
        limits: Sequence[Limits | None] = (),
    ) -> None:
        self._axes = tuple(axes)
        self._free = np.array([axis.levels is None for axis in axes])
        self._initial = at_levels(initial, axes)
        self._first: Vector | None = self._initial
        self._nearby = nearby
        self._seed = seed
        self._limits = limits
        self._rng = np.random.default_rng([seed, 1])
        self._running: list[Vector] = []
        self._failed: list[Vector] = []
        self._points: list[Vector] = []
        self._terms: list[tuple[float, ...]] = []
        self._shares: list[float] = []
        self._parameters: torch.Tensor | None = None

    def ask(self) -> Vector:
        if self._first is not None:
            x, self._first = self._first, None
        elif len(self._points) < STARTUP:
            x = next(self._nearby)
        else:
            x = self._most_promising()
        self._running.append(x)
        return x.copy()

    def tell(self, x: Vector, losses: Sequence[float] | None, detail: Detail | None = None) -> None:
        x = np.array(x, dtype=np.float64)
        if self._first is not None and np.array_equal(x, self._first):
            self._first = None
        place = next((i for i, own in enumerate(self._running) if np.array_equal(own, x)), None)
        if place is not None:
            del self._running[place]
        known = finite(losses)
        if known is None:
            self._failed.append(x)
            return
        self._points.append(x)
        self._terms.append(detail.terms if detail else tuple(known))
        self._shares.append(detail.share if detail else 1.0)

    def mean(self) -> Vector:
        """Where the least loss is expected, which is no lucky result; ``initial`` until ten are known."""
        if len(self._points) < STARTUP:
            return self._initial.copy()
        model = self._model()  # no state changes: proposals do not depend on whether this was asked
        rng = np.random.default_rng([self._seed, 2, len(self._points)])
        best, _ = self._ranked(model)
        (highest, *_) = self._highest(lambda x: -model.posterior(x)[0], best, self._region(model), rng)
        return highest

    def _model(self) -> SumOfProcesses:
        """What is known of the loss now."""
        lengths = set(map(len, self._terms))
        terms = np.array(self._terms if len(lengths) == 1 else [[sum(own)] for own in self._terms])
        limits = self._limits if len(self._limits) == terms.shape[1] else [None] * terms.shape[1]
        whole = terms[np.array(self._shares) == 1.0]  # others are estimates, which may lie anywhere
        limits = [own if own and _holds(own, y) else None for own, y in zip(limits, whole.T, strict=True)]
        if terms.shape[1] > MOST_TERMS:
            parts = np.array_split(np.arange(terms.shape[1]), MOST_TERMS)
            terms = np.stack([terms[:, part].sum(1) for part in parts], axis=1)
            limits = [_limits_of_sum([limits[k] for k in part]) for part in parts]
        return fitted(
            np.array(self._points),
            terms,
            np.array(self._shares),
            np.array([not axis.ordered for axis in self._axes]),
            limits,
            self._parameters,
            self._failed,
        )

    def _ranked(self, model: SumOfProcesses) -> tuple[Vector, float]:
        """The known points of which most is expected, ``[few, d]``, and the loss that is expected of the best."""
        expected = model.posterior(model.points)[0].numpy()
        return model.points.numpy()[np.argsort(expected)[:BEST]], float(expected.min())

    def _most_promising(self) -> Vector:
        """Where the expected improvement is largest."""
        model = self._model()
        self._parameters = model.parameters
        region = self._region(model)
        if self._running:
            model = model.expecting(np.array(self._running))
        best, loss = self._ranked(model)
        ranked = self._highest(
            lambda x: log_expected_improvement(*model.posterior(x), loss), best, region, self._rng
        )
        asked = np.array([*self._points, *self._failed, *self._running])
        return next((x for x in ranked if np.abs(asked - x).max(1).min() >= NEAR), ranked[0])

    def _highest(self, gain: Gain, best: Vector, region: Vector, rng: np.random.Generator) -> list[Vector]:
        """Where a function is large in a region, the largest first.

        They are several climbs from points anywhere, and around the best, and then these.
        """
        candidates = self._candidates(best, region, rng)
        candidates = candidates[np.argsort(-gain(torch.from_numpy(candidates)).numpy())]
        climbed = self._climbed(gain, candidates[:CLIMBS], region)
        order = np.argsort(-gain(torch.from_numpy(climbed)).numpy(), kind="stable")
        return [*climbed[order], *candidates]

    def _region(self, model: SumOfProcesses) -> Vector:
        """The lowest and highest of where points are looked for, ``[2, d]``."""
        (centre, *_), _ = self._ranked(model)
        reach = np.where(self._free, REGION, 1.0)
        return np.array([centre - reach, centre + reach]).clip(0.0, 1.0)

    def _candidates(self, best: Vector, region: Vector, rng: np.random.Generator) -> Vector:
        """Points anywhere in a region, and around the best known ones, ``[candidates, d]``."""
        d, (low, high) = len(self._axes), region
        anywhere = low + (high - low) * qmc.Sobol(d, seed=rng).random(ANYWHERE)
        around = np.clip(best[:, None] + REACH * rng.standard_normal((len(best), AROUND, d)), low, high)
        return np.array([at_levels(x, self._axes) for x in (*anywhere, *around.reshape(-1, d))])

    def _climbed(self, gain: Gain, points: Vector, region: Vector) -> Vector:
        """Where the gain is largest near each point, along the axes without levels; ``[m, d]`` both.

        All climb at once, as the maximum of a sum of gains is that of each.
        """
        free = self._free
        if not free.any():
            return points
        bounds = [*region.T] * len(points)

        def loss(moved: Vector) -> tuple[float, Vector]:
            x = torch.from_numpy(np.where(free, moved.reshape(points.shape), points)).requires_grad_()
            value = -gain(x).sum()
            (gradient,) = torch.autograd.grad(value, x)
            return value.item(), np.where(free, gradient.numpy(), 0.0).ravel()

        found = minimize(loss, points.ravel(), jac=True, method="L-BFGS-B", bounds=bounds)
        return np.array([at_levels(x, self._axes) for x in found.x.reshape(points.shape)])


def _holds(limits: Limits, values: Vector) -> bool:
    """Whether values lie between limits, but for rounding."""
    slack = 1e-9 * (limits.high - limits.low)
    return bool(np.all((values >= limits.low - slack) & (values <= limits.high + slack)))


def _limits_of_sum(limits: Sequence[Limits | None]) -> Limits | None:
    """The limits of a sum of terms, if all of them have some."""
    known = [own for own in limits if own is not None]
    if len(known) < len(limits):
        return None
    low, high = sum(own.low for own in known), sum(own.high for own in known)
    return Limits(low, high, sum(own.documents for own in known))


def log_expected_improvement(mean: torch.Tensor, variance: torch.Tensor, best: float) -> torch.Tensor:
    """log E[max(0, best - loss)] of a normal loss; equations 5 and 9 of https://arxiv.org/abs/2310.20708."""
    deviation = variance.sqrt()
    z = ((best - mean) / deviation).clamp_min(-1e4)
    near = z.clamp_min(-1.0)
    density = torch.exp(-near.square() / 2) / math.sqrt(2 * math.pi)
    direct = (density + near * torch.special.ndtr(near)).log()
    far = z.clamp_max(-1.0)
    tail = torch.log1p(math.sqrt(math.pi / 2) * far * torch.special.erfcx(-far / math.sqrt(2)))
    return torch.where(z > -1.0, direct, tail - far.square() / 2 - math.log(2 * math.pi) / 2) + deviation.log()
