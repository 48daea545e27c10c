"""The pulse: what a run's driver is doing at this moment, in the run folder, for whoever looks.

Everything else that a view shows is in the summary and the table of trials. This file comes and goes with the
driver; one that has not been written for a while was left behind by a driver that was killed.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from heterosis.evolve.dimensions import Space
from heterosis.evolve.folder import write_text
from heterosis.evolve.record import Trial
from heterosis.evolve.statistics import Interval

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
        self.space: Space | None = None  # of the stage, whose candidates have a spread

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
        self,
        trials: Sequence[Trial],
        best: Trial | None,
        against_parents: Callable[[Trial], Mapping[str, Interval]],
    ) -> None:
        """Take in the last of the results, and a new best one's intervals."""
        kind, stage = trials[-1].ask.kind, trials[-1].ask.stage
        if self._pulse.phase in _PHASES:
            self._pulse.phase = _PHASES[1 if kind in ("parent", "baseline") else 2]
        if best is not None and best.number != self._best:
            self._best = best.number
            self._pulse.against = {name: (i.mean, i.low, i.high) for name, i in against_parents(best).items()}
        if self.space is not None and kind == "search":
            found = [t for t in trials if t.ask.kind == "search" and t.ask.stage == stage]
            self._pulse.spread = spread(self.space, found)
        self._write()

    def stop(self) -> None:
        self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        self._pulse.at = time.time()
        write_text(self._path, json.dumps(asdict(self._pulse)) + "\n")
        self._next = time.monotonic() + EVERY


def spread(space: Space, candidates: Sequence[Trial]) -> tuple[float, float] | None:
    """How far apart a stage's last candidates are, and how far its first were; see `Pulse`."""
    if len(candidates) < WINDOW:
        return None
    last, first = (
        float(np.std([space.encode(t.ask.values) for t in part], axis=0).mean())
        for part in (candidates[-WINDOW:], candidates[:WINDOW])
    )
    return round(last, 4), round(first, 4)
