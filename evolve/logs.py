"""Where log messages go: a run's to its file, Optuna's nowhere."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger("heterosis")


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """Leave a line out: a full disk is told by whoever cannot do without it."""


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Write the package's log to a file meanwhile, instead of to where the application's goes."""
    handler = _LogFile(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    try:
        yield
    finally:
        log.setLevel(level)
        log.propagate = propagate
        log.removeHandler(handler)
        with suppress(OSError):
            handler.close()


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
