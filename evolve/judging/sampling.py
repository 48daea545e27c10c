"""Where right answers have probabilities: candidates meet a sample of the search documents, the best of them all.

Whether an answer is right is one bit; how probable the right answer is tells which of two models that are both
wrong is nearer. A quarter of the documents ranks candidates by that about as well as all of them do by right and
wrong, so that a search tries more of them. But it is another score than the one that is asked for: those that lead
by it go on with the other documents, and by the metric. The more candidates there are, the likelier the best of
them suits the sample rather than the tasks; so large budgets pay for larger samples before they pay for more.
"""

import math

from heterosis.evaluate.splits import Split
from heterosis.evolve.config import Racing
from heterosis.evolve.judging.objective import Objective
from heterosis.evolve.workers.pool import DocumentIds

SHARE, MOST = 1 / 4, 1 / 2  # of each task's documents, but
LEAST, LEAST_OF_TASK = 24, 12  # of all together and of each, where there are as many
CANDIDATES = 160  # more than these have a larger share, in proportion
# Those that meet all documents at the end of a stage; twice as many where they leave room, as most stop early.
PROMOTED = 2


def sample_of(
    objective: Objective, split: Split, racing: Racing, trials: int, documents: int | None = None
) -> DocumentIds:
    """The search documents that all candidates meet, before the best meet all; none where they race instead.

    They race where a task has no such probabilities, the objective is no weighted sum, or documents are so few
    that the sample would be more than half of them.

    Args:
        objective: What is maximised.
        split: Of the documents.
        racing: How candidates race.
        trials: Candidates that there may be.
        documents: What they may take together; None for any number.
    """
    if not racing.enabled or racing.by != "probability" or objective.by_probability is None:
        return {}
    least = max(LEAST_OF_TASK, math.ceil(LEAST / len(split.search)))

    def sample(share: float) -> DocumentIds:
        return {task: own[: max(least, math.ceil(share * len(own)))] for task, own in split.search.items()}

    found = sample(SHARE)
    size = sum(map(len, found.values()))
    candidates = trials if documents is None else min(trials, documents / size)
    if candidates > CANDIDATES:
        found = sample(min(MOST, SHARE * candidates / CANDIDATES))
    return found if 2 * size <= split.size("search") else {}
