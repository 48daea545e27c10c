"""The documents of a task: what they are known by, and what they ask."""

import ast
import copy
import inspect
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from heterosis.errors import InputError, did_you_mean

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
        asked = (_asked(task, document) or (content, "") for document, content in zip(data, hashes, strict=True))
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


def _asked(task: Any, document: Any) -> tuple[str, str] | None:
    """What a document asks, and its answer; None where the task does not say, or not without a model."""
    try:
        text = text_of(task, document)
    except Exception:  # a task's functions may do anything
        return None
    return (text.question, text.answer) if text.question.strip() else None


def text_of(task: Any, document: Any) -> DocumentText:
    """What a document asks, in the words of its lm-eval task."""
    data = copy.copy(document)
    choices: tuple[str, ...] = ()
    if getattr(task.config, "doc_to_choice", None) is not None:
        choices = tuple(map(str, task.doc_to_choice(data)))
    question, answer = task.doc_to_text(data), task.doc_to_target(data)
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
