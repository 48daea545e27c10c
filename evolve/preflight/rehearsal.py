"""A rehearsal: one real candidate, merged and scored on a few documents in this process, as a worker would."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from heterosis.errors import InputError
from heterosis.evaluate.answers import Answer
from heterosis.evaluate.scores import Scores
from heterosis.evaluate.splits import Split
from heterosis.evolve.config import RESIDENT
from heterosis.evolve.preflight.preflight import Preflight
from heterosis.evolve.workers.pool import DocumentIds, Evaluation, Failure, Setup
from heterosis.evolve.workers.worker import AUTO_BATCH_SIZE, Worker

NUDGE = 0.1  # of candidates beside the first one, as a share of the ranges
MANY = 1000  # documents that are asked where that takes moments, and whose prompts are measured
MOMENTS = 12.0  # seconds


@dataclass(frozen=True)
class Tried:
    """What a candidate scored on a task, and one of its answers.

    Attributes:
        task: Its name.
        score: The mean of the metric.
        asked: What a document asks; empty if the task cannot say.
        right: Its right answer, likewise.
        answered: What the candidate wrote or chose; None where it only rates texts.
    """

    task: str
    score: float
    asked: str
    right: str
    answered: Answer | None


@dataclass(frozen=True)
class Rehearsal:
    """What a candidate took.

    Attributes:
        documents: That it was scored on.
        start: Seconds before: the model, the requests, the compiler, the first candidate.
        merge: Seconds.
        per_document: Seconds.
        tried: What it scored on each task, where there is anything to show.
        asked: Search documents whose prompts were made.
        max_length: Tokens of the longest prompt that it takes; None if that was not found out.
        shortened: How many of these documents of each task have longer ones, where there are any.
    """

    documents: int
    start: float
    merge: float
    per_document: float
    tried: tuple[Tried, ...] = ()
    asked: int = 0
    max_length: int | None = None
    shortened: Mapping[str, int] = field(default_factory=dict)

    def candidate(self, documents: int) -> float:
        """Seconds for a candidate on so many documents."""
        return self.merge + documents * self.per_document


def rehearse(
    checked: Preflight, threads: int, score: Callable[[str, DocumentIds], Evaluation | Failure] | None = None
) -> Rehearsal:
    """Merge the first candidate and score it on a document of each task, then another one on a whole batch.

    The second one's time is that of those to come. A batch is what it takes: half of one lasts nearly as long.
    Where that takes moments and there are more documents, a third one meets them: what is done for the first
    time, and what does not depend on the documents, would be most of the second one's time.

    Args:
        checked: The search.
        threads: Of a worker.
        score: What scores a recipe on documents; None for a worker in this process.

    Raises:
        InputError: If a candidate cannot be scored.
    """
    space = checked.spaces[-1]
    every = checked.split.search
    asked = checked.config.batch_size
    each = math.ceil((AUTO_BATCH_SIZE if isinstance(asked, str) else asked) / len(every))
    many = {task: ids[: max(each, MANY // len(every))] for task, ids in every.items()}
    batch = {task: ids[:each] for task, ids in every.items()}
    one = {task: ids[:1] for task, ids in every.items()}
    worker = None
    if score is None:
        rest = {task: ids[each:] for task, ids in many.items()}
        split = Split(rest, {task: [] for task in batch}, batch)  # whose last part's answers are kept
        worker = Worker(Setup(checked.config, split, threads), checked.tasks)
        score = worker.score
    random = np.random.default_rng(checked.config.seed)

    def tried(nudge: float, documents: DocumentIds) -> Evaluation:
        point = space.initial + nudge * random.standard_normal(len(space.dimensions))
        outcome = score(space.decode(space.values(np.clip(point, 0.0, 1.0))).to_yaml(), documents)
        if isinstance(outcome, Failure):
            raise InputError(
                f"a first candidate was tried and cannot be scored: {outcome.cause}; all others would fail alike"
            )
        return outcome

    start = sum(tried(0.0, one).seconds.values())
    usual, documents = tried(NUDGE, batch), batch
    if many != batch and sum(usual.seconds.values()) * _count(many) / _count(batch) < MOMENTS:
        usual, documents = tried(NUDGE, many), many
    resident = checked.config.backend.name == RESIDENT
    limit, shortened = worker.shortened() if worker is not None and resident else (None, {})
    return Rehearsal(
        documents=_count(documents),
        start=start,
        merge=usual.seconds["merge"],
        per_document=(usual.seconds["forward"] + usual.seconds["other"]) / _count(documents),
        tried=tuple(_tried(checked, task, usual.scores) for task in usual.scores.documents),
        asked=_count(many),
        max_length=limit,
        shortened={task: count for task, count in shortened.items() if count},
    )


def _count(documents: DocumentIds) -> int:
    return sum(map(len, documents.values()))


def _tried(checked: Preflight, task: str, scores: Scores) -> Tried:
    score = scores.mean(task, checked.objective.metrics[task])
    answers = scores.answers.get(task, {})
    document = min(answers, default=min(scores.documents[task]))
    try:
        text = checked.tasks.text(task, document)
    except Exception:  # a task's templates and functions may do anything
        return Tried(task, score, "", "", answers.get(document))
    return Tried(task, score, text.question, text.answer, answers.get(document))
