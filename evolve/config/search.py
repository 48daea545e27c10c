"""A search's config file: mergekit-evolve's YAML as it is, and our own keys beside it."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from heterosis.errors import InputError, did_you_mean
from heterosis.evolve.config.genome import Genome
from heterosis.evolve.config.layer_paths import LayerPaths
from heterosis.evolve.config.values import (
    BatchSize,
    Count,
    DocumentCount,
    Fraction,
    Natural,
    NotNegative,
    Number,
    Positive,
    Section,
    Share,
    Texts,
    list_faults,
    named,
    not_bool,
    several,
)
from heterosis.evolve.optimizers import optimizer_names
from heterosis.merge.recipe.faults import dotted, fault_of, refuse
from heterosis.merge.recipe.parameters import Place
from heterosis.merge.yaml_file import parse_mapping, read_text

RESIDENT = "resident"
MOST_FINALISTS = 5  # unless the config says more
# Of a task's weight, unless it is 0: variances have its square, and degrees of freedom the square of that.
LEAST_WEIGHT, MOST_WEIGHT = 1e-9, 1e9

# Arguments of a backend that follow from elsewhere.
_NOT_AN_ARGUMENT = {
    "pretrained": "is the folder of the candidate; leave it out",
    "batch_size": "stands at the top of the config; write it there",
    "max_length": "stands at the top of the config; write it there",
    "max_model_len": "is max_length at the top of the config; write it there",
    "device": "is an option of the command; write --device",
}

# What a run may change between two sittings: it alters neither what a score means nor what is searched.
_NOT_IN_FINGERPRINT = (
    *("trials", "hours", "max_documents", "workers", "cpus_per_worker", "gpus_per_worker", "finalists"),
    *("timeout", "failures", "limit", "log_to", "shuffle"),
)

ObjectiveName: TypeAlias = Literal["weighted", "gain", "worst", "pareto"]
Tracker: TypeAlias = Literal["tensorboard", "mlflow", "wandb"]
Order: TypeAlias = Literal["random", "informative"]


class Task(Section):
    """A task of the objective.

    Attributes:
        name: As lm-eval knows it.
        weight: Its share of the objective.
        metric: Name of a metric, as ``acc,none``; None for the task's first.
    """

    name: str
    weight: Number = 1.0
    metric: str | None = None


class Documents(Section):
    """How each task's documents are split; None takes what the others leave.

    Attributes:
        search: Documents that candidates are scored on; ``limit`` unless it is given.
        selection: Documents that choose the champion among the finalists.
        holdout: Documents that the report is about.
        group_by: Field of a document; documents that agree in it never straddle a split.
        seed: Of the split. Not the search's, so that runs with other seeds are about the same documents.
    """

    search: DocumentCount | None = None
    selection: DocumentCount | None = None
    holdout: DocumentCount | None = None
    group_by: str | None = None
    seed: Natural = 0


class OptimizerConfig(Section):
    """Who proposes the candidates.

    Attributes:
        name: One of ``heterosis.evolve.optimizers``; ``auto`` chooses by the space, the objectives and the budget.
        sigma0: First standard deviation, as a fraction of each range.
        popsize: Results between two updates.
    """

    name: str = "auto"
    sigma0: Share | None = None
    popsize: Annotated[int, BeforeValidator(not_bool), Field(ge=4)] | None = None

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        names = ("auto", *optimizer_names())
        if name not in names:
            raise ValueError(f"unknown optimizer {name!r}{did_you_mean(name, names)}")
        return name


class Racing(Section):
    """When a candidate that would hardly be ahead of the best is stopped before it has met all search documents.

    Attributes:
        enabled: Whether any is.
        first: Documents, of all tasks together, before the first look; None for a sensible number.
        factor: How many times as many documents each further look has.
        alpha: Chance of stopping a candidate that would be ahead of the best in the end, over all looks together;
            where the worst task, a front or constraints decide, of one that is as good.
        order: Of the documents; ``informative`` begins with those on which the best few differ.
        by: ``probability``: where all tasks tell how probable right answers are, candidates meet a sample of the
            documents and are compared by that; the best of them race. ``metric``: all race.
    """

    enabled: bool = True
    first: Count | None = None
    factor: Annotated[float, BeforeValidator(not_bool), Field(gt=1)] = 2.0
    alpha: Annotated[float, BeforeValidator(not_bool), Field(gt=0, lt=1)] = 0.2
    order: Order = "informative"
    by: Literal["probability", "metric"] = "probability"

    @model_validator(mode="before")
    @classmethod
    def _from_switch(cls, value: object) -> object:
        return {"enabled": value} if isinstance(value, bool) else value


class Backend(Section):
    """What scores the candidates.

    Attributes:
        name: ``resident``, a live transformers model that candidates are merged into; or a model class of lm-eval
            that loads a folder, by its name there.
        args: Arguments of that class.
    """

    name: str = RESIDENT
    args: dict[str, JsonValue] = Field(default={})

    @field_validator("args")
    @classmethod
    def _check_args(cls, args: dict[str, JsonValue], info: ValidationInfo) -> dict[str, JsonValue]:
        if args and info.data.get("name") == RESIDENT:
            raise ValueError("resident takes none; leave them out, or name a backend of lm-eval")
        refuse((((name,), _NOT_AN_ARGUMENT[name]) for name in args if name in _NOT_AN_ARGUMENT), args)
        return args


class Failures(Section):
    """When a search gives up.

    Attributes:
        max_failure_rate: Share of trials that may fail before the set-up is taken to be wrong.
    """

    max_failure_rate: Share = 0.5


class EvolveConfig(Section):
    """A whole config file. ``genome``, ``tasks``, and the keys from ``limit`` to ``fewshot_as_multiturn`` are
    mergekit-evolve's, with its defaults.

    Attributes:
        genome: What is searched.
        tasks: What is optimised.
        objective: What is maximised: ``weighted``, the weighted sum of the tasks' metrics; ``gain``, the mean gain
            over the best parent of each task; ``worst``, the smallest of these gains; ``pareto``, all tasks.
        constraints: How far a candidate may fall below the best parent of a task, by task, or for each task of a
            group; in units of the metric, or where its scores are not in [0, 1], as a share of the best parent's.
        limit: Documents per task in the search.
        num_fewshot: Examples in each prompt; None for the task's own number.
        shuffle: Accepted as mergekit-evolve's; our documents are always split at random.
        random_init: Start at a random point instead of a sensible one.
        apply_chat_template: Whether prompts are put into the model's chat template.
        fewshot_as_multiturn: Whether examples are turns of the chat.
        system_instruction: Goes before every prompt; in a chat as its system message.
        documents: How documents are split.
        include_path: Folders with lm-eval tasks; ``task_search_path`` is the same.
        backend: What scores the candidates; a name will do.
        batch_size: Requests in one forward pass; ``auto`` for what the memory takes, found out once in a run.
        max_length: Longest prompt in tokens; None for the model's own.
        optimizer: Who proposes the candidates.
        racing: When candidates are stopped early; ``true`` or ``false`` will do.
        ordered: A candidate is proposed from the results of all but this many before it, so that any number of
            workers up to one more gives the same proposals; 0 takes in every result as it comes.
        warm_start: Run folders or recipes of related searches to start from.
        seed: Of the search and of random merge methods.
        trials: Budget, baselines included.
        hours: Another budget.
        max_documents: Another one: no candidate is begun that might make it more documents scored than these, the
            finals' included. Baselines and finals are scored in any case.
        workers: Processes that score; None for one for every four cores.
        cpus_per_worker: Cores that each takes, as many as its threads, or a fraction of one; None for an equal
            share of this machine's.
        gpus_per_worker: Graphics processors that each takes, or a fraction of one that several share; None for one
            where models live on such.
        finalists: Candidates compared on the selection documents; None for one for every 20 trials, up to five.
        timeout: Seconds that a candidate may take on the search documents; None to learn it from the first ones.
        failures: When to give up.
        log_to: Trackers that are told of the run: ``tensorboard``, ``mlflow``, ``wandb``.
    """

    genome: Genome
    tasks: tuple[Annotated[Task, BeforeValidator(named)], ...]
    objective: ObjectiveName = "weighted"
    constraints: dict[str, NotNegative] = Field(default={})
    limit: DocumentCount | None = None
    num_fewshot: Natural | None = None
    shuffle: bool = False
    random_init: bool = False
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool = True
    system_instruction: str | None = None
    documents: Documents = Field(default=Documents(), validate_default=True)
    include_path: Texts = ()
    backend: Annotated[Backend, BeforeValidator(named)] = Backend()
    batch_size: BatchSize = 16
    max_length: Count | None = None
    optimizer: Annotated[OptimizerConfig, BeforeValidator(named)] = OptimizerConfig()
    racing: Racing = Racing()
    ordered: Natural = 0
    warm_start: Texts = ()
    seed: Annotated[Natural, Field(lt=2**64)] = 0
    trials: Count = 100
    hours: Positive | None = None
    max_documents: Count | None = None
    workers: Count | None = None
    cpus_per_worker: Fraction | None = None
    gpus_per_worker: Fraction | None = None
    finalists: Count | None = None
    timeout: Positive | None = None
    failures: Failures = Failures()
    log_to: Annotated[tuple[Tracker, ...], BeforeValidator(several)] = ()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "EvolveConfig":
        """Reads a config file.

        Raises:
            InputError: With a line for every fault.
        """
        return cls.parse(read_text(path, "config"), os.fspath(path))

    @classmethod
    def parse(cls, text: str, origin: str = "config.yaml") -> "EvolveConfig":
        """Reads a config from YAML; ``origin`` is the name that error messages give it.

        Raises:
            InputError: With a line for every fault.
        """
        return cls.from_dict(parse_mapping(text, origin), origin)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], origin: str = "config") -> "EvolveConfig":
        """A config of what a file would hold; ``origin`` is the name that error messages give it.

        Raises:
            InputError: With a line for every fault.
        """
        if "genome" not in data and "tasks" not in data and "merge_method" in data:
            raise InputError(f"{origin}: is a recipe, not a search config; run heterosis merge on it")
        if "task" in data and not {"genome", "models", "tasks"} & data.keys():
            raise InputError(
                f"{origin}: is a task of lm-eval, not a search config; name it under tasks in one, and its folder "
                "under include_path"
            )
        return cls._from_plain(dict(data), origin)

    def updated(self, origin: str = "options", **changes: Any) -> "EvolveConfig":
        """A copy with other values for some top-level keys, checked like a file.

        Raises:
            InputError: With a line for every fault; ``origin`` is the name that they start with.
        """
        return self._from_plain({**self.model_dump(mode="json"), **changes}, origin)

    def with_options(
        self,
        *,
        include_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | None = None,
        log_to: str | Sequence[str] | None = None,
        **replaced: Any,
    ) -> "EvolveConfig":
        """A copy as options of a command have it; None leaves a key as it is.

        Args:
            include_path: Added to the folders there.
            log_to: Added to the trackers there.
            replaced: Other values of top-level keys.

        Raises:
            InputError: With a line for every fault.
        """
        changes = {key: value for key, value in replaced.items() if value is not None}
        for key, added in (("include_path", include_path), ("log_to", log_to)):
            if added:
                changes[key] = [*getattr(self, key), *several(added)]
        return self.updated(**changes) if changes else self

    @classmethod
    def _from_plain(cls, data: dict[str, Any], origin: str) -> "EvolveConfig":
        from heterosis.merge.methods import methods as registry  # loads torch
        from heterosis.merge.methods import unknown_method

        methods = registry()
        if "task_search_path" in data:
            paths = [several(data.pop(key)) for key in ("include_path", "task_search_path") if key in data]
            data["include_path"] = [
                path for part in paths for path in (part if isinstance(part, list) else [part])
            ]
        short = "genome" not in data and "models" in data
        if short:  # a genome's keys may stand at the top
            rest = {key: value for key, value in data.items() if key not in Genome.model_fields}
            data = rest | {"genome": {key: value for key, value in data.items() if key not in rest}}
        faults: list[str] = []
        genome = None
        try:
            config = cls.model_validate(data)
            genome = config.genome
        except ValidationError as error:
            found = [fault_of(detail, _section_of) for detail in error.errors(include_url=False)]
            faults += [f"{dotted(place)}: {text}" for place, text in found]
            raw = data.get("genome")
            try:
                genome = Genome.model_validate(raw)  # sound in a faulty file: report on its method as well
            except ValidationError:
                name = raw.get("merge_method") if isinstance(raw, dict) else None
                if isinstance(name, str) and name not in methods:
                    faults.append(f"genome.merge_method: {unknown_method(name)}")
        if genome is not None:
            faults += genome.faults(methods)
        if faults:
            raise InputError(
                *(f"{origin}: {fault.removeprefix('genome.') if short else fault}" for fault in faults)
            )
        return config

    @field_validator("log_to")
    @classmethod
    def _check_trackers(cls, trackers: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
        return tuple(dict.fromkeys(trackers))

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        faults = list_faults([task.name for task in tasks])
        limits = f"must be 0 or between {LEAST_WEIGHT:g} and {MOST_WEIGHT:g} in magnitude"
        faults += [
            ((i, "weight"), f"{limits}, but got {task.weight:g}")
            for i, task in enumerate(tasks)
            if task.weight != 0 and not LEAST_WEIGHT <= abs(task.weight) <= MOST_WEIGHT
        ]
        if tasks and all(task.weight == 0 for task in tasks):
            faults.append(((), "at least one weight must differ from 0, else there is nothing to optimise"))
        refuse(faults, tasks)
        return tasks

    @field_validator("optimizer")
    @classmethod
    def _check_optimizer(cls, optimizer: OptimizerConfig, info: ValidationInfo) -> OptimizerConfig:
        several = optimizer_names(objectives=2)
        if info.data.get("objective") == "pareto" and optimizer.name not in ("auto", *several):
            raise ValueError(
                f"{optimizer.name} takes one objective, but pareto has one for each task; write auto, or one of "
                f"{', '.join(several)}"
            )
        return optimizer

    @field_validator("documents")
    @classmethod
    def _fill_documents(cls, documents: Documents, info: ValidationInfo) -> Documents:
        limit = info.data.get("limit")
        if limit is None or documents.search == limit:
            return documents
        if documents.search is not None:
            fault = f"must agree with limit, but got {documents.search} and {limit}; drop one of them"
            refuse([(("search",), fault)], documents)
        return documents.model_copy(update={"search": limit})

    def shortlisted(self, expected_trials: int) -> int:
        """Candidates compared on the selection documents.

        Few candidates hold few that are as good as the best: in 40 searches of 26 trials, five finalists met 500
        documents more than one, of 3,600, and won nothing (0.000 +- 0.001). A front needs its members.

        Args:
            expected_trials: That the budgets pay for, about.
        """
        usual = MOST_FINALISTS if self.objective == "pareto" else expected_trials // 20
        return min(self.finalists or min(max(usual, 1), MOST_FINALISTS), self.trials)

    @property
    def budgets(self) -> dict[str, int | float | None]:
        """What ends a search, and how many candidates come to its finals; a run may change these."""
        names = ("trials", "hours", "max_documents", "finalists")
        return {name: getattr(self, name) for name in names}

    def to_yaml(self) -> str:
        """The whole config with its defaults, as YAML that gives the same config again."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def fingerprint(self) -> str:
        """SHA-256 over all that decides what a score means and what is searched.

        Budgets, workers, finalists and what happens on failure are left out: a run may change them.
        """
        canonical = json.dumps(self._identity(), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def diff(self, other: "EvolveConfig") -> list[str]:
        """What makes the fingerprints of this config and an earlier one differ, a line for each key."""
        now, then = self._identity(), other._identity()
        keys = [*now, *(key for key in then if key not in now)]
        return [
            f"{key}: {_shown(now, key)}, was {_shown(then, key)}"
            for key in keys
            if (key in now) != (key in then) or now.get(key) != then.get(key)
        ]

    def _identity(self) -> dict[str, Any]:
        """What the fingerprint covers, by dotted key."""
        data = self.model_dump(mode="json", exclude=set(_NOT_IN_FINGERPRINT))
        return dict(_flat(data, ""))


# --- for faults and fingerprints --------------------------------------------------------------------------------

_SECTIONS: dict[tuple[str, ...], type[BaseModel]] = {
    (): EvolveConfig,
    ("genome",): Genome,
    ("genome", "layer_paths"): LayerPaths,
    ("tasks",): Task,
    ("documents",): Documents,
    ("optimizer",): OptimizerConfig,
    ("racing",): Racing,
    ("backend",): Backend,
    ("failures",): Failures,
}


def _section_of(place: Place) -> type[BaseModel] | None:
    return _SECTIONS.get(tuple(key for key in place if isinstance(key, str)))


def _flat(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Leaves by dotted key; a list of plain values is a leaf."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _flat(entry, f"{key}.{name}" if key else name)
    elif isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        for index, entry in enumerate(value):
            yield from _flat(entry, f"{key}[{index}]")
    else:
        yield key, value


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], ensure_ascii=False) if key in values else "not there"
