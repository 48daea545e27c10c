"""The driver's side of trackers: their processes are started, watched, and ended; a search never waits for one."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

from heterosis.errors import InputError

log = logging.getLogger("heterosis")

GRACE = 30.0  # seconds that trackers have at the end, to send what they have


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose client is not installed.

    Raises:
        InputError: With what to install.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise InputError(
            f"log_to: not installed: {', '.join(missing)}; pip install 'heterosis[{','.join(missing)}]', or leave "
            "that out"
        )


@contextmanager
def tracked(folder: Path, names: Sequence[str]) -> Iterator[None]:
    """Have trackers follow a run folder meanwhile. One that fails costs a line in the log, and is not used on."""
    trackers = [_Tracker(folder, name) for name in names]
    grace = GRACE
    try:
        yield
    except KeyboardInterrupt:  # at once
        grace = 0.0
        raise
    finally:
        until = time.monotonic() + grace
        for tracker in trackers:
            tracker.release()
        for tracker in trackers:
            tracker.join(max(0.0, until - time.monotonic()))


class _Tracker:
    """A process that tells one tracker of a run; what it prints goes to a file of the run folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._name, self._printed = name, folder / f"{name}.log"
        self._given_up = False
        with self._printed.open("ab") as out:
            self._process = subprocess.Popen(
                # -P: what lies in the current folder is not imported.
                [sys.executable, "-P", "-m", "heterosis.evolve.watching.trackers", name, str(folder.absolute())],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that Ctrl-C is for the driver, and all that it starts can be ended
            )
        self._watch = threading.Thread(target=self._wait, daemon=True)
        self._watch.start()

    def release(self) -> None:
        """Let it send what it has, and end."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def join(self, seconds: float) -> None:
        """Wait for its end as long as this; then end it."""
        self._watch.join(seconds)
        if self._watch.is_alive():
            self._given_up = True
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._watch.join()
            log.warning("%s: did not take in everything in time, and was ended", self._name)

    def _wait(self) -> None:
        code = self._process.wait()
        if code and not self._given_up:
            lines = self._printed.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
            log.warning("%s: switched off: %s; see %s", self._name, last, self._printed.name)
