"""Which optimizer suits a search: the rule behind ``optimizer: auto``."""

from collections.abc import Sequence

from heterosis.evolve.optimizers.base import Axis

# Objectives from which on fronts are too large for crowding distances to order.
MANY = 4
# Dimensions and trials up to which a Gaussian process is worth its time.
FEW_AXES, FEW_TRIALS = 20, 200


def choose_optimizer(axes: Sequence[Axis], objectives: int, budget: int) -> tuple[str, str]:
    """The name of an optimizer, and one sentence that says why it.

    Args:
        axes: Of the search space.
        objectives: How many losses a result has.
        budget: Trials that are planned.
    """
    if objectives >= MANY:
        return "nsga3", f"{objectives} objectives: reference points keep a front apart"
    if objectives > 1:
        return "nsga2", f"{objectives} objectives"
    switches = sum(axis.levels is not None for axis in axes)
    if switches:
        return "cmawm", f"{switches} of {len(axes)} dimensions take levels only, and a margin keeps them moving"
    if len(axes) <= FEW_AXES and budget <= FEW_TRIALS:
        return "gp", f"{len(axes)} dimensions and {budget} trials: a model of the scores finds its way sooner"
    return "cma", f"{len(axes)} continuous dimensions, {budget} trials"
