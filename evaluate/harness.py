"""lm-eval tasks, built once and scored often. The only file that imports lm_eval.

lm-eval's own `evaluate()` would build every prompt again for each candidate, and draws few-shot examples
from one stream, so that the same document is asked differently depending on which others are asked. Here a
document's prompt depends on the document and the seed only. Everything else is lm-eval's: its tasks, its
requests, its model class, its filters and metrics. Nothing is cached between calls.
"""

import copy
import inspect
import logging
import math
import os
import random
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from importlib.metadata import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM, CacheHook
from lm_eval.api.registry import get_metric, get_metric_aggregation, get_model, metric_registry, model_registry
from lm_eval.api.task import ConfigurableTask, Task
from lm_eval.filters import build_filter_ensemble
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from heterosis.errors import InputError, collecting, did_you_mean
from heterosis.evaluate.documents import (
    Documents,
    DocumentText,
    Source,
    check_groups,
    definition_of,
    hash_of,
    source_of,
    text_of,
)
from heterosis.evaluate.loaded_task import LoadedTask
from heterosis.evaluate.scores import Metric, NonFiniteScore, Scores, TaskSpec
from heterosis.evaluate.splits import Split
from heterosis.evaluate.task_faults import (
    check_answers,
    check_examples,
    check_metrics,
    chosen_metric,
    near_tasks,
    one_line,
    unreadable,
    why_unloadable,
)

_MISSPELT = 0.8  # alikeness: 'dtpye' is meant as 'dtype', 'torch_dtype' and 'device_map' are as they are
_LENGTHS = ("max_length", "max_model_len")  # what model classes of lm-eval call the longest prompt


def make_lm(model: Any, tokenizer: Any, batch_size: int | str, max_length: int | None = None) -> HFLM:
    """lm-eval's Hugging Face model around a live transformers model, which is neither moved nor copied."""
    with _quiet():
        return HFLM(
            pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size, max_length=max_length
        )


def check_backend(
    name: str,
    batch_size: int | str,
    max_length: int | None,
    args: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Refuse what `load_lm` could not do, and warn of arguments that look misspelt.

    Raises:
        InputError: If lm-eval has no such model class, or it is not installed, cannot load a folder, or cannot do
            with the batch size, the length or an argument.
    """
    if name not in model_registry:
        valid = ("resident", *model_registry)
        raise InputError(f"backend: unknown to lm-eval: {name!r}{did_you_mean(name, valid)}")
    try:
        parameters = _parameters(get_model(name))
    except ImportError as error:
        extra = f"lm-eval[{name}]" if name in _extras() else error.name or name
        raise InputError(
            f"backend: {name} needs a package that is not installed ({one_line(error)}); pip install '{extra}'"
        ) from error
    except Exception as error:  # of a package that finds no device, or is broken
        raise InputError(f"backend: {name} cannot be imported: {one_line(error)}") from error
    if "pretrained" not in parameters:
        raise InputError(
            f"backend: {name} does not load models from a folder, which is how it would get them; write resident, "
            "hf or vllm"
        )
    if batch_size == "auto" and parameters.get("batch_size") != "auto":
        raise InputError(
            f"batch_size: auto is for the resident model, and for backends that fill batches themselves, not for "
            f"{name}; write a number"
        )
    if max_length is not None and not any(key in parameters for key in _LENGTHS):
        raise InputError(f"max_length: {name} has no such argument; leave it out")
    _check_args(name, args, parameters)


def _check_args(name: str, args: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse arguments that a model class does not take; it may pass others on, to transformers or vLLM."""
    unknown = [key for key in args if key not in known]
    passes_on = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(get_model(name)).parameters.values())
    if unknown and not passes_on:
        raise InputError(
            *(f"backend.args.{key}: {name} has no such argument{did_you_mean(key, known)}" for key in unknown)
        )
    for key in unknown:
        for near in get_close_matches(key, known, n=1, cutoff=_MISSPELT):
            warnings.warn(
                f"backend.args.{key}: {name} has no such argument and passes it on; did you mean '{near}'?",
                stacklevel=1,
            )


def load_lm(
    backend: str,
    args: Mapping[str, Any],
    folder: Path,
    batch_size: int | str,
    max_length: int | None = None,
    device: str = "cpu",
) -> LM:
    """A model folder, loaded by one of lm-eval's model classes."""
    model = get_model(backend)
    length = {} if max_length is None else {next(key for key in _LENGTHS if key in _parameters(model)): max_length}
    with _quiet():
        return model.create_from_arg_obj(
            {**args, **length, "pretrained": str(folder)}, {"batch_size": batch_size, "device": device}
        )


def likelihood_finite(lm: LM, context: str, continuation: str) -> bool:
    """Whether a model finds a text possible at all; one that has gone wrong gives NaN or minus infinity."""
    request = Instance("loglikelihood", {}, (context, continuation), 0)
    with _quiet():
        ((likelihood, _),) = lm.loglikelihood([request], disable_tqdm=True)
    return math.isfinite(likelihood)


def _parameters(model: type[LM]) -> dict[str, Any]:
    """The parameters of a model class and their defaults, and those of the classes that it passes others on to."""
    found: dict[str, Any] = {}
    for cls in model.__mro__:
        if "__init__" in vars(cls):
            _, *own = inspect.signature(vars(cls)["__init__"]).parameters.values()
            found = {parameter.name: parameter.default for parameter in own} | found
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
                break
    return found


def _extras() -> list[str]:
    """What can be installed with lm-eval."""
    return metadata("lm-eval").get_all("Provides-Extra") or []


class TaskSet:
    """Tasks with their documents and requests, ready to score any number of models.

    Example::

        tasks = TaskSet(TaskSpec("arc_easy", metric="acc_norm"))
        split = split_documents(tasks.groups(), Sizes(search=100), seed=0)
        tasks.build(split, lm)
        tasks.score(lm, split.search).mean("arc_easy", "acc_norm,none")

    Attributes:
        members: For each name that was asked for, and for each task, the tasks that it stands for.
    """

    def __init__(
        self,
        tasks: str | TaskSpec | Iterable[str | TaskSpec],
        *,
        include_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        num_fewshot: int | None = None,
        seed: int = 0,
        allow_code: bool = False,
    ) -> None:
        """Load the tasks and their data; no model is needed yet.

        Args:
            tasks: Names, or specs that say more; or one of them. The tasks of a group or tag share its weight.
            include_path: Folders with the user's own task YAML, or one, which goes before lm-eval's. ``!function``
                in these files runs the Python that stands beside them.
            num_fewshot: For tasks whose spec does not say, unless the task itself insists on 0 (as lm-eval).
            seed: Of the few-shot examples.
            allow_code: Accept tasks that run code which the model wrote.

        Raises:
            InputError: If a task or metric is unknown, or cannot be used; all faults at once.
        """
        self.members: dict[str, tuple[str, ...]] = {}
        self._seed = seed
        self._tasks: dict[str, LoadedTask] = {}

        several = [tasks] if isinstance(tasks, str | TaskSpec) else tasks
        specs = [task if isinstance(task, TaskSpec) else TaskSpec(task) for task in several]
        folders = [include_path] if isinstance(include_path, str | os.PathLike) else include_path
        faults: list[str] = []
        with _quiet(), _seeded(seed):
            manager = _task_manager(specs, [str(Path(folder)) for folder in folders])
            for spec in specs:
                with collecting(faults):
                    self._add(spec, manager, num_fewshot, allow_code)
        if faults:
            raise InputError(*faults)

    def _add(self, spec: TaskSpec, manager: Any, num_fewshot: int | None, allow_code: bool) -> None:
        leaves = _load(spec.name, manager, allow_code)
        for name, task in leaves.items():
            if name in self._tasks:
                raise InputError(f"task '{name}': named twice (again by '{spec.name}'); name each task once")
            check_metrics(name, task, list(metric_registry), get_metric)
            filters = _filters_of(task)
            usable, unusable = _metrics_of(task, filters)
            metric = chosen_metric(name, spec.metric, usable, unusable)
            data = [document for _, document in task.doc_iterator()]
            check_answers(name, task, data)
            group_by = spec.group_by or (task.config.metadata or {}).get("group_by")
            own = replace(spec, name=name, weight=spec.weight / len(leaves), metric=metric, group_by=group_by)
            self._tasks[name] = LoadedTask(own, task, data, list(map(hash_of, data)), usable, filters)
            if group_by is not None:
                check_groups(name, data, group_by)
            if spec.num_fewshot is not None:
                task.set_config("num_fewshot", spec.num_fewshot)
            elif num_fewshot is not None and task.config.num_fewshot != 0:
                task.set_config("num_fewshot", num_fewshot)
            check_examples(name, task)
            self.members[name] = (name,)
        self.members[spec.name] = tuple(leaves)

    @property
    def specs(self) -> dict[str, TaskSpec]:
        """For each task (groups and tags are taken apart), what the user asked of it.

        With its own name, its share of the weight and the full key of its metric.
        """
        return {name: loaded.spec for name, loaded in self._tasks.items()}

    def metrics(self, task: str) -> dict[str, Metric]:
        """The metrics of a task that can be used, by key."""
        return self._tasks[task].metrics

    def metric(self, task: str) -> Metric:
        """The metric that was asked for."""
        return self._tasks[task].metric

    def documents(self, task: str) -> Documents:
        return self._tasks[task].documents

    def text(self, task: str, document: int) -> DocumentText:
        """What a document asks, in the task's words."""
        loaded = self._tasks[task]
        return text_of(loaded.task, loaded.data[document])

    def source(self, task: str) -> Source:
        """Where a task's documents come from."""
        return source_of(self._tasks[task].task)

    def generates(self, task: str) -> bool:
        """Whether a task has the model write, rather than choose or rate a text."""
        return str(self._tasks[task].task.config.output_type) == "generate_until"

    def gives_probability(self, task: str) -> bool:
        """Whether scores have a `PROBABILITY` beside the metric, which asks for the likeliest answer."""
        return self._tasks[task].gives_probability

    def groups(self) -> dict[str, list[str]]:
        """Every document's group, as `split_documents` takes it."""
        return {name: loaded.documents.groups for name, loaded in self._tasks.items()}

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """Hashes of each task's documents and definition, as `Split.check` takes them."""
        return {
            name: {"documents": loaded.fingerprint, **definition_of(loaded.task)}
            for name, loaded in self._tasks.items()
        }

    def hold_back(self, split: Split) -> None:
        """Take few-shot examples from search documents and unused ones, where a task takes them from all it asks.

        With the answers of selection and held-out documents in its prompts, a search would learn these.

        Raises:
            InputError: If too few are left.
        """
        faults: list[str] = []
        for name, loaded in self._tasks.items():
            with collecting(faults):
                loaded.hold_back([*split.selection[name], *split.holdout[name]])
        if faults:
            raise InputError(*faults)

    def build(
        self,
        documents: Split | Mapping[str, Iterable[int]],
        lm: LM | None = None,
        *,
        apply_chat_template: bool = False,
        fewshot_as_multiturn: bool = True,
        system_instruction: str | None = None,
    ) -> None:
        """Make the requests of these documents, in place of all made before.

        Args:
            documents: A split (all its parts, with examples as of `hold_back`), or documents of each task.
            lm: Whose chat template is applied; not needed without one.
            apply_chat_template: Ask in the form of a chat.
            fewshot_as_multiturn: In a chat, give few-shot examples as turns of their own.
            system_instruction: Goes before everything else; in a chat as its system message.
        """
        assert lm is not None or not apply_chat_template, "a chat template needs its model"
        chat_template = lm.apply_chat_template if lm is not None and apply_chat_template else None
        if isinstance(documents, Split):
            self.hold_back(documents)
        chosen = documents.documents() if isinstance(documents, Split) else documents
        for loaded in self._tasks.values():
            loaded.requests = {}
        with _quiet(), _seeded(self._seed):
            for name, indices in chosen.items():
                for index in sorted(indices):
                    self._tasks[name].build(
                        index,
                        self._seed,
                        apply_chat_template=apply_chat_template,
                        fewshot_as_multiturn=fewshot_as_multiturn,
                        system_instruction=system_instruction,
                        chat_template=chat_template,
                    )

    def longest(self, lm: LM) -> int:
        """Tokens of the longest request that was built, with what the model may write, as the model takes them."""
        built = (r for loaded in self._tasks.values() for requests in loaded.requests.values() for r in requests)
        return min(int(lm.max_length), max(_tokens(request, lm) for request in built))

    def shortened(self, lm: LM) -> dict[str, int]:
        """How many documents of each task have a request that is longer than the model takes, of those built.

        It loses its beginning.
        """

        def too_long(request: Instance) -> bool:
            if request.request_type == "loglikelihood_rolling":  # in windows
                return False
            unread = 1 if request.request_type == "loglikelihood" else 0  # its last token is only expected
            return _tokens(request, lm) - unread > int(lm.max_length)

        return {
            name: sum(any(map(too_long, requests)) for requests in loaded.requests.values())
            for name, loaded in self._tasks.items()
        }

    def score(
        self,
        lm: LM,
        documents: Mapping[str, Iterable[int]],
        keep_answers: Mapping[str, Collection[int]] = MappingProxyType({}),
        progress: Callable[[int, int], None] | None = None,
    ) -> Scores:
        """Score a model on documents whose requests were built.

        Args:
            lm: The model.
            documents: Of each task.
            keep_answers: Documents of each task of which the answers are kept, where the model writes or chooses.
            progress: Called with the requests answered so far and all of them, at first with 0.

        Raises:
            NonFiniteScore: If the model gives a likelihood, or a document a metric, that is not finite.
                Generated text cannot show that: see `ResidentModel.logits_finite`.
        """
        asked = {
            name: {index: [_fresh(request) for request in self._tasks[name].requests[index]] for index in indices}
            for name, indices in documents.items()
        }
        requests = [r for built in asked.values() for requests in built.values() for r in requests]
        with _counting(lm, sum(request.repeats or 1 for request in requests), progress):
            seconds = _run(lm, requests)
        with _quiet():
            scored = {name: self._tasks[name].score(built, lm) for name, built in asked.items()}
            answers = {
                name: self._tasks[name].answers({i: built[i] for i in built if i in keep_answers[name]})
                for name, built in asked.items()
                if name in keep_answers
            }
        return Scores(scored, seconds, {name: own for name, own in answers.items() if own})


class _Counter(CacheHook):  # type: ignore[misc]
    """Told every answer as it comes, which lm-eval's cache would keep; it only counts them."""

    def __init__(self, total: int, progress: Callable[[int, int], None]) -> None:
        super().__init__(None)
        self._done, self._total, self._progress = 0, total, progress
        progress(0, total)

    def add_partial(self, attr: str, req: Iterable[Any], res: Any) -> None:
        self._done += 1
        self._progress(self._done, self._total)


@contextmanager
def _counting(lm: LM, total: int, progress: Callable[[int, int], None] | None) -> Iterator[None]:
    """Tell how many requests a model has answered."""
    if progress is None:
        yield
        return
    lm.set_cache_hook(_Counter(total, progress))
    try:
        yield
    finally:
        lm.set_cache_hook(CacheHook(None))


def _run(lm: LM, requests: Iterable[Instance]) -> float:
    """Let the model answer, all requests of a kind in one call; the answers go into ``request.resps``."""
    kinds: dict[str, list[Instance]] = defaultdict(list)
    for request in requests:
        kinds[request.request_type].extend([request] * (request.repeats or 1))
    seconds = 0.0
    for kind, repeated in kinds.items():
        with _quiet():
            start = time.perf_counter()
            answers = getattr(lm, kind)(repeated, disable_tqdm=True)
            seconds += time.perf_counter() - start
        for request, answer in zip(repeated, answers, strict=True):
            if kind != "generate_until":
                likelihood = answer[0] if kind == "loglikelihood" else answer
                if not math.isfinite(likelihood):
                    raise NonFiniteScore(request.task_name, request.doc_id, likelihood)
            request.resps.append(answer)
    return seconds


def _tokens(request: Instance, lm: LM) -> int:
    """Tokens of a request, with what the model may write."""
    text = "".join(part for part in request.args if isinstance(part, str))
    writes = request.args[1] if request.request_type == "generate_until" else {"max_gen_toks": 0}
    return len(lm.tok_encode(text)) + int(writes.get("max_gen_toks", lm.max_gen_toks))


def _fresh(request: Instance) -> Instance:
    """The request without answers; models may take apart its arguments, so these are copied too."""
    return replace(request, arguments=copy.deepcopy(request.arguments), resps=[], filtered_resps={})


def _task_manager(specs: Sequence[TaskSpec], folders: list[str]) -> Any:
    """An index that knows the named tasks.

    Indexing lm-eval's own 14,000 tasks takes 5 to 20 seconds, the include path alone a few milliseconds, so
    that is tried first. It is enough for single tasks; a group or tag may go on in lm-eval's.
    """
    if missing := [folder for folder in folders if not Path(folder).is_dir()]:
        raise InputError(
            *(f"include_path: '{folder}' is not a folder; name the one with the tasks' YAML" for folder in missing)
        )
    if folders:
        manager = TaskManager(include_path=folders, include_defaults=False)
        missing = [spec.name for spec in specs if spec.name not in manager.all_subtasks]
        if not missing:
            return manager
        if faults := unreadable(missing, folders):
            raise InputError(*faults)
    return TaskManager(include_path=folders)


def _load(name: str, manager: Any, allow_code: bool) -> dict[str, Any]:
    """The tasks that a name stands for."""
    if name not in manager.all_tasks:
        near = near_tasks(name, manager)
        elsewhere = "" if manager.include_path else ", or name the folder of your own (include_path)"
        hint = did_you_mean(name, near) if near else f"; list them with `lm-eval ls tasks`{elsewhere}"
        where = f" in lm-eval or {', '.join(manager.include_path)}" if manager.include_path else " in lm-eval"
        raise InputError(f"task '{name}': unknown{where}{hint}")

    runs_code = "task '{}': runs code that the model writes, which a search does not; leave it out"
    declared = manager.task_index[name].cfg or {}
    if declared.get("unsafe_code") and not allow_code:  # before its files are loaded: they may run code too
        raise InputError(runs_code.format(name))
    try:
        tasks: dict[str, Any] = manager.load([name])["tasks"]
    except Exception as error:  # a task is the user's YAML and Python, and data from anywhere
        raise InputError(f"task '{name}': cannot be loaded: {why_unloadable(error, declared)}") from error
    for leaf, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False) and not allow_code:
            raise InputError(runs_code.format(leaf))
        if getattr(task, "MULTIMODAL", False):
            raise InputError(f"task '{leaf}': asks about images or sound; only text can be scored")
    if not tasks:
        raise InputError(f"task '{name}': a group without tasks")
    return tasks


def _metrics_of(task: Task, filters: Sequence[Any]) -> tuple[dict[str, Metric], list[str]]:
    """A task's metrics by key, and why others cannot be used.

    Everything after this works on documents, so a metric is usable if its score is the mean of the
    documents' values: not perplexities, F1 over the whole data set and the like.
    """
    usable: dict[str, Metric] = {}
    unusable: list[str] = []
    directions = task.higher_is_better()
    for name, aggregate in task.aggregation().items():
        aggregation = getattr(aggregate, "__name__", str(aggregate))
        if aggregation != "mean":
            unusable.append(f"{name} (aggregated by {aggregation}, not by the mean over documents)")
        elif directions.get(name) is None:
            unusable.append(f"{name} (does not say whether higher is better)")
        elif _needs_own_aggregation(task, name):
            unusable.append(f"{name} (gives no number for a document)")
        else:
            for pipeline in filters:
                metric = Metric(str(name), pipeline.name, bool(directions[name]))
                usable[metric.key] = metric
    return usable, unusable


def _needs_own_aggregation(task: Task, name: str) -> bool:
    """Whether lm-eval gives a document no number for a metric, but what the metric's own aggregation takes."""
    if task.config.process_results is not None or type(task).process_results != ConfigurableTask.process_results:
        return False  # the task computes its metrics itself
    if name == "perplexity" and task.OUTPUT_TYPE == "loglikelihood":  # the log-likelihood
        return False
    elsewhere = {entry["metric"] for entry in task.config.metric_list or () if entry.get("hf_evaluate")}
    own = name in metric_registry and name not in elsewhere
    return own and get_metric_aggregation(name).__name__ != "mean"


def _filters_of(task: Task) -> list[Any]:
    """The task's filter pipelines, each with a name, by which a metric's key ends."""
    declared = task.config.filter_list or [{"name": "none", "filter": [{"function": "take_first"}]}]
    pipelines = []
    for pipeline in declared:
        steps = [
            (step["function"], {key: value for key, value in step.items() if key != "function"})
            for step in pipeline["filter"]
        ]
        pipelines.append(build_filter_ensemble(pipeline["name"], steps))
    return pipelines


@contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval warns, at every call, of what is meant here (a model object, a task's defaults).

    What goes wrong is raised, too, so that it need not be told by it or by `datasets`.
    """
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Some tasks shuffle with the global generators while they load: fix these, and put them back."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
