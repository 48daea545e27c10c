"""A search's config file: mergekit-evolve's YAML as it is, and our own keys beside it."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Protocol, TypeAlias

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from heterosis.errors import InputError, did_you_mean
from heterosis.evolve.optimizers import optimizer_names
from heterosis.merge.recipe import DTYPE_NAMES, ModelRef
from heterosis.merge.yaml_file import parse_mapping, read_text

# What a run may change between two sittings: it alters neither what a score means nor what is searched.
_NOT_IN_FINGERPRINT = ("trials", "hours", "workers", "finalists", "timeout", "failures", "limit")


class Range(Protocol):
    """Where a number is searched, both ends included."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...


class Limits(Protocol):
    """Which values a parameter may have."""

    def check(self, name: str, value: float) -> None:
        """Raise a ValueError for a value outside."""


class ParameterSpec(Protocol):
    """What a search must know of a method's parameter."""

    @property
    def kind(self) -> type: ...
    @property
    def default(self) -> Any: ...
    @property
    def within(self) -> Limits: ...


class MethodSpec(Protocol):
    """What a search must know of a merge method; ``heterosis.merge.methods`` has them all.

    ``base`` is "required" (task vectors are taken from the base model), "optional" (if there is one), "input"
    (the base is one of the inputs, the first unless it is named) or "ignored". ``inputs`` are the smallest and
    the largest number of inputs, the base not counted where the method takes task vectors.
    """

    @property
    def name(self) -> str: ...
    @property
    def base(self) -> str: ...
    @property
    def inputs(self) -> tuple[int, int | None]: ...
    @property
    def per_input(self) -> Mapping[str, ParameterSpec]: ...
    @property
    def per_merge(self) -> Mapping[str, ParameterSpec]: ...
    @property
    def search(self) -> Mapping[str, Range]: ...


def _not_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"must be a number, but got {str(value).lower()}")
    return value


def _model(value: object) -> str:
    return str(ModelRef.parse(value))


def _dtype(value: object) -> object:
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if name is not None and name not in DTYPE_NAMES:
        raise ValueError(f"unknown dtype {value!r}{did_you_mean(str(value), DTYPE_NAMES)}")
    return name


def _documents(value: object) -> object:
    if isinstance(value, float) and 0 < value < 1:
        raise ValueError(f"must be a number of documents, but got {value}; give a count instead of a fraction")
    return _not_bool(value)


def _bounds(value: object) -> object:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError(f"must be a range [low, high], but got {value!r}")
    return value


def _folders(value: object) -> object:
    return [value] if isinstance(value, str) else [] if value is None else value


Model: TypeAlias = Annotated[str, BeforeValidator(_model)]
Dtype: TypeAlias = Annotated[str | None, BeforeValidator(_dtype)]
Number: TypeAlias = Annotated[float, BeforeValidator(_not_bool)]
Count: TypeAlias = Annotated[int, BeforeValidator(_not_bool), Field(ge=1)]
Natural: TypeAlias = Annotated[int, BeforeValidator(_not_bool), Field(ge=0)]
DocumentCount: TypeAlias = Annotated[int, BeforeValidator(_documents), Field(ge=1)]
Bounds: TypeAlias = Annotated[tuple[Number, Number], BeforeValidator(_bounds)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Genome(_Section):
    """What is searched.

    Attributes:
        models: The parents; folders or Hub ids, ``base+adapter`` for a LoRA.
        merge_method: How they are merged.
        base_model: What the parents were fine-tuned from, for methods that need it.
        layer_granularity: Layers that share their parameters; 0 for all. The last group may be smaller.
        normalize: Whether weights are divided by their sum; None for mergekit-evolve's choice by method.
        allow_negative_weights: Makes the range of weights symmetric.
        smooth: Interpolates parameters between groups instead of changing them in steps.
        filters: Parts of tensor names that get parameters of their own; the first that fits counts.
        tokenizer_source: As in a recipe.
        dtype: As in a recipe.
        out_dtype: As in a recipe.
        ranges: Where each parameter is searched, in place of the method's own ranges. Equal ends fix it.
    """

    models: tuple[Model, ...]
    merge_method: str
    base_model: Model | None = None
    layer_granularity: Natural = 0
    normalize: bool | None = None
    allow_negative_weights: bool = False
    smooth: bool = False
    filters: Annotated[tuple[str, ...], BeforeValidator(lambda value: () if value is None else value)] = ()
    tokenizer_source: Model | None = None
    dtype: Dtype = "bfloat16"
    out_dtype: Dtype = None
    ranges: dict[str, Bounds] = {}

    @field_validator("models")
    @classmethod
    def _check_models(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        _refuse(_list_faults(models))
        return models

    @field_validator("filters")
    @classmethod
    def _check_filters(cls, filters: tuple[str, ...]) -> tuple[str, ...]:
        faults = []
        for i, text in enumerate(filters):
            covering = next((other for other in filters[:i] if other and other in text), None)
            if text in ("", "*"):
                faults.append(
                    f"[{i}]: must be part of a tensor name, but got {text!r}; the rest is a group by itself"
                )
            elif covering is not None:
                faults.append(f"[{i}]: {text!r} would never apply after {covering!r}; put the longer one first")
        _refuse(faults)
        return filters

    @field_validator("ranges")
    @classmethod
    def _check_ranges(cls, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        faults = []
        for name, (low, high) in ranges.items():
            if low > high:
                faults.append(f".{name}: `low <= high` must hold, but got [{low}, {high}]")
            elif name == "density" and not 0 < low <= high <= 1:
                faults.append(f".density: `0 < low <= high <= 1` must hold, but got [{low}, {high}]")
        _refuse(faults)
        return ranges

    def faults(self, methods: Mapping[str, MethodSpec]) -> Iterator[str]:
        """What the chosen merge method cannot do with this genome, one line each, without the file's name."""
        name = self.merge_method
        if name not in methods:
            yield _unknown_method(name, methods)
            return
        method = methods[name]
        if method.base == "required" and self.base_model is None:
            yield f"genome.base_model: {name!r} needs it; name the model that the others were fine-tuned from"
        counted, note = set(self.models), ""
        if self.base_model is not None and method.base == "input":
            counted.add(self.base_model)
            note = " with the base model"
        elif self.base_model is not None and method.base in ("required", "optional"):
            counted.discard(self.base_model)
            note = " besides the base model"
        least, most = method.inputs
        if not least <= len(counted) <= (most or len(counted)):
            wanted = (
                f"at least {least}"
                if most is None
                else f"{least} to {most}"
                if least < most
                else f"exactly {least}"
            )
            yield f"genome.models: {name!r} merges {wanted}, but got {len(counted)}{note}"
        parameters = {**method.per_input, **method.per_merge}
        numeric = [key for key, parameter in parameters.items() if parameter.kind is float]
        for key, ends in self.ranges.items():
            if key not in numeric:
                yield f"genome.ranges.{key}: unknown parameter of {name!r}{did_you_mean(key, numeric)}"
                continue
            try:
                for end in ends:
                    parameters[key].within.check(key, end)
            except ValueError as fault:
                yield f"genome.ranges.{key}: {fault}"
        if not method.search and not self.ranges:
            yield f"genome.merge_method: {name!r} has no parameters to search; choose another method"


class Task(_Section):
    """A task of the objective.

    Attributes:
        name: As lm-eval knows it.
        weight: Its share of the objective.
        metric: Name of a metric, as ``acc,none``; None for the task's first.
    """

    name: str
    weight: Number = 1.0
    metric: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value


class Documents(_Section):
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


class OptimizerConfig(_Section):
    """Who proposes the candidates.

    Attributes:
        name: One of ``heterosis.evolve.optimizers``.
        sigma0: First standard deviation, as a fraction of each range.
        popsize: Results between two updates.
    """

    name: str = "cma"
    sigma0: Annotated[float, BeforeValidator(_not_bool), Field(gt=0, le=1)] | None = None
    popsize: Annotated[int, BeforeValidator(_not_bool), Field(ge=4)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: object) -> object:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if name not in optimizer_names():
            raise ValueError(f"unknown optimizer {name!r}{did_you_mean(name, optimizer_names())}")
        return name


class Failures(_Section):
    """When a search gives up.

    Attributes:
        max_failure_rate: Share of trials that may fail before the set-up is taken to be wrong.
    """

    max_failure_rate: Annotated[float, BeforeValidator(_not_bool), Field(gt=0, le=1)] = 0.5


class EvolveConfig(_Section):
    """A whole config file; the keys up to ``fewshot_as_multiturn`` are mergekit-evolve's, with its defaults.

    Attributes:
        genome: What is searched.
        tasks: What is optimised.
        limit: Documents per task in the search.
        num_fewshot: Examples in each prompt; None for the task's own number.
        shuffle: Accepted as mergekit-evolve's; our documents are always split at random.
        random_init: Start at a random point instead of a sensible one.
        apply_chat_template: Whether prompts are put into the model's chat template.
        fewshot_as_multiturn: Whether examples are turns of the chat.
        documents: How documents are split.
        include_path: Folders with lm-eval tasks; ``task_search_path`` is the same.
        batch_size: Requests in one forward pass.
        max_length: Longest prompt in tokens; None for the model's own.
        optimizer: Who proposes the candidates.
        seed: Of the search and of random merge methods.
        trials: Budget, baselines included.
        hours: Another budget.
        workers: Processes that score; None for one for every four cores.
        finalists: Candidates compared on the selection documents.
        timeout: Seconds that a candidate may take.
        failures: When to give up.
    """

    genome: Genome
    tasks: tuple[Task, ...]
    limit: DocumentCount | None = None
    num_fewshot: Natural | None = None
    shuffle: bool = False
    random_init: bool = False
    apply_chat_template: bool = True
    fewshot_as_multiturn: bool = True
    documents: Documents = Field(default=Documents(), validate_default=True)
    include_path: Annotated[tuple[str, ...], BeforeValidator(_folders)] = ()
    batch_size: Count = 16
    max_length: Count | None = None
    optimizer: OptimizerConfig = OptimizerConfig()
    seed: Natural = 0
    trials: Count = 100
    hours: Annotated[float, BeforeValidator(_not_bool), Field(gt=0)] | None = None
    workers: Count | None = None
    finalists: Count = 5
    timeout: Annotated[float, BeforeValidator(_not_bool), Field(gt=0)] | None = None
    failures: Failures = Failures()

    @classmethod
    def load(cls, path: str | os.PathLike[str], methods: Mapping[str, MethodSpec] | None = None) -> "EvolveConfig":
        """Reads a config file.

        Args:
            path: Of the YAML file.
            methods: The merge methods that there are; None for the registry.

        Raises:
            InputError: With a line for every fault.
        """
        text = read_text(path, "config")
        return cls.parse(text, os.fspath(path), methods)

    @classmethod
    def parse(
        cls, text: str, origin: str = "config.yaml", methods: Mapping[str, MethodSpec] | None = None
    ) -> "EvolveConfig":
        """Reads a config from YAML; ``origin`` is the name that error messages give it.

        Raises:
            InputError: With a line for every fault.
        """
        if methods is None:
            from heterosis.merge.methods import methods as registry

            methods = registry()
        data = parse_mapping(text, origin)
        if "genome" not in data and "merge_method" in data:
            raise InputError(f"{origin}: is a recipe, not a search config; run heterosis merge on it")
        return cls._from_plain(data, origin, methods)

    def updated(self, origin: str = "options", **changes: Any) -> "EvolveConfig":
        """A copy with other values for some top-level keys, checked like a file.

        Raises:
            InputError: With a line for every fault; ``origin`` is the name that they start with.
        """
        return self._from_plain({**self.model_dump(mode="json"), **changes}, origin)

    @classmethod
    def _from_plain(
        cls, data: dict[str, Any], origin: str, methods: Mapping[str, MethodSpec] | None = None
    ) -> "EvolveConfig":
        if "task_search_path" in data:
            paths = [_folders(data.pop(key)) for key in ("include_path", "task_search_path") if key in data]
            data["include_path"] = [
                path for part in paths for path in (part if isinstance(part, list) else [part])
            ]
        faults: list[str] = []
        genome = None
        try:
            config = cls.model_validate(data)
            genome = config.genome
        except ValidationError as error:
            faults += _faults_of(error)
            raw = data.get("genome")
            name = raw.get("merge_method") if isinstance(raw, dict) else None
            try:
                genome = Genome.model_validate(raw)  # sound in a faulty file: report on its method as well
            except ValidationError:
                if methods is not None and isinstance(name, str) and name not in methods:
                    faults.append(_unknown_method(name, methods))
        if genome is not None and methods is not None:
            faults += genome.faults(methods)
        if faults:
            raise InputError(*(f"{origin}: {fault}" for fault in faults))
        return config

    @field_validator("tasks")
    @classmethod
    def _check_tasks(cls, tasks: tuple[Task, ...]) -> tuple[Task, ...]:
        faults = _list_faults([task.name for task in tasks])
        if tasks and all(task.weight == 0 for task in tasks):
            faults.append(": at least one weight must differ from 0, else there is nothing to optimise")
        _refuse(faults)
        return tasks

    @field_validator("documents")
    @classmethod
    def _fill_documents(cls, documents: Documents, info: ValidationInfo) -> Documents:
        limit = info.data.get("limit")
        if limit is None or documents.search == limit:
            return documents
        if documents.search is not None:
            _refuse([f".search: must agree with limit, but got {documents.search} and {limit}; drop one of them"])
        return documents.model_copy(update={"search": limit})

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


# --- faults -----------------------------------------------------------------------------------------------------

_SECTIONS: dict[tuple[str, ...], type[BaseModel]] = {
    (): EvolveConfig,
    ("genome",): Genome,
    ("tasks",): Task,
    ("documents",): Documents,
    ("optimizer",): OptimizerConfig,
    ("failures",): Failures,
}
_RULES = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a text",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "tuple_type": "must be a list",
}


def _unknown_method(name: str, methods: Iterable[str]) -> str:
    return f"genome.merge_method: unknown method {name!r}{did_you_mean(name, methods)}"


def _refuse(faults: Iterable[str]) -> None:
    """Raises the faults, if any, within a validator; each line goes on where the place of its value ends."""
    faults = list(faults)
    if faults:
        raise InputError(*faults)


def _faults_of(error: ValidationError) -> Iterator[str]:
    """Pydantic's errors as lines in our words."""
    for detail in error.errors(include_url=False):
        place, kind, got = detail["loc"], detail["type"], detail["input"]
        context = detail.get("ctx", {})
        path = _dotted(place)
        cause = context.get("error")
        if isinstance(cause, InputError):
            yield from (f"{path}{fault}" for fault in cause.faults)
        elif kind == "value_error":
            yield f"{path}: {cause}"
        elif kind == "missing":
            yield f"{path}: must be given"
        elif kind == "extra_forbidden":
            section = _SECTIONS[tuple(key for key in place[:-1] if isinstance(key, str))]
            yield f"{path}: unknown key{did_you_mean(str(place[-1]), section.model_fields)}"
        elif kind in ("greater_than", "greater_than_equal", "less_than_equal"):
            sign = {"greater_than": ">", "greater_than_equal": ">=", "less_than_equal": "<="}[kind]
            bound = next(iter(context.values()))
            yield f"{path}: must be {sign} {bound}, but got {got!r}"
        else:
            yield f"{path}: {_RULES.get(kind, detail['msg'])}, but got {got!r}"


def _dotted(place: tuple[str | int, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place).removeprefix(".")


def _list_faults(names: Sequence[str]) -> list[str]:
    if not names:  # pydantic's own check of the length counts sound entries only
        return [": must list at least one entry, but is empty"]
    counts = Counter(names)
    return [f": each may be listed once, but got {name!r} {n} times" for name, n in counts.items() if n > 1]


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
