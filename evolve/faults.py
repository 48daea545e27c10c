"""What ends a run's session, said in one line."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Errors of a disk or its server, not of a program, and what helps.
_DISK = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room, or have the quota raised",
    errno.EROFS: "have it made writable again",
    errno.EIO: "see to the disk or its server",
    errno.ESTALE: "see to the file server",
    errno.ETIMEDOUT: "see to the file server",
    errno.EHOSTDOWN: "see to the file server",
}
_SQLITE = {
    sqlite3.SQLITE_FULL: "make room",
    sqlite3.SQLITE_READONLY: "have it made writable again",
    sqlite3.SQLITE_IOERR: "see to the disk or its server",
}


class RunStopped(RuntimeError):
    """Something that the search needs is not there: a disk, the storage, workers. The same command continues."""


class SearchFailed(RuntimeError):
    """What fails shows that the set-up is wrong, or nothing can be said without what cannot be scored."""


@contextmanager
def disk_faults(folder: Path) -> Iterator[None]:
    """Say of what a disk refuses where it was, and what helps.

    Raises:
        RunStopped: Instead of the system's error.
    """
    try:
        yield
    except OSError as error:
        remedy = _DISK.get(error.errno or 0)
        if remedy is None:
            raise
        raise disk_stopped(folder, error.strerror or str(error), remedy) from error


def sqlite_fault(folder: Path, error: BaseException) -> RunStopped | None:
    """The same for a fault of SQLite's file, wherever it stands among an error's causes."""
    cause: BaseException | None = error
    while cause is not None:
        # SQLAlchemy's errors have the driver's as `orig`.
        for own in (cause, getattr(cause, "orig", None)):
            code = getattr(own, "sqlite_errorcode", 0) & 0xFF  # without the details of extended codes
            if code in _SQLITE:
                return disk_stopped(folder, str(own), _SQLITE[code])
        cause = cause.__cause__
    return None


def disk_stopped(folder: Path, what: str, remedy: str) -> RunStopped:
    return RunStopped(f"{folder}: cannot be written: {what}; {remedy}, then the same command continues")
