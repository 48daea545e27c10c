"""Where log messages go: a run's to its file, Optuna's nowhere."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("heterosis")
_changing = threading.Lock()


class _LogFile(logging.FileHandler):
    """A run's log.

    Attributes:
        before: The logger's level, and whether it propagated, before the first of those that are open.
    """

    before: tuple[int, bool]

    def handleError(self, record: logging.LogRecord) -> None:
        """Leave a line out: a full disk is told by whoever cannot do without it."""


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write the package's log to a file meanwhile, instead of to where the application's goes."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    with _changing:
        others = _open()
        handler.before = others[0].before if others else (log.level, log.propagate)
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    try:
        yield
    finally:
        with _changing:
            log.removeHandler(handler)
            if not _open():
                log.setLevel(handler.before[0])
                log.propagate = handler.before[1]
        with suppress(OSError):
            handler.close()


def _open() -> list[_LogFile]:
    """The logs of runs that go on, in several threads perhaps."""
    return [handler for handler in log.handlers if isinstance(handler, _LogFile)]


@contextmanager
def optuna_quietly(level: int = logging.WARNING) -> Iterator[None]:
    """Without Optuna's messages below a level, whatever the verbosity of the process is."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(level)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
