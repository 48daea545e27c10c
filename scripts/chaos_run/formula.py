"""A worker that scores by formula, and says what it is at. It takes the place of the search's, on real Ray.

Nothing here loads torch: workers are started by the hundred.
"""

import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy.special import ndtr

from heterosis.evaluate.scores import PROBABILITY, PerDocument, Scores
from heterosis.evolve.workers.pool import DocumentIds, Evaluation, Setup
from heterosis.evolve.workers.worker import Worker
from heterosis.merge import Reductions
from heterosis.merge.statistics.reductions import node_folder

METRIC = "acc,none"
LUCK = 0.5  # standard deviation of a recipe's on a document, beside 1 for the ease of documents
SLEEP, SPREAD = 0.12, 0.8  # the median of seconds that a piece of work takes, and the deviation of their logarithm

AT_WORK = "HETEROSIS_CHAOS_AT_WORK"  # the folder where workers say what they are at


class Formula:
    """Scores recipes: best where every weight is 0.7. A document is right or wrong, so that candidates are often
    equal, and ties have to be decided."""

    metric = METRIC
    checksum = "formula"

    def measured(self, recipe: str, documents: Mapping[str, Sequence[int]]) -> PerDocument:
        """The metrics of each document, the same at any time and in any process."""
        found = list(_weights(yaml.safe_load(recipe)))
        quality = 1 - sum((weight - 0.7) ** 2 for weight in found) / max(1, len(found))
        name = digest(recipe)

        def answered(task: str, document: int) -> dict[str, float]:
            ease, luck = (random.Random(repr(of)).gauss(0, 1) for of in ((task, document), (task, document, name)))
            sure = quality + ease
            return {METRIC: float(sure + LUCK * luck > 0), PROBABILITY: float(ndtr(sure / LUCK))}

        return {task: {document: answered(task, document) for document in ids} for task, ids in documents.items()}


class FormulaWorker(Worker):
    """What a Ray actor is made of: as slow as chance has it, the same for the same recipe and documents."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._at_work = Path(os.environ[AT_WORK]) / str(os.getpid())
        # The real one shares this folder with the others of its machine.
        self._shared = Reductions(node_folder(setup.run))
        self._shared.keep("chaos", lambda: np.zeros(8))

    def score(self, recipe: str, documents: DocumentIds) -> Evaluation:
        self._at_work.write_text(digest(recipe))
        own = random.Random(repr((recipe, sorted((task, tuple(ids)) for task, ids in documents.items()))))
        seconds = SLEEP * own.lognormvariate(0, SPREAD)
        time.sleep(seconds)
        scores = Scores(Formula().measured(recipe, documents), seconds)
        self._at_work.write_text("")
        return Evaluation(scores, {"merge": 0.0, "forward": seconds, "other": 0.0}, Formula.checksum)


def digest(recipe: str) -> str:
    """A short name for a recipe."""
    return blake2b(recipe.encode(), digest_size=8).hexdigest()


def _weights(node: Any) -> Iterator[float]:
    """All numbers in a recipe that are called weights."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "weight" and isinstance(value, int | float):
                yield float(value)
            else:
                yield from _weights(value)
    elif isinstance(node, list):
        for value in node:
            yield from _weights(value)
