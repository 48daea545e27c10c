"""NSGA-II: a genetic algorithm for several objectives that keeps a spread front."""

from collections.abc import Sequence

from heterosis.evolve.optimizers.base import Axis, Optimizer, Vector, optimizer, seed32
from heterosis.evolve.optimizers.sampling import SamplerOptimizer, generation_size


@optimizer("nsga2", multi_objective=True)
def nsga2(
    *,
    axes: Sequence[Axis],
    objectives: int,
    initial: Vector,
    seed: int,
    popsize: int | None = None,
    budget: int = 0,
    **unused: object,
) -> Optimizer:
    """NSGA-II of Optuna; see https://doi.org/10.1109/4235.996017.

    A generation ends when ``popsize`` of its points have results, whatever is still running; a child that
    comes late belongs to the generation in which it was asked for.

    Args:
        axes: Of the cube.
        objectives: Any number.
        initial: The first proposal.
        seed: Of this optimizer's own random streams.
        popsize: Points per generation; a tenth of the budget by default, between 8 and 50.
        budget: For ``popsize``.
    """
    from optuna.samplers import NSGAIISampler
    from optuna.samplers.nsgaii import BLXAlphaCrossover

    size = popsize or generation_size(budget)
    return SamplerOptimizer(
        lambda: NSGAIISampler(seed=seed32(seed), population_size=size, crossover=BLXAlphaCrossover()),
        axes,
        objectives,
        initial,
    )
