"""How far something long is, on stderr: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING

from heterosis.words import duration

if TYPE_CHECKING:
    import rich.progress

# rich is imported when there is something to show: a small merge is over by then.

LATE = 2.0  # seconds without a bar; what is over by then needs none
REFRESH = 0.25  # seconds between two looks of the bar
EVERY = 10.0  # seconds between two lines, and before the first


class Progress:
    """Told how much is done, in a ``with`` statement; nothing is shown of what ends soon.

    Args:
        doing: What is counted, such as ``merging``.
        words: A number as people read it, such as `heterosis.words.size`.
    """

    def __init__(self, doing: str, words: Callable[[int], str]) -> None:
        self._doing, self._words = doing, words
        self._live = sys.stderr.isatty()
        self._begun: float | None = None
        self._due = 0.0
        self._bar: rich.progress.Progress | None = None

    def __call__(self, done: int, total: int) -> None:
        """Take note of how much is done, at first with 0; from any thread, but one call after the other."""
        now = time.monotonic()
        if self._begun is None:
            self._begun, self._due = now, now + (LATE if self._live else EVERY)
        if now < self._due:
            return
        self._due = now + (REFRESH if self._live else EVERY)
        text = f"{self._doing}: {self._words(done)} of {self._words(total)}"
        if 0 < done < total:
            text += f", about {duration((now - self._begun) * (total - done) / done)} to go"
        with suppress(OSError):  # who closes the terminal does not want the work to end
            if self._live:
                self._draw(text, done, total)
            else:
                sys.stderr.write(f"{text}\n")

    def _draw(self, text: str, done: int, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        if self._bar is None:
            columns = BarColumn(), TextColumn("{task.description}", markup=False)
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(text, total=total)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], description=text, completed=done)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            with suppress(OSError):
                self._bar.stop()
