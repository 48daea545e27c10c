"""The search space: a config's free numbers, by name and range, and the recipes that they stand for."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heterosis.errors import InputError
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.genome import UNIFORM, MethodSpec, short_names
from heterosis.evolve.ranges import REST
from heterosis.merge.recipe import Recipe

__all__ = ["UNIFORM", "Dimension", "SearchSpace", "Vector", "short_names"]

Vector = NDArray[np.float64]

# mergekit-evolve normalises these unless told otherwise, which differs from dare_ties' own default.
_NORMALIZED = frozenset({"linear", "ties", "dare_ties"})


@dataclass(frozen=True)
class Dimension:
    """One free number of a recipe.

    Attributes:
        name: ``parameter/model/layers/filter``, without the parts that there is only one of: ``weight/math``,
            ``density/math/layers.0-9/self_attn``, ``t/layers.10-19/*``. Smooth genomes have control points
            instead of layers: ``weight/math/depth.0.5``.
        low: Smallest value.
        high: Largest value, above ``low``.
        initial: Where the search starts.
        parameter: Which of the method's parameters it is.
        model: The model that it belongs to; None if it belongs to the merge.
    """

    name: str
    low: float
    high: float
    initial: float
    parameter: str
    model: str | None


@dataclass(frozen=True)
class SearchSpace:
    """Named numbers with ranges, and their recipes. Build it with :meth:`from_config`.

    Points have two forms: *values*, a mapping from dimension names to natural units, which is what is recorded,
    and *unit vectors* in ``[0, 1]^d``, which is what optimizers work with. The two are linear in each other:
    nothing is folded or clamped, so different points are different recipes.

    Attributes:
        config: What it was built from.
        method: The merge method.
        groups: Layers ``[start, stop)`` that share their parameters.
    """

    config: EvolveConfig
    method: MethodSpec
    groups: tuple[tuple[int, int], ...]

    @classmethod
    def from_config(cls, config: EvolveConfig, n_layers: int, methods: Mapping[str, MethodSpec]) -> "SearchSpace":
        """The space that a config describes.

        Args:
            config: The config.
            n_layers: Layers of each model, at least 1.
            methods: The merge methods that there are.

        Raises:
            InputError: If the method cannot work with this genome, or nothing is left to search.
        """
        if faults := list(config.genome.faults(methods)):
            raise InputError(*faults)
        if n_layers < 1:
            raise ValueError(f"`n_layers >= 1` must hold, but got n_layers={n_layers}")
        step = config.genome.layer_granularity or n_layers
        groups = tuple((start, min(start + step, n_layers)) for start in range(0, n_layers, step))
        space = cls(config, methods[config.genome.methods[0]], groups)
        if not space.parameters:
            raise InputError("genome.ranges: `low < high` must hold for at least one, else nothing is searched")
        return space

    @cached_property
    def model_names(self) -> tuple[str, ...]:
        """A short name for each of the genome's models."""
        return short_names(self.config.genome.models, reserved=(UNIFORM,))

    @cached_property
    def parameters(self) -> tuple[Dimension, ...]:
        """The dimensions, in a fixed order."""
        cells = [
            (self._name(parameter, model, group, filter_), parameter, model)
            for parameter, (low, high) in self._ranges.items()
            if low < high
            for model in (self._weighted if parameter in self.method.per_input else [None])
            for group in self.groups
            for filter_ in self._filters
        ]
        # A stream of its own, since the optimizer draws from the seed itself.
        random = np.random.default_rng([self.config.seed, 1]).random(len(cells))
        dimensions = []
        for (name, parameter, model), u in zip(cells, random, strict=True):
            low, high = self._ranges[parameter]
            start = low + float(u) * (high - low) if self.config.random_init else self._start(parameter)
            dimensions.append(Dimension(name, low, high, start, parameter, model))
        return tuple(dimensions)

    def __len__(self) -> int:
        return len(self.parameters)

    @property
    def initial(self) -> Vector:
        """Where the search starts, as a unit vector ``[d]``."""
        return self.encode({dimension.name: dimension.initial for dimension in self.parameters})

    def values(self, unit: Sequence[float] | Vector) -> dict[str, float]:
        """A unit vector ``[d]`` in natural units."""
        if len(unit) != len(self.parameters):
            raise ValueError(f"a point must have {len(self.parameters)} coordinates, but got {len(unit)}")
        return {
            # The sum may round to just above the range.
            d.name: min(d.high, d.low + float(u) * (d.high - d.low))
            for d, u in zip(self.parameters, unit, strict=True)
        }

    def encode(self, values: Mapping[str, float]) -> Vector:
        """Values as a unit vector ``[d]``; values outside their range become the nearest end."""
        self._check_names(values)
        unit = [(values[d.name] - d.low) / (d.high - d.low) for d in self.parameters]
        return np.clip(np.array(unit, dtype=np.float64), 0.0, 1.0)

    def decode(self, values: Mapping[str, float]) -> Recipe:
        """The recipe that values stand for: the same values always give the same recipe.

        Raises:
            ValueError: If a dimension is missing, unknown, or outside its range.
        """
        self._check_names(values)
        for d in self.parameters:
            if not d.low <= values[d.name] <= d.high:
                raise ValueError(f"`{d.low} <= {d.name} <= {d.high}` must hold, but got {values[d.name]!r}")
        genome, method = self.config.genome, self.method
        per_input = [name for name in self._ranges if name in method.per_input]
        per_merge = [name for name in self._ranges if name in method.per_merge]

        def own(model: str, groups: Sequence[tuple[int, int]]) -> dict[str, Any]:
            if model not in self._weighted:
                return {}
            return {name: self._setting(name, model, groups, values) for name in per_input}

        def shared(groups: Sequence[tuple[int, int]]) -> dict[str, Any]:
            return {name: self._setting(name, None, groups, values) for name in per_merge}

        recipe: dict[str, Any] = {"merge_method": method.name, "base_model": self._base_model}
        if genome.smooth or len(self.groups) == 1:
            recipe["models"] = [{"model": m, "parameters": own(m, self.groups)} for m in genome.models]
            recipe["parameters"] = shared(self.groups) | self._constants
        else:
            sources = list(genome.models)
            if self._base_model is not None and self._base_model not in sources:
                sources.append(self._base_model)  # unlike models, slices must list it
            recipe["slices"] = [
                {
                    "sources": [
                        {"model": m, "layer_range": list(group), "parameters": own(m, [group])} for m in sources
                    ],
                    "parameters": shared([group]),
                }
                for group in self.groups
            ]
            recipe["parameters"] = self._constants
        return self._recipe(recipe | {"tokenizer_source": genome.tokenizer_source})

    def baselines(self) -> list[tuple[str, Recipe]]:
        """What every search has to beat: each model alone, under its short name, and their plain mean."""
        genome = self.config.genome
        alone = [
            (name, self._recipe({"merge_method": "passthrough", "models": [{"model": model}]}))
            for name, model in zip(self.model_names, genome.models, strict=True)
        ]
        weight = 1.0 / len(genome.models)
        uniform = self._recipe(
            {
                "merge_method": "linear",
                "models": [{"model": model, "parameters": {"weight": weight}} for model in genome.models],
                "parameters": {"normalize": True},
                "tokenizer_source": genome.tokenizer_source,
            }
        )
        return [*alone, (UNIFORM, uniform)]

    def baseline_values(self, name: str) -> dict[str, float] | None:
        """The point of this space that gives a baseline's tensors (within rounding), if there is one.

        Its loss is known once the baseline is scored, so an optimizer can be told it, or start there.
        """
        models, fixed = self.config.genome.models, dict(self._constants)
        chosen = None if name == UNIFORM else models[self.model_names.index(name)]
        if self.method.name == "slerp" and chosen is not None:
            shares, others = {}, {"t": 0.0 if chosen == self._base_model else 1.0}
        elif self.method.name in ("linear", "task_arithmetic"):
            shares = {m: 1.0 / len(models) if chosen is None else float(m == chosen) for m in models}
            others = {"lambda": 1.0}
        else:
            return None
        total = sum(shares.get(model, 0.0) for model in self._weighted)
        if shares and fixed["normalize"] and not math.isclose(total, 1.0):
            return None  # the base is among the models, and has no weight to be divided by
        fixed |= {p: low for p, (low, high) in self._ranges.items() if low == high}
        if "weight" in fixed or any(fixed.get(p, value) != value for p, value in others.items()):
            return None
        values = {d.name: shares[d.model] if d.model in shares else others[d.parameter] for d in self.parameters}
        return values if all(d.low <= values[d.name] <= d.high for d in self.parameters) else None

    # --- the pieces of a recipe -------------------------------------------------------------------------------

    @property
    def _short(self) -> dict[str, str]:
        return dict(zip(self.config.genome.models, self.model_names, strict=True))

    @property
    def _base_model(self) -> str | None:
        """The base model as the recipe names it; None where it has no role."""
        genome = self.config.genome
        if self.method.base == "ignored":
            return None  # unlisted, it would become one more input
        if self.method.base == "input":
            return genome.base_model or genome.models[0]
        return genome.base_model

    @property
    def _weighted(self) -> list[str]:
        """The models with parameters of their own: all, without the base where task vectors are taken from it."""
        is_base = self._base_model if self.method.base in ("required", "optional") else None
        return [model for model in self.config.genome.models if model != is_base]

    @property
    def _filters(self) -> tuple[str, ...]:
        return (*self.config.genome.filters, REST)

    @cached_property
    def _ranges(self) -> dict[str, tuple[float, float]]:
        """Where each searched parameter is searched: the config's ranges before the method's own."""
        ranges = {name: (span.low, span.high) for name, span in self.method.search.items()}
        if self.config.genome.allow_negative_weights and "weight" in ranges:
            reach = max(map(abs, ranges["weight"]))
            ranges["weight"] = (-reach, reach)
        given = {name: spans[REST] for name, spans in self.config.genome.ranges.items()}
        return ranges | {name: (span.low, span.high) for name, span in given.items()}

    @property
    def _constants(self) -> dict[str, Any]:
        """Parameters that are not searched, written out so that no reader has to know a default."""
        constants = {
            name: parameter.default
            for name, parameter in self.method.per_merge.items()
            if parameter.default is not None and name not in self._ranges
        }
        if "normalize" in constants:
            normalize = self.config.genome.normalize
            constants["normalize"] = self.method.name in _NORMALIZED if normalize is None else normalize
        return constants

    def _name(self, parameter: str, owner: str | None, group: tuple[int, int], filter_: str) -> str:
        parts = [parameter]
        if owner is not None:
            parts.append(self._short[owner])
        if len(self.groups) > 1:
            start, stop = group
            if self.config.genome.smooth:
                parts.append(f"depth.{self.groups.index(group) / (len(self.groups) - 1):.4g}")
            else:
                parts.append(f"layers.{start}" if stop == start + 1 else f"layers.{start}-{stop - 1}")
        if len(self._filters) > 1:
            parts.append(filter_)
        return "/".join(parts)

    def _setting(
        self,
        parameter: str,
        owner: str | None,
        groups: Sequence[tuple[int, int]],
        values: Mapping[str, float],
    ) -> Any:
        """A recipe's setting: a number, a gradient over several groups, or one of those for each filter."""
        low, high = self._ranges[parameter]
        if low == high:
            return low

        def at(filter_: str) -> Any:
            points = [float(values[self._name(parameter, owner, group, filter_)]) for group in groups]
            return points[0] if len(points) == 1 else points

        if len(self._filters) == 1:
            return at(REST)
        return [*({"filter": f, "value": at(f)} for f in self._filters[:-1]), {"value": at(REST)}]

    def _start(self, parameter: str) -> float:
        """A sensible start inside the range, never on its boundary, where half of all steps lead nowhere."""
        low, high = self._ranges[parameter]
        preferred = {"weight": 1.0 / len(self._weighted), "density": 0.5, "t": 0.5, "lambda": 1.0}.get(parameter)
        return preferred if preferred is not None and low < preferred < high else (low + high) / 2

    def _recipe(self, data: Mapping[str, Any]) -> Recipe:
        genome = self.config.genome
        common = {"dtype": genome.dtype, "out_dtype": genome.out_dtype, "heterosis": {"seed": self.config.seed}}
        return Recipe.model_validate({**data, **common})

    def _check_names(self, values: Mapping[str, float]) -> None:
        names = {dimension.name for dimension in self.parameters}
        if values.keys() != names:
            raise ValueError(
                f"values must be those of the space's dimensions, but {sorted(names - values.keys())} are missing "
                f"and {sorted(values.keys() - names)} unknown"
            )
