"""Spaces and their dimensions: named coordinates, and the unit cube that optimizers see instead of them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from heterosis.evolve.optimizers import Axis, Vector
from heterosis.merge.recipe.recipe import Recipe

Value: TypeAlias = float | int | str


@dataclass(frozen=True)
class Dimension:
    """One free coordinate of a recipe.

    Attributes:
        name: ``parameter/model/layers/filter``, without the parts that there is only one of: ``weight/math``,
            ``density/math/layers.0-9/self_attn``, ``t/layers.10-19/*``. Where parameters are gradients, control
            points stand instead of layers: ``weight/math/depth.0.5``. ``take/math`` is whether the model takes
            part, and ``density@della/math`` a density that other methods of the search have a range of their
            own for.
        low: Smallest value; 0 for choices.
        high: Largest value, above ``low``; the last choice's number.
        initial: Where the search starts.
        parameter: Which of the method's parameters it is.
        model: The model that it belongs to; None if it belongs to the merge.
        log: Whether the unit is the logarithm's; then ``low`` is above 0.
        integer: Whether only whole numbers count.
        choices: Names, if it is one of those and no number.
    """

    name: str
    low: float
    high: float
    initial: Value
    parameter: str
    model: str | None
    log: bool = False
    integer: bool = False
    choices: tuple[str, ...] = ()

    @property
    def axis(self) -> Axis:
        """What an optimizer has to know of it."""
        if self.choices:
            return Axis(len(self.choices), ordered=False)
        return Axis(int(self.high - self.low) + 1) if self.integer else Axis()

    def value(self, u: float) -> Value:
        """The value at ``u`` in [0, 1]; where only levels count, that of the nearest one."""
        if self.choices:
            return self.choices[self.axis.level(u)]
        if self.integer:
            return int(self.low) + self.axis.level(u)
        value = self.low * (self.high / self.low) ** u if self.log else self.low + u * (self.high - self.low)
        return min(self.high, max(self.low, value))  # both formulas may round to just outside

    def unit(self, value: Value) -> float:
        """Where a value is in [0, 1]; one outside the range becomes the nearest end."""
        levels = self.axis.levels
        if levels is not None:
            k = self.choices.index(value) if isinstance(value, str) else round(value - self.low)
            return (min(max(k, 0), levels - 1) + 0.5) / levels
        assert not isinstance(value, str)
        inside = min(self.high, max(self.low, value))
        if self.log:
            return math.log(inside / self.low) / math.log(self.high / self.low)
        return (inside - self.low) / (self.high - self.low)

    def check(self, value: Value) -> None:
        """Check a value.

        Raises:
            ValueError: If it is none of this dimension's.
        """
        if self.choices:
            if value not in self.choices:
                raise ValueError(f"{self.name} must be one of {', '.join(self.choices)}, but got {value!r}")
        elif isinstance(value, str) or not self.low <= value <= self.high:
            raise ValueError(f"`{self.low} <= {self.name} <= {self.high}` must hold, but got {value!r}")
        elif self.integer and value != int(value):
            raise ValueError(f"{self.name} must be a whole number, but got {value!r}")


class Space(ABC):
    """What a search moves in: named dimensions, and a recipe for each of its points.

    Points have two forms: *values*, a mapping from dimension names to natural units, which is what is recorded,
    and *unit vectors* in ``[0, 1]^d``, which is what optimizers work with.
    """

    @property
    @abstractmethod
    def dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions, in a fixed order."""

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The dimensions as an optimizer sees them."""
        return tuple(dimension.axis for dimension in self.dimensions)

    @property
    def initial(self) -> Vector:
        """Where the search starts, as a unit vector ``[d]``."""
        return self.encode({dimension.name: dimension.initial for dimension in self.dimensions})

    def values(self, unit: Sequence[float] | Vector) -> dict[str, Value]:
        """A unit vector ``[d]`` in natural units."""
        return values_at(self.dimensions, unit)

    def encode(self, values: Mapping[str, Value]) -> Vector:
        """Values as a unit vector ``[d]``; values outside their range become the nearest end."""
        return unit_of(self.dimensions, values)

    @abstractmethod
    def decode(self, values: Mapping[str, Value]) -> Recipe:
        """The recipe that values stand for: the same values always give the same recipe.

        Raises:
            ValueError: If a dimension is missing, unknown, or outside its range.
        """

    @abstractmethod
    def values_of(self, recipe: Recipe) -> dict[str, Value] | None:
        """The values that give a recipe with the same settings; None if this space has none."""

    @abstractmethod
    def refine(self, values: Mapping[str, Value], coarser: "Space") -> dict[str, Value] | None:
        """A coarser space's point as the point here with the same recipe values; None if there is none."""


def values_at(dimensions: Sequence[Dimension], unit: Sequence[float] | Vector) -> dict[str, Value]:
    """A unit vector ``[d]`` in natural units."""
    if len(unit) != len(dimensions):
        raise ValueError(f"a point must have {len(dimensions)} coordinates, but got {len(unit)}")
    return {d.name: d.value(float(u)) for d, u in zip(dimensions, unit, strict=True)}


def random_values(dimensions: Sequence[Dimension], seed: int) -> dict[str, Value]:
    """A random point, from a stream of its own, since the optimizer draws from the seed itself."""
    return values_at(dimensions, np.random.default_rng([seed, 1]).random(len(dimensions)))


def unit_of(dimensions: Sequence[Dimension], values: Mapping[str, Value]) -> Vector:
    """Values as a unit vector ``[d]``."""
    check_names(dimensions, values)
    return np.array([d.unit(values[d.name]) for d in dimensions], dtype=np.float64)


def same_values(one: Mapping[str, Value], other: Mapping[str, Value]) -> bool:
    """Whether two points are the same but for rounding."""

    def same(a: Value, b: Value) -> bool:
        return a == b or not (isinstance(a, str) or isinstance(b, str) or abs(a - b) > 1e-9)

    return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())


def check_values(dimensions: Sequence[Dimension], values: Mapping[str, Value]) -> None:
    """Check that there is a value for each dimension, inside its range, and no other.

    Raises:
        ValueError: If not.
    """
    check_names(dimensions, values)
    for d in dimensions:
        d.check(values[d.name])


def check_names(dimensions: Sequence[Dimension], values: Mapping[str, Value]) -> None:
    """Check that there is a value for each dimension and no other.

    Raises:
        ValueError: If not.
    """
    names = {dimension.name for dimension in dimensions}
    if values.keys() != names:
        raise ValueError(
            f"values must be those of the space's dimensions, but {sorted(names - values.keys())} are missing "
            f"and {sorted(values.keys() - names)} unknown"
        )
