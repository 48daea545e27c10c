"""A plan: one operation for every output tensor, as data."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from heterosis.merge.files import read_json
from heterosis.merge.methods import Method
from heterosis.merge.models.sources import Model, TensorSource
from heterosis.merge.models.tokenizer import ModelTokenizer
from heterosis.merge.recipe.recipe import Recipe
from heterosis.merge.recipe.reference import ModelRef

GENERATION_CONFIG = "generation_config.json"


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
        models: Those that the inputs come from, and at the end the one that the base comes from.
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
    models: tuple[ModelRef, ...] = ()

    @classmethod
    def copy_of(
        cls,
        name: str,
        sources: Sequence[TensorSource],
        dtypes: tuple[torch.dtype, torch.dtype],
        models: Sequence[ModelRef],
    ) -> "TensorOp":
        """A copy of the first source, which further ones must equal; ``dtypes`` are (compute, dtype)."""
        compute, dtype = dtypes
        return cls(name, sources[0].shape, dtype, compute, None, tuple(sources), None, {}, (), tuple(models))

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def sources(self) -> tuple[TensorSource, ...]:
        """The inputs, then the base."""
        return self.inputs if self.base is None else (*self.inputs, self.base)

    @cached_property
    def fingerprint(self) -> tuple[object, ...]:
        """Equal for two operations that give the same tensor bit for bit."""
        name = self.method.name if self.method else None
        identities = tuple(s.identity for s in self.sources)
        return name, identities, tuple(sorted(self.arguments.items())), self.keys, self.dtype, self.compute


@dataclass(frozen=True)
class MergePlan:
    """All operations of a merge, and what goes with the tensors.

    Attributes:
        recipe: What was planned.
        ops: One for each output tensor, in the order of the output.
        config: The output's config.json; empty where the inputs are weight files without one.
        donor: The model that gives config and companion files.
        checkpoints: Every model of the recipe, stages among them.
        tokenizer: The output's.
        stages: How those of the models that are stages come about.
    """

    recipe: Recipe
    ops: tuple[TensorOp, ...]
    config: dict[str, Any]
    donor: Model
    checkpoints: Mapping[ModelRef, Model]
    tokenizer: ModelTokenizer
    stages: Mapping[ModelRef, "MergePlan"] = field(default_factory=dict)

    def with_stages(self) -> list["MergePlan"]:
        """The plans of all stages that it takes, each after those that itself takes, and then this one."""
        found: dict[int, MergePlan] = {}

        def visit(plan: MergePlan) -> None:
            for stage in plan.stages.values():
                if id(stage) not in found:
                    visit(stage)
                    found[id(stage)] = stage

        visit(self)
        return [*found.values(), self]

    @property
    def bytes_written(self) -> int:
        return sum(op.numel * op.dtype.itemsize for op in self.ops)

    @property
    def bytes_read(self) -> int:
        """Bytes of all input tensors in files, stages' too, each counted once for each operation that reads it."""
        return sum(
            op.numel * source.dtype.itemsize
            for plan in self.with_stages()
            for op in plan.ops
            for ref, source in zip(op.models, op.sources, strict=True)
            if ref not in plan.stages
        )

    @property
    def adapter_bytes(self) -> int:
        """Memory that adapters' factors take, beside the buffers, once they were read as float32."""
        models = {
            ref: model
            for plan in self.with_stages()
            for ref, model in plan.checkpoints.items()
            if ref not in plan.stages
        }
        return sum(model.resident_bytes for model in models.values())

    @property
    def generation_config(self) -> dict[str, Any]:
        """The output's generation_config.json, with its tokenizer's special tokens; empty where there is none."""
        path = self.donor.folder / GENERATION_CONFIG
        if not path.is_file():
            return {}
        of_tokenizer = self.tokenizer.folder != self.donor.folder
        return read_json(path) | (self.tokenizer.ids_in(GENERATION_CONFIG) if of_tokenizer else {})

    @property
    def parameters(self) -> int:
        return sum(op.numel for op in self.ops)
