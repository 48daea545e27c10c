"""Workers as Ray actors: started, given work as they fall free, replaced when they die."""

import logging
import math
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError

from heterosis.errors import InputError
from heterosis.evaluate.room import sweep
from heterosis.evolve.faults import RunStopped
from heterosis.evolve.signals import keeping_handlers
from heterosis.evolve.workers.pool import DocumentIds, Evaluation, Failure, Outcome, Setup
from heterosis.evolve.workers.timeouts import TimeLimit
from heterosis.evolve.workers.worker import Worker
from heterosis.merge.methods import check_importable
from heterosis.merge.statistics.reductions import Reductions, node_folder
from heterosis.words import first_line

log = logging.getLogger("heterosis")

START_SECONDS = 300.0  # for the imports, the model, the requests and the compiler
START_ATTEMPTS = 3  # of all workers together, beyond one for each, in a row
CONNECT_SECONDS = 10.0  # to the head of a cluster
ALONE_SECONDS = 1800.0  # without any worker
UNREACHABLE = Failure("the connection to its worker was lost", retry=True, blameless=True)
OUT_OF_MEMORY = "out of memory: Ray ended the worker; fewer workers, or a smaller batch_size, take less"


@dataclass
class _Running:
    key: object
    actor: Any
    documents: int
    since: float
    doubtful: bool = False  # whether its worker was out of reach, and was asked whether it lives


class RayPool:
    """One actor for each worker.

    A worker is given work once it has started, and has found the models of its machine to be the right ones. One
    that dies is replaced, wherever Ray has room, now or when a node joins.

    Args:
        setup: What the workers need to know.
        workers: How many.
        address: Of a running cluster; None starts Ray on this machine.
        timeout: Seconds that a candidate may take on the search documents; None to learn it. A worker's first work
            gets `START_SECONDS` more.
        worker: What an actor is made of: the real one, or another that scores in its way.
    """

    def __init__(
        self,
        setup: Setup,
        workers: int,
        *,
        address: str | None = None,
        timeout: float | None = None,
        worker: type[Worker] = Worker,
    ) -> None:
        check_importable(setup.methods)
        self._limit = TimeLimit(setup.split.size("search"), timeout)
        self._started = not ray.is_initialized()
        if self._started:
            _start(address, workers, setup)
        self._worker, self._setup = _actor(setup, worker), setup
        sweep()
        self._starting: dict[Any, Any] = {}  # what they find of the models -> workers
        self._free: list[Any] = []
        self._running: dict[Any, _Running] = {}
        self._warm: set[Any] = set()
        self._last: dict[Any, str] = {}  # the recipe that each worker was given last
        self._missing, self._failed_starts, self._start_at = workers, 0, 0.0
        self._left_out: str | None = None  # why a worker is not used
        self._seen = time.monotonic()  # when there was a worker last
        self.size = workers
        self._start_missing()

    @property
    def free(self) -> int:
        return len(self._free)

    def submit(self, key: object, recipe: str, documents: DocumentIds) -> None:
        # A candidate that goes on with more documents is still in some worker's memory.
        actor = next((free for free in self._free if self._last.get(free) == recipe), self._free[-1])
        self._free.remove(actor)
        self._last[actor] = recipe
        future = actor.score.remote(recipe, documents)
        self._running[future] = _Running(key, actor, sum(map(len, documents.values())), time.monotonic())

    def wait(self, timeout: float) -> list[tuple[object, Outcome]]:
        self._start_missing()
        futures = [*self._running, *self._starting]
        if not futures:
            time.sleep(timeout)
        ready = ray.wait(futures, timeout=timeout)[0] if futures else []
        finished: list[tuple[object, Outcome]] = []
        for future in ready:
            if future in self._starting:
                self._take_in(future)
                continue
            running = self._running.pop(future)
            outcome, alive = _result(future)
            if outcome is UNREACHABLE and not running.doubtful:
                # Ray finds out whether the worker or its node is gone, or neither, and answers this then.
                self._running[running.actor.ping.remote()] = replace(running, doubtful=True)
                continue
            outcome = outcome or UNREACHABLE  # it lives, but what it did is lost
            if isinstance(outcome, Evaluation) and running.actor in self._warm:
                seconds = time.monotonic() - running.since
                self._limit.learn(running.documents, seconds, outcome.seconds.get("merge", 0.0))
            if alive:
                self._warm.add(running.actor)
                self._free.append(running.actor)
            else:
                self._end(running.actor)
            finished.append((running.key, outcome))
        finished += self._overdue()
        self._check_that_some_work()
        return finished

    def _overdue(self) -> list[tuple[object, Outcome]]:
        """Work that takes too long; its workers are replaced."""
        found: list[tuple[object, Outcome]] = []
        for future, running in list(self._running.items()):
            limit = self._limit(running.documents) + (0.0 if running.actor in self._warm else START_SECONDS)
            if time.monotonic() - running.since > limit:
                del self._running[future]
                self._end(running.actor)
                cause = f"took longer than the time limit of {limit:.0f} s"
                found.append((running.key, Failure(cause, retry=True)))
        return found

    def _start_missing(self) -> None:
        if self._missing and time.monotonic() >= self._start_at:
            for _ in range(self._missing):
                actor = self._worker.remote(self._setup)
                self._starting[actor.check.remote()] = actor
            self._missing = 0

    def _take_in(self, future: Any) -> None:
        """Use a worker that has started, unless it did not, or its machine has other models."""
        actor = self._starting.pop(future)
        outcome, alive = _result(future)
        if outcome is None:
            self._failed_starts = 0
            self._free.append(actor)
        elif alive:
            ray.kill(actor)
            self._left_out = outcome.cause if isinstance(outcome, Failure) else ""
            self.size -= 1
            log.warning("a worker is left out: %s", self._left_out)
        else:
            assert isinstance(outcome, Failure)
            self._end(actor)
            if not outcome.blameless:
                self._failed_starts += 1
                self._start_at = time.monotonic() + min(60.0, 2.0**self._failed_starts)
                log.warning("a worker did not start: %s", outcome.cause)
                if self._failed_starts >= START_ATTEMPTS + self.size:
                    raise RunStopped(f"workers: none can be started: {outcome.cause}; see Ray's logs")

    def _check_that_some_work(self) -> None:
        now = time.monotonic()
        if self._free or self._running:
            self._seen = now
        elif not self._starting and not self._missing:
            raise RunStopped(f"workers: none can be used: {self._left_out}")
        elif now - self._seen > ALONE_SECONDS:
            raise RunStopped(
                f"workers: there has been none for {ALONE_SECONDS / 60:.0f} min: the Ray cluster has no room for "
                f"{_words(1, self._setup)}; see to it, then the same command continues"
            )

    def _end(self, actor: Any) -> None:
        """End a worker, if it has not ended; another will take its place."""
        ray.kill(actor)
        self._warm.discard(actor)
        self._last.pop(actor, None)
        self._missing += 1

    def close(self) -> None:
        running = (running.actor for running in self._running.values())
        with suppress(RayError):  # a cluster that is gone
            for actor in (*self._free, *running, *self._starting.values()):
                ray.kill(actor)
        for known in (self._free, self._running, self._starting):
            known.clear()
        if self._started:
            ray.shutdown()
        if self._setup.run:
            _remove_shared(node_folder(self._setup.run))
        sweep()


def probed_batch_size(setup: Setup, recipe: str, *, address: str | None = None) -> int:
    """How large a batch a worker can score beside a recipe's model, asked of one worker.

    Args:
        setup: What the workers need to know.
        recipe: Of any candidate.
        address: Of a running cluster; None starts Ray on this machine, and ends it again.

    Raises:
        InputError: If not even one request fits, or the recipe cannot be scored.
    """
    check_importable(setup.methods)
    started = not ray.is_initialized()
    if started:
        _start(address, 1, setup)
    try:
        worker = _actor(setup).remote(setup)
        found, alive = _result(worker.probe.remote(recipe))
        if alive:
            ray.kill(worker)
    finally:
        if started:
            ray.shutdown()
    if isinstance(found, Failure):
        raise InputError(f"batch_size: auto: {found.cause}; write a number, or take a larger device")
    return int(found)


def _actor(setup: Setup, worker: type[Worker] = Worker) -> Any:
    """A worker, as Ray makes them."""
    environment = {"env_vars": {"OMP_NUM_THREADS": str(setup.threads), "TOKENIZERS_PARALLELISM": "false"}}
    # One that dies is replaced by the pool and not restarted by Ray, which meanwhile fails the next one's work.
    actor = ray.remote(num_cpus=setup.cpus, num_gpus=setup.gpus, max_restarts=0, max_task_retries=0)(worker)
    return actor.options(runtime_env=environment)


def _remove_shared(folder: Path) -> None:
    """Remove what the workers of this machine shared, once they have ended; elsewhere it stays for the next."""
    for _ in range(20):
        Reductions(folder).close()
        if not folder.exists():
            break
        time.sleep(0.1)


def _check_address(address: str) -> None:
    """Refuse an address where nobody answers, for which Ray would wait many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():  # auto, local
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"--ray-address: nobody answers at {address}: {error}; check it, and that the head runs (ray status)"
        ) from error


def _start(address: str | None, workers: int, setup: Setup) -> None:
    options: dict[str, Any] = {"address": address or "local"}  # without one, Ray would join any cluster it finds
    if address is None:
        # The object store carries genomes and scores only; its smallest size is enough.
        options |= {
            "num_cpus": math.ceil(workers * setup.cpus),
            "include_dashboard": False,
            "object_store_memory": 80 * 1024**2,
        }
    else:
        _check_address(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        with keeping_handlers():
            ray.init(logging_level="error", log_to_driver=False, configure_logging=True, **options)
    except (ConnectionError, RayError, ValueError) as error:
        where = address or "this machine"
        raise InputError(f"--ray-address: no Ray at {where}: {first_line(error)}") from error
    there = ray.cluster_resources()
    needed = {kind: each for kind, each in (("CPU", setup.cpus), ("GPU", setup.gpus)) if each}
    fitting = min((int(there.get(kind, 0.0) / each) for kind, each in needed.items()), default=workers)
    # A cluster without any yet: its nodes are still to come, from an autoscaler or after a loss.
    awaited = address is not None and not all(there.get(kind) for kind in needed)
    if fitting < (1 if address else workers) and not awaited:
        ray.shutdown()
        has = _words(1, Setup(setup.config, setup.split, cpus=there.get("CPU", 0.0), gpus=there.get("GPU", 0.0)))
        raise InputError(
            f"--workers: the workers need {_words(workers, setup)}, but the Ray cluster has {has}; take fewer "
            "workers, or smaller ones (cpus_per_worker, gpus_per_worker)"
        )
    if fitting < workers:
        log.warning("there is room for %d workers of %d now; the others start when nodes join", fitting, workers)


def _words(workers: int, setup: Setup) -> str:
    """What so many workers take."""
    cpus, gpus = f"{workers * setup.cpus:g} CPUs", f"{workers * setup.gpus:g} GPUs"
    return f"{cpus} and {gpus}" if setup.gpus else cpus


def _result(future: Any) -> tuple[Any, bool]:
    """What came of a piece of work, and whether its worker lives."""
    try:
        return ray.get(future), True
    except OutOfMemoryError:
        return Failure(OUT_OF_MEMORY, retry=True), False
    except ActorUnavailableError:
        return UNREACHABLE, False
    except RayActorError as error:
        text = str(error)
        if "running low on memory" in text:
            return Failure(OUT_OF_MEMORY, retry=True), False
        lost = error.preempted or "node has died" in text or "node is dead" in text
        what = "its node was lost" if lost else "the worker died"
        return Failure(f"{what}: {_last_line(error)}", retry=True, blameless=lost), False
    except RayError as error:
        return Failure(f"{type(error).__name__}: {_last_line(error)}"), True


def _last_line(error: RayError) -> str:
    """Where Ray puts the cause; the kind of an error that says nothing."""
    return next(reversed(str(error).strip().splitlines()), type(error).__name__).strip()
