"""Recipe: mergekit's YAML language, strict, with every fault of a file reported at once."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainValidator, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from heterosis.errors import InputError, did_you_mean

from .parameters import Place, Setting, setting_faults
from .yaml_file import parse_mapping, read_text

DTYPE_NAMES = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class ModelRef:
    """Which model: a local folder or a Hub id, at a revision, with a LoRA adapter applied.

    ``str(ref)`` is ``path[@revision][+adapter[@revision]]``, and `parse` reads it back.
    """

    path: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None

    def __post_init__(self) -> None:
        for part in (self.path, self.revision, self.adapter, self.adapter_revision):
            if part is not None and (not part.strip() or "+" in part or "@" in part):
                raise ValueError(
                    f"must be path, path@revision or path+adapter, with at most one '+' and one '@' each, "
                    f"but got {str(self)!r}"
                )
        assert self.adapter is not None or self.adapter_revision is None

    def __str__(self) -> str:
        revision = "" if self.revision is None else f"@{self.revision}"
        adapter = "" if self.adapter is None else f"+{self.adapter}"
        adapter_revision = "" if self.adapter_revision is None else f"@{self.adapter_revision}"
        return f"{self.path}{revision}{adapter}{adapter_revision}"

    @classmethod
    def parse(cls, value: object) -> "ModelRef":
        """Read ``path[@revision][+adapter[@revision]]`` or ``{"model": ..., "lora": ...}``.

        Raises:
            ValueError: If it is neither; one line with the rule and what was got.
        """
        if isinstance(value, ModelRef):
            return value
        if isinstance(value, str):
            path, plus, adapter = value.partition("+")
            return cls(*_path_and_revision(path), *(_path_and_revision(adapter) if plus else ()))
        if not isinstance(value, dict):
            raise ValueError(f"must be a model: a folder or an id such as org/name, but got {value!r}")
        for key in value:
            if key == "override_architecture":
                raise ValueError(
                    "override_architecture is not needed: planning reads the tensors' names; remove it"
                )
            if key not in ("model", "lora"):
                raise ValueError(f"unknown key {key!r}{did_you_mean(str(key), ('model', 'lora'))}")
        if value.get("model") is None:
            raise ValueError("must name a model under the key 'model'")
        adapter_part = () if value.get("lora") is None else _path_and_revision(value["lora"])
        return cls(*_path_and_revision(value["model"]), *adapter_part)


def _path_and_revision(value: object) -> tuple[str, str | None]:
    if isinstance(value, str):
        path, at, suffix = value.partition("@")
        return path, suffix if at else None
    if isinstance(value, dict) and value.keys() <= {"path", "revision"}:
        name, commit = value.get("path"), value.get("revision")
        if isinstance(name, str) and (commit is None or isinstance(commit, str)):
            return name, commit
    raise ValueError(
        f"must be a path, or a mapping with 'path' and perhaps 'revision' as texts, but got {value!r}"
    )


def _check_setting(setting: object) -> object:
    faults = list(setting_faults(setting))
    if faults:
        raise _validation_error(faults, setting)
    return setting


def _check_range(value: object) -> tuple[int, int]:
    if not (isinstance(value, list | tuple) and len(value) == 2 and all(type(end) is int for end in value)):
        raise ValueError(f"must be two layer numbers [from, to), such as [0, 12], but got {value!r}")
    start, stop = value
    if start < 0 or stop <= start:
        raise ValueError(f"must satisfy `0 <= from < to`, but got [{start}, {stop}]; the end is not included")
    return start, stop


def _check_dtype(value: object) -> object:
    name = value.removeprefix("torch.") if isinstance(value, str) else value
    if name is not None and name not in DTYPE_NAMES:
        raise ValueError(f"unknown dtype {value!r}{did_you_mean(str(name), DTYPE_NAMES)}")
    return name


def _check_tokenizer_source(value: object) -> object:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"must be 'union', 'base' or a model, but got {value!r}")
    return value if value is None else str(ModelRef.parse(value))


def _check_heterosis(value: object) -> object:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"must be a mapping with texts as keys, but got {value!r}")
    seed = value.get("seed", 0)
    if type(seed) is not int or not 0 <= seed < 2**64:
        raise _validation_error([(("seed",), f"must be a whole number in [0, 2**64), but got {seed!r}")], value)
    return value


Ref: TypeAlias = Annotated[ModelRef, BeforeValidator(ModelRef.parse)]
Parameters: TypeAlias = Annotated[
    dict[str, Annotated[Setting, PlainValidator(_check_setting)]],
    BeforeValidator(lambda value: {} if value is None else value),
]
Dtype: TypeAlias = Annotated[str | None, BeforeValidator(_check_dtype)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Section):
    """Layers ``[from, to)`` of one model, in a slice."""

    model: Ref
    layer_range: Annotated[tuple[int, int], BeforeValidator(_check_range)]
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


class Recipe(_Section):
    """What to merge, and how. Build one from YAML with `load` or `parse`, or from Python objects.

    Names of parameters are not checked here: which ones there are is the method's knowledge.
    """

    merge_method: str
    base_model: Ref | None = None
    models: list[InputModel] | None = None
    slices: list[Slice] | None = None
    parameters: Parameters = {}
    dtype: Dtype = None
    out_dtype: Dtype = None
    tokenizer_source: Annotated[str | None, BeforeValidator(_check_tokenizer_source)] = None
    # Ours alone (mergekit ignores it): the seed, and where the recipe came from.
    heterosis: Annotated[dict[str, Any], BeforeValidator(_check_heterosis)] = {}

    @model_validator(mode="after")
    def _check_relations(self) -> "Recipe":
        faults = list(_relation_faults(self._plain()))
        if faults:
            raise _validation_error(faults, None)
        return self

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Recipe":
        """Read a recipe file.

        Raises:
            InputError: With a line for every fault.
        """
        return cls.parse(read_text(path, "recipe"), os.fspath(path))

    @classmethod
    def parse(cls, yaml_text: str, origin: str = "recipe.yaml") -> "Recipe":
        """Read a recipe from YAML; ``origin`` is the name that error messages give it.

        Raises:
            InputError: With a line for every fault.
        """
        data = parse_mapping(yaml_text, origin)
        faults = list(_unsupported_faults(data))
        known = {key: value for key, value in data.items() if key not in _UNSUPPORTED}
        try:
            recipe = cls.model_validate(known)
        except ValidationError as error:
            faults += [_fault_of(detail) for detail in error.errors(include_url=False)]
            # Pydantic leaves out the checks across keys as soon as one key is wrong; we report all at once.
            faults += [fault for fault in _relation_faults(known) if fault not in faults]
        if "modules" in data:  # what is missing without them would only confuse
            faults = [(place, text) for place, text in faults if place]
        if faults:
            raise InputError(
                *(f"{origin}: {_dotted(place)}{': ' if place else ''}{text}" for place, text in faults)
            )
        return recipe

    def to_yaml(self) -> str:
        """The recipe as YAML that mergekit accepts too: keys in a fixed order, defaults left out."""
        return yaml.dump(
            self._plain(),
            Dumper=_Dumper,
            sort_keys=False,
            allow_unicode=True,
            default_flow_style=False,
            width=2**31,
        )

    def dump(self, path: str | os.PathLike[str], header_comment: str = "") -> None:
        """Write the recipe, replacing the file in one step, so that readers never see half of it."""
        target = Path(path)
        comment = "".join(f"# {line}".rstrip() + "\n" for line in header_comment.splitlines())
        with tempfile.NamedTemporaryFile(
            "w", dir=target.parent, prefix=f".{target.name}.", delete=False, encoding="utf-8"
        ) as file:
            file.write(comment + self.to_yaml())
            file.flush()
            os.fsync(file.fileno())
        try:
            Path(file.name).chmod(0o644)
            Path(file.name).replace(target)
        except OSError:
            Path(file.name).unlink()
            raise

    def referenced_models(self) -> list[ModelRef]:
        """Every model once, the base first if there is one, then as first mentioned."""
        mentions = [] if self.base_model is None else [self.base_model]
        mentions += [entry.model for entry in self.models or []]
        for slice_ in self.slices or []:
            mentions += [source.model for source in slice_.sources]
            mentions += [] if slice_.base_model is None else [slice_.base_model]
        return list(dict.fromkeys(mentions))

    @property
    def seed(self) -> int:
        """Where random masks start, 0 unless ``heterosis.seed`` says otherwise."""
        return int(self.heterosis.get("seed", 0))

    @property
    def donor(self) -> ModelRef:
        """The model that config and tokenizer come from: the base model, else the first mentioned."""
        return self.referenced_models()[0]

    def _plain(self) -> dict[str, Any]:
        plain = _plain(self)
        assert isinstance(plain, dict)
        return plain


def _plain(value: object) -> Any:
    """Sections as dictionaries without their defaults, model references as strings."""
    if isinstance(value, _Section):
        fields = {name: _plain(getattr(value, name)) for name in type(value).model_fields}
        return {name: plain for name, plain in fields.items() if plain is not None and plain != {}}
    if isinstance(value, ModelRef):
        return str(value)
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return value


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_list(dumper: _Dumper, data: list[Any]) -> yaml.Node:
    flow = all(isinstance(entry, bool | int | float | str) for entry in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flow)


_Dumper.add_representer(list, _represent_list)


# --- faults -----------------------------------------------------------------------------------------------------

_UNSUPPORTED = {
    "chat_template": "is not accepted by this version; the output gets that of the tokenizer's model",
    "modules": "is not accepted by this version; merge one-module models with 'models' or 'slices'",
    "tokenizer": "is not accepted by this version; use 'tokenizer_source' with 'union', 'base' or a model",
}
_SECTIONS: dict[str, type[_Section]] = {"": Recipe, "models": InputModel, "slices": Slice, "sources": Source}


def _unsupported_faults(data: Mapping[str, Any]) -> Iterator[tuple[Place, str]]:
    for key, reason in _UNSUPPORTED.items():
        if data.get(key) is not None:
            yield (key,), reason


def _relation_faults(data: Mapping[str, Any]) -> Iterator[tuple[Place, str]]:
    """What is wrong between keys of a recipe in plain form; parts that are malformed are passed over."""
    models, slices = data.get("models"), data.get("slices")
    # An empty list counts as absent, as in mergekit.
    if models and slices:
        yield (), "must have either 'models' or 'slices', but got both; keep one"
    elif not models and not slices:
        empty = [key for key in ("models", "slices") if data.get(key) == []]
        if empty:
            yield (empty[0],), "must list at least one entry, but is empty"
        else:
            yield (), "must have 'models' or 'slices', but got neither; list the models to merge"
    yield from _duplicate_faults(models, ("models",), "list it once, with the sum of the weights")
    for i, slice_ in enumerate(slices if isinstance(slices, list) else []):
        sources = slice_.get("sources") if isinstance(slice_, dict) else None
        place: Place = ("slices", i, "sources")
        if sources == []:
            yield place, "must list at least one source, but is empty"
        yield from _duplicate_faults(sources, place, "a slice takes each model once; use two slices")
        counts = [_layer_count(source) for source in (sources if isinstance(sources, list) else [])]
        known = [count for count in counts if count is not None]
        if len(set(known)) > 1:
            yield place, f"must all have equally many layers, but got {', '.join(map(str, known))}"


def _duplicate_faults(entries: object, place: Place, remedy: str) -> Iterator[tuple[Place, str]]:
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
        start, stop = _check_range(source.get("layer_range") if isinstance(source, dict) else None)
    except ValueError:
        return None
    return stop - start


def _validation_error(faults: list[tuple[Place, str]], value: object) -> ValidationError:
    """Faults as an error that pydantic takes over from a validator, with their places within the value."""
    details = [
        # The text is a context value and not the template, because a template may hold no braces.
        InitErrorDetails(type=PydanticCustomError("fault", "{text}", {"text": text}), loc=place, input=value)
        for place, text in faults
    ]
    return ValidationError.from_exception_data("recipe", details)


def _fault_of(detail: Mapping[str, Any]) -> tuple[Place, str]:
    """Pydantic's description of one error as (place, text) in our words."""
    place, kind, got = tuple(detail["loc"]), detail["type"], detail["input"]
    match kind:
        case "fault":
            return place, detail["ctx"]["text"]
        case "value_error":
            return place, str(detail["ctx"]["error"])
        case "missing":
            return place, "must be given"
        case "extra_forbidden":
            return place, _unknown_key(place)
        case "model_type" | "model_attributes_type" | "dict_type":
            section = _section_of(place)
            keys = f" with {_listed(section.model_fields)}" if section is not None else ""
            return place, f"must be a mapping{keys}, but got {_brief(got)}"
        case "list_type":
            return place, f"must be a list, but got {_brief(got)}"
        case "string_type" if place and place[-1] == "[key]":
            return place[:-2], f"keys must be texts, but got {_brief(got)}; quote it"
        case "string_type":
            return place, f"must be a text, but got {_brief(got)}; quote it"
        case _:
            return place, f"{detail['msg']}, but got {_brief(got)}"


def _section_of(place: Place) -> type[_Section] | None:
    """The section that a place such as ``("slices", 0, "sources", 1)`` denotes."""
    names = [key for key in place if isinstance(key, str)]
    if place and isinstance(place[-1], str):
        return None
    return _SECTIONS.get(names[-1] if names else "")


def _unknown_key(place: Place) -> str:
    section, key = _section_of(place[:-1]), str(place[-1])
    if key == "residual_weight":
        return "has no effect in any method; remove it"
    assert section is not None
    suggestion = did_you_mean(key, section.model_fields)
    hint = " (settings of the method go under 'parameters')" if "; valid" in suggestion else ""
    return f"unknown key{suggestion}{hint}"


def _listed(names: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _dotted(place: Place) -> str:
    path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place)
    return path.removeprefix(".")
