"""What a run leaves in its folder for people and programs: summary.json, trials.csv, best.yaml, front/."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from heterosis.evolve.judging.finals import Finals
from heterosis.evolve.record.files import BEST, SUMMARY
from heterosis.evolve.record.summary_file import Status, Summary, TrialCounts
from heterosis.evolve.results.export import discovery, export_recipe, write_front
from heterosis.evolve.results.summary import Results
from heterosis.evolve.results.table import TableWriter
from heterosis.merge.files import write_text

if TYPE_CHECKING:
    from heterosis.evolve.run import Run


def write_outcome(
    run: "Run", table: TableWriter, *, status: Status, stopped: str | None, finals: Finals | None
) -> Summary:
    """Write the run's summary and table of trials, ``best.yaml``, and the recipes of a front.

    What is new is added to the table, and the rest is small: it takes as long after any number of trials.

    Args:
        run: The run.
        table: Of its trials.
        status: ``running``, ``stopped`` or ``finished``.
        stopped: Why, if it was.
        finals: None before they are over.

    Returns:
        The summary.
    """
    config, state, record, folder = run.config, run.state, run.record, run.folder.path
    champion = finals.champion if finals else record.tally.best
    summary = Results(run, champion, finals).summary(status, stopped)
    if champion:
        note = f"The champion. {summary['outcome']}" if finals else "Best so far on the search documents."
        how = discovery(summary, champion, config)
        write_text(folder / BEST, export_recipe(champion, state.provenance, how, note))
    if finals and finals.front:
        write_front(folder, summary, finals.front, config, state.provenance)
    table.write(record.trials)
    _write(folder, summary)
    return summary


def leave_outcome(run: "Run", earlier: Summary, *, status: Status, stopped: str | None) -> Summary:
    """Leave what an earlier session has found as it is, while a session has scored nothing.

    Args:
        run: The run.
        earlier: Its summary, with a champion.
        status: ``running`` or ``stopped``; the file says ``finished`` then, as before.
        stopped: Why, if it was.

    Returns:
        The summary of this session.
    """
    trials: TrialCounts = {**earlier["trials"], "budget": run.config.trials}
    summary: Summary = {**earlier, "status": status, "stopped": stopped, "trials": trials}
    _write(run.folder.path, {**earlier, "status": "finished"} if status == "stopped" else summary)
    return summary


def _write(folder: Path, summary: Summary) -> None:
    write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
