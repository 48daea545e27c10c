"""The driver: asks an optimizer, hands candidates to workers, records what comes back, picks the champion."""

import logging
import os
import time
import warnings
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from heterosis.errors import InputError
from heterosis.evaluate.splits import Split
from heterosis.evolve.baselines import Baseline
from heterosis.evolve.budget import Budget
from heterosis.evolve.cluster import RayPool, probed_batch_size
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.dispatch import Job
from heterosis.evolve.faults import RunStopped, disk_faults
from heterosis.evolve.files import SPLITS, write_text
from heterosis.evolve.finals import Finals, FinalsFailed, Races
from heterosis.evolve.folder import RunFolder, check_run_folder, check_same_config, finished_summary
from heterosis.evolve.genome import UNIFORM
from heterosis.evolve.outcome import environment, write_outcome
from heterosis.evolve.pool import Pool
from heterosis.evolve.preflight import Preflight, preflight
from heterosis.evolve.proposals import Proposer
from heterosis.evolve.pulse import Pulse, PulseWriter
from heterosis.evolve.racing import DocumentIds, missing
from heterosis.evolve.record import Record
from heterosis.evolve.referee import Referee
from heterosis.evolve.report import load_tasks, report_is_written, write_report
from heterosis.evolve.resources import check_workers, merges_to, resources, worker_setup, workers_and_threads
from heterosis.evolve.scoring import Scoring
from heterosis.evolve.session import logging_to, stopping_on_signals
from heterosis.evolve.stages import Stages
from heterosis.evolve.state import RunState
from heterosis.evolve.statistics import Interval
from heterosis.evolve.storage import study_url
from heterosis.evolve.summary import describe_result
from heterosis.evolve.table import TableWriter
from heterosis.evolve.tally import best_of
from heterosis.evolve.tracking import check_trackers, tracked
from heterosis.evolve.trial import Ask, Trial
from heterosis.evolve.warm_start import warm_starts
from heterosis.evolve.worker import Setup
from heterosis.merge.machine import check_device

if TYPE_CHECKING:
    from heterosis.evaluate.harness import TaskSet

log = logging.getLogger("heterosis")

PATIENCE = 8  # failures before their rate says anything
SAVE_SECONDS = 2.0  # between two states of the summary and the table, unless there is a new best
SAVE_SHARE = 20  # times as long as saving takes, at least
MEAN_BUDGET = 20  # trials from which on the last is the optimizer's mean


class SearchFailed(RuntimeError):
    """The failure rate, or a parent that cannot be scored, shows that the set-up is wrong."""


class Progress(Protocol):
    """Is told what happens, to show it. The driver's thread waits meanwhile."""

    def begin(self, preflight: Preflight, budget: int, workers: int) -> None: ...

    def phase(self, text: str) -> None: ...

    def trial(self, trial: Trial, best: Trial | None, record: Record, seconds: float) -> None: ...

    def end(self) -> None: ...


def search(
    config: EvolveConfig | str | os.PathLike[str],
    run_dir: str | os.PathLike[str],
    *,
    trials: int | None = None,
    hours: float | None = None,
    max_documents: int | None = None,
    workers: int | None = None,
    cpus_per_worker: float | None = None,
    gpus_per_worker: float | None = None,
    include_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    seed: int | None = None,
    storage: str | None = None,
    ray_address: str | None = None,
    device: str = "cpu",
    log_to: str | Sequence[str] = (),
    progress: Progress | None = None,
    make_pool: Callable[[Setup, int], Pool] | None = None,
) -> dict[str, Any]:
    """Search for the best merge recipe; with the folder of an earlier run, continue it.

    Args:
        config: A config, or the path of one.
        run_dir: The run folder.
        trials: Candidates in all, baselines included; replaces the config's.
        hours: Time in all, earlier sessions of the run included; replaces the config's.
        max_documents: Documents scored in all; replaces the config's.
        workers: Processes that score; replaces the config's.
        cpus_per_worker: Cores of each; replaces the config's.
        gpus_per_worker: Graphics processors of each; replaces the config's.
        include_path: More folders with lm-eval task YAML, or one.
        seed: Replaces the config's.
        storage: Optuna storage URL; None for SQLite in the run folder. It is not written anywhere.
        ray_address: A Ray cluster; None for this machine.
        device: Where the workers' models live.
        log_to: Trackers that are told of the run, beside the config's: ``tensorboard``, ``mlflow``, ``wandb``.
        progress: Shows what happens.
        make_pool: Another pool of workers than Ray's.

    Returns:
        The summary, as in the folder's ``summary.json``.

    Raises:
        InputError: If something is wrong with the input; then no new folder is left behind.
        SearchFailed: If candidates fail at a rate that shows that the set-up is wrong.
        RunStopped: If the disk, the storage or the workers are gone; the same call continues.
    """
    loaded = config if isinstance(config, EvolveConfig) else EvolveConfig.load(config)
    changes: dict[str, Any] = {
        "trials": trials,
        "hours": hours,
        "max_documents": max_documents,
        "workers": workers,
        "cpus_per_worker": cpus_per_worker,
        "gpus_per_worker": gpus_per_worker,
        "seed": seed,
    }
    if include_path:
        folders = [include_path] if isinstance(include_path, str | os.PathLike) else include_path
        changes["include_path"] = [*loaded.include_path, *(os.fspath(folder) for folder in folders)]
    if log_to:
        changes["log_to"] = [*loaded.log_to, *([log_to] if isinstance(log_to, str) else log_to)]
    changes = {key: value for key, value in changes.items() if value is not None}
    loaded = loaded.updated(**changes) if changes else loaded
    check_run_folder(Path(run_dir))
    check_same_config(Path(run_dir), loaded)
    if finished := finished_summary(Path(run_dir), loaded.trials):
        if not report_is_written(Path(run_dir)):  # the driver was killed before it was
            _report(Path(run_dir), None, storage)
        return finished
    try:
        checked = preflight(loaded, RunState.load(Path(run_dir)).control_points)
        takes = resources(checked, Path(run_dir), local=device == "cpu" and ray_address is None)
        takes.check()
        check_trackers(loaded.log_to)
        if ray_address is None:
            if make_pool is None:
                check_device(device)
            check_workers(loaded, device)
            merges_to(checked)
    except InputError as error:
        origin = "config" if isinstance(config, EvolveConfig) else os.fspath(config)
        raise InputError(*(f"{origin}: {fault}" for fault in error.faults)) from error
    for text in (*checked.warnings, *takes.warnings):
        warnings.warn(text, stacklevel=2)
    folder = RunFolder(Path(run_dir), storage)
    try:
        with (
            disk_faults(folder.path),
            logging_to(folder.path / "run.log"),
            tracked(folder.path, loaded.log_to),
        ):
            driver = _Driver(checked, folder, storage, device, progress)
            summary = driver.run(make_pool, ray_address)
            _report(folder.path, checked.tasks, storage)
            return summary
    except InputError:
        folder.discard_if_new()
        raise
    finally:
        folder.close()


def _report(folder: Path, tasks: "TaskSet | None", storage: str | None) -> None:
    """Write the run's report; whatever goes wrong with it, the run is done."""
    try:
        write_report(folder, tasks=tasks or load_tasks(folder), storage=storage)
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        log.warning("the report could not be written: %s; heterosis report %s tries again", reason, folder)


class _Driver:
    def __init__(
        self, checked: Preflight, folder: RunFolder, storage: str | None, device: str, progress: Progress | None
    ) -> None:
        config = self._config = checked.config
        self._checked, self._folder, self._progress = checked, folder, progress
        self._objective = checked.objective
        splits = folder.path / SPLITS
        if splits.exists():
            self._split = Split.load(splits)
            self._split.check(checked.tasks.fingerprints(), str(splits))
        else:
            self._split = checked.split
        self._state = RunState.begin(folder.path)
        self._known_recipes = self._baselines()
        self._provenance = self._state.provenance = checked.provenance()
        self._state.control_points = checked.control_points
        self._state.layers = checked.space.depth.n_layers
        if checked.held_out_seen:
            self._state.holdout_reused = True
        self.workers = workers_and_threads(config)[0]
        self._setup = worker_setup(checked, self._split, device, folder.path, self._state.batch_size)
        self._check_environment()
        url = storage or study_url(folder.path)
        dimensions = [dimension for own in checked.spaces for dimension in own.dimensions]
        self._record = Record(
            folder.path,
            url,
            self._state.study,
            dimensions,
            len(self._objective.names),
            guard=folder.check,
            wait_on=self._without_storage,
        )
        self._referee = Referee(self._record, self._objective, self._split, config.racing)
        self._stages = Stages(checked, self._known_recipes, self._record, self._referee, self._state)
        folder.adopt(config)
        if not splits.exists():
            write_text(splits, self._split.to_json())
        self._state.save()
        self._begun = time.monotonic()
        self._spent_before = self._state.seconds
        self._table = TableWriter(folder.path)
        self._save_from, self._saved = self._begun, self._progressed()
        self._budget = Budget(checked, self._split, self._record, self._referee)
        pulse = Pulse(
            workers=self.workers,
            finals=self._budget.finals,
            hours=config.hours,
            max_documents=config.max_documents,
        )
        self._pulse = PulseWriter(folder.path, pulse)
        self._stop: str | None = None
        self._scoring = Scoring(
            self._record, self._referee, stopping=self._stopping, beat=self._beat, show=self._show
        )
        self._tried, self._lost = 0, 0  # candidates of this session that came to an end, and to no score

    def _baselines(self) -> list[Baseline]:
        """What the search begins with, as when the run did: an optimizer starts from it when a run goes on."""
        if self._state.baselines is None:
            found = self._checked.baselines()
            found += warm_starts(self._config.warm_start, self._checked.spaces[0], found)
            self._state.baselines = [b.to_plain() for b in found]
        return [Baseline.from_plain(plain) for plain in self._state.baselines]

    # ------------------------------------------------------------------ the run

    def run(self, make_pool: Callable[[Setup, int], Pool] | None, ray_address: str | None) -> dict[str, Any]:
        budget = self._config.trials
        if self._progress:
            self._progress.begin(self._checked, budget, self.workers)
        log.info(
            "search of %d parameters, %d trials, %d workers; run folder %s",
            len(self._checked.spaces[-1].dimensions),
            budget,
            self.workers,
            self._folder.path,
        )
        for text in self._checked.warnings:
            log.warning(text)
        self._save(status="running")
        self._pulse.beat(0, 0)
        timeout = self._config.timeout
        try:
            with stopping_on_signals(self._request_stop):
                if self._setup.batch_size is None:
                    self._probe_batch_size(ray_address)
                pool = (
                    make_pool(self._setup, self.workers)
                    if make_pool
                    else RayPool(self._setup, self.workers, address=ray_address, timeout=timeout)
                )
                # Again, as Ray sets a handler for SIGTERM of its own when it starts.
                stopping = stopping_on_signals(self._request_stop)
                with disk_faults(self._folder.path), closing(pool), stopping:
                    self._search(pool, budget)
                    finals = None if self._stopping() else self._finals(pool)
        except BaseException as error:
            if isinstance(error, (RunStopped, SearchFailed)):
                self._stop = str(error)
            with suppress(OSError):  # a full disk is why, perhaps
                self._save(status="stopped")
            raise
        finally:
            if self._progress:
                self._progress.end()
            self._pulse.stop()
        status = "finished" if finals is not None else "stopped"
        return self._save(status=status, finals=finals)

    def _seconds(self) -> float:
        return self._spent_before + time.monotonic() - self._begun

    def _save(self, status: str, finals: Finals | None = None) -> dict[str, Any]:
        self._state.seconds = self._seconds()
        self._state.save()
        return write_outcome(
            self._folder.path,
            status=status,
            stopped=self._stop,
            config=self._config,
            state=self._state,
            record=self._record,
            referee=self._referee,
            split=self._split,
            champion=finals.champion if finals else self._record.tally.best,
            finals=finals,
            table=self._table,
        )

    def _stopping(self) -> bool:
        """Whether a stop was asked for, which may happen at any moment."""
        return self._stop is not None

    def _without_storage(self, reason: str) -> bool:
        """Show what is waited for; whether to wait on."""
        self._pulse.meanwhile(reason)
        return not self._stopping()

    def _request_stop(self) -> None:
        self._stop = "interrupted"
        self._pulse.phase("stopping after the documents that are being scored")
        log.info("stopping after the documents that are being scored; interrupt again to stop at once")

    def _probe_batch_size(self, ray_address: str | None) -> None:
        """Find out how large batches may be, once in a run: all its scores come from the same."""
        found = probed_batch_size(self._setup, self._known_recipes[0].recipe.to_yaml(), address=ray_address)
        log.info("batch_size: %d, as much as the memory of a worker takes", found)
        self._setup = replace(self._setup, batch_size=found)
        self._state.batch_size = self._state.environment["batch_size"] = found
        self._state.save()

    def _check_environment(self) -> None:
        """Refuse to mix scores that other versions, batch sizes or models may have shifted."""
        now = environment(self._config, self._setup.device, self._provenance, self._setup.batch_size)
        then = self._state.environment = self._state.environment or now
        differing = [
            f"{key}: {then.get(key)} then, {now[key]} now"
            for key in now
            if key != "models" and then.get(key) != now[key]
        ]
        changed = [name for name, sha in now["models"].items() if then.get("models", {}).get(name) != sha]
        differing += [f"models: {', '.join(changed)}: other weights"] if changed else []
        if differing:
            raise InputError(
                f"{self._folder.path}: its scores cannot be compared with new ones ({'; '.join(differing)}); "
                "restore that, or choose another --run-dir"
            )

    # ---------------------------------------------------------------- searching

    def _search(self, pool: Pool, budget: int) -> None:
        """Baselines, then the optimizers' candidates stage by stage, until the budget is spent."""
        self._score_baselines(pool, budget)
        expected = self._checked.expected_trials
        ends = self._stages.ends(expected)
        for stage, end in enumerate(ends):
            proposer = self._stages.proposer(stage)
            of_stage = [t for t in self._record.trials if t.ask.kind == "search" and t.ask.stage == stage]
            self._pulse.stage(proposer.space, of_stage)
            last = stage == len(ends) - 1
            centre = last and expected >= MEAN_BUDGET and proposer.has_mean
            limit = budget - centre if last else min(end, budget)
            left = [job for job in self._scoring.open_jobs("search") if job.ask.stage == stage]
            next_job = partial(self._next_job, pool, proposer, limit, int(centre))
            self._scoring.work(pool, left, next_job, proposer.tell)
            self._scoring.work(pool, self._scoring.open_jobs("mean"))
            if centre and len(self._record.asks) < budget and not self._is_spent(pool):
                self._score_mean(pool, proposer)

    def _score_baselines(self, pool: Pool, budget: int) -> None:
        """Groups of baselines; the first meets all documents, the others race against the best before them.

        Then the parents race each other, till the best of them is known.
        """
        failed = {trial.ask.number for trial in self._record.trials if trial.score is None}
        asked = {ask.name for ask in self._record.baselines.values() if ask.number not in failed}
        for place, group in enumerate(self._baseline_groups()):
            best = best_of(self._record.trials) if place else None
            incumbent = best.ask.number if best else None
            for known in group:
                if known.name not in asked and len(self._record.asks) < budget:
                    self._record.ask(known.kind, known.name, known.recipe.to_yaml(), {}, incumbent=incumbent)
            self._scoring.work(pool, self._scoring.open_jobs("parent", "baseline"))
            self._check_baselines()
            if self._stopping():
                return
        for text in self._referee.silent_tasks():
            warnings.warn(text, stacklevel=2)
            log.warning(text)
        try:
            self._races(pool).parents()
        except FinalsFailed as error:
            raise SearchFailed(str(error)) from error

    def _baseline_groups(self) -> list[list[Baseline]]:
        """The uniform merge, the parents, other recipes; the first two together where parents are needed whole.

        All together where there are workers for all of them: a race saves documents, but everybody waits for those
        who are raced against.
        """
        uniform = [b for b in self._known_recipes if b.name == UNIFORM]
        parents = [b for b in self._known_recipes if b.kind == "parent"]
        others = [b for b in self._known_recipes if b not in uniform and b not in parents]
        if self.workers >= len(self._known_recipes) and not self._config.ordered:
            return [[*parents, *uniform, *others]]
        if self._referee.needs_parents:
            return [[*parents, *uniform], others]
        return [group for group in (uniform, parents, others) if group]

    def _next_job(self, pool: Pool, proposer: Proposer, limit: int, more: int) -> Job | None:
        """The next candidate; None for now, or where the budget has no room for it and ``more`` after it."""
        if len(self._record.asks) >= limit or not proposer.catch_up():
            return None
        if self._is_spent(pool, 1 + more, proposer.unknown):
            return None
        point = proposer.propose()
        if point is None:
            return None
        values = proposer.space.values(point)
        ask = self._record.ask(
            "search",
            f"candidate {len(self._record.asks)}",
            proposer.space.decode(values).to_yaml(),
            values,
            stage=proposer.stage,
            incumbent=proposer.best.ask.number if proposer.best else None,
        )
        proposer.adopt(ask, point)
        if twin := proposer.scored(ask.recipe):
            self._record.copy_scores(twin.ask, ask, "search")
        return self._scoring.job(ask)

    def _score_mean(self, pool: Pool, proposer: Proposer) -> None:
        mean = proposer.mean()
        if mean is not None:
            values = proposer.space.values(mean)
            text = proposer.space.decode(values).to_yaml()
            best = best_of(self._record.trials)
            incumbent = best.ask.number if best else None
            ask = self._record.ask(
                "mean", "the optimizer's mean", text, values, stage=proposer.stage, incumbent=incumbent
            )
            self._scoring.work(pool, [self._scoring.job(ask)])

    def _show(self, trial: Trial) -> None:
        best = self._record.tally.best
        result = describe_result(trial)
        log.info("trial %d (%s): %s; best %s", trial.number, trial.ask.name, result, best and f"{best.score:.4f}")
        self._pulse.trial(trial, best, self._against_parents)
        if trial.ask.kind == "search":
            self._tried += 1
            self._lost += trial.score is None
        self._save_when_due(at_once=trial is best)
        if self._progress:
            self._progress.trial(trial, best, self._record, self._seconds())
        if trial.score is None:
            self._check_failures(trial)

    def _beat(self, running: int, waiting: int) -> None:
        self._pulse.beat(running, waiting)
        self._save_when_due()

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

    def _against_parents(self, trial: Trial) -> dict[str, Interval]:
        """By how much a trial beats each parent on the search documents."""
        if not self._referee.can_judge("search"):
            return {}
        judge, mine = self._referee.judge("search"), self._record.scores(trial.ask, "search")
        found = {ask.name: self._record.scores(ask, "search") for ask in self._record.parents if ask != trial.ask}
        return {name: judge.difference(mine, theirs) for name, theirs in found.items() if mine and theirs}

    def _check_baselines(self) -> None:
        if self._stopping():
            return
        for ask in self._record.parents:
            trial = self._record.result(ask)
            if trial is not None and trial.score is None:
                raise SearchFailed(f"the parent {ask.name} cannot be scored: {trial.cause}")

    def _check_failures(self, last: Trial) -> None:
        """Stop if most candidates of this session fail; what was wrong in an earlier one may have been mended."""
        rate = self._config.failures.max_failure_rate
        if self._lost >= PATIENCE and self._lost > rate * self._tried:
            raise SearchFailed(
                f"{self._lost} of {self._tried} candidates failed, more than failures.max_failure_rate of {rate}; "
                f"the last: {last.cause}"
            )

    def _is_spent(self, pool: Pool, candidates: int = 1, unknown: Collection[Ask] = ()) -> bool:
        """Whether the search is to stop, or more candidates would leave too little for the finals."""
        return self._stopping() or self._budget.is_spent(self._seconds(), pool.size, candidates, unknown)

    # -------------------------------------------------------------------- finals

    def _finals(self, pool: Pool) -> Finals | None:
        """Compare a shortlist on selection documents; report the champion on held-out ones."""
        self._state.spent = self._budget.spent
        finalists = self._budget.finalists()
        self._phase(f"selection: {len(finalists)} finalists")
        try:
            finals = self._races(pool).finals(finalists)
        except FinalsFailed as error:
            raise SearchFailed(str(error)) from error
        if finals is not None:
            self._state.held_out_before = True
        return finals

    def _races(self, pool: Pool) -> Races:
        return Races(self._record, self._referee, partial(self._score_on, pool))

    def _score_on(self, pool: Pool, part: str, asks: Sequence[Ask], documents: DocumentIds | None = None) -> bool:
        """Score candidates on a part of the documents, or on some of it; False if the search is to stop."""
        if part == "holdout":
            self._phase("held-out documents: champion, parents and uniform")
            if self._state.held_out_before and any(self._record.scores(ask, part) is None for ask in asks):
                self._state.holdout_reused = True
                self._state.save()  # later, all of them may be scored
        wanted = documents or getattr(self._split, part)
        left = [(ask, missing(wanted, self._record.scores(ask, part))) for ask in asks]
        self._scoring.work(pool, [Job(ask, part, own) for ask, own in left if own])
        return not self._stopping()

    def _phase(self, text: str) -> None:
        log.info(text)
        self._pulse.phase(text)
        if self._progress:
            self._progress.phase(text)
