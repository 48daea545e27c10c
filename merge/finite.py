"""Refusing merged values that cannot be used."""

import numpy as np
import torch

from heterosis.merge.kernels import INFINITY, largest_magnitude

NOT_FINITE = "the merged tensor has NaN or infinity; check the inputs, weights and dtype"


def check_finite(block: torch.Tensor) -> None:
    """Refuse merged elements that cannot be used.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    if block.dtype.is_floating_point and block.numel() and not _all_finite(block):
        raise ValueError(NOT_FINITE)


def _all_finite(block: torch.Tensor) -> bool:
    integer = np.dtype(f"u{block.element_size()}")
    bits = block.view(-1).view(getattr(torch, integer.name)).numpy()
    magnitude = integer.type(np.iinfo(integer).max >> 1)
    return bool(largest_magnitude(bits, magnitude) < INFINITY[str(block.dtype).removeprefix("torch.")])
