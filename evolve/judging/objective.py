"""What the search maximises: one number, or several, made of the tasks' scores, in which larger is better.

Notation: s_t mean score of a model on task t, turned so that larger is better; w_t weight of the task; p_t the
best parent's s_t; u_t the unit of the task's gains (see `Judge`); g_t = (s_t - p_t) / u_t the gain.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
from scipy.special import ndtri

from heterosis.evaluate.scores import Scores
from heterosis.evolve.judging.statistics import ALPHA, Interval, objective_difference, paired_difference, span_of
from heterosis.evolve.optimizers import Limits

# A part of each task's documents that they are drawn from separately.
Strata: TypeAlias = Mapping[str, Mapping[int, str]]
# Scores of two models on the same documents, and these documents' share of their task.
Pair: TypeAlias = tuple[dict[int, float], dict[int, float], float]

# How often a violation of a constraint counts.
PENALTY = 10.0
NEAR_ZERO = 0.1  # of the distance of the parents
RESAMPLES = 2000
MOST_DRAWS = 1 << 20  # of the bootstrap at a time, which take 24 bytes each


@dataclass(frozen=True)
class Objective:
    """What is asked for; what it says of a model depends on the parents, see :meth:`judge`.

    Attributes:
        weights: w_t, not negative.
        metrics: Metric key of each task.
        groups: Group of each document of each task; documents of one group are not independent.
        kind: ``weighted``: ``sum_t w_t s_t`` as mergekit-evolve's. ``gain``: the mean of g_t, weighted by
            w_t. ``worst``: the smallest g_t. ``pareto``: all g_t at once.
        constraints: The largest loss ``-g_t`` that is accepted of a task; each violation is subtracted ten times.
        lower: Tasks whose metric is better when lower, which turns their scores.
    """

    weights: Mapping[str, float]
    metrics: Mapping[str, str]
    groups: Mapping[str, Mapping[int, str]]
    kind: str = "weighted"
    constraints: Mapping[str, float] = field(default_factory=dict)
    lower: frozenset[str] = frozenset()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the numbers that an optimizer gets: the tasks' for a Pareto front, else one."""
        return tuple(self.metrics) if self.kind == "pareto" else ("objective",)

    @property
    def needs_parents(self) -> bool:
        """Whether scores mean nothing before the parents' are known."""
        return self.kind != "weighted" or bool(self.constraints)

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
class Forecast:
    """The difference between two models' scores of all documents, from those that both have met.

    Attributes:
        mean: What it is expected to be.
        missing: Its variance: what the documents still to be met may change.
        sampled: Its variance when all are met, as they are a sample of those that there might be.
    """

    mean: float
    missing: float
    sampled: float

    @property
    def share(self) -> float:
        """How many documents of a random sample would tell as much, as a share of all."""
        variance = self.sampled + self.missing
        return self.sampled / variance if variance else 1.0

    def is_behind(self, alpha: float) -> bool:
        """Whether the first model would be ahead in the end with a probability below ``alpha``."""
        return self.mean + float(ndtri(1 - alpha)) * math.sqrt(self.missing) < 0


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
        means = self._means(reference)
        for task, pairs in self._pairs(scores, reference).items():
            for mine, theirs, share in pairs.values():
                means[task] += share * (sum(mine.values()) - sum(theirs.values())) / len(mine)
        return self._verdict(means)

    def _verdict(self, means: Mapping[str, float]) -> Verdict:
        objective, penalty = self.objective, PENALTY * sum(self._violations(means).values())
        if objective.kind == "worst":
            gains = [*self._gains(means).values()]
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
            return Verdict(score, tuple(penalty - gain for gain in self._gains(means).values()))
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
        """``score(a) - score(b)`` without constraints, on the same documents, with its paired interval.

        That of the smallest gain is a paired bootstrap's (percentiles of 2,000 resamples of the documents' groups
        within tasks), as a minimum has no variance to be added up.
        """
        if self.objective.kind == "worst":
            return self._bootstrap(a, b, alpha)
        return self._weighted_difference(a, b, self._linear, alpha)

    @property
    def _linear(self) -> dict[str, float]:
        """The weight of each task's mean, turned, in the score."""
        if self.objective.kind == "weighted":
            return dict(self.objective.weights)
        return {task: share / self._units[task] for task, share in self._shares.items()}

    def beaten(self, scores: Scores, incumbent: Scores, alpha: float) -> bool:
        """Whether a model is worse than the incumbent beyond doubt, by the documents that it met so far.

        An incumbent that breaks a constraint beats nobody, but in a front: who breaks it less may be better.

        Args:
            scores: Of some of the incumbent's documents, some of every task.
            incumbent: Of all documents.
            alpha: The probability of saying so of a model that is as good, at most.
        """
        objective = self.objective
        if objective.kind == "pareto":  # dominated: worse in everything
            return all(self._upper(t, scores, incumbent, alpha) < 0 for t in objective.metrics)
        if self.violated(incumbent):
            return False
        tests = len(objective.constraints) + 1
        for task, limit in objective.constraints.items():
            best = max(self.parents, key=lambda parent: self._means(parent)[task])
            if self._upper(task, scores, best, alpha / tests) < -limit:
                return True
        if objective.kind == "worst":
            gains = self.gains(incumbent)
            worst = min(gains.values())
            share = alpha / tests / len(gains)
            return any(gains[t] + self._upper(t, scores, incumbent, share) < worst for t in gains)
        return self._pooled_difference(scores, incumbent, self._linear, 2 * alpha / tests).high < 0

    def behind(self, scores: Scores, incumbent: Scores, alpha: float) -> bool:
        """Whether a model would hardly be ahead of the incumbent after all of its documents.

        Asks less than `beaten`: only of these documents. Where the objective is no sum of the tasks' means it is
        `beaten`.

        Args:
            scores: Of some of the incumbent's documents, some of every task.
            incumbent: Of all documents.
            alpha: The probability that the model would be ahead, at most.
        """
        if self.objective.kind in ("worst", "pareto") or self.objective.constraints:
            return self.beaten(scores, incumbent, alpha)
        return self.forecast(scores, incumbent).is_behind(alpha)

    def forecast(self, scores: Scores, incumbent: Scores) -> Forecast:
        """What the difference of the weighted sum would be after all of the incumbent's documents.

        What a model has met of a stratum is a sample of it, without replacement. A stratum's variance is that of
        all tasks' documents there, in units of the largest difference that the task shows, and of one document
        more, of which half differs as much (Jeffreys' prior): it is hardly ever nothing.
        """
        weights, groups, values = self._linear, self.objective.groups, self.objective.values(incumbent)
        mean = 0.0
        found: dict[str, dict[object, list[float]]] = {}  # of each stratum, differences by groups of documents
        # Of each stratum of a task: a unit's square in the sum, documents, and those that were met.
        cells: list[tuple[str, float, float, int]] = []
        for task, pairs in self._pairs(scores, incumbent).items():
            weight, documents = weights[task], len(values[task])
            differences = {s: {d: mine[d] - theirs[d] for d in mine} for s, (mine, theirs, _) in pairs.items()}
            largest = max((abs(x) for own in differences.values() for x in own.values()), default=0.0)
            unit = largest or max((span_of(mine, theirs) for mine, theirs, _ in pairs.values()), default=1.0)
            for stratum, own in differences.items():
                share = pairs[stratum][2]
                mean += weight * share * math.fsum(own.values()) / len(own)
                cells.append((stratum, (weight * unit / documents) ** 2, share * documents, len(own)))
                for d, x in own.items():
                    member = task, groups[task][d] if task in groups else d
                    found.setdefault(stratum, {}).setdefault(member, []).append(x / unit)
        variance = {stratum: _variance([*own.values()]) for stratum, own in found.items()}
        return Forecast(
            mean,
            missing=math.fsum(u * variance[s] * (n - met) * (1 + (n - met) / met) for s, u, n, met in cells),
            sampled=math.fsum(u * variance[s] * n for s, u, n, _ in cells),
        )

    def alike(self, scores: Scores, other: Scores) -> bool:
        """Whether two models have the same score of every document that both have met."""
        pairs = self._pairs(scores, other)
        return all(mine == theirs for strata in pairs.values() for mine, theirs, _ in strata.values())

    def _upper(self, task: str, scores: Scores, other: Scores, alpha: float) -> float:
        """The upper limit of the difference in a task's gain, at a one-sided level."""
        return self._pooled_difference(scores, other, {task: 1 / self._units[task]}, 2 * alpha).high

    def _weighted_difference(self, a: Scores, b: Scores, weights: Mapping[str, float], alpha: float) -> Interval:
        """The difference of the weighted sum of some tasks' means."""
        cells = {
            f"{task}/{stratum}": (pair, task)
            for task, pairs in self._pairs(a, b).items()
            if task in weights
            for stratum, pair in pairs.items()
        }
        groups = self.objective.groups
        return objective_difference(
            {cell: pair[0] for cell, (pair, _) in cells.items()},
            {cell: pair[1] for cell, (pair, _) in cells.items()},
            {cell: weights[task] * pair[2] for cell, (pair, task) in cells.items()},
            {cell: groups[task] for cell, (_, task) in cells.items() if task in groups},
            alpha=alpha,
        )

    def _pooled_difference(self, a: Scores, b: Scores, weights: Mapping[str, float], alpha: float) -> Interval:
        """The same, as the mean of one sample: all tasks' documents, each times what it counts.

        Sharper than adding up the tasks' own limits as long as there are few documents, where a task may have no
        variance yet and a wide limit; wider by the differences between the tasks' means later.
        """
        pairs, groups = self._pairs(a, b), self.objective.groups
        n = sum(len(own[0]) for task in weights for own in pairs[task].values())
        left, right, members, span = {}, {}, {}, 0.0
        for task, weight in weights.items():
            for mine, theirs, share in pairs[task].values():
                factor = n * weight * share / len(mine)
                span = max(span, abs(factor) * span_of(mine, theirs))
                for d, value in mine.items():
                    left[task, d], right[task, d] = factor * value, factor * theirs[d]
                    members[task, d] = (task, groups[task][d] if task in groups else d)
        return paired_difference(left, right, members, span, alpha)

    def _pairs(self, a: Scores, b: Scores) -> dict[str, dict[str, Pair]]:
        """Each task's scores of both models on the documents that both have met, by stratum.

        There is one stratum where the first has met all that the second has, or where there are none.
        """
        left, right = self.objective.values(a), self.objective.values(b)
        found: dict[str, dict[str, Pair]] = {}
        for task, own in left.items():
            both = [document for document in own if document in right[task]]
            strata = self.strata.get(task, {}) if len(both) < len(right[task]) else {}
            sizes = Counter(strata.get(document, "") for document in right[task])
            members: dict[str, list[int]] = {}
            for document in both:
                members.setdefault(strata.get(document, ""), []).append(document)
            met = sum(sizes[stratum] for stratum in members)
            found[task] = {
                stratum: ({d: own[d] for d in ids}, {d: right[task][d] for d in ids}, sizes[stratum] / met)
                for stratum, ids in members.items()
            }
        return found

    def _bootstrap(self, a: Scores, b: Scores, alpha: float) -> Interval:
        random, groups = np.random.default_rng(0), self.objective.groups
        pairs = self._pairs(a, b)
        samples = [
            (np.sum([own[2] * _resampled(own, groups.get(task), random) for own in strata.values()], axis=0), task)
            for task, strata in pairs.items()
        ]
        best, units = self._best, self._units

        def worst(of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            gains = [(of(means) - best[task]) / units[task] for means, task in samples]
            return np.asarray(np.min(gains, axis=0))

        differences = worst(lambda means: means[:, 0]) - worst(lambda means: means[:, 1])
        low, high = np.quantile(differences[1:], [alpha / 2, 1 - alpha / 2])
        if low == high:  # as if nothing else could happen: the tasks' own intervals know better
            own = [self._weighted_difference(a, b, {task: 1 / units[task]}, alpha) for task in pairs]
            low, high = min(i.low for i in own), max(i.high for i in own)
        n = sum(len(own[0]) for strata in pairs.values() for own in strata.values())
        return Interval(float(differences[0]), float(low), float(high), n)


def _variance(members: Sequence[Sequence[float]]) -> float:
    """The variance of one of some groups' numbers, and of one number more, half of which is 1 away."""
    n = sum(map(len, members))
    mean = math.fsum(x for own in members for x in own) / n
    return (math.fsum(math.fsum(x - mean for x in own) ** 2 for own in members) + 1 / 2) / (n + 1)


def _resampled(
    pair: Pair,
    groups: Mapping[int, str] | None,
    random: np.random.Generator,
) -> np.ndarray:
    """Means of both models, ``[1 + resamples, 2]``: of all documents, then of groups drawn with replacement."""
    members: dict[object, list[int]] = {}
    for document in pair[0]:
        members.setdefault(groups[document] if groups else document, []).append(document)
    sums = np.array([[sum(side[d] for d in own) for side in pair[:2]] for own in members.values()])
    counts = np.array([len(own) for own in members.values()])
    n = len(members)
    means = [sums.sum(axis=0, keepdims=True) / counts.sum()]
    at_once = max(1, MOST_DRAWS // n)  # whatever that is, the draws are the same
    for size in (min(at_once, RESAMPLES - done) for done in range(0, RESAMPLES, at_once)):
        draws = random.integers(n, size=(size, n))
        means.append(sums[draws].sum(axis=1) / counts[draws].sum(axis=1)[:, None])
    return np.concatenate(means)
