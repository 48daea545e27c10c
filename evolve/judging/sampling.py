"""Where right answers have probabilities: candidates meet a sample of the search documents, the best of them all.

Whether an answer is right is one bit; how probable the right answer is tells which of two models that are both
wrong is nearer. A quarter of the documents ranks candidates by that about as well as all of them do by right and
wrong, so that a search tries more of them. But it is another score than the one that is asked for: those that lead
by it go on with the other documents, and by the metric.
"""

import math

from heterosis.evaluate.splits import Split
from heterosis.evolve.config import Racing
from heterosis.evolve.judging.objective import Objective
from heterosis.evolve.workers.pool import DocumentIds

SHARE = 1 / 4  # of each task's documents, but
LEAST, LEAST_OF_TASK = 24, 12  # of all together and of each, where there are as many
# A mean of probabilities is known to near its ends as a share of right answers is of so many times the documents.
FINER = 30
# Those that meet all documents at the end of a stage; twice as many where they leave room, as most stop early.
PROMOTED = 2


def sample_of(objective: Objective, split: Split, racing: Racing) -> DocumentIds | None:
    """The search documents that all candidates meet, before the best meet all; None where they race instead.

    They race where a task has no such probabilities, the objective is no weighted sum, or documents are so few
    that the sample would be more than half of them.
    """
    if not racing.enabled or racing.by != "probability" or objective.by_probability is None:
        return None
    least = max(LEAST_OF_TASK, math.ceil(LEAST / len(split.search)))
    sizes = {task: max(least, math.ceil(SHARE * len(own))) for task, own in split.search.items()}
    sample = {task: own[: sizes[task]] for task, own in split.search.items()}
    return sample if 2 * sum(map(len, sample.values())) <= split.size("search") else None
