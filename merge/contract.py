"""What a method asks of a recipe: how many models, a base, and names of parameters that it has."""

import warnings
from collections.abc import Iterator, Sequence

from heterosis.errors import did_you_mean
from heterosis.merge.grouping import Settings, Slice
from heterosis.merge.methods import Method, methods
from heterosis.merge.recipe import Recipe


def input_faults(method: Method, slices: Sequence[Slice]) -> Iterator[str]:
    """Numbers of inputs that the method does not take, and a base that is not where it has to be."""
    low, high = method.inputs
    for part in slices:
        refs = [x.ref for x in part.inputs]
        if method.base in ("required", "input"):
            if part.base is None:
                yield f"base_model: {method.name} needs one; name the model that the others are compared to"
                continue
            if part.base not in refs:
                yield f"{part.where}: {method.name} needs the base model {part.base} among the sources; list it"
                continue
        count = len(refs) - (method.takes_deltas and part.base in refs)
        only_base = method.base == "required" and count == 0 and low <= 1
        if not only_base and not low <= count <= (high if high is not None else count):
            wanted = f"{'exactly' if low == high else 'at least'} {low} model{'s' if low > 1 else ''}"
            wanted += " beside the base" if method.takes_deltas and part.base else ""
            counts = part.base_added and not method.takes_deltas
            hint = " (a base_model that is not listed counts as one)" if counts else ""
            yield f"{part.where}: {method.name} takes {wanted}, but got {count}{hint}"


def parameter_faults(method: Method, recipe: Recipe) -> Iterator[str]:
    """Parameters that the method does not have, or that stand where they have no effect.

    Those of other methods are no faults but warnings: mergekit-evolve writes such recipes.
    """
    elsewhere = {name for other in methods().values() for name in other.parameters}
    for where, settings, is_input in _all_settings(recipe):
        for name in settings:
            if name in method.parameters:
                if is_input and not method.parameters[name].per_input:
                    yield f"{where}.{name}: holds for the whole merge; write it under the slice or at top level"
            elif name in elsewhere:
                warnings.warn(f"{where}.{name}: has no effect with {method.name}", stacklevel=2)
            elif name != "int8_mask":  # which changes no values in mergekit either
                hint = did_you_mean(name, method.parameters)
                yield f"{where}.{name}: unknown parameter of '{method.name}'{hint}"


def _all_settings(recipe: Recipe) -> Iterator[tuple[str, Settings, bool]]:
    """Every section of parameters, where it is, and whether it is an input's own."""
    yield "parameters", recipe.parameters, False
    for module, part in recipe.parts():
        prefix = "" if module is None else f"modules.{module}."
        if module is not None:
            yield f"{prefix}parameters", part.parameters, False
        for i, model in enumerate(part.models or ()):
            yield f"{prefix}models[{i}].parameters", model.parameters, True
        for i, slice_ in enumerate(part.slices or ()):
            yield f"{prefix}slices[{i}].parameters", slice_.parameters, False
            for j, source in enumerate(slice_.sources):
                yield f"{prefix}slices[{i}].sources[{j}].parameters", source.parameters, True
