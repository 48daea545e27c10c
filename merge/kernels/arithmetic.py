"""Operations of formulas that numba does not have."""

from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from heterosis.merge.kernels.compiling import inlined_overload


def fused(a: Any, b: Any, c: Any) -> Any:
    """``a b + c`` of float64, for compiled code rounded once: one instruction, and the same on every processor."""
    return a * b + c


@inlined_overload(fused)
def _fused_overload(a, b, c):  # type: ignore[no-untyped-def]
    return lambda a, b, c: _fma(np.float64(a), np.float64(b), np.float64(c))


@intrinsic
def _fma(context, a, b, c):  # type: ignore[no-untyped-def]
    signature = types.float64(types.float64, types.float64, types.float64)
    return signature, lambda context, builder, signature, arguments: builder.fma(*arguments)
