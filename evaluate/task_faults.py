"""What may be wrong with a task, in words of its author's."""

import copy
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from heterosis.errors import InputError, did_you_mean
from heterosis.evaluate.scores import Metric

LOOKED_AT = 20  # documents, to see whether their answers are right at all
_SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")


def unreadable(names: Sequence[str], folders: Sequence[str]) -> list[str]:
    """What keeps lm-eval, which is silent about it, from reading the files that seem to define some tasks."""
    faults = []
    for path in sorted(path for folder in folders for path in Path(folder).rglob("*.yaml")):
        content = path.read_bytes()
        text = content.decode(errors="replace")
        if not any(
            re.search(rf"^(task|group):\s*['\"]?{re.escape(name)}\b", text, re.MULTILINE) for name in names
        ):
            continue
        try:
            content.decode()
        except UnicodeDecodeError as error:
            row = content.count(b"\n", 0, error.start) + 1
            faults.append(f"{path}: line {row}: must be UTF-8 text; save it as such")
            continue
        try:
            for _ in yaml.parse(text):  # without making anything of it: !function is a tag of lm-eval's
                pass
        except yaml.MarkedYAMLError as error:
            line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
            faults.append(f"{path}: {line}is not valid YAML: {error.problem}")
        except yaml.YAMLError as error:
            faults.append(f"{path}: is not valid YAML: {one_line(error)}")
    return faults


def why_unloadable(error: BaseException, declared: Mapping[str, Any]) -> str:
    """Why lm-eval could not load a task: it reads the data, and asks its first document, to see what that is.

    Args:
        error: What it raised.
        declared: The task's YAML.
    """
    files = (declared.get("dataset_kwargs") or {}).get("data_files")
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    places = files.values() if isinstance(files, Mapping) else [files]
    of = f" ({', '.join(map(str, places))})" if files else ""
    if type(error).__name__ == "DatasetGenerationError":
        return f"its data{of} cannot be read: {one_line(causes[-1])}"
    if any(isinstance(own, StopIteration) for own in causes):
        return f"its data{of} has no documents"
    if isinstance(error, KeyError) and error.args and error.args[0] in map(declared.get, _SPLITS):
        return f"its data{of} has no split {error.args[0]!r}; check {', '.join(_SPLITS)}"
    if isinstance(error, IndexError):
        return (
            f"what it asks cannot be made of its first document{of}: {one_line(error)}; check doc_to_text, "
            "doc_to_choice and doc_to_target"
        )
    reason = one_line(error)
    # What lm-eval says of answers to choose from that are no texts, and of data that has no place.
    if "'int' object is not subscriptable" in reason:
        return f"{reason}; choices must be texts, not numbers"
    if "not NoneType" in reason and not files:
        return f"{reason}; check dataset_path and dataset_kwargs"
    return reason


def check_metrics(name: str, task: Any, known: Collection[str], find: Callable[[str, bool], object]) -> None:
    """Refuse metrics of a task's YAML that lm-eval does not know, which it only logs, and a wrong direction.

    Args:
        name: The task's.
        task: Of lm-eval.
        known: Metrics of lm-eval.
        find: Looks for another one, elsewhere.
    """
    if task.config.process_results is not None:  # the task computes its metrics itself
        return
    for entry in task.config.metric_list or ():
        metric, elsewhere = entry["metric"], bool(entry.get("hf_evaluate"))
        likelihoods = metric == "perplexity" and str(task.config.output_type) == "loglikelihood"
        if likelihoods and entry.get("aggregation") == "mean" and not entry.get("higher_is_better"):
            # lm-eval's own direction is that of exp(-mean).
            raise InputError(
                f"task '{name}': metric_list: perplexity: higher must be better, as the mean is one of "
                "log-likelihoods; write higher_is_better: true"
            )
        if not isinstance(metric, str) or (metric in known and not elsewhere):
            continue
        if find(metric, elsewhere) is None:
            raise InputError(f"task '{name}': metric_list: unknown metric '{metric}'{did_you_mean(metric, known)}")


def near_tasks(name: str, manager: Any) -> list[str]:
    """Tasks of nearly that name, of the user's folders before lm-eval's; not all 14,000 when none is near."""
    folders = tuple(str(Path(folder).resolve()) for folder in manager.include_path or ())
    paths = {task: manager.task_index[task].yaml_path for task in manager.all_tasks}
    own = [task for task, path in paths.items() if path and str(Path(path).resolve()).startswith(folders)]
    return get_close_matches(name, own, n=1) or get_close_matches(name, paths, n=3)


def chosen_metric(task: str, wanted: str | None, usable: Mapping[str, Metric], unusable: Sequence[str]) -> str:
    """The key of the metric that the user means."""
    valid = f"valid: {', '.join(usable)}"
    not_valid = f"; not usable: {', '.join(unusable)}" if unusable else ""
    if not usable:
        raise InputError(
            f"task '{task}': has no metric that can be used{not_valid}; write one with aggregation: mean; "
            "for perplexity, with output_type: loglikelihood"
        )
    if wanted is None:
        return next(iter(usable))
    if wanted in usable:
        return wanted
    keys = [key for key, metric in usable.items() if metric.name == wanted]
    if len(keys) == 1:
        return keys[0]
    near = get_close_matches(wanted, {metric.name for metric in usable.values()}, n=1)
    meant = f"; did you mean '{near[0]}'?" if near else ";"
    what = f"metric '{wanted}' is ambiguous;" if keys else f"unknown metric '{wanted}'{meant}"
    raise InputError(f"task '{task}': {what} {valid}{not_valid}")


def check_examples(name: str, task: Any) -> None:
    """Refuse more examples in a prompt than there are."""
    wanted = task.config.num_fewshot or 0
    if not wanted or not hasattr(task, "sampler"):
        return
    # Where examples are the documents that are asked, none is an example of itself; lm-eval asks the same.
    there = len(task.sampler.df) - (task.fewshot_cfg.split == task.config.test_split)
    if wanted > there:
        raise InputError(f"task '{name}': num_fewshot: must be at most {there}, its examples, but got {wanted}")


def check_answers(name: str, task: Any, data: Sequence[Any]) -> None:
    """Refuse a task none of whose answers is among the choices: every model would score nothing.

    lm-eval only logs it, as a document here and there may have no answer.
    """
    if str(task.config.output_type) != "multiple_choice" or getattr(task, "multiple_input", False):
        return
    answer = None
    for document in map(copy.copy, data[:LOOKED_AT]):
        choices, answer = task.doc_to_choice(document), task.doc_to_target(document)
        answers = answer if isinstance(answer, list | tuple) else [answer]
        if any(a < len(choices) if isinstance(a, int) else a in choices for a in answers):
            return
    if data:
        raise InputError(
            f"task '{name}': doc_to_target: must give a choice or its number, but gives {answer!r}, which is no "
            "choice of any document; check its spelling"
        )


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
