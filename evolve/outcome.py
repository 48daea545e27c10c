"""What a run leaves in its folder for people and programs: summary.json, trials.csv, best.yaml, front/."""

import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from heterosis.evaluate.splits import Split
from heterosis.evolve.config import RESIDENT, EvolveConfig
from heterosis.evolve.export import discovery, export_recipe, write_front
from heterosis.evolve.files import SUMMARY, write_text
from heterosis.evolve.finals import Finals
from heterosis.evolve.record import Record
from heterosis.evolve.referee import Referee
from heterosis.evolve.state import RunState
from heterosis.evolve.summary import Results, outcome_sentence
from heterosis.evolve.table import TableWriter
from heterosis.evolve.trial import Trial


def environment(
    config: EvolveConfig, device: str, provenance: Mapping[str, Any], batch_size: int | str | None
) -> dict[str, Any]:
    """What scores depend on beside the config: versions, batch size (None before a probe), models' contents."""
    packages = {"heterosis": "heterosis", "torch": "torch", "transformers": "transformers", "lm_eval": "lm-eval"}
    packages |= {"cma": "cma", "numpy": "numpy"}
    hashes = {name: model["sha256"] for name, model in provenance["models"].items()}
    return {
        **{key: version(package) for key, package in packages.items()},
        "seed": config.seed,
        "batch_size": batch_size,
        "device": device,
        **_backend(config.backend.name),
        "models": hashes,
    }


def _backend(name: str) -> dict[str, str]:
    """The backend, if it is not the usual one, with the version of the package of that name, if there is one."""
    if name == RESIDENT:
        return {}
    try:
        return {"backend": f"{name} {version(name)}"}
    except PackageNotFoundError:
        return {"backend": name}


def write_outcome(
    folder: Path,
    *,
    status: str,
    stopped: str | None,
    config: EvolveConfig,
    state: RunState,
    record: Record,
    referee: Referee,
    split: Split,
    champion: Trial | None,
    finals: Finals | None,
    table: TableWriter,
) -> dict[str, Any]:
    """Write the run's summary and table of trials, ``best.yaml``, and the recipes of a front.

    What is new is added to the table, and the rest is small: it takes as long after any number of trials.

    Args:
        folder: The run's.
        status: ``running``, ``stopped`` or ``finished``.
        stopped: Why, if it was.
        config: Of the run.
        state: Of the run.
        record: All scores.
        referee: Says what they amount to.
        split: The documents.
        champion: The best so far, or of the finals; None before there is any.
        finals: None before they are over.
        table: Of the trials.

    Returns:
        The summary.
    """
    found = Results(record, referee, split, champion, finals).summary()
    spent = {key: round(record.tally.seconds.get(key, 0.0), 3) for key in ("merge", "forward", "other")}
    summary = {
        "status": status,
        "stopped": stopped,
        **found,
        "optimizers": {str(stage): chosen.model_dump() for stage, chosen in state.optimizers.items()},
        "trials": {**found["trials"], "budget": config.trials},
        "ended_by": state.spent,
        "documents": {**found["documents"], "holdout_reused": state.holdout_reused},
        "seconds": {"total": round(state.seconds, 1), **spent},
        "environment": state.environment,
    }
    summary["outcome"] = outcome_sentence(summary)
    if champion:
        note = f"The champion. {summary['outcome']}" if finals else "Best so far on the search documents."
        how = discovery(summary, champion, config)
        write_text(folder / "best.yaml", export_recipe(champion, state.provenance, how, note))
    if finals and finals.front:
        write_front(folder, summary, finals.front, config, state.provenance)
    table.write(record.trials)
    write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary
