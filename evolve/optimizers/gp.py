"""Bayesian optimization: Gaussian processes of a loss's terms, and where they expect to gain most."""

from collections.abc import Sequence

from heterosis.evolve.optimizers.base import SIGMA0, Axis, Limits, Optimizer, Vector, optimizer, seed32
from heterosis.evolve.optimizers.sampling import SamplerOptimizer
from heterosis.evolve.optimizers.startup import spread_around


@optimizer("gp", multi_objective=True, model_based=True, recommends=True)
def gp(
    *,
    axes: Sequence[Axis],
    objectives: int,
    initial: Vector,
    seed: int,
    sigma0: float | None = None,
    limits: Sequence[Limits | None] = (),
    others: Sequence[Vector] = (),
    **unused: object,
) -> Optimizer:
    """Bayesian optimization; a proposal takes tenths of a second.

    One loss is the sum of its terms, each of which has a process of its own, and points are proposed by their log
    expected improvement (https://arxiv.org/abs/2310.20708) over the best expected loss of the known ones. Several
    losses are left to Optuna's sampler. Until ten results are known, points are spread around ``initial`` and
    ``others``, by turns.

    Args:
        axes: Of the cube.
        objectives: Any number.
        initial: The first proposal.
        seed: Of this optimizer's own random streams.
        sigma0: Standard deviation of the first points, 0.2 by default.
        limits: Of the loss's terms.
        others: Further points to begin around.
    """
    nearby = spread_around([initial, *others], axes, SIGMA0 if sigma0 is None else sigma0, seed)
    if objectives == 1:
        from heterosis.evolve.optimizers.surrogates.bayesian import BayesianOptimizer  # needs torch

        return BayesianOptimizer(axes, initial, nearby, seed, limits)
    from optuna.samplers import GPSampler

    return SamplerOptimizer(
        lambda: GPSampler(seed=seed32(seed), warn_independent_sampling=False), axes, objectives, initial, nearby
    )
