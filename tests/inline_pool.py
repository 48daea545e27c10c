"""A pool for the driver that scores in this process, with the real thing's worker."""

from typing import Any

from heterosis.evolve.workers.pool import Setup
from heterosis.evolve.workers.worker import Worker


class InlinePool:
    """One real worker in this process."""

    def __init__(self, setup: Setup, workers: int, **_: Any) -> None:
        self.size, self._worker, self._done = 1, Worker(setup), []

    @property
    def free(self) -> int:
        return 1 - len(self._done)

    def submit(self, key: object, recipe: str, documents: Any) -> None:
        self._done.append((key, self._worker.score(recipe, documents)))

    def wait(self, timeout: float) -> Any:
        return [self._done.pop()]

    def close(self) -> None: ...
