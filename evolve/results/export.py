"""Recipes of trials as files: with all that it takes to run them again, and how they were found."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from heterosis.errors import InputError
from heterosis.evaluate.splits import PARTS
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.record.files import BEST, REMOVE, front_recipe, read_text
from heterosis.evolve.record.record import read_trials
from heterosis.evolve.record.state import RunState
from heterosis.evolve.record.summary_file import Summary, read_summary
from heterosis.evolve.record.trial import Trial
from heterosis.merge import Recipe
from heterosis.merge.files import write_text
from heterosis.merge.recipe.command import merge_command
from heterosis.merge.recipe.discovery import Discovery, HeldOut


def export_recipe(trial: Trial, provenance: Mapping[str, Any], found: Discovery, note: str = "") -> str:
    """A trial's recipe with all that it takes to run it again, how it was found, and comments for its reader."""
    recipe = Recipe.parse(trial.ask.recipe, "record")
    own = {**recipe.heterosis, **provenance, "search": found.to_note()}
    recipe = recipe.model_copy(update={"heterosis": own})
    score = "not scored" if trial.score is None else f"{trial.score:.6g} on the search documents"
    if trial.pruned:
        score = f"about {score}, of which it has met {trial.documents}"
    lines = [f"heterosis trial {trial.number}: {trial.ask.name}, {score}.", *note.splitlines()]
    modules = recipe.heterosis.get("methods", {}).values()
    lines.append(f"Run it with: {merge_command('THIS_FILE', 'OUT', modules)}")
    return "".join(f"# {line}\n" for line in lines) + recipe.to_yaml()


def discovery(summary: Summary, trial: Trial, config: EvolveConfig) -> Discovery:
    """How a trial's recipe was found; of the champion of a finished run also how it was validated."""
    trials, champion = summary["trials"], summary["champion"]
    baselines = {**summary["parents"], **summary["baselines"]}
    own = champion if champion is not None and champion["trial"] == trial.number else None
    validated = own if summary["status"] == "finished" else None
    mine = validated["holdout"] if validated else None
    held_out = {name: r["holdout"] for name, r in baselines.items() if r["holdout"] is not None}
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


def read_best(folder: Path) -> str | None:
    """The recipe of a run's champion or best so far; None before there is one.

    Raises:
        InputError: If it is damaged.
    """
    path = folder / BEST
    if not path.exists():
        return None
    text = read_text(path, REMOVE)
    try:
        Recipe.parse(text, str(path))
    except InputError as error:
        raise InputError(f"{path}: is damaged; {REMOVE}") from error
    return text


def export_trial(folder: Path, number: int | None) -> str:
    """The recipe of a trial of a run folder, or of the champion or best so far.

    Raises:
        InputError: If the folder is no run folder, or has no such trial.
    """
    summary = read_summary(folder)
    if number is None:
        best = read_best(folder)
        if best is None:
            raise InputError(f"{folder}: no candidate has been scored yet")
        return best
    trials = read_trials(folder)
    if not trials:
        raise InputError(f"{folder}: no candidate has been scored yet")
    if number >= len(trials):
        raise InputError(f"--trial: {folder} has trials 0 to {len(trials) - 1}, but got {number}")
    found = discovery(summary, trials[number], EvolveConfig.load(folder / "config.yaml"))
    return export_recipe(trials[number], RunState.load(folder).provenance, found)


def write_front(
    folder: Path,
    summary: Summary,
    trials: Sequence[Trial],
    config: EvolveConfig,
    provenance: Mapping[str, Any],
) -> None:
    """Write the recipes of a front into a run folder, and remove those of an earlier one."""
    paths = {trial.number: folder / front_recipe(trial.number) for trial in trials}
    for trial in trials:
        path = paths[trial.number]
        path.parent.mkdir(exist_ok=True)
        note = "On the front: no other finalist is better in everything."
        write_text(path, export_recipe(trial, provenance, discovery(summary, trial, config), note))
    for path in folder.glob(front_recipe("*")):
        if path not in paths.values():
            path.unlink()
