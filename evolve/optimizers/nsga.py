"""NSGA-II and NSGA-III: genetic algorithms that spread a front, by crowding and along reference directions."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from heterosis.evolve.optimizers.base import Axis, Optimizer, Vector, optimizer, seed32
from heterosis.evolve.optimizers.sampling import SamplerOptimizer

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


@optimizer("nsga2", multi_objective=True)
def nsga2(**given: Any) -> Optimizer:
    """NSGA-II of Optuna; see https://doi.org/10.1109/4235.996017 and `_genetic`."""
    from optuna.samplers import NSGAIISampler

    return _genetic(NSGAIISampler, **given)


@optimizer("nsga3", multi_objective=True)
def nsga3(**given: Any) -> Optimizer:
    """NSGA-III of Optuna; see https://doi.org/10.1109/TEVC.2013.2281535 and `_genetic`."""
    from optuna.samplers import NSGAIIISampler

    return _genetic(NSGAIIISampler, **given)


def _genetic(
    sampler: "Callable[..., BaseSampler]",
    *,
    axes: Sequence[Axis],
    objectives: int,
    initial: Vector,
    seed: int,
    popsize: int | None = None,
    budget: int = 0,
    **unused: object,
) -> Optimizer:
    """A genetic algorithm of Optuna.

    A generation ends when ``popsize`` of its points have results, whatever is still running; a child that
    comes late belongs to the generation in which it was asked for.

    Args:
        sampler: Its class.
        axes: Of the cube.
        objectives: Any number.
        initial: The first proposal.
        seed: Of this optimizer's own random streams.
        popsize: Points per generation; by default a tenth of the budget, between 8 and 50. At 60-200 trials on
            smooth fronts in 3-12 dimensions, 8-12 points did better than 20-30, and all of them far better than
            Optuna's 50, which is what a budget of 500 gets.
        budget: For ``popsize``.
    """
    from optuna.samplers.nsgaii import BLXAlphaCrossover

    size = popsize or min(max(budget // 10, 8), 50)
    return SamplerOptimizer(
        lambda: sampler(seed=seed32(seed), population_size=size, crossover=BLXAlphaCrossover()),
        axes,
        objectives,
        initial,
    )
