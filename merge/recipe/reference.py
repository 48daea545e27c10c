"""Which model is meant: a folder or a Hub id, at a revision, with an adapter."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from heterosis.errors import did_you_mean


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
                    f"but got {str(self)!r}; link a folder that has them in its path under another name"
                )
        assert self.adapter is not None or self.adapter_revision is None
        for name in ("path", "adapter"):  # a folder is the same one with a slash at its end
            value = getattr(self, name)
            if value is not None and (folder := value.rstrip("/")).strip():
                object.__setattr__(self, name, folder)

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


def short_names(models: Iterable[ModelRef], reserved: Iterable[str] = ()) -> tuple[str, ...]:
    """A short, unique name for each model: that of its path, or of its adapter's."""
    return short_paths((model.adapter or model.path for model in models), reserved)


def short_paths(paths: Iterable[str], reserved: Iterable[str] = ()) -> tuple[str, ...]:
    """A short, unique name for each path: its last part.

    Those that would share a name get more parts of their paths, and at last a number.
    """
    parts_of = [_path_parts(path) for path in paths]
    lengths = [1] * len(parts_of)

    def names() -> list[str]:
        return ["-".join(parts[-length:]) for parts, length in zip(parts_of, lengths, strict=True)]

    for _ in range(max(map(len, parts_of), default=0)):
        counts = Counter(names())
        lengths = [n + 1 if counts[name] > 1 else n for n, name in zip(lengths, names(), strict=True)]
    unique: list[str] = []
    taken = set(reserved)
    for name in names():
        candidate, number = name, 2
        while candidate in taken:
            candidate, number = f"{name}-{number}", number + 1
        taken.add(candidate)
        unique.append(candidate)
    return tuple(unique)


def _path_parts(path: str) -> list[str]:
    return [part for part in re.split(r"[/\\]+", path) if part not in ("", ".", "..")] or ["model"]
