"""The output's tokenizer: a model's own files, or those with tokens appended.

Ids of the tokenizer that is taken never change: tokens of other models are appended as added tokens, in the order
of the recipe's models and of their ids there. Ids that no token has, such as padding, stay.
"""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from filecmp import cmp
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from heterosis.errors import InputError, within
from heterosis.merge.chat_template import CHAT_TEMPLATE_FILE, chosen_template, folder_template
from heterosis.merge.files import read_json
from heterosis.merge.layout import embedding_rows
from heterosis.merge.recipe import Recipe, Tokenizer
from heterosis.merge.reference import ModelRef
from heterosis.merge.sources import Model
from heterosis.merge.vocabulary import ModelTokens, Vocabulary, build_vocabulary
from heterosis.words import first_line

_PREFIXES = ("tokenizer", "special_tokens", "added_tokens", "chat_template", "vocab.", "merges.", "sentencepiece.")
_NAMES = ("spiece.model", "tekken.json")
_SUFFIXES = (".tiktoken", ".spm")
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
MORE_TEMPLATES = "additional_chat_templates"
# What stays right beside a tokenizer.json with more tokens; the others hold the vocabulary in older formats.
_NO_VOCABULARY = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.json",
    CHAT_TEMPLATE_FILE,
)


class AddedToken(NamedTuple):
    """A token that is found in a text before the rest is split; as tokenizer.json has it."""

    id: int
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False


class Tokens(NamedTuple):
    """All tokens of a tokenizer with their ids, and the added ones among them."""

    ids: Mapping[str, int]
    added: Mapping[str, AddedToken]


@dataclass(frozen=True)
class OutputTokenizer:
    """A tokenizer to be written: that of a folder, with tokens added and perhaps another chat template.

    Attributes:
        folder: Where the files to start from are; None without a tokenizer.
        added: Tokens to add, with ids of their own or of a token that is there.
        new_template: A chat template in place of the folder's.
        vocabulary: Where the rows of its tokens are in the recipe's models; None where no tokenizer was asked for,
            and embeddings are merged as they are.
    """

    folder: Path | None
    added: tuple[AddedToken, ...] = ()
    new_template: str | None = None
    vocabulary: Vocabulary | None = field(default=None, compare=False)

    @classmethod
    def of_folder(cls, folder: Path) -> "OutputTokenizer":
        """A model folder's own tokenizer, or none if it has no tokenizer files."""
        has_tokenizer = any(not path.name.startswith("chat_template") for path in tokenizer_files(folder))
        return cls(folder if has_tokenizer else None)

    @property
    def chat_template(self) -> str | None:
        if self.folder is None or self.new_template is not None:
            return self.new_template
        return folder_template(self.folder)

    @property
    def identity(self) -> Hashable:
        """Tokenizers of equal identity are written alike."""
        if self.folder is None:
            return None
        return os.path.realpath(self.folder), _stamp(self.folder), self.added, self.new_template

    def ids_in(self, file: str) -> dict[str, Any]:
        """What a configuration beside the tokenizer says of its special tokens: ``eos_token_id`` and the like.

        Args:
            file: ``config.json`` or ``generation_config.json``.
        """
        path = None if self.folder is None else self.folder / file
        if path is None or not path.is_file():
            return {}
        data = read_json(path)
        return {key: data[key] for key in _SPECIAL_IDS if key in data}

    def tokens(self) -> Tokens:
        """Its tokens, as transformers finds them; read once for each state of the files.

        Raises:
            InputError: If transformers cannot load it, or cannot add the tokens with their ids.
        """
        assert self.folder is not None
        return _tokens(self.folder, _stamp(self.folder), self.added)

    def load(self) -> Any:
        """The transformers tokenizer.

        Raises:
            InputError: If there is none, or transformers cannot load it.
        """
        if self.folder is None:
            raise InputError("tokenizer: the model has none; add one to its folder")
        if not self.added and self.new_template is None:
            return _load(self.folder, self.folder)
        with tempfile.TemporaryDirectory(prefix="heterosis-") as name:
            self.write(Path(name))
            if (self.folder / "config.json").is_file():  # which may tell the tokenizer's class
                shutil.copyfile(self.folder / "config.json", Path(name, "config.json"))
            return _load(Path(name), self.folder)

    def write(self, folder: Path) -> None:
        """Write the tokenizer's files and chat template into a folder; nothing without a tokenizer."""
        if self.folder is None:
            return
        files = tokenizer_files(self.folder)
        if self.added:
            if (self.folder / "tokenizer.json").is_file():
                self._write_extended(folder / "tokenizer.json")
                files = [path for path in files if path.name in _NO_VOCABULARY]
            else:
                self._save_extended(folder)
                files = []
        for path in files:
            shutil.copyfile(path, folder / path.name)
        if (self.folder / MORE_TEMPLATES).is_dir() and self.new_template is None:
            shutil.copytree(self.folder / MORE_TEMPLATES, folder / MORE_TEMPLATES, dirs_exist_ok=True)
        if self.new_template is not None:
            _replace_template(folder, self.new_template)

    def _write_extended(self, path: Path) -> None:
        """Write the folder's tokenizer.json with the added tokens, changing nothing else."""
        from tokenizers import Tokenizer as FastTokenizer

        assert self.folder is not None
        source = self.folder / "tokenizer.json"
        data = read_json(source)
        known = _tokens(self.folder, _stamp(self.folder), ())
        there = FastTokenizer.from_file(str(source)).get_vocab()
        # Transformers also adds tokens that only tokenizer_config.json names, and they have ids too.
        missing = [token for token in known.added.values() if token.content not in there]
        entries = {entry["content"]: entry for entry in data.get("added_tokens", [])}
        entries |= {token.content: token._asdict() for token in (*missing, *self.added)}
        ids = dict(known.ids) | {token.content: token.id for token in self.added}
        data["added_tokens"] = sorted(
            (entry | {"id": ids[content]} for content, entry in entries.items()), key=itemgetter("id")
        )
        vocabulary = data["model"].get("vocab")
        if isinstance(vocabulary, dict) and len(vocabulary) <= max(vocabulary.values(), default=-1):
            # The ids have holes. Tokens outside the vocabulary would be numbered on from its length.
            for content in entries:
                vocabulary.setdefault(content, ids[content])
        path.write_text(json.dumps(data, ensure_ascii=False, indent=2), encoding="utf-8")

    def _save_extended(self, folder: Path) -> None:
        """Let transformers convert a tokenizer without tokenizer.json, and save it with the added tokens."""
        import transformers

        assert self.folder is not None
        tokenizer = _load(self.folder, self.folder)
        for token in self.added:
            settings = {key: value for key, value in token._asdict().items() if key not in ("id", "content")}
            tokenizer.add_tokens(transformers.AddedToken(token.content, **settings), special_tokens=token.special)
        tokenizer.save_pretrained(folder)


def output_tokenizer(
    recipe: Recipe,
    donor: Model,
    models: Mapping[ModelRef, Model],
    open_model: Callable[[ModelRef], Model],
) -> OutputTokenizer:
    """The tokenizer that a recipe asks for, with its vocabulary.

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
        return tokenizer
    template = chosen_template(recipe.chat_template, (model.tokenizer.chat_template for model in models.values()))
    if template is not None and template.strip() == (tokenizer.chat_template or "").strip():
        template = tokenizer.new_template
    added, vocabulary = tokenizer.added, None
    if section is None:
        _warn_of_other_tokens(source, models.values())
    else:
        new, vocabulary = _vocabulary(recipe, section, source, donor, models)
        added += tuple(new)
    result = OutputTokenizer(
        tokenizer.folder, added, tokenizer.new_template if template is None else template, vocabulary
    )
    if vocabulary is not None:
        result.tokens()  # which checks them
    return result


def _warn_of_other_tokens(donor: Model, models: Iterable[Model]) -> None:
    """Say where embeddings are merged as they are, but their rows belong to other tokens."""
    for model in models:
        stamps = tuple(own.folder and _stamp(own.folder) for own in (donor.tokenizer, model.tokenizer))
        if clashes := _clashes(donor.tokenizer, model.tokenizer, stamps):
            count, (i, own, other) = clashes
            warnings.warn(
                f"tokenizer: {count} ids stand for other tokens in {model.ref} than in {donor.ref} ({i} "
                f"for {other!r} and {own!r}), so their embeddings do not go together; write "
                "tokenizer_source: union (or base, or a model)",
                stacklevel=2,
            )


@lru_cache(maxsize=16)
def _clashes(
    here: OutputTokenizer, there: OutputTokenizer, stamps: Hashable
) -> tuple[int, tuple[int, str, str]] | None:
    """How many ids stand for different tokens, and the first with both; ``stamps`` tell states of files apart."""
    files = [own.folder / "tokenizer.json" for own in (here, there) if own.folder is not None]
    if len(files) < 2 or not all(path.is_file() for path in files):
        return None
    if here.added == there.added and cmp(files[0], files[1], shallow=False):
        return None
    ids, others = (
        {**_ids_in(path), **{token.content: token.id for token in own.added}}
        for path, own in zip(files, (here, there), strict=True)
    )
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


# --- files ------------------------------------------------------------------------------------------------------


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of a model folder belongs to the tokenizer, its chat template included."""
    return name.startswith(_PREFIXES) or name in _NAMES or name.endswith(_SUFFIXES)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder's tokenizer, sorted; its code is not taken along."""
    return sorted(
        path
        for path in folder.iterdir()
        if is_tokenizer_file(path.name) and path.suffix != ".py" and path.is_file()
    )


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    stats = [(path.name, path.stat()) for path in tokenizer_files(folder)]
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def _replace_template(folder: Path, template: str) -> None:
    """Make ``template`` the one chat template of a folder."""
    (folder / "chat_template.json").unlink(missing_ok=True)
    shutil.rmtree(folder / MORE_TEMPLATES, ignore_errors=True)
    path = folder / "tokenizer_config.json"
    if path.is_file():
        config = read_json(path)
        if config.pop("chat_template", None) is not None:
            path.write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (folder / CHAT_TEMPLATE_FILE).write_text(template, encoding="utf-8")


# --- loading ----------------------------------------------------------------------------------------------------


def _load(folder: Path, named: Path) -> Any:
    """The transformers tokenizer in ``folder``, which messages call ``named``."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)  # else it may ask
    except Exception as error:  # the classes of other libraries' tokenizers raise anything
        raise InputError(f"{named}: the tokenizer cannot be loaded: {first_line(error)}") from error


def _ids_in(path: Path) -> Mapping[str, int]:
    """The tokens in a tokenizer.json with their ids; none if it cannot be read."""
    from tokenizers import Tokenizer as FastTokenizer

    try:
        return FastTokenizer.from_file(str(path)).get_vocab()
    except Exception:  # of any kind; who needs it says what is wrong
        return {}


@lru_cache(maxsize=16)
def _tokens(folder: Path, stamp: Hashable, added: tuple[AddedToken, ...]) -> Tokens:
    """The tokens of a folder's tokenizer, with others added; ``stamp`` tells states of its files apart."""
    tokenizer = OutputTokenizer(folder, added).load()
    tokens = Tokens(
        tokenizer.get_vocab(),
        {
            token.content: AddedToken(
                i, token.content, token.single_word, token.lstrip, token.rstrip, token.normalized, token.special
            )
            for i, token in tokenizer.added_tokens_decoder.items()
        },
    )
    if added:
        expected = dict(_tokens(folder, stamp, ()).ids) | {token.content: token.id for token in added}
        if dict(tokens.ids) != expected:
            wrong = sorted(t for t in expected.keys() | tokens.ids.keys() if expected.get(t) != tokens.ids.get(t))
            raise InputError(
                f"{folder}: the tokenizer cannot be given more tokens: {wrong[0]!r} would get the id "
                f"{tokens.ids.get(wrong[0])} instead of {expected.get(wrong[0])}; use its tokens as they are"
            )
    return tokens
