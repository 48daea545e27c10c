"""NSGA-III: a genetic algorithm for many objectives, spread along reference directions."""

from collections.abc import Sequence

from heterosis.evolve.optimizers.base import Axis, Optimizer, Vector, optimizer, seed32
from heterosis.evolve.optimizers.sampling import SamplerOptimizer, generation_size


@optimizer("nsga3", multi_objective=True)
def nsga3(
    *,
    axes: Sequence[Axis],
    objectives: int,
    initial: Vector,
    seed: int,
    popsize: int | None = None,
    budget: int = 0,
    **unused: object,
) -> Optimizer:
    """NSGA-III of Optuna; see https://doi.org/10.1109/TEVC.2013.2281535. Asynchronous as nsga2.py is.

    Args:
        axes: Of the cube.
        objectives: Any number.
        initial: The first proposal.
        seed: Of this optimizer's own random streams.
        popsize: Points per generation; a tenth of the budget by default, between 8 and 50.
        budget: For ``popsize``.
    """
    from optuna.samplers import NSGAIIISampler
    from optuna.samplers.nsgaii import BLXAlphaCrossover

    size = popsize or generation_size(budget)
    return SamplerOptimizer(
        lambda: NSGAIIISampler(seed=seed32(seed), population_size=size, crossover=BLXAlphaCrossover()),
        axes,
        objectives,
        initial,
    )
