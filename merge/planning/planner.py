"""From a recipe to a plan.

Planning reads headers only. It fails, naming every fault, when a tensor is missing, left over or of another
shape, or when a parameter is missing or unknown, so that a plan that was built can be executed.
"""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, reduce
from typing import Any, Literal, TypeAlias, get_args

import torch

from heterosis.errors import InputError, did_you_mean, few, within
from heterosis.merge.computing.stages import Stage
from heterosis.merge.methods import Method, Parameter, get_method
from heterosis.merge.methods.combine import is_copy
from heterosis.merge.methods.random_mask import mask_key
from heterosis.merge.models.checkpoint import open_all, open_checkpoint
from heterosis.merge.models.layout import (
    MASKED,
    OBSOLETE,
    comes_first,
    embedding_name,
    embedding_rows,
    is_head,
    is_vocabulary,
    place_of,
    stack_sizes,
    tied_to,
)
from heterosis.merge.models.names import renamed
from heterosis.merge.models.sources import Model, TensorSource
from heterosis.merge.models.tokenizer import ModelTokenizer
from heterosis.merge.plan import MergePlan, TensorOp
from heterosis.merge.planning.contract import input_faults, parameter_faults, unmatched_filters
from heterosis.merge.planning.grouping import Group, Grouping, Input, Settings, Slice
from heterosis.merge.planning.modules import candidates, module_of
from heterosis.merge.planning.output_config import output_config
from heterosis.merge.planning.output_tokenizer import output_tokenizer
from heterosis.merge.planning.unread import planned_program
from heterosis.merge.planning.vocabulary import Vocabulary
from heterosis.merge.recipe.parameters import lookup
from heterosis.merge.recipe.recipe import Recipe
from heterosis.merge.recipe.reference import ModelRef

# What to do with a tensor that not all models have: refuse it, merge those that have it, or leave it out.
Names: TypeAlias = Literal["same", "union", "intersection"]


def build_plan(
    recipe: Recipe,
    open_model: Callable[[ModelRef], Model] = open_checkpoint,
    *,
    names: Names = "same",
    origin: str = "",
) -> MergePlan:
    """Plan a merge.

    Args:
        recipe: What to merge.
        open_model: Opens a model; give one that caches to plan many recipes over the same models.
        names: Whether all models must have the same tensors, or what to do with those that some lack.
        origin: The recipe's file, for messages.

    Raises:
        InputError: If the recipe cannot be run, with every fault found.
    """
    if names not in get_args(Names):
        raise InputError(f"names: unknown choice {names!r}{did_you_mean(str(names), get_args(Names))}")
    stages: dict[str, Stage] = {}

    def open_any(ref: ModelRef) -> Model:
        return stages[ref.path] if ref.path in stages else open_model(ref)

    with within(origin):
        for stage in recipe.stages:
            assert stage.name is not None
            with within(stage.name):
                stages[stage.name] = Stage(ModelRef(stage.name), _build(stage, open_any, names))
        return _build(recipe, open_any, names)


def _build(recipe: Recipe, open_model: Callable[[ModelRef], Model], names: Names) -> MergePlan:
    method = get_method(recipe.merge_method)
    checkpoints = open_all(recipe.referenced_models(), open_model)
    stages = {ref: model.plan for ref, model in checkpoints.items() if isinstance(model, Stage)}
    checkpoints = {ref: renamed(model, checkpoints[recipe.donor]) for ref, model in checkpoints.items()}
    tokenizer, vocabulary = output_tokenizer(recipe, checkpoints[recipe.donor], checkpoints, open_model)
    return replace(_Planner(recipe, checkpoints, method, names, tokenizer, vocabulary).plan(), stages=stages)


@dataclass(frozen=True)
class _Held:
    """One input's tensor for a tensor of the output.

    Attributes:
        input: The model's part in the slice that it is from.
        name: What the input calls it.
        source: Where it is.
    """

    input: Input
    name: str
    source: TensorSource

    @property
    def ref(self) -> ModelRef:
        return self.input.ref


@dataclass
class _Planner:
    recipe: Recipe
    checkpoints: dict[ModelRef, Model]
    method: Method
    names: Names
    tokenizer: ModelTokenizer
    vocabulary: Vocabulary | None
    faults: list[str] = field(default_factory=list)
    faulty: set[tuple[str, str]] = field(default_factory=set)  # settings that a fault was noted for

    def plan(self) -> MergePlan:
        donor = self.checkpoints[self.recipe.donor]
        self.faults += parameter_faults(self.method, self.recipe)
        grouping = Grouping(self.recipe, self.checkpoints, self.faults)
        groups: list[Group] = []
        self._check_common_names(donor)
        for module, part in self.recipe.parts():
            slices, stack = grouping.slices(module, part)
            self.faults += input_faults(self.method, slices)
            if not self.faults:
                groups += grouping.groups(slices, stack)
        self._raise_faults()
        ops = {group.name: op for group in groups if (op := self._operation(group))}
        ops |= {op.name: op for op in self._left_alone(donor)}
        self._raise_faults()
        ops = _without_repeated_heads(ops)
        self._check_rows(ops)
        if not ops:
            raise InputError("the output would have no tensors; check the layer ranges")
        names = {ref: model.tensors for ref, model in self.checkpoints.items()}
        for text in unmatched_filters(self.recipe, self.method, names, ops):
            warnings.warn(text, stacklevel=2)
        if self.names != "same":
            self._note_depths(grouping, donor, ops)
        config = donor.config and output_config(
            donor.config,
            ops,
            donor_has_head=any(is_head(name) for name in donor.tensors),
            layers=grouping.layers,
            vocabulary_size=self.vocabulary.size if self.vocabulary else None,
            token_ids={} if self.tokenizer.folder == donor.folder else self.tokenizer.ids_in("config.json"),
        )
        return MergePlan(self.recipe, tuple(ops.values()), config, donor, self.checkpoints, self.tokenizer)

    def _raise_faults(self) -> None:
        if self.faults:
            raise InputError(*few(self.faults))

    def _check_common_names(self, donor: Model) -> None:
        """A union of models that share no tensor merges nothing."""
        if self.names != "union":
            return
        for ref, model in self.checkpoints.items():
            if model.tensors.keys().isdisjoint(donor.tensors):
                self.faults.append(f"{ref}: has no tensor in common with {donor.ref}; nothing would be merged")

    def _check_rows(self, ops: dict[str, TensorOp]) -> None:
        """An embedding and a head from different slices must have the same tokens, unless models are made so."""
        embedding = ops.get(embedding_name(ops) or "")
        if embedding is None:
            return
        for name, op in ops.items():
            if is_head(name) and op.shape[0] != embedding.shape[0]:
                remedy = "their vocabularies differ: add tokenizer_source: union (or base, or a model)"
                if any(self._differs(ref, name) for ref in self.checkpoints):
                    if self.vocabulary is None:
                        continue
                    remedy = (
                        "such models can be merged without a tokenizer section only, if they share a vocabulary"
                    )
                raise InputError(
                    f"{name}: must have a row for each of the {embedding.shape[0]} of {embedding.name}, but has "
                    f"{op.shape[0]}; {remedy}"
                )

    def _differs(self, ref: ModelRef, head: str) -> bool:
        """Whether a model's own head has another number of rows than its embedding."""
        source = self.checkpoints[ref].tensors.get(head)
        return source is not None and source.shape[0] != self._rows[ref]

    def _note_depths(self, grouping: Grouping, donor: Model, ops: Mapping[str, TensorOp]) -> None:
        """Where a union is deeper than the donor, or an intersection less deep, have the config follow."""
        sizes = {ref: stack_sizes(model.tensors) for ref, model in self.checkpoints.items()}
        written = stack_sizes(ops)
        for stack, own in sizes[donor.ref].items():
            size = written.get(stack, 0)
            if size != own and stack not in grouping.layers:
                deep = next(ref for ref in sizes if sizes[ref].get(stack, 0) >= size)
                shared = min(own, size)
                grouping.take(stack, [(donor.ref, 0, shared), (deep, shared, size)])

    def _left_alone(self, donor: Model) -> Iterator[TensorOp]:
        """Copies of the donor's tensors that no module of the recipe holds."""
        modules = tuple(self.recipe.modules or ())
        left = [name for name in donor.tensors if modules and module_of(name, modules) is None]
        if left:
            parts = ", ".join(candidates(left))
            warnings.warn(
                f"modules: {len(left)} tensors outside them ({parts}) are copied from {donor.ref}", stacklevel=2
            )
        for name in left:
            source = donor.tensors[name]
            if self.vocabulary and self._is_vocabulary(name, donor.ref, source):
                source = self.vocabulary.align(donor.ref, name, {donor.ref: source})
            yield TensorOp.copy_of(name, [source], self._dtypes([source]), [donor.ref])

    # ------------------------------------------------------------- operations

    def _operation(self, group: Group) -> TensorOp | None:
        held = self._held(group)
        if held is None:
            return None
        name, part = group.name, group.part
        held = self._aligned(group, held)
        if not self._same_shape(name, held) or not self._same_kind(name, held):
            return None
        sources, refs = [x.source for x in held], [x.ref for x in held]
        compute, dtype = dtypes = self._dtypes(sources)
        if not compute.is_floating_point:
            return TensorOp.copy_of(name, sources, dtypes, refs)
        at = refs.index(part.base) if part.base in refs and self.method.base != "ignored" else None
        if at is None and self.method.base in ("required", "input"):
            self.faults.append(f"{name}: missing in the base model {part.base}, which {self.method.name} needs")
            return None
        rest = [x for k, x in enumerate(held) if k != at]
        base = held[at] if at is not None and self.method.takes_deltas else None
        merged = rest if at is None or base is not None else [held[at], *rest]
        if base is not None and all(x.source.identity == base.source.identity for x in merged):
            return TensorOp.copy_of(name, [base.source], dtypes, [base.ref])
        if len(held) < len(part.inputs) and len(merged) < self.method.inputs[0]:  # of a union
            return TensorOp.copy_of(name, sources[:1], dtypes, refs[:1])
        arguments = self._arguments(part, merged, name, group.t)
        if arguments is None:
            return None
        try:
            program = planned_program(self.method, arguments, held[0].source.shape, len(merged))
        except ValueError as error:
            if not self.faults:  # the first tensor stands for all
                self.faults.append(f"{name}: {error}")
            return None
        if base is None and len(merged) == 1 and is_copy(program):
            return TensorOp.copy_of(name, [merged[0].source], dtypes, [merged[0].ref])
        return TensorOp(
            name,
            held[0].source.shape,
            dtype,
            compute,
            self.method,
            tuple(x.source for x in merged),
            None if base is None else base.source,
            arguments,
            keys=tuple(self._mask_key(name, x.ref) for x in merged),
            models=tuple(x.ref for x in (merged if base is None else [*merged, base])),
        )

    def _held(self, group: Group) -> list[_Held] | None:
        """A tensor of those inputs that have it; None to leave it out."""
        held = []
        missing = []
        for x, name in zip(group.part.inputs, group.own, strict=True):
            source = x.tensors.get(name) or self._tied(x, name)
            if source is None:
                missing.append((x, name))
            else:
                held.append(_Held(x, name, source))
        obsolete = group.name.endswith(OBSOLETE) and bool(self.checkpoints[self.recipe.donor].config)
        if missing and (self.names == "intersection" or obsolete):
            return None
        if obsolete and group.name.endswith(MASKED):
            return None
        if not held or (missing and self.names == "same"):
            x, name = missing[0]
            has = held[0].ref if held else "another model"
            remedy = self._remedy(x.ref, held[0].ref if held else None)
            self.faults.append(f"{name}: missing in {x.ref}, but {has} has it; {remedy}")
            return None
        return held

    def _remedy(self, ref: ModelRef, other: ModelRef | None) -> str:
        """What to do where a model lacks a tensor that another has, by what tells these apart."""
        if not self.checkpoints[self.recipe.donor].config:
            return "pass --tensor-union or --tensor-intersection"
        pair = [self.checkpoints[one] for one in (ref, other) if one is not None]
        kinds = [model.config.get("model_type") for model in pair]
        layers = [max(stack_sizes(model.tensors).values(), default=0) for model in pair]
        if len(set(kinds)) > 1:
            return f"merge one architecture only, not {' and '.join(map(str, kinds))}"
        if len(set(layers)) > 1:
            return f"merge models of as many layers, not {' and '.join(map(str, layers))}, or slices of them"
        return "merge one architecture only"

    def _tied(self, x: Input, name: str) -> TensorSource | None:
        """What stands in for a tensor that the model ties to another, such as a head to its embedding."""
        checkpoint = self.checkpoints[x.ref]
        if not checkpoint.config:  # a file of weights does not say what it ties
            return None
        if is_head(name) and not checkpoint.config.get("tie_word_embeddings", True):
            return None
        twin = tied_to(name, checkpoint.tensors)
        return checkpoint.tensors[twin] if twin else None

    def _aligned(self, group: Group, held: list[_Held]) -> list[_Held]:
        """Tensors with a row for each token, in the output's order of tokens."""
        vocabulary = self.vocabulary
        if vocabulary is None:
            return held
        if not all(self._is_vocabulary(x.name, x.ref, x.source) for x in held):
            if all(self._seems_vocabulary(x) for x in held):
                warnings.warn(
                    f"{group.name}: has as many entries as the embedding rows; they keep their own order",
                    stacklevel=2,
                )
            return held
        by_model = {x.ref: x.source for x in held}
        others = dict(self._of_other_slices(group.name, held))
        align = partial(vocabulary.align, name=group.name, sources=by_model, base=group.part.base, others=others)
        return [replace(x, source=align(x.ref)) for x in held]

    def _of_other_slices(self, name: str, held: Sequence[_Held]) -> Iterator[tuple[ModelRef, TensorSource]]:
        """The same tensor of the models that are not merged into this one."""
        refs, width = {x.ref for x in held}, held[0].source.shape[1:]
        for ref, model in self.checkpoints.items():
            source = model.tensors.get(name)
            if ref in refs or source is None or source.shape[1:] != width:
                continue
            if self._is_vocabulary(name, ref, source):
                yield ref, source

    @cached_property
    def _rows(self) -> dict[ModelRef, int | None]:
        """How many rows every model's embedding has."""
        return {ref: embedding_rows(model.tensors) for ref, model in self.checkpoints.items()}

    def _is_vocabulary(self, name: str, ref: ModelRef, source: TensorSource) -> bool:
        """Whether a model's tensor of this name has a row for each of its tokens."""
        return is_vocabulary(name, source.shape, self._rows[ref])

    def _seems_vocabulary(self, x: _Held) -> bool:
        """Whether a tensor of another name may have an entry for each token: one vector, outside the layers."""
        outside = place_of(x.name) is None and not comes_first(x.name)
        return outside and x.source.shape[-1:] == (self._rows[x.ref],) and math.prod(x.source.shape[:-1]) == 1

    def _same_shape(self, name: str, held: Sequence[_Held]) -> bool:
        first = held[0]
        other = next((x for x in held if x.source.shape != first.source.shape), None)
        if other is None:
            return True
        remedy = "merge one architecture only"
        widths = {x.source.shape[1:] for x in held}
        if len(widths) == 1 and self._is_vocabulary(name, first.ref, first.source):
            remedy = "their vocabularies differ: add tokenizer_source: union (or base, or a model)"
        elif all(self._seems_vocabulary(x) for x in held):
            remedy = "their vocabularies differ, and this cannot be put in another order; merge models of one"
        self.faults.append(
            f"{name}: shapes must match, but got {list(first.source.shape)} in {first.ref} and "
            f"{list(other.source.shape)} in {other.ref}; {remedy}"
        )
        return False

    def _same_kind(self, name: str, held: Sequence[_Held]) -> bool:
        """Whether the tensors are all floating, or all of the same integers."""
        first = held[0]
        if all(x.source.dtype.is_floating_point for x in held):
            return True
        other = next((x for x in held if x.source.dtype != first.source.dtype), None)
        if other is None:
            return True
        kinds = [str(x.source.dtype).removeprefix("torch.") for x in (first, other)]
        self.faults.append(
            f"{name}: must be floating in all models, or of one dtype, but got {kinds[0]} in {first.ref} and "
            f"{kinds[1]} in {other.ref}; save it in one dtype"
        )
        return False

    def _mask_key(self, name: str, ref: ModelRef) -> tuple[int, int]:
        """The address of a random mask; a stage's masks are others than those of the stages it uses."""
        stage = "" if self.recipe.name is None else f"{self.recipe.name}\0"
        return mask_key(self.recipe.seed, f"{stage}{name}", list(self.checkpoints).index(ref))

    def _dtypes(self, sources: Sequence[TensorSource]) -> tuple[torch.dtype, torch.dtype]:
        """The dtype of the arithmetic's inputs and that of the output."""
        stored = reduce(torch.promote_types, (s.dtype for s in sources))
        if not stored.is_floating_point:
            return stored, stored
        compute = _dtype(self.recipe.dtype) or stored
        return compute, _dtype(self.recipe.out_dtype) or compute

    # -------------------------------------------------------------- arguments

    def _arguments(self, part: Slice, merged: Sequence[_Held], name: str, t: float) -> dict[str, Any] | None:
        arguments: dict[str, Any] = {}
        for parameter in self.method.parameters.values():
            if parameter.per_input:
                arguments[parameter.argument] = tuple(
                    self._value(parameter, (x.input.parameters, *part.levels), x.name, t, name, str(x.ref))
                    for x in merged
                )
            else:
                arguments[parameter.argument] = self._value(parameter, part.levels, name, t, name)
        return None if self.faults else arguments

    def _hint(self, ref: str) -> str:
        """What to say of a base model that nobody listed, where it is an input like any other."""
        listed = {str(entry.model) for _, part in self.recipe.parts() for entry in part.models or ()}
        is_extra = self.method.base == "ignored" and ref == str(self.recipe.base_model) and ref not in listed
        return " (a base_model that is not listed is one of the models; list it, or remove it)" if is_extra else ""

    def _value(
        self, parameter: Parameter, levels: Sequence[Settings], name: str, t: float, where: str, ref: str = ""
    ) -> float | bool | None:
        try:
            value = lookup(levels, parameter.name, name, t, parameter.kind)
            if value is None and parameter.required:
                raise ValueError(
                    f"{self.method.name} needs '{parameter.name}', but no setting applies{self._hint(ref)}"
                )
            if isinstance(value, int | float):
                parameter.within.check(parameter.name, value)
        except ValueError as error:
            place = (ref, parameter.name)
            if place not in self.faulty:  # the first tensor stands for all that it concerns
                self.faulty.add(place)
                self.faults.append(f"{where}: {f'{ref}: ' if ref else ''}{error}")
            return None
        if value is None:
            return parameter.default[0] if parameter.per_input else parameter.default  # type: ignore[no-any-return]
        assert not isinstance(value, str)
        return value


def _without_repeated_heads(ops: dict[str, TensorOp]) -> dict[str, TensorOp]:
    """Leave out heads that are the embedding once more, as PyTorch files hold them."""
    embedding = ops.get(embedding_name(ops) or "")
    if embedding is None:
        return ops
    return {name: op for name, op in ops.items() if not is_head(name) or _made_of(op) != _made_of(embedding)}


def _made_of(op: TensorOp) -> tuple[object, ...]:
    return [source.identity for source in (*op.inputs, *([op.base] if op.base else []))], dict(op.arguments)


def _dtype(name: str | None) -> torch.dtype | None:
    return getattr(torch, name) if name else None
