"""What a naive reference gets: vectors of plain floats."""

from collections.abc import Iterable
from typing import TypeAlias

Vector: TypeAlias = list[float]


class Inputs(list[Vector]):
    """Each model's values, flattened; task vectors where the method works on those.

    Attributes:
        shape: The tensor's shape.
        keys: Each model's address of random masks.
        start: The position of the first value, where these are some rows of a larger tensor.
    """

    def __init__(
        self,
        rows: Iterable[Vector],
        shape: tuple[int, ...],
        keys: tuple[tuple[int, int], ...] = (),
        start: int = 0,
    ):
        super().__init__(rows)
        self.shape = shape
        self.keys = keys
        self.start = start

    def along(self, dim: int) -> list[list[int]]:
        """Positions of the elements that lie along a dimension, -1 or 0: a list for each such line."""
        n = len(self[0])
        if dim == 0 and len(self.shape) > 1:
            lines = n // self.shape[0]
            return [list(range(k, n, lines)) for k in range(lines)]
        return [list(range(start, start + self.shape[-1])) for start in range(0, n, self.shape[-1])]
