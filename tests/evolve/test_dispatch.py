"""Handing out work: what the driver does while its workers are busy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from heterosis.evaluate.scores import Scores
from heterosis.evolve.record.record import Record
from heterosis.evolve.record.storage import study_url
from heterosis.evolve.workers.dispatch import Attempts, Job, dispatch
from heterosis.evolve.workers.pool import Evaluation

DONE = Evaluation(Scores({}), {}, "")


class ScriptedPool:
    """One worker, whose work is done at some of the driver's looks.

    Args:
        ready: For each look, whether something is done.
    """

    size = 1

    def __init__(self, ready: Sequence[bool]) -> None:
        self._ready = list(ready)
        self._running: list[object] = []
        self.looks: list[float] = []

    @property
    def free(self) -> int:
        return 1 - len(self._running)

    def submit(self, key: object, recipe: str, documents: Any) -> None:
        self._running.append(key)

    def wait(self, timeout: float) -> list[tuple[object, Any]]:
        self.looks.append(timeout)
        return [(self._running.pop(), DONE)] if self._ready.pop(0) else []

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("ready", "pieces", "looks", "did"),
    [
        # What can wait is done while there is nothing else, piece by piece, with a look after each.
        ([False, False, False, True], 2, [0, 0, 0.5, 0.5], 2),
        ([False, True], 5, [0, 0], 1),
        # A result comes first.
        ([True], 5, [0], 0),
        ([False, False, False, True], 0, [0, 0.5, 0.5, 0.5], 0),
    ],
)
def test_what_can_wait_is_done_while_there_are_no_results(
    tmp_path: Path, ready: list[bool], pieces: int, looks: list[float], did: int
) -> None:
    record = Record(tmp_path, study_url(tmp_path), "toys", [])
    job = Job(record.ask("parent", "one", "r", {}), "search", {"toy": [1]})
    pool, left, done = ScriptedPool(ready), pieces, []

    def spare() -> bool:
        nonlocal left
        left = max(0, left - 1)
        return left > 0

    dispatch(
        pool,
        [job],
        lambda: None,
        lambda job, outcome: done.append(job),
        attempts=Attempts(record),
        stopping=lambda: False,
        beat=lambda running, waiting: None,
        spare=spare,
    )
    assert (done, pool.looks, pieces - left) == ([job], looks, did)
