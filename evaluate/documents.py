"""The documents of a task: what they are known by, and what they ask."""

import ast
import copy
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jinja2 import Environment, StrictUndefined, Template, TemplateError

from heterosis.errors import InputError, did_you_mean

_TEMPLATES = Environment(undefined=StrictUndefined, keep_trailing_newline=True)  # as lm-eval's, but for its filter

# Keys of a task's definition that neither decide how documents are asked nor how they are scored.
_WHERE = ("task", "task_alias", "tag", "group", "dataset_path", "dataset_name", "dataset_kwargs", "metadata")


@dataclass(frozen=True)
class Documents:
    """The documents of a task.

    Attributes:
        groups: For each document, the name of its group (see `heterosis.evaluate.splits`).
        hashes: For each document, a hash of its content.
        fingerprint: A hash of all of them, in order.
    """

    groups: list[str]
    hashes: list[str]
    fingerprint: str

    @property
    def count(self) -> int:
        return len(self.groups)


@dataclass(frozen=True)
class DocumentText:
    """What a document asks, for people to read.

    Attributes:
        question: Without few-shot examples and chat template.
        choices: The answers to choose from; none where text is generated.
        answer: The right answer; empty where the task has none.
    """

    question: str
    choices: tuple[str, ...] = ()
    answer: str = ""


@dataclass(frozen=True)
class Source:
    """Where a task's documents come from.

    Attributes:
        dataset: Name or path of the data set; empty for data that the task makes itself.
        kind: Which of the task's splits lm-eval takes: ``test``, or ``validation`` where there is no test split.
        split: What the data set calls it.
        others: The task's other splits that have documents: ``validation``, ``training``.
    """

    dataset: str
    kind: str
    split: str
    others: tuple[str, ...]


def describe(task: Any, data: Sequence[Any], hashes: Sequence[str], group_by: str | None) -> Documents:
    """Name the groups of a task's documents.

    Without a field to tell them by, documents that ask the same are one group, and have the name of the first:
    ids, shuffled choices and other fields that no model sees make no difference.

    Args:
        task: lm-eval's.
        data: Its documents.
        hashes: Of their content, as of `hash_of`.
        group_by: The field whose value is a document's group.
    """
    if group_by is None:
        first: dict[tuple[str, str], str] = {}
        compiled = _compiled(task)
        pairs = zip(data, hashes, strict=True)
        asked = (_asked(task, document, compiled) or (content, "") for document, content in pairs)
        groups = [first.setdefault(key, f"content={content}") for key, content in zip(asked, hashes, strict=True)]
    else:
        groups = [f"{group_by}={document[group_by]}" for document in data]
    return Documents(groups, list(hashes), fingerprint_of(hashes))


def check_groups(name: str, data: Sequence[Any], group_by: str) -> None:
    """Refuse a field to group by that a document lacks."""
    for index, document in enumerate(data):
        if group_by not in document:
            fields = did_you_mean(group_by, document)
            raise InputError(f"task '{name}': group_by: document {index} has no field '{group_by}'{fields}")


def hash_of(document: Any) -> str:
    """A hash of a document's content."""
    return digest(json.dumps(document, sort_keys=True, default=str)).hex()


def _compiled(task: Any) -> dict[str, Callable[[Any], Any]]:
    """The keys of a task's definition that are templates, as functions of a document.

    lm-eval compiles a template anew for each document, which takes 20 times as long as rendering it.
    """
    found: dict[str, Callable[[Any], Any]] = {}
    for key in ("doc_to_text", "doc_to_target", "doc_to_choice"):
        template = getattr(task.config, key, None)
        if isinstance(template, str) and template not in task.features:
            with suppress(TemplateError):  # lm-eval knows one filter more
                found[key] = partial(_rendered, _TEMPLATES.from_string(template), task, key)
    return found


def _rendered(template: Template, task: Any, key: str, document: Mapping[str, Any]) -> Any:
    """What lm-eval makes of a template: choices are a list; where there are some, a number is that of one."""
    text = template.render(**document)
    is_number = text.isdigit() and task.config.doc_to_choice is not None
    return ast.literal_eval(text) if is_number or key == "doc_to_choice" else text


def _asked(task: Any, document: Any, compiled: Mapping[str, Callable[[Any], Any]]) -> tuple[str, str] | None:
    """What a document asks, and its answer; None where the task does not say, or not without a model."""
    try:
        text = text_of(task, document, compiled)
    except Exception:  # a task's functions may do anything
        return None
    return (text.question, text.answer) if text.question.strip() else None


def text_of(
    task: Any, document: Any, compiled: Mapping[str, Callable[[Any], Any]] = MappingProxyType({})
) -> DocumentText:
    """What a document asks, in the words of its lm-eval task.

    Args:
        task: lm-eval's.
        document: Of it.
        compiled: Functions in place of some of the task's templates, by key.
    """
    data = copy.copy(document)

    def own(key: str) -> Any:
        return getattr(task, key)(data, *([compiled[key]] if key in compiled else []))

    choices: tuple[str, ...] = ()
    if getattr(task.config, "doc_to_choice", None) is not None:
        choices = tuple(map(str, own("doc_to_choice")))
    question, answer = own("doc_to_text"), own("doc_to_target")
    if isinstance(question, int):  # the beginnings of a sentence to choose from, and its one end
        return DocumentText(f"… {answer}", choices, choices[question])
    answers = answer if isinstance(answer, list | tuple) else [answer]
    named = [choices[a] if isinstance(a, int) and choices else str(a) for a in answers]
    return DocumentText(str(question), choices, " / ".join(named))


def source_of(task: Any) -> Source:
    """Where the documents of an lm-eval task come from."""
    has = {
        "test": task.has_test_docs(),
        "validation": task.has_validation_docs(),
        "training": task.has_training_docs(),
    }
    kind, *others = (name for name, there in has.items() if there)
    split = getattr(task.config, f"{kind}_split", None) or kind
    return Source(str(task.config.dataset_path or ""), kind, split, tuple(others))


def examples_are_asked(task: Any) -> bool:
    """Whether an lm-eval task takes few-shot examples from the documents that it asks."""
    examples, source = task.fewshot_cfg, source_of(task)
    if examples.split is not None:
        return bool(examples.split == source.split)
    return examples.samples is None and not source.others


def definition_of(task: Any) -> dict[str, str]:
    """A hash of each key of a task's definition that decides how documents are asked and scored.

    Functions are the files that they stand in, with the helpers and constants there; where they lie in memory does
    not count.
    """
    dumped = {key: value for key, value in task.dump_config().items() if key not in _WHERE}
    texts = {key: json.dumps(value, sort_keys=True, default=str) for key, value in dumped.items()}
    files = {key: _file_of(getattr(task.config, key, None)) for key in dumped}
    return {
        key: digest(re.sub(r" at 0x[0-9a-f]+", "", text) + files[key]).hex()[:12] for key, text in texts.items()
    }


def _file_of(value: object) -> str:
    """The code of the file that a function was written in, without comments; empty for others."""
    path = Path(value.__code__.co_filename) if inspect.isfunction(value) else None
    return ast.dump(ast.parse(path.read_bytes())) if path is not None and path.is_file() else ""


def fingerprint_of(hashes: Iterable[str]) -> str:
    """A hash of a task's documents, in order."""
    return digest("".join(hashes)).hex()


def digest(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()
