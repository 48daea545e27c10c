"""The run folder: its lock, its frozen config, and small files that are replaced whole."""

import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from heterosis.errors import InputError
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.lease import Lease
from heterosis.evolve.machine import shared_file_system

ASKS = "asks.jsonl"
STATE = "run.json"
SUMMARY = "summary.json"
CONFIG = "config.yaml"
SPLITS = "splits.json"
STUDY = "study.db"

RESTORE = "restore it, or choose another --run-dir"  # what is to be done about a file that was removed or damaged
AGAIN = "the same evolve command writes it again"


class RunFolder:
    """A run's folder, held by one driver at a time.

    The lock is the operating system's, so it goes with the process that holds it, however that ends. Where other
    machines have the folder too, there is a claim beside it that they can see (lease.py).

    Args:
        path: The folder; created when missing.
        storage: Where the study is; None for a database in the folder.

    Raises:
        InputError: If another driver holds it, it cannot be created, or a database is not safe there.
    """

    def __init__(self, path: Path, storage: str | None = None) -> None:
        check_run_folder(path)
        self.path = path
        self._made = not path.exists()
        self._new = self._made or not any(path.iterdir())
        self._lease: Lease | None = None
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(f"{path}: cannot be used as a run folder: {error.strerror}") from error
        try:
            self._claim(storage)
        except BaseException:
            os.close(self._lock)
            raise

    def _claim(self, storage: str | None) -> None:
        shared, locks = shared_file_system(self.path), True
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.path}: another search is running in this folder; wait for it, or choose another --run-dir"
            ) from None
        except OSError:
            locks = False
        if storage is None and (not locks or (shared is not None and not shared[1])):
            kind = f" ({shared[0]})" if shared else ""
            raise InputError(
                f"{self.path}: its file system{kind} has no locks that reach other machines, and could damage a "
                "database in it; give --storage a PostgreSQL URL, or choose a --run-dir on a disk of this machine"
            )
        if shared is not None or not locks:
            self._lease = Lease(self.path, alone=locks)

    def check(self) -> None:
        """Make sure that this is still the one driver, before something is written.

        Raises:
            RunStopped: If a driver on another machine has taken the folder.
        """
        if self._lease is not None:
            self._lease.check()

    def close(self) -> None:
        if self._lease is not None:
            self._lease.close()
        os.close(self._lock)

    def discard_if_new(self) -> None:
        """Remove what was put into the folder here, and the folder if it was created here, before a first ask."""
        if not self._new or (self.path / ASKS).exists():
            return
        for path in self.path.iterdir():
            path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
        if self._made:
            with suppress(OSError):  # somebody has put something there
                self.path.rmdir()

    def adopt(self, config: EvolveConfig) -> None:
        """Freeze the config, or check that it is the one that the folder was made with.

        Raises:
            InputError: If it differs in what is searched or in what a score means.
        """
        path = self.path / CONFIG
        check_same_config(self.path, config)
        write_text(path, config.to_yaml())

    def state(self) -> dict[str, Any]:
        """What must outlive the process: the study's name, seconds spent, the environment."""
        state = read_state(self.path)
        if not state:
            state = {"study": f"{self.path.resolve().name}-{uuid.uuid4().hex[:8]}", "seconds": 0.0}
            self.save_state(state)  # before there is a study of that name, which nobody would find again
        return state

    def save_state(self, state: Mapping[str, Any]) -> None:
        write_text(self.path / STATE, json.dumps(state, indent=2) + "\n")


def check_run_folder(path: Path) -> None:
    """Refuse what is no folder, a folder of other things, and a run without what was there before its candidates.

    A search would leave its files among the other things, or go on as another one.

    Raises:
        InputError: If it is.
    """
    if not path.exists():
        return
    if not path.is_dir():
        raise InputError(f"{path}: is not a folder; choose another --run-dir")
    known = {STATE, ASKS, CONFIG, "run.log", STUDY}  # what a search that was killed at once leaves
    others = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
    if others and not known.intersection(others):
        raise InputError(f"{path}: holds other things and no run ({others[0]}); choose another --run-dir")
    for name in (STATE, CONFIG):
        if ASKS in others and not (path / name).exists():
            raise InputError(f"{path / name}: is missing, though candidates were tried; {RESTORE}")
    read_state(path)


def check_same_config(folder: Path, config: EvolveConfig) -> None:
    """Refuse a folder that was made by another config.

    Raises:
        InputError: With a line for every difference.
    """
    path = folder / CONFIG
    if not path.exists():
        return
    frozen = EvolveConfig.load(path)
    if frozen.fingerprint() != config.fingerprint():
        differences = "; ".join(config.diff(frozen))
        raise InputError(f"{folder}: was made by another config ({differences}); choose another --run-dir")


def frozen_control_points(folder: Path) -> list[int] | None:
    """The control points that an earlier session of a run has chosen, if there was one."""
    points: list[int] | None = read_state(folder).get("control_points")
    return points


def read_state(folder: Path) -> dict[str, Any]:
    """What a run keeps for its later sessions; empty before the first one.

    Raises:
        InputError: If the file is damaged.
    """
    path = folder / STATE
    return _read_mapping(path, RESTORE) if path.exists() else {}


def _read_mapping(path: Path, remedy: str) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise InputError(f"{path}: is damaged; {remedy}")
    return read


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file in one step, so that readers see the old text or the new one.

    Args:
        path: The file.
        text: Its new content.
        durable: Whether to wait until it is on the disk.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        if durable:
            os.fsync(file.fileno())
    temporary.replace(path)


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of a run folder.

    Raises:
        InputError: If the folder is not one, or its summary was removed or damaged.
    """
    if (path / SUMMARY).exists():
        return _read_mapping(path / SUMMARY, f"remove it, and {AGAIN}")
    if (path / ASKS).exists():
        raise InputError(f"{path / SUMMARY}: is missing; {AGAIN}")
    raise InputError(f"{path}: not a run folder (no {SUMMARY}); give the --run-dir of a search")


def front_recipe(number: int | str) -> str:
    """Where the recipe of a trial on the front is, within a run folder."""
    return f"front/trial-{number}.yaml"


def finished_summary(run_dir: Path, budget: int) -> dict[str, Any] | None:
    """The summary of a run that has spent this budget and picked its champion."""
    if not (run_dir / SUMMARY).exists():
        return None
    summary = read_summary(run_dir)
    spent = sum(summary["trials"][state] for state in ("complete", "pruned", "failed"))
    return summary if summary["status"] == "finished" and spent >= budget else None
