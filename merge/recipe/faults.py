"""What pydantic finds wrong with a mapping, in our words: where, which rule, what was got."""

from collections.abc import Callable, Iterable

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from heterosis.errors import did_you_mean
from heterosis.merge.recipe.parameters import Place

Fault = tuple[Place, str]

_RULES = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a text",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
}
_SIGNS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}


def refuse(faults: Iterable[Fault], value: object) -> None:
    """Raise the faults of a value, if any, within its validator.

    Raises:
        ValidationError: Which pydantic takes over, and puts the place of the value before theirs.
    """
    details = [
        # The text is a context value and not the template, because a template may hold no braces.
        InitErrorDetails(
            type=PydanticCustomError("fault", "{text}", {"text": _encodable(text)}), loc=place, input=value
        )
        for place, text in faults
    ]
    if details:
        raise ValidationError.from_exception_data("value", details)


def fault_of(
    detail: ErrorDetails,
    section_of: Callable[[Place], type[BaseModel] | None],
    show: Callable[[object], str] = repr,
) -> Fault:
    """One of the errors that pydantic found, as (place, text).

    Args:
        detail: The error.
        section_of: The model that a place denotes, None where there is a plain value.
        show: How a value is written.
    """
    place, kind, got, context = detail["loc"], detail["type"], show(detail["input"]), detail.get("ctx", {})
    match kind:
        case "fault":
            return place, context["text"]
        case "value_error":
            return place, str(context["error"])
        case "missing":
            return place, "must be given"
        case "extra_forbidden":
            section = section_of(place[:-1])
            assert section is not None
            return place, f"unknown key{did_you_mean(str(place[-1]), section.model_fields)}"
        case "literal_error":  # expected: "'a', 'b' or 'c'"
            choices = context["expected"].replace(" or ", ", ").replace("'", "")
            return place, f"must be one of {choices}, but got {got}"
        case _ if kind in _SIGNS:
            (bound,) = context.values()
            limit = bound if isinstance(bound, int) else f"{bound:g}"
            return place, f"must be {_SIGNS[kind]} {limit}, but got {got}"
    return place, f"{_RULES.get(kind, detail['msg'])}, but got {got}"


def dotted(place: Place) -> str:
    """A place as a reader writes it: ``slices[0].sources``."""
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    return path.removeprefix(".")


def _encodable(text: str) -> str:
    """Text as pydantic takes it: without the halves of characters that YAML's escapes may give."""
    return text.encode(errors="backslashreplace").decode()
