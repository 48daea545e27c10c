"""The referee: which documents a candidate meets next, and what its scores amount to."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

from heterosis.evaluate.scores import Scores
from heterosis.evaluate.splits import Split
from heterosis.evolve.config import Racing
from heterosis.evolve.config.genome import UNIFORM
from heterosis.evolve.judging.objective import Judge, Objective, Verdict
from heterosis.evolve.judging.racing import Schedule, by_disagreement, interleaved, missing
from heterosis.evolve.judging.sampling import PROMOTED
from heterosis.evolve.judging.statistics import ALPHA
from heterosis.evolve.optimizers import Limits
from heterosis.evolve.record.record import Record
from heterosis.evolve.record.trial import Ask
from heterosis.evolve.workers.pool import DocumentIds


@dataclass(frozen=True)
class Result:
    """What a candidate's scores on search documents amount to.

    Attributes:
        verdict: Score and losses; of a candidate that was stopped early, their estimates. The losses are those by
            the probabilities of right answers, where candidates meet a sample.
        pruned: Whether it was stopped early.
        documents: Documents that it has met.
        share: How many documents of a random sample would tell as much, as a share of all.
    """

    verdict: Verdict
    pruned: bool
    documents: int
    share: float


class Referee:
    """Compares candidates by what the record has of them.

    Args:
        record: The run's.
        objective: What is maximised.
        split: Of the documents.
        racing: How candidates race.
        sample: Documents that candidates meet before the best of them meet all; none where all race. See
            `sample_of`.
    """

    def __init__(
        self,
        record: Record,
        objective: Objective,
        split: Split,
        racing: Racing,
        sample: DocumentIds = MappingProxyType({}),
    ) -> None:
        self._record, self._objective, self._split = record, objective, split
        self._racing, self._sample = racing, sample
        self._sampled = objective.by_probability if sample else None
        self._alone = Schedule.of(split.search, enabled=False)
        self._judges: dict[str, Judge] = {}
        self._races: dict[tuple[int, ...], tuple[Schedule, Judge]] = {}  # by rivals

    def next_documents(self, ask: Ask) -> dict[str, list[int]]:
        """The search documents that a candidate is to meet next; none when its race is over."""
        met, incumbent = self._record.scores(ask, "search"), self._incumbent(ask)
        if self.samples and ((rest := missing(self._sample, met)) or self.is_sampled(ask)):
            return rest
        if incumbent is None:
            return self._alone.next(met)
        race, judge = self._race_of(ask)
        rest = race.next(met)
        if not rest or met is None:
            return rest
        if ask.is_candidate:
            over = race.is_behind(judge, met, incumbent, self._racing.alpha)
            over = over or race.is_drawn(judge, met, incumbent)
        else:  # nobody is called the best parent by mistake
            over = race.is_lost(judge, met, incumbent, min(self._racing.alpha, ALPHA))
        return {} if over else rest

    def result(self, ask: Ask) -> Result:
        """What came of a candidate whose race is over."""
        scores, (_, judge) = self._record.scores(ask, "search"), self._race_of(ask)
        assert scores is not None
        incumbent, met = self._incumbent(ask), scores.count
        pruned = met < self._split.size("search")
        if pruned and incumbent is not None:
            verdict, share = judge.estimate(scores, incumbent), judge.forecast(scores, incumbent).share
        else:
            verdict, share = judge.verdict(scores), 1.0
        if self._sampled is not None:  # what an optimizer is told is of the same documents for all
            sampled = self._sampled.judge([]).verdict(scores.only(self._sample))
            verdict, share = replace(sampled, score=verdict.score), 1.0
        return Result(verdict, pruned, met, share)

    def limits(self, known: Sequence[Scores]) -> tuple[Limits | None, ...]:
        """Between what the terms of an optimizer's loss lie, as models' scores show; empty if nothing is known."""
        if self._sampled is not None:
            return self._sampled.judge([]).limits([scores.only(self._sample) for scores in known])
        return self.judge("search").limits(known) if self.can_judge("search") else ()

    @property
    def samples(self) -> bool:
        """Whether candidates meet a sample of the search documents, and the best of them all."""
        return self._sampled is not None

    def is_sampled(self, ask: Ask) -> bool:
        """Whether an ask meets no more than a sample of the search documents, where there is one.

        Parents and the uniform merge, which everything is compared with, meet more.
        """
        return not ask.promoted and ask.kind != "parent" and ask.name != UNIFORM

    @property
    def promoted(self) -> int:
        """How many of a stage's candidates meet all search documents after a sample."""
        return PROMOTED if self.samples else 0

    @property
    def most_of_candidate(self) -> int:
        """Search documents that a candidate meets at most, unless it is promoted."""
        return sum(map(len, self._sample.values())) if self.samples else self._split.size("search")

    def judge(self, part: str) -> Judge:
        """What tells models from each other on a part of the documents; see `can_judge`."""
        if part not in self._judges:
            if not self.parents_scored(part):
                return self._objective.judge([])  # of a weighted sum
            self._judges[part] = self._objective.judge(self._parents(part))
        return self._judges[part]

    def can_judge(self, part: str) -> bool:
        """Whether scores on a part mean anything yet: most objectives compare with the parents' there."""
        return not self._objective.needs_parents or self.parents_scored(part)

    @property
    def parents_meet_all(self) -> bool:
        """Whether parents meet all search documents, as no race stops them."""
        return self._objective.needs_parents or not self._racing.enabled

    @property
    def parents_race(self) -> Schedule:
        """How parents meet the search documents, till the best is known."""
        return self._race

    @property
    def finalists_race(self) -> Schedule:
        """How finalists meet the selection documents: all at once, unless one number ranks them by itself."""
        racing = self._racing
        enabled = racing.enabled and not self._objective.needs_parents
        return Schedule.of(self._split.selection, factor=racing.factor, enabled=enabled)

    def silent_tasks(self) -> list[str]:
        """What to say of tasks that tell no baseline from another: most often something is wrong with them."""
        asks = [*self._record.baselines.values()]
        met = [self._objective.values(s) for ask in asks if (s := self._record.scores(ask, "search"))]
        found = []
        for task in self._objective.metrics:
            values = {value for own in met for value in own.get(task, {}).values()}
            if len(values) == 1:
                value = self._objective.sign(task) * values.pop()
                found.append(
                    f"{task}: parents and uniform merge score {value:g} on every document, which may tell no "
                    "candidate from another; if that is odd, heterosis inspect shows a question and an answer"
                )
        return found

    def parents_scored(self, part: str) -> bool:
        """Whether all parents have met all documents of a part."""
        found = [self._record.scores(ask, part) for ask in self._record.parents]
        return bool(found) and all(s is not None and s.count == self._split.size(part) for s in found)

    @cached_property
    def _race(self) -> Schedule:
        return self._schedule(self._split.search)

    def _schedule(self, documents: DocumentIds) -> Schedule:
        racing = self._racing
        return Schedule.of(documents, first=racing.first, factor=racing.factor, enabled=racing.enabled)

    def _race_of(self, ask: Ask) -> tuple[Schedule, Judge]:
        """How a candidate meets the search documents, and what tells it from its incumbent on the way."""
        informative = self._racing.enabled and self._racing.order == "informative"
        if len(ask.rivals) < 2 or not informative:
            return self._race, self.judge("search")
        if ask.rivals not in self._races:
            rivals = [self._record.scores(self._record.asks[number], "search") for number in ask.rivals]
            strata = by_disagreement([self._objective.values(s) for s in rivals if s], self._objective.groups)
            race = self._schedule(interleaved(self._split.search, strata))
            self._races[ask.rivals] = race, replace(self.judge("search"), strata=strata)
        return self._races[ask.rivals]

    def _parents(self, part: str) -> list[Scores]:
        found = [self._record.scores(ask, part) for ask in self._record.parents]
        return [scores for scores in found if scores]

    def _incumbent(self, ask: Ask) -> Scores | None:
        """The scores of whom it races against."""
        return None if ask.incumbent is None else self._record.scores(self._record.asks[ask.incumbent], "search")
