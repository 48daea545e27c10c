"""The search space: a config's free numbers and choices by name and range, and the recipes they stand for."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from heterosis.errors import InputError
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.config.ranges import REST, Span
from heterosis.evolve.optimizers import Vector
from heterosis.evolve.space.depth import Depth, check_stages, default_control_points
from heterosis.evolve.space.dimensions import (
    Dimension,
    Space,
    Value,
    check_names,
    check_values,
    random_values,
    values_at,
)
from heterosis.evolve.space.genes import METHOD, TAKE, Gene, genes_of
from heterosis.evolve.space.inverse import read_values
from heterosis.merge.recipe.recipe import Recipe

if TYPE_CHECKING:
    from heterosis.merge.methods import Method

# mergekit-evolve normalises these unless told otherwise, which differs from dare_ties' own default.
_NORMALIZED = frozenset({"linear", "ties", "dare_ties"})


@dataclass(frozen=True)
class SearchSpace(Space):
    """The parameters of merge methods over depth; see :class:`Space`. Build it with :meth:`from_config`.

    Units are linear in the values, or in their logarithms. Nothing is folded or clamped: different points are
    different recipes, except in what a point's merge method does not have and in models that it leaves out.

    Attributes:
        config: What it was built from.
        methods: The merge methods to choose from.
        depth: Which layers share their parameters.
    """

    config: EvolveConfig
    methods: tuple["Method", ...]
    depth: Depth

    @classmethod
    def from_config(
        cls,
        config: EvolveConfig,
        n_layers: int,
        methods: Mapping[str, "Method"],
        control_points: int | None = None,
    ) -> "SearchSpace":
        """The space that a config describes.

        Args:
            config: The config.
            n_layers: Layers of each model, at least 1.
            methods: The merge methods that there are.
            control_points: Of each parameter; None for what the config says, its last stage if it has several.

        Raises:
            InputError: If a method cannot work with this genome, or nothing is left to search.
        """
        genome = config.genome
        if faults := list(genome.faults(methods)):
            raise InputError(*faults)
        if n_layers < 1:
            raise ValueError(f"`n_layers >= 1` must hold, but got n_layers={n_layers}")
        if control_points is None and genome.control_points is not None:
            control_points = genome.control_points[-1]
        if control_points is not None:
            check_stages([control_points], n_layers)
            depth = Depth.gradient(n_layers, control_points)
        else:
            depth = Depth.groups(n_layers, genome.layer_granularity or n_layers, smooth=genome.smooth)
        space = cls(config, tuple(methods[name] for name in genome.methods), depth)
        if not space.dimensions:
            raise InputError("genome.ranges: `low < high` must hold for at least one, else nothing is searched")
        return space

    @property
    def model_names(self) -> tuple[str, ...]:
        """A short name for each of the genome's models."""
        return self.config.genome.model_names

    @cached_property
    def genes(self) -> tuple[Gene, ...]:
        """The parameters that are searched, or fixed by the config."""
        return genes_of(self.config.genome, self.methods)

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions, in a fixed order: those of the genes, then the method, then which models take part."""
        dimensions = list(self._numbers)
        if len(self.methods) > 1:
            names = tuple(method.name for method in self.methods)
            dimensions.append(Dimension(METHOD, 0, len(names) - 1, names[0], METHOD, None, choices=names))
        dimensions += [
            Dimension(name, 0, 1, int(i < self.subset[1]), TAKE, model, integer=True)
            for i, (model, name) in enumerate(self.switches.items())
        ]
        if not self.config.random_init:
            return tuple(dimensions)
        start = self._allowed(random_values(dimensions, self.config.seed))
        return tuple(dataclasses.replace(d, initial=start[d.name]) for d in dimensions)

    def values(self, unit: Sequence[float] | Vector) -> dict[str, Value]:
        """A unit vector ``[d]`` in natural units.

        Where too many models would take part, or too few, those with the largest weights do.
        """
        return self._allowed(values_at(self.dimensions, unit))

    def decode(self, values: Mapping[str, Value]) -> Recipe:
        """The recipe that values stand for: the same values always give the same recipe.

        Raises:
            ValueError: If a dimension is missing, unknown, or outside its range, or the wrong number of models
                takes part.
        """
        check_values(self.dimensions, values)
        method, models = self.method_of(values), self.models_of(values)
        genes = [gene for gene in self.genes if method.name in gene.methods]
        base = self.base_of(method)

        def own(model: str, cells: Sequence[int]) -> dict[str, Any]:
            if model not in self.weighted(method):
                return {}
            return {g.parameter: self._setting(g, model, cells, values) for g in genes if g.per_model}

        def shared(cells: Sequence[int]) -> dict[str, Any]:
            return {g.parameter: self._setting(g, None, cells, values) for g in genes if not g.per_model}

        recipe: dict[str, Any] = {"merge_method": method.name, "base_model": base}
        constants = self.constants(method)
        if self.depth.sliced:
            # Unlike models, slices must list the base.
            sources = models if base is None or base in models else [*models, base]
            recipe["slices"] = [
                {
                    "sources": [
                        {"model": m, "layer_range": list(layers), "parameters": own(m, [i])} for m in sources
                    ],
                    "parameters": shared([i]),
                }
                for i, layers in enumerate(self.depth.slices)
            ]
            recipe["parameters"] = constants
        else:
            cells = range(len(self.depth))
            recipe["models"] = [{"model": m, "parameters": own(m, cells)} for m in models]
            recipe["parameters"] = shared(cells) | constants
        return self.recipe(recipe | {"tokenizer_source": self.config.genome.tokenizer_source})

    def values_of(self, recipe: Recipe) -> dict[str, Value] | None:
        """The values that give a recipe with the same settings; None if this space has none.

        Dtypes, the tokenizer and the seed are not looked at: the same point of a related search may differ there.
        What the recipe's method does not have is where the search starts.
        """
        return read_values(self, recipe)

    def refine(self, values: Mapping[str, Value], coarser: Space) -> dict[str, Value] | None:
        """A coarser space's point as the point here with the same recipe values; None if there is none."""
        finer = None
        if isinstance(coarser, SearchSpace) and coarser.config == self.config:
            finer = self.depth.refining(coarser.depth)
        if not isinstance(coarser, SearchSpace) or finer is None:
            return self.values_of(coarser.decode(values))
        check_names(coarser.dimensions, values)
        found = {d.name: values[d.name] for d in self.dimensions if d.name in values}
        for gene, model, filter_ in self.places():
            span = self.span(gene, model, filter_)
            if span.fixed or gene.integer:
                continue
            points = [float(values[name]) for name in coarser.names(gene, model, filter_)]
            for name, value in zip(self.names(gene, model, filter_), finer @ points, strict=True):
                found[name] = min(span.high, max(span.low, float(value)))  # the sum may round to just outside
        return found if found.keys() == {d.name for d in self.dimensions} else None

    # --- models and methods -----------------------------------------------------------------------------------

    def method_of(self, values: Mapping[str, Value]) -> "Method":
        """The merge method of a point."""
        name = values.get(METHOD)
        return next((method for method in self.methods if method.name == name), self.methods[0])

    def models_of(self, values: Mapping[str, Value]) -> list[str]:
        """The models of a point, in the genome's order.

        Raises:
            ValueError: If there are too many or too few.
        """
        if not self.switches:
            return list(self.config.genome.models)
        taken = [model for model, switch in self.switches.items() if values[switch]]
        least, most = self.subset
        if not least <= len(taken) <= most:
            raise ValueError(f"`{least} <= models that take part <= {most}` must hold, but got {len(taken)}")
        return [model for model in self.config.genome.models if model in taken or model not in self.switches]

    @cached_property
    def subset(self) -> tuple[int, int]:
        """How many of the optional models take part, at least and at most."""
        genome = self.config.genome
        optional = len(self.optional_models)
        if genome.subset is None:
            return optional, optional
        needed = [method.inputs[0] - genome.inputs_always_there(method, self.methods) for method in self.methods]
        return max(1, *needed), min(genome.subset, optional)

    @property
    def optional_models(self) -> tuple[str, ...]:
        """The models that a subset may leave out: all but the base."""
        return self.config.genome.optional_models(self.methods)

    @cached_property
    def switches(self) -> dict[str, str]:
        """The dimensions that say which models take part, by model."""
        if self.config.genome.subset is None:
            return {}
        return {model: f"{TAKE}/{self._short(model)}" for model in self.optional_models}

    def _allowed(self, values: dict[str, Value]) -> dict[str, Value]:
        """Values with the nearest number of models that may take part."""
        least, most = self.subset
        taken = [model for model, switch in self.switches.items() if values[switch]]
        if not self.switches or least <= len(taken) <= most:
            return values

        def rank(model: str) -> tuple[bool, float]:
            own = [d.name for d in self._numbers if d.parameter == "weight" and d.model == model]
            return model not in taken, -sum(abs(float(values[name])) for name in own)

        kept = sorted(self.switches, key=rank)[: most if len(taken) > most else least]
        return values | {switch: int(model in kept) for model, switch in self.switches.items()}

    def base_of(self, method: "Method") -> str | None:
        """The base model as the recipe names it; None where it has no role."""
        genome = self.config.genome
        if method.base == "ignored":
            return None  # unlisted, it would become one more input
        if method.base == "input":
            return genome.base_model or genome.models[0]
        return genome.base_model

    def weighted(self, method: "Method") -> list[str]:
        """The models with parameters of their own: all, without the base where task vectors are taken from it."""
        is_base = self.base_of(method) if method.base in ("required", "optional") else None
        return [model for model in self.config.genome.models if model != is_base]

    def constants(self, method: "Method") -> dict[str, Any]:
        """Parameters that are not searched, written out so that no reader has to know a default."""
        searched = {gene.parameter for gene in self.genes if method.name in gene.methods}
        constants = {
            name: parameter.default
            for name, parameter in method.per_merge.items()
            if parameter.default is not None and name not in searched
        }
        if "normalize" in constants:
            normalize = self.config.genome.normalize
            constants["normalize"] = method.name in _NORMALIZED if normalize is None else normalize
        return constants

    def recipe(self, data: Mapping[str, Any]) -> Recipe:
        """A recipe with what all recipes of this search have in common."""
        genome = self.config.genome
        common = {"name": genome.stage_name, "dtype": genome.dtype, "out_dtype": genome.out_dtype}
        return Recipe.model_validate({**data, **common, "heterosis": {"seed": self.config.seed}})

    # --- names and numbers ------------------------------------------------------------------------------------

    @property
    def filters(self) -> tuple[str, ...]:
        """The groups of tensors, the last one of all that no filter matches."""
        return (*self.config.genome.filters, REST)

    def places(self) -> Iterator[tuple[Gene, str | None, str]]:
        """Every gene with each model that has it, None for the merge, and each filter."""
        for gene in self.genes:
            for model in self.owners(gene):
                for filter_ in self.filters:
                    yield gene, model, filter_

    def owners(self, gene: Gene) -> list[str | None]:
        """The models with values of a gene; None stands for the merge, or for all of them together."""
        if not gene.per_model:
            return [None]
        owning = {m for method in self.methods if method.name in gene.methods for m in self.weighted(method)}
        return [model for model in self.config.genome.models if model in owning]

    def names(self, gene: Gene, model: str | None, filter_: str) -> list[str]:
        """The names of a gene's values over depth; whole numbers are not interpolated, so one holds for all."""
        cells = [""] if gene.integer and not self.depth.sliced else self.depth.labels
        last = filter_ if len(self.filters) > 1 else ""
        return ["/".join(filter(None, (gene.name, self._short(model), cell, last))) for cell in cells]

    def span(self, gene: Gene, model: str | None, filter_: str) -> Span:
        """Where a gene is searched for a model, None for the merge, and a filter."""
        return gene.span(self._short(model), filter_)

    @cached_property
    def _numbers(self) -> tuple[Dimension, ...]:
        """The dimensions of the genes."""
        return tuple(self._each_number())

    def _each_number(self) -> Iterator[Dimension]:
        for gene in self.genes:
            for model in self.owners(gene):
                for cell in range(len(self.depth)):
                    for filter_ in self.filters:
                        span = self.span(gene, model, filter_)
                        names = self.names(gene, model, filter_)
                        if not span.fixed and cell < len(names):
                            yield Dimension(
                                names[cell],
                                span.low,
                                span.high,
                                self._start(gene, span),
                                gene.parameter,
                                model,
                                log=span.log and not gene.integer,
                                integer=gene.integer,
                            )

    def _start(self, gene: Gene, span: Span) -> Value:
        """A sensible start inside the range, never on its boundary, where half of all steps lead nowhere."""
        taking = len(self.owners(gene)) if self.config.genome.subset is None else self.subset[1]
        preferred = {"weight": 1.0 / taking, "density": 0.5, "t": 0.5, "lambda": 1.0}.get(gene.parameter)
        if preferred is not None and span.low < preferred < span.high:
            return preferred
        middle = math.sqrt(span.low * span.high) if span.log else (span.low + span.high) / 2
        return int(middle) if gene.integer else middle

    def _setting(self, gene: Gene, model: str | None, cells: Sequence[int], values: Mapping[str, Value]) -> Any:
        """A recipe's setting: a number, a gradient over several cells, or one of those for each filter."""

        def at(filter_: str) -> Any:
            span = self.span(gene, model, filter_)
            if span.fixed:
                return int(span.low) if gene.integer else span.low
            names = self.names(gene, model, filter_)
            points = [values[names[cell]] for cell in cells if cell < len(names)]
            numbers = [int(value) if gene.integer else float(value) for value in points]
            return numbers[0] if len(numbers) == 1 else numbers

        spans = [self.span(gene, model, filter_) for filter_ in self.filters]
        if len(spans) == 1 or (spans[0].fixed and all(span == spans[0] for span in spans)):
            return at(REST)
        return [*({"filter": f, "value": at(f)} for f in self.filters[:-1]), {"value": at(REST)}]

    def _short(self, model: str | None) -> str:
        """A model's short name; none for the merge."""
        return "" if model is None else self._shorts[model]

    @cached_property
    def _shorts(self) -> dict[str, str]:
        return dict(zip(self.config.genome.models, self.model_names, strict=True))


def control_points_of(
    config: EvolveConfig, n_layers: int, methods: Mapping[str, "Method"], trials: int | None = None
) -> tuple[int, ...] | None:
    """The control points of each stage: the config's, else by ``trials`` to expect; None if it groups layers.

    A run takes them once, when it begins: more trials later do not change what is searched.
    """
    genome = config.genome
    if genome.control_points is not None:
        return genome.control_points
    if genome.layer_granularity is not None or genome.smooth:
        return None
    space = SearchSpace.from_config(config, n_layers, methods, control_points=1)
    over_depth = [d for d in space.dimensions if not d.choices and not d.integer]
    return default_control_points(max(1, len(over_depth)), n_layers, trials or config.trials)


def stages_of(
    config: EvolveConfig,
    n_layers: int,
    methods: Mapping[str, "Method"],
    control_points: Sequence[int] | None,
) -> tuple[SearchSpace, ...]:
    """The spaces that are searched one after the other, coarse to fine.

    Args:
        config: The config.
        n_layers: Layers of each model, at least 1.
        methods: The merge methods that there are.
        control_points: As :func:`control_points_of` gave them when the run began.

    Raises:
        InputError: If a method cannot work with this genome, nothing is left to search, or a stage does not refine
            the one before.
    """
    if control_points is None:
        return (SearchSpace.from_config(config, n_layers, methods),)
    check_stages(control_points, n_layers)
    return tuple(SearchSpace.from_config(config, n_layers, methods, points) for points in control_points)
