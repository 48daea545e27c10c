"""Depth: which layers share their parameters, as groups, or as control points of a gradient."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from heterosis.errors import InputError

Matrix = NDArray[np.float64]

# Control points that are chosen by themselves, in at most so many dimensions in all.
_POINTS = (1, 3)
_MOST_DIMENSIONS = 12
_TRIALS_PER_DIMENSION = 2


@dataclass(frozen=True)
class Depth:
    """How a parameter varies over the layers: a value for each cell.

    Cells are slices of layers, or control points of a gradient: evenly spaced from the first layer to the last,
    linear in between, as in a recipe. Embeddings go with the first cell; final norm and head with the last slice,
    or, as in a recipe, with the *first* point of a gradient.

    Attributes:
        n_layers: Of the models.
        slices: Layers ``[start, stop)`` that share their parameters; all of them in a gradient.
        points: Control points; None for slices.
    """

    n_layers: int
    slices: tuple[tuple[int, int], ...]
    points: int | None

    @classmethod
    def groups(cls, n_layers: int, size: int, *, smooth: bool = False) -> "Depth":
        """Groups of ``size`` layers, the last one of what is left; ``smooth`` makes each a control point."""
        slices = tuple((start, min(start + size, n_layers)) for start in range(0, n_layers, size))
        return cls.gradient(n_layers, len(slices)) if smooth or len(slices) == 1 else cls(n_layers, slices, None)

    @classmethod
    def gradient(cls, n_layers: int, points: int) -> "Depth":
        return cls(n_layers, ((0, n_layers),), points)

    def __len__(self) -> int:
        return len(self.slices) if self.points is None else self.points

    @property
    def sliced(self) -> bool:
        return self.points is None

    @property
    def labels(self) -> list[str]:
        """A name for each cell; none if there is only one."""
        if self.points == 1:
            return [""]
        if self.points is not None:
            return [f"depth.{i / (self.points - 1):.4g}" for i in range(self.points)]
        return [
            f"layers.{start}" if stop == start + 1 else f"layers.{start}-{stop - 1}" for start, stop in self.slices
        ]

    def shares(self) -> Matrix:
        """What each place takes from each cell, ``[places, cells]``: embeddings, every layer, and the head."""
        if self.points is None:
            owner = [i for i, (start, stop) in enumerate(self.slices) for _ in range(start, stop)]
            return np.eye(len(self.slices))[[0, *owner, len(self.slices) - 1]]
        last = self.n_layers - 1
        positions = [0.0, *(layer / last if last else 1.0 for layer in range(self.n_layers)), 0.0]
        return interpolation(positions, self.points)

    def refining(self, coarser: "Depth") -> Matrix | None:
        """What each cell takes from a coarser depth's, so that no place changes; None if there is no way."""
        if self == coarser:
            return np.eye(len(self))
        if self.points is None or coarser.points is None:
            return None
        matrix = interpolation([i / max(1, self.points - 1) for i in range(self.points)], coarser.points)
        return matrix if np.allclose(self.shares() @ matrix, coarser.shares(), rtol=0, atol=1e-12) else None


def interpolation(positions: Sequence[float], points: int) -> Matrix:
    """What a gradient at each position in [0, 1] takes from each of its points, ``[positions, points]``."""
    matrix = np.zeros((len(positions), points))
    for row, t in zip(matrix, positions, strict=True):
        s = t * (points - 1)
        i = min(int(s), points - 1)
        row[i] += 1 - (s - i)
        row[min(i + 1, points - 1)] += s - i
    return matrix


def check_stages(points: Sequence[int], n_layers: int) -> None:
    """Check that there are layers for the points, and that each number of points refines the one before.

    Raises:
        InputError: If not.
    """
    place = "genome.control_points"
    if points[-1] > n_layers:
        raise InputError(f"{place}: must be at most the number of layers, {n_layers}, but got {points[-1]}")
    for coarse, fine in pairwise(points):
        if Depth.gradient(n_layers, fine).refining(Depth.gradient(n_layers, coarse)) is None:
            raise InputError(
                f"{place}: {coarse} points cannot become {fine} without changing the merge; after {coarse} write "
                f"{2 * coarse - 1}, whose points are those and one between each two"
            )


def default_control_points(dimensions: int, n_layers: int, budget: int) -> tuple[int, ...]:
    """Control points for a config that says nothing about depth: few at small budgets, never many dimensions.

    Published searches gained little from more than one group of layers (Akiba et al. 2024 ended with six numbers
    in all). Where layers matter, three points from the start found more in 12 dimensions, with 30 and with 50
    trials, than one, two or five did, or one and then three; where they do not, 12 and 24 dimensions found less
    than 8, 5 or 4 (docs/design/0006-searches-that-were-tried.md). So there are three points where 12 dimensions
    and half of the budget allow them, else one, and one stage; more are for configs that ask for them.

    Args:
        dimensions: Of one point.
        n_layers: Of each model.
        budget: Trials.

    Returns:
        The number of points of the only stage.
    """
    most = min(_MOST_DIMENSIONS, budget // _TRIALS_PER_DIMENSION) // dimensions
    finest = max((n for n in _POINTS if n <= min(most, n_layers)), default=1)
    return (finest,)
