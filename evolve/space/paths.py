"""Layer paths as a search space: which layers of which models, in which order, how often, and how strongly.

This is the data-flow space of https://arxiv.org/abs/2403.13187 (section 3.2). A path is written as an ordinary
slices recipe of passthrough, so that what is searched, exported and merged is one thing.

Differs from the paper: factors are on what a layer adds to the residual stream (its output projections), not on
the stream that enters it. Layers normalise what they read, so that both give the same models: factors ``c_1, c_2,
...`` on what enters are factors ``s_k = 1 / (c_1 ... c_k)`` on what is added. One of ours changes one segment, one
of theirs the weight of all that came before. And tensors outside the layers may come from any of the models, since
each parent would not be a path otherwise.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from heterosis.errors import InputError
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.config.layer_paths import CHAMPION, LayerPaths
from heterosis.evolve.config.ranges import Span
from heterosis.evolve.space.dimensions import Dimension, Space, Value, check_values, random_values
from heterosis.evolve.space.path_encodings import Encoding, Indicators, Path, Run, Segments, joined, limits, whole
from heterosis.merge import Checkpoint, ModelRef, Recipe, build_plan
from heterosis.merge.models.checkpoint import OpenModels
from heterosis.merge.models.layout import OBSOLETE, embedding_name, layer_counts, main_stack, place_of
from heterosis.merge.models.sources import Model

# What the projections into the residual stream are called, attention's and the MLP's: together all that is added.
_ATTENTION = ("o_proj", "out_proj", "c_proj", "attention.dense.", "self_attn.dense.")
_MLP = ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", ".w2.")
# Norms behind them, which undo any factor.
_POST_NORMS = ("post_feedforward_layernorm", "post_mlp_layernorm", "post_self_attn_layernorm")
_SCALES = Span(0.5, 1.5)
# What a config says of all layers at once, besides shapes.
_OF_ALL_LAYERS: tuple[str, ...] = ("model_type", "hidden_act", "num_attention_heads", "num_key_value_heads")
_OF_ALL_LAYERS += ("head_dim", "rope_theta", "rope_parameters", "rope_scaling", "sliding_window")
_OF_ALL_LAYERS += ("num_experts_per_tok", "residual_multiplier")


@dataclass(frozen=True)
class Anatomy:
    """What must be known of a model to take layers of it.

    Attributes:
        layers: How many it has.
        inside: Shapes of the tensors of its layers, by their names within a layer.
        outside: Names of its other tensors.
        embedding: Shape of the embedding.
        settings: What the config says of all layers at once.
    """

    layers: int
    inside: Mapping[str, tuple[int, ...]]
    outside: tuple[str, ...]
    embedding: tuple[int, ...]
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, shapes: Mapping[str, Sequence[int]], config: Mapping[str, Any]) -> "Anatomy":
        """That of a model with these tensors."""
        stack = main_stack(shapes, config)
        layers = layer_counts(shapes, config).get(stack or "", 0)
        inside, outside = {}, []
        for name, shape in shapes.items():
            place = place_of(name)
            if place is None or place.stack != stack:
                outside.append(name)
            elif place.index < layers and not name.endswith(OBSOLETE):
                inside[place.rest] = tuple(shape)
        embedding = tuple(shapes.get(embedding_name(shapes) or "", ()))
        settings = {key: config[key] for key in _OF_ALL_LAYERS if config.get(key) is not None}
        return cls(layers, inside, tuple(outside), embedding, settings)

    @property
    def added(self) -> tuple[str, ...]:
        """Filters for what layers add to the residual stream; none where a factor on it cannot be written."""
        found = [
            [text for text in texts if any(text in name for name in self.inside)] for texts in (_ATTENTION, _MLP)
        ]
        filters = tuple(dict.fromkeys(text for texts in found for text in texts))
        undone = any(norm in name for norm in _POST_NORMS for name in self.inside)
        astray = any(text in name for text in filters for name in self.outside)
        return filters if all(found) and not undone and not astray else ()


@dataclass(frozen=True)
class PathSpace(Space):
    """Paths through the layers of models; see `Space`. Build it with `from_config` or `after`.

    Different points may be one recipe: where a limit shortens a jump, where a segment is shorter than its length
    says because the model ends, or where two segments go on with the same model and factor. Whoever keeps results
    by recipe saves these evaluations.

    Attributes:
        config: What it was built from.
        models: The models as recipes name them, by short names; a search starts with the first whole.
        donors: Short names of those whose embeddings, norm and head may be taken. Config and tokenizer are the
            first one's.
        encoding: How values stand for paths.
        filters: The tensors that factors are on; none without factors.
        stages: The recipes of those models that are merges themselves.
    """

    config: EvolveConfig
    models: Mapping[str, str]
    donors: tuple[str, ...]
    encoding: Encoding
    filters: tuple[str, ...]
    stages: tuple[Recipe, ...] = ()

    @classmethod
    def from_config(cls, config: EvolveConfig, checkpoints: Mapping[ModelRef, Model]) -> "PathSpace":
        """The paths through a config's models.

        Args:
            config: One with ``layer_paths`` in its genome.
            checkpoints: Its models.

        Raises:
            InputError: If layers of these models do not fit together, or the section does not fit the models.
        """
        return cls._of(config, _parents(config, checkpoints))

    @classmethod
    def after(
        cls, config: EvolveConfig, champion: Recipe, checkpoints: Mapping[ModelRef, Checkpoint]
    ) -> "PathSpace":
        """The paths through a merge and its parents; a search starts with the merge whole.

        Its recipes hold the merge's as a document of its own, so that each is complete.

        Args:
            config: One with ``layer_paths: {after: parameters}`` in its genome.
            champion: The merge. If its method draws random masks, it has to have been scored under the genome's
                ``stage_name``: masks differ from one name to another.
            checkpoints: The models.

        Raises:
            InputError: As of `from_config`, or if the merge cannot be planned.
        """
        name = config.genome.stage_name
        assert name is not None, "the config searches layer paths after parameters"
        named = champion.model_copy(update={"name": name})
        plan = build_plan(named, OpenModels(checkpoints), origin="the champion")
        merge = Anatomy.of({op.name: op.shape for op in plan.ops}, plan.config)
        return cls._of(config, {name: (name, merge)} | _parents(config, checkpoints), (*named.stages, named))

    @classmethod
    def _of(
        cls, config: EvolveConfig, models: Mapping[str, tuple[str, Anatomy]], stages: tuple[Recipe, ...] = ()
    ) -> "PathSpace":
        section = config.genome.layer_paths
        assert section is not None, "the config searches layer paths"
        anatomies = {name: anatomy for name, (_, anatomy) in models.items()}
        layers = {name: anatomy.layers for name, anatomy in anatomies.items()}
        filters = next(iter(anatomies.values())).added
        faults = [*_misfits(anatomies), *_section_faults(layers, section, filters)]
        if faults:
            raise InputError(*(f"genome.{fault}" for fault in faults))
        _warn_of_settings(anatomies)
        scale = section.scale or (_SCALES if filters else None)
        scale = None if scale is None or scale.fixed else scale
        donors = tuple(models)
        if section.embeddings is not None:
            donors = (stages[-1].name or "" if section.embeddings == CHAMPION and stages else section.embeddings,)
        elif not config.genome.tokenizer_source and len({a.embedding for a in anatomies.values()}) > 1:
            donors = donors[:1]
        encoding = (Indicators if section.indicators else Segments)(layers, section, scale)
        paths = {name: model for name, (model, _) in models.items()}
        space = cls(config, paths, donors, encoding, filters if scale else (), stages)
        if not space.dimensions:
            raise InputError("genome.layer_paths: nothing is searched; raise segments, or give scale a range")
        return space

    @cached_property
    def dimensions(self) -> tuple[Dimension, ...]:
        """The dimensions, in a fixed order."""
        found = [*self.encoding.dimensions()]
        if len(self.donors) > 1:
            last, first = len(self.donors) - 1, self.donors[0]
            found.append(Dimension("embeddings", 0, last, first, "embeddings", None, choices=self.donors))
        if self.config.random_init:
            start = random_values(found, self.config.seed)
            found = [replace(d, initial=start[d.name]) for d in found]
        return tuple(found)

    def decode(self, values: Mapping[str, Value]) -> Recipe:
        """The recipe that values stand for: the same values always give the same recipe.

        Raises:
            ValueError: If a dimension is missing, unknown, or outside its range.
        """
        check_values(self.dimensions, values)
        genome, home = self.config.genome, self.donors[0]
        donor = str(values.get("embeddings", home))
        path = self.encoding.path(values)
        if genome.tokenizer_source == "union":  # of all models, whether the path meets them or not
            path = (*(Run(name, 0, 0) for name in self.models), *path)
        # Empty slices say where the tensors outside the layers come from.
        first, last = (() if run.model == donor else (Run(donor, 0, 0),) for run in (path[0], path[-1]))
        runs = (*first, *path, *last)
        recipe = Recipe.model_validate(
            {
                "merge_method": "passthrough",
                "base_model": None if donor == home else self.models[home],
                "slices": [{"sources": [self._source(run)]} for run in runs],
                "dtype": genome.dtype,
                "out_dtype": genome.out_dtype,
                "tokenizer_source": genome.tokenizer_source,
                "heterosis": {"seed": self.config.seed},
            }
        )
        return recipe.with_stages(self.stages)

    def values_of(self, recipe: Recipe) -> dict[str, Value] | None:
        """The values that give a recipe's tensors, whatever its dtypes; None if this space has none."""
        read = self._read(recipe)
        if read is None or read[1] not in self.donors:
            return None
        values = self._values(*read)
        try:
            check_values(self.dimensions, values)
        except ValueError:
            return None
        return values if self.encoding.path(values) == read[0] else None

    def refine(self, values: Mapping[str, Value], coarser: Space) -> dict[str, Value] | None:
        """A point of the stage before as the same model here: only the merge that paths go through is there."""
        if not self.stages or coarser.decode(values).essence() != self.stages[-1].essence():
            return None
        return self._values(whole(self.encoding.layers), self.donors[0])

    def _values(self, path: Path, donor: str) -> dict[str, Value]:
        return self.encoding.values(path) | ({"embeddings": donor} if len(self.donors) > 1 else {})

    def _source(self, run: Run) -> dict[str, Any]:
        """A run as a slice's source."""
        source: dict[str, Any] = {"model": self.models[run.model], "layer_range": [run.start, run.stop]}
        return source if run.scale == 1.0 else source | {"parameters": {"scale": self._scale(run.scale)}}

    def _scale(self, scale: float) -> list[dict[str, Any]]:
        return [*({"filter": text, "value": scale} for text in self.filters), {"value": 1.0}]

    def _read(self, recipe: Recipe) -> tuple[Path, str] | None:
        """A recipe's path, and the model of its embeddings, norm and head; None if it is none of this space."""
        slices, models = recipe.slices or [], recipe.models or []
        entries: list[tuple[ModelRef, tuple[int, int] | None, Mapping[str, Any]]] = []
        entries += [(entry.model, None, entry.parameters) for entry in models]
        entries += [(source.model, source.layer_range, source.parameters) for s in slices for source in s.sources]
        levels = [recipe.parameters, *(slice_.parameters for slice_ in slices)]
        if recipe.merge_method != "passthrough" or any(levels) or len(entries) != len(slices or [None]):
            return None
        named = {stage.name: stage.essence() for stage in recipe.stages}
        own = {stage.name: stage.essence() for stage in self.stages}
        names = {model: name for name, model in self.models.items() if named.get(model) == own.get(model)}
        runs: list[Run] = []
        for ref, span, parameters in entries:
            name = names.get(str(ref))
            scale = _factor_in(parameters)
            if name is None or (parameters and parameters != {"scale": self._scale(scale)}):
                return None
            runs.append(Run(name, *(span or (0, self.encoding.layers[name])), scale))
        path = joined(runs)
        return (path, runs[0].model) if path and runs[0].model == runs[-1].model else None


def _parents(config: EvolveConfig, checkpoints: Mapping[ModelRef, Model]) -> dict[str, tuple[str, Anatomy]]:
    """The genome's models by their short names: how recipes name them, and how they are made."""
    genome = config.genome
    opened = [checkpoints[ModelRef.parse(model)] for model in genome.models]
    made = [Anatomy.of({name: t.shape for name, t in model.tensors.items()}, model.config) for model in opened]
    return dict(zip(genome.model_names, zip(genome.models, made, strict=True), strict=True))


def _misfits(anatomies: Mapping[str, Anatomy]) -> Iterator[str]:
    """What layers of these models cannot be put behind one another for."""
    (first, one), *others = anatomies.items()
    if one.layers < 1:
        yield f"models: {first} has no numbered layers, so there are no paths through it"
    for name, other in others:
        names = sorted(one.inside.keys() | other.inside.keys())
        odd = next((tensor for tensor in names if one.inside.get(tensor) != other.inside.get(tensor)), None)
        if odd is not None:
            yield (
                f"models: layers of a path must have the same tensors, but {odd} is {_shown(one, odd)} in {first} "
                f"and {_shown(other, odd)} in {name}; take models of one architecture"
            )


def _warn_of_settings(anatomies: Mapping[str, Anatomy]) -> None:
    """Say so where layers will run under another config than their own."""
    (first, one), *others = anatomies.items()
    for name, other in others:
        keys = [key for key in _OF_ALL_LAYERS if one.settings.get(key) != other.settings.get(key)]
        if keys:
            warnings.warn(
                f"genome.models: {name} differs from {first} in {', '.join(keys)} of config.json, which hold for "
                f"all layers of a path; they will be {first}'s",
                stacklevel=3,
            )


def _shown(anatomy: Anatomy, tensor: str) -> str:
    return str(list(anatomy.inside[tensor])) if tensor in anatomy.inside else "not there"


def _section_faults(layers: Mapping[str, int], section: LayerPaths, filters: Sequence[str]) -> Iterator[str]:
    """What the config's section asks of models that do not have it."""
    least, most = limits(layers, section)
    shallowest, deepest = (pick(layers, key=lambda name: layers[name]) for pick in (min, max))
    for key, bound, value, model, broken in (
        ("min_layers", "at most", least, shallowest, least > layers[shallowest]),
        ("max_layers", "at least", most, deepest, most < layers[deepest]),
    ):
        if broken:
            own = f"{layers[model]}, so that {model} is a path"
            yield f"layer_paths.{key}: must be {bound} {own}, but got {value}"
    if section.scale and not section.scale.fixed and not filters:
        yield (
            "layer_paths.scale: no factor on what layers add can be written for these models, which normalise it "
            "or name its projections in an unknown way; write scale: 1"
        )


def _factor_in(parameters: Mapping[str, Any]) -> float:
    """The factor that a slice puts on what its layers add, if it does that; 1 without parameters."""
    match parameters.get("scale"):
        case [{"value": int() | float() as scale}, *_]:
            return float(scale)
    return 1.0
