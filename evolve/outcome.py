"""What a run leaves for people and programs: summary.json, trials.csv, best.yaml, the closing table."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from heterosis.errors import InputError
from heterosis.evaluate.splits import Split
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.folder import SUMMARY, read_summary, write_text
from heterosis.evolve.objective import Objective
from heterosis.evolve.record import Ask, Record, Trial, read_asks
from heterosis.evolve.statistics import Interval
from heterosis.merge import Recipe


@dataclass(frozen=True)
class Finalist:
    """A trial and its score on the selection documents."""

    trial: Trial
    selection: float


def environment(config: EvolveConfig, device: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """What scores depend on beside the config: versions, batch size, models' contents."""
    packages = {"heterosis": "heterosis", "torch": "torch", "transformers": "transformers", "lm_eval": "lm-eval"}
    packages |= {"cma": "cma", "numpy": "numpy"}
    hashes = {name: model["sha256"] for name, model in provenance["models"].items()}
    return {
        **{key: version(package) for key, package in packages.items()},
        "seed": config.seed,
        "batch_size": config.batch_size,
        "device": device,
        "models": hashes,
    }


def export_recipe(trial: Trial, provenance: Mapping[str, Any], note: str = "") -> str:
    """A trial's recipe with all that it takes to run it again, and comments on where it came from."""
    recipe = Recipe.parse(trial.ask.recipe, "record")
    recipe = recipe.model_copy(update={"heterosis": {**recipe.heterosis, **provenance}})
    score = "not scored" if trial.score is None else f"{trial.score:.6g} on the search documents"
    lines = [f"heterosis trial {trial.number}: {trial.ask.name}, {score}.", *note.splitlines()]
    lines.append("Run it with: heterosis merge THIS_FILE OUT")
    return "".join(f"# {line}\n" for line in lines) + recipe.to_yaml()


def export_trial(folder: Path, number: int | None) -> str:
    """The recipe of a trial of a run folder, or of the champion or best so far.

    Raises:
        InputError: If the folder is no run folder, or has no such trial.
    """
    read_summary(folder)
    if number is None:
        best = folder / "best.yaml"
        if not best.exists():
            raise InputError(f"{folder}: no candidate has been scored yet")
        return best.read_text(encoding="utf-8")
    trials = list(csv.DictReader(io.StringIO((folder / "trials.csv").read_text(encoding="utf-8"))))
    if number >= len(trials):
        raise InputError(f"--trial: {folder} has trials 0 to {len(trials) - 1}, but got {number}")
    row = trials[number]
    ask = next(a for a in read_asks(folder) if a.number == int(row["ask"]))
    trial = Trial(number, ask, float(row["score"]) if row["score"] else None)
    state = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return export_recipe(trial, state["provenance"])


def write_outcome(
    folder: Path,
    *,
    status: str,
    config: EvolveConfig,
    record: Record,
    split: Split,
    objective: Objective,
    seconds: float,
    environment: Mapping[str, Any],
    champion: Trial | None,
    parents: Sequence[Ask],
    best_parent: Trial | None,
    uniform: Ask | None,
    provenance: Mapping[str, Any],
    finalists: Sequence[Finalist],
    holdout_reused: bool,
    stopped: str | None,
) -> dict[str, Any]:
    """Write the run's summary and table of trials; once there are finals, the champion's ``best.yaml`` too."""

    def score(ask: Ask | None, part: str) -> float | None:
        scores = record.scores(ask, part) if ask else None
        return round(objective.score(scores), 6) if scores else None

    def results(ask: Ask) -> dict[str, float | None]:
        return {part: score(ask, part) for part in ("search", "selection", "holdout")}

    def gain(other: Ask | None) -> dict[str, Any] | None:
        mine = record.scores(champion.ask, "holdout") if champion else None
        theirs = record.scores(other, "holdout") if other else None
        return _interval(objective.difference(mine, theirs)) if mine and theirs else None

    times = [trial.seconds for trial in record.trials]
    spent = {key: round(sum(t.get(key, 0.0) for t in times), 3) for key in ("merge", "forward", "other")}
    over_parent = gain(best_parent.ask if best_parent else None)
    summary: dict[str, Any] = {
        "status": status,
        "stopped": stopped,
        "objective": {
            task: {"metric": objective.metrics[task], "weight": w} for task, w in objective.weights.items()
        },
        "trials": {
            "complete": sum(t.score is not None for t in record.trials),
            "pruned": 0,
            "failed": sum(t.score is None for t in record.trials),
            "budget": config.trials,
        },
        "champion": {"trial": champion.number, "name": champion.ask.name, **results(champion.ask)}
        if champion
        else None,
        "parents": {ask.name: results(ask) for ask in parents},
        "baselines": {uniform.name: results(uniform)} if uniform else {},
        "gain_over_best_parent": {"parent": best_parent.ask.name, **over_parent}
        if best_parent and over_parent
        else None,
        "gain_over_uniform": gain(uniform),
        "finalists": [{"trial": f.trial.number, "selection": round(f.selection, 6)} for f in finalists],
        "documents": {
            **{part: sum(map(len, getattr(split, part).values())) for part in ("search", "selection", "holdout")},
            "scored": record.documents_scored(),
            "holdout_reused": holdout_reused,
        },
        "seconds": {"total": round(seconds, 1), **spent},
        "failures": _causes(record.trials),
        "environment": dict(environment),
    }
    summary["outcome"] = outcome_sentence(summary)
    if champion:
        note = f"The champion. {summary['outcome']}" if finalists else "Best so far on the search documents."
        write_text(folder / "best.yaml", export_recipe(champion, provenance, note))
    write_text(folder / "trials.csv", _table_of(record))
    write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _interval(interval: Interval) -> dict[str, Any]:
    return {"holdout": round(interval.mean, 6), "ci95": [round(interval.low, 6), round(interval.high, 6)]}


def _causes(trials: Sequence[Trial]) -> dict[str, int]:
    causes: dict[str, int] = {}
    for trial in trials:
        if trial.cause is not None:
            causes[trial.cause] = causes.get(trial.cause, 0) + 1
    return causes


def _table_of(record: Record) -> str:
    """One line for each trial, parameters last."""
    names = list(dict.fromkeys(name for t in record.trials for name in t.ask.values))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["trial", "ask", "kind", "name", "score", "cause", "merge_s", "forward_s", "other_s", *names])
    for t in record.trials:
        times = [t.seconds.get(key, "") for key in ("merge", "forward", "other")]
        score = "" if t.score is None else t.score
        values = [t.ask.values.get(name, "") for name in names]
        writer.writerow([t.number, t.ask.number, t.ask.kind, t.ask.name, score, t.cause or "", *times, *values])
    return out.getvalue()


def outcome_sentence(summary: Mapping[str, Any]) -> str:
    """What came of a run, in a sentence."""
    gain = summary.get("gain_over_best_parent")
    champion = summary.get("champion")
    if champion is None:
        return "No candidate has been scored yet."
    if gain is None:
        return f"Unfinished: the best so far is trial {champion['trial']} with {champion['search']:.4f} in search."
    low, high = gain["ci95"]
    interval = f"95 % interval {low:+.4f} to {high:+.4f}"
    against = f"{gain['holdout']:+.4f} ({interval}) against the best parent, {gain['parent']}"
    if champion["name"] in summary["parents"]:
        return f"No signal: the search found nothing better than the parent {champion['name']}."
    if champion["name"] in summary["baselines"]:
        return f"No signal: the search found nothing better than the {champion['name']} merge, {against}."
    if low > 0:
        verdict = "beats the best parent on held-out documents"
    elif high < 0:
        verdict = "is worse than the best parent on held-out documents"
    else:
        verdict = "cannot be told from the best parent on held-out documents"
    reused = " Held-out documents were used before." if summary["documents"].get("holdout_reused") else ""
    return f"Trial {champion['trial']} {verdict}: {against}.{reused}"


def closing_table(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of name, search, selection and held-out score: parents, baselines, champion."""

    def cells(name: str, results: Mapping[str, Any]) -> tuple[str, str, str, str]:
        search, selection, holdout = (
            "" if results.get(part) is None else f"{results[part]:.4f}"
            for part in ("search", "selection", "holdout")
        )
        return name, search, selection, holdout

    rows = [cells(name, r) for name, r in summary["parents"].items()]
    rows += [cells(name, r) for name, r in summary["baselines"].items()]
    champion = summary["champion"]
    if champion:
        title = "champion" if summary["status"] == "finished" else "best so far"
        rows.append(cells(f"{title}: trial {champion['trial']}", champion))
    return rows
