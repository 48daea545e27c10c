"""Recipe: mergekit's YAML language, strict, with every fault of a file reported at once."""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    PrivateAttr,
    StrictBool,
    StrictInt,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from heterosis.errors import InputError, did_you_mean
from heterosis.merge.files import write_text
from heterosis.merge.recipe.faults import Fault, dotted, fault_of, refuse
from heterosis.merge.recipe.parameters import Place, Setting, setting_faults
from heterosis.merge.recipe.reference import ModelRef
from heterosis.merge.recipe.rules import check_range, document_faults, method_faults, other_kind, relation_faults
from heterosis.merge.yaml_file import parse_documents, read_text
from heterosis.words import brief

__all__ = [
    "CHAT_TEMPLATES",
    "DTYPE_NAMES",
    "InputModel",
    "ModelRef",
    "ModelToken",
    "Module",
    "Recipe",
    "Slice",
    "Source",
    "TokenRow",
    "Tokenizer",
    "ZeroRow",
]

DTYPE_NAMES = ("bfloat16", "float16", "float32", "float64")
# Chat templates that a recipe may name; `heterosis.merge.models.chat_template` has them.
CHAT_TEMPLATES = ("alpaca", "chatml", "exaone", "llama3", "mistral")
# What stands under `heterosis`: the random seed, the hashes and commits of the models a search merged, the modules
# of merge methods of one's own, and how the search found the recipe (`heterosis.merge.recipe.discovery`).
_OWN_KEYS = ("seed", "models", "methods", "search")


# --- values -----------------------------------------------------------------------------------------------------


def _check_setting(setting: object) -> object:
    refuse(setting_faults(setting), setting)
    return setting


def _check_dtype(value: object) -> object:
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if name is not None and name not in DTYPE_NAMES:
        raise ValueError(f"unknown dtype {value!r}{did_you_mean(str(name), DTYPE_NAMES)}")
    return name


def _check_tokenizer_source(value: object) -> object:
    return value if value in (None, "union", "base") else str(ModelRef.parse(value))


def _check_chat_template(value: object) -> object:
    """``auto``, a built-in name, or Jinja, which has braces: what is neither is a misspelt name."""
    if value is None or value == "auto" or value in CHAT_TEMPLATES:
        return value
    if not isinstance(value, str):
        raise ValueError(f"must be 'auto', a built-in name or a Jinja template, but got {value!r}")
    if "{" not in value or len(value) < 20:
        raise ValueError(
            f"must be 'auto', a built-in name or a Jinja template (with braces, at least 20 characters), but got "
            f"{value!r}{did_you_mean(value, ('auto', *CHAT_TEMPLATES))}"
        )
    return value


def _check_multiple(value: object) -> object:
    if value is not None and (type(value) is not int or not 1 <= value <= 2**20):
        raise ValueError(f"must be a whole number in [1, 2**20], but got {value!r}")
    return value


def _check_name(value: object) -> object:
    if value is not None and (not isinstance(value, str) or not value.strip() or set(value) & set("+@")):
        raise ValueError(f"must be a text without '+' and '@', but got {value!r}")
    return value


def _check_seed(value: object) -> None:
    if type(value) is not int or not 0 <= value < 2**64:
        raise ValueError(f"must be a whole number in [0, 2**64), but got {value!r}")


def _check_heterosis(value: object) -> object:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"must be a mapping with texts as keys, but got {value!r}")
    faults: list[Fault] = [
        ((key,), f"unknown key{did_you_mean(key, _OWN_KEYS)}") for key in value if key not in _OWN_KEYS
    ]
    try:
        _check_seed(value.get("seed", 0))
    except ValueError as error:
        faults.append((("seed",), str(error)))
    refuse(faults, value)
    return value


def _empty(value: object) -> object:
    """A key without a value is an empty section."""
    return {} if value is None else value


Ref: TypeAlias = Annotated[ModelRef, BeforeValidator(ModelRef.parse)]
Parameters: TypeAlias = Annotated[
    dict[str, Annotated[Setting, PlainValidator(_check_setting)]], BeforeValidator(_empty)
]
Dtype: TypeAlias = Annotated[str | None, BeforeValidator(_check_dtype)]
TokenizerSource: TypeAlias = Annotated[str | None, BeforeValidator(_check_tokenizer_source)]


# --- sections ---------------------------------------------------------------------------------------------------


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Section):
    """Layers ``[from, to)`` of one model, in a slice."""

    model: Ref
    layer_range: Annotated[tuple[int, int], BeforeValidator(check_range)]
    parameters: Parameters = {}


class Slice(_Section):
    """Consecutive layers of the output, merged from equally many layers of each source."""

    sources: list[Source]
    base_model: Ref | None = None
    parameters: Parameters = {}


class InputModel(_Section):
    """A whole model among the inputs."""

    model: Ref
    parameters: Parameters = {}


class Module(_Section):
    """A part of a model with layers of its own, such as the text decoder of a vision-language model."""

    models: list[InputModel] | None = None
    slices: list[Slice] | None = None
    parameters: Parameters = {}


class ModelToken(_Section):
    """The row of one model's token, given as text or as number."""

    model: Ref
    token: str | None = None
    token_id: StrictInt | None = None


class ZeroRow(_Section):
    """A row of zeros."""


def _check_row(value: object) -> object:
    if isinstance(value, ModelToken | ZeroRow):
        return value
    if not isinstance(value, dict) or "kind" not in value:
        return value if value is None else ModelRef.parse(value)
    rest = {key: entry for key, entry in value.items() if key != "kind"}
    match value["kind"]:
        case "zero":
            return ZeroRow.model_validate(rest)
        case "model_token":
            row = ModelToken.model_validate(rest)
            if (row.token is None) == (row.token_id is None):
                raise ValueError("must have either 'token' or 'token_id'")
            return row
    kinds = ("model_token", "zero")
    raise ValueError(f"unknown kind {value['kind']!r}{did_you_mean(str(value['kind']), kinds)}")


class TokenRow(_Section):
    """Which row of the embeddings a token gets in models without it, or with ``force`` in all models."""

    source: Annotated[ModelRef | ModelToken | ZeroRow | None, PlainValidator(_check_row)] = None
    force: StrictBool = False


class Tokenizer(_Section):
    """Which tokenizer the output gets: ``union``, ``base`` or a model, and rows for single tokens."""

    source: Annotated[str, BeforeValidator(_check_tokenizer_source)] = "union"
    tokens: Annotated[dict[str, TokenRow], BeforeValidator(_empty)] = {}
    pad_to_multiple_of: Annotated[int | None, PlainValidator(_check_multiple)] = None


class Recipe(_Section):
    """What to merge, and how. Build one from YAML with `load` or `parse`, or from Python objects.

    Names of parameters are not checked here: which ones there are is the method's knowledge.
    """

    # Of a document among several: what other documents call its result.
    name: Annotated[str | None, BeforeValidator(_check_name)] = None
    merge_method: str
    base_model: Ref | None = None
    models: list[InputModel] | None = None
    slices: list[Slice] | None = None
    modules: dict[str, Module] | None = None
    parameters: Parameters = {}
    dtype: Dtype = None
    out_dtype: Dtype = None
    tokenizer_source: TokenizerSource = None
    tokenizer: Tokenizer | None = None
    chat_template: Annotated[str | None, BeforeValidator(_check_chat_template)] = None
    # Ours alone (mergekit ignores it): the seed, and where the recipe came from.
    heterosis: Annotated[dict[str, Any], BeforeValidator(_check_heterosis)] = {}

    _stages: tuple["Recipe", ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _check_relations(self) -> "Recipe":
        refuse(relation_faults(self._plain({})), None)
        return self

    # ------------------------------------------------------------------ YAML

    @classmethod
    def load(cls, path: str | os.PathLike[str], stage: str | None = None) -> "Recipe":
        """Read a recipe file (see `parse`).

        Raises:
            InputError: With a line for every fault.
        """
        return cls.parse(read_text(path, "recipe"), os.fspath(path), stage)

    @classmethod
    def parse(cls, yaml_text: str, origin: str = "recipe.yaml", stage: str | None = None) -> "Recipe":
        """Read a recipe from YAML; ``origin`` is the name that error messages give it.

        Of several documents, the one without a name is the recipe, or the last if all have names; those that
        it uses by name, in whatever order they stand, become its stages.

        Args:
            yaml_text: One document or several.
            origin: The file's name.
            stage: The name of the document to return instead.

        Raises:
            InputError: With a line for every fault.
        """
        documents = parse_documents(yaml_text, origin)
        several = len(documents) > 1
        recipes: list[Recipe] = []
        faults: list[str] = []
        for i, data in enumerate(documents):
            where = f"{origin}: " + (f"document {i + 1}: " if several else "")
            if other := other_kind(data):
                faults.append(f"{where}{other}")
                continue
            try:
                recipes.append(cls.model_validate(data))
            except ValidationError as error:
                found = [_fault_of(detail) for detail in error.errors(include_url=False)]
                # Pydantic leaves out the checks across keys as soon as one key is wrong; we report all at once.
                found += [fault for fault in relation_faults(data) if fault not in found]
                found += method_faults(data)
                faults += [f"{where}{dotted(place)}{': ' if place else ''}{text}" for place, text in found]
        if not faults:
            faults = [f"{origin}: {fault}" for fault in document_faults(recipes, stage)]
        if faults:
            raise InputError(*faults)
        wanted = [recipe for recipe in recipes if recipe.name == stage] or recipes[-1:]
        return wanted[0].with_stages(recipe for recipe in recipes if recipe is not wanted[0])

    def with_stages(self, others: Iterable["Recipe"]) -> "Recipe":
        """The recipe with those of the named recipes that it uses, directly or through others, as stages."""
        by_name = {recipe.name: recipe for recipe in others}
        needed: dict[str, Recipe] = {}

        def visit(recipe: Recipe) -> None:
            for ref in recipe.needed_models():
                if ref.path in by_name and ref.path not in needed:
                    visit(by_name[ref.path])
                    needed[ref.path] = by_name[ref.path]

        visit(self)
        copy = self.model_copy()
        copy._stages = tuple(needed.values())
        return copy

    def with_seed(self, seed: int) -> "Recipe":
        """The recipe with another random seed, in its stages too.

        Raises:
            InputError: If it is none that a recipe may have.
        """
        try:
            _check_seed(seed)
        except ValueError as error:
            raise InputError(f"seed: {error}") from None
        copy = self.model_copy(update={"heterosis": {**self.heterosis, "seed": seed}})
        copy._stages = tuple(stage.with_seed(seed) for stage in self._stages)
        return copy

    def to_yaml(self, names: Mapping[str, str] | None = None) -> str:
        """The recipe as YAML that mergekit accepts too: keys in a fixed order, defaults left out.

        Args:
            names: What to call models otherwise than here, wherever they are named.
        """
        return "---\n".join(
            yaml.dump(
                recipe._plain(names or {}),
                Dumper=_Dumper,
                sort_keys=False,
                allow_unicode=True,
                default_flow_style=False,
                width=2**31,
            )
            for recipe in (*self.stages, self)
        )

    def dump(self, path: str | os.PathLike[str], header_comment: str = "") -> None:
        """Write the recipe, replacing the file in one step, so that readers never see half of it."""
        comment = "".join(f"# {line}".rstrip() + "\n" for line in header_comment.splitlines())
        write_text(Path(path), comment + self.to_yaml())

    # ------------------------------------------------------------- questions

    def essence(self) -> str:
        """All that decides its tensors, as a text, but for its name, which only random masks depend on."""
        return self.model_copy(update={"name": None, "heterosis": {"seed": self.seed}}).to_yaml()

    @property
    def stages(self) -> tuple["Recipe", ...]:
        """The named recipes whose results this one uses, each after those that it uses itself."""
        return self._stages

    def parts(self) -> Iterator[tuple[str | None, "Module | Recipe"]]:
        """What has ``models`` or ``slices``: every module with its name, or else the recipe itself."""
        yield from self.modules.items() if self.modules else ((None, self),)

    def referenced_models(self) -> list[ModelRef]:
        """Every model once, the base first if there is one, then as first mentioned; stages by their names."""
        mentions = [] if self.base_model is None else [self.base_model]
        for _, part in self.parts():
            mentions += [entry.model for entry in part.models or []]
            for slice_ in part.slices or []:
                mentions += [source.model for source in slice_.sources]
                mentions += [] if slice_.base_model is None else [slice_.base_model]
        return list(dict.fromkeys(mentions))

    def needed_models(self) -> list[ModelRef]:
        """Every referenced model, and the one that only gives its tokenizer."""
        section = self.vocabulary
        named = [] if section is None or section.source in ("union", "base") else [ModelRef.parse(section.source)]
        return list(dict.fromkeys((*self.referenced_models(), *named)))

    def original_models(self) -> list[ModelRef]:
        """Every model of the recipe and its stages that is not a stage itself."""
        names = {stage.name for stage in self.stages}
        mentions = [ref for recipe in (*self.stages, self) for ref in recipe.referenced_models()]
        return [ref for ref in dict.fromkeys(mentions) if ref.path not in names]

    @property
    def vocabulary(self) -> Tokenizer | None:
        """The tokenizer section, also where it is spelt ``tokenizer_source``; None for the donor's as it is."""
        return Tokenizer(source=self.tokenizer_source) if self.tokenizer_source else self.tokenizer

    @property
    def seed(self) -> int:
        """Where random masks start, 0 unless ``heterosis.seed`` says otherwise."""
        return int(self.heterosis.get("seed", 0))

    @property
    def donor(self) -> ModelRef:
        """The model that config and tokenizer come from: the base model, else the first mentioned."""
        return self.referenced_models()[0]

    def _plain(self, names: Mapping[str, str]) -> dict[str, Any]:
        plain = _plain(self, names)
        assert isinstance(plain, dict)
        if isinstance(hashes := self.heterosis.get("models"), dict):
            plain["heterosis"]["models"] = {names.get(model, model): entry for model, entry in hashes.items()}
        for section, key in ((plain, "tokenizer_source"), (plain.get("tokenizer", {}), "source")):
            if section.get(key) not in (None, "union", "base"):
                section[key] = names.get(section[key], section[key])
        return plain


def _plain(value: object, names: Mapping[str, str]) -> Any:
    """Sections as dictionaries without their defaults, model references as strings."""
    if isinstance(value, _Section):
        fields = {name: _plain(getattr(value, name), names) for name in type(value).model_fields}
        kind = {ModelToken: {"kind": "model_token"}, ZeroRow: {"kind": "zero"}}.get(type(value), {})
        # Modules have no default: none of them is a fault, which must not vanish.
        kept = {n: plain for n, plain in fields.items() if plain is not None and (plain != {} or n == "modules")}
        return kind | {name: plain for name, plain in kept.items() if not (name == "force" and plain is False)}
    if isinstance(value, ModelRef):
        return names.get(str(value), str(value))
    if isinstance(value, list | tuple):
        return [_plain(entry, names) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry, names) for key, entry in value.items()}
    return value


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    flow = all(isinstance(entry, bool | int | float | str) for entry in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


def _represent_text(dumper: _Dumper, data: str) -> yaml.Node:
    # In other styles these are line breaks, which readers make newlines of.
    quoted = any(c in data for c in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style='"' if quoted else None)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)


# --- faults -----------------------------------------------------------------------------------------------------

_SECTIONS: dict[str, type[_Section]] = {
    "models": InputModel,
    "slices": Slice,
    "sources": Source,
    "tokenizer": Tokenizer,
}
_BY_NAME: dict[str, type[_Section]] = {"modules": Module, "tokens": TokenRow}


def _section_of(place: Place) -> type[BaseModel] | None:
    """The section that a place such as ``("slices", 0, "sources", 1)`` denotes, None for a plain value."""
    match place:
        case ():
            return Recipe
        case (*_, str() as key, str()) if key in _BY_NAME:
            return _BY_NAME[key]
        case (*_, "source"):
            return ModelToken
        case (*_, str() as key, int()) | (*_, str() as key):
            section = _SECTIONS.get(key)
            is_entry = isinstance(place[-1], int) or key == "tokenizer"
            return section if is_entry else None
    return None


def _fault_of(detail: ErrorDetails) -> Fault:
    """One of the errors that pydantic found in a recipe, with what a reader of recipes is helped by."""
    place, text = fault_of(detail, _section_of, brief)
    got = brief(detail["input"])
    match detail["type"]:
        case "extra_forbidden" if place[-1] == "residual_weight":
            text = "has no effect in any method; remove it"
        case "extra_forbidden" if place[-1] in ("model", "layer_range") and _section_of(place[:-1]) is Slice:
            text = "unknown key; put it into an entry under 'sources'"
        case "extra_forbidden" if "; valid" in text and "parameters" in _fields_of(place[:-1]):
            text += " (settings of the method go under 'parameters')"
        case "model_type" | "dict_type" if fields := _fields_of(place):
            text = f"must be a mapping with {', '.join(map(repr, fields))}, but got {got}"
        case "string_type" if place[-1] == "[key]":
            place, text = place[:-2], f"keys must be texts, but got {got}; quote it"
        case "string_type" if detail["input"] is None:
            text = "must be given, but is empty"
        case "string_type":
            text += "; quote it"
    return place, text


def _fields_of(place: Place) -> Collection[str]:
    section = _section_of(place)
    return () if section is None else section.model_fields
