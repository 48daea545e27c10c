"""Independent Gaussian processes of the terms of a loss, and what their sum is expected to be.

A loss that is a sum, such as one of several tasks, is better known by its terms than by its total: a task may
depend on the weights of two models only, which a process of its own learns from few points, while the total
depends on all. (Astudillo and Frazier, "Bayesian optimization of composite functions", ICML 2019, have the idea.)
Still they are alike: where one task's score changes fast along an axis, so do others', as it is the same weights
that are mixed. A few dozen results tell little of a dozen length scales, so terms learn them from each other.
A term between two limits, such as a share of right answers, is modelled by its logit: near a limit little is left
to gain, and what is expected never lies beyond it.
Equations are numbered as in Rasmussen and Williams, "Gaussian Processes for Machine Learning", 2006.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from heterosis.evolve.optimizers.base import Limits, Vector
from heterosis.evolve.optimizers.startup import losses_of_failure

# Logarithms of parameters stay within this, and begin at 0, but for the noise.
LIMIT, FIRST_NOISE = 7.0, math.log(0.01)
ALIKE = 1.0  # how much logarithms of terms' inverse squared length scales differ, as a standard deviation
JITTER = 1e-6  # added to the noise, so that equal points do no harm
# Of the quadrature: means are right to 0.004 where logits have a standard deviation of 3.
NODES, WEIGHTS = map(torch.from_numpy, np.polynomial.hermite_e.hermegauss(9))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


@dataclass(frozen=True)
class SumOfProcesses:
    """What is known of a loss at any point of the unit cube. Build it with :func:`fitted`.

    Each term, or its logit where it has limits, less its mean and divided by its standard deviation, is a process
    with a Matern 5/2 kernel, which has a length scale for each axis, and with noise, whose variance is inversely
    proportional to a result's share of the documents.

    Attributes:
        points: Where it is known, ``[n, d]``.
        values: The terms or logits there, less their mean and divided by their standard deviation, ``[terms, n]``.
        noise: Inverse of each result's share of the documents, ``[n]``.
        categories: Which axes have no neighbours, ``[d]``: points differ there or do not.
        parameters: Logarithms of each term's inverse squared length scales, its variance and its noise's,
            ``[terms, d + 2]``.
        levels: Mean of each term or its logits, ``[terms]``.
        scales: Their standard deviation, ``[terms]``.
        limits: The lowest and highest of each term that has such ends, NaN of others, ``[terms, 2]``.
    """

    points: torch.Tensor
    values: torch.Tensor
    noise: torch.Tensor
    categories: torch.Tensor
    parameters: torch.Tensor
    levels: torch.Tensor
    scales: torch.Tensor
    limits: torch.Tensor

    def posterior(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of the loss without noise at points ``[m, d]``, ``[m]`` each."""
        mean, variance = self._terms(x)
        mean = self.levels[:, None] + self.scales[:, None] * mean
        variance = self.scales.square()[:, None] * variance
        limited = ~self.limits[:, 0].isnan()
        own = _between(self.limits[limited], mean[limited], variance[limited])
        rest = mean[~limited].sum(0), variance[~limited].sum(0)
        return rest[0] + own[0].sum(0), rest[1] + own[1].sum(0)

    def expecting(self, points: Vector) -> "SumOfProcesses":
        """What would be known if results at more points, ``[m, d]``, came as they are expected.

        (Ginsbourger, Le Riche and Carraro, "Kriging is well-suited to parallelize optimization", 2010: the kriging
        believer.)
        """
        x = torch.from_numpy(points)
        return replace(
            self,
            points=torch.cat([self.points, x]),
            values=torch.cat([self.values, self._terms(x)[0]], 1),
            noise=torch.cat([self.noise, torch.ones(len(x), dtype=torch.float64)]),
        )

    def _terms(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance of each term's values, ``[terms, m]`` each."""
        factors, weights = self._solved
        cross = _kernel(self.parameters, _squares(self.points, x, self.categories))
        explained = torch.linalg.solve_triangular(factors, cross, upper=False).square().sum(1)
        variance = self.parameters[:, -2, None].exp() - explained
        return torch.einsum("tn,tnm->tm", weights, cross), variance.clamp_min(1e-12)

    @cached_property
    def _solved(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Cholesky factors of the covariances ``K`` of all results, ``[terms, n, n]``, and ``K^-1 y``."""
        squares = _squares(self.points, self.points, self.categories)
        factors = torch.linalg.cholesky(_covariance(self.parameters, squares, self.noise))
        return factors, torch.cholesky_solve(self.values[..., None], factors)[..., 0]


def fitted(
    points: Vector,
    terms: Vector,
    shares: Vector,
    categories: NDArray[np.bool_],
    limits: Sequence[Limits | None] = (),
    begin: torch.Tensor | None = None,
    failed: Sequence[Vector] = (),
) -> SumOfProcesses:
    """The processes whose parameters are the most probable ones, given results and a prior.

    The prior is Optuna's, ``exp(-0.1 (q + 1/q))`` of an inverse squared length scale q, Gamma(2, 1) of a variance,
    Gamma(1.1, 30) of the noise's; and log q is normal around its mean over the terms, with a deviation of `ALIKE`.

    Args:
        points: ``[n, d]``, n >= 1.
        terms: ``[n, terms]``.
        shares: Of the documents that each result is worth, in (0, 1], ``[n]``; see `Detail`.
        categories: ``[d]``.
        limits: Of each term that has some, None of others; of none where empty.
        begin: Parameters of an earlier fit, from which these are looked for if there are as many terms.
        failed: Points that failed, ``[d]`` each, which count as worse than all others in every term.
    """
    own = limits or [None] * terms.shape[1]
    columns = np.stack(
        [y if limit is None else _logit(y, limit) for y, limit in zip(terms.T, own, strict=True)], axis=1
    )
    failure = losses_of_failure(columns.min(0), columns.max(0))
    x = torch.from_numpy(np.array([*points, *failed]))
    y = torch.from_numpy(np.array([*columns, *(failure for _ in failed)]).T.copy())
    shares = np.array([*shares, *(1.0 for _ in failed)])
    scales = y.std(1, correction=0)
    scales = torch.where(scales > 0, scales, 1.0)
    values = (y - y.mean(1, keepdim=True)) / scales[:, None]
    noise, mask = 1 / torch.from_numpy(shares), torch.from_numpy(categories)
    shape = (len(y), x.shape[1] + 2)
    if begin is None or begin.shape != shape:
        begin = torch.zeros(shape, dtype=torch.float64)
        begin[:, -1] = FIRST_NOISE
    squares = _squares(x, x, mask)

    def loss(flat: Vector) -> tuple[float, Vector]:
        parameters = torch.from_numpy(flat).reshape(shape).requires_grad_()
        value = -_log_likelihood(parameters, squares, values, noise) - _log_prior(parameters)
        (gradient,) = torch.autograd.grad(value, parameters)
        return value.item(), gradient.numpy().ravel()

    bounds = [(-LIMIT, LIMIT)] * begin.numel()
    found = minimize(loss, begin.numpy().ravel(), jac=True, method="L-BFGS-B", bounds=bounds)
    parameters = torch.from_numpy(found.x).reshape(shape)
    ends = [(math.nan, math.nan) if one is None else (one.low, one.high) for one in own]
    limited = torch.tensor(ends, dtype=torch.float64)
    return SumOfProcesses(x, values, noise, mask, parameters, y.mean(1), scales, limited)


def _logit(values: Vector, limits: Limits) -> Vector:
    """The logit of where values lie between their limits, half a document off these."""
    share = np.clip((values - limits.low) / (limits.high - limits.low), 0.0, 1.0)
    return np.log((limits.documents * share + 0.5) / (limits.documents * (1 - share) + 0.5))


def _between(
    limits: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of terms whose logits are normal, ``[terms, m]``, by Gauss-Hermite quadrature."""
    low, high = limits.T[..., None]
    share = torch.sigmoid(mean[..., None] + variance.sqrt()[..., None] * NODES)
    first = (share * WEIGHTS).sum(-1)
    second = ((share - first[..., None]).square() * WEIGHTS).sum(-1)
    return low + (high - low) * first, (high - low).square() * second.clamp_min(1e-12)


def _squares(a: torch.Tensor, b: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
    """Squared differences on each axis, ``[d, a, b]``; 1 between different categories."""
    squares = (a.T[:, :, None] - b.T[:, None]).square()
    return torch.where(categories[:, None, None], (squares > 0).double(), squares) if categories.any() else squares


def _kernel(parameters: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """Covariances of each term, ``[terms, a, b]``: equation 4.17 with nu = 5/2."""
    inverse, variance = parameters[:, :-2].exp(), parameters[:, -2].exp()
    distances = (inverse @ squares.flatten(1)).reshape(-1, *squares.shape[1:])
    r = (5 * distances + 1e-20).sqrt()  # whose slope at 0 is not finite
    return variance[:, None, None] * (1 + r + r.square() / 3) * torch.exp(-r)


def _covariance(parameters: torch.Tensor, squares: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Covariances of each term's results, ``[terms, n, n]``."""
    own = (parameters[:, -1, None].exp() + JITTER) * noise
    return _kernel(parameters, squares) + torch.diag_embed(own)


def _log_likelihood(
    parameters: torch.Tensor, squares: torch.Tensor, values: torch.Tensor, noise: torch.Tensor
) -> torch.Tensor:
    """Of all terms together, but for a constant: equation 2.30."""
    factors = torch.linalg.cholesky(_covariance(parameters, squares, noise))
    whitened = torch.linalg.solve_triangular(factors, values[..., None], upper=False)
    value: torch.Tensor = -factors.diagonal(dim1=1, dim2=2).log().sum() - whitened.square().sum() / 2
    return value


def _log_prior(parameters: torch.Tensor) -> torch.Tensor:
    """Of all terms together, but for a constant."""
    inverse, variance, noise = parameters[:, :-2], parameters[:, -2], parameters[:, -1]
    of_scales = -0.1 * (inverse.exp() + (-inverse).exp()).sum()
    of_differences = -(inverse - inverse.mean(0)).square().sum() / (2 * ALIKE**2)
    of_variances = (variance - variance.exp()).sum() + (0.1 * noise - 30 * noise.exp()).sum()
    return of_scales + of_differences + of_variances
