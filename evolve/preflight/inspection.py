"""What ``heterosis inspect`` shows of a search config: the preflight, a rehearsal, and what the search takes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from heterosis.evolve.config import RESIDENT, EvolveConfig
from heterosis.evolve.preflight.preflight import Preflight, preflight
from heterosis.evolve.preflight.rehearsal import Rehearsal, rehearse
from heterosis.evolve.preflight.resources import Resources, merges_to, resources, workers_and_threads
from heterosis.evolve.space.depth import Depth
from heterosis.merge.inspection import recorded_warnings
from heterosis.words import size


@dataclass(frozen=True)
class TaskFacts:
    """A task of the objective.

    Attributes:
        name: Of the task; a group's are named one by one.
        weight: Its share of the objective.
        metric: That is optimised.
        better: ``higher`` or ``lower``.
        documents: That there are.
        search: Documents that candidates are scored on.
        selection: Documents that choose the champion.
        holdout: Documents that the report is about.
    """

    name: str
    weight: float
    metric: str
    better: str
    documents: int
    search: int
    selection: int
    holdout: int


@dataclass(frozen=True)
class SearchReport:
    """What a search would do.

    Attributes:
        methods: The merge methods to choose from; none where layer paths alone are searched.
        dimensions: How many numbers and choices are searched, in the last stage.
        ranges: Where each parameter of the methods is searched, and in how many dimensions.
        choices: The names that a choice is made from.
        depth: How parameters vary over the layers, in words, a line for each stage.
        baselines: The first trials.
        trials: Budget.
        hours: Another one.
        max_documents: And another.
        tasks: What is optimised.
        objective: How.
        chat: Whether prompts are put into a chat template.
        backend: What scores candidates, in words.
        tensors: Of a candidate.
        parameters: Of a candidate.
        bytes_read: For a candidate.
        resources: Workers, memory, disk, time.
        rehearsal: What a real candidate took; None if none was tried.
        warnings: What is odd, but no fault.
    """

    methods: tuple[str, ...]
    dimensions: int
    ranges: Mapping[str, tuple[float, float, int]]
    choices: Mapping[str, tuple[str, ...]]
    depth: tuple[str, ...]
    baselines: tuple[str, ...]
    trials: int
    hours: float | None
    max_documents: int | None
    tasks: tuple[TaskFacts, ...]
    objective: str
    chat: bool
    backend: str
    tensors: int
    parameters: int
    bytes_read: int
    resources: Resources
    rehearsal: Rehearsal | None
    warnings: tuple[str, ...]


def inspect_search(config: EvolveConfig, *, place: Path = Path(), trial: bool = True) -> SearchReport:
    """Check a config as ``evolve`` does before it begins, and try a candidate.

    Args:
        config: A config.
        place: Where the run folder will be.
        trial: Whether a candidate is merged and scored on a few documents.

    Raises:
        InputError: If the search would be refused, or the candidate cannot be scored.
    """
    with recorded_warnings() as noted:
        checked = preflight(config)
    resources(checked, place).check()
    merges_to(checked)
    rehearsal = rehearse(checked, workers_and_threads(config)[1]) if trial else None
    takes = resources(checked, place, rehearsal=rehearsal)
    warnings = (*noted, *checked.warnings, *takes.warnings, *_length_warnings(checked, rehearsal))
    return _report(checked, rehearsal, takes, warnings)


def _length_warnings(checked: Preflight, tried: Rehearsal | None) -> Iterator[str]:
    if tried is not None and tried.shortened:
        whose = "" if checked.config.max_length else ", the model's own limit"
        yield (
            f"max_length: {sum(tried.shortened.values())} of {tried.asked} search documents take more than "
            f"{tried.max_length} tokens{whose}, with what is to be written, so that prompts lose their beginning "
            f"({', '.join(tried.shortened)})"
        )


def _report(
    checked: Preflight, rehearsal: Rehearsal | None, takes: Resources, warnings: tuple[str, ...]
) -> SearchReport:
    config, space = checked.config, checked.stages[-1]
    ranges: dict[str, tuple[float, float, int]] = {}
    for dimension in checked.spaces[-1].dimensions:
        if not dimension.choices:
            low, high, count = ranges.get(dimension.parameter, (dimension.low, dimension.high, 0))
            ends = min(low, dimension.low), max(high, dimension.high)
            ranges[dimension.parameter] = (*ends, count + 1)
    depth = [] if checked.paths else [_in_words(stage.depth) for stage in checked.stages]
    depth += ["layer paths"] if config.genome.layer_paths else []
    return SearchReport(
        methods=() if checked.paths else tuple(method.name for method in space.methods),
        dimensions=len(checked.spaces[-1].dimensions),
        ranges=ranges,
        choices={d.parameter: d.choices for d in checked.spaces[-1].dimensions if d.choices},
        depth=tuple(depth),
        baselines=tuple(b.name for b in checked.baselines()),
        trials=config.trials,
        hours=config.hours,
        max_documents=config.max_documents,
        tasks=tuple(_task_facts(checked)),
        objective=config.objective,
        chat=config.apply_chat_template,
        backend=_backend_in_words(checked),
        tensors=len(checked.plan.ops),
        parameters=checked.plan.parameters,
        bytes_read=checked.plan.bytes_read,
        resources=takes,
        rehearsal=rehearsal,
        warnings=warnings,
    )


def _task_facts(checked: Preflight) -> list[TaskFacts]:
    split = checked.split
    return [
        TaskFacts(
            name,
            round(weight, 6),
            checked.objective.metrics[name],
            "lower" if name in checked.objective.lower else "higher",
            checked.tasks.documents(name).count,
            *(len(part[name]) for part in (split.search, split.selection, split.holdout)),
        )
        for name, weight in checked.objective.weights.items()
    ]


def _backend_in_words(checked: Preflight) -> str:
    place = merges_to(checked)
    if place is None:
        return RESIDENT
    return f"{checked.config.backend.name}, from a folder of {size(checked.plan.bytes_written)} in {place}"


def _in_words(depth: Depth) -> str:
    if depth.points == 1:
        return "one value for all layers"
    return f"layers in {len(depth)} groups" if depth.sliced else f"{depth.points} control points over depth"
