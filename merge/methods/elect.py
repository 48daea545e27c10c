"""The sign election of TIES: per element, the entries that agree with the majority's sign.

Branch-free, to vectorise; of a sign that is chosen instead of copied, LLVM would compute both cases.
"""

import math

from heterosis.merge.formulas import ONE, ZERO, Bound, formula
from heterosis.merge.kernels import inlined
from heterosis.merge.methods.base import PerInput


@inlined
def elected(d, weight):  # type: ignore[no-untyped-def]
    """The sign of the sum of all weighted entries, 1 or -1; zero is positive."""
    total = weight[0] * d[0]
    for j in range(1, len(d)):
        total += weight[j] * d[j]
    return math.copysign(ONE, total)  # of -0 only where all entries are zero, and nothing is merged


@formula
def elect(i, d, weight, lambda_):  # type: ignore[no-untyped-def]
    """Sum the weighted entries that have the elected sign, times lambda unless it is None."""
    sign, merged = elected(d, weight), ZERO
    for j in range(len(d)):
        entry = weight[j] * d[j]
        opposes = entry * sign <= 0  # false for NaN, which must not vanish
        merged = merged if opposes else merged + entry
    return merged if lambda_ is None else merged * lambda_


@formula
def elect_mean(i, d, weight, lambda_):  # type: ignore[no-untyped-def]
    """The same over the sum of their weights."""
    sign, merged, mass = elected(d, weight), ZERO, ZERO
    for j in range(len(d)):
        entry = weight[j] * d[j]
        opposes = entry * sign <= 0
        merged = merged if opposes else merged + entry
        mass = mass if opposes else mass + weight[j]
    divisor = mass if mass != 0 else ONE
    mean = merged / divisor
    return mean if lambda_ is None else mean * lambda_


def election(weight: PerInput, normalize: bool, lambda_: float) -> Bound:
    """The election among weighted task vectors, and a factor of what it gives.

    ``normalize`` divides by the sum of the weights of the entries kept (section 3.3 of the TIES paper has
    their number instead).
    """
    return (elect_mean if normalize else elect).bind(weight, None if lambda_ == 1 else lambda_)
