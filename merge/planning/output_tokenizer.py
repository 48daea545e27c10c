"""The output's tokenizer: a model's own files, or those with tokens appended.

Ids of the tokenizer that is taken never change: tokens of other models are appended as added tokens, in the order
of the recipe's models and of their ids there. Ids that no token has, such as padding, stay.
"""

import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from filecmp import cmp
from functools import lru_cache
from operator import itemgetter

from heterosis.errors import InputError, within
from heterosis.merge.models.chat_template import chosen_template
from heterosis.merge.models.layout import embedding_rows
from heterosis.merge.models.sources import Model
from heterosis.merge.models.tokenizer import AddedToken, ModelTokenizer, Tokens
from heterosis.merge.planning.vocabulary import ModelTokens, Vocabulary, build_vocabulary
from heterosis.merge.recipe.recipe import Recipe, Tokenizer
from heterosis.merge.recipe.reference import ModelRef


def output_tokenizer(
    recipe: Recipe,
    donor: Model,
    models: Mapping[ModelRef, Model],
    open_model: Callable[[ModelRef], Model],
) -> tuple[ModelTokenizer, Vocabulary | None]:
    """The tokenizer that a recipe asks for, and where the rows of its tokens are in the recipe's models.

    These are None where no tokenizer was asked for, and embeddings are merged as they are.

    Args:
        recipe: A recipe.
        donor: The model whose tokenizer is taken unless the recipe says otherwise.
        models: The recipe's.
        open_model: Opens a model that the recipe names for its tokenizer alone.

    Raises:
        InputError: If it cannot be had; where the recipe asks for nothing, a model may well have no tokenizer.
    """
    models = {ref: models[ref] for ref in recipe.referenced_models()}  # in the recipe's order
    section, source = recipe.vocabulary, donor
    if section is not None and section.source not in ("union", "base"):
        ref = ModelRef.parse(section.source)
        with within("tokenizer_source" if recipe.tokenizer_source else "tokenizer.source"):
            source = models[ref] if ref in models else open_model(ref)
    tokenizer = source.tokenizer
    if tokenizer.folder is None:
        if section is not None or recipe.chat_template not in (None, "auto"):
            key = "chat_template" if section is None else "tokenizer"
            raise InputError(
                f"{key}: {source.ref} has no tokenizer; name a model that has one, or leave out {key}"
            )
        if other := next((ref for ref, model in models.items() if model.tokenizer.folder is not None), None):
            warnings.warn(
                f"the merge has no tokenizer, as {source.ref} has none; write tokenizer_source: {other} for that "
                f"of {other}",
                stacklevel=2,
            )
        return tokenizer, None
    template = chosen_template(recipe.chat_template, (model.tokenizer.chat_template for model in models.values()))
    if template is not None and template.strip() == (tokenizer.chat_template or "").strip():
        template = tokenizer.new_template
    added, vocabulary = tokenizer.added, None
    if section is None:
        _warn_of_other_tokens(source, models.values())
    else:
        new, vocabulary = _vocabulary(recipe, section, source, donor, models)
        added += tuple(new)
    result = ModelTokenizer(tokenizer.folder, added, tokenizer.new_template if template is None else template)
    if vocabulary is not None:
        result.tokens()  # which checks them
    return result, vocabulary


def _warn_of_other_tokens(donor: Model, models: Iterable[Model]) -> None:
    """Say where embeddings are merged as they are, but their rows belong to other tokens."""
    for model in models:
        states = donor.tokenizer.identity, model.tokenizer.identity
        if clashes := _clashes(donor.tokenizer, model.tokenizer, states):
            count, (i, own, other) = clashes
            warnings.warn(
                f"tokenizer: {count} ids stand for other tokens in {model.ref} than in {donor.ref} ({i} "
                f"for {other!r} and {own!r}), so their embeddings do not go together; write "
                "tokenizer_source: union (or base, or a model)",
                stacklevel=2,
            )


@lru_cache(maxsize=16)
def _clashes(
    here: ModelTokenizer, there: ModelTokenizer, states: Hashable
) -> tuple[int, tuple[int, str, str]] | None:
    """How many ids stand for different tokens, and the first with both; ``states`` tell states of files apart."""
    files = [own.folder / "tokenizer.json" for own in (here, there) if own.folder is not None]
    if len(files) < 2 or not all(path.is_file() for path in files):
        return None
    if here.added == there.added and cmp(files[0], files[1], shallow=False):
        return None
    ids, others = here.ids_at_sight(), there.ids_at_sight()
    token_of = {i: token for token, i in ids.items()}
    found = [(i, token_of[i], token) for token, i in others.items() if token_of.get(i, token) != token]
    return (len(found), min(found)) if found else None


def _vocabulary(
    recipe: Recipe, section: Tokenizer, source: Model, donor: Model, models: Mapping[ModelRef, Model]
) -> tuple[list[AddedToken], Vocabulary]:
    """The tokens to add to the source's tokenizer, and where all rows are."""
    known = source.tokenizer.tokens()
    fallback = source if donor.tokenizer.folder is None else donor
    tokens = {ref: _model_tokens(model, fallback) for ref, model in models.items()}
    rows = {ref: vocabulary_rows(model) for ref, model in models.items()}
    added: list[AddedToken] = []
    if section.source == "union":
        added = _union(known, [(tokens[ref], rows[ref]) for ref in models])
    ids = dict(known.ids) | {token.content: token.id for token in added}
    for content in section.tokens:
        if content not in ids:
            ids[content] = max(ids.values(), default=-1) + 1
            added.append(AddedToken(ids[content], content))
    size = max(vocabulary_rows(source), max(ids.values(), default=-1) + 1)
    multiple = section.pad_to_multiple_of or 1
    size = -(-size // multiple) * multiple
    own = {ref: ModelTokens(tokens[ref].ids, rows[ref]) for ref in models}
    return added, build_vocabulary(ids, size, own, recipe.base_model, section.tokens)


def _model_tokens(model: Model, fallback: Model) -> Tokens:
    """A model's tokens; where it has none that can be read, those of another, as mergekit assumes."""
    reason = "it has no tokenizer"
    if model.tokenizer.folder is not None:
        try:
            return model.tokenizer.tokens()
        except InputError as error:
            if model is fallback:
                raise
            reason = str(error)
    warnings.warn(f"tokenizer: {model.ref} is taken to have the tokens of {fallback.ref}: {reason}", stacklevel=2)
    return fallback.tokenizer.tokens()


def _union(known: Tokens, others: Iterable[tuple[Tokens, int]]) -> list[AddedToken]:
    """What other tokenizers have beyond one: tokens, or that a token is an added one.

    Args:
        known: That tokenizer's.
        others: Tokens and rows of each model; tokens without a row are left out.
    """
    settings = dict(known.added)
    contents: dict[str, None] = {}
    conflicts: dict[str, None] = {}
    for tokens, rows in others:
        if tokens == known:
            continue
        for content, i in sorted(tokens.ids.items(), key=itemgetter(1)):
            if i >= rows:
                continue
            if content not in known.ids:
                contents[content] = None
            token = tokens.added.get(content)
            if token is not None and settings.setdefault(content, token)._replace(id=i) != token:
                conflicts[content] = None
    if conflicts:
        shown = ", ".join(map(repr, list(conflicts)[:5])) + (", ..." if len(conflicts) > 5 else "")
        warnings.warn(
            f"tokenizer: models add {shown} with different settings; the first model's are kept", stacklevel=2
        )
    first_id = max(known.ids.values(), default=-1) + 1
    new = [
        settings.get(content, AddedToken(i, content))._replace(id=i)
        for i, content in enumerate(contents, first_id)
    ]
    marked = [
        token._replace(id=known.ids[content])
        for content, token in settings.items()
        if content in known.ids and content not in known.added
    ]
    return marked + new


def vocabulary_rows(model: Model) -> int:
    """How many rows a model's embedding has.

    Raises:
        InputError: If no tensor has the name of an embedding.
    """
    rows = embedding_rows(model.tensors)
    if rows is None:
        raise InputError(f"tokenizer: {model.ref} has no embedding that is known by its name; leave out tokenizer")
    return rows
