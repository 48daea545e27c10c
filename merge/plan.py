"""From a recipe to a plan: one operation for every output tensor, as data.

Planning reads headers only. It fails, naming every fault, when a tensor is missing, left over or of another
shape, or when a parameter is missing or unknown, so that a plan that was built can be executed.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any

import torch

from heterosis.errors import InputError, did_you_mean
from heterosis.merge.checkpoint import Checkpoint, TensorSource, open_checkpoint
from heterosis.merge.layout import (
    Place,
    comes_first,
    embedding_name,
    is_head,
    layer_count_key,
    main_stack,
    place_of,
    stack_sizes,
)
from heterosis.merge.methods import Method, Parameter, get_method, methods
from heterosis.merge.methods.random_mask import mask_key
from heterosis.merge.parameters import Setting, lookup
from heterosis.merge.recipe import ModelRef, Recipe

Settings = Mapping[str, Setting]

# Buffers that old checkpoints hold and that no current model reads; dropped where not all inputs have them.
_OBSOLETE = ("rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias")


@dataclass(frozen=True)
class TensorOp:
    """How one output tensor comes about.

    Attributes:
        name: Its name in the output.
        shape: Its shape.
        dtype: Its dtype in the output.
        compute: The dtype that inputs and task vectors are rounded to before the arithmetic.
        method: The merge method; None copies the one input.
        inputs: The tensors merged, without the base where the method works on task vectors.
        base: The base tensor where the method works on task vectors.
        arguments: The method's parameters, per-input ones as tuples.
        keys: Addresses of random masks, one for each input.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    compute: torch.dtype
    method: Method | None
    inputs: tuple[TensorSource, ...]
    base: TensorSource | None
    arguments: Mapping[str, Any]
    keys: tuple[tuple[int, int], ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @cached_property
    def fingerprint(self) -> tuple[object, ...]:
        """Equal for two operations that give the same tensor bit for bit."""
        sources = (*self.inputs, *([self.base] if self.base else []))
        name = self.method.name if self.method else None
        identities = tuple(s.identity for s in sources)
        return name, identities, tuple(sorted(self.arguments.items())), self.keys, self.dtype, self.compute

    def describe(self) -> str:
        """One line for people."""
        numbers = ", ".join(f"{k}={v}" for k, v in self.arguments.items())
        how = f"{self.method.name}({numbers})" if self.method else "copy"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name} {list(self.shape)} {dtype}: {how}, inputs: {len(self.inputs)}"


@dataclass(frozen=True)
class MergePlan:
    """All operations of a merge, and what goes with the tensors.

    Attributes:
        recipe: What was planned.
        ops: One for each output tensor, in the order of the output.
        config: The output's config.json.
        donor: The checkpoint that gives config, tokenizer and companion files.
        checkpoints: Every model of the recipe.
    """

    recipe: Recipe
    ops: tuple[TensorOp, ...]
    config: dict[str, Any]
    donor: Checkpoint
    checkpoints: Mapping[ModelRef, Checkpoint]

    @property
    def bytes_written(self) -> int:
        return sum(op.numel * op.dtype.itemsize for op in self.ops)

    @property
    def bytes_read(self) -> int:
        """Bytes of all input tensors, each counted once for each operation that reads it."""
        return sum(
            op.numel * s.dtype.itemsize for op in self.ops for s in (*op.inputs, *([op.base] if op.base else []))
        )

    @property
    def adapter_bytes(self) -> int:
        """Memory that adapters' factors take once they were read, beside the buffers."""
        return sum(checkpoint.resident_bytes for checkpoint in self.checkpoints.values())

    @property
    def parameters(self) -> int:
        return sum(op.numel for op in self.ops)


@dataclass(frozen=True)
class _Input:
    """A model's part in a slice."""

    ref: ModelRef
    checkpoint: Checkpoint
    start: int
    stop: int
    parameters: Settings


@dataclass(frozen=True)
class _Slice:
    inputs: tuple[_Input, ...]
    base: ModelRef | None
    parameters: Settings


@dataclass
class _Planner:
    recipe: Recipe
    checkpoints: dict[ModelRef, Checkpoint]
    method: Method
    positions: dict[ModelRef, int]
    faults: list[str] = field(default_factory=list)
    faulty: set[tuple[str, str]] = field(default_factory=set)  # settings that a fault was noted for

    def plan(self) -> MergePlan:
        donor = self.checkpoints[self.recipe.donor]
        stack = main_stack(donor.tensors, donor.config)
        slices = self._slices(stack)
        self._check_contract(slices)
        self._raise_faults()
        ops = [op for group in self._groups(slices, stack) if (op := self._operation(*group))]
        self._raise_faults()
        assert len({op.name for op in ops}) == len(ops)
        config = self._config(donor, slices, {op.name: op for op in ops})
        return MergePlan(self.recipe, tuple(ops), config, donor, self.checkpoints)

    def _raise_faults(self) -> None:
        if self.faults:
            shown = self.faults[:20]
            more = [f"... and {len(self.faults) - 20} more faults"] if len(self.faults) > 20 else []
            raise InputError(*shown, *more)

    # ------------------------------------------------------------------ slices

    def _slices(self, stack: str | None) -> tuple[_Slice, ...]:
        recipe, checkpoints = self.recipe, self.checkpoints
        layers = {ref: stack_sizes(c.tensors).get(stack or "", 0) for ref, c in checkpoints.items()}
        if recipe.models:
            inputs = [
                _Input(m.model, checkpoints[m.model], 0, layers[m.model], m.parameters) for m in recipe.models
            ]
            base = recipe.base_model
            if base and base not in {i.ref for i in inputs}:
                inputs.append(_Input(base, checkpoints[base], 0, layers[base], {}))
            return (_Slice(tuple(inputs), base, {}),)
        slices = []
        for i, part in enumerate(recipe.slices or ()):
            inputs = []
            for j, source in enumerate(part.sources):
                start, stop = source.layer_range
                count = layers[source.model]
                if stop > count:
                    self.faults.append(
                        f"slices[{i}].sources[{j}].layer_range: `stop <= layers` must hold, but got "
                        f"[{start}, {stop}] of the {count} layers of {source.model}"
                    )
                inputs.append(_Input(source.model, checkpoints[source.model], start, stop, source.parameters))
            slices.append(_Slice(tuple(inputs), part.base_model or recipe.base_model, part.parameters))
        return tuple(slices)

    def _check_contract(self, slices: Sequence[_Slice]) -> None:
        """Numbers of inputs, the base's presence, and the names of parameters."""
        method = self.method
        low, high = method.inputs
        for i, part in enumerate(slices):
            where = f"slices[{i}]" if self.recipe.slices else "models"
            refs = [x.ref for x in part.inputs]
            if method.base in ("required", "input"):
                if part.base is None:
                    self.faults.append(
                        f"base_model: {method.name} needs one; name the model that the others are compared to"
                    )
                    continue
                if part.base not in refs:
                    self.faults.append(
                        f"{where}: {method.name} needs the base model {part.base} among the sources; list it"
                    )
                    continue
            count = len(refs) - (method.takes_deltas and part.base in refs)
            if not low <= count <= (high if high is not None else count):
                wanted = f"exactly {low}" if low == high else f"at least {low}"
                hint = " (a base_model that is not listed counts as one)" if method.base == "ignored" else ""
                self.faults.append(f"{where}: {method.name} takes {wanted} models, but got {count}{hint}")
        for where, settings in self._all_settings():
            for name in settings:
                self._check_parameter(where, name)

    def _all_settings(self) -> Iterator[tuple[str, Settings]]:
        yield "parameters", self.recipe.parameters
        for i, model in enumerate(self.recipe.models or ()):
            yield f"models[{i}].parameters", model.parameters
        for i, part in enumerate(self.recipe.slices or ()):
            yield f"slices[{i}].parameters", part.parameters
            for j, source in enumerate(part.sources):
                yield f"slices[{i}].sources[{j}].parameters", source.parameters

    def _check_parameter(self, where: str, name: str) -> None:
        known = self.method.parameters
        if name in known:
            if not known[name].per_input and ("models[" in where or "sources[" in where):
                self.faults.append(
                    f"{where}.{name}: holds for the whole merge; write it under the slice or at top level"
                )
            return
        elsewhere = {p for m in methods().values() for p in m.parameters} | {"int8_mask"}
        if name in elsewhere:
            if name != "int8_mask":
                warnings.warn(f"{where}.{name}: has no effect with {self.method.name}", stacklevel=2)
            return
        hint = did_you_mean(name, known)
        self.faults.append(f"{where}.{name}: unknown parameter of '{self.method.name}'{hint}")

    # ------------------------------------------------------------- tensors

    def _groups(
        self, slices: Sequence[_Slice], stack: str | None
    ) -> Iterator[tuple[str, _Slice, list[str], float]]:
        """Every output tensor: its name, its slice, each input's own name of it, and its position t."""
        sliced = bool(self.recipe.slices)
        for part, first in ((slices[0], True), (slices[-1], False)):
            for name in self._names(part):
                place = place_of(name)
                outside = place is None or (sliced and place.stack != stack)
                if outside and comes_first(name) == first:
                    yield name, part, [name] * len(part.inputs), 0.0
        offset = 0
        for part in slices:
            depth = part.inputs[0].stop - part.inputs[0].start
            for name, place in self._layer_names(part, stack if sliced else None):
                k = place.index - part.inputs[0].start if sliced else place.index
                size = depth if sliced else self._stack_sizes[place.stack]
                t = k / (size - 1) if size > 1 else 1.0
                names = [place.name_at(x.start + k) if sliced else name for x in part.inputs]
                yield place.name_at(offset + k) if sliced else name, part, names, t
            offset += depth

    @cached_property
    def _stack_sizes(self) -> dict[str, int]:
        sizes: dict[str, int] = {}
        for checkpoint in self.checkpoints.values():
            for stack, size in stack_sizes(checkpoint.tensors).items():
                sizes[stack] = max(size, sizes.get(stack, 0))
        return sizes

    def _names(self, part: _Slice) -> list[str]:
        """Names in any of a slice's models, in the order of their first appearance."""
        return list(dict.fromkeys(name for x in part.inputs for name in x.checkpoint.tensors))

    def _layer_names(self, part: _Slice, stack: str | None) -> Iterator[tuple[str, Place]]:
        """Layer tensors of a slice, as its first input names them; only of ``stack`` if given."""
        first = part.inputs[0]
        seen = set()
        for x in part.inputs:
            for name in x.checkpoint.tensors:
                place = place_of(name)
                if place is None or (stack is not None and place.stack != stack):
                    continue
                if stack is not None:
                    if not x.start <= place.index < x.stop:
                        continue
                    place = Place(place.stack, place.index - x.start + first.start, place.rest)
                    name = place.name_at(place.index)
                if name not in seen:
                    seen.add(name)
                    yield name, place

    def _operation(self, name: str, part: _Slice, names: list[str], t: float) -> TensorOp | None:
        sources: list[TensorSource] = []
        for x, own in zip(part.inputs, names, strict=True):
            source = x.checkpoint.tensors.get(own) or _tied(x.checkpoint, own)
            if source is None:
                if own.endswith(_OBSOLETE):
                    return None
                has = next(
                    str(y.ref) for y, n in zip(part.inputs, names, strict=True) if n in y.checkpoint.tensors
                )
                self.faults.append(f"{own}: missing in {x.ref}, but {has} has it; merge one architecture only")
                return None
            sources.append(source)
        shapes = {s.shape for s in sources}
        if len(shapes) > 1:
            first, other = sources[0], next(s for s in sources if s.shape != sources[0].shape)
            refs = [str(part.inputs[sources.index(s)].ref) for s in (first, other)]
            self.faults.append(
                f"{name}: shapes must match, but got {list(first.shape)} in {refs[0]} and {list(other.shape)} in "
                f"{refs[1]}; merge one architecture only"
            )
            return None
        compute, dtype = self._dtypes(sources)
        refs_in = [x.ref for x in part.inputs]
        if not compute.is_floating_point:
            return TensorOp(name, sources[0].shape, dtype, compute, None, tuple(sources), None, {}, ())
        order = self._roles(part, refs_in)
        base = sources[refs_in.index(part.base)] if self.method.takes_deltas and part.base else None
        inputs = tuple(sources[k] for k in order)
        if base is not None and all(s.identity == base.identity for s in inputs):
            return TensorOp(name, base.shape, dtype, compute, None, (base,), None, {}, ())
        arguments = self._arguments(part, [(part.inputs[k], names[k]) for k in order], name, t)
        if arguments is None:
            return None
        if not self.method.reduces:  # its numbers can be had now, so its objections too
            try:
                self.method.function(**arguments)
            except ValueError as error:
                if not self.faults:  # the first tensor stands for all
                    self.faults.append(f"{name}: {error}")
                return None
        keys = tuple(mask_key(self.recipe.seed, name, self.positions[refs_in[k]]) for k in order)
        return TensorOp(name, inputs[0].shape, dtype, compute, self.method, inputs, base, arguments, keys)

    def _roles(self, part: _Slice, refs: list[ModelRef]) -> list[int]:
        """Which inputs the method gets, in its order."""
        order = list(range(len(refs)))
        if self.method.base == "ignored" or part.base is None:
            return order
        at = refs.index(part.base)
        rest = [k for k in order if k != at]
        return rest if self.method.takes_deltas else [at, *rest]

    def _dtypes(self, sources: Sequence[TensorSource]) -> tuple[torch.dtype, torch.dtype]:
        """The dtype of the arithmetic's inputs and that of the output."""
        stored = reduce(torch.promote_types, (s.dtype for s in sources))
        if not stored.is_floating_point:
            return stored, stored
        compute = _dtype(self.recipe.dtype) or stored
        return compute, _dtype(self.recipe.out_dtype) or compute

    def _arguments(
        self, part: _Slice, inputs: Sequence[tuple[_Input, str]], name: str, t: float
    ) -> dict[str, Any] | None:
        arguments: dict[str, Any] = {}
        for parameter in self.method.parameters.values():
            levels = (part.parameters, self.recipe.parameters)
            if parameter.per_input:
                values = tuple(
                    self._value(parameter, (x.parameters, *levels), own, t, name, str(x.ref)) for x, own in inputs
                )
                arguments[parameter.argument] = values
            else:
                arguments[parameter.argument] = self._value(parameter, levels, name, t, name)
        if self.faults:
            return None
        return arguments

    def _value(
        self, parameter: Parameter, levels: Sequence[Settings], name: str, t: float, where: str, ref: str = ""
    ) -> float | bool | None:
        try:
            value = lookup(levels, parameter.name, name, t, parameter.kind)
            if value is None and parameter.required:
                raise ValueError(f"{self.method.name} needs '{parameter.name}', but no setting applies")
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

    # -------------------------------------------------------------- config

    def _config(self, donor: Checkpoint, slices: Sequence[_Slice], ops: Mapping[str, TensorOp]) -> dict[str, Any]:
        config = copy.deepcopy(donor.config)
        dtypes = {op.dtype for op in ops.values() if op.dtype.is_floating_point}
        if len(dtypes) == 1:
            config.pop("torch_dtype", None)
            config["dtype"] = str(dtypes.pop()).removeprefix("torch.")
        heads = [name for name in ops if is_head(name)]
        embedding = embedding_name(ops)
        if heads and config.get("tie_word_embeddings", True) and embedding:
            config["tie_word_embeddings"] = all(
                [s.identity for s in ops[h].inputs] == [s.identity for s in ops[embedding].inputs] for h in heads
            )
        elif not heads and any(is_head(name) for name in donor.tensors):
            config["tie_word_embeddings"] = True  # the last slice's models have no head of their own
        if self.recipe.slices:
            self._fix_layers(config, slices)
        return config

    def _fix_layers(self, config: dict[str, Any], slices: Sequence[_Slice]) -> None:
        """Set the layer count, and let per-layer lists follow the layers that were taken."""
        path = layer_count_key(config)
        if path is None:
            warnings.warn("config.json has no layer count that could be set for the slices", stacklevel=2)
            return
        section = config if len(path) == 1 else config[path[0]]
        key = path[-1]
        before = section[key]
        section[key] = sum(part.inputs[0].stop - part.inputs[0].start for part in slices)
        if isinstance(section.get("layer_types"), list) and len(section["layer_types"]) == before:
            taken = []
            for part in slices:
                first = part.inputs[0]
                own = first.checkpoint.config if len(path) == 1 else first.checkpoint.config.get(path[0], {})
                kinds = own.get("layer_types", section["layer_types"])  # older configs say nothing
                taken += kinds[first.start : first.stop]
            section["layer_types"] = taken


def _tied(checkpoint: Checkpoint, name: str) -> TensorSource | None:
    """What stands in for a head that the model ties to its embedding."""
    if not is_head(name) or not checkpoint.config.get("tie_word_embeddings", True):
        return None
    embedding = embedding_name(checkpoint.tensors)
    return checkpoint.tensors[embedding] if embedding else None


def _dtype(name: str | None) -> torch.dtype | None:
    return getattr(torch, name.removeprefix("torch.")) if name else None


def _open_all(
    refs: Sequence[ModelRef], open_model: Callable[[ModelRef], Checkpoint]
) -> dict[ModelRef, Checkpoint]:
    checkpoints: dict[ModelRef, Checkpoint] = {}
    faults: list[str] = []
    for ref in refs:
        try:
            checkpoints[ref] = open_model(ref)
        except InputError as error:
            faults += error.faults
    if faults:
        raise InputError(*faults)
    return checkpoints


def build_plan(
    recipe: Recipe, open_model: Callable[[ModelRef], Checkpoint] = open_checkpoint, *, origin: str = ""
) -> MergePlan:
    """Plan a merge.

    Args:
        recipe: What to merge.
        open_model: Opens a model; give one that caches to plan many recipes over the same models.
        origin: The recipe's file, for messages.

    Raises:
        InputError: If the recipe cannot be run, with every fault found.
    """
    try:
        method = get_method(recipe.merge_method)
        refs = recipe.referenced_models()
        checkpoints = _open_all(refs, open_model)
        positions = {ref: i for i, ref in enumerate(refs)}
        return _Planner(recipe, checkpoints, method, positions).plan()
    except InputError as error:
        if not origin:
            raise
        raise InputError(*(f"{origin}: {fault}" for fault in error.faults)) from error
