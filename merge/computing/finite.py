"""Refusing merged values that cannot be used, and saying whose fault they are."""

import math

import numpy as np
import torch

from heterosis.merge.kernels import INFINITY, largest_magnitude
from heterosis.merge.models.sources import TensorSource
from heterosis.merge.plan import TensorOp

_BLOCK = 1 << 18  # elements of an input that are looked at together


class NotFiniteError(ValueError):
    """A merged value is NaN or infinite."""

    def __init__(self) -> None:
        super().__init__("the merged tensor has NaN or infinity")


def check_finite(block: torch.Tensor) -> None:
    """Refuse merged elements that cannot be used.

    Raises:
        NotFiniteError: If one is NaN or infinite.
    """
    if block.dtype.is_floating_point and block.numel() and not _all_finite(block):
        raise NotFiniteError


def cause_of(op: TensorOp) -> str:
    """What is at fault where a merged tensor is not finite; inputs are read again."""
    broken = [str(ref) for ref, source in zip(op.models, op.sources, strict=False) if not is_finite(source)]
    if not broken:
        return "though no input has; check weights and dtype"
    names = list(dict.fromkeys(broken))
    return f"as {' and '.join(names)} {'has' if len(names) == 1 else 'have'}; use another model"


def is_finite(source: TensorSource) -> bool:
    """Whether all elements of an input are finite numbers; it is read for that."""
    numel = math.prod(source.shape)
    wide = torch.float64 if source.dtype == torch.float64 else torch.float32
    for start in range(0, numel, _BLOCK):
        block = torch.empty(min(_BLOCK, numel - start), dtype=wide)
        try:
            source.read(start, start + len(block), block)
        except (ValueError, ArithmeticError):  # of an earlier stage's result
            return False
        if not _all_finite(block):
            return False
    return True


def _all_finite(block: torch.Tensor) -> bool:
    integer = np.dtype(f"u{block.element_size()}")
    bits = block.view(-1).view(getattr(torch, integer.name)).numpy()
    magnitude = integer.type(np.iinfo(integer).max >> 1)
    return bool(largest_magnitude(bits, magnitude) < INFINITY[str(block.dtype).removeprefix("torch.")])
