"""The sign election of TIES: per element, the entries that agree with the majority's sign."""

from heterosis.merge.methods.base import ONE, ZERO, formula


@formula
def elect(i, d, weight, normalize, lambda_):  # type: ignore[no-untyped-def]
    """Sum the weighted entries whose sign is that of their total; a total of zero counts as positive.

    ``normalize`` divides by the sum of the weights of the entries kept (section 3.3 of the TIES paper has
    their number instead). Branch-free, to vectorise.
    """
    total = ZERO
    for j in range(len(d)):
        total += weight[j] * d[j]
    sign = ONE if total >= 0 else -ONE
    merged, mass = ZERO, ZERO
    for j in range(len(d)):
        entry = weight[j] * d[j]
        opposes = entry * sign <= 0  # false for NaN, which must not vanish
        merged += ZERO if opposes else entry
        mass += ZERO if opposes else weight[j]
    divisor = mass if normalize and mass != 0 else ONE
    return merged / divisor * lambda_
