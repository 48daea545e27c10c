"""Two models on the same documents: how far a weighted sum of their tasks' mean scores is apart, and how sure.

Notation: w_t weight of task t's mean in the sum.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy.special import ndtri

from heterosis.evolve.judging.statistics import Interval, objective_difference, paired_difference, span_of

# Scores of documents by task, turned so that larger is better.
Values: TypeAlias = Mapping[str, Mapping[int, float]]
# A part of each task's documents that they are drawn from separately.
Strata: TypeAlias = Mapping[str, Mapping[int, str]]

RESAMPLES = 2000
MOST_DRAWS = 1 << 20  # of the bootstrap at a time, which take 24 bytes each


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
class _Pair:
    """Scores of both models on the same documents of one stratum, and the stratum's share of its task."""

    mine: Mapping[int, float]
    theirs: Mapping[int, float]
    share: float


@dataclass(frozen=True)
class Comparison:
    """A model's scores beside another's, which has met all of a part's documents; see `of`."""

    pairs: Mapping[str, Mapping[str, _Pair]]  # by task and stratum
    sizes: Mapping[str, int]  # how many documents of each task the other has met
    groups: Mapping[str, Mapping[int, str]]

    @classmethod
    def of(
        cls, mine: Values, theirs: Values, groups: Mapping[str, Mapping[int, str]], strata: Strata
    ) -> "Comparison":
        """Put the scores of the documents that both have met side by side.

        Args:
            mine: Of a model that may have met only some documents.
            theirs: Of the other model.
            groups: Group of each document of each task; a task left out has independent documents.
            strata: Of the documents; one where the first model has met all that the second has, or there are none.
        """
        pairs: dict[str, dict[str, _Pair]] = {}
        for task, own in mine.items():
            others = theirs[task]
            both = [document for document in own if document in others]
            parts = strata.get(task, {}) if len(both) < len(others) else {}
            sizes = Counter(parts.get(document, "") for document in others)
            members: dict[str, list[int]] = {}
            for document in both:
                members.setdefault(parts.get(document, ""), []).append(document)
            met = sum(sizes[stratum] for stratum in members)
            pairs[task] = {
                stratum: _Pair({d: own[d] for d in ids}, {d: others[d] for d in ids}, sizes[stratum] / met)
                for stratum, ids in members.items()
            }
        return cls(pairs, {task: len(own) for task, own in theirs.items()}, groups)

    def covers(self, tasks: Iterable[str]) -> bool:
        """Whether there are documents of each of these tasks."""
        return all(self.pairs[task] for task in tasks)

    @property
    def alike(self) -> bool:
        """Whether both have the same score of every document."""
        return all(pair.mine == pair.theirs for strata in self.pairs.values() for pair in strata.values())

    def shifted(self, means: Mapping[str, float]) -> dict[str, float]:
        """The other model's mean of each task, and the mean difference added to it."""
        found = dict(means)
        for task, strata in self.pairs.items():
            for pair in strata.values():
                found[task] += pair.share * (sum(pair.mine.values()) - sum(pair.theirs.values())) / len(pair.mine)
        return found

    def difference(self, weights: Mapping[str, float], alpha: float) -> Interval:
        """The difference of the weighted sum of some tasks' means, from the tasks' own variances.

        Args:
            weights: w_t.
            alpha: One less the interval's level, in (0, 1).
        """
        cells = {
            f"{task}/{stratum}": (pair, task)
            for task, strata in self.pairs.items()
            if task in weights
            for stratum, pair in strata.items()
        }
        return objective_difference(
            {cell: pair.mine for cell, (pair, _) in cells.items()},
            {cell: pair.theirs for cell, (pair, _) in cells.items()},
            {cell: weights[task] * pair.share for cell, (pair, task) in cells.items()},
            {cell: self.groups[task] for cell, (_, task) in cells.items() if task in self.groups},
            alpha=alpha,
        )

    def pooled(self, weights: Mapping[str, float], alpha: float) -> Interval:
        """The same, as the mean of one sample: all tasks' documents, each times what it counts.

        Sharper than adding up the tasks' own limits as long as there are few documents, where a task may have no
        variance yet and a wide limit; wider by the differences between the tasks' means later.
        """
        n = sum(len(pair.mine) for task in weights for pair in self.pairs[task].values())
        left, right, members, span = {}, {}, {}, 0.0
        for task, weight in weights.items():
            for pair in self.pairs[task].values():
                factor = n * weight * pair.share / len(pair.mine)
                span = max(span, abs(factor) * span_of(pair.mine, pair.theirs))
                for d, value in pair.mine.items():
                    left[task, d], right[task, d] = factor * value, factor * pair.theirs[d]
                    members[task, d] = self._member(task, d)
        return paired_difference(left, right, members, span, alpha)

    def forecast(self, weights: Mapping[str, float]) -> Forecast:
        """What the difference of the weighted sum would be after all of the other model's documents.

        What a model has met of a stratum is a sample of it, without replacement. A stratum's variance is that of
        all tasks' documents there, in units of the largest difference that the task shows, and of one document
        more, of which half differs as much (Jeffreys' prior): it is hardly ever nothing.
        """
        mean = 0.0
        found: dict[str, dict[object, list[float]]] = {}  # of each stratum, differences by groups of documents
        # Of each stratum of a task: a unit's square in the sum, documents, and those that were met.
        cells: list[tuple[str, float, float, int]] = []
        for task, strata in self.pairs.items():
            weight, documents = weights[task], self.sizes[task]
            differences = {s: {d: pair.mine[d] - pair.theirs[d] for d in pair.mine} for s, pair in strata.items()}
            largest = max((abs(x) for own in differences.values() for x in own.values()), default=0.0)
            unit = largest or max((span_of(pair.mine, pair.theirs) for pair in strata.values()), default=1.0)
            for stratum, own in differences.items():
                share = strata[stratum].share
                mean += weight * share * math.fsum(own.values()) / len(own)
                cells.append((stratum, (weight * unit / documents) ** 2, share * documents, len(own)))
                for d, x in own.items():
                    found.setdefault(stratum, {}).setdefault(self._member(task, d), []).append(x / unit)
        variance = {stratum: _variance([*own.values()]) for stratum, own in found.items()}
        return Forecast(
            mean,
            missing=math.fsum(u * variance[s] * (n - met) * (1 + (n - met) / met) for s, u, n, met in cells),
            sampled=math.fsum(u * variance[s] * n for s, u, n, _ in cells),
        )

    def of_smallest(self, best: Mapping[str, float], units: Mapping[str, float], alpha: float) -> Interval:
        """The difference of each model's smallest ``(mean_t - best_t) / units_t``, of the tasks that ``best`` has.

        Its interval is a paired bootstrap's (percentiles of 2,000 resamples of the documents' groups within
        tasks), as a minimum has no variance to be added up.
        """
        random = np.random.default_rng(0)
        pairs = {task: self.pairs[task] for task in best}
        samples = [
            (np.sum([p.share * _resampled(p, self.groups.get(task), random) for p in own.values()], axis=0), task)
            for task, own in pairs.items()
        ]

        def smallest(of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
            gains = [(of(means) - best[task]) / units[task] for means, task in samples]
            return np.asarray(np.min(gains, axis=0))

        differences = smallest(lambda means: means[:, 0]) - smallest(lambda means: means[:, 1])
        low, high = np.quantile(differences[1:], [alpha / 2, 1 - alpha / 2])
        if low == high:  # as if nothing else could happen: the tasks' own intervals know better
            tasks = [self.difference({task: 1 / units[task]}, alpha) for task in pairs]
            low, high = min(i.low for i in tasks), max(i.high for i in tasks)
        n = sum(len(pair.mine) for own in pairs.values() for pair in own.values())
        return Interval(float(differences[0]), float(low), float(high), n)

    def _member(self, task: str, document: int) -> tuple[str, object]:
        """The group that a document is in, of all tasks'."""
        return task, self.groups[task][document] if task in self.groups else document


def _variance(members: Sequence[Sequence[float]]) -> float:
    """The variance of one of some groups' numbers, and of one number more, half of which is 1 away."""
    n = sum(map(len, members))
    mean = math.fsum(x for own in members for x in own) / n
    return (math.fsum(math.fsum(x - mean for x in own) ** 2 for own in members) + 1 / 2) / (n + 1)


def _resampled(
    pair: _Pair,
    groups: Mapping[int, str] | None,
    random: np.random.Generator,
) -> np.ndarray:
    """Means of both models, ``[1 + resamples, 2]``: of all documents, then of groups drawn with replacement."""
    members: dict[object, list[int]] = {}
    for document in pair.mine:
        members.setdefault(groups[document] if groups else document, []).append(document)
    sums = np.array([[sum(side[d] for d in own) for side in (pair.mine, pair.theirs)] for own in members.values()])
    counts = np.array([len(own) for own in members.values()])
    n = len(members)
    means = [sums.sum(axis=0, keepdims=True) / counts.sum()]
    at_once = max(1, MOST_DRAWS // n)  # whatever that is, the draws are the same
    for size in (min(at_once, RESAMPLES - done) for done in range(0, RESAMPLES, at_once)):
        draws = random.integers(n, size=(size, n))
        means.append(sums[draws].sum(axis=1) / counts[draws].sum(axis=1)[:, None])
    return np.concatenate(means)
