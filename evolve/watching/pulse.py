"""The pulse: what a run's driver is doing at this moment, in the run folder, for whoever looks.

Everything else that a view shows is in the summary and the table of trials. This file comes and goes with the
driver; one that has not been written for a while was left behind by a driver that was killed.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from heterosis.evolve.judging.statistics import Interval
from heterosis.evolve.optimizers import Vector
from heterosis.evolve.record.trial import Trial
from heterosis.evolve.space.dimensions import Space
from heterosis.merge.files import write_text

FILE = "live.json"
EVERY = 0.5  # seconds between two beats, at least
WINDOW = 10  # candidates whose spread is told

_PHASES = ("starting the workers", "scoring what is to be beaten", "searching")


@dataclass
class Pulse:
    """What the driver is doing.

    Attributes:
        phase: In words.
        workers: How many there are.
        busy: How many of them score something.
        waiting: What is queued for them; what an optimizer has yet to propose is not.
        finals: What the finals take, in candidates that meet all search documents.
        hours: The budget of time, if there is one.
        max_documents: That of documents, if there is one.
        against: By how much the best so far beats each parent on the search documents: mean, low and high.
        spread: The standard deviation of the stage's last candidates, and that of its first, in shares of the
            ranges, the mean over dimensions; none before there are enough.
        at: When this was written, in seconds since the epoch.
    """

    phase: str = _PHASES[0]
    workers: int = 1
    busy: int = 0
    waiting: int = 0
    finals: float = 0.0
    hours: float | None = None
    max_documents: int | None = None
    against: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    spread: tuple[float, float] | None = None
    at: float = 0.0

    @classmethod
    def read(cls, folder: Path) -> "Pulse | None":
        """The pulse of a run; None if no driver has one."""
        try:
            return cls(**json.loads((folder / FILE).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


class PulseWriter:
    """Writes the pulse: at every result, and at most every half second between them.

    Args:
        folder: The run folder.
        pulse: How it begins.
    """

    def __init__(self, folder: Path, pulse: Pulse) -> None:
        self._path, self._pulse = folder / FILE, pulse
        self._next = 0.0
        self._best: int | None = None  # whose intervals are there
        self._spread: _Spread | None = None  # of the stage's candidates

    def stage(self, space: Space, candidates: Iterable[Trial]) -> None:
        """Begin a stage of the search, or go on with one.

        Args:
            space: Its space.
            candidates: That have results.
        """
        self._spread = _Spread(space)
        for trial in candidates:
            self._spread.add(trial)

    def phase(self, text: str) -> None:
        self._pulse.phase = text

    def meanwhile(self, text: str) -> None:
        """Say what keeps the driver from its work, until it goes on."""
        phase, self._pulse.phase = self._pulse.phase, text
        self._write()
        self._pulse.phase = phase

    def beat(self, busy: int, waiting: int) -> None:
        """Say that the driver lives, and what it does."""
        self._pulse.busy, self._pulse.waiting = busy, waiting
        if time.monotonic() >= self._next:
            self._write()

    def trial(
        self, trial: Trial, best: Trial | None, against_parents: Callable[[Trial], Mapping[str, Interval]]
    ) -> None:
        """Take in a result, and a new best one's intervals."""
        if self._pulse.phase in _PHASES:
            self._pulse.phase = _PHASES[2 if trial.ask.is_candidate else 1]
        if best is not None and best.number != self._best:
            self._best = best.number
            self._pulse.against = {name: (i.mean, i.low, i.high) for name, i in against_parents(best).items()}
        if self._spread is not None and trial.ask.kind == "search":
            self._spread.add(trial)
            self._pulse.spread = self._spread.now
        self._write()

    def stop(self) -> None:
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._pulse.at = time.time()
        write_text(self._path, json.dumps(asdict(self._pulse)) + "\n", durable=False)
        self._next = time.monotonic() + EVERY


class _Spread:
    """How far apart a stage's last candidates are, and how far its first were; see `Pulse`."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._first: list[Vector] = []
        self._last: deque[Vector] = deque(maxlen=WINDOW)

    def add(self, candidate: Trial) -> None:
        point = self._space.encode(candidate.ask.values)
        self._last.append(point)
        if len(self._first) < WINDOW:
            self._first.append(point)

    @property
    def now(self) -> tuple[float, float] | None:
        if len(self._last) < WINDOW:
            return None
        last, first = (float(np.std(list(part), axis=0).mean()) for part in (self._last, self._first))
        return round(last, 4), round(first, 4)
