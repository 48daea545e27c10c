"""Scoring: candidates meet documents on the workers, their scores are recorded, and become trials."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from heterosis.evolve.judging.referee import Referee
from heterosis.evolve.record.record import Record
from heterosis.evolve.record.trial import Ask, Trial
from heterosis.evolve.workers.dispatch import Attempts, Job, dispatch, makes_a_trial
from heterosis.evolve.workers.pool import Evaluation, Failure, Outcome, Pool

log = logging.getLogger("heterosis")


class Scoring:
    """What a session scores.

    Args:
        pool: The workers.
        record: The run's.
        referee: Says which documents a candidate meets, and what its scores amount to.
        stopping: Whether nothing more is to be handed out.
        beat: Is told now and then how many pieces of work are running and queued.
        show: Is told of every trial, at once.
    """

    def __init__(
        self,
        pool: Pool,
        record: Record,
        referee: Referee,
        *,
        stopping: Callable[[], bool],
        beat: Callable[[int, int], None],
        show: Callable[[Trial], None],
    ) -> None:
        self._pool, self._record, self._referee = pool, record, referee
        self._stopping, self._beat, self._show = stopping, beat, show
        self._attempts = Attempts(record)
        self._seconds_of: dict[int, Counter[str]] = {}  # of candidates that race
        self._held: list[Ask] = []  # scored, but meaningless before the parents are

    def open_jobs(self, *kinds: str) -> list[Job]:
        """What was asked for the first time and is not finished, of some kinds."""
        return [self.job(ask) for ask in self._record.open_asks if ask.kind in kinds and not ask.promoted]

    def open_promotions(self) -> list[Job]:
        """What was promoted and is not finished."""
        return [self.job(ask) for ask in self._record.open_asks if ask.promoted]

    def job(self, ask: Ask) -> Job:
        """What a candidate is to be scored on next."""
        return Job(ask, "search", self._referee.next_documents(ask))

    def work(
        self,
        queue: Sequence[Job],
        next_job: Callable[[], Job | None] = lambda: None,
        on_trial: Callable[[Trial], None] = lambda trial: None,
    ) -> None:
        """Keep the workers busy with a queue, then with what ``next_job`` gives, until both run dry."""
        left = [job for job in queue if not self._told_from_scores(job, on_trial)]

        def unscored() -> Job | None:
            while (job := next_job()) and self._told_from_scores(job, on_trial):
                pass
            return job

        def done(job: Job, outcome: Outcome) -> None:
            if isinstance(outcome, Failure):
                trials = self._failed(job, outcome)
            else:
                trials = self._scored(job, outcome, left)
            for trial in trials:
                on_trial(trial)

        attempts, stopping, beat, spare = self._attempts, self._stopping, self._beat, self._record.write_study
        dispatch(self._pool, left, unscored, done, attempts=attempts, stopping=stopping, beat=beat, spare=spare)
        while self._record.write_study():
            pass

    def _told_from_scores(self, job: Job, on_trial: Callable[[Trial], None]) -> bool:
        """Finish a trial whose scores are there: from an earlier session, or of the same recipe asked before."""
        if job.part != "search" or job.documents:
            return False
        for trial in self._finish(job.ask):
            on_trial(trial)
        return True

    def _failed(self, job: Job, failure: Failure) -> list[Trial]:
        log.warning("%s failed on %s documents: %s", job.ask.name, job.part, failure.cause)
        if not makes_a_trial(job, self._record):
            return []
        trial = self._record.tell(job.ask, None, cause=failure.cause)
        self._show(trial)
        return [trial]

    def _scored(self, job: Job, evaluation: Evaluation, queue: list[Job]) -> list[Trial]:
        """Record scores. A candidate goes on with its next documents, at once, or becomes a trial."""
        self._record.add_scores(job.ask, job.part, evaluation.scores, evaluation.checksum)
        if not makes_a_trial(job, self._record):
            return []
        self._seconds_of.setdefault(job.ask.number, Counter()).update(evaluation.seconds)
        if documents := self._referee.next_documents(job.ask):
            queue.insert(0, Job(job.ask, "search", documents))  # to the worker that has it in memory
            return []
        return self._finish(job.ask)

    def _finish(self, ask: Ask) -> list[Trial]:
        """Make scored candidates trials: this one, and those that waited for it."""
        self._held.append(ask)
        if not self._referee.can_judge("search"):
            return []
        held, self._held = self._held, []
        return [self._tell(ask) for ask in held]

    def _tell(self, ask: Ask) -> Trial:
        result = self._referee.result(ask)
        seconds: Mapping[str, float] = self._seconds_of.pop(ask.number, {})
        if any(map(math.isnan, (result.verdict.score, *result.verdict.losses))):
            cause = "its score is NaN: a task gives its metric for none of the documents"
            trial = self._record.tell(ask, None, cause=cause, seconds=seconds)
        else:
            trial = self._record.tell(
                ask,
                result.verdict.score,
                result.verdict.losses,
                terms=result.verdict.terms,
                pruned=result.pruned,
                documents=result.documents,
                share=result.share,
                seconds=seconds,
            )
        self._show(trial)
        return trial
