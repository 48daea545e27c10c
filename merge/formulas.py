"""Formulas: functions of elements in plain Python, which numba compiles into loops over blocks.

A formula is marked (`formula`, `random_formula`, ...), and bound to its numbers before it is used.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from heterosis.merge.kernels.compiling import inlined, inlined_overload, written_out

# Constants of formulas: as float32 they do not widen float32 arithmetic, and they join float64 unchanged.
ZERO = np.float32(0)
ONE = np.float32(1)
INFINITY = np.float32(np.inf)


@dataclass(frozen=True)
class Cut:
    """The largest entries of a quantity: those above ``value``, and at it up to position ``last``.

    As a number of a formula it is a threshold: what is smaller, at the element's position, is cut off.
    """

    value: float
    last: int

    def threshold(self, position: int, dtype: np.dtype[Any]) -> Any:
        """What an entry there must reach, in the quantity's type: one number up to `last`, one from there on."""
        value = dtype.type(self.value)
        return value if position <= self.last else np.nextafter(value, dtype.type(np.inf))


@dataclass(frozen=True)
class Formula:
    """A function of elements; call it as plain Python (one of rows, compiled), or bind numbers to be compiled.

    Per element it is ``f(i, x, *numbers)``. For a map, ``x`` is a tuple with one value per model; for a step
    applied to each model, one value. ``i`` is the element's position in the flattened tensor.

    Per row, ``x`` holds whole rows of the tensor, ``[rows, length]``, to be changed in place from ``i`` on.

    A wide one gives float64, to be summed; others give floats of the type that they get. One that is summed
    gives a tuple, with a number for each sum.

    A random step gets random numbers after x, in [0, 1): one for the element, or as many as there are in the rows.
    They depend on the recipe's seed, the tensor, the model and the position alone.
    """

    function: Callable[..., Any]
    per_row: bool = False
    random: bool = False
    wide: bool = False

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def bind(self, *numbers: Any, row_length: int = 0, models: tuple[int, ...] | None = None) -> "Bound":
        return Bound(self, numbers, row_length, models)


@dataclass(frozen=True)
class Bound:
    """A formula and its numbers.

    Attributes:
        formula: The function.
        numbers: Scalars, cuts, or tuples of them, of which a step's have one entry per model. Those of a map or
            quantity may be arrays, which broadcast to the tensor as rows: of ``[rows, 1]``, or ``[row_length]``,
            the formula gets the entry of the element's row, or column.
        row_length: Elements of a row, for formulas per row and for arrays; 0 where there are neither.
        models: Those whose values the formula gets, in this order; None for all.
    """

    formula: Formula
    numbers: tuple[Any, ...]
    row_length: int = 0
    models: tuple[int, ...] | None = None


def formula(function: Callable[..., Any]) -> Formula:
    """Mark a per-element function. It may use scalars, tuples, loops, ``abs``, ``min``, ``max`` and ``math``."""
    return Formula(function)


def wide_formula(function: Callable[..., Any]) -> Formula:
    """Mark a quantity for one element that is float64 for all types of values."""
    return Formula(function, wide=True)


def random_formula(function: Callable[..., Any]) -> Formula:
    """Mark a step for one element that takes a random number: ``f(i, x, u, *numbers)``."""
    return Formula(function, random=True)


def random_row_formula(function: Callable[..., Any]) -> Formula:
    """Mark a step for whole rows that takes random numbers, both ``[rows, length]``; numba must compile it."""
    return Formula(function, per_row=True, random=True)


def row_quantity(function: Callable[..., Any]) -> Formula:
    """Mark ``f(rows, *numbers)``, which gives a number and numba must compile.

    ``rows`` is a tuple of one row of the tensor for each model, arrays of float64, which it may overwrite.
    """
    return Formula(function, per_row=True, wide=True)


def per_model(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make ``function(x_j, *numbers)`` a function of all models' values, ``f(x, *numbers)``, that gives a tuple.

    For formulas to call: those that give a number for each model.
    """
    jitable = inlined(function)

    def apply(x: Any, *numbers: Any) -> Any:
        return tuple(function(value, *numbers) for value in x)

    @inlined_overload(apply)
    def apply_overload(x, *numbers):  # type: ignore[no-untyped-def]
        return written_out("apply(x[j], *numbers)", len(x), "x, *numbers", apply=jitable)

    return apply
