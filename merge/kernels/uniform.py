"""Random numbers that depend on the element and a key alone."""

import numpy as np

from heterosis.merge.kernels.compiling import compiled, inlined

# Multipliers of a 32-bit mixing function with low bias (C. Wellons, hash-prospector, 2018).
_M1 = np.uint32(0x7FEB352D)
_M2 = np.uint32(0x846CA68B)


@inlined
def _mix(x):  # type: ignore[no-untyped-def]
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(16))) * _M1)
    x = np.uint32(np.uint32(x ^ (x >> np.uint32(15))) * _M2)
    return np.uint32(x ^ (x >> np.uint32(16)))


@inlined
def uniform(start, k, key):  # type: ignore[no-untyped-def]
    """The random number of element ``start + k``, in [0, 1).

    It depends on the element and the key alone. No multiple of 2 ** 32 lies in between: what is above the lower 32
    bits is taken from ``start``, for which the loop over k stays within 32 bits and is twice as fast.
    """
    x = _mix(np.uint32(np.uint32((start + key[0]) & 0xFFFFFFFF) + np.uint32(k)))
    x = _mix(np.uint32(x ^ np.uint32((key[1] ^ (start >> 32)) & 0xFFFFFFFF)))
    # The upper 24 bits, which float32 holds exactly.
    return np.float32(np.int32(x >> np.uint32(8))) * np.float32(2.0**-24)


@compiled
def fill_uniform(start, key, out):  # type: ignore[no-untyped-def]
    """The random numbers of the elements from ``start`` on."""
    at = 0
    while at < out.shape[0]:
        part = out[at : min(out.shape[0], at + (1 << 32) - (start + at) % (1 << 32))]
        for k in range(np.int32(part.shape[0])):
            part[k] = uniform(start + at, k, key)
        at += part.shape[0]
