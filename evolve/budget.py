"""What a run may still spend: seconds and documents, with enough of both left for the finals."""

from collections.abc import Collection, Sequence
from typing import Literal, TypeAlias

from heterosis.evolve.config.genome import UNIFORM
from heterosis.evolve.judging.finals import finals_documents, shortlist
from heterosis.evolve.record.trial import Ask, Trial
from heterosis.evolve.run import Run

Spent: TypeAlias = Literal["hours", "max_documents"]


class Budget:
    """The budgets of one run, beside its number of trials.

    Args:
        run: Whose they are.

    Attributes:
        finals: What the finals take at most, in candidates that meet all search documents.
    """

    def __init__(self, run: Run) -> None:
        config, checked = run.config, run.checked
        self._hours, self._documents = config.hours, config.max_documents
        self._parents, self._shortlisted = len(config.genome.models), config.shortlisted(checked.expected_trials)
        self._split, self._record, self._referee = run.split, run.record, run.referee
        self._most_finalists = checked.most_finalists
        self._all_compared = checked.objective.needs_parents  # with each other: no finalist can be left out
        self.finals = finals_documents(run.split, self._parents, self._most_finalists) / run.split.size("search")

    def spent(
        self, seconds: float, workers: int, candidates: int, promoted: int = 0, unknown: Collection[Ask] = ()
    ) -> Spent | None:
        """The budget of which more candidates would leave too little for the finals; None if there is none.

        Args:
            seconds: Spent so far.
            workers: That score the finals.
            candidates: That are to come.
            promoted: Of those that have met a sample of the search documents, how many are to meet all of them.
            unknown: Candidates whose results the answer must not depend on before all are there, as far as
                documents go.
        """
        if self._is_late(seconds, workers, candidates + promoted):
            return "hours"
        scored_out = self._is_scored_out(candidates, promoted, unknown) and (
            self._record.open_asks or self._is_scored_out(candidates, promoted, ())
        )
        return "max_documents" if scored_out else None

    def finalists(self) -> list[Trial]:
        """The shortlist. Its last are left out where they might take more documents than the run may score."""
        found = shortlist(self._record, self._shortlisted, self._referee.judge("search"))
        while self._documents is not None and len(found) > 1 and not self._all_compared:
            if self._record.documents_scored() + self._left_of_finals(found, len(found)) <= self._documents:
                break
            found.pop()
        return found

    def _is_late(self, seconds: float, workers: int, candidates: int) -> bool:
        if self._hours is None:
            return False
        whole = self._record.tally.median_seconds
        if whole is None:
            return seconds > self._hours * 3600
        return seconds + whole * (candidates + 1.2 * self.finals / workers) > self._hours * 3600

    def _is_scored_out(self, candidates: int, promoted: int, unknown: Collection[Ask]) -> bool:
        record = self._record
        if self._documents is None:
            return False
        most = self._referee.most_of_candidate
        ahead = record.documents_scored() + candidates * most + promoted * (self._split.size("search") - most)
        ahead += sum(max(0, most - record.met_by(recipe, "search")) for recipe in {ask.recipe for ask in unknown})
        if ahead + finals_documents(self._split, self._parents, self._most_finalists) <= self._documents:
            return False
        found = shortlist(record, self._shortlisted, self._referee.judge("search"), unknown)
        # Where nobody can be left out of the finals, there has to be room for all who may come to them.
        more = len(unknown) + candidates if self._all_compared else 0
        return ahead + self._left_of_finals(found, min(len(found) + more, self._most_finalists)) > self._documents

    def _left_of_finals(self, finalists: Sequence[Trial], count: int) -> int:
        """Documents that finals of some, and more of whom nothing is known, still take at most.

        Of a run that was extended, its first finals have scored some of them.
        """
        record = self._record
        reported = [ask for ask in record.baselines.values() if ask.kind == "parent" or ask.name == UNIFORM]
        left = finals_documents(self._split, self._parents, count)
        if count == 1:  # who is alone is not compared any further
            first = self._referee.finalists_race.looks[0]
            left -= self._split.size("selection") - sum(first.values())
        left -= sum(record.met(trial.ask, "selection") for trial in finalists) if count > 1 else 0
        return left - sum(record.met(ask, "holdout") for ask in reported)
