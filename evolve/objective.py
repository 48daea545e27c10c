"""What the search maximises: the weighted sum of the tasks' metrics, each turned so that larger is better."""

from collections.abc import Mapping
from dataclasses import dataclass

from heterosis.evaluate.scores import Scores
from heterosis.evolve.statistics import Interval, objective_difference


@dataclass(frozen=True)
class Objective:
    """The weighted sum of tasks' mean metrics (as mergekit-evolve's, but directions come from lm-eval).

    Attributes:
        weights: Weight of each task, negative where its metric is better when lower.
        metrics: Metric key of each task.
        groups: Group of each document of each task; documents of one group are not independent.
    """

    weights: Mapping[str, float]
    metrics: Mapping[str, str]
    groups: Mapping[str, Mapping[int, str]]

    def score(self, scores: Scores) -> float:
        """The objective's value; larger is better."""
        return sum(w * scores.mean(task, self.metrics[task]) for task, w in self.weights.items())

    def difference(self, a: Scores, b: Scores) -> Interval:
        """``score(a) - score(b)`` on the same documents, with its paired 95 % interval."""
        return objective_difference(self._values(a), self._values(b), self.weights, self.groups)

    def _values(self, scores: Scores) -> dict[str, dict[int, float]]:
        return {task: scores.values(task, key) for task, key in self.metrics.items()}
