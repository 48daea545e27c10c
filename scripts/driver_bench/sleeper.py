"""A worker that sleeps instead of merging and scoring; it takes no memory to speak of, so there can be many."""

import math
import random
import time
from hashlib import blake2b

from heterosis.evaluate.scores import Scores
from heterosis.evolve.workers.pool import DocumentIds, Evaluation, Setup

MEAN = 4.0  # seconds of a candidate
SPREAD = (
    1.0  # standard deviation of the logarithm of a candidate's time: one in a hundred takes ten times the median
)
METRIC = "acc,none"


def seconds_of(recipe: str, mean: float) -> float:
    """A candidate's time: log-normal, always the same for the same recipe."""
    normal = random.Random(blake2b(recipe.encode(), digest_size=8).digest()).gauss(0.0, 1.0)
    return mean * math.exp(SPREAD * normal - SPREAD**2 / 2)


class Sleeper:
    """Stands in for heterosis' worker."""

    def __init__(self, setup: Setup) -> None: ...

    def ping(self) -> None:
        """Answer."""

    def check(self) -> None:
        """There are no models to look at."""

    def score(self, recipe: str, documents: DocumentIds) -> Evaluation:
        begun = time.perf_counter()
        time.sleep(seconds_of(recipe, MEAN))
        rng = random.Random(recipe)
        quality = rng.random()
        scored = {
            task: {document: {METRIC: float(rng.random() < quality)} for document in ids}
            for task, ids in documents.items()
        }
        seconds = time.perf_counter() - begun
        return Evaluation(Scores(scored, seconds), {"merge": 0.0, "forward": seconds, "other": 0.0}, "")
