"""How busy workers are whose candidates take very different times: threads, or Ray's actors, that sleep."""

import heapq
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_bench.coverage import formula_config, formula_place

from heterosis.evolve import search
from heterosis.evolve.workers.cluster import RayPool
from heterosis.evolve.workers.dispatch import Job
from heterosis.evolve.workers.pool import DocumentIds, Evaluation, Outcome, Pool, Setup

from .sleeper import Sleeper

# A machine with few cores starts many workers a few at a time, and only those that are used.
SETTINGS = {
    "RAY_worker_maximum_startup_concurrency": "4",
    "RAY_worker_register_timeout_seconds": "600",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}


@dataclass(frozen=True)
class Piece:
    """A candidate that was scored: when it was handed out and came back, and the seconds that its worker took."""

    begun: float
    ended: float
    seconds: float


class ThreadPool:
    """Sleepers as threads of this process."""

    def __init__(self, setup: Setup, workers: int) -> None:
        self.size, self._sleeper = workers, Sleeper(setup)
        self._executor = ThreadPoolExecutor(workers)
        self._running: dict[Future[Outcome], object] = {}

    @property
    def free(self) -> int:
        return self.size - len(self._running)

    def submit(self, key: object, recipe: str, documents: DocumentIds) -> None:
        self._running[self._executor.submit(self._sleeper.score, recipe, documents)] = key

    def wait(self, timeout: float) -> list[tuple[object, Outcome]]:
        done, _ = wait(self._running, timeout, FIRST_COMPLETED)
        return [(self._running.pop(future), future.result()) for future in done]

    def close(self) -> None:
        self._executor.shutdown()


class WatchedPool:
    """Another pool, with notes of what it does. It is used once all of its workers have started."""

    def __init__(self, pool: Pool) -> None:
        self._pool, self.size = pool, pool.size
        self._begun: dict[object, float] = {}
        self._started = False
        self.pieces: list[Piece] = []

    @property
    def free(self) -> int:
        self._started = self._started or self._pool.free == self.size
        return self._pool.free if self._started else 0

    def submit(self, key: Any, recipe: str, documents: DocumentIds) -> None:
        self._begun[id(key)] = time.monotonic()
        self._pool.submit(key, recipe, documents)

    def wait(self, timeout: float) -> list[tuple[object, Outcome]]:
        finished = self._pool.wait(timeout)
        for key, outcome in finished:
            begun = self._begun.pop(id(key))
            # Without the optimizer's mean, which is asked for when all others have ended.
            if (
                isinstance(outcome, Evaluation)
                and isinstance(key, Job)
                and key.part == "search"
                and key.ask.kind != "mean"
            ):
                self.pieces.append(Piece(begun, time.monotonic(), sum(outcome.seconds.values())))
        return finished

    def close(self) -> None:
        self._pool.close()


def measure(optimizer: str, trials: int, workers: int, folder: Path, *, actors: bool) -> dict[str, Any]:
    """One search; the share of the workers' time that was busy, and what a barrier makes of the same times.

    Args:
        optimizer: Its name.
        trials: Of the search.
        workers: How many.
        folder: Of the models for the preflight.
        actors: Whether workers are Ray's actors; else they are threads.
    """
    os.environ.update(SETTINGS)
    pools: list[WatchedPool] = []

    def watched(setup: Setup, workers: int) -> WatchedPool:
        pools.append(
            WatchedPool(RayPool(setup, workers, worker=Sleeper) if actors else ThreadPool(setup, workers))
        )
        return pools[0]

    changes = {"merge_method": "ties", "optimizer": optimizer, "racing": False, "workers": workers, "finalists": 1}
    config = formula_config(formula_place(folder), 0, changes | {"trials": trials})
    with tempfile.TemporaryDirectory(prefix="heterosis-driver-") as name:
        search(config, Path(name) / "run", make_pool=watched)
    pieces = sorted(pools[0].pieces, key=lambda piece: piece.begun)
    return {
        "what": "utilisation",
        "optimizer": optimizer,
        "trials": trials,
        "workers": workers,
        "actors": actors,
    } | shares(pieces, workers)


def shares(pieces: Sequence[Piece], workers: int) -> dict[str, float]:
    """Shares of the workers' time that were busy.

    ``searching`` is from when all have work for the first time until the last candidate is handed out, ``whole``
    from the first candidate to the end of the last one. The others are computed from the same times, in the same
    order: ``ideal`` is ``whole`` with a driver that takes no time, ``barrier`` that of generations of as many
    candidates as there are workers, none of which begins before the one before it has ended.
    """
    full = next(
        p.begun for p in pieces if sum(q.begun <= p.begun < q.ended for q in pieces) >= min(workers, len(pieces))
    )
    times = [piece.seconds for piece in pieces]
    return {
        "searching": round(busy_share(pieces, workers, full, pieces[-1].begun), 4),
        "whole": round(busy_share(pieces, workers, pieces[0].begun, max(p.ended for p in pieces)), 4),
        "ideal": round(ideal_share(times, workers), 4),
        "barrier": round(barrier_share(times, workers), 4),
        "mean_seconds": round(sum(times) / len(times), 3),
        "longest_seconds": round(max(times), 3),
        "handing_ms": round(1000 * sum(p.ended - p.begun - p.seconds for p in pieces) / len(pieces), 2),
    }


def busy_share(pieces: Sequence[Piece], workers: int, begun: float, ended: float) -> float:
    """The share of the workers' time between two moments in which they worked."""
    spans = ((max(begun, p.ended - p.seconds), min(ended, p.ended)) for p in pieces)
    return sum(max(0.0, last - first) for first, last in spans) / (workers * (ended - begun))


def ideal_share(times: Sequence[float], workers: int) -> float:
    """The same over all, if every worker is given the next candidate at once."""
    ends = [0.0] * workers
    for seconds in times:
        heapq.heapreplace(ends, ends[0] + seconds)
    return sum(times) / (workers * max(ends))


def barrier_share(times: Sequence[float], workers: int) -> float:
    """The same over all, if all wait for the slowest of each generation."""
    generations = [times[i : i + workers] for i in range(0, len(times), workers)]
    return sum(times) / (workers * sum(map(max, generations)))


def utilisation_table(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield (
        "| optimizer | workers | candidates | mean s | longest s | busy, searching | busy, whole | "
        "whole, if the driver took no time | whole, with a barrier |"
    )
    yield "| --- " + "| ---: " * 8 + "|"
    for line in lines:
        percent = " | ".join(f"{line[key]:.1%}" for key in ("searching", "whole", "ideal", "barrier"))
        times = f"{line['mean_seconds']:.1f} | {line['longest_seconds']:.1f}"
        yield f"| {line['optimizer']} | {line['workers']} | {line['trials']} | {times} | {percent} |"
