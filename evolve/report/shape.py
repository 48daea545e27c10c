"""What a recipe does over depth: its parameters layer by layer, or its path through models' layers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from heterosis.merge.recipe.parameters import Setting, evaluate_setting, filters
from heterosis.merge.recipe.recipe import InputModel, ModelRef, Recipe, Source

# The parameters of each model by its short name, and under None those of the merge.
Sections: TypeAlias = Mapping[str | None, Mapping[str, Setting]]

_SAMPLES = 25  # of a gradient over models whose layers nobody counted


@dataclass(frozen=True)
class Series:
    """One parameter over the layers of the output.

    Attributes:
        parameter: As the recipe spells it.
        model: Short name of the model that it belongs to; None if it belongs to the merge.
        filter: Part of the names of the tensors that it holds for; None for all (others).
        values: One for each layer, or evenly spaced; None where the model has no part.
    """

    parameter: str
    model: str | None
    filter: str | None
    values: tuple[float | None, ...]

    @property
    def flat(self) -> bool:
        """Whether it is the same at any depth."""
        return len(set(self.values)) == 1


@dataclass(frozen=True)
class Step:
    """A layer of the output that is one model's: which, and by what it is multiplied, where that is not 1."""

    model: str
    layer: int
    scale: float | None


@dataclass(frozen=True)
class Shape:
    """A recipe over depth.

    Attributes:
        name: Of the recipe, where it is a stage of another.
        method: Its merge method.
        layers: Of the output; None if unknown, then values are samples from the first layer to the last.
        stepped: Whether values change in steps, from one group of layers to the next.
        series: Its parameters.
        path: Its layers, where each is taken from one model.
        constants: Settings that are the same everywhere and belong to no model, as text.
    """

    name: str | None
    method: str
    layers: int | None
    stepped: bool
    series: tuple[Series, ...]
    path: tuple[Step, ...]
    constants: Mapping[str, str]


def shapes_of(recipe: Recipe, short: Callable[[ModelRef], str], layers: int | None) -> tuple[Shape, ...]:
    """A recipe and its stages over depth, the stages first.

    Args:
        recipe: The recipe.
        short: Names a model.
        layers: Of each model, if known.
    """
    return tuple(_shape_of(own, short, layers) for own in (*recipe.stages, recipe))


def _shape_of(recipe: Recipe, short: Callable[[ModelRef], str], layers: int | None) -> Shape:
    constants, shared = _split(recipe.parameters)
    if recipe.slices and all(len(own.sources) == 1 for own in recipe.slices):
        return Shape(recipe.name, recipe.merge_method, None, True, (), tuple(_path(recipe, short)), constants)
    # For each stretch of layers, the sections that hold there: of each model, and of the merge.
    stretches: list[tuple[int, Sections]] = []
    if recipe.slices:
        layers = 0
        for own in recipe.slices:
            first, last = own.sources[0].layer_range
            stretches.append((last - first, _sections(own.sources, {**shared, **own.parameters}, short)))
            layers += last - first
    else:
        stretches.append((layers or _SAMPLES, _sections(recipe.models or (), shared, short)))
    series = tuple(_series(stretches))
    return Shape(recipe.name, recipe.merge_method, layers, bool(recipe.slices), series, (), constants)


def _sections(
    inputs: Sequence[Source | InputModel], shared: Mapping[str, Setting], short: Callable[[ModelRef], str]
) -> Sections:
    sections: dict[str | None, Mapping[str, Setting]] = {None: shared}
    return sections | {short(own.model): own.parameters for own in inputs}


def _series(stretches: Sequence[tuple[int, Sections]]) -> Iterator[Series]:
    keys = dict.fromkeys(
        (parameter, model, text)
        for _, sections in stretches
        for model, section in sections.items()
        for parameter, setting in section.items()
        for text in _filters(setting)
    )
    for parameter, model, text in sorted(keys, key=lambda key: (key[0], key[2] or "", key[1] or "")):
        values: list[float | None] = []
        for length, sections in stretches:
            setting = sections.get(model, {}).get(parameter)
            for layer in range(length):
                t = layer / (length - 1) if length > 1 else 1.0
                values.append(None if setting is None else _number(setting, text, t))
        if any(value is not None for value in values):
            yield Series(parameter, model, text, tuple(values))


def _filters(setting: Setting) -> list[str | None]:
    """The filters of a setting; None for what all tensors get, or the rest of them."""
    return [text for _, text in filters(setting)] or [None]


def _split(parameters: Mapping[str, Setting]) -> tuple[dict[str, str], dict[str, Setting]]:
    """A merge's own settings: those that are one value, as text; and those that vary."""
    constants = {key: str(value) for key, value in parameters.items() if not isinstance(value, list | dict)}
    return constants, {key: value for key, value in parameters.items() if key not in constants}


def _path(recipe: Recipe, short: Callable[[ModelRef], str]) -> Iterator[Step]:
    for own in recipe.slices or ():
        source = own.sources[0]
        setting = {**recipe.parameters, **own.parameters, **source.parameters}.get("scale", 1.0)
        # The factor is on what layers add, by filters; what no filter matches is left alone.
        factors = [_number(setting, text, 0.0) for text in _filters(setting)]
        scale = next((factor for factor in factors if factor not in (None, 1.0)), None)
        for layer in range(*source.layer_range):
            yield Step(short(source.model), layer, scale)


def _number(setting: Setting, text: str | None, t: float) -> float | None:
    """A setting's value where a filter matches, or none does; None if it is no number."""
    value = evaluate_setting(setting, text or "", t)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
