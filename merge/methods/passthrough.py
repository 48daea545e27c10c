"""Passthrough: one model's tensors, as they are or scaled."""

from heterosis.merge.methods.base import PerInput, Program, Uniform, merge_method
from heterosis.merge.methods.combine import combine


@merge_method(
    "passthrough",
    paper="https://arxiv.org/abs/2403.13187",
    base="ignored",
    inputs=(1, 1),
    search={"scale": Uniform(0.5, 1.5)},
)
def passthrough(*, scale: PerInput = (1.0,)) -> Program:
    """``scale x``.

    Args:
        scale: Factor of the one input.
    """
    return Program(combine.bind(scale))
