"""Which optimizer suits a search: the rule behind ``optimizer: auto``."""

from collections.abc import Sequence

from heterosis.evolve.optimizers.base import Axis


def choose_optimizer(axes: Sequence[Axis], objectives: int, budget: int) -> tuple[str, str]:
    """The name of an optimizer, and one sentence that says why it."""
    if objectives > 1:
        return "random", f"{objectives} objectives"
    return "cma", f"one objective over {len(axes)} dimensions"
