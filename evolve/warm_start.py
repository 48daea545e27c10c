"""Recipes of earlier searches, or written by hand, that a search scores first."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from heterosis.errors import InputError, within
from heterosis.evaluate.splits import Split
from heterosis.evolve.baselines import Baseline
from heterosis.evolve.record.files import SPLITS
from heterosis.evolve.record.record import read_trials
from heterosis.evolve.record.summary_file import read_summary
from heterosis.evolve.space.dimensions import Space
from heterosis.merge import ModelRef, Recipe
from heterosis.merge.files import expanded
from heterosis.merge.recipe.reference import short_paths

# Of a run folder: the champion, and the best others.
TAKEN = 3


def warm_starts(
    paths: Iterable[str], space: Space, models: Iterable[ModelRef], known: Iterable[Baseline] = ()
) -> list[Baseline]:
    """Each recipe as a baseline, with its point in the space if it has one; those that are known once only.

    Args:
        paths: Recipes, or run folders.
        space: That is searched.
        models: Of the search, the base among them.
        known: Other baselines.

    Raises:
        InputError: If a path is neither, or a recipe merges another model.
    """
    found: dict[str, Baseline] = {}
    ours = list(models)
    others = {baseline.recipe.essence() for baseline in known}
    every = [Path(path) for path in paths]
    short = short_paths(str(p if p.is_dir() else p.with_suffix("")) for p in every)
    for path, own in zip(every, short, strict=True):
        for name, recipe in _recipes(path, f"warm start {own}"):
            recipe = _with_our_models(recipe, ours, path)
            essence = recipe.essence()
            if essence not in found and essence not in others:
                found[essence] = Baseline(name, "baseline", recipe, space.values_of(recipe))
    return list(found.values())


def _with_our_models(recipe: Recipe, ours: Sequence[ModelRef], path: Path) -> Recipe:
    """A recipe with its models named as in the config.

    Raises:
        InputError: If it merges another one.
    """
    names = {}
    for ref in recipe.original_models():
        with within(f"warm_start: {path}"):
            own = next((model for model in ours if _is_same(ref, model)), None)
        if own is None:
            raise InputError(
                f"warm_start: {path}: merges {ref}, which is none of the config's models; name it there, or take "
                "another recipe"
            )
        names[str(ref)] = str(own)
    return Recipe.parse(recipe.to_yaml(names), str(path))


def _is_same(ref: ModelRef, ours: ModelRef) -> bool:
    """Whether a recipe's model is one of ours; one without a revision is the one that we have."""
    revisions = ref.revision in (None, ours.revision) and ref.adapter_revision in (None, ours.adapter_revision)
    return revisions and _is_one(ref.path, ours.path) and _is_one(ref.adapter, ours.adapter)


def _is_one(path: str | None, other: str | None) -> bool:
    """Whether two names are those of one folder, or one Hub id."""
    if path is None or other is None or path == other:
        return path == other
    here, there = expanded(path), expanded(other)
    return here.is_dir() and there.is_dir() and here.samefile(there)


def seen_before(paths: Iterable[str], split: Split) -> Iterator[str]:
    """A line for each task of which earlier runs have searched or selected on held-out documents of this one."""
    for folder in {path if path.is_dir() else path.parent for path in map(Path, paths)}:
        if not (folder / SPLITS).exists():
            continue
        before = Split.load(folder / SPLITS)
        for task, documents in split.holdout.items():
            then, now = (own.fingerprints.get(task, {}).get("documents") for own in (before, split))
            if then is None or then != now:
                continue
            decided = {*before.search[task], *before.selection[task]}
            if both := len(decided.intersection(documents)):
                yield (
                    f"warm_start: {folder} has searched on {both} of {task}'s {len(documents)} documents that are "
                    "held out here, so the report may flatter what it found; write documents as there"
                )


def _recipes(path: Path, name: str) -> Iterator[tuple[str, Recipe]]:
    if not path.exists():
        raise InputError(f"warm_start: {path}: no such run folder or recipe file; check the path")
    if not path.is_dir():
        with within("warm_start"):
            recipe = Recipe.load(path)
        yield name, recipe
        return
    try:
        champion = read_summary(path)["champion"]
    except InputError as error:
        raise InputError(f"warm_start: {error.faults[0]}, or a recipe") from None
    if champion is None:
        raise InputError(f"warm_start: {path}: no candidate was scored there")
    with within("warm_start"):
        complete = [trial for trial in read_trials(path) if trial.complete]
    ranked = sorted(complete, key=lambda trial: (trial.number != champion["trial"], trial.rank))
    for trial in ranked[:TAKEN]:
        yield f"{name} {trial.number}", Recipe.parse(trial.ask.recipe, str(path))
