"""What a search config asks for, found out without tasks: its models, its space, its first candidate's plan."""

from collections.abc import Mapping
from dataclasses import dataclass

from heterosis.errors import InputError
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.space import SearchSpace
from heterosis.merge import Checkpoint, MergePlan, ModelRef, build_plan, open_checkpoint
from heterosis.merge.inspection import recorded_warnings
from heterosis.merge.layout import main_stack, stack_sizes
from heterosis.merge.methods import methods


@dataclass(frozen=True)
class SearchReport:
    """What a search would do.

    Attributes:
        method: The merge method.
        dimensions: How many numbers are searched.
        ranges: Where each parameter of the method is searched, and in how many dimensions.
        groups: Layers ``[start, stop)`` that share their parameters.
        baselines: The first trials.
        trials: Budget.
        tasks: What is optimised.
        tensors: Of a candidate.
        parameters: Of a candidate.
        bytes_read: For a candidate.
        warnings: What is odd, but no fault.
    """

    method: str
    dimensions: int
    ranges: Mapping[str, tuple[float, float, int]]
    groups: tuple[tuple[int, int], ...]
    baselines: tuple[str, ...]
    trials: int
    tasks: tuple[str, ...]
    tensors: int
    parameters: int
    bytes_read: int
    warnings: tuple[str, ...]


def plan_search(
    config: EvolveConfig, checkpoints: Mapping[ModelRef, Checkpoint]
) -> tuple[SearchSpace, list[MergePlan]]:
    """A config's space, and the plans of its first candidate and its baselines.

    Args:
        config: A config.
        checkpoints: Its models, the base included.

    Raises:
        InputError: If the space or a plan cannot be had.
    """
    first = next(iter(checkpoints.values()))
    stack = main_stack(first.tensors, first.config)
    layers = stack_sizes(first.tensors).get(stack or "", 0)
    if layers < 1:
        raise InputError(f"genome.models: {first.ref} has no numbered layers; nothing can be grouped by depth")
    space = SearchSpace.from_config(config, layers, methods())

    def open_model(ref: ModelRef) -> Checkpoint:  # a tokenizer may come from another model
        return checkpoints[ref] if ref in checkpoints else open_checkpoint(ref)

    recipes = [("the first candidate", space.decode(space.values(space.initial))), *space.baselines()]
    return space, [build_plan(recipe, open_model, origin=name) for name, recipe in recipes]


def inspect_search(config: EvolveConfig, checkpoints: Mapping[ModelRef, Checkpoint]) -> SearchReport:
    """Build a config's space and plan its first candidate and its baselines.

    Args:
        config: A config.
        checkpoints: Its models, the base included.

    Raises:
        InputError: If the space or a plan cannot be had.
    """
    with recorded_warnings() as noted:
        space, (plan, *_) = plan_search(config, checkpoints)
    ranges: dict[str, tuple[float, float, int]] = {}
    for dimension in space.parameters:
        count = ranges[dimension.parameter][2] if dimension.parameter in ranges else 0
        ranges[dimension.parameter] = (dimension.low, dimension.high, count + 1)
    return SearchReport(
        method=space.method.name,
        dimensions=len(space),
        ranges=ranges,
        groups=space.groups,
        baselines=tuple(name for name, _ in space.baselines()),
        trials=config.trials,
        tasks=tuple(task.name for task in config.tasks),
        tensors=len(plan.ops),
        parameters=plan.parameters,
        bytes_read=plan.bytes_read,
        warnings=tuple(noted),
    )
