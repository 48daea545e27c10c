"""A PostgreSQL server that is stopped and started; with_postgresql.sh has installed and started it."""

import os
import random
import shlex
import subprocess
import time

URL, CONTROL = "HETEROSIS_TEST_POSTGRESQL", "HETEROSIS_TEST_POSTGRESQL_CONTROL"


class Database:
    """Control over the server.

    Attributes:
        url: An Optuna storage URL.
        stops: How often it was stopped.
        seconds: For how long in all.
    """

    def __init__(self) -> None:
        self.url = os.environ[URL]
        self._control = shlex.split(os.environ[CONTROL])
        self._since: float | None = None
        self.stops, self.seconds = 0, 0.0

    @property
    def away(self) -> bool:
        return self._since is not None

    def stop(self, rng: random.Random) -> None:
        """Close its connections, or let it drop dead."""
        self._run("-m", rng.choice(("fast", "immediate")), "stop")
        self._since, self.stops = time.monotonic(), self.stops + 1

    def start(self) -> None:
        if self._since is not None:
            self._run("start")
            self.seconds += time.monotonic() - self._since
            self._since = None

    def _run(self, *arguments: str) -> None:
        subprocess.run([*self._control, *arguments], check=True, stdout=subprocess.DEVNULL, cwd="/")
