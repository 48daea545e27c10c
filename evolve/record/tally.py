"""What the results of a run amount to, kept up as they come."""

from bisect import insort
from collections import Counter
from collections.abc import Iterable

from heterosis.evolve.record.trial import Trial

LEADERS = 5  # whose differing answers say which documents tell most


class Tally:
    """Counts and sums over results. A look costs the same after any number of them.

    Attributes:
        leaders: The best few of those that met all search documents, best first; see `leading`.
        complete: How many met all search documents.
        pruned: How many were stopped early.
        failed: How many have no score.
        counted: How many there are; who was asked again is one.
        causes: How often each cause of a failure came up.
        seconds: Where the time of all went.
    """

    def __init__(self) -> None:
        self.leaders: list[Trial] = []
        self.complete = self.pruned = self.failed = 0
        self._estimated: Trial | None = None
        self._known: set[tuple[str, str]] = set()
        self.causes: Counter[str] = Counter()
        self.seconds: dict[str, float] = {}
        # Of each that has a time, in order of size: of those that met all search documents, and of the others.
        self._whole: list[float] = []
        self._shorter: list[float] = []

    def add(self, trial: Trial) -> None:
        """Take in a result."""
        self.complete += trial.complete
        self.pruned += trial.pruned - trial.ask.promoted  # who is promoted was stopped before
        self.failed += trial.score is None
        self._known.add((trial.ask.kind, trial.ask.name))
        if trial.cause is not None:
            self.causes[trial.cause] += 1
        for kind, seconds in trial.seconds.items():
            self.seconds[kind] = self.seconds.get(kind, 0.0) + seconds
        if trial.seconds:
            insort(self._whole if trial.complete else self._shorter, trial.took)
        self.leaders = leading([*self.leaders, trial])
        if trial.ask.promoted:  # those that were estimated best have met more by then
            self._estimated = None
        elif trial.pruned and (self._estimated is None or trial.rank < self._estimated.rank):
            self._estimated = trial

    @property
    def counted(self) -> int:
        return len(self._known)

    @property
    def best(self) -> Trial | None:
        """The best of those that met all search documents; of equals, the one asked first."""
        return self.leaders[0] if self.leaders else None

    @property
    def ahead(self) -> Trial | None:
        """Who has met some of the documents only, and whose score may be better than the best one's."""
        found, best = self._estimated, self.best
        return found if found is not None and (best is None or found.rank < best.rank) else None

    @property
    def median_seconds(self) -> float | None:
        """What half of those that met all search documents took less than, or of all where none did; or None."""
        times = self._whole or self._shorter
        n = len(times)
        return (times[(n - 1) // 2] + times[n // 2]) / 2 if n else None


def leading(trials: Iterable[Trial]) -> list[Trial]:
    """The best `LEADERS` of those that met all search documents, best first; of equals, the one asked first."""
    complete = sorted((t for t in trials if t.complete), key=lambda t: t.rank)
    return distinct(complete)[:LEADERS]


def distinct(trials: Iterable[Trial]) -> list[Trial]:
    """The first of each recipe."""
    first: dict[str, Trial] = {}
    for trial in trials:
        first.setdefault(trial.ask.recipe, trial)
    return list(first.values())


def best_of(trials: Iterable[Trial | None]) -> Trial | None:
    """The best of those that met all search documents; of equals, the one asked first, whichever came first."""
    complete = (t for t in trials if t and t.complete)
    return min(complete, key=lambda t: t.rank, default=None)
