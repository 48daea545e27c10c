"""What ``heterosis inspect`` finds out, put together: a recipe, a search config, or models."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from heterosis.errors import InputError, within
from heterosis.inspection_text import distance_lines, model_lines, recipe_lines, search_lines

if TYPE_CHECKING:
    from heterosis.evolve.config import EvolveConfig
    from heterosis.evolve.preflight.inspection import SearchReport
    from heterosis.merge.compatibility import Compatibility
    from heterosis.merge.distances import Distances
    from heterosis.merge.inspection import RecipeReport
    from heterosis.merge.models.checkpoint import Checkpoint
    from heterosis.merge.recipe.recipe import Recipe
    from heterosis.merge.recipe.reference import ModelRef


@dataclasses.dataclass(frozen=True)
class Report:
    """What was asked for; the rest is None.

    Attributes:
        recipe: What running it would do.
        models: Whether they can be merged.
        search: What running it would do.
        distances: Of task vectors.
    """

    recipe: "RecipeReport | None" = None
    models: "Compatibility | None" = None
    search: "SearchReport | None" = None
    distances: "Distances | None" = None

    @property
    def faults(self) -> tuple[str, ...]:
        """Why the models cannot be merged."""
        return self.models.reasons if self.models is not None else ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is odd, but no fault."""
        return tuple(text for part in (self.recipe, self.search) if part is not None for text in part.warnings)

    def lines(self) -> Iterator[str]:
        """Plain text."""
        sections = [
            recipe_lines(self.recipe) if self.recipe else (),
            model_lines(self.models) if self.models else (),
            search_lines(self.search) if self.search else (),
            distance_lines(self.distances) if self.distances else (),
        ]
        for i, section in enumerate(lines for lines in sections if lines):
            if i:
                yield ""
            yield from section

    def to_json(self) -> str:
        data = {name: entry for name, entry in dataclasses.asdict(self).items() if entry is not None}
        return json.dumps(data, indent=2, ensure_ascii=False)


def inspect_targets(
    targets: Sequence[str],
    *,
    full: bool = False,
    base: str | None = None,
    distances: bool = False,
    include_path: Sequence[Path] = (),
    place: Path = Path(),
    threads: int | None = None,
    trial: bool = True,
    announce: Callable[[str], None] = lambda text: None,
) -> Report:
    """Find out what can be told without a merge or a search; of a search, one candidate is tried.

    Args:
        targets: A recipe file, a search config, or models.
        full: Give every tensor a row of its own.
        base: What the models were fine-tuned from; a recipe's or config's own unless given.
        distances: Measure task vectors, which reads all weights.
        include_path: Of a search config, more folders with lm-eval task YAML.
        place: Where a merge or the run folder would be written.
        threads: For ``distances``; None takes one for each core.
        trial: Of a search config, try a candidate on a few documents.
        announce: Is told before something that takes a while.

    Raises:
        InputError: If a file or model cannot be read, or a recipe or search not be run.
    """
    from heterosis.merge.compatibility import compare
    from heterosis.merge.inspection import inspect_recipe

    target = _Target.of(targets, include_path)
    base = base or target.base
    if distances and base is None:
        raise InputError("--distances: needs to know what the models were fine-tuned from; add --base MODEL")
    recipe = None
    if target.recipe is not None:
        recipe = inspect_recipe(target.recipe, origin=targets[0], full=full, place=place)
    if recipe is not None and not distances:
        return Report(recipe=recipe)
    with ExitStack() as stack:
        opened = _open_all([*([base] if base else []), *target.models], stack)
        models = None if recipe is not None else compare(list(opened.values()))
        mergeable = models is None or models.mergeable
        search = measured = None
        if target.config is not None and mergeable:
            announce(
                "loading the tasks"
                + (", and trying a candidate on a few documents (--no-trial leaves that out)" if trial else "")
            )
            search = _search_report(target.config, targets[0], place, trial)
        if distances and base is not None and mergeable:
            measured = _distances(opened, base, threads)
    return Report(recipe=recipe, models=models, search=search, distances=measured)


@dataclasses.dataclass(frozen=True)
class _Target:
    """What is inspected: models, by themselves or as a recipe or a search config names them.

    Attributes:
        models: As they are named.
        base: What they were fine-tuned from, if a file says so.
        recipe: If that is what the file holds.
        config: If that is.
    """

    models: Sequence[str]
    base: str | None = None
    recipe: "Recipe | None" = None
    config: "EvolveConfig | None" = None

    @classmethod
    def of(cls, targets: Sequence[str], include_path: Sequence[Path]) -> "_Target":
        from heterosis.merge.models.checkpoint import WEIGHT_FILES
        from heterosis.merge.recipe.recipe import Recipe
        from heterosis.merge.yaml_file import parse_documents, read_text

        file = next((target for target in targets if _is_text_file(target, (*WEIGHT_FILES, ".gguf"))), None)
        if file is None:
            return cls(targets)
        if len(targets) > 1:
            raise InputError(f"{file}: must stand alone; name one recipe or config, or else models")
        text = read_text(file, "recipe file or config")
        if {"genome", "tasks", "task"} & parse_documents(text, file)[0].keys():
            from heterosis.evolve.config import EvolveConfig

            config = EvolveConfig.load(file).with_options(include_path=include_path)
            return cls(config.genome.models, config.genome.base_model, config=config)
        recipe = Recipe.parse(text, file)
        own = recipe.base_model is not None and recipe.base_model.path not in {s.name for s in recipe.stages}
        models = [str(ref) for ref in recipe.original_models()]
        return cls(models, str(recipe.base_model) if own else None, recipe=recipe)


def _search_report(config: "EvolveConfig", origin: str, place: Path, trial: bool) -> "SearchReport":
    from heterosis.evolve.preflight.inspection import inspect_search

    with within(origin):
        return inspect_search(config, place=place, trial=trial)


def _distances(opened: "Mapping[ModelRef, Checkpoint]", base: str, threads: int | None) -> "Distances":
    """Those of all models from the base, which is one of them."""
    from heterosis.merge.distances import task_vector_distances
    from heterosis.merge.machine import available_cores
    from heterosis.merge.recipe.reference import ModelRef, short_names

    root = ModelRef.parse(base)
    short = dict(zip(opened, short_names(opened), strict=True))
    others = {short[ref]: model for ref, model in opened.items() if ref != root}
    return task_vector_distances(opened[root], others, threads=threads or available_cores())


def _is_text_file(target: str, weights: tuple[str, ...]) -> bool:
    """Whether a target is a recipe or config; one that is named like that need not be there."""
    from heterosis.merge.files import expanded

    path = expanded(target)
    return path.suffix in (".yaml", ".yml") or (path.is_file() and path.suffix.lower() not in weights)


def _open_all(names: Iterable[str], stack: ExitStack) -> "dict[ModelRef, Checkpoint]":
    """The models, each once; every fault is told."""
    from heterosis.merge.models.checkpoint import open_all, open_checkpoint

    opened = open_all(names, lambda name: stack.enter_context(open_checkpoint(name)))
    return {checkpoint.ref: checkpoint for checkpoint in opened.values()}
