"""Recipes read back: the point of a search space that gives the settings of a recipe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from heterosis.evolve.config.ranges import REST
from heterosis.evolve.optimizers import Vector
from heterosis.evolve.space.depth import Matrix
from heterosis.evolve.space.dimensions import Value, same_values
from heterosis.evolve.space.genes import METHOD, Gene
from heterosis.merge.recipe.parameters import Setting, filters, lookup
from heterosis.merge.recipe.recipe import ModelRef, Recipe

if TYPE_CHECKING:
    from heterosis.evolve.space.space import SearchSpace
    from heterosis.merge.methods import Method, Parameter

_CLOSE = 1e-9  # of a value or of 1: gradients are interpolated, and rounded

Settings = Mapping[str, Setting]


class _NotHere(Exception):
    """This space has no such point."""


def read_values(space: "SearchSpace", recipe: Recipe) -> dict[str, Value] | None:
    """The values that give a recipe of models named as here the same settings; None if the space has none."""
    try:
        return _Reader(space, recipe).values()
    except _NotHere:
        return None


@dataclass(frozen=True)
class _Slice:
    """Layers that share settings: their number, and those of the merge and of each model."""

    layers: int
    shared: Settings
    own: Mapping[ModelRef, Settings]


class _Reader:
    """A recipe's settings as the profile that each has over embeddings, layers and head."""

    def __init__(self, space: "SearchSpace", recipe: Recipe) -> None:
        self._space, self._recipe = space, recipe
        self._method = next((m for m in space.methods if m.name == recipe.merge_method), None)
        self._slices = _slices(recipe, space.depth.n_layers)
        # As a slices recipe has them: the embeddings go with the first slice's begin, the head with the last's.
        places = [
            (s, layer / (s.layers - 1) if s.layers > 1 else 1.0) for s in self._slices for layer in range(s.layers)
        ]
        self._places = [(self._slices[0], 0.0), *places, (self._slices[-1], 0.0)]

    def values(self) -> dict[str, Value]:
        space, method = self._space, self._method
        if method is None:
            raise _NotHere
        refs = self._models(method)
        found: dict[str, Value] = {d.name: d.initial for d in space.dimensions}
        if METHOD in found:
            found[METHOD] = method.name
        found |= {switch: int(model in refs) for model, switch in space.switches.items()}
        try:
            space.models_of(found)
        except ValueError:  # too few or too many take part
            raise _NotHere from None
        self._check_constants(method)
        weighted = {model: ref for model, ref in refs.items() if model in space.weighted(method)}
        for gene, model, filter_ in space.places():
            if method.name not in gene.methods or (model is not None and model not in weighted):
                continue
            if model is not None:
                owners: list[ModelRef | None] = [weighted[model]]
            else:  # the merge's, or one that all models share
                owners = [*weighted.values()] if gene.parameter in method.per_input else [None]
            first, *others = [self._gene(method, gene, model, filter_, ref) for ref in owners]
            if not all(same_values(first, other) for other in others):
                raise _NotHere
            found |= first
        return found

    def _models(self, method: "Method") -> dict[str, ModelRef]:
        """The space's models that take part, and what the recipe calls them."""
        listed, base = list(self._slices[0].own), self._recipe.base_model
        if any(list(part.own) != listed for part in self._slices):
            raise _NotHere
        if base is not None and base not in listed:
            listed.append(base)  # it is an input, or of no account
        wanted = self._space.base_of(method)
        if base != (None if wanted is None else ModelRef.parse(wanted)):
            raise _NotHere
        models = self._space.config.genome.models
        refs = {model: ref for model in models if (ref := ModelRef.parse(model)) in listed}
        others = [ref for ref in listed if ref not in refs.values() and ref != base]
        missing = [model for model in models if model not in refs and model not in self._space.switches]
        if others or missing or len(set(refs.values())) < len(refs):
            raise _NotHere
        return refs

    def _check_constants(self, method: "Method") -> None:
        for name, value in self._space.constants(method).items():
            if name == "lambda" and self._factor_moves(method):
                continue
            for filter_ in self._space.filters:
                profile = self._profile(name, method.per_merge[name], None, filter_)
                if not np.allclose(profile, float(value), rtol=_CLOSE, atol=0):
                    raise _NotHere

    def _factor_moves(self, method: "Method") -> bool:
        """Whether lambda may be read as a factor of the weights: of a sum, as signs do not depend on it."""
        constants = self._space.constants(method)
        return "lambda" in constants and "weight" in method.per_input and not constants.get("normalize", True)

    def _gene(
        self, method: "Method", gene: Gene, model: str | None, filter_: str, ref: ModelRef | None
    ) -> dict[str, Value]:
        """The values of a gene for one model, or for all, and a filter, as the recipe's model has them."""
        space = self._space
        parameters = method.per_merge if ref is None else method.per_input
        profile = self._profile(gene.parameter, parameters[gene.parameter], ref, filter_)
        if gene.parameter == "weight" and self._factor_moves(method):
            factor = self._profile("lambda", method.per_merge["lambda"], None, filter_)
            if np.any(factor <= 0):
                raise _NotHere
            profile = profile * factor / space.constants(method)["lambda"]
        span, names = space.span(gene, model, filter_), space.names(gene, model, filter_)
        shares = space.depth.shares() if len(names) == len(space.depth) else np.ones((len(profile), 1))
        points = np.full(shares.shape[1], span.low) if span.fixed else _points(shares, profile)
        scale = _CLOSE * max(1.0, float(np.abs(profile).max()))
        inside = np.clip(points, span.low, span.high)
        if not np.allclose(shares @ inside, profile, rtol=0, atol=scale):
            raise _NotHere
        if span.fixed:
            return {}
        if gene.integer:
            return {name: round(float(point)) for name, point in zip(names, inside, strict=True)}
        return {name: float(point) for name, point in zip(names, inside, strict=True)}

    def _profile(self, name: str, spec: "Parameter", ref: ModelRef | None, filter_: str) -> Vector:
        """A parameter at the embeddings, at every layer, and at the head."""
        return np.array([self._at(name, spec, ref, filter_, part, t) for part, t in self._places])

    def _at(
        self, name: str, spec: "Parameter", ref: ModelRef | None, filter_: str, part: _Slice, t: float
    ) -> float:
        levels = [*([] if ref is None else [part.own.get(ref, {})]), part.shared, self._recipe.parameters]
        for level in levels:
            known = (None, *self._space.filters)
            if name in level and any(text not in known for _, text in filters(level[name])):
                raise _NotHere  # tensors that are one group here
        try:
            value = lookup(levels, name, "" if filter_ == REST else filter_, t, spec.kind)
        except ValueError:  # it is no number
            raise _NotHere from None
        if value is None:
            value = spec.default[0] if isinstance(spec.default, tuple) else spec.default
        if value is None:
            raise _NotHere
        return float(value)


def _points(shares: Matrix, profile: Vector) -> Vector:
    """The values of the cells that give a profile, or come near; as they are wherever a place has one's alone."""
    if np.all(profile == profile[0]):
        return np.full(shares.shape[1], profile[0])
    points: Vector = np.asarray(np.linalg.lstsq(shares, profile, rcond=None)[0], dtype=np.float64)
    for cell, column in enumerate(shares.T):
        if column.max() > 1 - 1e-12:
            points[cell] = profile[column.argmax()]
    return points


def _slices(recipe: Recipe, n_layers: int) -> Sequence[_Slice]:
    """A recipe's slices, whose layers must be those of its models, each once and in their order."""
    if recipe.modules or recipe.stages:
        raise _NotHere
    if recipe.models:
        return [_Slice(n_layers, {}, {entry.model: entry.parameters for entry in recipe.models})]
    found, begin = [], 0
    for part in recipe.slices or ():
        ranges = {source.layer_range for source in part.sources}
        if part.base_model is not None or len(ranges) != 1:
            raise _NotHere
        ((start, stop),) = ranges
        if start != begin or stop <= start:
            raise _NotHere
        found.append(_Slice(stop - start, part.parameters, {s.model: s.parameters for s in part.sources}))
        begin = stop
    if begin != n_layers:
        raise _NotHere
    return found
