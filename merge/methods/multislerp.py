"""Multi-SLERP: the weighted mean of directions on the sphere, at the weighted mean of norms."""

import math
from typing import Annotated

import numpy as np

from heterosis.merge.methods.base import PerInput, Program, Uniform, Within, merge_method
from heterosis.merge.methods.combine import averaging, combine
from heterosis.merge.statistics import Statistics

# A mean of directions that is shorter than this, in units of the weights, is rounding: the dot products are good
# to some 1e-13, and this is the root.
ROUNDING = 1e-6


@merge_method(
    "multislerp",
    paper="https://goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    base="optional",
    search={"weight": Uniform(0.0, 1.0)},
)
def multislerp(
    tensor: Statistics,
    *,
    weight: PerInput,
    normalize_weights: bool = True,
    eps: Annotated[float, Within(0.0)] = 1e-8,
) -> Program:
    """``(sum_j w_j |x_j|) m / |m|`` with the mean direction ``m = sum_j w_j u_j``, ``u_j = x_j / (|x_j| + eps)``.

    With a base model, the x_j are the task vectors ``d_j``, and the base is added. A single input is taken as
    it is, with a base model up to its task vector's rounding. Each tensor is one vector.

    The method as published goes on from ``n = m / |m|``: it projects the directions onto the tangent space
    there, adds them up, ``T = sum_j w_j (u_j - (u_j . n) n)``, and follows T back onto the sphere. But
    ``T = m - (m . n) n = m - |m| n = 0`` for all inputs and weights, so that what is left is n itself, times
    ``cos eps``, as eps is added to ``|T|``.

    Args:
        tensor: The inputs.
        weight: Share of each input.
        normalize_weights: Whether to divide the weights by their sum.
        eps: Added to norms; also the length at which m counts as none.

    Raises:
        ValueError: If weights sum to zero under ``normalize_weights``; if m vanishes, as between opposite
            vectors, of more than two inputs. Two inputs are then averaged, ``sum_j w_j x_j``.

    Differs from mergekit: T is zero, not its rounding; m has vanished also if nothing but rounding is left
    of it; inputs that are all zero give zero however many there are.
    """
    if tensor.models == 1:
        return Program(combine.bind((1.0,)))
    shares = averaging(weight, "normalize_weights") if normalize_weights else weight
    w, gram = np.array(shares), np.array(tensor.gram())
    norms = np.sqrt(gram.diagonal())
    directions = w / np.maximum(norms + eps, np.finfo(np.float64).tiny)  # m = sum_j directions_j x_j
    length = math.sqrt(max(directions @ gram @ directions, 0.0))  # in this order NaN stays
    if length <= max(eps, ROUNDING * np.abs(w).sum()):
        if tensor.models > 2 and norms.any():
            raise ValueError(
                f"the weighted directions of the inputs cancel out, so there is none between them; change the "
                f"weights, which are {list(weight)}"
            )
        return Program(combine.bind(shares))
    radius = math.cos(eps) * (w @ norms)
    return Program(combine.bind(tuple((radius / length * directions).tolist())))
