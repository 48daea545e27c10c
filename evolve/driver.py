"""The driver: asks an optimizer, hands candidates to workers, records what comes back, picks the champion."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np

from heterosis.errors import InputError
from heterosis.evaluate.scores import Scores
from heterosis.evaluate.splits import Split
from heterosis.evolve.cluster import Outcome, Pool, RayPool
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.dimensions import same_values
from heterosis.evolve.folder import SUMMARY, RunFolder, check_same_config, read_summary
from heterosis.evolve.optimizers import Optimizer, Vector, get_optimizer
from heterosis.evolve.outcome import Finalist, environment, write_outcome
from heterosis.evolve.preflight import Preflight, preflight
from heterosis.evolve.record import Ask, Record, Trial
from heterosis.evolve.space import UNIFORM
from heterosis.evolve.worker import Evaluation, Failure, Setup
from heterosis.merge.executor import available_cores

log = logging.getLogger("heterosis")

ATTEMPTS = 2  # of a candidate whose failure may not be its own
PATIENCE = 8  # failures before their rate says anything


class SearchFailed(RuntimeError):
    """The failure rate, or a parent that cannot be scored, shows that the set-up is wrong."""


class Progress(Protocol):
    """Is told what happens, to show it. The driver's thread waits meanwhile."""

    def begin(self, preflight: Preflight, budget: int, workers: int) -> None: ...

    def stage(self, text: str) -> None: ...

    def trial(self, trial: Trial, best: Trial | None, record: Record, seconds: float) -> None: ...

    def end(self) -> None: ...


def search(
    config: EvolveConfig | str | os.PathLike[str],
    run_dir: str | os.PathLike[str],
    *,
    trials: int | None = None,
    hours: float | None = None,
    workers: int | None = None,
    include_path: Sequence[str | os.PathLike[str]] = (),
    seed: int | None = None,
    storage: str | None = None,
    ray_address: str | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    make_pool: Callable[[Setup, int], Pool] | None = None,
) -> dict[str, Any]:
    """Search for the best merge recipe; with the folder of an earlier run, continue it.

    Args:
        config: A config, or the path of one.
        run_dir: The run folder.
        trials: Candidates in all, baselines included; replaces the config's.
        hours: Time in all, earlier sessions of the run included; replaces the config's.
        workers: Processes that score; replaces the config's.
        include_path: More folders with lm-eval task YAML.
        seed: Replaces the config's.
        storage: Optuna storage URL; None for SQLite in the run folder. It is not written anywhere.
        ray_address: A Ray cluster; None for this machine.
        device: Where the workers' models live.
        progress: Shows what happens.
        make_pool: Another pool of workers than Ray's.

    Returns:
        The summary, as in the folder's ``summary.json``.

    Raises:
        InputError: If something is wrong with the input; then no new folder is left behind.
        SearchFailed: If candidates fail at a rate that shows that the set-up is wrong.
    """
    loaded = config if isinstance(config, EvolveConfig) else EvolveConfig.load(config)
    changes: dict[str, Any] = {"trials": trials, "hours": hours, "workers": workers, "seed": seed}
    if include_path:
        changes["include_path"] = [*loaded.include_path, *(os.fspath(p) for p in include_path)]
    changes = {key: value for key, value in changes.items() if value is not None}
    loaded = loaded.updated(**changes) if changes else loaded
    check_same_config(Path(run_dir), loaded)
    if finished := _finished(Path(run_dir), loaded.trials):
        return finished
    try:
        checked = preflight(loaded)
    except InputError as error:
        origin = "config" if isinstance(config, EvolveConfig) else os.fspath(config)
        raise InputError(*(f"{origin}: {fault}" for fault in error.faults)) from error
    folder = RunFolder(Path(run_dir))
    try:
        with _logging_to(folder.path / "run.log"):
            driver = _Driver(checked, folder, storage, device, progress)
            return driver.run(make_pool, ray_address)
    except InputError:
        folder.discard_if_new()
        raise
    finally:
        folder.close()


def _finished(run_dir: Path, budget: int) -> dict[str, Any] | None:
    """The summary of a run that has spent this budget and picked its champion."""
    if not (run_dir / SUMMARY).exists():
        return None
    summary = read_summary(run_dir)
    spent = summary["trials"]["complete"] + summary["trials"]["failed"]
    return summary if summary["status"] == "finished" and spent >= budget else None


@dataclass(frozen=True)
class _Job:
    """A piece of work: a candidate on one part of the split."""

    ask: Ask
    part: str
    attempt: int = 1


class _Driver:
    def __init__(
        self, checked: Preflight, folder: RunFolder, storage: str | None, device: str, progress: Progress | None
    ) -> None:
        config = self._config = checked.config
        self._checked, self._folder, self._progress = checked, folder, progress
        self._space, self._objective = checked.space, checked.objective
        splits = folder.path / "splits.json"
        if splits.exists():
            self._split = Split.load(splits)
            self._split.check(checked.tasks.fingerprints(), str(splits))
        else:
            self._split = checked.split
        self._state = folder.state()
        self._provenance = self._state["provenance"] = checked.provenance()
        cores = available_cores()
        self.workers = config.workers or max(1, cores // 4)
        threads = max(1, cores // self.workers)
        self._setup = Setup(config, self._split, threads, device, run=str(folder.path.resolve()))
        self._check_environment()
        url = storage or f"sqlite:///{folder.path.resolve() / 'study.db'}"
        self._record = Record(folder.path, url, self._state["study"], self._space.parameters)
        folder.adopt(config)
        self._split.save(splits)
        folder.save_state(self._state)
        self._begun = time.monotonic()
        self._spent_before = float(self._state["seconds"])
        self._stop: str | None = None
        self._points: dict[int, Vector] = {}  # what the optimizer proposed, to the last bit

    # ------------------------------------------------------------------ the run

    def run(self, make_pool: Callable[[Setup, int], Pool] | None, ray_address: str | None) -> dict[str, Any]:
        budget = self._config.trials
        if self._progress:
            self._progress.begin(self._checked, budget, self.workers)
        log.info(
            "search of %d parameters, %d trials, %d workers; run folder %s",
            len(self._space),
            budget,
            self.workers,
            self._folder.path,
        )
        self._save(status="running")
        timeout = self._config.timeout
        try:
            pool = (
                make_pool(self._setup, self.workers)
                if make_pool
                else RayPool(self._setup, self.workers, address=ray_address, timeout=timeout)
            )
            # In this order: Ray sets a handler for SIGTERM as it starts.
            with closing(pool), _stopping_on_signals(self._request_stop):
                self._search(pool, budget)
                finals = None if self._stopping() else self._finals(pool)
        except BaseException:
            self._save(status="stopped")
            raise
        finally:
            if self._progress:
                self._progress.end()
        status = "finished" if finals is not None else "stopped"
        return self._save(status=status, finals=finals)

    def _seconds(self) -> float:
        return self._spent_before + time.monotonic() - self._begun

    def _save(self, status: str, finals: "_Finals | None" = None) -> dict[str, Any]:
        self._state["seconds"] = self._seconds()
        self._folder.save_state(self._state)
        return write_outcome(
            self._folder.path,
            status=status,
            config=self._config,
            record=self._record,
            split=self._split,
            objective=self._objective,
            seconds=self._seconds(),
            environment=self._state["environment"],
            champion=finals.champion if finals else self._best(),
            parents=[ask for ask in self._baselines().values() if ask.kind == "parent"],
            best_parent=finals.best_parent if finals else None,
            uniform=self._baselines().get(UNIFORM),
            provenance=self._provenance,
            finalists=finals.finalists if finals else (),
            holdout_reused=bool(self._state.get("holdout_reused")),
            stopped=self._stop,
        )

    def _stopping(self) -> bool:
        """Whether a stop was asked for, which may happen at any moment."""
        return self._stop is not None

    def _request_stop(self) -> None:
        self._stop = "interrupted"
        log.info("stopping after the candidates that are being scored; interrupt again to stop at once")

    def _check_environment(self) -> None:
        """Refuse to mix scores that other versions, batch sizes or models may have shifted."""
        now = environment(self._config, self._setup.device, self._provenance)
        then = self._state.setdefault("environment", now)
        differing = [f"{key}: {then.get(key)} then, {now[key]} now" for key in now if then.get(key) != now[key]]
        if differing:
            raise InputError(
                f"{self._folder.path}: its scores cannot be compared with new ones ({'; '.join(differing)}); "
                "restore that, or choose another --run-dir"
            )

    # ---------------------------------------------------------------- searching

    def _search(self, pool: Pool, budget: int) -> None:
        """Baselines, then the optimizer's candidates, until the budget is spent."""
        queue = [_Job(ask, "search") for ask in self._record.open_asks]
        failed = {trial.ask.number for trial in self._record.trials if trial.score is None}
        asked = {ask.name for ask in self._baselines().values() if ask.number not in failed}
        for baseline in self._space.baselines():
            if baseline.name not in asked and len(self._record.asks) < budget:
                ask = self._record.ask(baseline.kind, baseline.name, baseline.recipe.to_yaml(), {})
                queue.append(_Job(ask, "search"))
        self._work(pool, queue, self._no_more)
        self._check_baselines()
        optimizer = self._rebuilt_optimizer()
        reserve = 1 if budget >= 20 and optimizer.mean() is not None else 0  # for the optimizer's mean

        def next_job() -> _Job | None:
            if len(self._record.asks) >= budget - reserve or self._out_of_time(pool):
                return None
            point = optimizer.ask()
            values = self._space.values(point)
            recipe = self._space.decode(values).to_yaml()
            ask = self._record.ask("search", f"candidate {len(self._record.asks)}", recipe, values)
            self._points[ask.number] = point
            return _Job(ask, "search")

        self._work(pool, [], next_job, lambda trial: self._inform(optimizer, trial))
        if reserve and not self._stopping() and len(self._record.asks) < budget and not self._out_of_time(pool):
            mean = optimizer.mean()
            if mean is not None:
                values = self._space.values(mean)
                text = self._space.decode(values).to_yaml()
                ask = self._record.ask("mean", "the optimizer's mean", text, values)
                self._work(pool, [_Job(ask, "search")], self._no_more)

    @staticmethod
    def _no_more() -> None:
        return None

    def _work(
        self,
        pool: Pool,
        queue: list[_Job],
        next_job: Callable[[], _Job | None],
        on_trial: Callable[[Trial], None] = lambda trial: None,
    ) -> None:
        """Keep the workers busy with a queue, then with what ``next_job`` gives, until both run dry."""
        queue = [job for job in queue if not self._told_from_scores(job, on_trial)]
        running = 0
        while True:
            while pool.free and not self._stopping():
                job = queue.pop(0) if queue else next_job()
                if job is None:
                    break
                pool.submit(job, job.ask.recipe, getattr(self._split, job.part))
                running += 1
            if not running:
                return
            for key, outcome in pool.wait(timeout=0.5):
                assert isinstance(key, _Job)
                running -= 1
                if isinstance(outcome, Failure) and outcome.retry and key.attempt < ATTEMPTS:
                    log.warning("%s: %s; trying again", key.ask.name, outcome.cause)
                    queue.append(_Job(key.ask, key.part, key.attempt + 1))
                    continue
                trial = self._take(key, outcome)
                if trial:
                    on_trial(trial)

    def _told_from_scores(self, job: _Job, on_trial: Callable[[Trial], None]) -> bool:
        """Finish a trial whose scores were on the disk when an earlier session ended."""
        scores = self._record.scores(job.ask, job.part)
        if scores is None or job.part != "search":
            return False
        on_trial(self._tell(job.ask, scores, {}))
        return True

    def _take(self, job: _Job, outcome: Outcome) -> Trial | None:
        """Record what a worker gave. Returns the trial if the job was one on search documents."""
        if isinstance(outcome, Evaluation):
            self._record.add_scores(job.ask, job.part, outcome.scores)
            if job.part != "search":
                return None
            return self._tell(job.ask, outcome.scores, outcome.seconds)
        log.warning("%s failed on %s documents: %s", job.ask.name, job.part, outcome.cause)
        if job.part != "search":
            return None
        trial = self._record.tell(job.ask, None, cause=outcome.cause)
        self._show(trial)
        self._check_failures()
        return trial

    def _tell(self, ask: Ask, scores: Scores, seconds: Mapping[str, float]) -> Trial:
        trial = self._record.tell(ask, self._objective.score(scores), seconds=seconds)
        self._show(trial)
        return trial

    def _show(self, trial: Trial) -> None:
        best = self._best()
        result = f"score {trial.score:.4f}" if trial.score is not None else f"failed: {trial.cause}"
        log.info("trial %d (%s): %s; best %s", trial.number, trial.ask.name, result, best and f"{best.score:.4f}")
        self._save(status="running")
        if self._progress:
            self._progress.trial(trial, best, self._record, self._seconds())

    def _best(self) -> Trial | None:
        """The trial with the best search score; of equals, the first."""
        complete = [t for t in self._record.trials if t.score is not None]
        return max(complete, key=lambda t: (t.score, -t.number), default=None)

    def _baselines(self) -> dict[str, Ask]:
        """The last ask of each parent and baseline, by name; one that failed is asked again in a later session."""
        asks = (ask for _, ask in sorted(self._record.asks.items()))
        return {ask.name: ask for ask in asks if ask.kind in ("parent", "baseline")}

    def _check_baselines(self) -> None:
        if self._stopping():
            return
        latest = self._baselines()
        for trial in self._record.trials:
            if trial.ask.kind == "parent" and trial.score is None and trial.ask == latest[trial.ask.name]:
                raise SearchFailed(f"the parent {trial.ask.name} cannot be scored: {trial.cause}")

    def _check_failures(self) -> None:
        tried = [t for t in self._record.trials if t.ask.kind == "search"]
        failed = [t for t in tried if t.score is None]
        rate = self._config.failures.max_failure_rate
        if len(failed) >= PATIENCE and len(failed) > rate * len(tried):
            raise SearchFailed(
                f"{len(failed)} of {len(tried)} candidates failed, more than failures.max_failure_rate of {rate}; "
                f"the last: {failed[-1].cause}"
            )

    def _out_of_time(self, pool: Pool) -> bool:
        """Whether another candidate would leave too little of ``hours`` for the finals."""
        if self._stopping() or self._config.hours is None:
            return self._stopping()
        times = [sum(t.seconds.values()) for t in self._record.trials if t.seconds]
        if not times:
            return self._seconds() > self._config.hours * 3600
        candidate = float(np.median(times))
        sizes = {
            part: sum(map(len, getattr(self._split, part).values())) for part in ("search", "selection", "holdout")
        }
        parents = len(self._config.genome.models) + 1
        documents = (parents + self._config.finalists) * sizes["selection"] + (parents + 1) * sizes["holdout"]
        finals = candidate * documents / max(1, sizes["search"]) / pool.size
        return self._seconds() + candidate + 1.2 * finals > self._config.hours * 3600

    # ----------------------------------------------------------------- optimizer

    def _rebuilt_optimizer(self) -> Optimizer:
        """The optimizer as it was after the recorded asks and tells."""
        settings = self._config.optimizer
        optimizer = get_optimizer(settings.name)(
            axes=self._space.axes,
            objectives=1,
            initial=self._start(),
            seed=self._config.seed,
            sigma0=settings.sigma0,
            popsize=settings.popsize,
            budget=self._config.trials,
        )
        told = 0
        for _, ask in sorted(self._record.asks.items()):
            if ask.kind != "search":
                continue
            for trial in self._record.trials[told : ask.after]:
                self._inform(optimizer, trial)
            told = max(told, ask.after)
            self._points[ask.number] = optimizer.ask()
            proposed = self._space.values(self._points[ask.number])
            if not same_values(proposed, ask.values):
                log.warning(
                    "%s: the optimizer would propose another point today; going on from the record", ask.name
                )
                self._points[ask.number] = self._space.encode(ask.values)
        for trial in self._record.trials[told:]:
            self._inform(optimizer, trial)
        return optimizer

    def _inform(self, optimizer: Optimizer, trial: Trial) -> None:
        if trial.ask.kind == "search":
            losses = None if trial.score is None else [-trial.score]
            optimizer.tell(self._points[trial.ask.number], losses)

    def _start(self) -> Vector:
        """The best baseline if it is clearly better than the uniform merge, else the space's own start.

        Pulled off the faces of the cube, where a search distribution would be cut in half. Only what was known
        when the first candidate was asked counts, so that a resumed run starts from the same point.
        """
        start = self._space.initial
        known = next((ask.after for ask in self._record.asks.values() if ask.kind == "search"), None)
        trials = [
            t for t in self._record.trials[:known] if t.ask.kind in ("parent", "baseline") and t.score is not None
        ]
        best = max(trials, key=lambda t: t.score or 0.0, default=None)
        uniform = next((t for t in trials if t.ask.kind == "baseline"), None)
        if best is not None and uniform is not None:
            values = next((b.values for b in self._space.baselines() if b.name == best.ask.name), None)
            mine, other = (self._record.scores(t.ask, "search") for t in (best, uniform))
            if values is not None and mine and other and self._objective.difference(mine, other).low > 0:
                start = self._space.encode(values)
        return np.clip(start, 0.1, 0.9)

    # -------------------------------------------------------------------- finals

    def _finals(self, pool: Pool) -> "_Finals | None":
        """Compare a frozen shortlist on selection documents; report the champion on held-out ones."""
        baselines = [
            t for t in self._record.trials if t.ask.kind in ("parent", "baseline") and t.score is not None
        ]
        candidates = sorted(
            (t for t in self._record.trials if t.ask.kind in ("search", "mean") and t.score is not None),
            key=lambda t: (-(t.score or 0.0), t.number),
        )[: self._config.finalists]
        shortlist = [*candidates, *baselines]
        if not shortlist:
            raise SearchFailed("no candidate could be scored")
        self._stage(f"selection: {len(shortlist)} finalists")
        self._score_on(pool, [t.ask for t in shortlist], "selection")
        if self._stopping():
            return None
        self._require(baselines, "selection")
        finalists = [f for t in shortlist if (f := self._finalist(t, "selection"))]
        ranked = sorted(finalists, key=lambda f: (-f.selection, -(f.trial.score or 0.0)))
        if not ranked:
            raise SearchFailed("no finalist could be scored on the selection documents; see run.log")
        champion = ranked[0].trial
        parents = [f for f in ranked if f.trial.ask.kind == "parent"]
        best_parent = parents[0].trial if parents else champion
        reported = {t.ask.number: t.ask for t in (champion, *baselines)}
        self._stage("held-out documents: champion, parents and uniform")
        if self._state.get("held_out_before") and self._record.scores(champion.ask, "holdout") is None:
            self._state["holdout_reused"] = True
        self._score_on(pool, list(reported.values()), "holdout")
        if self._stopping():
            return None
        self._require([champion, *baselines], "holdout")
        self._state["held_out_before"] = True
        return _Finals(champion, best_parent, tuple(ranked))

    def _require(self, trials: Sequence[Trial], part: str) -> None:
        """Refuse to report on what could not be scored: a comparison without it would flatter the champion."""
        if lost := [t.ask.name for t in trials if self._record.scores(t.ask, part) is None]:
            raise SearchFailed(
                f"{', '.join(lost)} could not be scored on the {part} documents (run.log says why); "
                "the same command tries again"
            )

    def _finalist(self, trial: Trial, part: str) -> Finalist | None:
        scores = self._record.scores(trial.ask, part)
        return Finalist(trial, self._objective.score(scores)) if scores else None

    def _score_on(self, pool: Pool, asks: Sequence[Ask], part: str) -> None:
        jobs = [_Job(ask, part) for ask in asks if self._record.scores(ask, part) is None]
        self._work(pool, jobs, self._no_more)

    def _stage(self, text: str) -> None:
        log.info(text)
        if self._progress:
            self._progress.stage(text)


@dataclass(frozen=True)
class _Finals:
    champion: Trial
    best_parent: Trial
    finalists: tuple[Finalist, ...]


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


@contextmanager
def _stopping_on_signals(request_stop: Callable[[], None]) -> Iterator[None]:
    """The first SIGINT or SIGTERM asks for a clean stop, the second raises KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        request_stop()

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
