"""Refusing merged values that cannot be used."""

import math

import torch

# Integers as wide as a float.
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_finite(block: torch.Tensor) -> None:
    """Refuse merged elements that cannot be used.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    if block.dtype.is_floating_point and block.numel() and not _all_finite(block):
        raise ValueError("the merged tensor has NaN or infinity; check the inputs, weights and dtype")


def _all_finite(block: torch.Tensor) -> bool:
    """Whether no entry is NaN or infinite.

    Two maxima of the bits, found as fast as they are read. As signed integers, those of positive floats are in the
    order of their sizes, with infinity and NaN above all; as unsigned ones, those of negative floats, which are
    above the positive ones.
    """
    integer = _INTEGERS[block.element_size()]
    infinity = int(torch.tensor(math.inf, dtype=block.dtype).view(integer))
    signed = block.view(integer).numpy()
    unsigned = signed.view(f"u{signed.itemsize}")
    return bool(signed.max() < infinity and unsigned.max() < infinity + (1 << 8 * signed.itemsize - 1))
