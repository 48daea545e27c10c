"""Handing pieces of work to a pool, and what becomes of those that fail: another attempt, or none."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from heterosis.evolve.record.record import Record
from heterosis.evolve.record.trial import Ask
from heterosis.evolve.workers.pool import Failure, Outcome, Pool

log = logging.getLogger("heterosis")

ATTEMPTS = 2  # of a candidate that may have ended its worker itself
HANDED_OUT = 5  # times, without a result, whoever's fault it was


@dataclass(frozen=True)
class Job:
    """A piece of work: a candidate on some documents of one part of the split."""

    ask: Ask
    part: str
    documents: Mapping[str, list[int]]


def makes_a_trial(job: Job, record: Record) -> bool:
    """Whether a candidate's result is still open: parents meet further search documents once they have one."""
    return job.part == "search" and record.result(job.ask) is None


class Attempts:
    """Who is tried again, in this session and over all of them.

    A candidate that has ended its worker twice, or was handed out five times, without a result between, is
    poisonous and given up. On the search documents earlier sessions count too: a candidate that takes its whole
    machine down would else be the first thing that every session does. In the finals, where giving up would cost
    the report, each session tries afresh.

    Args:
        record: The run's.
    """

    def __init__(self, record: Record) -> None:
        self._record = record
        self._first_ask, self._first_attempt = len(record.asks), len(record.attempts)
        self._seen: set[int] = set()

    def begin(self, job: Job) -> Failure | None:
        """Take note that work is handed out; a failure instead if it is given up."""
        ask = job.ask
        if not makes_a_trial(job, self._record) or ask.number >= self._first_ask or ask.number in self._seen:
            return None
        # It was handed out by an earlier session, which ended before there was a result.
        self._seen.add(ask.number)
        self._record.add_attempt(ask, job.part, "the search ended meanwhile", blamed=False)
        return Failure(f"was handed out {HANDED_OUT} times without a result") if self._given_up(job) else None

    def again(self, job: Job, failure: Failure) -> bool:
        """Take note of a failure that may pass; whether to try again."""
        self._record.add_attempt(job.ask, job.part, failure.cause, blamed=not failure.blameless)
        given_up = self._given_up(job)
        next_ = "given up, it may be the cause" if given_up else "trying again"
        log.warning("%s: %s; %s", job.ask.name, failure.cause, next_)
        return not given_up

    def _given_up(self, job: Job) -> bool:
        met = self._record.met(job.ask, job.part)
        known = self._record.attempts[0 if makes_a_trial(job, self._record) else self._first_attempt :]
        found = [a for a in known if (a.ask, a.part, a.met) == (job.ask.number, job.part, met)]
        return sum(a.blamed for a in found) >= ATTEMPTS or len(found) >= HANDED_OUT


def dispatch(
    pool: Pool,
    queue: list[Job],
    next_job: Callable[[], Job | None],
    done: Callable[[Job, Outcome], None],
    *,
    attempts: Attempts,
    stopping: Callable[[], bool],
    beat: Callable[[int, int], None],
    spare: Callable[[], bool],
) -> None:
    """Keep the workers busy with a queue, then with what ``next_job`` gives, until both run dry.

    Args:
        pool: The workers.
        queue: Work that is there; ``done`` may add to it.
        next_job: Gives more; None for now.
        done: Takes in what came of a piece of work.
        attempts: Says who is tried again.
        stopping: Whether nothing more is to be handed out.
        beat: Is told now and then how many pieces of work are running and queued.
        spare: Does a piece of the driver's own work that can wait, while there are no results; whether there is
            more of it.
    """
    running, dry, idle = 0, False, False
    while True:
        while pool.free and not stopping():
            job = queue.pop(0) if queue else next_job()
            dry = job is None
            if job is None:
                break
            if given_up := attempts.begin(job):
                done(job, given_up)
                continue
            pool.submit(job, job.ask.recipe, job.documents)
            running += 1
        beat(running, len(queue))
        if not running and (dry or stopping()):
            return
        finished = pool.wait(timeout=0.5 if idle else 0.0)
        idle = not finished and not spare()
        for key, outcome in finished:
            assert isinstance(key, Job)
            running, dry = running - 1, False
            if isinstance(outcome, Failure) and outcome.retry:
                if stopping():  # what stops the search may have ended the workers as well
                    log.warning("%s: %s; left to the next session", key.ask.name, outcome.cause)
                    continue
                if attempts.again(key, outcome):
                    queue.append(key)
                    continue
            done(key, outcome)
