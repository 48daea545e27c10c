"""The driver: from a config and options to a session of a run, and the report on it."""

import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heterosis.errors import InputError, within
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.faults import SearchFailed, disk_faults
from heterosis.evolve.logs import logging_to, optuna_quietly
from heterosis.evolve.loop import SearchLoop
from heterosis.evolve.preflight.preflight import preflight
from heterosis.evolve.preflight.resources import check_workers, merges_to, resources
from heterosis.evolve.record.folder import RunFolder, check_run_folder, check_same_config, finished_summary
from heterosis.evolve.record.state import RunState
from heterosis.evolve.record.summary_file import Summary
from heterosis.evolve.report import load_tasks, report_is_written, write_report
from heterosis.evolve.session import Progress, Session
from heterosis.evolve.watching.tracking import check_trackers, tracked
from heterosis.evolve.workers.pool import Pool, Setup
from heterosis.merge.machine import check_device

if TYPE_CHECKING:
    from heterosis.evaluate.harness import TaskSet

__all__ = ["SearchFailed", "search"]

log = logging.getLogger("heterosis")


def search(
    config: EvolveConfig | Mapping[str, Any] | str | os.PathLike[str],
    run_dir: str | os.PathLike[str],
    *,
    trials: int | None = None,
    hours: float | None = None,
    max_documents: int | None = None,
    workers: int | None = None,
    cpus_per_worker: float | None = None,
    gpus_per_worker: float | None = None,
    include_path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    seed: int | None = None,
    storage: str | None = None,
    ray_address: str | None = None,
    device: str = "cpu",
    log_to: str | Sequence[str] = (),
    progress: Progress | None = None,
    make_pool: Callable[[Setup, int], Pool] | None = None,
) -> Summary:
    """Search for the best merge recipe; with the folder of an earlier run, continue it.

    Args:
        config: A config, what a file of one would hold, or the path of one.
        run_dir: The run folder.
        trials: Candidates in all, baselines included; replaces the config's.
        hours: Time in all, earlier sessions of the run included; replaces the config's.
        max_documents: Documents scored in all; replaces the config's.
        workers: Processes that score; replaces the config's.
        cpus_per_worker: Cores of each; replaces the config's.
        gpus_per_worker: Graphics processors of each; replaces the config's.
        include_path: More folders with lm-eval task YAML, or one.
        seed: Replaces the config's.
        storage: Optuna storage URL; None for SQLite in the run folder. It is not written anywhere.
        ray_address: A Ray cluster; None for this machine.
        device: Where the workers' models live.
        log_to: Trackers that are told of the run, beside the config's: ``tensorboard``, ``mlflow``, ``wandb``.
        progress: Shows what happens.
        make_pool: Another pool of workers than Ray's.

    Returns:
        The summary, as in the folder's ``summary.json``; its ``status`` is ``stopped`` after an interrupt.

    Raises:
        InputError: If something is wrong with the input; then no new folder is left behind.
        SearchFailed: If what fails shows that the set-up is wrong, or nothing can be said without what cannot be
            scored.
        RunStopped: If the disk, the storage or the workers are gone; the same call continues.
    """
    loaded, origin = _loaded(config)
    loaded = loaded.with_options(
        trials=trials,
        hours=hours,
        max_documents=max_documents,
        workers=workers,
        cpus_per_worker=cpus_per_worker,
        gpus_per_worker=gpus_per_worker,
        seed=seed,
        include_path=include_path,
        log_to=log_to,
    )
    check_run_folder(Path(run_dir))
    check_same_config(Path(run_dir), loaded)
    if finished := finished_summary(Path(run_dir), loaded):
        if not report_is_written(Path(run_dir)):  # the driver was killed before it was
            _report(Path(run_dir), None, storage)
        return finished
    with within(origin):
        checked = preflight(loaded, RunState.load(Path(run_dir)))
        takes = resources(checked, Path(run_dir), local=device == "cpu" and ray_address is None)
        takes.check()
        check_trackers(loaded.log_to)
        if ray_address is None:
            if make_pool is None:
                check_device(device)
            check_workers(loaded, device)
            merges_to(checked)
    for text in (*checked.warnings, *takes.warnings):
        warnings.warn(text, stacklevel=2)
    folder = RunFolder(Path(run_dir), storage)
    try:
        with (
            disk_faults(folder.path),
            logging_to(folder.path / "run.log"),
            optuna_quietly(),
            tracked(folder.path, loaded.log_to),
        ):
            session = Session(checked, folder, storage, device, progress)
            with session.pool(make_pool, ray_address) as pool:
                finals = SearchLoop(session, pool).search()
            summary = session.end(finals)
            _report(folder.path, checked.tasks, storage)
            return summary
    except InputError:
        folder.discard_if_new()
        raise
    finally:
        folder.close()


def _loaded(config: EvolveConfig | Mapping[str, Any] | str | os.PathLike[str]) -> tuple[EvolveConfig, str]:
    """A config, and what messages call it."""
    if isinstance(config, EvolveConfig):
        return config, "config"
    if isinstance(config, Mapping):
        return EvolveConfig.from_dict(config), "config"
    return EvolveConfig.load(config), os.fspath(config)


def _report(folder: Path, tasks: "TaskSet | None", storage: str | None) -> None:
    """Write the run's report; whatever goes wrong with it, the run is done."""
    try:
        write_report(folder, tasks=tasks or load_tasks(folder), storage=storage)
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        log.warning("the report could not be written: %s; heterosis report %s tries again", reason, folder)
