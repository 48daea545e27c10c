"""Quantities of a tensor: a number for every element, from the values of all models there.

A quantity is a bound map formula. Cuts among its numbers divide the tensor into segments, in each of which the
numbers that a loop gets are the same.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from heterosis.merge.formulas import Bound, Cut, formula
from heterosis.merge.kernels import Inputs, Values, are_told_apart, map_loop, source_hash
from heterosis.merge.workspace import Workspace

T = TypeVar("T")

# Where it begins and ends, and what holds there.
Segment: TypeAlias = tuple[int, int, T]


class Blocks(Protocol):
    """A tensor's inputs, block after block."""

    def __call__(self, row_length: int = 1, start: int = 0) -> Iterable[tuple[int, Inputs]]:
        """Blocks of whole rows, in order, without those that end before ``start``: each with where it begins.

        The next block may overwrite these.
        """


@formula
def magnitude(i, x):  # type: ignore[no-untyped-def]
    """``|x_j|``, of the one model j that it is bound to."""
    return abs(x[0])


class Quantities:
    """Quantities of one tensor.

    Args:
        blocks: The tensor's blocks; calling it again begins again.
        dtype: The values' type, float32 or float64.
        numel: How many elements the tensor has.
        workspace: Where blocks of floats are kept.
    """

    def __init__(self, blocks: Blocks, dtype: np.dtype[Any], numel: int, workspace: Workspace) -> None:
        self.blocks = blocks
        self.dtype = dtype
        self.numel = numel
        self._workspace = workspace
        self._segments: dict[int, tuple[Bound, list[Segment[tuple[object, ...]]]]] = {}

    def values(self, quantity: Bound, start: int, inputs: Inputs) -> Values:
        """A quantity's values in a block; the next call overwrites them."""
        dtype = np.dtype(np.float64) if quantity.formula.wide else self.dtype
        values = self._workspace.array("values", (inputs.size,), dtype)
        loop, length = map_loop(quantity.formula.function), quantity.row_length or self.numel
        for at, stop, numbers in clipped(self.segments(quantity), start, start + inputs.size):
            part, out = inputs.part(at - start, stop - start), values[at - start : stop - start]
            loop(models_of(quantity, part), part.base, None, at, length, None, None, None, numbers, out)
        return values

    def segments(self, quantity: Bound) -> list[Segment[tuple[object, ...]]]:
        """A quantity's numbers, segment by segment."""
        known = self._segments.get(id(quantity))
        if known is None:
            ranges = between(0, self.numel, cuts_in(quantity.numbers))
            numbers = [(at, stop, typed(quantity.numbers, self.dtype, at)) for at, stop in ranges]
            known = self._segments[id(quantity)] = (quantity, numbers)  # which keeps it from being another's id
        return known[1]

    def pieces(self, size: int) -> Iterator[tuple[int, Inputs]]:
        """The tensor in pieces that end where multiples of ``size`` do, at the latest."""
        for start, inputs in self.blocks():
            yield from pieces(start, inputs, size)


def models_of(quantity: Bound, inputs: Inputs) -> tuple[Values, ...]:
    """The values of the models that a quantity is of."""
    return inputs.models if quantity.models is None else tuple(inputs.models[j] for j in quantity.models)


def is_kept(quantity: Bound) -> bool:
    """Whether what is made of a quantity may be kept by its key: it needs no numbers of a recipe."""
    return not quantity.numbers and are_told_apart(quantity.formula.function)


def key_of(quantity: Bound) -> tuple[object, ...]:
    """What a quantity that `is_kept` depends on, beside the inputs."""
    return *origin_of(quantity.formula.function), quantity.models


def origin_of(function: Callable[..., Any]) -> tuple[str, str, str]:
    """What tells a function of a module, and its source, from others."""
    return function.__module__, function.__qualname__, source_hash(function)


# --- parts of a tensor ------------------------------------------------------------------------------------------


def pieces(start: int, inputs: Inputs, size: int) -> Iterator[tuple[int, Inputs]]:
    """A block in pieces that end where multiples of ``size`` do, at the latest."""
    stop = start + inputs.size
    if start // size == (stop - 1) // size:
        yield start, inputs
        return
    for at in range(start // size * size, stop, size):
        first, last = max(at, start), min(at + size, stop)
        yield first, inputs.part(first - start, last - start)


def between(start: int, stop: int, cuts: Iterable[Cut], length: int | None = None) -> list[tuple[int, int]]:
    """A range in pieces in which the thresholds of cuts stay the same, up to multiples of a ``length``."""
    ends = {cut.last + 1 for cut in cuts if start <= cut.last < stop - 1}
    if length is not None:
        ends.update(range((start // length + 1) * length, stop, length))
    return list(pairwise(sorted({start, *ends, stop})))


def clipped(segments: Sequence[Segment[T]], start: int, stop: int) -> Iterator[Segment[T]]:
    """What there is of segments in ``[start, stop)``."""
    for first, last, content in segments:
        at, end = max(start, first), min(stop, last)
        if at < end:
            yield at, end, content


# --- numbers of formulas ----------------------------------------------------------------------------------------


def cuts_in(numbers: Iterable[object]) -> Iterator[Cut]:
    """The cuts among a formula's numbers."""
    for number in numbers:
        if isinstance(number, Cut):
            yield number
        elif isinstance(number, tuple):
            yield from cuts_in(number)


def typed(numbers: tuple[object, ...], dtype: np.dtype[Any], position: int = 0) -> tuple[object, ...]:
    """Numbers of a formula with floats in the values' type, so that nothing is widened by accident.

    Args:
        numbers: Cuts among them become their thresholds.
        dtype: The values' type.
        position: Where in the tensor.
    """
    with np.errstate(over="ignore"):  # what becomes infinite is found in the merged tensor
        return tuple([_typed(number, dtype, position) for number in numbers])


def _typed(number: object, dtype: np.dtype[Any], position: int) -> object:
    if isinstance(number, tuple):
        return tuple([_typed(one, dtype, position) for one in number])
    if isinstance(number, Cut):
        return number.threshold(position, dtype)
    if isinstance(number, np.ndarray) and number.dtype.kind == "f":
        return number.astype(dtype, copy=False)
    return dtype.type(number) if isinstance(number, float) else number
