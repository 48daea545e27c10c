"""Recipes of earlier searches, or written by hand, that a search scores first."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from heterosis.errors import InputError
from heterosis.evolve.baselines import Baseline
from heterosis.evolve.dimensions import Space
from heterosis.evolve.folder import read_summary
from heterosis.evolve.record import read_trials
from heterosis.merge import ModelRef, Recipe
from heterosis.merge.reference import short_names

# Of a run folder: the champion, and the best others.
TAKEN = 3


def warm_starts(paths: Iterable[str], space: Space) -> list[Baseline]:
    """Each recipe as a baseline, with its point in the space if it has one.

    Args:
        paths: Recipes, or run folders.
        space: That is searched.

    Raises:
        InputError: If a path is neither.
    """
    found: dict[str, Baseline] = {}
    every = [Path(path) for path in paths]
    short = short_names(ModelRef.parse(str(p if p.is_dir() else p.with_suffix(""))) for p in every)
    for path, own in zip(every, short, strict=True):
        for name, recipe in _recipes(path, f"warm start {own}"):
            text = recipe.to_yaml()
            if text not in found:
                found[text] = Baseline(name, "baseline", recipe, space.values_of(recipe))
    return list(found.values())


def _recipes(path: Path, name: str) -> Iterator[tuple[str, Recipe]]:
    if not path.exists():
        raise InputError(f"warm_start: {path}: no such run folder or recipe file; check the path")
    if not path.is_dir():
        try:
            recipe = Recipe.load(path)
        except InputError as error:
            raise InputError(*(f"warm_start: {fault}" for fault in error.faults)) from None
        yield name, recipe
        return
    try:
        champion = read_summary(path)["champion"]
    except InputError as error:
        raise InputError(f"warm_start: {error.faults[0]}, or a recipe") from None
    if champion is None:
        raise InputError(f"warm_start: {path}: no candidate was scored there")
    try:
        complete = [trial for trial in read_trials(path) if trial.complete]
    except InputError as error:
        raise InputError(f"warm_start: {error.faults[0]}") from None
    ranked = sorted(complete, key=lambda trial: (trial.number != champion["trial"], -(trial.score or 0.0)))
    for trial in ranked[:TAKEN]:
        yield f"{name} {trial.number}", Recipe.parse(trial.ask.recipe, str(path))
