"""What is asked of a model, and what it scored: plain data, without torch and lm-eval.

A score is kept for every document: ``{task: {document: {metric key: value}}}``. Means, standard errors and
paired differences are all computed from that. A metric key is lm-eval's, the metric's name and the filter
that prepared the answer: "exact_match,none". Of some documents the answers are kept too, for people to read.
"""

import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from heterosis.errors import InputError, did_you_mean
from heterosis.evaluate.answers import Answer

# Beside the metrics: how probable a document's right answer is, in [0, 1], where its task tells.
PROBABILITY = "probability,none"

PerDocument = dict[str, dict[int, dict[str, float]]]


@dataclass(frozen=True)
class TaskSpec:
    """A task to score, as a user names it.

    Attributes:
        name: A task, group or tag of lm-eval.
        weight: Share of the task in an objective; the tasks of a group share it equally.
        metric: "acc", "acc,none", …; None means the task's first metric.
        num_fewshot: Examples before each question; None leaves it to the task.
        group_by: Document field whose equal values are never split between search, selection and held-out
            documents, in all tasks that name the same field. None means the task's own
            ``metadata: {group_by: …}``, and without that the whole document.
    """

    name: str
    weight: float = 1.0
    metric: str | None = None
    num_fewshot: int | None = None
    group_by: str | None = None


@dataclass(frozen=True)
class Metric:
    """A metric of a task, after one of the task's filters."""

    name: str
    filter: str
    higher_is_better: bool

    @property
    def key(self) -> str:
        return f"{self.name},{self.filter}"


class NonFiniteScore(ArithmeticError):
    """A metric is NaN or infinite, as it is of a model whose outputs are: it cannot be scored."""

    def __init__(self, task: str, document: int, value: float) -> None:
        super().__init__(task, document, value)  # exactly these, so that it survives pickling
        self.task, self.document, self.value = task, document, value

    def __str__(self) -> str:
        return (
            f"{self.task}: document {self.document} scored {self.value}; the model's outputs are not finite, or "
            "the metric is not"
        )


@dataclass
class Scores:
    """Scores of single documents.

    Attributes:
        documents: ``{task: {document: {metric key: value}}}``; documents are numbered as in the data set.
        forward_seconds: Time spent inside the model's calls, tokenizing included.
        answers: ``{task: {document: answer}}``, of the documents whose answers are kept.
    """

    documents: PerDocument = field(default_factory=dict)
    forward_seconds: float = field(default=0.0, compare=False)
    answers: dict[str, dict[int, Answer]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """How many documents there are, of all tasks."""
        return sum(map(len, self.documents.values()))

    def values(self, task: str, key: str) -> dict[int, float]:
        """The documents' values of one metric; without those for which the task did not give it.

        Raises:
            InputError: If the key lacks its filter, and no document has it so.
        """
        values = {document: scored[key] for document, scored in self.documents[task].items() if key in scored}
        if not values and "," not in key:
            known = {key for scored in self.documents[task].values() for key in scored}
            raise InputError(f"task '{task}': unknown metric '{key}'{did_you_mean(f'{key},none', known)}")
        return values

    def mean(self, task: str, key: str) -> float:
        """The mean over the documents; NaN when there is none."""
        return _mean(self.values(task, key).values())

    def stderr(self, task: str, key: str) -> float:
        """The standard error of the mean, s/√n with the sample's standard deviation s; NaN below two."""
        values = list(self.values(task, key).values())
        if len(values) < 2:
            return math.nan
        mean = _mean(values)
        variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
        return math.sqrt(variance / len(values))

    def merged(self, other: "Scores") -> "Scores":
        """These scores and those of other documents.

        Raises:
            ValueError: If a document is in both.
        """
        merged: PerDocument = {task: dict(scored) for task, scored in self.documents.items()}
        for task, scored in other.documents.items():
            mine = merged.setdefault(task, {})
            if twice := sorted(mine.keys() & scored.keys()):
                raise ValueError(f"{task}: documents {twice[:5]} are scored in both; merge disjoint scores only")
            mine.update(scored)
        answers = {
            task: self.answers.get(task, {}) | other.answers.get(task, {}) for task in self.answers | other.answers
        }
        seconds = self.forward_seconds + other.forward_seconds
        return replace(self, documents=merged, forward_seconds=seconds, answers=answers)

    def only(self, documents: Mapping[str, Collection[int]]) -> "Scores":
        """Those of some documents."""
        chosen = {
            task: {d: scored[d] for d in documents.get(task, ()) if d in scored}
            for task, scored in self.documents.items()
        }
        return Scores(chosen)

    def to_json(self) -> str:
        written: dict[str, object] = {"documents": self.documents, "forward_seconds": self.forward_seconds}
        if self.answers:
            written["answers"] = {
                task: {document: answer.to_list() for document, answer in own.items()}
                for task, own in self.answers.items()
            }
        return json.dumps(written, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> "Scores":
        read = json.loads(text)
        documents = {
            task: {int(document): values for document, values in scored.items()}  # JSON's keys are strings
            for task, scored in read["documents"].items()
        }
        answers = {
            task: {int(document): Answer(*answer) for document, answer in own.items()}
            for task, own in read.get("answers", {}).items()
        }
        return cls(documents, read["forward_seconds"], answers)


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan
