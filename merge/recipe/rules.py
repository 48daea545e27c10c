"""What must hold between the keys of a recipe, and between the documents of a file."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heterosis.errors import InputError, did_you_mean
from heterosis.merge.recipe.faults import Fault
from heterosis.merge.recipe.parameters import Place
from heterosis.merge.recipe.reference import ModelRef

if TYPE_CHECKING:
    from heterosis.merge.recipe.recipe import Recipe


def check_range(value: object) -> tuple[int, int]:
    if not (isinstance(value, list | tuple) and len(value) == 2 and all(type(end) is int for end in value)):
        raise ValueError(f"must be two layer numbers [from, to), such as [0, 12], but got {value!r}")
    start, stop = value
    if start < 0 or stop < start:
        raise ValueError(f"must satisfy `0 <= from <= to`, but got [{start}, {stop}]; the end is not included")
    return start, stop


def relation_faults(data: Mapping[str, Any]) -> Iterator[Fault]:
    """What is wrong between keys of a recipe in plain form; parts that are malformed are passed over."""
    kinds = [key for key in ("models", "slices", "modules") if data.get(key)]
    # An empty list counts as absent, as in mergekit.
    if len(kinds) > 1:
        yield (), f"must have one of 'models', 'slices' and 'modules', but got {_and(kinds)}; keep one"
    elif not kinds:
        empty = [key for key in ("models", "slices", "modules") if data.get(key) in ([], {})]
        if empty:
            yield (empty[0],), "must list at least one entry, but is empty"
        else:
            yield (), "must have 'models' or 'slices', but got neither; list the models to merge"
    yield from _part_faults(data, ())
    modules = data.get("modules")
    for name, module in modules.items() if isinstance(modules, dict) else ():
        if not isinstance(module, dict):
            continue
        if bool(module.get("models")) == bool(module.get("slices")):
            yield ("modules", name), "must have either 'models' or 'slices'"
        yield from _part_faults(module, ("modules", name))
    if data.get("tokenizer_source") is not None and data.get("tokenizer") is not None:
        yield ("tokenizer_source",), "must not stand beside 'tokenizer'; write it as the section's 'source'"


def other_kind(data: Mapping[str, Any]) -> str | None:
    """What a mapping is that was never meant as a recipe, and what to do with it."""
    if "genome" in data or "tasks" in data:
        return "is a search config, not a recipe; run heterosis evolve on it"
    if "experts" in data or data.get("merge_method") == "moe":
        return "describes a mixture of experts; building those is not supported"
    if "merge_method" not in data and ("model_type" in data or "architectures" in data):
        return "is a model's config.json, not a recipe; write a recipe that names the model's folder"
    return None


def method_faults(data: Mapping[str, Any]) -> list[Fault]:
    """The unknown method of a recipe that has other faults; planning tells that of a sound one."""
    from heterosis.merge.methods import get_method  # loads torch

    try:
        if isinstance(name := data.get("merge_method"), str):
            get_method(name)
    except InputError as error:
        return [((), fault) for fault in error.faults]
    return []


def _part_faults(part: Mapping[str, Any], place: Place) -> Iterator[Fault]:
    models, slices = part.get("models"), part.get("slices")
    yield from _duplicate_faults(models, (*place, "models"), "list it once, with the sum of the weights")
    for i, slice_ in enumerate(slices if isinstance(slices, list) else []):
        sources = slice_.get("sources") if isinstance(slice_, dict) else None
        here: Place = (*place, "slices", i, "sources")
        if sources == []:
            yield here, "must list at least one source, but is empty"
        yield from _duplicate_faults(sources, here, "a slice takes each model once; use two slices")
        counts = [_layer_count(source) for source in (sources if isinstance(sources, list) else [])]
        known = [count for count in counts if count is not None]
        if len(set(known)) > 1:
            yield here, f"must all have equally many layers, but got {', '.join(map(str, known))}"


def _duplicate_faults(entries: object, place: Place, remedy: str) -> Iterator[Fault]:
    refs = []
    for entry in entries if isinstance(entries, list) else []:
        try:
            refs.append(ModelRef.parse(entry["model"]))
        except (ValueError, TypeError, KeyError):
            continue
    for ref, count in Counter(refs).items():
        if count > 1:
            yield place, f"models must differ, but got {str(ref)!r} {count} times; {remedy}"


def _layer_count(source: object) -> int | None:
    try:
        start, stop = check_range(source.get("layer_range") if isinstance(source, dict) else None)
    except ValueError:
        return None
    return stop - start


def document_faults(recipes: list["Recipe"], stage: str | None) -> Iterator[str]:
    """What is wrong between the documents of a file, or with the name asked for."""
    names = [recipe.name for recipe in recipes]
    for name, count in Counter(names).items():
        if count > 1 and name is None:
            yield f"must have one document without a 'name' at most, but got {count}; name the earlier ones"
        elif count > 1:
            yield f"names must differ, but {name!r} is given {count} times; rename one"
    if stage is not None and len(recipes) == 1 and names != [stage]:
        yield f"has only one recipe, so there is no stage {stage!r}; leave out --stage"
    elif stage is not None and stage not in names:
        yield f"has no stage {stage!r}{did_you_mean(stage, [name for name in names if name])}"
    by_name = {recipe.name: recipe for recipe in recipes if recipe.name}
    for recipe in recipes:
        for ref in recipe.needed_models():
            if ref.path in by_name and (ref.revision or ref.adapter):
                yield f"{ref}: is a stage, which has neither revisions nor adapters; write {ref.path}"
            elif ref.path not in by_name and (near := _meant(ref, by_name)):
                yield f"{ref}: no such stage or model folder{near}"
        source = recipe.vocabulary.source if recipe.vocabulary else "base"
        words = ("union", "base")
        if source not in (*words, *by_name) and (near := _meant(ModelRef.parse(source), words)):
            key = "tokenizer_source" if recipe.tokenizer_source else "tokenizer.source"
            yield f"{key}: no such model folder as {source!r}{near}"
    if circle := _circle(by_name):
        yield f"stages must not need each other in a circle, but got {' -> '.join(circle)}"


def _meant(ref: ModelRef, names: Iterable[str]) -> str:
    """The name that was meant instead of a model, if there is no such model and one comes near; else nothing."""
    if "/" in ref.path or ref.path.startswith("~") or Path(ref.path).exists():
        return ""
    hint = did_you_mean(ref.path, names)
    return hint if "did you mean" in hint else ""


def _circle(by_name: Mapping[str, "Recipe"]) -> list[str]:
    finished: set[str] = set()

    def walk(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in finished:
            return []
        for ref in by_name[name].needed_models():
            if ref.path in by_name and (found := walk(ref.path, [*path, name])):
                return found
        finished.add(name)
        return []

    return next((found for name in by_name if (found := walk(name, []))), [])


def _and(words: list[str]) -> str:
    return " and ".join(f"'{word}'" for word in words)
