"""Values that cannot be used are found, wherever they are."""

import math

import pytest
import torch

from heterosis.merge.computing.finite import check_finite

FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@pytest.mark.parametrize("n", [1, 2, 7, 64, 1001])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_value_that_is_not_finite_is_found(n: int, dtype: torch.dtype, sign: float) -> None:
    largest = torch.full((n,), sign * torch.finfo(dtype).max, dtype=dtype)
    check_finite(largest)
    for at in {0, n // 2, n - 1}:
        for bad in (math.nan, -math.nan, math.inf, -math.inf):
            broken = largest.clone()
            broken[at] = bad
            with pytest.raises(ValueError, match="NaN or infinity"):
                check_finite(broken)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_pattern_of_bits_is_finite_or_not(dtype: torch.dtype) -> None:
    every = torch.arange(1 << 16).to(torch.int16).view(dtype)
    for value, finite in zip(every.split(1), torch.isfinite(every).tolist(), strict=True):
        if finite:
            check_finite(value)
        else:
            with pytest.raises(ValueError, match="NaN or infinity"):
                check_finite(value)


@pytest.mark.parametrize("nothing_to_find", [torch.empty(0), torch.tensor([1, 2]), torch.tensor([True])])
def test_what_cannot_be_infinite_passes(nothing_to_find: torch.Tensor) -> None:
    check_finite(nothing_to_find)
