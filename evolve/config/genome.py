"""The ``genome`` section of a config: which models, how they are merged, and what is searched."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import TYPE_CHECKING, Annotated

from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    field_validator,
)

from heterosis.errors import did_you_mean
from heterosis.evolve.config.layer_paths import CHAMPION, LayerPaths, section
from heterosis.evolve.config.ranges import REST, Ranges, Span
from heterosis.evolve.config.values import Count, Model, Natural, Section, list_faults
from heterosis.merge.recipe.faults import Fault, refuse
from heterosis.merge.recipe.recipe import Dtype
from heterosis.merge.recipe.reference import ModelRef, short_names

if TYPE_CHECKING:
    from heterosis.merge.methods import Method

# What the baselines beside the parents are called; no parent is.
UNIFORM = "uniform"
FIXED_RECIPES = ("task_arithmetic", "ties", "dare_linear")
# Keys that say what is searched of the merge method's parameters.
_OF_PARAMETERS: tuple[str, ...] = ("merge_method", "layer_granularity", "normalize", "allow_negative_weights")
_OF_PARAMETERS += ("smooth", "control_points", "filters", "per_model", "subset", "ranges")


# --- the section ------------------------------------------------------------------------------------------------


def _methods(value: object) -> str | tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"must be a text or a list of texts, but got {value!r}")
    refuse(list_faults(value), value)
    return tuple(value) if len(value) > 1 else str(value[0])


def _points(value: object) -> object:
    """Numbers of control points, coarse to fine."""
    if value is None:
        return None
    given = list(value) if isinstance(value, list | tuple) else [value]
    points = [n for n in given if type(n) is int and n >= 1]
    if not points or points != given or points != sorted(set(points)):
        raise ValueError(f"must be a whole number from 1, or an ascending list of them, but got {value!r}")
    return tuple(points)


class Genome(Section):
    """What is searched.

    Attributes:
        models: The parents; folders or Hub ids, ``base+adapter`` for a LoRA.
        base_model: What the parents were fine-tuned from, for methods that need it.
        merge_method: How they are merged; of several, the search chooses one. Unless given, task arithmetic if
            there is a base model, else linear.
        layer_granularity: Layers that share their parameters; 0 for all. The last group may be smaller. None
            leaves it to the search, which takes control points by its budget.
        normalize: Whether weights are divided by their sum; None for mergekit-evolve's choice by method.
        allow_negative_weights: Makes the range of weights symmetric.
        smooth: Interpolates parameters between groups instead of changing them in steps.
        control_points: Values of each parameter over depth, which are interpolated: mergekit's gradients. Several
            numbers are searched one after the other, coarse to fine.
        filters: Parts of tensor names that get parameters of their own; the first that fits counts.
        per_model: Parameters, besides ``weight``, of which each model has values of its own. All models share
            those of the others, unless ``ranges`` names a model for one.
        tokenizer_source: As in a recipe.
        dtype: As in a recipe.
        out_dtype: As in a recipe.
        subset: How many of the models take part at most; the search chooses which. A base among them always does
            and is not counted.
        ranges: Where each parameter is searched, in place of the method's own ranges: ``[low, high]``, a number
            that fixes it, or ``{low, high, log: true}``; or one of those for each model (by its short name),
            filter (by its text) or both (``model/filter``), and ``*`` for the rest.
        layer_paths: Searches which layers of which models, in which order, make up a model; ``true`` will do.
    """

    models: tuple[Model, ...]
    base_model: Model | None = None
    merge_method: Annotated[
        str | tuple[str, ...],
        PlainValidator(_methods),
        PlainSerializer(lambda value: value if isinstance(value, str) else list(value), when_used="json"),
    ] = Field("", validate_default=True)
    layer_granularity: Natural | None = None
    normalize: bool | None = None
    allow_negative_weights: bool = False
    smooth: bool = False
    control_points: Annotated[tuple[int, ...] | None, BeforeValidator(_points)] = None
    filters: Annotated[tuple[str, ...], BeforeValidator(lambda value: () if value is None else value)] = ()
    per_model: tuple[str, ...] = ()
    tokenizer_source: Model | None = None
    dtype: Dtype = "bfloat16"
    out_dtype: Dtype = None
    subset: Count | None = None
    ranges: Ranges = Field(default={})
    layer_paths: Annotated[LayerPaths | None, BeforeValidator(section)] = None

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the merge methods."""
        return (self.merge_method,) if isinstance(self.merge_method, str) else self.merge_method

    @property
    def model_names(self) -> tuple[str, ...]:
        """A short name for each of the models."""
        return _short_names(self.models)

    def is_per_model(self, parameter: str) -> bool:
        """Whether each model has values of its own of one of the methods' parameters of models."""
        named = {place.split("/")[0] for place in self.ranges.get(parameter, ())}
        return parameter in ("weight", *self.per_model) or not named.isdisjoint(self.model_names)

    @property
    def stage_name(self) -> str | None:
        """What merges are called where paths through the best of them are searched later: as no model is."""
        if self.layer_paths is None or self.layer_paths.after is None:
            return None
        taken = {*self.models, *self.model_names, self.base_model}
        return next(name for name in chain([CHAMPION], (f"{CHAMPION}-{k}" for k in count(2))) if name not in taken)

    @field_validator("models")
    @classmethod
    def _check_models(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        faults = list_faults(models)
        if not faults:  # one folder has several spellings
            firsts: dict[str, str] = {}
            pairs = [(firsts.setdefault(os.path.normpath(model), model), model) for model in models]
            faults = [((), f"each may be listed once, but {a!r} is {b!r}") for a, b in pairs if a != b]
        refuse(faults, models)
        return models

    @field_validator("merge_method")
    @classmethod
    def _default_method(cls, method: str | tuple[str, ...] | None, info: ValidationInfo) -> str | tuple[str, ...]:
        return method or ("linear" if info.data.get("base_model", "") is None else "task_arithmetic")

    @field_validator("control_points")
    @classmethod
    def _check_depth(cls, points: tuple[int, ...] | None, info: ValidationInfo) -> tuple[int, ...] | None:
        other = next((key for key in ("layer_granularity", "smooth") if info.data.get(key)), None)
        if points is not None and other is not None:
            raise ValueError(f"must not be given beside {other}, which says the same in another way; drop one")
        return points

    @field_validator("filters")
    @classmethod
    def _check_filters(cls, filters: tuple[str, ...]) -> tuple[str, ...]:
        faults: list[Fault] = []
        for i, text in enumerate(filters):
            covering = next((other for other in filters[:i] if other and other in text), None)
            if text in ("", "*"):
                fault = f"must be part of a tensor name, but got {text!r}; the rest is a group by itself"
                faults.append(((i,), fault))
            elif covering is not None:
                faults.append(((i,), f"{text!r} would never apply after {covering!r}; put the longer one first"))
        refuse(faults, filters)
        return filters

    @field_validator("subset")
    @classmethod
    def _check_subset(cls, subset: int | None, info: ValidationInfo) -> int | None:
        models = info.data.get("models")
        if subset is not None and models is not None and subset > len(models):
            raise ValueError(f"must be at most the number of models, {len(models)}, but got {subset}")
        return subset

    @field_validator("ranges")
    @classmethod
    def _check_ranges(cls, ranges: dict[str, dict[str, Span]], info: ValidationInfo) -> dict[str, dict[str, Span]]:
        if "models" not in info.data or "filters" not in info.data:
            return ranges
        models, filters = info.data["models"], info.data["filters"]
        # Short names go on holding when the models' revisions are pinned.
        places = {REST: REST} | {text: text for text in filters}
        for model, short in zip(models, _short_names(models), strict=True):
            for name in (short, model):
                places[name] = short
                places |= {f"{name}/{text}": f"{short}/{text}" for text in (*filters, REST) if filters}
        faults: list[Fault] = []
        known = {}
        for parameter, spans in ranges.items():
            known[parameter] = {places.get(key, key): span for key, span in spans.items()}
            faults += [
                ((parameter, key), f"must be a model or a filter, or {REST!r}{did_you_mean(key, places)}")
                for key in spans
                if key not in places
            ]
            if len(known[parameter]) < len(spans):
                faults.append(((parameter,), "a model is named twice, but gets one range"))
        refuse(faults, ranges)
        return known

    @field_validator("layer_paths")
    @classmethod
    def _check_embeddings(cls, paths: LayerPaths | None, info: ValidationInfo) -> LayerPaths | None:
        if paths is None or paths.embeddings is None or "models" not in info.data:
            return paths
        # A short name goes on holding when the models' revisions are pinned.
        shorts = _short_names(info.data["models"])
        known = {name: name for name in shorts} | dict(zip(info.data["models"], shorts, strict=True))
        if paths.after:
            known[CHAMPION] = CHAMPION
        if paths.embeddings not in known:
            hint = did_you_mean(paths.embeddings, known)
            fault = f"must be one of the models, but got {paths.embeddings!r}{hint}"
            refuse([(("embeddings",), fault)], paths)
        return paths.model_copy(update={"embeddings": known[paths.embeddings]})

    def faults(self, methods: Mapping[str, "Method"]) -> Iterator[str]:
        """What the chosen merge methods cannot do with this genome, one line each, without the file's name."""
        if self.layer_paths is not None and self.layer_paths.after is None:
            plain = Genome.model_validate({"models": self.models, "base_model": self.base_model})
            yield from (
                f"genome.{key}: has no effect on layer paths alone; drop it, or write "
                "layer_paths: {after: parameters}"
                for key in _OF_PARAMETERS
                if getattr(self, key) != getattr(plain, key)
            )
            return
        if unknown := [name for name in self.methods if name not in methods]:
            from heterosis.merge.methods import unknown_method  # loads torch

            yield from (f"genome.merge_method: {unknown_method(name)}" for name in unknown)
            return
        chosen = [methods[name] for name in self.methods]
        for method in chosen:
            yield from self._input_faults(method, chosen)
        own = dict.fromkeys(name for method in chosen for name in method.per_input)
        yield from (
            f"genome.per_model[{i}]: must be a parameter that each model has in {' or '.join(self.methods)}, "
            f"but got {name!r}{did_you_mean(name, own)}"
            for i, name in enumerate(self.per_model)
            if name not in own
        )
        yield from self._range_faults(chosen)
        if len(chosen) == 1 and not chosen[0].search and not self.ranges and self.subset is None:
            yield (
                f"genome.merge_method: {chosen[0].name!r} has no parameters to search; choose another method, or "
                "several"
            )

    def optional_models(self, methods: Sequence["Method"]) -> tuple[str, ...]:
        """The models that a subset may leave out: all but the base."""
        named = self.base_model is not None or all(method.base != "input" for method in methods)
        base = self.base_model if named else self.models[0]
        return tuple(model for model in self.models if model != base)

    def inputs_always_there(self, method: "Method", methods: Sequence["Method"]) -> int:
        """How many of a method's inputs no subset leaves out, if these are the methods to choose from."""
        kept = set(self.models) - set(self.optional_models(methods))
        if method.base == "input":
            kept.add(self.base_model or self.models[0])
        elif method.base in ("required", "optional"):
            kept.discard(str(self.base_model))
        return len(kept)

    def _input_faults(self, method: "Method", methods: Sequence["Method"]) -> Iterator[str]:
        name = method.name
        if method.base == "required" and self.base_model is None:
            yield f"genome.base_model: {name!r} needs it; name the model that the others were fine-tuned from"
        alone = len(self.models) == 1 and self.base_model is None and self.layer_paths is None
        if alone and name == "linear" and self.normalize is not False:
            yield "genome.models: one is divided by its own weight in linear; add another, or a base_model"
        counted, note = set(self.models), ""
        if self.base_model is not None and method.base == "input":
            counted.add(self.base_model)
            note = " with the base model"
        elif self.base_model is not None and method.base in ("required", "optional"):
            counted.discard(self.base_model)
            note = " besides the base model"
        least, most = method.inputs
        if self.subset is None or len(counted) < least:
            if not least <= len(counted) <= (most or len(counted)):
                yield f"genome.models: {name!r} merges {method.takes}, but got {len(counted)}{note}"
            return
        always = self.inputs_always_there(method, methods)
        if not least <= self.subset + always <= (most or self.subset + always):
            also = " and the base" if always else ""
            yield f"genome.subset: {name!r} merges {method.takes}, but got at most {self.subset}{also}"

    def _range_faults(self, methods: list["Method"]) -> Iterator[str]:
        names = " or ".join(repr(method.name) for method in methods)
        parameters = [{**method.per_input, **method.per_merge} for method in methods]
        numeric = {key for found in parameters for key, p in found.items() if p.kind in (float, int)}
        for key, spans in self.ranges.items():
            if key not in numeric:
                yield f"genome.ranges.{key}: unknown parameter of {names}{did_you_mean(key, numeric)}"
                continue
            specs = [found[key] for found in parameters if key in found]
            if not any(key in method.per_input for method in methods):
                yield from (
                    f"genome.ranges.{key}.{place}: {key} belongs to the merge, not to a model; name filters only"
                    for place in spans
                    if place.split("/")[0] in self.model_names and place not in self.filters
                )
            for place, span in spans.items():
                where = f"genome.ranges.{key}" + ("" if spans.keys() == {REST} else f".{place}")
                try:
                    for spec in specs:
                        for end in (span.low, span.high):
                            spec.within.check(key, end)
                            if spec.kind is int and (span.log or end != int(end)):
                                got = "a log scale" if span.log else f"{end:g}"
                                raise ValueError(f"must be between whole numbers, evenly, but got {got}")
                except ValueError as fault:
                    yield f"{where}: {fault}"


def _short_names(models: Iterable[str]) -> tuple[str, ...]:
    """Names of models that no other baseline has."""
    return short_names(map(ModelRef.parse, models), reserved=(UNIFORM, *FIXED_RECIPES))
