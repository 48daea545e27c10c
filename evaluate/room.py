"""Room on this machine: its memory, and folders that are there for as long as their process holds them.

A backend that cannot be handed a live model loads a merge from a folder. It is in shared memory where that has
room, and locked by the process that wrote it; the system gives the lock back however the process ends, so that
whoever comes next on the machine can tell what was left behind.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from heterosis.words import size

SHARED_MEMORY = Path("/dev/shm")
SPARE = 2  # times what is written must be free in shared memory: others write there, and what is loaded is copied

_PREFIX = f"heterosis-{os.getuid()}-merge-"


def memory() -> tuple[int, int]:
    """Bytes that are free and that there are, within the limit of a container."""
    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    try:
        group = Path("/sys/fs/cgroup")
        most = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no such limit
        return free, total
    return min(free, max(0, most - used)), min(total, most)


def place_for(nbytes: int) -> Path | None:
    """Where so many bytes have room: shared memory, or else the folder for temporary files (``TMPDIR``)."""
    temporary = Path(tempfile.gettempdir())
    if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK):
        free = min(shutil.disk_usage(SHARED_MEMORY).free, memory()[0])
        if free >= SPARE * nbytes:
            return SHARED_MEMORY
    return temporary if shutil.disk_usage(temporary).free >= nbytes else None


def room_for(nbytes: int) -> Path:
    """Where a merge of so many bytes has room, as `place_for`.

    Raises:
        MemoryError: If it has none.
    """
    place = place_for(nbytes)
    if place is None:
        raise MemoryError(f"a merge of {size(nbytes)} has no room in shared memory or in TMPDIR")
    return place


@contextmanager
def held_folder(place: Path) -> Iterator[Path]:
    """A new folder that goes at the end, and with the next `sweep` if this process does not live to see it."""
    folder, lock = _locked_folder(place)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep() -> None:
    """Remove the folders that processes of this user, now dead, have left on this machine."""
    for place in {SHARED_MEMORY, Path(tempfile.gettempdir())}:
        for folder in place.glob(f"{_PREFIX}*"):
            with suppress(OSError):  # someone holds it, or has just removed it
                lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(lock)


def _locked_folder(place: Path) -> tuple[Path, int]:
    """A new folder and the lock on it; another one, where a sweep came between the two."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        with suppress(FileNotFoundError):
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            with suppress(OSError):  # a file system without locks; then no sweep can take them either
                fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.exists():
                return folder, lock
            os.close(lock)
