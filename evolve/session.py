"""One session of a run: its workers, why it stops, and what others see of it meanwhile.

The log, the pulse, the summary with the table, and whatever shows progress are told what happens; the search
itself is in loop.py.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Protocol

from heterosis.evolve.budget import Budget
from heterosis.evolve.faults import RunStopped, SearchFailed, disk_faults
from heterosis.evolve.judging.finals import Finals
from heterosis.evolve.judging.statistics import Interval
from heterosis.evolve.preflight.preflight import Preflight
from heterosis.evolve.preflight.resources import worker_setup, workers_and_threads
from heterosis.evolve.record.folder import RunFolder, with_champion
from heterosis.evolve.record.record import Record
from heterosis.evolve.record.summary_file import Status, Summary
from heterosis.evolve.record.trial import Trial
from heterosis.evolve.results.outcome import leave_outcome, write_outcome
from heterosis.evolve.results.summary import describe_result
from heterosis.evolve.results.table import TableWriter
from heterosis.evolve.run import Run
from heterosis.evolve.signals import stopping_on_signals
from heterosis.evolve.space.dimensions import Space
from heterosis.evolve.watching.pulse import Pulse, PulseWriter
from heterosis.evolve.workers.cluster import RayPool, probed_batch_size
from heterosis.evolve.workers.pool import Pool, Setup

log = logging.getLogger("heterosis")

STOPPING = "stopping after the documents that are being scored; interrupt again to stop at once"

SAVE_SECONDS = 2.0  # between two states of the summary and the table, unless there is a new best
SAVE_SHARE = 20  # times as long as saving takes, at least


class Progress(Protocol):
    """Is told what happens, to show it. The driver's thread waits meanwhile."""

    def begin(self, preflight: Preflight, budget: int, workers: int) -> None: ...

    def phase(self, text: str) -> None: ...

    def trial(self, trial: Trial, best: Trial | None, record: Record, seconds: float) -> None: ...

    def end(self) -> None: ...


class Session:
    """A session: it opens the run, starts the workers, and writes what came of it.

    Args:
        checked: The config.
        folder: The run folder.
        storage: Optuna storage URL; None for SQLite in the folder.
        device: Where the workers' models live.
        progress: Shows what happens.

    Attributes:
        run: What it works on.
        budget: What it may still spend.
        workers: How many it asks for.

    Raises:
        InputError: As of `Run.open`.
    """

    def __init__(
        self, checked: Preflight, folder: RunFolder, storage: str | None, device: str, progress: Progress | None
    ) -> None:
        self._stop: str | None = None
        self._progress = progress
        self.run = Run.open(checked, folder, storage, device, wait_on=self._wait_on)
        self._record, self._state = self.run.record, self.run.state
        self.budget = Budget(self.run)
        self.workers = workers_and_threads(checked.config)[0]
        self._setup = worker_setup(
            checked, self.run.baselines, self.run.split, device, folder.path, self._state.batch_size
        )
        self._begun = time.monotonic()
        self._spent_before = self._state.seconds
        self._table = TableWriter(folder.path)
        self._save_from, self._saved = self._begun, self._progressed()
        # What earlier sessions have found, and how far they had come: it stands until there is more.
        self._earlier, self._earlier_progress = with_champion(folder.path, *self._saved), self._saved
        pulse = Pulse(
            workers=self.workers,
            finals=self.budget.finals,
            hours=checked.config.hours,
            max_documents=checked.config.max_documents,
        )
        self._pulse = PulseWriter(folder.path, pulse)

    @contextmanager
    def pool(
        self, make_pool: Callable[[Setup, int], Pool] | None = None, ray_address: str | None = None
    ) -> Iterator[Pool]:
        """The workers. Whatever ends their work, the folder says how far it has come.

        Args:
            make_pool: Another pool than Ray's.
            ray_address: A Ray cluster; None for this machine.

        Raises:
            InputError: If there cannot be any.
            RunStopped: If the disk is gone.
        """
        run, path = self.run, self.run.folder.path
        self._tell(lambda progress: progress.begin(run.checked, run.config.trials, self.workers))
        log.info(
            "search of %d parameters, %d trials, %d workers; run folder %s",
            len(run.checked.spaces[-1].dimensions),
            run.config.trials,
            self.workers,
            path,
        )
        for text in run.checked.warnings:
            log.warning(text)
        self._save(status="running")
        self._pulse.beat(0, 0)
        try:
            with stopping_on_signals(self._request_stop):
                if self._setup.batch_size is None:
                    self._probe_batch_size(ray_address)
                pool = (
                    make_pool(self._setup, self.workers)
                    if make_pool
                    else RayPool(self._setup, self.workers, address=ray_address, timeout=run.config.timeout)
                )
                with disk_faults(path), closing(pool):
                    yield pool
        except BaseException as error:
            if isinstance(error, (RunStopped, SearchFailed)):
                self._stop = str(error)
            with suppress(OSError, RunStopped):  # a full disk is why, perhaps
                self._save(status="stopped")
            raise
        finally:
            self._tell(lambda progress: progress.end())
            with suppress(OSError, RunStopped):  # another folder may be there now
                run.folder.check()
                self._pulse.stop()

    def end(self, finals: Finals | None) -> Summary:
        """Write what came of the run, and return it: the summary."""
        return self._save(status="stopped" if finals is None else "finished", finals=finals)

    def _probe_batch_size(self, ray_address: str | None) -> None:
        """Find out how large batches may be, once in a run: all its scores come from the same."""
        found = probed_batch_size(self._setup, self.run.baselines[0].recipe.to_yaml(), address=ray_address)
        log.info("batch_size: %d, as much as the memory of a worker takes", found)
        self._setup = replace(self._setup, batch_size=found)
        self._state.batch_size = self._state.environment["batch_size"] = found
        self._state.save()

    # ------------------------------------------------------------------- when to stop

    def seconds(self) -> float:
        """Spent so far, in all sessions."""
        return self._spent_before + time.monotonic() - self._begun

    def stopping(self) -> bool:
        """Whether a stop was asked for, which may happen at any moment."""
        return self._stop is not None

    def _request_stop(self) -> None:
        self._stop = "interrupted"
        self._pulse.phase("stopping after the documents that are being scored")
        log.info(STOPPING)
        self._tell(lambda progress: progress.phase(STOPPING))

    def _wait_on(self, reason: str) -> bool:
        """Show why the storage is waited for; whether to wait on."""
        self._pulse.meanwhile(reason)
        return not self.stopping()

    # ------------------------------------------------------------------- what happens

    def stage(self, space: Space, candidates: Iterable[Trial]) -> None:
        """Begin a stage of the search, of which some candidates have results."""
        self._pulse.stage(space, candidates)

    def phase(self, text: str) -> None:
        """Say what is done next."""
        log.info(text)
        self._pulse.phase(text)
        self._tell(lambda progress: progress.phase(text))

    def beat(self, running: int, waiting: int) -> None:
        """Say that work goes on, and how much is running and queued."""
        self.run.folder.check()
        self._pulse.beat(running, waiting)
        self._save_when_due()

    def show(self, trial: Trial) -> None:
        """Show a result."""
        best = self._record.tally.best
        result = describe_result(trial)
        log.info("trial %d (%s): %s; best %s", trial.number, trial.ask.name, result, best and f"{best.score:z.4f}")
        self._pulse.trial(trial, best, self._against_parents)
        self._save_when_due(at_once=trial is best)
        self._tell(lambda progress: progress.trial(trial, best, self._record, self.seconds()))

    def _tell(self, event: Callable[[Progress], None]) -> None:
        """Show something, as long as there is a terminal or file to show it in; the search goes on without."""
        if self._progress is None:
            return
        try:
            event(self._progress)
        except OSError as error:
            self._progress = None
            log.warning("progress is no longer shown: %s", error)

    def _against_parents(self, trial: Trial) -> dict[str, Interval]:
        """By how much a trial beats each parent on the search documents."""
        referee, record = self.run.referee, self._record
        if not referee.can_judge("search"):
            return {}
        judge, mine = referee.judge("search"), record.scores(trial.ask, "search")
        found = {ask.name: record.scores(ask, "search") for ask in record.parents if ask != trial.ask}
        return {name: judge.difference(mine, theirs) for name, theirs in found.items() if mine and theirs}

    def _save_when_due(self, at_once: bool = False) -> None:
        """Write the summary and the table, which are for people."""
        begun, now = time.monotonic(), self._progressed()
        if self._saved != now and (at_once or begun >= self._save_from):
            self._save(status="running")
            self._saved = now
            self._save_from = time.monotonic() + max(SAVE_SECONDS, SAVE_SHARE * (time.monotonic() - begun))

    def _progressed(self) -> tuple[int, int]:
        """How far the run has come: trials, and documents, also those of the finals."""
        return len(self._record.trials), self._record.documents_scored()

    def _save(self, status: Status, finals: Finals | None = None) -> Summary:
        self.run.folder.check()
        self._state.seconds = self.seconds()
        self._state.save()
        if finals is None and self._earlier and self._progressed() == self._earlier_progress:
            return leave_outcome(self.run, self._earlier, status=status, stopped=self._stop)
        return write_outcome(self.run, self._table, status=status, stopped=self._stop, finals=finals)
