"""A rehearsal: one real candidate, merged and scored on a few documents in this process, as a worker would."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from heterosis.errors import InputError
from heterosis.evaluate.answers import Answer
from heterosis.evaluate.scores import Scores
from heterosis.evaluate.splits import Split
from heterosis.evolve.preflight import Preflight
from heterosis.evolve.worker import (
    AUTO_BATCH_SIZE,
    DocumentIds,
    Evaluation,
    Failure,
    Setup,
    Worker,
)


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
    """

    documents: int
    start: float
    merge: float
    per_document: float
    tried: tuple[Tried, ...] = ()

    def candidate(self, documents: int) -> float:
        """Seconds for a candidate on so many documents."""
        return self.merge + documents * self.per_document


def rehearse(
    checked: Preflight, threads: int, score: Callable[[str, DocumentIds], Evaluation | Failure] | None = None
) -> Rehearsal:
    """Merge the first candidate and score it on a document of each task, then another one on a whole batch.

    The second one's time is that of those to come. A batch is what it takes: half of one lasts nearly as long.

    Args:
        checked: The search.
        threads: Of a worker.
        score: What scores a recipe on documents; None for a worker in this process.

    Raises:
        InputError: If a candidate cannot be scored.
    """
    space = checked.spaces[-1]
    asked = checked.config.batch_size
    each = math.ceil((AUTO_BATCH_SIZE if isinstance(asked, str) else asked) / len(checked.split.search))
    batch = {task: ids[:each] for task, ids in checked.split.search.items()}
    one = {task: ids[:1] for task, ids in batch.items()}
    nothing: dict[str, list[int]] = {task: [] for task in batch}
    if score is None:
        setup = Setup(checked.config, Split(nothing, nothing, batch), threads)  # whose answers are kept
        score = Worker(setup, checked.tasks).score
    times = []
    nudge = 0.1 * np.random.default_rng(checked.config.seed).standard_normal(len(space.dimensions))
    for point, documents in ((space.initial, one), (np.clip(space.initial + nudge, 0.0, 1.0), batch)):
        outcome = score(space.decode(space.values(point)).to_yaml(), documents)
        if isinstance(outcome, Failure):
            raise InputError(
                f"a first candidate was tried and cannot be scored: {outcome.cause}; all others would fail alike"
            )
        times.append(outcome.seconds)
        scores = outcome.scores
    first, usual = times
    count = sum(map(len, batch.values()))
    return Rehearsal(
        documents=count,
        start=sum(first.values()),
        merge=usual["merge"],
        per_document=(usual["forward"] + usual["other"]) / count,
        tried=tuple(_tried(checked, task, scores) for task in scores.documents),
    )


def _tried(checked: Preflight, task: str, scores: Scores) -> Tried:
    score = scores.mean(task, checked.objective.metrics[task])
    answers = scores.answers.get(task, {})
    document = min(answers, default=min(scores.documents[task]))
    try:
        text = checked.tasks.text(task, document)
    except Exception:  # a task's templates and functions may do anything
        return Tried(task, score, "", "", answers.get(document))
    return Tried(task, score, text.question, text.answer, answers.get(document))
