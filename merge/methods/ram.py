"""RAM: average what task vectors share, keep or reinforce what is one's own.

Reinforced agents change few weights, and often different ones; a mean over all models would dilute what only
one has learnt.
"""

from typing import Annotated

from heterosis.merge.formulas import ONE, ZERO, formula, per_model
from heterosis.merge.methods.base import Program, Uniform, Within, merge_method
from heterosis.merge.statistics import Statistics

PAPER = "https://arxiv.org/abs/2601.13572"
EPSILON = Uniform(0.0, 0.001)

# In these formulas an entry is active unless |d| <= epsilon, which is false for NaN: that must not vanish.


@formula
def pool(i, d, epsilon):  # type: ignore[no-untyped-def]
    """The mean of the active entries."""
    total, count = ZERO, ZERO
    for j in range(len(d)):
        idle = abs(d[j]) <= epsilon
        total += ZERO if idle else d[j]
        count += ZERO if idle else ONE
    return total / max(count, ONE)


@formula
def reinforce(i, d, epsilon, factor):  # type: ignore[no-untyped-def]
    """The mean of the active entries; one that is alone is multiplied by its model's factor."""
    total, count, own = ZERO, ZERO, ONE
    for j in range(len(d)):
        idle = abs(d[j]) <= epsilon
        total += ZERO if idle else d[j]
        count += ZERO if idle else ONE
        own = own if idle else factor[j]
    return total * own if count == ONE else total / max(count, ONE)


@per_model
def activity(d, epsilon):  # type: ignore[no-untyped-def]
    """1 where an entry is active."""
    return ZERO if abs(d) <= epsilon else ONE


@per_model
def alone(active, count):  # type: ignore[no-untyped-def]
    """1 where an entry is the only active one."""
    return active if count == ONE else ZERO


@formula
def activities(i, d, epsilon):  # type: ignore[no-untyped-def]
    """For every model, 1 where its entry is active, then for every model, 1 where it is the only active one."""
    active = activity(d, epsilon)
    count = ZERO
    for j in range(len(active)):
        count += active[j]
    return active + alone(active, count)


@merge_method("ram", paper=PAPER, base="required", search={"epsilon": EPSILON})
def ram(*, epsilon: Annotated[float, Within(0.0)] = 1e-5) -> Program:
    """``b + sum_j a_j d_j / max(1, sum_j a_j)`` per element, where ``a_j = 1`` if ``|d_j| > epsilon``, else 0.

    Args:
        epsilon: Changes up to this size do not count.
    """
    return Program(pool.bind(epsilon))


@merge_method(
    "ramplus_tl",
    paper=PAPER,
    base="required",
    search={"epsilon": EPSILON, "r": Uniform(0.0, 1.0), "alpha": Uniform(0.0, 1.0)},
)
def ramplus_tl(
    deltas: Statistics,
    *,
    epsilon: Annotated[float, Within(0.0)] = 1e-5,
    r: float = 0.1,
    alpha: Annotated[float, Within(0.0)] = 0.2,
) -> Program:
    """As ``ram``, but an element that only model j has changed is ``b + (1 + r min(rho_j, alpha)) d_j``.

    ``rho_j`` is the number of elements that j has changed together with others, over that of those that only j
    has changed.

    Args:
        deltas: Task vectors.
        epsilon: Changes up to this size do not count.
        r: Strength of the reinforcement.
        alpha: Bound of rho.

    Differs from the paper: the numbers are those of a tensor (hence ``_tl``, tensor-local), not of the model.
    """
    counts = deltas.totals(activities.bind(epsilon))
    factors = tuple(
        1.0 + r * min((changed - own) / max(own, 1.0), alpha)
        for changed, own in zip(counts[: deltas.models], counts[deltas.models :], strict=True)
    )
    return Program(reinforce.bind(epsilon, factors))
