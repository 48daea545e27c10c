"""What the search maximises: one number, or several, made of the tasks' scores, in which larger is better.

Notation: s_t mean score of a model on task t, turned so that larger is better; w_t weight of the task; p_t the
best parent's s_t; u_t the unit of the task's gains (see `Judge`); g_t = (s_t - p_t) / u_t the gain.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from heterosis.evaluate.scores import PROBABILITY, Scores
from heterosis.evolve.judging.comparison import Comparison, Forecast, Strata
from heterosis.evolve.judging.statistics import ALPHA, Interval
from heterosis.evolve.optimizers import Limits

# How often a violation of a constraint counts.
PENALTY = 10.0
NEAR_ZERO = 0.1  # of the distance of the parents


@dataclass(frozen=True)
class Objective:
    """What is asked for; what it says of a model depends on the parents, see :meth:`judge`.

    Attributes:
        weights: w_t, not negative.
        metrics: Metric key of each task.
        groups: Group of each document of each task; documents of one group are not independent.
        kind: ``weighted``: ``sum_t w_t s_t`` as mergekit-evolve's. ``gain``: the mean of g_t, weighted by
            w_t. ``worst``: the smallest g_t. ``pareto``: all g_t at once. Both of tasks with a weight.
        constraints: The largest loss ``-g_t`` that is accepted of a task; each violation is subtracted ten times.
        lower: Tasks whose metric is better when lower, which turns their scores.
        probable: Tasks whose documents have a probability of the right answer beside the metric.
    """

    weights: Mapping[str, float]
    metrics: Mapping[str, str]
    groups: Mapping[str, Mapping[int, str]]
    kind: str = "weighted"
    constraints: Mapping[str, float] = field(default_factory=dict)
    lower: frozenset[str] = frozenset()
    probable: frozenset[str] = frozenset()

    @property
    def by_probability(self) -> "Objective | None":
        """The same of the probabilities of right answers, in place of the metrics.

        None where a task that counts has none, or where it is no weighted sum: gains and constraints are
        promised of the metrics.
        """
        if self.needs_parents or not self.probable.issuperset(self.weighted):
            return None
        return replace(self, metrics={**self.metrics, **dict.fromkeys(self.probable, PROBABILITY)})

    @property
    def names(self) -> tuple[str, ...]:
        """Of the numbers that an optimizer gets: the tasks' for a Pareto front, else one."""
        return tuple(self.weighted) if self.kind == "pareto" else ("objective",)

    @property
    def weighted(self) -> list[str]:
        """The tasks that are maximised: those with a weight."""
        return [task for task, w in self.weights.items() if w]

    @property
    def needs_parents(self) -> bool:
        """Whether scores mean nothing before the parents' are known."""
        return self.kind != "weighted" or bool(self.constraints)

    @property
    def decisive(self) -> list[str]:
        """The tasks by which models are told from each other: those with a weight or a constraint."""
        return [*self.weighted, *self.constraints]

    def judge(self, parents: Sequence[Scores], strata: Strata | None = None) -> "Judge":
        """What tells models from each other on the documents that these parents were scored on."""
        return Judge(self, tuple(parents), strata or {})

    def values(self, scores: Scores) -> dict[str, dict[int, float]]:
        """The score of each document, turned so that larger is better."""
        return {
            task: {d: self.sign(task) * value for d, value in scores.values(task, key).items()}
            for task, key in self.metrics.items()
        }

    def sign(self, task: str) -> float:
        """-1 if a task's score is better when lower."""
        return -1.0 if task in self.lower else 1.0


@dataclass(frozen=True)
class Verdict:
    """What a model's scores amount to.

    Attributes:
        score: The number that models are ranked by; of a Pareto front, the mean gain.
        losses: What an optimizer minimises.
        terms: What a single loss is the sum of: each task's part, and the penalty where there are constraints.
            Empty where it is no such sum, or where there are several losses.
    """

    score: float
    losses: tuple[float, ...]
    terms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Judge:
    """Scores of models, and differences between them, on one part of the documents.

    A task's gains are in units of its score, if all the parents' scores of documents are in [0, 1]; else, as for
    log-likelihoods, they are shares of the best parent's; or of a tenth of their distance where that is more, as
    scores may be near 0.

    Attributes:
        objective: What is asked for.
        parents: Scores of all parents on the same documents.
        strata: Parts of the tasks' documents, of which a model that has met some may have met different shares.
    """

    objective: Objective
    parents: tuple[Scores, ...]
    strata: Strata = field(default_factory=dict)

    # ------------------------------------------------------------------ one model

    def verdict(self, scores: Scores) -> Verdict:
        """What a model's scores amount to."""
        return self._verdict(self._means(scores))

    def score(self, scores: Scores) -> float:
        """The number that models are ranked by; of a Pareto front, the mean gain."""
        return self.verdict(scores).score

    def gains(self, scores: Scores) -> dict[str, float]:
        """g_t of every task."""
        return self._gains(self._means(scores))

    def losses(self, scores: Scores) -> tuple[float, ...]:
        """What an optimizer minimises."""
        return self.verdict(scores).losses

    def estimate(self, scores: Scores, reference: Scores) -> Verdict:
        """What a model's scores would amount to on all documents of a reference that it met some of.

        The reference's score and the mean difference on the documents that both met: what makes these documents
        hard or easy for both cancels.
        """
        return self._verdict(self._comparison(scores, reference).shifted(self._means(reference)))

    def _verdict(self, means: Mapping[str, float]) -> Verdict:
        objective, penalty = self.objective, PENALTY * sum(self._violations(means).values())
        if objective.kind == "worst":
            gains = self._weighted_gains(means)
            score = (math.nan if any(map(math.isnan, gains)) else min(gains)) - penalty
            return Verdict(score, (-score,))
        if objective.kind == "weighted":
            terms = [-w * means[task] for task, w in objective.weights.items()]
        else:
            terms = [-self._shares[task] * gain for task, gain in self._gains(means).items()]
        if objective.constraints:
            terms.append(penalty)
        loss = sum(terms)
        score = 0.0 - loss  # not the -0.0 of a loss of 0
        if objective.kind == "pareto":
            return Verdict(score, tuple(penalty - gain for gain in self._weighted_gains(means)))
        return Verdict(score, (loss,), tuple(terms))

    def limits(self, known: Sequence[Scores]) -> tuple[Limits | None, ...]:
        """Between what each term lies, where a task's scores of documents are in [0, 1], as those of models show.

        None for other terms; empty where a loss is no sum of terms.
        """
        sign, metrics, tasks = self.objective.sign, self.objective.metrics, list(self.objective.weights)
        ends = [self._verdict({task: sign(task) * share for task in tasks}).terms for share in (0.0, 1.0)]
        found: list[Limits | None] = []
        for task, (low, high) in zip([*tasks, None], map(sorted, zip(*ends, strict=True)), strict=False):
            values = [scores.values(task, metrics[task]) for scores in known] if task else []
            most = max(map(len, values), default=0)  # of a model that was stopped early they are fewer
            bounded = most and low < high and all(0 <= x <= 1 for own in values for x in own.values())
            found.append(Limits(low, high, most) if bounded else None)
        return tuple(found)

    def _means(self, scores: Scores) -> dict[str, float]:
        objective = self.objective
        return {task: objective.sign(task) * scores.mean(task, key) for task, key in objective.metrics.items()}

    def _gains(self, means: Mapping[str, float]) -> dict[str, float]:
        return {task: (means[task] - best) / self._units[task] for task, best in self._best.items()}

    def _weighted_gains(self, means: Mapping[str, float]) -> list[float]:
        gains = self._gains(means)
        return [gains[task] for task in self.objective.weighted]

    def _violations(self, means: Mapping[str, float]) -> dict[str, float]:
        limits = self.objective.constraints
        if not limits:
            return {}
        gains = self._gains(means)
        return {task: max(0.0, -gains[task] - limit) for task, limit in limits.items()}

    def violated(self, scores: Scores) -> list[str]:
        """The tasks whose constraint a model does not keep."""
        return [task for task, by in self._violations(self._means(scores)).items() if by > 0]

    # ------------------------------------------------------------------ what the parents tell

    @cached_property
    def _best(self) -> dict[str, float]:
        """p_t."""
        means = [self._means(scores) for scores in self.parents]
        return {task: max(own[task] for own in means) for task in self.objective.metrics}

    @cached_property
    def _units(self) -> dict[str, float]:
        """u_t."""
        units, means = {}, [self._means(scores) for scores in self.parents]
        for task, best in self._best.items():
            documents = [v for s in self.parents for v in self.objective.values(s)[task].values()]
            apart = best - min(own[task] for own in means)
            bounded = all(0 <= abs(v) <= 1 for v in documents)
            units[task] = 1.0 if bounded else max(abs(best), NEAR_ZERO * apart) or 1.0
        return units

    @cached_property
    def _shares(self) -> dict[str, float]:
        total = sum(self.objective.weights.values())
        return {task: w / total for task, w in self.objective.weights.items()}

    # ------------------------------------------------------------------ two models

    def difference(self, a: Scores, b: Scores, alpha: float = ALPHA) -> Interval:
        """``score(a) - score(b)`` without constraints, on the same documents, with its paired interval."""
        comparison = self._comparison(a, b)
        if self.objective.kind == "worst":
            best = {task: self._best[task] for task in self.objective.weighted}
            return comparison.of_smallest(best, self._units, alpha)
        return comparison.difference(self._linear, alpha)

    @property
    def _linear(self) -> dict[str, float]:
        """The weight of each task's mean, turned, in the score."""
        if self.objective.kind == "weighted":
            return dict(self.objective.weights)
        return {task: share / self._units[task] for task, share in self._shares.items()}

    def beaten(self, scores: Scores, incumbent: Scores, alpha: float) -> bool:
        """Whether a model is worse than the incumbent beyond doubt, by the documents that it met so far.

        An incumbent that breaks a constraint beats nobody, but in a front: who breaks it less may be better. Nor
        does it while a decisive task has no document that both have a score of.

        Args:
            scores: Of some of the incumbent's documents.
            incumbent: Of all documents.
            alpha: The probability of saying so of a model that is as good, at most.
        """
        objective, comparison = self.objective, self._comparison(scores, incumbent)
        if not comparison.covers(objective.decisive):
            return False
        if objective.kind == "pareto":  # dominated: worse in everything
            return all(self._upper(t, comparison, alpha) < 0 for t in objective.weighted)
        if self.violated(incumbent):
            return False
        tests = len(objective.constraints) + 1
        for task, limit in objective.constraints.items():
            best = max(self.parents, key=lambda parent: self._means(parent)[task])
            if self._upper(task, self._comparison(scores, best), alpha / tests) < -limit:
                return True
        if objective.kind == "worst":
            gains, tasks = self.gains(incumbent), objective.weighted
            worst = min(gains[t] for t in tasks)
            share = alpha / tests / len(tasks)
            return any(gains[t] + self._upper(t, comparison, share) < worst for t in tasks)
        return comparison.pooled(self._linear, 2 * alpha / tests).high < 0

    def behind(self, scores: Scores, incumbent: Scores, alpha: float) -> bool:
        """Whether a model would hardly be ahead of the incumbent after all of its documents.

        Asks less than `beaten`: only of these documents. Where the objective is no sum of the tasks' means it is
        `beaten`.

        Args:
            scores: Of some of the incumbent's documents.
            incumbent: Of all documents.
            alpha: The probability that the model would be ahead, at most.
        """
        if self.objective.kind in ("worst", "pareto") or self.objective.constraints:
            return self.beaten(scores, incumbent, alpha)
        comparison = self._comparison(scores, incumbent)
        return comparison.covers(self.objective.decisive) and comparison.forecast(self._linear).is_behind(alpha)

    def forecast(self, scores: Scores, incumbent: Scores) -> Forecast:
        """What the difference of the weighted sum would be after all of the incumbent's documents."""
        return self._comparison(scores, incumbent).forecast(self._linear)

    def alike(self, scores: Scores, other: Scores) -> bool:
        """Whether two models have equal scores of all documents that both have met, some of each decisive task."""
        comparison = self._comparison(scores, other)
        return comparison.covers(self.objective.decisive) and comparison.alike

    def _upper(self, task: str, comparison: Comparison, alpha: float) -> float:
        """The upper limit of the difference in a task's gain, at a one-sided level; infinity without documents."""
        if not comparison.covers([task]):
            return math.inf
        return comparison.pooled({task: 1 / self._units[task]}, 2 * alpha).high

    def _comparison(self, scores: Scores, other: Scores) -> Comparison:
        values, groups = self.objective.values, self.objective.groups
        return Comparison.of(values(scores), values(other), groups, self.strata)
