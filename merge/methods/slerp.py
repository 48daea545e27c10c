"""SLERP: spherical linear interpolation between two models."""

import math

from heterosis.merge.methods.base import Program, Uniform, merge_method
from heterosis.merge.methods.combine import arc, combine
from heterosis.merge.statistics import Statistics

COLLINEAR = 0.9995


@merge_method(
    "slerp",
    paper="https://dl.acm.org/doi/10.1145/325334.325242",
    base="input",
    inputs=(2, 2),
    search={"t": Uniform(0.0, 1.0)},
)
def slerp(tensor: Statistics, *, t: float) -> Program:
    """``[sin((1-t) theta) a + sin(t theta) b] / sin theta``, theta the angle between a and b as vectors.

    a is the base model and b the other one. Almost collinear tensors, ``|cos theta| > 0.9995``, are
    interpolated linearly. The formula is applied to the tensors themselves, not to unit vectors, so the
    result's norm varies between theirs.

    Args:
        tensor: The two inputs, base first.
        t: Position, 0 at the base; not clamped.

    Differs from the paper (Shoemake, 1985): there the ends have norm one.
    """
    (aa, ab), (_, bb) = tensor.gram()
    norms = [math.sqrt(s) for s in (aa, bb)]
    norms = [n if n > 1e-8 else 1.0 for n in norms]
    cosine = min(1.0, max(-1.0, ab / (norms[0] * norms[1])))
    return Program(combine.bind(tuple(arc(t, cosine, abs(cosine) > COLLINEAR).tolist())))
