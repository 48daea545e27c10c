"""Rescaling: what a step that drops entries takes from a task vector's L1 norm, the others make up for."""

from heterosis.merge.formulas import Bound
from heterosis.merge.methods.base import PerInput, Program
from heterosis.merge.statistics import Statistics

# Of a sum that has to be divided by, as in mergekit.
NEGLIGIBLE = 1e-7


def rescaled(deltas: Statistics, merged: Bound, step: Bound, density: PerInput, rescale: bool) -> Program:
    """A program whose step is followed by factors that restore each task vector's L1 norm, or by none.

    Args:
        deltas: Task vectors.
        merged: The program's map.
        step: Drops entries.
        density: Which fraction it keeps of each; where all are 1 there is nothing to restore.
        rescale: Whether to restore the norms.
    """
    if not rescale or all(fraction == 1.0 for fraction in density):
        return Program(merged, step)
    before, after = deltas.absolute_sums(step)
    scale = (b / a if min(a, b) >= NEGLIGIBLE else 1.0 for b, a in zip(before, after, strict=True))
    return Program(merged, step, tuple(scale))
