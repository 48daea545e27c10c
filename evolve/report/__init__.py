"""A run as one HTML page that needs no network.

data.py        what is shown, gathered from a run folder as plain data
documents.py   what the tasks say of their documents, kept in the run folder
shape.py       a recipe's parameters over depth, or its path through layers
importance.py  which parameters mattered
charts.py      from numbers to places in a chart; words.py: numbers in words
candidates.py  charts with a point for each candidate; over_depth.py: of the champion's recipe
page.py        the page, from the data and templates/
"""

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from heterosis.errors import InputError
from heterosis.evolve.record.files import SUMMARY
from heterosis.evolve.report.data import gather
from heterosis.evolve.report.documents import Known
from heterosis.evolve.report.page import render
from heterosis.merge.files import write_text

if TYPE_CHECKING:
    from heterosis.evaluate.harness import TaskSet

__all__ = ["REPORT", "load_tasks", "report_is_written", "write_report"]

log = logging.getLogger("heterosis")

REPORT = "report.html"


def write_report(
    folder: Path, output: Path | None = None, *, tasks: "TaskSet | None" = None, storage: str | None = None
) -> Path:
    """Write a run's report, also while it runs.

    Args:
        folder: The run folder.
        output: The file, replaced in one step; None for ``report.html`` in the folder.
        tasks: The run's tasks: what they say of the documents that are shown is kept in the folder, for later
            reports. None shows what was kept.
        storage: Optuna storage URL of the run's study, if it is not in the folder.

    Returns:
        The file that was written.

    Raises:
        InputError: If the folder is not one of a run, or the file cannot be written.
    """
    report = gather(folder, None if tasks is None else Known.of(tasks), storage)
    if tasks is not None:
        report = replace(report, known=report.known.with_texts(tasks, report.examples))
        report.known.save(folder)
    page = render(report)
    target = folder / REPORT if output is None else output
    try:
        # Names and documents may have halves of surrogate pairs, which no file of UTF-8 can hold.
        write_text(target, page.encode("utf-8", "replace").decode())
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error
    return target


def report_is_written(folder: Path) -> bool:
    """Whether a run's report was written since its summary was."""
    report, summary = folder / REPORT, folder / SUMMARY
    return report.exists() and report.stat().st_mtime_ns >= summary.stat().st_mtime_ns


def load_tasks(folder: Path) -> "TaskSet":
    """A run's tasks, as the search loaded them: Python beside their YAML is run.

    Raises:
        InputError: If they cannot be loaded, or their documents have changed since.
    """
    from heterosis.evaluate.splits import Split
    from heterosis.evolve.config import EvolveConfig
    from heterosis.evolve.workers.worker import task_set

    tasks = task_set(EvolveConfig.load(folder / "config.yaml"))
    Split.load(folder / "splits.json").check(tasks.fingerprints(), str(folder / "splits.json"))
    return tasks
