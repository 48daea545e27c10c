"""A model's tokenizer: the files of its folder, perhaps with more tokens or another chat template."""

import json
import os
import shutil
import tempfile
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

from heterosis.errors import InputError
from heterosis.merge.files import read_json
from heterosis.merge.models.chat_template import CHAT_TEMPLATE_FILE, folder_template
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
class ModelTokenizer:
    """The tokenizer of a folder, perhaps with tokens added and another chat template; how it is written.

    Attributes:
        folder: Where the files to start from are; None without a tokenizer.
        added: Tokens to add, with ids of their own or of a token that is there.
        new_template: A chat template in place of the folder's.
    """

    folder: Path | None
    added: tuple[AddedToken, ...] = ()
    new_template: str | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> "ModelTokenizer":
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

    def ids_at_sight(self) -> dict[str, int]:
        """Its tokens with their ids as tokenizer.json alone has them; none of the file's if it cannot be read."""
        from tokenizers import Tokenizer as FastTokenizer

        assert self.folder is not None
        added = {token.content: token.id for token in self.added}
        try:
            return FastTokenizer.from_file(str(self.folder / "tokenizer.json")).get_vocab() | added
        except Exception:  # of any kind; who needs it says what is wrong
            return added

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


@lru_cache(maxsize=16)
def _tokens(folder: Path, stamp: Hashable, added: tuple[AddedToken, ...]) -> Tokens:
    """The tokens of a folder's tokenizer, with others added; ``stamp`` tells states of its files apart."""
    tokenizer = ModelTokenizer(folder, added).load()
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
