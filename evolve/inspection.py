"""What a search config asks for, found out without tasks: its models, its space, its first candidate's plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from heterosis.errors import InputError
from heterosis.evolve.baselines import RECIPES_BUDGET
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.contamination import name_warnings
from heterosis.evolve.depth import Depth
from heterosis.evolve.genes import METHOD
from heterosis.evolve.space import SearchSpace, control_points_of, stages_of
from heterosis.merge import Checkpoint, MergePlan, ModelRef, build_plan, open_checkpoint
from heterosis.merge.inspection import recorded_warnings
from heterosis.merge.layout import main_stack, stack_sizes
from heterosis.merge.methods import methods


@dataclass(frozen=True)
class SearchReport:
    """What a search would do.

    Attributes:
        methods: The merge methods to choose from.
        dimensions: How many numbers and choices are searched, in the last stage.
        ranges: Where each parameter of the methods is searched, and in how many dimensions.
        choices: The names that a choice is made from.
        depth: How parameters vary over the layers, in words, a line for each stage.
        baselines: The first trials.
        trials: Budget.
        tasks: What is optimised.
        tensors: Of a candidate.
        parameters: Of a candidate.
        bytes_read: For a candidate.
        warnings: What is odd, but no fault.
    """

    methods: tuple[str, ...]
    dimensions: int
    ranges: Mapping[str, tuple[float, float, int]]
    choices: Mapping[str, tuple[str, ...]]
    depth: tuple[str, ...]
    baselines: tuple[str, ...]
    trials: int
    tasks: tuple[str, ...]
    tensors: int
    parameters: int
    bytes_read: int
    warnings: tuple[str, ...]


def plan_search(
    config: EvolveConfig, checkpoints: Mapping[ModelRef, Checkpoint], control_points: Sequence[int] | None = None
) -> tuple[tuple[SearchSpace, ...], list[MergePlan]]:
    """A config's spaces, coarse to fine, and the plans of its first candidates and its baselines.

    Args:
        config: A config.
        checkpoints: Its models, the base included.
        control_points: Of each stage, as an earlier session of the run had them; None to choose them now.

    Raises:
        InputError: If a space or a plan cannot be had.
    """
    first = next(iter(checkpoints.values()))
    stack = main_stack(first.tensors, first.config)
    layers = stack_sizes(first.tensors).get(stack or "", 0)
    if layers < 1:
        raise InputError(f"genome.models: {first.ref} has no numbered layers; nothing can be grouped by depth")
    registry = methods()
    points = control_points if control_points is not None else control_points_of(config, layers, registry)
    stages = stages_of(config, layers, registry, points)

    def open_model(ref: ModelRef) -> Checkpoint:  # a tokenizer may come from another model
        return checkpoints[ref] if ref in checkpoints else open_checkpoint(ref)

    space = stages[-1]
    start = space.values(space.initial)
    recipes = [("the first candidate", space.decode(start))]
    recipes += [
        (f"the first candidate with {method.name}", space.decode(start | {METHOD: method.name}))
        for method in space.methods[1:]
    ]
    recipes += [(baseline.name, baseline.recipe) for baseline in space.baselines(extra=True)]
    return stages, [build_plan(recipe, open_model, origin=name) for name, recipe in recipes]


def inspect_search(config: EvolveConfig, checkpoints: Mapping[ModelRef, Checkpoint]) -> SearchReport:
    """Build a config's space and plan its first candidate and its baselines.

    Args:
        config: A config.
        checkpoints: Its models, the base included.

    Raises:
        InputError: If the space or a plan cannot be had.
    """
    with recorded_warnings() as noted:
        stages, (plan, *_) = plan_search(config, checkpoints)
    space = stages[-1]
    ranges: dict[str, tuple[float, float, int]] = {}
    for dimension in space.parameters:
        if not dimension.choices:
            low, high, count = ranges.get(dimension.parameter, (dimension.low, dimension.high, 0))
            ends = min(low, dimension.low), max(high, dimension.high)
            ranges[dimension.parameter] = (*ends, count + 1)
    return SearchReport(
        methods=tuple(method.name for method in space.methods),
        dimensions=len(space),
        ranges=ranges,
        choices={d.parameter: d.choices for d in space.parameters if d.choices},
        depth=tuple(_in_words(stage.depth) for stage in stages),
        baselines=tuple(b.name for b in space.baselines(extra=config.trials >= RECIPES_BUDGET)),
        trials=config.trials,
        tasks=tuple(task.name for task in config.tasks),
        tensors=len(plan.ops),
        parameters=plan.parameters,
        bytes_read=plan.bytes_read,
        warnings=(*noted, *name_warnings(task.name for task in config.tasks)),
    )


def _in_words(depth: Depth) -> str:
    if depth.points == 1:
        return "one value for all layers"
    return f"layers in {len(depth)} groups" if depth.sliced else f"{depth.points} control points over depth"
