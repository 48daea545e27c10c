"""Random masks addressed by seed, tensor, model and element.

An element's random number depends on nothing else, so any block, thread, device or order gives the same
mask, and elements dropped at one density stay dropped at every lower one.
"""

import hashlib

import numpy as np

from heterosis.merge.methods.base import ZERO, formula

# Multipliers of a 32-bit mixing function with low bias (C. Wellons, hash-prospector, 2018).
_M1 = 0x7FEB352D
_M2 = 0x846CA68B
_MASK = 0xFFFFFFFF


def mask_key(seed: int, tensor: str, position: int) -> tuple[int, int]:
    """Two 32-bit words that address the mask of one tensor of the model at ``position`` in the recipe."""
    digest = hashlib.blake2b(f"{seed}\0{tensor}\0{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


@formula
def drop(i, d, density, scale, low, high):  # type: ignore[no-untyped-def]
    """Keep ``d`` with probability ``density``, times ``scale``. ``low``, ``high``: a mask's key."""
    x = (i + low) & _MASK
    x = ((x ^ (x >> 16)) * _M1) & _MASK
    x = ((x ^ (x >> 15)) * _M2) & _MASK
    x = (x ^ (x >> 16)) ^ ((high ^ (i >> 32)) & _MASK)
    x = ((x ^ (x >> 16)) * _M1) & _MASK
    x = ((x ^ (x >> 15)) * _M2) & _MASK
    x = x ^ (x >> 16)
    # The upper 24 bits, which float32 holds exactly.
    uniform = np.float32(x >> 8) * np.float32(2.0**-24)
    return d * scale if uniform < density else ZERO
