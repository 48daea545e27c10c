"""A first config for some models and tasks, with comments that say why: what ``heterosis init`` writes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import yaml

from heterosis.errors import InputError
from heterosis.evaluate.splits import Sizes, split_documents
from heterosis.evolve.config import EvolveConfig
from heterosis.merge.recipe.command import import_options
from heterosis.merge.recipe.reference import ModelRef
from heterosis.words import count

if TYPE_CHECKING:
    from heterosis.evaluate.harness import TaskSet
    from heterosis.evolve.preflight.preflight import Preflight
    from heterosis.merge import Checkpoint
    from heterosis.merge.compatibility import Compatibility

# What opens models takes seconds to import, and what opens tasks some more: each when what comes before is sound.

# Documents of all tasks together, and the share of a task that each part gets at most. 160 tell scores apart that
# differ by 0.1, and races need few of them for most candidates; the report's interval is about ±0.04 with 500.
SIZES = {"search": (160, 0.4), "selection": (240, 0.25), "holdout": (500, 0.35)}
TRIALS = 100


@dataclass(frozen=True)
class Draft:
    """A config that a search would take.

    Attributes:
        text: Of the file.
        warnings: What is odd about it.
    """

    text: str
    warnings: tuple[str, ...]


def draft_config(
    models: Sequence[str],
    tasks: Sequence[str],
    *,
    base: str | None = None,
    include_path: Sequence[str] = (),
    name: str = "search.yaml",
) -> Draft:
    """A config for models and tasks, whose headers and data are read.

    Args:
        models: The parents.
        tasks: Names of lm-eval tasks.
        base: What the parents were fine-tuned from; None for the model that all adapters belong to, if they do.
        include_path: Folders with lm-eval task YAML.
        name: Of the file that it is for.

    Raises:
        InputError: If the models or tasks cannot be used.
    """
    if not tasks:
        raise InputError("--tasks: must name at least one task of lm-eval, or of --include-path")
    if len(models) < 2:
        raise InputError(f"MODEL: there must be at least two to merge, but got {', '.join(models) or 'none'}")
    models = [model.rstrip("/") or model for model in models]
    if twice := next((model for i, model in enumerate(models) if model in models[:i]), None):
        raise InputError(f"MODEL: each may be named once, but got {twice} again; name another, or leave it out")
    base = base or _base_of_adapters(models)
    from heterosis.merge.compatibility import compare
    from heterosis.merge.inspection import recorded_warnings
    from heterosis.merge.models.checkpoint import open_all, open_checkpoint

    with ExitStack() as stack:
        opened = open_all(
            [*([base] if base else []), *models], lambda model: stack.enter_context(open_checkpoint(model))
        )
        found = compare(list(opened.values()))
        _check(found)

        from heterosis.evaluate.harness import TaskSet
        from heterosis.evolve.preflight.preflight import preflight

        loaded = TaskSet(tasks, include_path=include_path)
        data = _data(models, tasks, base, include_path, loaded, found, list(opened.values()))
        config = EvolveConfig.parse(yaml.safe_dump(data), name)
        with recorded_warnings() as noted:
            checked = preflight(config, tasks=loaded)
    text = "\n".join(_lines(data, checked, found, name)) + "\n"
    assert EvolveConfig.parse(text, name).fingerprint() == config.fingerprint()
    odd = [str(d) for d in found.differences if d.topic == "architecture"]
    if base is None:
        odd.append(
            "no base model: weighted means are searched; name what the models were fine-tuned from with --base to "
            "search methods on task vectors, such as ties"
        )
    return Draft(text, (*odd, *noted, *checked.warnings))


def _base_of_adapters(models: Sequence[str]) -> str | None:
    """The model that all parents are adapters of."""
    try:
        refs = [ModelRef.parse(model) for model in models]
    except ValueError:  # told when it is opened
        return None
    bases = {str(ModelRef(ref.path, ref.revision)) for ref in refs if ref.adapter}
    return bases.pop() if len(bases) == 1 and all(ref.adapter for ref in refs) else None


def _check(found: "Compatibility") -> None:
    """Refuse models that no plain merge takes."""
    layers = [str(replace(d, remedy="name models of one depth")) for d in found.differences if d.topic == "layers"]
    if found.reasons or layers:
        raise InputError(*found.reasons, *layers)


def _data(
    models: Sequence[str],
    tasks: Sequence[str],
    base: str | None,
    include_path: Sequence[str],
    loaded: "TaskSet",
    found: "Compatibility",
    opened: "Sequence[Checkpoint]",
) -> dict[str, Any]:
    """The config's keys that differ from the defaults, or that people want to see."""
    genome: dict[str, Any] = {"models": list(models)}
    if base is not None:
        genome["base_model"] = base
    genome["merge_method"] = "linear" if base is None else "task_arithmetic"
    if any(d.weight == "asks" for d in found.differences):
        genome["tokenizer_source"] = "union"
    genome["dtype"] = _dtype(models, found)
    chat = all(model.tokenizer.chat_template is not None for model in opened)
    data: dict[str, Any] = {"genome": genome, "tasks": [_task(task, loaded) for task in tasks]}
    if include_path:
        data["include_path"] = list(include_path)
    return data | {
        "apply_chat_template": chat and any(map(loaded.generates, loaded.specs)),
        "documents": _documents(loaded),
        "batch_size": 16,
        "trials": TRIALS,
        "seed": 0,
    }


def _dtype(models: Sequence[str], found: "Compatibility") -> str:
    """What is written: that of the models; for adapters, whose deltas are finer than half precision, float32."""
    if any(ModelRef.parse(model).adapter for model in models):
        return "float32"
    kinds = {next(iter(facts.dtypes)) for facts in found.models}
    return kinds.pop() if len(kinds) == 1 and kinds <= {"bfloat16", "float16", "float32"} else "bfloat16"


def _task(name: str, loaded: "TaskSet") -> dict[str, Any]:
    metric = {"metric": loaded.metric(name).key} if name in loaded.specs else {}  # else a group of tasks
    return {"name": name, **metric, "weight": 1.0}


def _documents(loaded: "TaskSet") -> dict[str, int]:
    """Documents of each task; none, which means shares, where groups of documents leave too few."""
    groups = loaded.groups()
    least = min(map(len, groups.values()))
    sizes = {
        part: max(1, min(-(-total // len(groups)), int(share * least))) for part, (total, share) in SIZES.items()
    }
    try:
        split_documents(groups, Sizes(**sizes), 0)
    except InputError:
        return {}
    return sizes


# --- the text ---------------------------------------------------------------------------------------------------


def _lines(data: Mapping[str, Any], checked: "Preflight", found: "Compatibility", name: str) -> Iterator[str]:
    from heterosis.evolve.preflight.resources import workers_and_threads

    config, genome = checked.config, data["genome"]
    facts = found.models[-1]
    layers = ", ".join(str(count) for count in facts.layers.values())
    yield f"# A search for the best merge of {' and '.join(config.genome.model_names)}. Begin with"
    yield "#"
    more = "".join(f" {option}" for option in import_options(checked.own_methods([]).values()))
    commands = (f"heterosis inspect {name}{more}", f"heterosis evolve {name} --run-dir runs/first{more}")
    tells = ("what it takes: memory, disk, time", "the search; the same command continues it")
    yield from (f"#   {command:{len(commands[1])}}  {text}" for command, text in zip(commands, tells, strict=True))
    yield "#"
    yield "# Every key: docs/config.md."
    yield ""
    yield "genome:"
    kind = " and ".join(facts.dtypes)
    yield f"  # The parents: {count(facts.parameters)} parameters, {layers} layers, {kind}."
    yield from _indented({"models": genome["models"]})
    if "base_model" in genome:
        yield "  # What they were fine-tuned from."
        yield from _indented({"base_model": genome["base_model"]})
        yield "  # The base plus weighted task vectors; [task_arithmetic, ties, dare_ties] lets the search choose."
    else:
        yield "  # Name it to search methods on task vectors (task_arithmetic, ties, dare_ties and others)."
        yield "  # base_model: org/base"
        yield "  # A weighted mean. slerp, karcher, ... are in docs/methods.md."
    yield from _indented({"merge_method": genome["merge_method"]})
    if "tokenizer_source" in genome:
        yield "  # The tokenizers differ: every token of any of them is kept."
        yield from _indented({"tokenizer_source": genome["tokenizer_source"]})
    yield f"  # {_depth(checked)}"
    yield "  # control_points: [1, 3]"
    for parameter, (low, high) in _ranges(checked).items():
        yield f"  # ranges: {{{parameter}: [{low:g}, {high:g}]}}   # where it is searched"
    if genome["dtype"] == "float32" and any("+" in model for model in genome["models"]):
        yield "  # Adapters' deltas are finer than the steps of bfloat16."
    yield from _indented({"dtype": genome["dtype"]})
    yield ""
    yield "# What is maximised: the weighted sum of the tasks' metrics. Weights matter with several tasks."
    for task in checked.tasks.specs:
        metrics = checked.tasks.metrics(task)
        own = checked.tasks.metric(task)
        others = [key for key in metrics if key != own.key]
        better = "higher" if own.higher_is_better else "lower"
        also = f"; also there: {', '.join(others)}" if others else ""
        yield f"# {task}: {checked.tasks.documents(task).count} documents; {own.key}, {better} is better{also}"
    yield from _yaml({"tasks": data["tasks"]})
    yield "# objective: worst   # instead: the smallest gain over each task's best parent"
    if "include_path" in data:
        yield from _yaml({"include_path": data["include_path"]})
    yield "# Whether prompts are put into the chat template: if all models have one and a task has them write."
    yield from _yaml({"apply_chat_template": data["apply_chat_template"]})
    yield ""
    yield "# Documents of each task, never overlapping. Candidates are scored on the first part, the best few are"
    yield "# compared on the second, and the report is about the third. More of them: surer, and slower."
    if data["documents"]:
        yield f"documents: {{{', '.join(f'{part}: {size}' for part, size in data['documents'].items())}}}"
    else:
        yield "# By default half of them, a fifth, and three tenths."
        yield "# documents: {search: 100, selection: 100, holdout: 200}"
    yield "# Requests in one forward pass: not measured; fewer if memory is short. On a GPU, auto measures."
    yield from _yaml({"batch_size": data["batch_size"]})
    yield ""
    baselines = ", ".join(b.name for b in checked.baselines())
    yield f"# Candidates in all. The first are what has to be beaten: {baselines}."
    yield from _yaml({"trials": data["trials"]})
    yield "# hours: 8       # ends it earlier, the finals included"
    yield "# max_documents: 20000   # likewise: documents scored in all"
    workers, threads = workers_and_threads(config)
    yield f"# workers: {workers}     # the default here, of {threads} threads each; each holds a model in float32"
    yield from _yaml({"seed": data["seed"]})


def _depth(checked: "Preflight") -> str:
    counts = ", then ".join(str(len(stage.dimensions)) for stage in checked.stages)
    points = ", then ".join(str(stage.depth.points) for stage in checked.stages)
    return f"Searched are {counts} numbers: {points} of each kind over depth, as the budget of trials allows."


def _ranges(checked: "Preflight") -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}
    for dimension in checked.stages[-1].dimensions:
        found.setdefault(dimension.parameter, (dimension.low, dimension.high))
    return found


def _yaml(data: Mapping[str, Any]) -> list[str]:
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True, width=10**6).splitlines()


def _indented(data: Mapping[str, Any]) -> list[str]:
    return [f"  {line}" for line in _yaml(data)]
