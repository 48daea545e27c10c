"""What a run leaves for people and programs: summary.json, trials.csv, best.yaml, the closing table."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeAlias

from heterosis.errors import InputError
from heterosis.evaluate.splits import PARTS, Split
from heterosis.evolve.config import RESIDENT, EvolveConfig
from heterosis.evolve.finals import Finals
from heterosis.evolve.folder import SUMMARY, read_state, read_summary, write_text
from heterosis.evolve.genome import UNIFORM
from heterosis.evolve.objective import Judge
from heterosis.evolve.record import Ask, Record, Trial, read_asks
from heterosis.evolve.referee import Referee
from heterosis.evolve.statistics import Interval
from heterosis.evolve.table import TableWriter, read_trials
from heterosis.merge import Recipe
from heterosis.merge.discovery import Discovery, HeldOut

FRONT = "front"  # folder of the front's recipes

# What a run can come to.
Verdict: TypeAlias = Literal["empty", "unfinished", "parent", "baseline", "better", "unclear", "worse"]


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


def export_recipe(trial: Trial, provenance: Mapping[str, Any], found: Discovery, note: str = "") -> str:
    """A trial's recipe with all that it takes to run it again, how it was found, and comments for its reader."""
    recipe = Recipe.parse(trial.ask.recipe, "record")
    own = {**recipe.heterosis, **provenance, "search": found.to_note()}
    recipe = recipe.model_copy(update={"heterosis": own})
    score = "not scored" if trial.score is None else f"{trial.score:.6g} on the search documents"
    lines = [f"heterosis trial {trial.number}: {trial.ask.name}, {score}.", *note.splitlines()]
    lines.append("Run it with: heterosis merge THIS_FILE OUT")
    return "".join(f"# {line}\n" for line in lines) + recipe.to_yaml()


def discovery(summary: Mapping[str, Any], trial: Trial, config: EvolveConfig) -> Discovery:
    """How a trial's recipe was found; of the champion of a finished run also how it was validated."""
    trials, champion = summary["trials"], summary["champion"]
    fixed = {**summary["parents"], **summary["baselines"]}
    validated = summary["status"] == "finished" and champion["trial"] == trial.number
    mine = champion["holdout"] if validated else None
    held_out = {name: r["holdout"] for name, r in fixed.items() if r["holdout"] is not None}
    held_out.pop(trial.ask.name, None)
    reused = summary["documents"]["holdout_reused"]
    packages = ("heterosis", "torch", "transformers", "lm_eval")
    return Discovery(
        trial=trial.number,
        numbers=len(trial.ask.values),
        candidates=trials["complete"] + trials["pruned"],
        stopped_early=trials["pruned"],
        optimizers=tuple(dict.fromkeys(chosen["name"] for chosen in summary["optimizers"].values())),
        objective=summary["maximised"]["kind"],
        tasks={task: entry["metric"] for task, entry in summary["objective"].items()},
        documents={part: summary["documents"][part] for part in PARTS},
        held_out=None if mine is None else HeldOut(merge=mine, others=held_out, reused=reused),
        outcome=summary["outcome"] if validated else "",
        versions={name: summary["environment"][name] for name in packages},
        config=config.fingerprint(),
    )


def export_trial(folder: Path, number: int | None) -> str:
    """The recipe of a trial of a run folder, or of the champion or best so far.

    Raises:
        InputError: If the folder is no run folder, or has no such trial.
    """
    summary = read_summary(folder)
    if number is None:
        best = folder / "best.yaml"
        if not best.exists():
            raise InputError(f"{folder}: no candidate has been scored yet")
        return best.read_text(encoding="utf-8")
    trials = whole_trials(folder)
    if number >= len(trials):
        raise InputError(f"--trial: {folder} has trials 0 to {len(trials) - 1}, but got {number}")
    found = discovery(summary, trials[number], EvolveConfig.load(folder / "config.yaml"))
    return export_recipe(trials[number], read_state(folder)["provenance"], found)


def whole_trials(folder: Path) -> list[Trial]:
    """The results of a run folder with their recipes and values, but without losses."""
    asks = {ask.number: ask for ask in read_asks(folder)}
    return [replace(trial, ask=asks[trial.ask.number]) for trial in read_trials(folder)]


def write_outcome(
    folder: Path,
    *,
    status: str,
    config: EvolveConfig,
    record: Record,
    table: TableWriter,
    split: Split,
    referee: Referee,
    seconds: float,
    environment: Mapping[str, Any],
    optimizers: Mapping[str, Any],
    champion: Trial | None,
    finals: Finals | None,
    provenance: Mapping[str, Any],
    holdout_reused: bool,
    stopped: str | None,
) -> dict[str, Any]:
    """Write the run's summary and table of trials, ``best.yaml``, and the recipes of a front.

    What is new is added to the table, and the rest is small: it takes as long after any number of trials.
    """
    judge = referee.judge
    objective = judge("search").objective

    def score(ask: Ask, part: str) -> float | None:
        if part == "search":
            trial = record.result(ask)
            # Of a parent that was stopped early, the estimate.
            found = trial.score if trial and (trial.complete or ask.kind == "parent") else None
        else:
            scores = record.scores(ask, part)
            found = judge(part).score(scores) if scores and referee.can_judge(part) else None
        return None if found is None else round(found, 6)

    sizes = {part: split.size(part) for part in PARTS}

    def results(ask: Ask) -> dict[str, Any]:
        found = {part: score(ask, part) for part in PARTS}
        early = [part for part in PARTS if found[part] is not None and record.met(ask, part) < sizes[part]]
        return {**found, "estimated": early}

    def gain(other: Ask | None) -> dict[str, Any] | None:
        mine = record.scores(champion.ask, "holdout") if champion else None
        theirs = record.scores(other, "holdout") if other else None
        if mine is None or theirs is None or not referee.can_judge("holdout"):
            return None
        return _interval(judge("holdout").difference(mine, theirs))

    tally, baselines = record.tally, record.baselines
    spent = {key: round(tally.seconds.get(key, 0.0), 3) for key in ("merge", "forward", "other")}
    best_parent = finals.best_parent.ask if finals else None
    over_parent = gain(best_parent)
    held_out = record.scores(champion.ask, "holdout") if champion else None
    summary: dict[str, Any] = {
        "status": status,
        "stopped": stopped,
        "objective": {
            task: {"metric": objective.metrics[task], "weight": w} for task, w in objective.weights.items()
        },
        "maximised": {"kind": objective.kind, "constraints": dict(objective.constraints)},
        "optimizers": dict(optimizers),
        "trials": {
            "complete": tally.complete,
            "pruned": tally.pruned,
            "failed": tally.failed,
            "budget": config.trials,
        },
        "champion": {"trial": champion.number, "name": champion.ask.name, **results(champion.ask)}
        if champion
        else None,
        "parents": {ask.name: results(ask) for ask in baselines.values() if ask.kind == "parent"},
        "baselines": {ask.name: results(ask) for ask in baselines.values() if ask.kind == "baseline"},
        "gain_over_best_parent": {"parent": best_parent.name, **over_parent}
        if best_parent and over_parent
        else None,
        "gain_over_uniform": gain(baselines.get(UNIFORM)),
        "gains_by_task": {task: round(g, 6) for task, g in judge("holdout").gains(held_out).items()}
        if held_out and finals
        else None,
        "violated": judge("holdout").violated(held_out) if held_out and finals else [],
        "finalists": [{"trial": f.trial.number, "selection": round(f.selection, 6)} for f in finals.finalists]
        if finals
        else [],
        "front": _front(finals.front, record, judge) if finals else [],
        "documents": {
            **sizes,
            "scored": record.documents_scored(),
            "holdout_reused": holdout_reused,
        },
        "seconds": {"total": round(seconds, 1), **spent},
        "failures": dict(tally.causes),
        "environment": dict(environment),
    }
    summary["outcome"] = outcome_sentence(summary)
    if champion:
        note = f"The champion. {summary['outcome']}" if finals else "Best so far on the search documents."
        found = discovery(summary, champion, config)
        write_text(folder / "best.yaml", export_recipe(champion, provenance, found, note))
    if finals and finals.front:
        _write_front(folder / FRONT, summary, finals.front, config, provenance)
    table.write(record.trials)
    write_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _write_front(
    folder: Path,
    summary: Mapping[str, Any],
    trials: Sequence[Trial],
    config: EvolveConfig,
    provenance: Mapping[str, Any],
) -> None:
    """Write the recipes of a front, and remove those of an earlier one."""
    folder.mkdir(exist_ok=True)
    names = {trial.number: f"trial-{trial.number}.yaml" for trial in trials}
    for trial in trials:
        note = "On the front: no other finalist is better in everything."
        text = export_recipe(trial, provenance, discovery(summary, trial, config), note)
        write_text(folder / names[trial.number], text)
    for path in folder.glob("trial-*.yaml"):
        if path.name not in names.values():
            path.unlink()


def _front(trials: Sequence[Trial], record: Record, judge: Callable[[str], Judge]) -> list[dict[str, Any]]:
    """Gains of the front's trials on the selection documents."""
    rows = []
    for trial in trials:
        scores = record.scores(trial.ask, "selection")
        assert scores is not None
        gains = {task: round(gain, 6) for task, gain in judge("selection").gains(scores).items()}
        rows.append({"trial": trial.number, "recipe": f"{FRONT}/trial-{trial.number}.yaml", "gains": gains})
    return rows


def label(trial: Trial) -> str:
    """What a trial is called: the number under which it is exported, or its name if it is a baseline."""
    return trial.ask.name if trial.ask.kind in ("parent", "baseline") else f"trial {trial.number}"


def describe_result(trial: Trial) -> str:
    """A trial's result in a few words."""
    if trial.score is None:
        return f"failed: {trial.cause}"
    return f"about {trial.score:.4f}, stopped early" if trial.pruned else f"{trial.score:.4f}"


def _interval(interval: Interval) -> dict[str, Any]:
    return {"holdout": round(interval.mean, 6), "ci95": [round(interval.low, 6), round(interval.high, 6)]}


def verdict_of(summary: Mapping[str, Any]) -> Verdict:
    """What came of a run: who the champion is, and whether it beats the best parent beyond doubt."""
    gain, champion = summary.get("gain_over_best_parent"), summary.get("champion")
    if champion is None:
        return "empty"
    if gain is None:
        return "unfinished"
    if champion["name"] in summary["parents"]:
        return "parent"
    if champion["name"] in summary["baselines"]:
        return "baseline"
    low, high = gain["ci95"]
    return "better" if low > 0 else "worse" if high < 0 else "unclear"


def outcome_sentence(summary: Mapping[str, Any]) -> str:
    """What came of a run, in a sentence."""
    kind, gain, champion = verdict_of(summary), summary.get("gain_over_best_parent"), summary.get("champion")
    if champion is None:
        return "No candidate has been scored yet."
    if gain is None:
        return f"Unfinished: the best so far is trial {champion['trial']} with {champion['search']:.4f} in search."
    low, high = gain["ci95"]
    interval = f"95 % interval {low:+.4f} to {high:+.4f}"
    against = f"{gain['holdout']:+.4f} ({interval}) against the best parent, {gain['parent']}"
    if kind == "parent":
        return f"No signal: the search found nothing better than the parent {champion['name']}."
    if kind == "baseline":
        return f"No signal: the search found nothing better than the {champion['name']} merge, {against}."
    verdict = {
        "better": "beats the best parent on held-out documents",
        "worse": "is worse than the best parent on held-out documents",
        "unclear": "cannot be told from the best parent on held-out documents",
    }[kind]
    broken = summary.get("violated")
    kept = f" It breaks the constraint on {', '.join(broken)} there." if broken else ""
    reused = " Held-out documents were used before." if summary["documents"].get("holdout_reused") else ""
    return f"Trial {champion['trial']} {verdict}: {against}.{kept}{reused}"


def closing_table(summary: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows of name, search, selection and held-out score: parents, baselines, champion.

    A score with a ``~`` is that of some of the documents, as a race was decided by these.
    """

    def cells(name: str, results: Mapping[str, Any]) -> tuple[str, str, str, str]:
        early = results.get("estimated", ())
        search, selection, holdout = (
            "" if results.get(part) is None else f"{'~' if part in early else ''}{results[part]:.4f}"
            for part in PARTS
        )
        return name, search, selection, holdout

    rows = [cells(name, r) for name, r in summary["parents"].items()]
    # Those that were stopped early have estimates only.
    rows += [cells(name, r) for name, r in summary["baselines"].items() if r["search"] is not None]
    champion = summary["champion"]
    if champion:
        title = "champion" if summary["status"] == "finished" else "best so far"
        rows.append(cells(f"{title}: trial {champion['trial']}", champion))
    return rows
