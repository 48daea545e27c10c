"""What a method may ask of a whole tensor: sums, dot products, thresholds.

Every answer is exact or summed in an order that does not depend on how the tensor is cut into blocks.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from heterosis.merge.kernels import (
    Row,
    absolute_partials,
    digit_histogram,
    dot_partials,
    each_loop,
    find_equal,
)
from heterosis.merge.methods.base import Bound

Blocks = Callable[[], Iterable[tuple[int, tuple[Row, ...]]]]


@dataclass(frozen=True)
class Cut:
    """The largest entries of a tensor by magnitude: those above ``value``, and at it up to position ``last``."""

    value: float
    last: int


class Statistics:
    """Statistics of the inputs of one tensor, computed when asked for.

    Args:
        blocks: Gives, each time it is called, the tensor's blocks in order: the start, and a row per model.
            Rows may be overwritten by the next block.
        dtype: The rows' type, float32 or float64.
        models: The number of models m.
        numel: Elements of the tensor.
        keys: Each model's address of random masks.
    """

    def __init__(
        self,
        blocks: Blocks,
        dtype: np.dtype[Any],
        models: int,
        numel: int,
        keys: tuple[tuple[int, int], ...],
    ) -> None:
        self._blocks = blocks
        self._dtype = dtype
        self._models = models
        self.numel = numel
        self.keys = keys

    def gram(self) -> tuple[tuple[float, ...], ...]:
        """Dot products of the inputs, ``[m, m]``."""
        return self._gram

    @cached_property
    def _gram(self) -> tuple[tuple[float, ...], ...]:
        m = self._models
        partials: dict[tuple[int, int], list[float]] = {(a, b): [] for a in range(m) for b in range(a, m)}
        for _, rows in self._blocks():
            for (a, b), sums in partials.items():
                sums.extend(dot_partials(rows[a], rows[b]))
        dots = {pair: math.fsum(sums) for pair, sums in partials.items()}
        return tuple(tuple(dots[min(a, b), max(a, b)] for b in range(m)) for a in range(m))

    def absolute_sums(self, each: Bound | None = None) -> tuple[float, ...]:
        """The L1 norm of every input, ``[m]``; with ``each``, of what that step makes of it."""
        partials: list[list[float]] = [[] for _ in range(self._models)]
        for start, rows in self._blocks():
            for j, row in enumerate(rows):
                if each is not None:
                    row = row.copy()
                    apply_each(each, j, start, row)
                partials[j].extend(absolute_partials(row))
        return tuple(math.fsum(sums) for sums in partials)

    def cut(self, model: int, density: float) -> Cut:
        """The cut that keeps the ``max(1, floor(density * n))`` largest of a model's n entries.

        Entries equal in magnitude at the cut are kept in the order of their positions.

        Args:
            model: Position among the inputs.
            density: Fraction to keep, in [0, 1]; 0 keeps none.

        Raises:
            ValueError: If the density is outside [0, 1].
        """
        if not 0.0 <= density <= 1.0:
            raise ValueError(f"`0 <= density <= 1` must hold, but got density={density}")
        if density == 1.0:
            return Cut(-1.0, -1)
        if density == 0.0:
            return Cut(math.inf, -1)
        return self._select(model, max(1, math.floor(density * self.numel)))

    def _select(self, model: int, keep: int) -> Cut:
        """Radix selection over the bit patterns of magnitudes, 16 bits in each pass over the tensor."""
        width = self._dtype.itemsize * 8
        unsigned = np.dtype(f"u{self._dtype.itemsize}")
        magnitude = unsigned.type((1 << (width - 1)) - 1)
        prefix = above = equal = 0  # the cut's higher digits; entries above it; entries that share them
        for shift in range(width - 16, -1, -16):
            counts = np.zeros(1 << 16, dtype=np.int64)
            for _, rows in self._blocks():
                bits = rows[model].view(unsigned) & magnitude
                digit_histogram(bits, unsigned.type(shift), unsigned.type(prefix), counts)
            down_to = above + np.cumsum(counts[::-1])
            skipped = int(np.searchsorted(down_to, keep))
            digit = counts.size - 1 - skipped
            equal = int(counts[digit])
            above = int(down_to[skipped]) - equal
            prefix = prefix << 16 | digit
        value = np.array([prefix], dtype=unsigned).view(self._dtype)[0]
        wanted = keep - above
        if wanted < equal:
            for start, rows in self._blocks():
                position, seen = find_equal(rows[model], value, wanted)
                if position >= 0:
                    return Cut(float(value), start + position)
                wanted -= seen
        return Cut(float(value), self.numel)


def apply_each(step: Bound, model: int, start: int, row: Row) -> None:
    """Apply a program's ``each`` step to one model's row in place."""
    each_loop(step.formula.function)(row, start, typed(tuple(n[model] for n in step.numbers), row.dtype))


def typed(numbers: tuple[object, ...], dtype: np.dtype[Any]) -> tuple[object, ...]:
    """Numbers of a formula with floats in the rows' type, so that nothing is widened by accident."""
    return tuple(
        typed(n, dtype) if isinstance(n, tuple) else dtype.type(n) if isinstance(n, float) else n for n in numbers
    )
