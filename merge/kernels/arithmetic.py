"""Operations of formulas that numba does not have."""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from heterosis.merge.kernels.compiling import inlined_overload


def fused(a: Any, b: Any, c: Any) -> Any:
    """``a b + c``, for compiled code rounded once, the same on every processor; most have an instruction for it.

    Of three float32 in float32, of all else in float64.
    """
    return a * b + c


@inlined_overload(fused)
def _fused_overload(a, b, c):  # type: ignore[no-untyped-def]
    if a == b == c == types.float32:
        return lambda a, b, c: _fma(a, b, c)
    return lambda a, b, c: _fma(np.float64(a), np.float64(b), np.float64(c))


@intrinsic
def _fma(context, a, b, c):  # type: ignore[no-untyped-def]
    return a(a, a, a), lambda context, builder, signature, arguments: builder.fma(*arguments)
