"""Random masks addressed by seed, tensor, model and element.

An element's random number depends on nothing else, so any block, thread, device or order gives the same
mask, and elements dropped at one density stay dropped at every lower one.
"""

import hashlib

import numpy as np

from heterosis.merge.formulas import ZERO, random_formula, random_row_formula
from heterosis.merge.methods.ranks import rank_rows


def mask_key(seed: int, tensor: str, position: int) -> tuple[int, int]:
    """Two 32-bit words that address the mask of one tensor of the model at ``position`` in the recipe."""
    digest = hashlib.blake2b(f"{seed}\0{tensor}\0{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


@random_formula
def drop(i, d, u, density):  # type: ignore[no-untyped-def]
    """Keep ``d`` with probability ``density``."""
    return d if u < density else ZERO


@random_row_formula
def drop_by_rank(i, rows, u, least, step):  # type: ignore[no-untyped-def]
    """Keep entries with probability ``least + step r``; r is the mean rank by magnitude within the row, from 0."""
    first, more = np.float64(least), np.float64(step)
    ranks = np.empty(rows.shape, np.float32)
    rank_rows(rows, ranks)
    for j in range(rows.shape[0]):
        row, of_row, chance = rows[j], ranks[j], u[j]
        for k in range(row.shape[0]):
            row[k] = row[k] if chance[k] < first + more * np.float64(of_row[k]) else ZERO
