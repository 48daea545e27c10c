"""How long a piece of work may take before its worker is taken to hang, learnt from the first ones."""

from collections import deque

import numpy as np

FIRST = 2 * 3600.0  # seconds while nothing is known
ENOUGH = 5  # pieces of work from which on something is
LEAST = 120.0  # seconds, below which a busy machine decides
FACTOR = 10.0  # times what nearly all take
NEARLY_ALL = 0.95
REMEMBERED = 500  # pieces of work


class TimeLimit:
    """Seconds that work on some documents may take: ten times what nearly all took.

    A piece of work takes a time of its own, for the merge, and one for each document. Both are learnt, each by its
    quantile over the pieces of work, which a few hung or very long ones hardly move.

    Args:
        documents: That a candidate meets in the search.
        fixed: Seconds for a candidate on all of these instead; None to learn.
    """

    def __init__(self, documents: int, fixed: float | None = None) -> None:
        self._documents, self._fixed = max(1, documents), fixed
        self._merges: deque[float] = deque(maxlen=REMEMBERED)
        self._rates: deque[float] = deque(maxlen=REMEMBERED)
        self._learnt: tuple[float, float] | None = None

    def learn(self, documents: int, seconds: float, merge: float) -> None:
        """Take in a piece of work that was done, but not a worker's first, which starts it.

        Args:
            documents: That were scored.
            seconds: In all.
            merge: Of these, until the live model was there; 0 where it was there before.
        """
        self._merges.append(merge)
        self._rates.append(max(0.0, seconds - merge) / max(1, documents))
        if len(self._rates) >= ENOUGH:
            merges, rates = (float(np.quantile(found, NEARLY_ALL)) for found in (self._merges, self._rates))
            self._learnt = merges, rates

    def __call__(self, documents: int) -> float:
        """Seconds for work on so many documents."""
        if self._fixed is not None:
            return self._fixed * max(1.0, documents / self._documents)
        if self._learnt is None:
            return FIRST * max(1.0, documents / self._documents)
        merge, rate = self._learnt
        return max(LEAST, FACTOR * (merge + rate * documents))
