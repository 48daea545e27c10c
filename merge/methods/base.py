"""What a merge method is, and the registry of them.

A method is a pure function from parameters to a :class:`Program`: the numbers of a per-element formula.
It runs once per tensor. The formula, its *map*, then runs once per element over blocks, compiled::

    @merge_method("task_arithmetic", paper="...", base="required", search={"weight": Uniform(0.0, 1.5)})
    def task_arithmetic(*, weight: PerInput, normalize: bool = False, lambda_: float = 1.0) -> Program:
        return Program(combine.bind(scaling(weight, normalize, lambda_)))

Keyword parameters are the recipe's: ``PerInput`` ones have a value for each model (``weight``, ``density``),
the others one for the merge (``t``, ``normalize``). A trailing underscore avoids Python's keywords and is
not part of the recipe's name: ``lambda_`` is ``lambda``. A range stands in the annotation:
``density: Annotated[PerInput, Within(0, 1)]``. A method that needs more of the tensor than its elements one by
one takes a positional :class:`~heterosis.merge.statistics.Statistics` first, and asks it for thresholds, dot
products or sums.

The first sentence of the docstring is the method's formula; the table of methods in the docs quotes it.

Every module of this package is imported on first use of the registry, so a new method is one new file.
"""

import importlib
import inspect
import pkgutil
import sys
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias, get_args

from heterosis.errors import InputError, collecting, did_you_mean, within
from heterosis.merge.formulas import Bound
from heterosis.words import first_line

MEND = "mend it, or move it elsewhere"
OWN = "or one of your own, with --import MODULE"

PerInput: TypeAlias = tuple[float, ...]
BaseRole: TypeAlias = Literal["required", "optional", "input", "ignored"]


@dataclass(frozen=True)
class Uniform:
    """A search range, both ends included."""

    low: float
    high: float


@dataclass(frozen=True)
class Within:
    """The range of a parameter, both ends included; None for no bound."""

    low: float | None = None
    high: float | None = None

    def check(self, name: str, value: float) -> None:
        """Check a value.

        Raises:
            ValueError: If it is outside.
        """
        below = self.low is not None and not value >= self.low
        above = self.high is not None and not value <= self.high
        if below or above:
            raise ValueError(f"`{self.rule(name)}` must hold, but got {name}={value}")

    def rule(self, name: str) -> str:
        """The range as an inequality."""
        low = "" if self.low is None else f"{self.low:g} <= "
        high = "" if self.high is None else f" <= {self.high:g}"
        return f"{low}{name}{high}"


Fractions: TypeAlias = Annotated[PerInput, Within(0.0, 1.0)]


@dataclass(frozen=True)
class Program:
    """What to do with the elements of one tensor.

    Attributes:
        map: Merges the values of all models into one.
        each: Applied before it to every model's values; entry ``j`` of each of its numbers belongs to model ``j``.
        scale: A factor for each model's values after that.
    """

    map: Bound
    each: Bound | None = None
    scale: PerInput | None = None


@dataclass(frozen=True)
class Parameter:
    """One of a method's parameters.

    Attributes:
        name: As a recipe spells it.
        kind: ``float``, ``int`` or ``bool``.
        per_input: Whether each model has a value of its own.
        required: Whether the recipe must give it.
        default: Otherwise, what it is.
        within: Which values it may have.
        argument: What the method calls it.
    """

    name: str
    kind: type
    per_input: bool
    required: bool
    default: Any = None
    within: Within = Within()
    argument: str = ""


@dataclass(frozen=True)
class Method:
    """A registered merge method.

    Attributes:
        name: As in ``merge_method:``.
        function: The method itself.
        paper: Where it was published.
        base: ``required``: works on task vectors and needs ``base_model``. ``optional``: works on task vectors
            if there is a ``base_model``, else on the models. ``input``: one of the inputs, in the role of the
            first. ``ignored``: the base model has no role.
        inputs: The smallest and largest number of inputs (without the base where they are task vectors).
        parameters: By name.
        search: Ranges that a search takes unless told otherwise, by parameter.
        reduces: Whether it needs statistics of the whole tensor.
    """

    name: str
    function: Callable[..., Program]
    paper: str
    base: BaseRole
    inputs: tuple[int, int | None]
    parameters: Mapping[str, Parameter]
    search: Mapping[str, Uniform]
    reduces: bool

    @property
    def per_input(self) -> Mapping[str, Parameter]:
        return {name: p for name, p in self.parameters.items() if p.per_input}

    @property
    def takes_deltas(self) -> bool:
        """Whether it works on task vectors, of a base model that is not among its inputs."""
        return self.base in ("required", "optional")

    @property
    def takes(self) -> str:
        """How many inputs, in words."""
        low, high = self.inputs
        if high is None:
            return f"at least {low}"
        return f"exactly {low}" if low == high else f"{low} to {high}"

    @property
    def summary(self) -> str:
        """The first paragraph of its docstring: the formula."""
        return " ".join((inspect.getdoc(self.function) or "").split("\n\n")[0].split())

    def program(self, *statistics: Any, **arguments: Any) -> Program:
        """What it makes of its parameters.

        Raises:
            ValueError: If it objects to them, or makes something else.
        """
        program: object = self.function(*statistics, **arguments)
        if not isinstance(program, Program):
            got = type(program).__name__
            raise InputError(
                f"{_place(self.name, self.function)}: must return a Program, but got a {got}; write "
                "Program(formula.bind(...))"
            )
        return program

    @property
    def per_merge(self) -> Mapping[str, Parameter]:
        return {name: p for name, p in self.parameters.items() if not p.per_input}


_METHODS: dict[str, Method] = {}


def merge_method(
    name: str,
    *,
    paper: str,
    base: BaseRole,
    inputs: tuple[int, int | None] = (1, None),
    search: Mapping[str, Uniform] | None = None,
) -> Callable[[Callable[..., Program]], Callable[..., Program]]:
    """Register a merge method. Returns the function unchanged.

    Raises:
        InputError: If its parameters, or what is said of it here, break a rule; with a line for each.
    """

    def register(function: Callable[..., Program]) -> Callable[..., Program]:
        ranges = dict(search or {})
        with within(_place(name, function)):
            parameters, reduces = _read_signature(function)
            other = _METHODS[name].function if name in _METHODS else function
            same = (other.__module__, other.__qualname__) == (function.__module__, function.__qualname__)
            roles = get_args(BaseRole)
            _require(
                # A module that is imported again, or a notebook's cell, may replace what it has registered.
                (same, f"the name is taken by {other.__module__}; choose another"),
                (base in roles, f"base: unknown role {base!r}{did_you_mean(str(base), roles)}"),
                (_is_span(inputs), f"inputs: must be (fewest, most), as (2, 2) or (1, None), but got {inputs!r}"),
                *(
                    (key in parameters, f"search: unknown parameter {key!r}{did_you_mean(key, parameters)}")
                    for key in ranges
                ),
                *(
                    (isinstance(span, Uniform), f"search: {key}: must be Uniform(low, high), but got {span!r}")
                    for key, span in ranges.items()
                ),
            )
        _METHODS[name] = Method(
            name, function, paper, base, inputs, MappingProxyType(parameters), MappingProxyType(ranges), reduces
        )
        return function

    return register


def _place(name: str, function: Callable[..., Program]) -> str:
    """Where a method stands, to begin a fault with."""
    return f"{function.__code__.co_filename}: merge method {name!r}"


def _require(*rules: tuple[bool, str]) -> None:
    """Refuse what breaks rules; each comes with whether it is kept, and what to say if not."""
    if broken := [fault for kept, fault in rules if not kept]:
        raise InputError(*broken)


def _is_number(value: object) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _is_span(inputs: object) -> bool:
    """Whether it is the smallest and the largest number of inputs."""
    match inputs:
        case (int(low), None):
            return low >= 1
        case (int(low), int(high)):
            return 1 <= low <= high
    return False


# The annotations that a parameter may have, and its default with each of them.
_KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    PerInput: ("one number in a tuple, as (1.0,)", lambda v: type(v) is tuple and [*map(_is_number, v)] == [True]),
    float: ("a number", _is_number),
    int: ("a whole number", lambda v: type(v) is int),
    bool: ("True or False", lambda v: type(v) is bool),
}


def _read_signature(function: Callable[..., Program]) -> tuple[dict[str, Parameter], bool]:
    hints = typing.get_type_hints(function, include_extras=True)
    faults: list[str] = []
    parameters: dict[str, Parameter] = {}
    reduces = False
    for p in inspect.signature(function).parameters.values():
        hint = hints.get(p.name)
        hint, *limits = get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
        with collecting(faults), within(p.name):
            if p.kind is inspect.Parameter.KEYWORD_ONLY:
                parameter = _parameter(p, hint, limits)
                parameters[parameter.name] = parameter
            else:
                first = not reduces and hint not in _KINDS
                _require((first, "must come after a `*`, as every parameter but the tensor's Statistics"))
                reduces = True
    if faults:
        raise InputError(*faults)
    return parameters, reduces


def _parameter(p: inspect.Parameter, hint: Any, limits: list[Any]) -> Parameter:
    default, fits = _KINDS.get(hint, ("", lambda value: True))
    required = p.default is inspect.Parameter.empty
    got = "nothing" if hint is None else getattr(hint, "__name__", hint)
    _require(
        (
            hint in _KINDS,
            f"its annotation must be PerInput (a number for each model), float, int or bool, but got {got}",
        ),
        (
            [*map(type, limits)] in ([], [Within]),
            f"its Annotated must have a Within(low, high), but got {limits}",
        ),
        (required or fits(p.default), f"its default must be {default}, but got {p.default!r}"),
    )
    return Parameter(
        p.name.removesuffix("_"),
        float if hint == PerInput else hint,
        hint == PerInput,
        required,
        None if required else p.default,
        limits[0] if limits else Within(),
        p.name,
    )


def import_own(module: str) -> None:
    """Import a module of the user's, which registers its methods; warn of one that has none.

    Raises:
        InputError: If it cannot be imported.
    """
    if module.endswith(".py") or not all(part.isidentifier() for part in module.split(".")):
        meant = ".".join(Path(module.removesuffix(".py")).parts)
        remedy = f"write {meant}" if all(map(str.isidentifier, meant.split("."))) else "write one after it"
        raise InputError(f"--import: must be a module's name, but got {module!r}; {remedy}")
    before = set(methods())
    _import(module, f"--import: {module}", "start in its folder, or name that in PYTHONPATH")
    places = (method.function.__module__ for method in methods().values())
    if before == set(methods()) and not any(f"{place}.".startswith(f"{module}.") for place in places):
        file = getattr(sys.modules[module], "__file__", None) or "it has no file"
        warnings.warn(f"--import: {module} registers no merge method ({file})", stacklevel=2)


def own_modules(names: Iterable[str]) -> dict[str, str]:
    """The modules of those methods that are not this package's, which other processes have to import."""
    modules = {name: get_method(name).function.__module__ for name in names}
    return {name: module for name, module in modules.items() if not module.startswith(f"{__package__}.")}


def check_importable(modules: Mapping[str, str]) -> None:
    """Refuse methods that other processes could not import.

    Args:
        modules: As of `own_modules`.

    Raises:
        InputError: If one is in a script or a notebook.
    """
    if lost := [name for name, module in modules.items() if module == "__main__"]:
        raise InputError(
            f"merge_method: {lost[0]!r} must be in a module that workers can import, but is in a script or a "
            "notebook; move it into a file of its own beside that, and import it"
        )


def load_methods(modules: Mapping[str, str]) -> None:
    """Import the modules of methods, as of `own_modules`.

    Raises:
        InputError: If one cannot be imported, or does not register its method.
    """
    for name, module in modules.items():
        place = f"merge_method: the module {module} of {name!r}"
        _import(module, place, "start the search in its folder, or name that in PYTHONPATH")
        get_method(name)


def _import(module: str, place: str, remedy: str = "") -> None:
    try:
        importlib.import_module(module)
    except InputError:  # of a method, which says where
        raise
    except (Exception, SystemExit) as error:
        cause = f"{type(error).__name__}: {first_line(error)}"
        missing = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        raise InputError(f"{place}: must be importable, but got {cause}; {remedy if missing else MEND}") from error


@cache
def _discover() -> None:
    package = importlib.import_module(__package__)
    for folder in map(Path, package.__path__):
        for module in pkgutil.iter_modules([str(folder)]):
            place = str(folder / f"{module.name}.py")
            _import(f"{__package__}.{module.name}", place)


def methods() -> Mapping[str, Method]:
    """All methods by name."""
    _discover()
    return MappingProxyType(dict(sorted(_METHODS.items())))


def unknown_method(name: str) -> str:
    """What is wrong with a name that no method has."""
    nearest = did_you_mean(name, methods())
    return f"unknown method {name!r}{nearest}" + ("" if "did you mean" in nearest else f"; {OWN}")


def get_method(name: str) -> Method:
    """Look a method up.

    Raises:
        InputError: If there is none of this name; the message has the nearest one.
    """
    registry = methods()
    if name not in registry:
        raise InputError(f"merge_method: {unknown_method(name)}")
    return registry[name]
