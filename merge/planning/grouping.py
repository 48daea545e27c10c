"""Which tensors of which models make each tensor of the output: slices, modules, layers."""

import warnings
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

from heterosis.merge.models.layout import (
    Place,
    comes_first,
    embedding_name,
    is_head,
    layer_counts,
    main_stack,
    of_the_stack,
    place_of,
    rivals,
    stack_sizes,
)
from heterosis.merge.models.sources import Model, TensorSource
from heterosis.merge.planning.modules import candidates, module_of
from heterosis.merge.planning.output_config import Taken
from heterosis.merge.recipe.parameters import Setting
from heterosis.merge.recipe.recipe import Module, Recipe
from heterosis.merge.recipe.reference import ModelRef

Settings: TypeAlias = Mapping[str, Setting]


@dataclass(frozen=True)
class Input:
    """A model's part in a slice."""

    ref: ModelRef
    tensors: Mapping[str, TensorSource]  # of the slice's module
    start: int
    stop: int
    parameters: Settings


@dataclass(frozen=True)
class Slice:
    inputs: tuple[Input, ...]
    base: ModelRef | None
    levels: tuple[Settings, ...]  # of parameters, below the inputs' own
    where: str
    base_added: bool = False  # to the inputs, without being listed


@dataclass(frozen=True)
class Group:
    """One output tensor to be: each input's own name of it, and its position t."""

    name: str
    part: Slice
    own: tuple[str, ...]
    t: float


@dataclass
class Grouping:
    """Sorts the tensors of a recipe's models.

    Attributes:
        recipe: The recipe.
        checkpoints: Its models.
        faults: What was found wrong.
        layers: Of every stack that slices build: the donor's number of layers, and what is taken from where, as
            far as configs count the layers.
    """

    recipe: Recipe
    checkpoints: Mapping[ModelRef, Model]
    faults: list[str] = field(default_factory=list)
    layers: dict[str, tuple[int, Taken]] = field(default_factory=dict)

    def slices(self, module: str | None, part: Module | Recipe) -> tuple[list[Slice], str | None]:
        """The slices of a module, or of the whole model, and the stack of layers that they take from."""
        where = "" if module is None else f"modules.{module}."
        tensors = {ref: self._tensors_of(ref, module) for ref in self.checkpoints}
        donor = tensors[self.recipe.donor]
        if not donor:
            parts = ", ".join(candidates(self.checkpoints[self.recipe.donor].tensors))
            self.faults.append(f"modules.{module}: {self.recipe.donor} has no such part; it has {parts}")
        stack = main_stack(donor, self.checkpoints[self.recipe.donor].config)
        sizes = {ref: stack_sizes(own).get(stack or "", 0) for ref, own in tensors.items()}
        levels = (self.recipe.parameters,) if module is None else (part.parameters, self.recipe.parameters)
        if part.models:
            inputs = [Input(m.model, tensors[m.model], 0, sizes[m.model], m.parameters) for m in part.models]
            base = self.recipe.base_model
            added = base is not None and base not in {i.ref for i in inputs}
            if base is not None and added:
                inputs.append(Input(base, tensors[base], 0, sizes[base], {}))
            return [Slice(tuple(inputs), base, levels, f"{where}models", added)], None
        others = rivals(stack_sizes(donor), stack) if module is None else []
        if others:
            stacks = ", ".join(sorted([*others, stack or ""]))
            parts = ", ".join(candidates(donor))
            self.faults.append(
                f"slices: {self.recipe.donor} has several stacks of layers ({stacks}); write the slices under "
                f"modules, which can be {parts}"
            )
        slices = []
        for i, slice_ in enumerate(part.slices or ()):
            here = f"{where}slices[{i}]"
            inputs = []
            for j, source in enumerate(slice_.sources):
                start, stop = source.layer_range
                if stop > sizes[source.model]:
                    self.faults.append(
                        f"{here}.sources[{j}].layer_range: `stop <= layers` must hold, but got "
                        f"[{start}, {stop}] of the {sizes[source.model]} layers of {source.model}"
                    )
                inputs.append(Input(source.model, tensors[source.model], start, stop, source.parameters))
            base = slice_.base_model or self.recipe.base_model
            slices.append(Slice(tuple(inputs), base, (slice_.parameters, *levels), here))
        firsts = [part.inputs[0] for part in slices]
        if stack is not None:
            counts = self.take(stack, [(x.ref, x.start, x.stop) for x in firsts])
            if all(x.start == x.stop for x in firsts):
                self.faults.append(f"{where}slices: must take at least one layer, but all ranges are empty")
            if not self.faults:
                self.faults += _uncounted_faults(slices, counts)
        return slices, stack

    def take(self, stack: str, ranges: Sequence[tuple[ModelRef, int, int]]) -> dict[ModelRef, int]:
        """Note which layers are taken of which models, and return how many the config of each counts."""
        refs = dict.fromkeys([self.recipe.donor, *(ref for ref, _, _ in ranges)])
        models = {ref: self.checkpoints[ref] for ref in refs}
        counts = {ref: layer_counts(model.tensors, model.config).get(stack, 0) for ref, model in models.items()}
        taken = [(models[ref].config, min(i, counts[ref]), min(j, counts[ref])) for ref, i, j in ranges]
        self.layers[stack] = (counts[self.recipe.donor], taken)
        return counts

    def _tensors_of(self, ref: ModelRef, module: str | None) -> Mapping[str, TensorSource]:
        tensors = self.checkpoints[ref].tensors
        if module is None:
            return tensors
        modules = tuple(self.recipe.modules or ())
        return {name: source for name, source in tensors.items() if module_of(name, modules) == module}

    def groups(self, slices: Sequence[Slice], stack: str | None) -> Iterator[Group]:
        """Every output tensor of a module. ``stack`` is what slices take from; None merges models as they are."""
        whole = {name for part in slices for x in part.inputs for name in of_the_stack(x.tensors)}
        # Where any model has a head of its own, models that tie theirs to the embedding give that.
        heads = [name for part in slices for x in part.inputs for name in x.tensors if is_head(name)]
        if not heads:
            _warn_of_tied_heads(slices)
        for part, first in ((slices[0], True), (slices[-1], False)):
            known = [name for x in part.inputs for name in x.tensors]
            for name in dict.fromkeys([*known, *heads]):
                place = place_of(name)
                outside = place is None or (stack is not None and place.stack != stack) or name in whole
                if outside and comes_first(name) == first:
                    yield Group(name, part, (name,) * len(part.inputs), 0.0)
        offset = 0
        for part in slices:
            depth = part.inputs[0].stop - part.inputs[0].start
            for name, place in _layer_names(part, stack, whole):
                k = place.index - (0 if stack is None else part.inputs[0].start)
                size = self._stack_sizes[place.stack] if stack is None else depth
                t = k / (size - 1) if size > 1 else 1.0
                if stack is None:
                    yield Group(name, part, (name,) * len(part.inputs), t)
                else:
                    own = tuple(place.name_at(x.start + k) for x in part.inputs)
                    yield Group(place.name_at(offset + k), part, own, t)
            offset += depth

    @cached_property
    def _stack_sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for checkpoint in self.checkpoints.values():
            for stack, size in stack_sizes(checkpoint.tensors).items():
                sizes[stack] = max(size, sizes.get(stack, 0))
        return sizes


def _uncounted_faults(slices: Sequence[Slice], counts: Mapping[ModelRef, int]) -> Iterator[str]:
    """Layers that a config does not count but others follow: no config of the output tells them apart."""
    taking = [part for part in slices if part.inputs[0].start < part.inputs[0].stop]
    for part in taking[:-1]:
        x = part.inputs[0]
        if x.stop > counts[x.ref]:
            yield (
                f"{part.where}.sources[0].layer_range: must end at {counts[x.ref]}, the number of layers that the "
                f"config of {x.ref} counts, where others follow, but got [{x.start}, {x.stop}]"
            )


def _warn_of_tied_heads(slices: Sequence[Slice]) -> None:
    """Say so where the last slice's head is not had, because it is tied to the first slice's embedding."""
    first, last = ([_embedding(x) for x in part.inputs] for part in (slices[0], slices[-1]))
    if first != last and all(first):
        models, others = (" and ".join(str(x.ref) for x in part.inputs) for part in (slices[0], slices[-1]))
        warnings.warn(
            f"slices: the head is tied to the embedding, which comes from the first slice ({models}), "
            f"so that of the last ({others}) has no effect",
            stacklevel=2,
        )


def _embedding(x: Input) -> Hashable:
    name = embedding_name(x.tensors)
    return x.tensors[name].identity if name else None


def _layer_names(part: Slice, stack: str | None, whole: Collection[str]) -> Iterator[tuple[str, Place]]:
    """Layer tensors of a slice, as its first input names them; only of ``stack`` if given, and not ``whole``."""
    first = part.inputs[0]
    seen = set()
    for x in part.inputs:
        for name in x.tensors:
            place = place_of(name)
            if place is None or (stack is not None and place.stack != stack) or name in whole:
                continue
            if stack is not None:
                if not x.start <= place.index < x.stop:
                    continue
                place = Place(place.stack, place.index - x.start + first.start, place.rest)
                name = place.name_at(place.index)
            if name not in seen:
                seen.add(name)
                yield name, place
