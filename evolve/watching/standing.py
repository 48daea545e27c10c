"""Where a run stands, read from its folder while it runs: without its lock, and without the driver's help."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import mean, median
from typing import Any

from heterosis.evolve.record.files import SUMMARY
from heterosis.evolve.record.summary_file import DocumentCounts, Summary, read_summary
from heterosis.evolve.record.tally import Tally
from heterosis.evolve.record.trial import Trial
from heterosis.evolve.results.table import TABLE, read_outlines
from heterosis.evolve.watching.pulse import Pulse

SILENCE = 60.0  # seconds without a pulse after which a driver is taken for dead
RECENT = 20  # results that tell how long the next ones take


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Attributes:
        summary: As in the folder.
        trials: The results, in the order of their coming; their asks have no recipes and no values.
        pulse: The driver's; None if there is no driver.
        seconds: Time in all.
        silence: Seconds since the driver was last seen.
    """

    summary: Summary
    trials: Sequence[Trial] = ()
    pulse: Pulse | None = None
    seconds: float = 0.0
    silence: float = 0.0

    def now(self, trials: Sequence[Trial], documents: int, seconds: float) -> "Standing":
        """Where the run stands for its driver: not each result has been written to the folder.

        Args:
            trials: The results.
            documents: That were scored.
            seconds: Time in all.
        """
        counts: DocumentCounts = {**self.summary["documents"], "scored": documents}
        summary: Summary = {**self.summary, "documents": counts}
        return replace(self, summary=summary, trials=trials, seconds=seconds)

    @property
    def running(self) -> bool:
        return bool(self.summary["status"] == "running")

    @property
    def lost(self) -> bool:
        """Whether the driver is gone without having said so."""
        return self.running and self.silence > SILENCE

    @property
    def phase(self) -> str:
        """What is being done, in words."""
        if not self.running:
            return str(self.summary["status"])
        if self.lost:
            return "no sign of the search; the same evolve command continues it"
        return "running" if self.pulse is None else self.pulse.phase  # it begins, or ends

    @property
    def budget(self) -> int:
        return int(self.summary["trials"]["budget"])

    @property
    def done(self) -> int:
        """How many trials count: who was asked again, after a failure or to meet all documents, is one."""
        return self.tally.counted

    @cached_property
    def tally(self) -> Tally:
        """What the results amount to."""
        tally = Tally()
        for trial in self.trials:
            tally.add(trial)
        return tally

    @property
    def best(self) -> Trial | None:
        """The trial with the best search score; of equals, the first that was asked."""
        return self.tally.best

    @property
    def utilisation(self) -> float | None:
        """The share of the workers' time that went into results, from 0 to 1; None before there are any.

        The finals' time is not recorded, so it is not told once they have begun.
        """
        spent = sum(t.took for t in self.trials)
        if self.pulse is None or not spent or self.done >= self.budget or not self.seconds:
            return None
        return min(1.0, spent / (self.seconds * self.pulse.workers))

    @property
    def left(self) -> float | None:
        """Seconds to go, the finals included; None while nothing is known, or in the finals."""
        ahead = self.budget - self.done
        times = [t.took for t in self.trials if t.seconds]
        if self.pulse is None or self.lost or ahead <= 0 or not times:
            return None
        candidates = [t.took for t in self.trials if t.seconds and t.ask.kind == "search"]
        whole = median([t.took for t in self.trials if t.seconds and t.complete] or times)
        # The first result has the worker's start in it.
        each = mean(candidates[-RECENT:]) if candidates else median(times)
        work = ahead * each + self.pulse.finals * whole
        if self.pulse.max_documents is not None:
            documents = self.summary["documents"]
            ahead = max(0, self.pulse.max_documents - documents["scored"])
            work = min(work, ahead / documents["search"] * whole)
        most = math.inf if self.pulse.hours is None else max(0.0, self.pulse.hours * 3600 - self.seconds)
        return min(work / self.pulse.workers, most)


@dataclass
class Watcher:
    """Looks at a run folder again and again, and reads what has changed.

    Attributes:
        folder: The run folder.
    """

    folder: Path
    _seen: dict[str, tuple[int, Any]] = field(default_factory=dict)

    def look(self) -> Standing:
        """Where the run stands now.

        Raises:
            InputError: If the folder is no run folder, or nothing is in it yet.
        """
        summary = self._latest(SUMMARY, lambda: read_summary(self.folder))
        if summary is None:
            summary = read_summary(self.folder)
        trials = self._latest(TABLE, lambda: read_outlines(self.folder)) or []
        pulse = Pulse.read(self.folder) if summary["status"] == "running" else None
        now = time.time()
        saved = self._seen[SUMMARY][0] / 1e9 if SUMMARY in self._seen else now
        seen = max(saved, pulse.at if pulse is not None else 0.0)
        silence, seconds = max(0.0, now - seen), float(summary["seconds"]["total"])
        if summary["status"] == "running":
            seconds += max(0.0, (seen if silence > SILENCE else now) - saved)
        return Standing(summary, trials, pulse, seconds, silence)

    def _latest(self, name: str, read: Any) -> Any:
        """A file's content, read when it has changed."""
        try:
            changed = (self.folder / name).stat().st_mtime_ns
        except OSError:
            return None
        if name not in self._seen or self._seen[name][0] != changed:
            self._seen[name] = changed, read()
        return self._seen[name][1]
