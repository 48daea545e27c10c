"""NearSwap: take the other model where it is near the base."""

from typing import Annotated

import numpy as np

from heterosis.merge.formulas import ONE, formula
from heterosis.merge.methods.base import Program, Uniform, Within, merge_method

NEAREST = np.float32(1e-6)  # smaller distances count as this one


@formula
def swap(i, x, t):  # type: ignore[no-untyped-def]
    """Interpolate from the first value to the second, the further the closer they are."""
    share = min(t / max(abs(x[0] - x[1]), NEAREST), ONE)
    return share * x[1] + (ONE - share) * x[0]


@merge_method(
    "nearswap",
    paper="https://huggingface.co/alchemonaut/QuartetAnemoi-70B-t0.0001",
    base="input",
    inputs=(2, 2),
    search={"t": Uniform(0.0, 0.01)},
)
def nearswap(*, t: Annotated[float, Within(0.0)]) -> Program:
    """``s x + (1 - s) b`` with ``s = min(t / max(|x - b|, 1e-6), 1)`` for each element.

    x is the other model. It is taken where it is within t of the base b, and elsewhere b moves by t towards x.

    Args:
        t: Distance up to which the other model is taken; 0 gives the base.
    """
    return Program(swap.bind(t))
