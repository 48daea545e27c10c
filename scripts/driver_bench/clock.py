"""A clock that adds up what parts of a program take, each without the parts that run inside it."""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

Times = tuple[float, float]  # seconds on the wall, and of this process on the processor

OTHER = "other"


def now() -> Times:
    return time.perf_counter(), time.process_time()


class Clock:
    """Seconds of each part; what is not in any is ``other``.

    Args:
        now: Reads the clocks.
    """

    def __init__(self, now: Callable[[], Times] = now) -> None:
        self._now = now
        self._spent: defaultdict[str, Times] = defaultdict(lambda: (0.0, 0.0))
        self._inside = [OTHER]
        self._mark = now()

    def read(self) -> dict[str, Times]:
        """What each part took so far."""
        self._turn()
        return dict(self._spent)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._turn()
        self._inside.append(name)
        try:
            yield
        finally:
            self._turn()
            self._inside.pop()

    @contextmanager
    def following(self, parts: dict[str, list[tuple[Any, str]]]) -> Iterator[None]:
        """Count what functions take meanwhile.

        Args:
            parts: By the name of the part, functions as their owner and their name there.
        """
        with ExitStack() as stack:
            for name, functions in parts.items():
                for owner, function in functions:
                    wrapped = self._wrapped(name, getattr(owner, function))
                    stack.enter_context(mock.patch.object(owner, function, wrapped))
            yield

    def _wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return timed

    def _turn(self) -> None:
        """Add what has passed to the part that it belongs to."""
        then, self._mark = self._mark, self._now()
        wall, processor = self._spent[self._inside[-1]]
        self._spent[self._inside[-1]] = wall + self._mark[0] - then[0], processor + self._mark[1] - then[1]


def between(earlier: dict[str, Times], later: dict[str, Times], count: int) -> dict[str, Times]:
    """What each part took for each of ``count`` things, between two readings."""
    zero = (0.0, 0.0)
    return {
        name: ((wall - earlier.get(name, zero)[0]) / count, (cpu - earlier.get(name, zero)[1]) / count)
        for name, (wall, cpu) in later.items()
    }
