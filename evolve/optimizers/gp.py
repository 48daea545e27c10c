"""Bayesian optimization: a Gaussian process of the losses, and where it expects to gain most."""

from collections.abc import Sequence

from heterosis.evolve.optimizers.base import SIGMA0, Axis, Optimizer, Vector, optimizer, seed32
from heterosis.evolve.optimizers.sampling import SamplerOptimizer, spread_around


@optimizer("gp", multi_objective=True, model_based=True)
def gp(
    *,
    axes: Sequence[Axis],
    objectives: int,
    initial: Vector,
    seed: int,
    sigma0: float | None = None,
    popsize: int | None = None,
    budget: int = 0,
) -> Optimizer:
    """The Gaussian process of Optuna with log expected improvement; see https://arxiv.org/abs/2310.20708.

    Noise is estimated; running trials are taken into account by their expected results. Until
    ten results are known, points are spread around ``initial``. A proposal takes tenths of a second.

    Args:
        axes: Of the cube.
        objectives: Any number.
        initial: The first proposal.
        seed: Of this optimizer's own random streams.
        sigma0: Standard deviation of the first points, 0.2 by default.
        popsize: Not used.
        budget: Not used.
    """
    from optuna.samplers import GPSampler

    return SamplerOptimizer(
        lambda: GPSampler(seed=seed32(seed), warn_independent_sampling=False),
        axes,
        objectives,
        initial,
        spread_around(initial, axes, SIGMA0 if sigma0 is None else sigma0, seed),
    )
