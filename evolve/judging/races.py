"""Races against each other: of the parents on search documents, and in the finals.

In the finals a shortlist is compared on selection documents, and its best one reported on held-out ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heterosis.evolve.config.genome import UNIFORM
from heterosis.evolve.faults import SearchFailed
from heterosis.evolve.judging.finals import Finalist, Finals, front, reserve
from heterosis.evolve.judging.objective import Judge
from heterosis.evolve.judging.racing import Schedule, missing
from heterosis.evolve.judging.referee import Referee
from heterosis.evolve.judging.statistics import ALPHA
from heterosis.evolve.record.record import Record
from heterosis.evolve.record.trial import Ask, Trial
from heterosis.evolve.workers.pool import DocumentIds


@dataclass(frozen=True)
class _Standings:
    """Who is left of a race, best first, and who could not be scored."""

    open: list[Trial]
    failed: list[Trial]


@dataclass(frozen=True)
class Races:
    """Races of candidates that have met the search documents: of parents, and in the finals.

    Attributes:
        record: The run's.
        referee: Compares them.
        score_on: Scores candidates on some documents of a part, or on all; False if the search is to stop.
        report_on: Is told of the champion, before it meets held-out documents.
    """

    record: Record
    referee: Referee
    score_on: Callable[[str, Sequence[Ask], DocumentIds | None], bool]
    report_on: Callable[[Ask], None]

    def parents(self) -> _Standings | None:
        """Find the best parent: by the search documents, which nobody has fitted to the parents.

        Those that stopped early against another baseline go on, racing each other. A second call scores nothing.

        Returns:
            The parents that may be the best, best first; None if the search is to stop.

        Raises:
            SearchFailed: If one cannot be scored.
        """
        parents = [t for t in self.record.trials if t.ask.kind == "parent" and t.score is not None]
        return self._run(parents, "search", self.referee.parents_race)

    def finals(self, finalists: Sequence[Trial]) -> Finals | None:
        """Find the champion.

        Args:
            finalists: From `shortlist`. If none of its candidates can be scored, those of `reserve` are tried.

        Returns:
            What was found; None if the search is to stop.

        Raises:
            SearchFailed: If a baseline that is compared with, or the champion, cannot be scored.
        """
        if not finalists:
            raise SearchFailed("no candidate could be scored")
        record = self.record
        scored = [t for t in record.trials if t.score is not None]
        of_parents = self.parents()
        if of_parents is None:
            return None
        tried = list(finalists)
        standings = self._selected(tried)
        for trial in reserve(record, finalists):
            candidates = [t for t in tried if t.ask.is_candidate]
            if standings is None or not candidates or any(t not in standings.failed for t in candidates):
                break
            tried.append(trial)
            after = self._selected([*standings.open, trial])
            standings = after and _Standings(after.open, [*standings.failed, *after.failed])
        if standings is None:
            return None
        if not standings.open:
            raise SearchFailed("no finalist could be scored on the selection documents; see run.log")
        judge = self.referee.judge("selection")
        ranked = _ranked(record, standings.open, [t for t in tried if t not in standings.failed], judge)
        champion = ranked[0].trial
        reported = [t for t in scored if t.ask.kind == "parent"] + [t for t in scored if t.ask.name == UNIFORM]
        held_out = {t.ask.number: t for t in (champion, *reported)}
        self.report_on(champion.ask)
        if not self.score_on("holdout", [t.ask for t in held_out.values()], None):
            return None
        scores = [(t, record.scores(t.ask, "holdout")) for t in held_out.values()]
        _require([t for t, own in scores if own is None], "holdout")
        if any(own and math.isnan(self.referee.judge("holdout").score(own)) for _, own in scores):
            raise _incomparable("holdout")
        front = tuple(_front_of(ranked, record, judge)) if len(champion.losses) > 1 else ()
        return Finals(champion, of_parents.open[0], tuple(ranked), front)

    def _selected(self, trials: Sequence[Trial]) -> _Standings | None:
        return self._run(trials, "selection", self.referee.finalists_race)

    def _run(self, trials: Sequence[Trial], part: str, schedule: Schedule) -> _Standings | None:
        """What comes of a race on a part of the documents; None if the search is to stop.

        All meet the documents in chunks, and are compared on these. After each, those drop out that the best of
        them beats beyond doubt.
        """
        open_, failed = list(trials), list[Trial]()
        for look in schedule.looks:
            documents = {task: schedule.documents[task][:n] for task, n in look.items()}
            if not self.score_on(part, [t.ask for t in open_], documents):
                return None
            found = [(t, self.record.scores(t.ask, part)) for t in open_]
            failed += [t for t, scores in found if missing(documents, scores)]
            _require([t for t in failed if not t.ask.is_candidate], part)
            judge = self.referee.judge(part)
            met = [(t, scores.only(documents)) for t, scores in found if scores and t not in failed]
            last = look is schedule.looks[-1]
            if any(
                math.isnan(judge.score(scores)) for _, scores in met
            ):  # a task gives its metric for none of them
                if last:
                    raise _incomparable(part)
                continue
            met.sort(key=lambda one: (-judge.score(one[1]), one[0].rank))
            open_ = [
                t
                for k, (t, scores) in enumerate(met)
                if last or k == 0 or not schedule.is_lost(judge, scores, met[0][1], ALPHA)
            ]
            if len(open_) <= 1:
                break
        return _Standings(open_, failed)


def _ranked(record: Record, open_: Sequence[Trial], finalists: Sequence[Trial], judge: Judge) -> list[Finalist]:
    """All finalists that could be scored, best first; scores of who dropped out of the race are estimates."""
    best = record.scores(open_[0].ask, "selection")
    assert best is not None
    found = {t.ask.number: scores for t in finalists if (scores := record.scores(t.ask, "selection"))}
    estimates = {number: judge.estimate(scores, best).score for number, scores in found.items()}
    rest = sorted((t for t in finalists if t not in open_), key=lambda t: -estimates.get(t.ask.number, 0.0))
    return [Finalist(t, estimates[t.ask.number]) for t in (*open_, *rest) if t.ask.number in estimates]


def _front_of(ranked: Sequence[Finalist], record: Record, judge: Judge) -> list[Trial]:
    """The front on the selection documents."""
    found = [(f.trial, record.scores(f.trial.ask, "selection")) for f in ranked]
    judged = [Trial(t.number, t.ask, t.score, losses=judge.losses(scores)) for t, scores in found if scores]
    numbers = {t.number for t in front(judged)}
    return [f.trial for f in ranked if f.trial.number in numbers]


def _incomparable(part: str) -> SearchFailed:
    return SearchFailed(
        f"a task gives its metric for none of the {part} documents, which tell nobody apart then; choose another "
        "metric, or more documents, in a new run folder"
    )


def _require(lost: Sequence[Trial], part: str) -> None:
    """Refuse to report on what could not be scored: a comparison without it would flatter the champion."""
    if lost:
        raise SearchFailed(
            f"{', '.join(t.ask.name for t in lost)} could not be scored on the {part} documents (run.log says "
            "why); the same command tries again"
        )
