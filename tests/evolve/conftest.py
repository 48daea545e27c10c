"""A pool of workers that scores by formula, so that a whole search takes a second."""

import inspect
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from heterosis.evaluate.answers import Answer
from heterosis.evaluate.scores import PROBABILITY, Scores
from heterosis.evolve.record.trial import Ask
from heterosis.evolve.workers.pool import Evaluation, Failure, Setup

Judge = Callable[..., float | Failure]  # of an ask, the part of the split, and where there are several, the task
METRICS = {"toy_choice": "acc,none", "toy_generate": "crc,none"}


def hill(ask: Ask, part: str) -> float:
    """Best where every weight is 0.7; parents and the uniform merge lie lower."""
    if ask.kind == "parent":
        return 0.3
    if ask.kind == "baseline":
        return 0.4
    return 1 - sum((v - 0.7) ** 2 for k, v in ask.values.items() if k.startswith("weight"))


class Crash(BaseException):
    """What a test raises where the driver's process would be killed."""


class FakePool:
    """Scores one candidate at a time, in the order of submission, and says that as many documents as there are in
    the search take ``seconds``.

    Attributes:
        asked: What was submitted: (number of the ask, part of the split, recipe).
    """

    def __init__(
        self,
        setup: Setup,
        workers: int,
        judge: Judge = hill,
        *,
        crash_after: int | None = None,
        seconds: float = 0.001,
        on_wait: Callable[["FakePool"], None] = lambda pool: None,
        last_first: bool = False,
        luck: float = 0.1,
        probable: Callable[[str], bool] = lambda name: True,
    ) -> None:
        self.setup, self.size = setup, workers
        self.asked: list[tuple[int, str, str]] = []
        self.closed = False
        self._judge, self._crash_after, self._seconds, self._on_wait = judge, crash_after, seconds, on_wait
        self._last_first, self._luck, self._probable = last_first, luck, probable
        self._per_task = len(inspect.signature(judge).parameters) == 3
        self._running: list[tuple[Any, Any]] = []
        self.metric: str | None = None  # instead of the task's own
        self.finished = 0

    @property
    def free(self) -> int:
        return self.size - len(self._running)

    @property
    def next_seconds(self) -> float:
        """What the next result says that it took."""
        _, documents = self._running[-1 if self._last_first else 0]
        searched = sum(map(len, self.setup.split.search.values()))
        return self._seconds * sum(map(len, documents.values())) / searched

    def submit(self, key: Any, recipe: str, documents: dict[str, list[int]]) -> None:
        assert self.free
        assert documents == key.documents
        assert all(documents.values())
        self.asked.append((key.ask.number, key.part, recipe))
        self._running.append((key, documents))

    def wait(self, timeout: float) -> Sequence[tuple[object, Evaluation | Failure]]:
        self._on_wait(self)
        if self.finished == self._crash_after:
            raise Crash
        took = self.next_seconds
        key, documents = self._running.pop(-1 if self._last_first else 0)
        self.finished += 1
        own = {task: (key.ask, key.part, task) if self._per_task else (key.ask, key.part) for task in documents}
        judged = {task: self._judge(*of) for task, of in own.items()}
        if failures := [j for j in judged.values() if isinstance(j, Failure)]:
            return [(key, failures[0])]
        keys = {task: self.metric or METRICS.get(task, "acc,none") for task in documents}
        scored = {
            task: {d: self._answered(keys[task], judged[task] + _noise(d), key.ask.name, d) for d in indices}
            for task, indices in documents.items()
        }
        seconds = {"merge": 0.1 * took, "forward": 0.8 * took, "other": 0.1 * took}
        # As a real worker: to held-out documents only.
        held_out = documents if key.part == "holdout" else {}
        answers = {task: {d: Answer(f"{key.ask.name} on {d}") for d in own} for task, own in held_out.items()}
        return [(key, Evaluation(Scores(scored, seconds["forward"], answers), seconds, "checksum"))]

    def _answered(self, metric: str, quality: float, name: str, document: int) -> dict[str, float]:
        own = {metric: quality + self._luck * _noise(document, name)}
        return {**own, PROBABILITY: 1 / (1 + math.exp(-4 * quality))} if self._probable(name) else own

    def close(self) -> None:
        self.closed = True


def _noise(*seed: object) -> float:
    return random.Random(repr(seed)).gauss(0, 0.1)


class Pools:
    """Makes fake pools and remembers them: ``pools(judge)`` is a ``make_pool`` of ``search``."""

    crash = Crash
    hill = staticmethod(hill)

    def __init__(self) -> None:
        self.made: list[FakePool] = []

    def __call__(self, judge: Judge = hill, **options: Any) -> Callable[[Setup, int], FakePool]:
        def make(setup: Setup, workers: int) -> FakePool:
            self.made.append(FakePool(setup, workers, judge, **options))
            return self.made[-1]

        return make

    @property
    def asked(self) -> list[tuple[int, str]]:
        """(ask, part) of all pools, in order."""
        return [(number, part) for pool in self.made for number, part, _ in pool.asked]


@pytest.fixture(scope="session")
def make_pools() -> type[Pools]:
    return Pools


@pytest.fixture
def pools() -> Pools:
    return Pools()
