"""A claim on a folder that several machines have, where the system's locks may not reach from one to another.

The holder writes a line into a file every few seconds. Whoever wants the folder watches the file: as long as it
changes, its holder lives. Clocks are not compared, and the file is written in place, since a network file system
looks up the content of an opened file afresh, but may remember names for a minute.
"""

import logging
import os
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path

from heterosis.errors import InputError
from heterosis.evolve.faults import RunStopped
from heterosis.evolve.machine import this_machine

log = logging.getLogger("heterosis")

FILE = ".owner"
EVERY = 5.0  # seconds between two signs of life
DEAD = 60.0  # seconds without one
SETTLE = 3.0  # seconds in which another claim of the same moment shows


class Lease:
    """A claim, kept up by a thread.

    Args:
        folder: What is claimed.
        alone: Whether no other process of this machine has it, so that a claim from here is a dead one's.

    Raises:
        InputError: If another machine has it.
    """

    def __init__(self, folder: Path, *, alone: bool) -> None:
        self._folder, self._path = folder, folder / FILE
        self._token, self._count = f"{this_machine()} {uuid.uuid4().hex}", 0
        self._lost, self._refreshed = False, 0.0
        before = self._read()
        if before and not (alone and before.startswith(f"{this_machine()} ")):
            self._watch(before)
        self._refresh()
        time.sleep(SETTLE)
        if not self._is_mine():
            raise self._in_use(self._read())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep_up, name="lease", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Make sure that it is still held, before something is written that only the holder may write.

        Raises:
            RunStopped: If another machine has taken it, which it may when this one was stopped for long.
        """
        if time.monotonic() - self._refreshed > DEAD / 2 and self._is_mine():
            self._refresh()
        if self._lost or not self._path.exists():
            raise RunStopped(
                f"{self._folder}: another machine has gone on with this run; this one leaves it alone"
            )

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._is_mine():
            with suppress(OSError):
                self._path.unlink()

    def _keep_up(self) -> None:
        while not self._stop.wait(EVERY):
            with suppress(OSError):  # a file server that is away; it is tried again
                if not self._is_mine():
                    return
                self._refresh()

    def _refresh(self) -> None:
        self._count += 1
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, f"{self._token} {self._count:012}\n".encode(), 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._refreshed = time.monotonic()

    def _read(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def _is_mine(self) -> bool:
        self._lost = not self._read().startswith(self._token)
        return not self._lost

    def _watch(self, before: str) -> None:
        log.warning(
            "%s: was last used on %s; waiting %.0f s for a sign of life", self._folder, before.split()[0], DEAD
        )
        until = time.monotonic() + DEAD
        while time.monotonic() < until:
            time.sleep(min(1.0, DEAD / 10))
            if (now := self._read()) not in ("", before):
                raise self._in_use(now)
        self._path.unlink(missing_ok=True)  # lines have any length

    def _in_use(self, line: str) -> InputError:
        where = next(iter(line.split()), "another machine")
        return InputError(
            f"{self._folder}: another search is running in this folder, on {where}; wait for it, or choose "
            "another --run-dir"
        )
