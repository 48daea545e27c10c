"""The run folder: its lock, its frozen config, and what is refused as one."""

import fcntl
import os
import shutil
from contextlib import suppress
from pathlib import Path

from heterosis.errors import InputError
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.faults import RunStopped
from heterosis.evolve.machine import shared_file_system
from heterosis.evolve.record.files import ASKS, CONFIG, RESTORE, STATE, STUDY, SUMMARY
from heterosis.evolve.record.lease import Lease
from heterosis.evolve.record.state import RunState
from heterosis.evolve.record.summary_file import Summary, read_summary
from heterosis.merge.files import remove_torn, write_text

LOCK = ".lock"


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
            self._lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise InputError(f"{path}: cannot be used as a run folder: {error.strerror}") from error
        try:
            self._claim(storage)
            remove_torn(path)
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
            RunStopped: If another folder is there now, or none, or a driver on another machine has taken it.
        """
        if not self._is_there():
            raise RunStopped(
                f"{self.path}: was moved or replaced while a search ran in it; move it back, or give its new "
                "place as --run-dir, then the same command continues"
            )
        if self._lease is not None:
            self._lease.check()

    def _is_there(self) -> bool:
        """Whether the path is still that of the folder that is held."""
        try:
            return os.path.samestat(os.fstat(self._lock), (self.path / LOCK).stat())
        except (FileNotFoundError, NotADirectoryError):
            return False

    def close(self) -> None:
        if self._lease is not None:
            self._lease.close()
        os.close(self._lock)

    def discard_if_new(self) -> None:
        """Remove what was put into the folder here, and the folder if it was created here, before a first ask."""
        if not self._new or (self.path / ASKS).exists() or not self._is_there():
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


def check_run_folder(path: Path) -> None:
    """Refuse what is no folder, a folder of other things, and a run without what was there before its candidates.

    A search would leave its files among the other things, or go on as another one. Names that are no text have no
    URL.

    Raises:
        InputError: If it is.
    """
    try:
        str(path.resolve()).encode()
    except UnicodeEncodeError:
        raise InputError(f"{path}: must have a name that is UTF-8 text; choose another --run-dir") from None
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
    RunState.load(path)


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


def with_champion(run_dir: Path, trials: int, documents: int) -> Summary | None:
    """The summary of a run that has picked its champion, and has no more results and scores than it tells of."""
    if not (run_dir / SUMMARY).exists():
        return None
    summary = read_summary(run_dir)
    told = _results(summary), summary["documents"]["scored"]
    return summary if summary.get("finalists") and told == (trials, documents) else None


def finished_summary(run_dir: Path, config: EvolveConfig) -> Summary | None:
    """The summary of a finished run in which a config's budgets leave nothing to do."""
    if not (run_dir / SUMMARY).exists():
        return None
    summary = read_summary(run_dir)
    return summary if summary["status"] == "finished" and _is_spent(summary, config) else None


def _results(summary: Summary) -> int:
    return sum(summary["trials"][state] for state in ("complete", "pruned", "failed"))


def _is_spent(summary: Summary, config: EvolveConfig) -> bool:
    """Whether a config's budgets leave nothing to do in a finished run."""
    ends = {
        "hours": (config.hours and config.hours * 3600, summary["seconds"].get("budget")),
        "max_documents": (config.max_documents, summary["documents"].get("budget")),
    }
    now, then = ends.get(summary.get("ended_by") or "", (None, None))
    # Baselines that were asked again are among the results, and not counted.
    counted = min(_results(summary), summary["trials"]["budget"])
    return counted >= config.trials or bool(now and then and now <= then)
