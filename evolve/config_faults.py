"""What pydantic finds wrong with a config, in our words: a line for each fault, which names the key."""

from collections.abc import Iterator, Mapping

from pydantic import BaseModel, ValidationError

from heterosis.errors import InputError, did_you_mean

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
    "tuple_type": "must be a list",
}
_SIGNS = {"greater_than": ">", "greater_than_equal": ">=", "less_than": "<", "less_than_equal": "<="}


def faults_of(
    error: ValidationError, sections: Mapping[tuple[str, ...], type[BaseModel]], prefix: tuple[str, ...] = ()
) -> Iterator[str]:
    """Pydantic's errors as lines.

    Args:
        error: What it raised.
        sections: The model of each section, by the keys that lead to it.
        prefix: Where what was validated stands in the config.
    """
    for detail in error.errors(include_url=False):
        place, kind, got = (*prefix, *detail["loc"]), detail["type"], detail["input"]
        context = detail.get("ctx", {})
        path = _dotted(place)
        cause = context.get("error")
        if isinstance(cause, InputError):
            yield from (f"{path}{fault}" for fault in cause.faults)
        elif kind == "value_error":
            yield f"{path}: {cause}"
        elif kind == "missing":
            yield f"{path}: must be given"
        elif kind == "extra_forbidden":
            section = sections[tuple(key for key in place[:-1] if isinstance(key, str))]
            yield f"{path}: unknown key{did_you_mean(str(place[-1]), section.model_fields)}"
        elif kind in _SIGNS:
            bound = next(iter(context.values()))
            limit = bound if isinstance(bound, int) else f"{bound:g}"
            yield f"{path}: must be {_SIGNS[kind]} {limit}, but got {got!r}"
        else:
            yield f"{path}: {_RULES.get(kind, detail['msg'])}, but got {got!r}"


def _dotted(place: tuple[str | int, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).removeprefix(".")
