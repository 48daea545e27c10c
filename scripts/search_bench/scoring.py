"""From recipes to scores in one process: the project's own merge core, and all documents in one forward pass."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from heterosis.errors import InputError
from heterosis.evaluate import CandidateLoader, Scores
from heterosis.evaluate.scores import PROBABILITY, PerDocument
from heterosis.evolve.workers.pool import Evaluation, Failure, Outcome
from heterosis.merge import MergeError, Recipe, Reductions

from .skills import PROMPT, encode
from .zoos import Home

PerTask = dict[str, dict[int, float]]


class Unscorable(RuntimeError):
    """A candidate without scores, and why."""


class Scorer:
    """Scores recipes on a zoo's documents.

    What was scored once is kept: searches with the same seed and different budgets ask the same questions. They
    still count as scored, by whoever asks.
    """

    metric = "acc,none"  # all tokens of the answer are the most probable ones: lm-eval's acc of a likelihood

    def __init__(self, place: Home) -> None:
        self.place = place
        self._loader = CandidateLoader("cpu", threads=1, reductions=Reductions())
        self._documents = {
            task: torch.tensor([encode(d) for d in place.documents(task)]) for task in place.task_names
        }
        self._true_documents = {
            task: torch.tensor([encode(d) for d in place.true_documents(task)]) for task in place.task_names
        }
        self._kept: dict[str, PerDocument] = {}
        self._true: dict[str, dict[str, float]] = {}
        self._loaded: str | None = None
        self._live: torch.nn.Module | None = None
        self._checksum = ""

    def _load(self, recipe: str) -> torch.nn.Module:
        if self._loaded != recipe or self._live is None:
            self._loaded = None
            try:
                resident = self._loader.load(Recipe.parse(recipe, "candidate"))
            except (MergeError, InputError) as error:
                raise Unscorable(str(error).splitlines()[0]) from error
            self._loaded, self._live, self._checksum = recipe, resident.model, resident.checksum()
        return self._live

    def score(self, recipe: str, documents: Mapping[str, Sequence[int]]) -> PerTask:
        """1 or 0 for each document, as of `measured`."""
        return only(self.metric, self.measured(recipe, documents))

    def measured(self, recipe: str, documents: Mapping[str, Sequence[int]]) -> PerDocument:
        """Of each document, 1 or 0 and how probable the right answer is.

        Raises:
            Unscorable: If the recipe cannot be merged, or its model gives no numbers.
        """
        kept = self._kept.setdefault(recipe, {task: {} for task in self._documents})
        missing = {task: [d for d in ids if d not in kept[task]] for task, ids in documents.items()}
        if any(missing.values()):
            ids = torch.cat([self._documents[task][chosen] for task, chosen in missing.items()])
            found = zip(*_answered(self._load(recipe), ids), strict=True)
            for task, chosen in missing.items():
                for document in chosen:
                    right, probability = map(float, next(found))
                    kept[task][document] = {self.metric: right, PROBABILITY: probability}
        return {task: {document: kept[task][document] for document in ids} for task, ids in documents.items()}

    def true_scores(self, recipe: str) -> dict[str, float]:
        """The accuracy on each task's true documents."""
        if recipe not in self._true:
            model = self._load(recipe)
            self._true[recipe] = {
                task: float(_answered(model, ids)[0].mean()) for task, ids in self._true_documents.items()
            }
        return self._true[recipe]

    def true_score(self, recipe: str) -> float:
        """The mean over the tasks."""
        scores = self.true_scores(recipe)
        return sum(scores.values()) / len(scores)

    @property
    def checksum(self) -> str:
        """Of the live model."""
        return self._checksum

    def forget(self) -> None:
        """Drop the scores that were kept."""
        self._kept.clear()
        self._true.clear()


@torch.inference_mode()
def _answered(model: torch.nn.Module, ids: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Whether each document's answer is what the model would say, and how probable it is, ``[n]`` each.

    The latter as heterosis has it: to the power of one by the root of the number of tokens.
    """
    right, probability = [], []
    for part in ids.split(512):
        hidden = model.model(input_ids=part[:, :-1], use_cache=False).last_hidden_state[:, PROMPT - 1 :]
        logits = model.lm_head(hidden)
        if not torch.isfinite(logits).all():
            raise Unscorable("the model's outputs are not finite")
        answer = part[:, PROMPT:]
        right.append((logits.argmax(-1) == answer).all(1))
        likelihoods = logits.log_softmax(-1).gather(-1, answer[..., None]).sum((1, 2))
        probability.append((likelihoods / math.sqrt(answer.shape[1])).exp())
    return torch.cat(right).double().numpy(), torch.cat(probability).double().numpy()


def only(metric: str, measured: PerDocument) -> PerTask:
    """One metric of each document."""
    return {task: {document: own[metric] for document, own in of.items()} for task, of in measured.items()}


class Scoring(Protocol):
    """What scores recipes: the metrics of each document, and a checksum of the model that has them."""

    @property
    def checksum(self) -> str: ...

    def measured(self, recipe: str, documents: Mapping[str, Sequence[int]]) -> PerDocument: ...


class InProcessPool:
    """Scores in this process, one piece of work after the other; heterosis' searches run on it as on Ray's.

    Args:
        scorer: Scores recipes.
        workers: How many the search takes it for.

    Attributes:
        scored: Documents scored so far, kept ones included.
    """

    def __init__(self, scorer: Scoring, workers: int = 1) -> None:
        self.size = workers
        self._scorer = scorer
        self._running: list[tuple[object, str, Mapping[str, list[int]]]] = []
        self.scored = 0

    @property
    def free(self) -> int:
        return self.size - len(self._running)

    def submit(self, key: object, recipe: str, documents: Mapping[str, list[int]]) -> None:
        self._running.append((key, recipe, documents))

    def wait(self, timeout: float) -> list[tuple[object, Outcome]]:
        first, self._running = self._running[:1], self._running[1:]
        return [(key, self._outcome(recipe, documents)) for key, recipe, documents in first]

    def _outcome(self, recipe: str, documents: Mapping[str, list[int]]) -> Outcome:
        begun = time.perf_counter()
        try:
            measured = self._scorer.measured(recipe, documents)
        except Unscorable as error:
            return Failure(str(error))
        self.scored += sum(map(len, documents.values()))
        seconds = time.perf_counter() - begun
        return Evaluation(
            Scores(measured, seconds), {"merge": 0.0, "forward": seconds, "other": 0.0}, self._scorer.checksum
        )

    def close(self) -> None:
        self._running.clear()
