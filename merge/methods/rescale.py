"""Rescaling: what a step that drops entries takes from a task vector's L1 norm, the others make up for."""

from collections.abc import Callable

from heterosis.merge.methods.base import Bound, PerInput
from heterosis.merge.statistics import Statistics

# Of a sum that has to be divided by, as in mergekit.
NEGLIGIBLE = 1e-7


def rescaled(deltas: Statistics, step: Callable[[PerInput], Bound], density: PerInput, rescale: bool) -> Bound:
    """A step with factors that restore each task vector's L1 norm, or with ones.

    Args:
        deltas: Task vectors.
        step: Binds the step to a factor for each model.
        density: Which fraction the step keeps of each; where all are 1 there is nothing to restore.
        rescale: Whether to restore the norms.
    """
    plain = step((1.0,) * deltas.models)
    if not rescale or all(fraction == 1.0 for fraction in density):
        return plain
    before, after = deltas.absolute_sums(plain)
    return step(tuple(b / a if min(a, b) >= NEGLIGIBLE else 1.0 for b, a in zip(before, after, strict=True)))
