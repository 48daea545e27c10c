"""What a merge method is, and the registry of them.

A method is a pure function from parameters to a :class:`Program`: the numbers of a per-element formula.
It runs once per tensor. The formula, its *map*, then runs once per element over blocks, compiled::

    @merge_method("task_arithmetic", paper="...", base="required", search={"weight": Uniform(0.0, 1.5)})
    def task_arithmetic(*, weight: PerInput, normalize: bool = False, lambda_: float = 1.0) -> Program:
        return Program(combine.bind(scaling(weight, normalize, lambda_)))

Keyword parameters are the recipe's: ``PerInput`` ones have a value for each model (``weight``, ``density``),
the others one for the merge (``t``, ``normalize``). A trailing underscore avoids Python's keywords and is
not part of the recipe's name: ``lambda_`` is ``lambda``. A method that needs more of the tensor than its
elements one by one takes a positional :class:`~heterosis.merge.statistics.Statistics` first, and asks it
for thresholds, dot products or sums.

Every module of this package is imported on first use of the registry, so a new method is one new file.
"""

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from heterosis.errors import InputError, did_you_mean

PerInput = tuple[float, ...]

# Constants of formulas: as float32 they do not widen float32 arithmetic, and they join float64 unchanged.
ZERO = np.float32(0)
ONE = np.float32(1)


@dataclass(frozen=True)
class Uniform:
    """A search range, both ends included."""

    low: float
    high: float


@dataclass(frozen=True)
class Formula:
    """A per-element function ``f(i, x, *numbers)``; call it as plain Python, or bind numbers to be compiled.

    For a map, ``x`` is a tuple with one value per model; for a step applied to each model, one value.
    ``i`` is the element's position in the flattened tensor.
    """

    function: Callable[..., Any]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def bind(self, *numbers: Any) -> "Bound":
        return Bound(self, numbers)


@dataclass(frozen=True)
class Bound:
    """A formula and its numbers: scalars, or tuples with one entry per model."""

    formula: Formula
    numbers: tuple[Any, ...]


@dataclass(frozen=True)
class Program:
    """What to do with the elements of one tensor.

    Attributes:
        map: Merges the values of all models into one.
        each: Applied before it to every model's values; entry ``j`` of each of its numbers belongs to model ``j``.
    """

    map: Bound
    each: Bound | None = None


@dataclass(frozen=True)
class Parameter:
    """One of a method's parameters.

    Attributes:
        name: As a recipe spells it.
        kind: ``float`` or ``bool``.
        per_input: Whether each model has a value of its own.
        required: Whether the recipe must give it.
        default: Otherwise, what it is.
    """

    name: str
    kind: type
    per_input: bool
    required: bool
    default: Any = None

    @property
    def argument(self) -> str:
        return "lambda_" if self.name == "lambda" else self.name


@dataclass(frozen=True)
class Method:
    """A registered merge method.

    Attributes:
        name: As in ``merge_method:``.
        function: The method itself.
        paper: Where it was published.
        base: ``required``: works on task vectors and needs ``base_model``. ``input``: one of the inputs, in
            the role of the first. ``ignored``: the base model has no role.
        inputs: The smallest and largest number of inputs (without the base where it is ``required``).
        parameters: By name.
        search: Ranges that a search takes unless told otherwise, by parameter.
        reduces: Whether it needs statistics of the whole tensor.
    """

    name: str
    function: Callable[..., Program]
    paper: str
    base: Literal["required", "input", "ignored"]
    inputs: tuple[int, int | None]
    parameters: Mapping[str, Parameter]
    search: Mapping[str, Uniform]
    reduces: bool

    @property
    def per_input(self) -> Mapping[str, Parameter]:
        return {name: p for name, p in self.parameters.items() if p.per_input}

    @property
    def per_merge(self) -> Mapping[str, Parameter]:
        return {name: p for name, p in self.parameters.items() if not p.per_input}


_METHODS: dict[str, Method] = {}


def formula(function: Callable[..., Any]) -> Formula:
    """Mark a per-element function. It may use scalars, tuples, loops, ``abs``, ``min``, ``max`` and ``math``."""
    return Formula(function)


def merge_method(
    name: str,
    *,
    paper: str,
    base: Literal["required", "input", "ignored"],
    inputs: tuple[int, int | None] = (1, None),
    search: Mapping[str, Uniform] | None = None,
) -> Callable[[Callable[..., Program]], Callable[..., Program]]:
    """Register a merge method. Returns the function unchanged.

    Raises:
        ValueError: If the name is taken, or ``search`` names a parameter that the function does not have.
    """

    def register(function: Callable[..., Program]) -> Callable[..., Program]:
        parameters, reduces = _read_signature(function)
        ranges = dict(search or {})
        if unknown := set(ranges) - set(parameters):
            raise ValueError(f"{name}: search ranges for parameters that it does not have: {sorted(unknown)}")
        if name in _METHODS:
            other = _METHODS[name].function.__module__
            raise ValueError(f"merge method {name!r} is defined twice, in {other} and in {function.__module__}")
        _METHODS[name] = Method(
            name, function, paper, base, inputs, MappingProxyType(parameters), MappingProxyType(ranges), reduces
        )
        return function

    return register


def _read_signature(function: Callable[..., Program]) -> tuple[dict[str, Parameter], bool]:
    hints = typing.get_type_hints(function)
    parameters: dict[str, Parameter] = {}
    reduces = False
    for p in inspect.signature(function).parameters.values():
        if p.kind is not inspect.Parameter.KEYWORD_ONLY:
            reduces = True
            continue
        per_input = hints[p.name] == PerInput
        required = p.default is inspect.Parameter.empty
        kind = float if per_input else hints[p.name]
        name = p.name.removesuffix("_")
        parameters[name] = Parameter(name, kind, per_input, required, None if required else p.default)
    return parameters, reduces


@cache
def _discover() -> None:
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")


def methods() -> Mapping[str, Method]:
    """All methods by name."""
    _discover()
    return MappingProxyType(dict(sorted(_METHODS.items())))


def get_method(name: str) -> Method:
    """Look a method up.

    Raises:
        InputError: If there is none of this name; the message has the nearest one.
    """
    registry = methods()
    if name not in registry:
        raise InputError(f"merge_method: unknown method {name!r}{did_you_mean(name, registry)}")
    return registry[name]
