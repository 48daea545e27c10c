"""What a method asks of a recipe: how many models, a base, and names of parameters that it has."""

import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence

from heterosis.errors import did_you_mean
from heterosis.merge.methods import Method, Parameter, methods
from heterosis.merge.planning.grouping import Settings, Slice
from heterosis.merge.recipe.faults import dotted
from heterosis.merge.recipe.parameters import Setting, coerce, filters, scalars
from heterosis.merge.recipe.recipe import Recipe
from heterosis.merge.recipe.reference import ModelRef


def input_faults(method: Method, slices: Sequence[Slice]) -> Iterator[str]:
    """Numbers of inputs that the method does not take, and a base that is not where it has to be."""
    low, high = method.inputs
    for part in slices:
        refs = [x.ref for x in part.inputs]
        if part.base is None and method.base in ("required", "input"):
            yield f"base_model: {method.name} needs one; name the model that the others are compared to"
            continue
        if part.base is not None and part.base not in refs and method.base != "ignored":
            yield f"{part.where}: {method.name} needs the base model {part.base} among the sources; list it"
            continue
        count = len(refs) - (method.takes_deltas and part.base in refs)
        only_base = method.base == "required" and count == 0 and low <= 1
        if not only_base and not low <= count <= (high if high is not None else count):
            wanted = f"{method.takes} model{'s' if (high or low) > 1 else ''}"
            wanted += " beside the base" if method.takes_deltas and part.base else ""
            counts = part.base_added and not method.takes_deltas
            hint = " (a base_model that is not listed counts as one)" if counts else ""
            yield f"{part.where}: {method.name} takes {wanted}, but got {count}{hint}"


def parameter_faults(method: Method, recipe: Recipe) -> Iterator[str]:
    """Parameters that the method does not have, values that they cannot have, and where they have no effect.

    Those of other methods are no faults but warnings: mergekit-evolve writes such recipes. So are entries that
    never apply, which mergekit accepts.
    """
    elsewhere = {name for other in methods().values() for name in other.parameters}
    for where, settings, owner in _all_settings(recipe):
        for name, setting in settings.items():
            if name in method.parameters:
                parameter = method.parameters[name]
                if owner is not None and not parameter.per_input:
                    text = f"{where}.{name}: holds for the whole merge; write it under the slice or at top level"
                    if parameter.required:
                        yield text
                    else:
                        warnings.warn(f"{text}, as it has no effect here", stacklevel=2)
                yield from (f"{where}.{fault}" for fault in _value_faults(parameter, setting))
                for text in _idle_entries(name, setting):
                    warnings.warn(f"{where}.{text}", stacklevel=2)
            elif name in elsewhere:
                warnings.warn(f"{where}.{name}: has no effect with {method.name}", stacklevel=2)
            elif name != "int8_mask":  # which changes no values in mergekit either
                hint = did_you_mean(name, method.parameters)
                yield f"{where}.{name}: unknown parameter of '{method.name}'{hint}"


def unmatched_filters(
    recipe: Recipe,
    method: Method,
    names_by_model: Mapping[ModelRef, Collection[str]],
    output_names: Collection[str],
) -> Iterator[str]:
    """Filters that are part of no tensor's name; a line for each.

    Args:
        recipe: The recipe.
        method: Its method.
        names_by_model: The tensors of every model: what filters of per-input parameters are compared to.
        output_names: The tensors of the output: what those of the others are compared to.
    """
    for where, settings, owner in _all_settings(recipe):
        for name, setting in settings.items():
            if name not in method.parameters:
                continue
            if method.parameters[name].per_input:
                owners = names_by_model if owner is None else [owner]
                names = {tensor for ref in owners for tensor in names_by_model[ref]}
            else:
                names = set(output_names)
            for place, text in filters(setting):
                if text is not None and not any(text in tensor for tensor in names):
                    parts = {part for tensor in names for part in tensor.split(".") if not part.isdigit()}
                    hint = did_you_mean(text, parts)
                    yield f"{where}.{dotted((name, *place))}.filter: no tensor's name has {text!r}{hint}"


def _value_faults(parameter: Parameter, setting: Setting) -> Iterator[str]:
    """Values that are not of the parameter's kind or outside its range."""
    for place, value in scalars(setting):
        try:
            number = coerce(value, parameter.kind)
            if not isinstance(number, str):
                parameter.within.check(parameter.name, number)
        except ValueError as error:
            yield f"{dotted((parameter.name, *place))}: {error}"


def _idle_entries(name: str, setting: Setting) -> Iterator[str]:
    """Parts of a parameter's setting that never apply."""
    if setting == []:
        yield f"{name}: the gradient is empty, so that nothing is set here"
    earlier: list[str | None] = []
    for place, text in filters(setting):
        for first in earlier:
            if first is None or (text is not None and first in text):
                kind = "an entry without a filter" if first is None else f"the filter {first!r}"
                yield f"{dotted((name, *place))}: never applies after {kind}; put it before that"
                break
        earlier.append(text)


def _all_settings(recipe: Recipe) -> Iterator[tuple[str, Settings, ModelRef | None]]:
    """Every section of parameters, where it is, and the input that it belongs to, if to one."""
    yield "parameters", recipe.parameters, None
    for module, part in recipe.parts():
        prefix = "" if module is None else f"modules.{module}."
        if module is not None:
            yield f"{prefix}parameters", part.parameters, None
        for i, model in enumerate(part.models or ()):
            yield f"{prefix}models[{i}].parameters", model.parameters, model.model
        for i, slice_ in enumerate(part.slices or ()):
            yield f"{prefix}slices[{i}].parameters", slice_.parameters, None
            for j, source in enumerate(slice_.sources):
                yield f"{prefix}slices[{i}].sources[{j}].parameters", source.parameters, source.model
