"""Whether models can be merged, and why not: their architectures, tensors and tokenizers side by side."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from heterosis.errors import InputError
from heterosis.merge.inspection import recorded_warnings
from heterosis.merge.models.layout import (
    OBSOLETE,
    embedding_name,
    embedding_rows,
    is_head,
    is_vocabulary,
    place_of,
    stack_sizes,
)
from heterosis.merge.models.names import renamed
from heterosis.merge.models.sources import Model
from heterosis.merge.models.tokenizer import Tokens
from heterosis.merge.planning.planner import build_plan
from heterosis.merge.recipe.recipe import Recipe
from heterosis.merge.recipe.reference import short_names
from heterosis.words import some

Weight: TypeAlias = Literal["blocks", "asks", "note"]


@dataclass(frozen=True)
class ModelFacts:
    """One model, as its headers tell.

    Attributes:
        name: A short one.
        reference: What was asked for.
        model_type: As in config.json.
        architectures: As in config.json.
        layers: Of each stack of layers.
        tensors: How many.
        parameters: Their elements.
        dtypes: How many parameters have each.
        rows: Of the embedding; None without one.
        tokens: Of the tokenizer; None without one that can be read.
        unused_rows: Rows that no token has.
        head: ``own``, ``tied`` to the embedding, or ``none``.
        chat_template: Whether there is one.
    """

    name: str
    reference: str
    model_type: str | None
    architectures: tuple[str, ...]
    layers: Mapping[str, int]
    tensors: int
    parameters: int
    dtypes: Mapping[str, int]
    rows: int | None
    tokens: int | None
    unused_rows: int | None
    head: str
    chat_template: bool


@dataclass(frozen=True)
class Difference:
    """Between the first model and another.

    Attributes:
        weight: ``blocks`` every merge; ``asks`` for something in the recipe; or is just a ``note``.
        topic: What differs.
        text: One line.
        remedy: What to do, or nothing.
    """

    weight: Weight
    topic: str
    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.topic}: {self.text}" + (f"; {self.remedy}" if self.remedy else "")


@dataclass(frozen=True)
class Compatibility:
    """Whether models can be merged.

    Attributes:
        models: Facts of each.
        differences: Of each from the first.
        mergeable: Whether some recipe merges them, as they are or with what ``asks``.
        verdict: One line.
    """

    models: tuple[ModelFacts, ...]
    differences: tuple[Difference, ...]
    mergeable: bool
    verdict: str

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why they cannot be merged."""
        return tuple(str(difference) for difference in self.differences if difference.weight == "blocks")


def compare(models: Sequence[Model]) -> Compatibility:
    """Compare models with the first of them.

    That they can be merged is not concluded from the differences: a linear merge of them is planned.

    Args:
        models: At least one, each once.
    """
    refs = [model.ref for model in models]
    names = dict(zip(refs, short_names(refs), strict=True))
    tokens = {model.ref: _tokens(model) for model in models}
    facts = tuple(_facts(model, names[model.ref], tokens[model.ref]) for model in models)
    if len(models) == 1:
        return Compatibility(facts, (), True, f"{facts[0].name} can be read; name others to compare it with")
    first = models[0]
    differences: list[Difference] = []
    for model in models[1:]:
        pair = f"{names[first.ref]} and {names[model.ref]}"
        differences += _differences(pair, first, renamed(model, first), tokens[first.ref], tokens[model.ref])
    asks = [difference for difference in differences if difference.weight == "asks"]
    blocks = [difference for difference in differences if difference.weight == "blocks"]
    topics = {difference.topic for difference in asks}
    if not blocks and "layers" not in topics:
        differences += (Difference("blocks", "plan", fault) for fault in _plan_faults(models, bool(asks)))
        blocks = [difference for difference in differences if difference.weight == "blocks"]
    if blocks:
        return Compatibility(facts, tuple(differences), False, "they cannot be merged")
    remedies = list(dict.fromkeys(difference.remedy for difference in asks))
    verdict = f"they can be merged: {'; '.join(remedies)}" if remedies else "they can be merged as they are"
    return Compatibility(facts, tuple(differences), True, verdict)


def _plan_faults(models: Sequence[Model], union: bool) -> tuple[str, ...]:
    """What a linear merge of the models would be refused for."""
    opened = {model.ref: model for model in models}
    recipe = Recipe.model_validate(
        {
            "merge_method": "linear",
            "models": [{"model": ref} for ref in opened],
            "parameters": {"weight": 1.0},
            "tokenizer_source": "union" if union else None,
        }
    )
    try:
        with recorded_warnings():
            build_plan(recipe, opened.__getitem__)
    except InputError as error:
        return error.faults
    return ()


# --- one model --------------------------------------------------------------------------------------------------


def _facts(model: Model, name: str, tokens: Tokens | None) -> ModelFacts:
    dtypes: Counter[str] = Counter()
    for source in model.tensors.values():
        dtypes[str(source.dtype).removeprefix("torch.")] += math.prod(source.shape)
    rows = embedding_rows(model.tensors)
    used = None if tokens is None or rows is None else sum(i < rows for i in set(tokens.ids.values()))
    architectures = model.config.get("architectures")
    return ModelFacts(
        name=name,
        reference=str(model.ref),
        model_type=model.config.get("model_type"),
        architectures=tuple(map(str, architectures)) if isinstance(architectures, list) else (),
        layers=stack_sizes(model.tensors),
        tensors=len(model.tensors),
        parameters=dtypes.total(),
        dtypes=dict(dtypes.most_common()),
        rows=rows,
        tokens=None if tokens is None else len(tokens.ids),
        unused_rows=None if used is None or rows is None else rows - used,
        head=_head(model),
        chat_template=model.tokenizer.chat_template is not None,
    )


def _head(model: Model) -> str:
    if any(map(is_head, model.tensors)):
        return "own"
    has_embedding = embedding_name(model.tensors) is not None
    return "tied" if has_embedding and model.config.get("tie_word_embeddings", True) and model.config else "none"


def _tokens(model: Model) -> Tokens | None:
    try:
        return model.tokenizer.tokens() if model.tokenizer.folder is not None else None
    except InputError:
        return None


# --- two models -------------------------------------------------------------------------------------------------


def _differences(
    pair: str, first: Model, other: Model, first_tokens: Tokens | None, other_tokens: Tokens | None
) -> Iterator[Difference]:
    yield from _architecture(pair, first, other)
    layers = list(_layers(pair, first, other))
    yield from layers
    yield from _tensors(pair, first, other)
    vocabulary = list(_vocabulary(pair, first, other))
    yield from vocabulary
    yield from _tokenizers(pair, first_tokens, other_tokens, asks=not vocabulary)
    common = [name for name in first.tensors if name in other.tensors]
    kinds = {(first.tensors[name].dtype, other.tensors[name].dtype) for name in common}
    differing = sorted(
        " and ".join(str(kind).removeprefix("torch.") for kind in two) for two in kinds if len(set(two)) > 1
    )
    if differing:
        text = f"{pair} have {', '.join(differing)}"
        yield Difference("note", "dtype", text, "without dtype: in the recipe, the wider of them is written")
    heads = [_head(model) for model in (first, other)]
    if heads[0] != heads[1] and "none" not in heads:
        text = f"the head of one of {pair} is tied to its embedding"
        yield Difference("note", "head", text, "the output gets a head of its own")
    templates = [model.tokenizer.chat_template for model in (first, other)]
    if templates[0] != templates[1]:
        yield Difference(
            "note",
            "chat template",
            f"{pair} have different ones",
            "the recipe's chat_template: chooses, in a search genome.tokenizer_source",
        )


def _architecture(pair: str, first: Model, other: Model) -> Iterator[Difference]:
    for key in ("model_type", "architectures"):
        values = [model.config.get(key) for model in (first, other)]
        if values[0] != values[1]:
            shown = [", ".join(value) if isinstance(value, list) else str(value) for value in values]
            text = f"{pair} have {key} {shown[0]} and {shown[1]}"
            yield Difference("note", "architecture", text, "mind that they may compute different things")
            return


def _layers(pair: str, first: Model, other: Model) -> Iterator[Difference]:
    sizes = [stack_sizes(model.tensors) for model in (first, other)]
    for stack in sizes[0].keys() & sizes[1].keys():
        if sizes[0][stack] != sizes[1][stack]:
            text = f"{pair} have {sizes[0][stack]} and {sizes[1][stack]} in {stack or 'the model'}"
            yield Difference("asks", "layers", text, "take equally many layers of each, with slices")


def _tensors(pair: str, first: Model, other: Model) -> Iterator[Difference]:
    """Tensors that one lacks, and shapes that differ, in the layers that both have."""
    sizes = [stack_sizes(model.tensors) for model in (first, other)]
    depth = {stack: min(size, sizes[1].get(stack, size)) for stack, size in sizes[0].items()}

    def counted(name: str) -> bool:
        place = place_of(name)
        beyond = place is not None and place.index >= depth.get(place.stack, place.index + 1)
        return not beyond and not name.endswith(OBSOLETE) and not (is_head(name) and "tied" in heads)

    heads = [_head(model) for model in (first, other)]
    for has, lacks in ((first, other), (other, first)):
        missing = [name for name in has.tensors if name not in lacks.tensors and counted(name)]
        if missing:
            text = f"{some(missing)} of {pair} only in {has.ref}"
            yield Difference("blocks", "tensors", text, "merge one architecture only")
    rows = [embedding_rows(model.tensors) for model in (first, other)]
    differing = []
    for name, source in first.tensors.items():
        twin = other.tensors.get(name)
        if twin is None or twin.shape == source.shape or not counted(name):
            continue
        tables = is_vocabulary(name, source.shape, rows[0]) and is_vocabulary(name, twin.shape, rows[1])
        if not (tables and source.shape[1:] == twin.shape[1:]):
            differing.append(f"{name} {list(source.shape)} and {list(twin.shape)}")
    if differing:
        yield Difference("blocks", "shapes", f"{pair} differ in {some(differing)}", "merge one architecture only")


def _vocabulary(pair: str, first: Model, other: Model) -> Iterator[Difference]:
    rows = [embedding_rows(model.tensors) for model in (first, other)]
    if rows[0] and rows[1] and rows[0] != rows[1]:
        yield Difference(
            "asks",
            "vocabulary",
            f"the embeddings of {pair} have {rows[0]} and {rows[1]} rows",
            "add tokenizer_source: union (or base, or a model)",
        )


def _tokenizers(pair: str, first: Tokens | None, other: Tokens | None, *, asks: bool) -> Iterator[Difference]:
    if first is None or other is None:
        if first is not other:
            yield Difference(
                "note", "tokenizer", f"one of {pair} has none that can be read", "theirs is taken as the same"
            )
        return
    in_first, in_other = (sorted(tokens.ids, key=tokens.ids.__getitem__) for tokens in (first, other))
    added = [token for token in in_other if token not in first.ids]
    lost = [token for token in in_first if token not in other.ids]
    moved = [token for token in in_first if other.ids.get(token, first.ids[token]) != first.ids[token]]
    if not (added or lost or moved):
        return
    parts = []
    for tokens, says in ((lost, "only in the first"), (added, "only in the second"), (moved, "under other ids")):
        if tokens:
            parts.append(f"{some(list(map(repr, tokens)))} {says}")
    text = f"{pair} have {len(first.ids)} and {len(other.ids)} tokens: {', '.join(parts)}"
    remedy = "add tokenizer_source: union (or base, or a model)"
    yield Difference("asks" if asks else "note", "tokenizer", text, remedy)
