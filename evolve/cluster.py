"""Workers as Ray actors: started, given work as they fall free, replaced when they die."""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayError

from heterosis.errors import InputError
from heterosis.evolve.worker import DocumentIds, Evaluation, Failure, Setup, Worker
from heterosis.merge.reductions import Reductions, node_folder

Outcome = Evaluation | Failure

START_SECONDS = 300.0  # for the imports, the model, the requests and the compiler


class Pool(Protocol):
    """Scores recipes on any number of workers."""

    @property
    def size(self) -> int: ...

    @property
    def free(self) -> int: ...

    def submit(self, key: object, recipe: str, documents: DocumentIds) -> None:
        """Give work to a free worker."""
        ...

    def wait(self, timeout: float) -> list[tuple[object, Outcome]]:
        """Work that was finished, or given up; waits for some as long as ``timeout`` seconds."""
        ...

    def close(self) -> None: ...


@dataclass
class _Running:
    key: object
    actor: Any
    since: float
    limit: float


class RayPool:
    """One actor for each worker.

    Args:
        setup: What the workers need to know.
        workers: How many.
        address: Of a running cluster; None starts Ray on this machine.
        timeout: Seconds that a candidate may take on the search documents; None for no limit. Other parts get as
            much for each document, and a worker's first work gets `START_SECONDS` more.
    """

    def __init__(
        self, setup: Setup, workers: int, *, address: str | None = None, timeout: float | None = None
    ) -> None:
        self._timeout = timeout
        self._started = not ray.is_initialized()
        if self._started:
            _start(address, workers * setup.threads)
        gpus = 1 if setup.device.startswith("cuda") else 0
        environment = {"env_vars": {"OMP_NUM_THREADS": str(setup.threads), "TOKENIZERS_PARALLELISM": "false"}}
        # A worker that dies is replaced here and not restarted by Ray, which meanwhile fails the next one's work.
        actor = ray.remote(num_cpus=setup.threads, num_gpus=gpus, max_restarts=0, max_task_retries=0)(Worker)
        self._worker, self._setup = actor.options(runtime_env=environment), setup
        self._free = [self._worker.remote(setup) for _ in range(workers)]
        self._warm: set[Any] = set()
        self._last: dict[Any, str] = {}  # the recipe that each worker was given last
        self._running: dict[Any, _Running] = {}
        self.size = workers

    @property
    def free(self) -> int:
        return len(self._free)

    def submit(self, key: object, recipe: str, documents: DocumentIds) -> None:
        # A candidate that goes on with more documents is still in some worker's memory.
        actor = next((free for free in self._free if self._last.get(free) == recipe), self._free[-1])
        self._free.remove(actor)
        self._last[actor] = recipe
        limit = math.inf
        if self._timeout:
            sizes = [sum(map(len, part.values())) for part in (documents, self._setup.split.search)]
            limit = self._timeout * max(1.0, sizes[0] / max(1, sizes[1]))
            limit += 0.0 if actor in self._warm else START_SECONDS
        self._warm.add(actor)
        self._running[actor.score.remote(recipe, documents)] = _Running(key, actor, time.monotonic(), limit)

    def wait(self, timeout: float) -> list[tuple[object, Outcome]]:
        finished: list[tuple[object, Outcome]] = []
        ready, _ = ray.wait(list(self._running), timeout=timeout) if self._running else ([], [])
        for future in ready:
            running = self._running.pop(future)
            outcome, alive = _result(future)
            self._free.append(running.actor if alive else self._replaced(running.actor))
            finished.append((running.key, outcome))
        for future, running in list(self._running.items()):
            if time.monotonic() - running.since > running.limit:
                del self._running[future]
                self._free.append(self._replaced(running.actor))
                finished.append(
                    (running.key, Failure(f"took longer than the time limit of {running.limit:.0f} s"))
                )
        return finished

    def _replaced(self, actor: Any) -> Any:
        ray.kill(actor)
        self._warm.discard(actor)
        self._last.pop(actor, None)
        return self._worker.remote(self._setup)

    def close(self) -> None:
        for actor in (*self._free, *(running.actor for running in self._running.values())):
            ray.kill(actor)
        self._free.clear()
        self._running.clear()
        if self._started:
            ray.shutdown()
        if self._setup.run:
            _remove_shared(node_folder(self._setup.run))


def _remove_shared(folder: Path) -> None:
    """Remove what the workers of this machine shared, once they have ended; elsewhere it stays for the next."""
    for _ in range(20):
        Reductions(folder).close()
        if not folder.exists():
            break
        time.sleep(0.1)


def _start(address: str | None, cpus: int) -> None:
    options: dict[str, Any] = {"address": address or "local"}  # without one, Ray would join any cluster it finds
    if address is None:
        # The object store carries genomes and scores only; its smallest size is enough.
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": 80 * 1024**2}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        ray.init(logging_level="error", log_to_driver=False, configure_logging=True, **options)
    except (ConnectionError, RayError, ValueError) as error:
        where = address or "this machine"
        raise InputError(f"--ray-address: no Ray at {where}: {str(error).splitlines()[0]}") from error
    available = ray.cluster_resources().get("CPU", 0)
    if available < cpus:
        ray.shutdown()
        raise InputError(f"--workers: the workers need {cpus} CPUs, but the Ray cluster has {available:.0f}")


def _result(future: Any) -> tuple[Outcome, bool]:
    """What came of a piece of work, and whether its worker lives."""
    try:
        return ray.get(future), True
    except OutOfMemoryError:
        return Failure("out of memory: Ray ended the worker", retry=True), False
    except RayActorError as error:
        reason = str(error).strip().splitlines()
        cause = reason[-1].strip() if reason else type(error).__name__
        return Failure(f"the worker died: {cause}", retry=True), False
    except RayError as error:
        return Failure(f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"), True
