"""Keeps sessions of a search going, and kills their drivers, their workers, and the raylets of their nodes."""

import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from heterosis.evolve.record.record import SCORES, read_asks

from .cluster import Nodes, workers
from .content import Watch, in_doubt, lines_of, read_trials
from .database import Database
from .formula import digest

KINDS = ("driver", "worker", "raylet")
DELAY = 1.5  # seconds, the mean, from the moment that is waited for to the kill
JOINS_WITHIN = 3.0  # seconds until a node joins for one that was killed
STARTS_WITHIN = 1.0  # seconds until the next session starts
RISKED = 3  # attempts of one candidate: with two more it would be given up, and one kill may cost one
OUTAGE_EVERY, OUTAGE = 10, 15.0  # kills from one outage of the database to the next; seconds of one, at most
STUCK_SECONDS = 300.0  # without any new scores
FAILED_SESSIONS = 20  # that ended by themselves: something is wrong


@dataclass(frozen=True)
class Kill:
    """A kill to come.

    Attributes:
        kind: Of what.
        after: So many chunks of scores must be on record.
        delay: Seconds from then on.
    """

    kind: str
    after: int
    delay: float


def plan(kills: int, chunks: int, rng: random.Random) -> list[Kill]:
    """Kills at random moments of a search that comes to so many chunks of scores: as many of each kind."""
    kinds = [KINDS[i % len(KINDS)] for i in range(kills)]
    rng.shuffle(kinds)
    moments = sorted(rng.randrange(chunks) for _ in kinds)
    return [Kill(kind, at, rng.expovariate(1 / DELAY)) for kind, at in zip(kinds, moments, strict=True)]


class Disturber:
    """A search that is disturbed.

    Whoever runs a search would give the same command again when it has ended, and see to its database and its
    nodes; so does this. It ends no worker whose candidate has ended one already, and nothing while some candidate
    was lost three times in any way: that would rightly be taken for the candidate's doing. So none may fail.

    Args:
        folder: Where the run is, and the log of its sessions.
        command: A session's.
        nodes: Of the cluster.
        database: Where the study is, if it is not in the run folder.
        rng: Says who is killed and when.

    Attributes:
        watch: What it has seen of the record.
        killed: How often each kind was.
        sessions: How they ended.
        spared: Workers whose candidate had ended one already.
        faults: What should not have happened.
        finished: Whether a session has reached the end.
    """

    def __init__(
        self, folder: Path, command: list[str], nodes: Nodes, database: Database | None, rng: random.Random
    ) -> None:
        self.run, self._log, self._at_work = folder / "run", folder / "sessions.log", folder / "at_work"
        self._command, self._nodes, self._database, self._rng = command, nodes, database, rng
        self.watch = Watch(self.run)
        self.killed, self.sessions = Counter[str](), Counter[str]()
        self.spared, self.faults, self.finished = 0, list[str](), False
        self._session: subprocess.Popen[bytes] | None = None
        self._killed_it = self._was_away = False
        self._start_at = self._join_at = self._back_at = 0.0
        self._chunks, self._grew = 0, time.monotonic()
        self._begun = time.monotonic()

    # ------------------------------------------------------------------------------------------------- the search

    def go(self, kills: list[Kill], wanted: int) -> None:
        """Search to the end, and kill meanwhile."""
        do: dict[str, Callable[[], str | None]] = {
            "driver": self._kill_driver,
            "worker": self._kill_worker,
            "raylet": self._kill_raylet,
        }
        for kill in kills:
            self._until(partial(self._has_come_to, kill.after))
            self._pass(kill.delay)
            self._until(lambda: in_doubt(self.run)[1] < RISKED)
            if self.finished or (killed := do[kill.kind]()) is None:
                break
            self.killed[kill.kind] += 1
            self._tell(f"kill {self.killed.total()} of {wanted}: {killed} at {self._chunks} chunks of scores")
            self.watch.look()
            if self._database and not self._database.away and self.killed.total() % OUTAGE_EVERY == 0:
                self._stop_database(self._database)
        self._until(lambda: False)

    def close(self) -> None:
        """End what still runs."""
        if self._session is not None:
            self._session.kill()
            self._session.wait()
        if self._database:
            self._database.start()

    def _until(self, condition: Callable[[], bool]) -> None:
        """Keep the search going until something holds, or until it has finished."""
        while not self.finished and not condition():
            time.sleep(0.02)
            now = time.monotonic()
            if self._database and self._database.away and now >= self._back_at:
                self._database.start()
                self._tell("the database is back")
            if self._nodes.missing and now >= self._join_at:
                self._nodes.add()
                self._join_at = self._soon(JOINS_WITHIN)
            if self._session is None:
                if now >= self._start_at:
                    self._start()
            elif (code := self._session.poll()) is not None:
                self._ended(code)
            self._check_progress()

    def _has_come_to(self, chunks: int) -> bool:
        return self._chunks >= chunks

    def _pass(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        self._until(lambda: time.monotonic() >= until)

    def _check_progress(self) -> None:
        chunks = lines_of(self.run / SCORES)
        if chunks != self._chunks:
            self._chunks, self._grew = chunks, time.monotonic()
        elif time.monotonic() - self._grew > STUCK_SECONDS:
            raise RuntimeError(f"no new scores for {STUCK_SECONDS:.0f} s; see {self._log}")

    def _start(self) -> None:
        with self._log.open("ab") as log:
            self._session = subprocess.Popen(self._command, cwd=self._log.parent, stdout=log, stderr=log)
        self._killed_it, self._was_away = False, self._away()

    def _ended(self, code: int) -> None:
        self._session = None
        self._start_at = self._soon(STARTS_WITHIN)
        self.watch.look()
        if not self._away():
            self.watch.look_at_trials(read_trials(self.run, self._database.url if self._database else None))
        if code == 0:
            self.finished = True
            self.sessions["reached the end"] += 1
        elif self._killed_it:
            self.sessions["killed"] += 1
        else:
            last = "".join(self._log.read_text(errors="replace").strip().splitlines()[-1:])
            self._tell(f"the session ended by itself with exit code {code}: {last}")
            if "--storage: " in last and self._was_away:
                self.sessions["stopped without the database"] += 1
            elif "--workers: " in last:  # refused at the start, when Ray has room for no worker at all
                self.sessions["stopped without any node"] += 1
            else:
                self.sessions["failed"] += 1
                self.faults.append(f"a session ended by itself with exit code {code}: {last[:200]}")
            if self.sessions["failed"] > FAILED_SESSIONS:
                raise RuntimeError(f"sessions end by themselves; see {self._log}")

    # -------------------------------------------------------------------------------------------------- the kills

    def _kill_driver(self) -> str | None:
        self._until(lambda: self._session is not None and self._session.poll() is None)
        if self._session is None:
            return None
        self._session.kill()
        if self._session.wait() != -signal.SIGKILL:  # it came to its end at this moment
            return self._kill_driver()
        self._killed_it = True
        return f"driver {self._session.pid}"

    def _kill_worker(self) -> str | None:
        spared: set[int] = set()
        while not self.finished:
            there = workers()
            self._rng.shuffle(there)
            for process in there:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()  # it may not go on to another candidate meanwhile
                    if self._may_end(process):
                        process.kill()
                        self.spared += len(spared)
                        return f"worker {process.pid}"
                    process.resume()
                    spared.add(process.pid)
            self._pass(0.2)
        return None

    def _may_end(self, process: psutil.Process) -> bool:
        """Whether a worker's candidate, if it has one, has not ended another worker already."""
        doubted, _ = in_doubt(self.run)
        if not doubted:
            return True
        file = self._at_work / str(process.pid)
        at = file.read_text() if file.exists() else ""  # nothing while a candidate is on its way to the worker
        asked = {ask.number for ask in read_asks(self.run) if digest(ask.recipe) == at}
        return bool(asked) and not asked & doubted

    def _kill_raylet(self) -> str | None:
        self._until(lambda: self._nodes.alive > 0)
        if self.finished:
            return None
        self._nodes.kill_raylet(self._rng)
        self._join_at = self._soon(JOINS_WITHIN)
        return "raylet"

    def _stop_database(self, database: Database) -> None:
        database.stop(self._rng)
        self._was_away = True
        seconds = self._rng.uniform(0, OUTAGE)
        self._back_at = time.monotonic() + seconds
        self._tell(f"the database is away for {seconds:.0f} s")

    # ------------------------------------------------------------------------------------------------------------

    def _away(self) -> bool:
        return self._database is not None and self._database.away

    def _soon(self, within: float) -> float:
        return time.monotonic() + self._rng.uniform(0, within)

    def _tell(self, text: str) -> None:
        print(f"{time.monotonic() - self._begun:7.1f} s  {text}", file=sys.stderr, flush=True)
