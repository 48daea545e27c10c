"""One model's names for another's tensors: what a checkpoint calls them depends on the class that saved it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heterosis.merge.models.sources import Model, TensorSource
from heterosis.merge.models.tokenizer import ModelTokenizer
from heterosis.merge.recipe.reference import ModelRef

# Modules that do nothing but hold the model: a headless class saves its tensors without them.
_WRAPPERS = (
    *("model", "transformer", "gpt_neox", "backbone", "language_model", "base_model", "module"),
    *("bert", "roberta", "distilbert", "electra", "deberta", "albert"),
)
_WRAPPED = re.compile(rf"(?P<wrappers>(?:(?:{'|'.join(_WRAPPERS)})\.)*)(?P<part>[^.]+)")


def aligned(names: Iterable[str], donor: Iterable[str]) -> dict[str, str]:
    """The donor's names for a model's tensors, such as ``transformer.wte.weight`` for ``wte.weight``.

    Each part of the model (``wte``, ``layers``, ``vision_tower``) goes where the donor has it: under the same
    wrapping modules. Where no more names agree after that than before, or two would be the same, all stay.

    Args:
        names: The model's.
        donor: The donor's.

    Returns:
        For each of ``names`` what to call it.
    """
    own, wanted = list(names), set(donor)
    homes: dict[str, set[str]] = {}
    for name in wanted:
        wrappers, part = unwrapped(name)
        homes.setdefault(part, set()).add(wrappers)
    called = {}
    for name in own:
        wrappers, part = unwrapped(name)
        home = homes.get(part, {wrappers})
        called[name] = name if len(home) > 1 else min(home) + name.removeprefix(wrappers)
    gained = len(wanted & set(called.values())) > len(wanted & set(own))
    return called if gained and len(set(called.values())) == len(own) else {name: name for name in own}


def unwrapped(name: str) -> tuple[str, str]:
    """The wrapping modules of a name, each with its dot, and the part that follows them."""
    match = _WRAPPED.match(name)
    return (match["wrappers"], match["part"]) if match else ("", name)


def renamed(model: Model, donor: Model) -> Model:
    """The model with the donor's names, or just the model where it has them already."""
    names = aligned(model.tensors, donor.tensors)
    if all(own == name for own, name in names.items()):
        return model
    return RenamedModel(model, dict(sorted((names[own], source) for own, source in model.tensors.items())))


@dataclass(frozen=True, eq=False)
class RenamedModel:
    """A model under other names (a `Model`)."""

    model: Model
    tensors: Mapping[str, TensorSource]

    @property
    def ref(self) -> ModelRef:
        return self.model.ref

    @property
    def folder(self) -> Path:
        return self.model.folder

    @property
    def config(self) -> dict[str, Any]:
        return self.model.config

    @property
    def tokenizer(self) -> ModelTokenizer:
        return self.model.tokenizer

    @property
    def resident_bytes(self) -> int:
        return self.model.resident_bytes
