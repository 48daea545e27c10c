"""What pydantic finds wrong with a mapping, in our words: where, which rule, what was got, what to do."""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from heterosis.errors import did_you_mean
from heterosis.words import brief

from .parameters import Place

Fault = tuple[Place, str]


def validation_error(faults: list[Fault], value: object) -> ValidationError:
    """Faults as an error that pydantic takes over from a validator, with their places within the value."""
    details = [
        # The text is a context value and not the template, because a template may hold no braces.
        InitErrorDetails(type=PydanticCustomError("fault", "{text}", {"text": text}), loc=place, input=value)
        for place, text in faults
    ]
    return ValidationError.from_exception_data("value", details)


def faults_of(error: ValidationError, section_of: Callable[[Place], type[BaseModel] | None]) -> list[Fault]:
    """Everything pydantic found, as (place, text).

    Args:
        error: What it raised.
        section_of: The model that a place denotes, None where there is a plain value.
    """
    return [_fault_of(detail, section_of) for detail in error.errors(include_url=False)]


def _fault_of(detail: Mapping[str, Any], section_of: Callable[[Place], type[BaseModel] | None]) -> Fault:
    place, kind, got = tuple(detail["loc"]), detail["type"], detail["input"]
    match kind:
        case "fault":
            return place, detail["ctx"]["text"]
        case "value_error":
            return place, str(detail["ctx"]["error"])
        case "missing":
            return place, "must be given"
        case "extra_forbidden":
            section = section_of(place[:-1])
            assert section is not None
            return place, _unknown_key(str(place[-1]), section)
        case "model_type" | "model_attributes_type" | "dict_type":
            section = section_of(place)
            keys = f" with {_listed(section.model_fields)}" if section is not None else ""
            return place, f"must be a mapping{keys}, but got {brief(got)}"
        case "list_type":
            return place, f"must be a list, but got {brief(got)}"
        case "string_type" if place and place[-1] == "[key]":
            return place[:-2], f"keys must be texts, but got {brief(got)}; quote it"
        case "string_type" if got is None:
            return place, "must be given, but is empty"
        case "string_type":
            return place, f"must be a text, but got {brief(got)}; quote it"
        case "int_type":
            return place, f"must be a whole number, but got {brief(got)}"
        case "bool_type" | "bool_parsing":
            return place, f"must be true or false, but got {brief(got)}"
        case _:
            return place, f"{detail['msg']}, but got {brief(got)}"


def _unknown_key(key: str, section: type[BaseModel]) -> str:
    if key == "residual_weight":
        return "has no effect in any method; remove it"
    if key in ("model", "layer_range") and "sources" in section.model_fields:
        return "unknown key; put it into an entry under 'sources'"
    suggestion = did_you_mean(key, section.model_fields)
    far = "parameters" in section.model_fields and "; valid" in suggestion
    return f"unknown key{suggestion}" + (" (settings of the method go under 'parameters')" if far else "")


def dotted(place: Place) -> str:
    """A place as a reader writes it: ``slices[0].sources``."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    return path.removeprefix(".")


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in names)
