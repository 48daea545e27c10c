"""A rehearsal: one real candidate, merged and scored on a few documents in this process, as a worker would."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from heterosis.errors import InputError
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
class Rehearsal:
    """What a candidate took.

    Attributes:
        documents: That it was scored on.
        start: Seconds before: the model, the requests, the compiler, the first candidate.
        merge: Seconds.
        per_document: Seconds.
    """

    documents: int
    start: float
    merge: float
    per_document: float

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
        setup = Setup(checked.config, Split(batch, nothing, nothing), threads)
        score = Worker(setup, checked.tasks).score
    times = []
    nudge = 0.1 * np.random.default_rng(checked.config.seed).standard_normal(len(space.parameters))
    for point, documents in ((space.initial, one), (np.clip(space.initial + nudge, 0.0, 1.0), batch)):
        outcome = score(space.decode(space.values(point)).to_yaml(), documents)
        if isinstance(outcome, Failure):
            raise InputError(
                f"a first candidate was tried and cannot be scored: {outcome.cause}; all others would fail alike"
            )
        times.append(outcome.seconds)
    first, usual = times
    count = sum(map(len, batch.values()))
    return Rehearsal(
        documents=count,
        start=sum(first.values()),
        merge=usual["merge"],
        per_document=(usual["forward"] + usual["other"]) / count,
    )
