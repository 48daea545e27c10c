"""Kinds of values in a config."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from heterosis.merge.recipe.faults import Fault
from heterosis.merge.recipe.reference import ModelRef


class Section(BaseModel):
    """A mapping of a config: no unknown keys, no infinities, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def list_faults(names: Sequence[str]) -> list[Fault]:
    """What is wrong with a list of names that must be there and differ."""
    if not names:  # pydantic's own check of the length counts sound entries only
        return [((), "must list at least one entry, but is empty")]
    counts = Counter(names)
    return [((), f"each may be listed once, but got {name!r} {n} times") for name, n in counts.items() if n > 1]


def not_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, but got {str(value).lower()}")
    return value


def _batch_size(value: object) -> object:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"must be a whole number >= 1, or auto, but got {value!r}")
    return value


def several(value: object) -> Any:
    """One text or path, several, or none, as a list of texts; anything else as it is."""
    if value is None:
        return []
    if isinstance(value, str | os.PathLike):
        value = [value]
    return [_text(entry) for entry in value] if isinstance(value, list | tuple) else value


def _text(value: object) -> object:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def named(value: object) -> object:
    """A name alone, as a section that has it."""
    return {"name": value} if isinstance(value, str) else value


def _model(value: object) -> str:
    return str(ModelRef.parse(_text(value)))


def _documents(value: object) -> object:
    if isinstance(value, float) and 0 < value < 1:
        raise ValueError(f"must be a number of documents, but got {value}; give a count instead of a fraction")
    return not_bool(value)


def _whole_above_one(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError(f"must be a whole number above 1, or a fraction of one, but got {value}")
    return value


Model: TypeAlias = Annotated[str, BeforeValidator(_model)]
Number: TypeAlias = Annotated[float, BeforeValidator(not_bool)]
Positive: TypeAlias = Annotated[float, BeforeValidator(not_bool), Field(gt=0)]
NotNegative: TypeAlias = Annotated[float, BeforeValidator(not_bool), Field(ge=0)]
Fraction: TypeAlias = Annotated[Positive, AfterValidator(_whole_above_one)]
Share: TypeAlias = Annotated[float, BeforeValidator(not_bool), Field(gt=0, le=1)]
Count: TypeAlias = Annotated[int, BeforeValidator(not_bool), Field(ge=1)]
Natural: TypeAlias = Annotated[int, BeforeValidator(not_bool), Field(ge=0)]
DocumentCount: TypeAlias = Annotated[int, BeforeValidator(_documents), Field(ge=1)]
BatchSize: TypeAlias = Annotated[int | Literal["auto"], BeforeValidator(_batch_size)]
Texts: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(several)]
