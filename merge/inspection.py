"""A recipe's plan as a table: what happens to every tensor, and what it takes; read from headers alone."""

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heterosis.merge.computing.executor import DEFAULT_MEMORY_LIMIT
from heterosis.merge.files import nearest_existing
from heterosis.merge.models.checkpoint import OpenModels
from heterosis.merge.models.layout import comes_first, place_of
from heterosis.merge.plan import MergePlan, TensorOp
from heterosis.merge.planning.planner import build_plan
from heterosis.merge.recipe.recipe import Recipe
from heterosis.merge.recipe.reference import ModelRef, short_names


@dataclass(frozen=True)
class PlanRow:
    """What happens to a tensor, or to the tensor of this name in each of consecutive layers.

    Attributes:
        name: Of the tensor, with the range of layers as in ``model.layers.0-11.mlp.up_proj.weight``.
        tensors: How many it stands for.
        shape: Of each.
        dtype: In the output.
        method: The merge method, or ``copy``.
        inputs: Models, with their own layers where these are others: ``ann``, ``bob[4-7]``.
        base: The base model of task vectors.
        numbers: The method's arguments; a list has one number for each input.
    """

    name: str
    tensors: int
    shape: tuple[int, ...]
    dtype: str
    method: str
    inputs: tuple[str, ...]
    base: str | None
    numbers: Mapping[str, Any]


@dataclass(frozen=True)
class PlanSummary:
    """A plan, or that of a stage, which is never written.

    Attributes:
        name: Of a stage.
        method: The recipe's.
        rows: What happens to every tensor.
        tensors: How many there are.
        parameters: Their elements.
        bytes_read: Of all inputs in files, those of the stages that it takes among them.
        bytes_written: Of the output.
        adapter_bytes: Memory that adapters take beside the buffers, also those of stages.
    """

    name: str | None
    method: str
    rows: tuple[PlanRow, ...]
    tensors: int
    parameters: int
    bytes_read: int
    bytes_written: int
    adapter_bytes: int


@dataclass(frozen=True)
class RecipeReport:
    """What running a recipe would do.

    Attributes:
        models: The models' short names in the tables, and what they stand for.
        plans: The stages', and the recipe's at the end.
        buffer_bytes: Memory for buffers, where a merge is given no other limit.
        disk_bytes: What the output takes.
        free_bytes: What is free where it would be written.
        place: Where that is.
        warnings: What is odd, but no fault.
    """

    models: Mapping[str, str]
    plans: tuple[PlanSummary, ...]
    buffer_bytes: int
    disk_bytes: int
    free_bytes: int
    place: str
    warnings: tuple[str, ...]


def inspect_recipe(
    recipe: Recipe,
    *,
    origin: str = "",
    full: bool = False,
    place: Path = Path(),
) -> RecipeReport:
    """Plan a recipe and say what it would do.

    Args:
        recipe: A recipe.
        origin: Its file, for messages.
        full: Give every tensor a row of its own.
        place: Where the output would be written; it need not exist.

    Raises:
        InputError: If the recipe cannot be run.
    """
    with OpenModels() as open_model, recorded_warnings() as noted:
        plan = build_plan(recipe, open_model, origin=origin)
        models = list(recipe.original_models())
        names = dict(zip(models, short_names(models), strict=True))
        plans = tuple(_summary(each, names, full) for each in plan.with_stages())
    return RecipeReport(
        models={name: str(ref) for ref, name in names.items()},
        plans=plans,
        buffer_bytes=DEFAULT_MEMORY_LIMIT,
        disk_bytes=plan.bytes_written,
        free_bytes=shutil.disk_usage(nearest_existing(place)).free,
        place=str(place),
        warnings=tuple(noted),
    )


@contextmanager
def recorded_warnings() -> Iterator[list[str]]:
    """Collect our own warnings, each once, instead of showing them."""
    noted: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=r"heterosis\.")
        try:
            yield noted
        finally:
            noted += dict.fromkeys(str(warning.message) for warning in caught)


def _summary(plan: MergePlan, names: Mapping[ModelRef, str], full: bool) -> PlanSummary:
    return PlanSummary(
        plan.recipe.name,
        plan.recipe.merge_method,
        tuple(_rows(plan.ops, names, full)),
        len(plan.ops),
        plan.parameters,
        plan.bytes_read,
        plan.bytes_written,
        plan.adapter_bytes,
    )


@dataclass(frozen=True)
class _Shared:
    """What the operations of a row have in common."""

    shape: tuple[int, ...]
    dtype: str
    method: str
    inputs: tuple[tuple[str, int], ...]  # short name, and how many layers behind the output's its own is
    base: str | None
    numbers: tuple[tuple[str, Any], ...]


@dataclass
class _Run:
    """Consecutive layers whose tensors of one name have everything in common."""

    stack: str
    first: int
    rest: str
    count: int
    shared: _Shared


def _rows(ops: Sequence[TensorOp], names: Mapping[ModelRef, str], full: bool) -> Iterator[PlanRow]:
    """Rows in the order of the model: embeddings, layers, final norm and head."""
    outside = [op for op in ops if place_of(op.name) is None]
    for op in outside:
        if comes_first(op.name):
            yield _row(op.name, 1, 0, _shared(op, names))
    runs: list[_Run] = []
    for stack, rest, layers in _by_rest(ops):
        run = None
        for index, op in layers:
            shared = _shared(op, names)
            if run is not None and not full and run.shared == shared and run.first + run.count == index:
                run.count += 1
            else:
                run = _Run(stack, index, rest, 1, shared)
                runs.append(run)
    for run in sorted(runs, key=lambda run: (run.stack, run.first, run.rest)):
        layers_ = str(run.first) if run.count == 1 else f"{run.first}-{run.first + run.count - 1}"
        yield _row(".".join(filter(None, (run.stack, layers_, run.rest))), run.count, run.first, run.shared)
    for op in outside:
        if not comes_first(op.name):
            yield _row(op.name, 1, 0, _shared(op, names))


def _by_rest(ops: Sequence[TensorOp]) -> Iterator[tuple[str, str, list[tuple[int, TensorOp]]]]:
    """Tensors that differ in the layer alone, in the order of the layers."""
    found: dict[tuple[str, str], list[tuple[int, TensorOp]]] = {}
    for op in ops:
        if (place := place_of(op.name)) is not None:
            found.setdefault((place.stack, place.rest), []).append((place.index, op))
    for (stack, rest), layers in found.items():
        yield stack, rest, sorted(layers, key=lambda entry: entry[0])


def _shared(op: TensorOp, names: Mapping[ModelRef, str]) -> _Shared:
    labels = [names.get(ref, str(ref)) for ref in op.models]
    place = place_of(op.name)
    inputs = []
    for label, source in zip(labels, op.inputs, strict=False):
        own = place_of(source.name)
        inputs.append((label, own.index - place.index if own and place else 0))
    numbers = tuple((name.rstrip("_"), value) for name, value in op.arguments.items() if value is not None)
    return _Shared(
        op.shape,
        str(op.dtype).removeprefix("torch."),
        op.method.name if op.method else "copy",
        tuple(inputs),
        labels[-1] if op.base is not None else None,
        numbers,
    )


def _row(name: str, count: int, first: int, shared: _Shared) -> PlanRow:
    inputs = []
    for label, behind in shared.inputs:
        start, last = first + behind, first + behind + count - 1
        inputs.append(label if not behind else f"{label}[{start}]" if count == 1 else f"{label}[{start}-{last}]")
    numbers = {key: list(value) if isinstance(value, tuple) else value for key, value in shared.numbers}
    return PlanRow(name, count, shared.shape, shared.dtype, shared.method, tuple(inputs), shared.base, numbers)
