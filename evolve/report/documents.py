"""What a report has to know of the tasks' documents: which belong together, and what some of them ask.

The tasks are at hand while a search runs; a report is often written later, elsewhere, without their data. So the
search keeps what its report shows in the run folder.
"""

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from heterosis.evaluate.documents import DocumentText
from heterosis.merge.files import write_text

if TYPE_CHECKING:
    from heterosis.evaluate.harness import TaskSet

log = logging.getLogger("heterosis")

DOCUMENTS = "documents.json"
LONGEST = 4000  # characters of a text that are kept
_MOST_CHOICES = 30


@dataclass(frozen=True)
class Known:
    """What is known of the tasks' documents.

    Attributes:
        groups: Group of each document, of the tasks that have groups of several documents.
        texts: What some documents ask, by task and number.
        there: Whether anybody has asked the tasks; else documents of one group are not known to be.
    """

    groups: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    texts: Mapping[str, Mapping[int, DocumentText]] = field(default_factory=dict)
    there: bool = False

    @classmethod
    def load(cls, folder: Path) -> "Known":
        """What an earlier session has kept in a run folder."""
        path = folder / DOCUMENTS
        if not path.exists():
            return cls()
        read = json.loads(path.read_text(encoding="utf-8"))
        groups = {task: {int(d): str(g) for d, g in own.items()} for task, own in read["groups"].items()}
        texts = {
            task: {int(d): DocumentText(t["question"], tuple(t["choices"]), t["answer"]) for d, t in own.items()}
            for task, own in read["texts"].items()
        }
        return cls(groups, texts, there=True)

    @classmethod
    def of(cls, tasks: "TaskSet") -> "Known":
        """What tasks say of all their documents; the texts of some can be asked for."""
        found = {task: dict(enumerate(names)) for task, names in tasks.groups().items()}
        groups = {task: names for task, names in found.items() if len(set(names.values())) < len(names)}
        return cls(groups, there=True)

    def with_texts(self, tasks: "TaskSet", wanted: Mapping[str, Iterable[int]]) -> "Known":
        """The same, with what some documents ask."""
        texts: dict[str, dict[int, DocumentText]] = {}
        for task, documents in wanted.items():
            for document in documents:
                try:
                    text = tasks.text(task, document)
                except Exception as error:  # a task's templates and functions may do anything
                    log.warning("report: %s: document %d cannot be shown: %r", task, document, error)
                    continue
                choices = tuple(map(_shortened, text.choices[:_MOST_CHOICES]))
                own = texts.setdefault(task, {})
                own[document] = DocumentText(_shortened(text.question), choices, _shortened(text.answer))
        return replace(self, texts=texts)

    def save(self, folder: Path) -> None:
        texts = {task: {d: asdict(text) for d, text in own.items()} for task, own in self.texts.items()}
        # Texts may have halves of surrogate pairs, which UTF-8 has not: ASCII can write them.
        write_text(folder / DOCUMENTS, json.dumps({"groups": self.groups, "texts": texts}) + "\n")


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} […]"
