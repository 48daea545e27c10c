"""TPE: a density of the good points over one of the others."""

from collections.abc import Sequence

from heterosis.evolve.optimizers.base import Axis, Optimizer, Vector, optimizer, seed32
from heterosis.evolve.optimizers.sampling import SamplerOptimizer


@optimizer("tpe", multi_objective=True, model_based=True)
def tpe(
    *,
    axes: Sequence[Axis],
    objectives: int,
    initial: Vector,
    seed: int,
    **unused: object,
) -> Optimizer:
    """The tree-structured Parzen estimator of Optuna, multivariate; see https://arxiv.org/abs/2304.11127.

    Running trials count among the bad points ("constant liar"), so that simultaneous proposals differ. The
    first ten results are of random points, after ``initial``.

    Args:
        axes: Of the cube.
        objectives: Any number.
        initial: The first proposal.
        seed: Of this optimizer's own random streams.
    """
    from optuna.samplers import TPESampler

    return SamplerOptimizer(
        lambda: TPESampler(seed=seed32(seed), multivariate=True, constant_liar=True), axes, objectives, initial
    )
