"""Racing: candidates meet the search documents in chunks, and stop when they would hardly be ahead in the end.

After each chunk but the last a candidate is compared with the best one at the time when it was asked, its
incumbent, on the documents that both have met: differences are paired. It stops where its probability of being
ahead after all documents is below ``alpha`` over the number of looks, and half-way where it has answered all as
the incumbent did. (Birattari et al., "A racing algorithm for configuring metaheuristics", GECCO 2002, has the
idea.)

With the order ``informative``, documents on which the scores of the best few differ come sooner than those on
which they are equal, as nearly all differences to the next good candidate are there. Either part comes in the
order of the split's shuffle, so what a candidate has met is a random sample of each. These parts are strata:
differences are weighted by how many documents of each there are, so estimates have no bias.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeAlias

from heterosis.evaluate.scores import Scores
from heterosis.evolve.judging.objective import Judge
from heterosis.evolve.workers.pool import DocumentIds

Judged: TypeAlias = Mapping[str, Mapping[int, float]]
Groups: TypeAlias = Mapping[str, Mapping[int, str]]

# The first chunk: a share of the documents, so many for each task, and so many of each, whatever its size: one
# on which the best differ, and one on which they are equal.
FIRST_SHARE = 1 / 8
FIRST_OF_TASK = 4
LEAST_OF_TASK = 2


@dataclass(frozen=True)
class Schedule:
    """How many documents of each task a candidate has met at each look, all of them at the last."""

    documents: DocumentIds
    looks: tuple[Mapping[str, int], ...]

    @classmethod
    def of(
        cls, documents: DocumentIds, *, first: int | None = None, factor: float = 2.0, enabled: bool = True
    ) -> "Schedule":
        """Looks after ``first`` documents, and whenever these have become ``factor`` times as many.

        A last chunk that would be smaller than the one before is joined to it.

        Args:
            documents: Of each task, in the order of meeting them.
            first: Documents of all tasks; None for an eighth, but four of each task.
            factor: Above 1.
            enabled: Whether there is any look before the last.
        """
        sizes = {task: len(own) for task, own in documents.items()}
        total = sum(sizes.values())
        at = float(first or max(math.ceil(total * FIRST_SHARE), FIRST_OF_TASK * len(sizes)))
        looks = []
        while enabled and at * (1 + factor) / 2 <= total:
            looks.append(
                {task: min(n, max(LEAST_OF_TASK, math.ceil(at * n / total))) for task, n in sizes.items()}
            )
            at = max(at * factor, at + 1)
        return cls(documents, (*looks, sizes))

    def next(self, met: Scores | None) -> dict[str, list[int]]:
        """The documents up to the next look; none if all were met."""
        for look in self.looks:
            if left := missing({task: self.documents[task][:n] for task, n in look.items()}, met):
                return left
        return {}

    def is_lost(self, judge: Judge, met: Scores, incumbent: Scores, alpha: float) -> bool:
        """Whether a candidate is beaten by the incumbent."""
        return judge.beaten(met, incumbent, alpha / max(1, len(self.looks) - 1))

    def is_behind(self, judge: Judge, met: Scores, incumbent: Scores, alpha: float) -> bool:
        """Whether a candidate would hardly be ahead of the incumbent in the end."""
        return judge.behind(met, incumbent, alpha / max(1, len(self.looks) - 1))

    def is_drawn(self, judge: Judge, met: Scores, incumbent: Scores) -> bool:
        """Whether a candidate has answered half of the documents as the incumbent did: it is hardly better."""
        half = all(2 * len(met.documents.get(task, ())) >= len(own) for task, own in self.documents.items())
        return half and judge.alike(met, incumbent)


def missing(documents: DocumentIds, met: Scores | None) -> dict[str, list[int]]:
    """The documents that a candidate has not met, of those tasks that have any."""
    done = {task: set(own) for task, own in met.documents.items()} if met else {}
    left = {task: [d for d in own if d not in done.get(task, ())] for task, own in documents.items()}
    return {task: own for task, own in left.items() if own}


def by_disagreement(models: Sequence[Judged], groups: Groups) -> dict[str, dict[int, str]]:
    """Strata for a race: the documents on which some models' scores differ, and those on which they are equal.

    Args:
        models: The scores of each model's documents, by task.
        groups: Of documents of some tasks; a group is in one stratum.
    """
    first, *others = models
    strata = {}
    for task, own in first.items():
        of = groups.get(task, {})
        differing = {of.get(d, d) for d in own if any(other[task].get(d) != own[d] for other in others)}
        strata[task] = {d: "differing" if of.get(d, d) in differing else "equal" for d in own}
    return strata


def interleaved(documents: DocumentIds, strata: Mapping[str, Mapping[int, str]]) -> dict[str, list[int]]:
    """Documents in an order in which those that differ and the others take turns, as long as there are both."""
    order = {}
    for task, ids in documents.items():
        # A document that has no score of the metric tells nobody apart.
        differing = [d for d in ids if strata[task].get(d) == "differing"]
        equal = [d for d in ids if strata[task].get(d) != "differing"]
        order[task] = [d for pair in zip_longest(differing, equal) for d in pair if d is not None]
    return order
