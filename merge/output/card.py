"""The model card: what was merged, under which licences, how it was found, how to use it and how to make it again.

A model of the Hub is named by its id and commit. A folder of this machine is named by its last part alone: its
path means nothing to others, and may tell what is not theirs to know. ``recipe.yaml`` beside the card has it,
until it is published.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import yaml

from heterosis.errors import InputError
from heterosis.merge.files import expanded, open_ordinary
from heterosis.merge.methods import get_method, own_modules
from heterosis.merge.models.checkpoint import Checkpoint
from heterosis.merge.models.fetching import HUB_ID
from heterosis.merge.plan import MergePlan
from heterosis.merge.recipe.command import merge_command
from heterosis.merge.recipe.discovery import found_by
from heterosis.merge.recipe.recipe import Recipe
from heterosis.merge.recipe.reference import ModelRef
from heterosis.merge.yaml_file import parse_mapping

_README_CHARACTERS = 1_000_000
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")
_FRONT = re.compile(r"\s*---[ \t]*\n(.*?)\n---\s*(\n|$)", re.DOTALL)

# What a licence's text begins with, and what the Hub calls it; the first that fits counts.
_LICENCE_TEXTS = (
    (r"apache license\s+version 2\.0", "apache-2.0"),
    (r"\bmit license|permission is hereby granted, free of charge", "mit"),
    (r"gnu lesser general public license\s+version 3", "lgpl-3.0"),
    (r"gnu affero general public license\s+version 3", "agpl-3.0"),
    (r"gnu general public license\s+version 3", "gpl-3.0"),
    (r"llama 2 community license", "llama2"),
    (r"llama 3 community license|meta llama 3 community license", "llama3"),
    (r"llama 3\.1 community license", "llama3.1"),
    (r"llama 3\.2 community license", "llama3.2"),
    (r"llama 3\.3 community license", "llama3.3"),
    (r"llama 4 community license", "llama4"),
    (r"gemma terms of use", "gemma"),
)

# Endings of an architecture's name: the class that loads it, and the Hub's name of its task.
_KINDS = (
    ("ForCausalLM", "AutoModelForCausalLM", "text-generation"),
    ("LMHeadModel", "AutoModelForCausalLM", "text-generation"),
    ("ForMaskedLM", "AutoModelForMaskedLM", "fill-mask"),
    ("ForSequenceClassification", "AutoModelForSequenceClassification", "text-classification"),
    ("ForTokenClassification", "AutoModelForTokenClassification", "token-classification"),
    ("ForQuestionAnswering", "AutoModelForQuestionAnswering", "question-answering"),
    ("ForImageClassification", "AutoModelForImageClassification", "image-classification"),
    ("Model", "AutoModel", "feature-extraction"),
)


@dataclass(frozen=True)
class Licence:
    """A licence as a card's front matter has it."""

    id: str
    name: str | None = None
    link: str | None = None

    @property
    def label(self) -> str:
        return self.name or self.id


@dataclass(frozen=True)
class Parent:
    """A model or adapter that was merged.

    Attributes:
        name: Its Hub id, or the last part of its path.
        on_hub: Whether the name is a Hub id.
        commit: Of the Hub.
        licence: None if it does not say.
        task: Its card's ``pipeline_tag``.
    """

    name: str
    on_hub: bool
    commit: str | None
    licence: Licence | None
    task: str | None


@dataclass(frozen=True)
class _Entry:
    """A model of the recipe.

    Attributes:
        key: As the recipe names it.
        name: The same without commits, and with the names of folders for their paths.
        parts: The model, and its adapter if it has one.
        sha256: Of the weights, if the recipe states it; it is not computed, which would read all of them again.
    """

    key: str
    name: str
    parts: tuple[Parent, ...]
    sha256: str | None


def model_card(plan: MergePlan, recipe: Recipe, checkpoints: Iterable[Checkpoint]) -> str:
    """The README.md of a merge.

    Args:
        plan: What was merged.
        recipe: The plan's, with the commits of its models.
        checkpoints: What was opened for it, the recipe's models among them.
    """
    entries = _entries(recipe, checkpoints)
    parents = list(dict.fromkeys(part for entry in entries for part in entry.parts))
    return "\n".join(
        [
            *_front_matter(plan, parents),
            f"# Merge of {_title(entries)}",
            "",
            *_method(recipe, entries),
            *_table(entries),
            "",
            *_licences(parents),
            *found_by(recipe.heterosis),
            *(_usage(plan) if plan.config else ()),
            *_again(recipe, entries),
        ]
    )


def shown_recipe(recipe: Recipe) -> str:
    """The recipe as others may read it: folders are called by the last part of their paths.

    Args:
        recipe: With the commits of its models.
    """
    named = recipe.original_models()
    for stage in (*recipe.stages, recipe):  # a model may be named for its tokenizer alone
        named += stage.needed_models()
    stated = recipe.heterosis.get("models")
    for key in stated if isinstance(stated, dict) else ():  # a search states all of its models
        with suppress(ValueError):
            named.append(ModelRef.parse(key))
    stages = {stage.name for stage in recipe.stages if stage.name}
    taken, shown = set(stages), {}
    for ref in dict.fromkeys(named):
        if ref.path not in stages:
            adapter = () if ref.adapter is None else (_shown(ref.adapter, ref.adapter_revision),)
            shown[str(ref)] = _unused("+".join((_shown(ref.path, ref.revision), *adapter)), taken)
    return recipe.to_yaml(shown)


def _shown(path: str, revision: str | None) -> str:
    """A Hub id with its revision, or a folder's name."""
    if HUB_ID.fullmatch(path) and (revision is not None or not Path(path).exists()):
        return path if revision is None else f"{path}@{revision}"
    return expanded(path).absolute().name


# --- facts ------------------------------------------------------------------------------------------------------


def _entries(recipe: Recipe, checkpoints: Iterable[Checkpoint]) -> list[_Entry]:
    opened = {checkpoint.pinned: checkpoint for checkpoint in checkpoints}
    stated = recipe.heterosis.get("models")
    names = {stage.name for stage in recipe.stages if stage.name}  # that are taken
    entries: list[_Entry] = []
    for ref in recipe.original_models():
        key, parts = str(ref), _parts(opened[ref])
        note = stated.get(key) if isinstance(stated, dict) else None
        digest = note.get("sha256") if isinstance(note, dict) else None
        known = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)
        entries.append(
            _Entry(
                key,
                _unused("+".join(part.name for part in parts), names),
                parts,
                digest if known else None,
            )
        )
    return entries


def _parts(checkpoint: Checkpoint) -> tuple[Parent, ...]:
    ref = checkpoint.ref
    parts = [_parent(ref.path, checkpoint.revision, checkpoint.folder if checkpoint.config else None)]
    if ref.adapter is not None:
        parts.append(_parent(ref.adapter, checkpoint.adapter_revision, checkpoint.adapter_folder))
    return tuple(parts)


def _parent(path: str, commit: str | None, folder: Path | None) -> Parent:
    on_hub = commit is not None and HUB_ID.fullmatch(path) is not None
    name = path if on_hub else Path(path).expanduser().absolute().name
    data = _readme_data(folder / "README.md") if folder else {}
    task = data.get("pipeline_tag")
    licence = _declared_licence(data) or (_licence_of_text(folder) if folder else None)
    return Parent(name, on_hub, commit, licence, task if isinstance(task, str) and _WORD.fullmatch(task) else None)


def _unused(name: str, taken: set[str]) -> str:
    """The name, or with a number if it is taken; it is taken then."""
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name} ({number})", number + 1
    taken.add(candidate)
    return candidate


def front_matter(card: Path) -> dict[str, Any]:
    """What a model card says between the ``---`` lines at its beginning; nothing where there are none.

    Raises:
        InputError: If it is not a mapping in plain YAML.
        OSError: If the card cannot be read.
    """
    with TextIOWrapper(open_ordinary(card), encoding="utf-8", errors="replace") as file:
        front = _FRONT.match(file.read(_README_CHARACTERS))
    return parse_mapping(front[1], f"{card}: front matter") if front and front[1].strip() else {}


def _readme_data(path: Path) -> dict[str, Any]:
    try:
        return front_matter(path)
    except (OSError, InputError):  # somebody else's card: what it does not say is not ours to complain about
        return {}


def _declared_licence(data: Mapping[str, Any]) -> Licence | None:
    found = data.get("license")
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, str) or not _WORD.fullmatch(found):
        return None
    name, link = data.get("license_name"), data.get("license_link")
    if found != "other":
        return Licence(found.lower())
    return Licence(
        found,
        name if isinstance(name, str) and _WORD.fullmatch(name) else None,
        link if isinstance(link, str) and re.fullmatch(r"https?://[^\s|<>]{1,200}", link) else None,
    )


def _licence_of_text(folder: Path) -> Licence | None:
    for path in sorted(folder.glob("LICENSE*")):
        try:
            with TextIOWrapper(open_ordinary(path), encoding="utf-8", errors="replace") as file:
                beginning = file.read(2000).lower()
        except (OSError, InputError):
            continue
        for pattern, name in _LICENCE_TEXTS:
            if re.search(pattern, beginning):
                return Licence(name)
    return None


def _common_licence(parents: Iterable[Parent]) -> Licence | None:
    """The licence that all parents have; else ``other``; None where none says anything."""
    licences = {parent.licence for parent in parents}
    if len(licences) == 1:
        return licences.pop()
    return Licence("other")


def _kind(config: Mapping[str, Any]) -> tuple[str, str | None]:
    """The transformers class that loads a model, and its task."""
    names = config.get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    if name.endswith("ForConditionalGeneration"):
        if "vision_config" in config:
            return "AutoModelForImageTextToText", "image-text-to-text"
        if "num_mel_bins" in config:
            return "AutoModelForSpeechSeq2Seq", "automatic-speech-recognition"
        return "AutoModelForSeq2SeqLM", None
    for ending, cls, task in _KINDS:
        if name.endswith(ending):
            return cls, task
    return (name if name.isidentifier() else "AutoModel"), None  # its own class, which always fits


# --- text -------------------------------------------------------------------------------------------------------


def _front_matter(plan: MergePlan, parents: list[Parent]) -> Iterator[str]:
    data: dict[str, Any] = {}
    hub_ids = list(dict.fromkeys(parent.name for parent in parents if parent.on_hub))
    if hub_ids:
        data |= {"base_model": hub_ids, "base_model_relation": "merge"}
    if licence := _common_licence(parents):
        data["license"] = licence.id
        if licence.name:
            data["license_name"] = licence.name
        if licence.link:
            data["license_link"] = licence.link
    if plan.config:
        data["library_name"] = "transformers"
        stated = {parent.task for parent in parents} - {None}
        task = _kind(plan.config)[1] if not stated else stated.pop() if len(stated) == 1 else None
        if task is not None:
            data["pipeline_tag"] = task
    data["tags"] = ["heterosis", "merge"]
    yield "---"
    yield yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip()
    yield "---"
    yield ""


def _title(entries: list[_Entry]) -> str:
    if len(entries) > 3:
        return f"{len(entries)} models"
    names = [entry.name for entry in entries]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _method(recipe: Recipe, entries: list[_Entry]) -> Iterator[str]:
    """What was done, stage after stage."""
    names = {entry.key: entry.name for entry in entries}
    for stage in (*recipe.stages, recipe):
        method = get_method(stage.merge_method)
        link = f"[{method.name}]({method.paper})" if method.paper.startswith("http") else f"`{method.name}`"
        result = "This model is" if stage is recipe else f"`{stage.name}` is"
        models = [names.get(str(ref), str(ref)) for ref in stage.referenced_models()]
        base = "" if stage.base_model is None else f", with {models[0]} as the base model"
        text = f"{result} a merge of {', '.join(models)} by the method {link}{base}."
        if stage.parameters:
            text += f" Settings of the whole merge: {_settings(stage.parameters)}."
        parts = [part for _, part in stage.parts()]
        if slices := sum(len(part.slices or ()) for part in parts):
            text += f" Its layers are put together from {slices} slices, which the recipe lists."
        yield text
        yield ""
        own = [model for part in parts for model in part.models or () if model.parameters]
        for model in own:
            yield f"- {names.get(str(model.model), str(model.model))}: {_settings(model.parameters)}"
        if own:
            yield ""


def _settings(parameters: Mapping[str, object]) -> str:
    return ", ".join(f"`{name}` {_value(value)}" for name, value in parameters.items())


def _value(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
    return text if len(text) <= 120 else "as in the recipe"


def _table(entries: list[_Entry]) -> Iterator[str]:
    """The parents; a column that would be empty is left out."""
    rows = [("Model", "Revision", "Licence", "SHA-256 of the weights")]
    for entry in entries:
        names = [
            f"[{part.name}](https://huggingface.co/{part.name})" if part.on_hub else part.name
            for part in entry.parts
        ]
        if len(entry.parts) == 1 and not entry.parts[0].on_hub:
            names = [entry.name]
        revisions = [f"`{part.commit[:12]}`" if part.commit else "" for part in entry.parts]
        licences = [part.licence.label if part.licence else "not stated" for part in entry.parts]
        rows.append(
            (
                " + ".join(names),
                " + ".join(filter(None, revisions)),
                " + ".join(dict.fromkeys(licences)),
                f"`{entry.sha256}`" if entry.sha256 else "",
            )
        )
    kept = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    for k, row in enumerate(rows):
        yield "| " + " | ".join(row[i].replace("|", "\\|") for i in kept) + " |"
        if k == 0:
            yield "|" + " --- |" * len(kept)


def _licences(parents: list[Parent]) -> Iterator[str]:
    if len({parent.licence for parent in parents}) > 1:
        yield "The parents' licences differ, or are not all stated; mind each of them."
        yield ""


def _usage(plan: MergePlan) -> Iterator[str]:
    cls, task = _kind(plan.config)
    has_tokenizer = plan.tokenizer.folder is not None
    loads = f"from transformers import {', '.join(sorted([cls, 'AutoTokenizer'] if has_tokenizer else [cls]))}"
    yield from ["## How to use it", "", "```python", loads, ""]
    yield 'model_id = "."  # this repository\'s id, or the folder that it was downloaded to'
    yield f'model = {cls}.from_pretrained(model_id, dtype="auto")'
    if has_tokenizer:
        yield "tokenizer = AutoTokenizer.from_pretrained(model_id)"
    if has_tokenizer and task == "text-generation":
        if plan.tokenizer.chat_template is not None:
            yield 'messages = [{"role": "user", "content": "Hello!"}]'
            yield "inputs = tokenizer.apply_chat_template("
            yield '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True'
            yield ")"
        else:
            yield 'inputs = tokenizer("Once upon a time", return_tensors="pt")'
        yield "tokens = model.generate(**inputs, max_new_tokens=64)"
        yield "print(tokenizer.decode(tokens[0], skip_special_tokens=True))"
    yield from ["```", ""]


def _again(recipe: Recipe, entries: list[_Entry]) -> Iterator[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in ("heterosis", "torch", "transformers"))
    yield from ["## How to make it again", ""]
    yield f"Made with {versions}:"
    own = own_modules(stage.merge_method for stage in (*recipe.stages, recipe))
    yield from ["", "```sh", merge_command("recipe.yaml", "OUT", own.values()), "```", ""]
    local = [part.name for entry in entries for part in entry.parts if not part.on_hub]
    if local:
        names = ", ".join(dict.fromkeys(local))
        yield f"Where the recipe names a local folder ({names}), put the path of your copy."
        yield ""
    text = shown_recipe(recipe)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    yield from [f"{fence}yaml", text.rstrip(), fence, ""]
