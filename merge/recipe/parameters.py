"""A recipe's settings: scalars, gradients and filters, resolved for one tensor at one position."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from heterosis.errors import did_you_mean

Scalar: TypeAlias = float | int | bool | str
# What a recipe may hold: a scalar, a gradient (a list of scalars), {filter?, value}, or a list of those.
Setting: TypeAlias = Scalar | list[Any] | dict[str, Any]
# Where in a setting a fault is, as keys and indices.
Place: TypeAlias = tuple[str | int, ...]

_TRUE = frozenset({"true", "yes", "on", "1", "y", "t"})
_FALSE = frozenset({"false", "no", "off", "0", "n", "f"})


def as_number(value: Scalar) -> float | int:
    """A number from a number, a boolean, or a string such as ``2e-1``, which YAML 1.1 leaves a string.

    Raises:
        ValueError: If it is no finite number.
    """
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"must be a number, but got {value!r}") from None
    if isinstance(value, bool):
        return int(value)
    if not _is_finite(value):
        raise ValueError(f"must be a finite number, but got {value!r}")
    return value


def as_bool(value: Scalar) -> bool:
    """A boolean from true/false/yes/no/on/off/1/0, in YAML or as a string.

    Raises:
        ValueError: If it is none of those.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _TRUE | _FALSE:
        return value.strip().lower() in _TRUE
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise ValueError(f"must be true or false, but got {value!r}")


def evaluate_setting(setting: Setting, tensor_name: str, t: float, kind: type | None = None) -> Scalar | None:
    """The value of a setting for one tensor.

    Args:
        setting: A setting that `setting_faults` finds nothing wrong with.
        tensor_name: What filters are tested against: a filter matches any name that contains it.
        t: Position in the slice, in [0, 1]; gradients are read there.
        kind: The parameter's type: ``float``, ``int`` or ``bool``. It decides whether a gradient such
            as ``[0, 1]`` is interpolated or stepped. None tells by the values: numbers and numeric strings are
            numbers, the rest stays as it is.

    Returns:
        The value, or None where no filter matched or the list was empty: the next level is asked then.

    Raises:
        ValueError: If a value cannot be read as ``kind``.
    """
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return coerce(setting, kind)
    if not setting:
        return None
    if isinstance(setting[0], dict):
        for conditional in setting:
            # The first match decides, even if its value is an empty list.
            if conditional.get("filter") in (None, "*") or conditional["filter"] in tensor_name:
                return evaluate_setting(conditional["value"], tensor_name, t, kind)
        return None
    return _gradient(setting, t, kind)


def lookup(
    levels: Sequence[Mapping[str, Setting]], parameter: str, tensor_name: str, t: float, kind: type | None = None
) -> Scalar | None:
    """The value of a parameter from the first level that yields one, or None (see `evaluate_setting`).

    Args:
        levels: The ``parameters`` sections that apply, the most specific first.

    Raises:
        ValueError: If a value cannot be read as ``kind``; the message names the parameter.
    """
    for level in levels:
        if parameter in level:
            try:
                value = evaluate_setting(level[parameter], tensor_name, t, kind)
            except ValueError as error:
                raise ValueError(f"parameters.{parameter}: {error}") from None
            if value is not None:
                return value
    return None


def setting_faults(setting: object) -> Iterator[tuple[Place, str]]:
    """Everything that is wrong with the form of a setting: (where in it, which rule and what was got)."""
    if isinstance(setting, dict):
        yield from _conditional_faults(setting)
    elif isinstance(setting, list) and any(isinstance(entry, dict) for entry in setting):
        if not all(isinstance(entry, dict) for entry in setting):
            yield (), "must be all values or all {filter, value} entries, but got both; give the last a filter '*'"
            return
        for i, entry in enumerate(setting):
            for place, fault in _conditional_faults(entry):
                yield (i, *place), fault
    else:
        yield from _value_faults(setting)


def scalars(setting: Setting) -> Iterator[tuple[Place, Scalar]]:
    """Every value in a setting that `setting_faults` finds nothing wrong with, and where in it it is."""
    if isinstance(setting, dict):
        yield from ((("value", *place), value) for place, value in scalars(setting["value"]))
    elif isinstance(setting, list):
        for i, entry in enumerate(setting):
            yield from (((i, *place), value) for place, value in scalars(entry))
    else:
        yield (), setting


def filters(setting: Setting) -> Iterator[tuple[Place, str | None]]:
    """The filter of every ``{filter, value}`` entry, None if it lets all names pass, and where it is."""
    listed = isinstance(setting, list)
    for i, entry in enumerate(setting if isinstance(setting, list) else [setting]):
        if isinstance(entry, dict):
            text = entry.get("filter")
            yield ((i,) if listed else ()), None if text == "*" else text


def _conditional_faults(conditional: dict[Any, Any]) -> Iterator[tuple[Place, str]]:
    for key in conditional:
        if key not in ("filter", "value"):
            yield (str(key),), f"unknown key{did_you_mean(str(key), ('filter', 'value'))}"
    if not isinstance(conditional.get("filter"), str | None):
        yield ("filter",), f"must be part of a tensor's name, but got {conditional['filter']!r}; quote it"
    if "value" not in conditional:
        yield ("value",), "must be given beside the filter"
    else:
        for place, fault in _value_faults(conditional["value"]):
            yield ("value", *place), fault


def _value_faults(value: object) -> Iterator[tuple[Place, str]]:
    for place, scalar in [((i,), v) for i, v in enumerate(value)] if isinstance(value, list) else [((), value)]:
        if scalar is None:
            yield place, "must be given, but is empty"
        elif not isinstance(scalar, bool | int | float | str):
            yield place, f"must be a number, true or false, or a text, but got {scalar!r}"
        elif not _is_finite(scalar):
            yield place, f"must be a finite number, but got {scalar!r}"


def _is_finite(value: Scalar) -> bool:
    """False for NaN, infinities and integers beyond any float, also when spelt as strings."""
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False
    except ValueError:  # an ordinary string
        return True


def coerce(value: Scalar, kind: type | None) -> Scalar:
    """A value as the type of its parameter (see `evaluate_setting`).

    Raises:
        ValueError: If it cannot be read as one.
    """
    if kind is bool:
        return as_bool(value)
    if kind is None:
        if not isinstance(value, str):
            return value
        try:
            return as_number(value)
        except ValueError:
            return value
    number = as_number(value)
    if kind is int:
        if number != int(number):
            raise ValueError(f"must be a whole number, but got {value!r}")
        return int(number)
    return float(number)


def _gradient(values: list[Scalar], t: float, kind: type | None) -> Scalar:
    """Interpolate n numbers evenly spaced over [0, 1]; step through anything else."""
    points = [coerce(value, kind) for value in values]
    s = t * (len(points) - 1)
    i = math.floor(s)
    left, right = points[i], points[min(len(points) - 1, i + 1)]
    if any(isinstance(point, bool | str) for point in points):
        return left
    assert not isinstance(left, str)
    assert not isinstance(right, str)
    return coerce((1 - (s - i)) * left + (s - i) * right, kind)
