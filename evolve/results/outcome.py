"""What a run leaves in its folder for people and programs: summary.json, trials.csv, best.yaml, front/."""

import json
from pathlib import Path
from typing import Any

from heterosis.evolve.judging.finals import Finals
from heterosis.evolve.record.files import BEST, SUMMARY
from heterosis.evolve.record.trial import TIMES
from heterosis.evolve.results.export import discovery, export_recipe, write_front
from heterosis.evolve.results.summary import Results, outcome_sentence
from heterosis.evolve.results.table import TableWriter
from heterosis.evolve.run import Run
from heterosis.merge.files import write_text


def write_outcome(
    run: Run, table: TableWriter, *, status: str, stopped: str | None, finals: Finals | None
) -> dict[str, Any]:
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
    found = Results(record, run.referee, run.split, champion, finals).summary()
    spent = {key: round(record.tally.seconds.get(key, 0.0), 3) for key in TIMES}
    summary = {
        "status": status,
        "stopped": stopped,
        **found,
        "optimizers": {
            str(stage): chosen.model_dump(exclude={"limits"}) for stage, chosen in state.optimizers.items()
        },
        "trials": {**found["trials"], "budget": config.trials},
        "ended_by": state.spent,
        "documents": {
            **found["documents"],
            "holdout_reused": state.holdout_reused,
            "budget": config.max_documents,
        },
        "seconds": {"total": round(state.seconds, 1), **spent, "budget": config.hours and config.hours * 3600},
        "environment": state.environment,
    }
    summary["outcome"] = outcome_sentence(summary)
    if champion:
        note = f"The champion. {summary['outcome']}" if finals else "Best so far on the search documents."
        how = discovery(summary, champion, config)
        write_text(folder / BEST, export_recipe(champion, state.provenance, how, note))
    if finals and finals.front:
        write_front(folder, summary, finals.front, config, state.provenance)
    table.write(record.trials)
    _write(folder, summary)
    return summary


def leave_outcome(run: Run, earlier: dict[str, Any], *, status: str, stopped: str | None) -> dict[str, Any]:
    """Leave what an earlier session has found as it is, while a session has scored nothing.

    Args:
        run: The run.
        earlier: Its summary, with a champion.
        status: ``running`` or ``stopped``; the file says ``finished`` then, as before.
        stopped: Why, if it was.

    Returns:
        The summary of this session.
    """
    budget = {**earlier["trials"], "budget": run.config.trials}
    summary = {**earlier, "status": status, "stopped": stopped, "trials": budget}
    _write(run.folder.path, {**earlier, "status": "finished"} if status == "stopped" else summary)
    return summary


def _write(folder: Path, summary: dict[str, Any]) -> None:
    write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
