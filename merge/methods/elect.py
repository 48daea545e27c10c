"""The sign election of TIES: per element, the entries that agree with the majority's sign."""

import math

from heterosis.merge.methods.base import ONE, ZERO, Bound, PerInput, formula


@formula
def elect(i, d, weight, share, lambda_):  # type: ignore[no-untyped-def]
    """Sum the weighted entries whose sign is that of their total, over the sum of their shares; zero is positive.

    Branch-free, to vectorise; of a sign that is chosen instead of copied, LLVM would compute both cases.
    """
    total = ZERO
    for j in range(len(d)):
        total += weight[j] * d[j]
    sign = math.copysign(ONE, total)  # never of -0, as no sum that begins with 0 is
    merged, mass = ZERO, ZERO
    for j in range(len(d)):
        entry = weight[j] * d[j]
        opposes = entry * sign <= 0  # false for NaN, which must not vanish
        merged += ZERO if opposes else entry
        mass += ZERO if opposes else share[j]
    divisor = mass if mass != 0 else ONE
    return merged / divisor * lambda_


def election(weight: PerInput, normalize: bool, lambda_: float) -> Bound:
    """The election among weighted task vectors, and a factor of what it gives.

    ``normalize`` divides by the sum of the weights of the entries kept (section 3.3 of the TIES paper has
    their number instead).
    """
    share = weight if normalize else (0.0,) * len(weight)
    return elect.bind(weight, share, lambda_)
