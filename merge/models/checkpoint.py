"""A model on disk or on the Hub as named, lazy tensors; opening one reads headers only."""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from heterosis.errors import InputError, collecting
from heterosis.merge.files import expanded, read_json, refuse_links_out
from heterosis.merge.models import lora
from heterosis.merge.models.fetching import HUB_ID, fetch
from heterosis.merge.models.quantised import refuse_config, refuse_gguf, refuse_tensors
from heterosis.merge.models.sources import TensorSource
from heterosis.merge.models.tokenizer import ModelTokenizer, tokenizer_files
from heterosis.merge.models.weights import Weights, open_weights
from heterosis.merge.recipe.reference import ModelRef

# What a file of weights without a model folder may be called.
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
Named = TypeVar("Named", bound=Hashable)
Opened = TypeVar("Opened")

_CONFIGS = ("generation_config.json", "tokenizer_config.json")


class Contents(NamedTuple):
    """What a model's files hold, as SHA-256.

    Attributes:
        weights: Of names and contents of the weight files, and of the adapter's.
        settings: Of those of configs, tokenizer and chat template.
    """

    weights: str
    settings: str


class Checkpoint:
    """A model's tensors and config. Close it, or use it in a ``with`` statement.

    Attributes:
        ref: What was asked for.
        folder: Where config, tokenizer and weights lie.
        config: The content of config.json; empty for a file of weights.
        tensors: Every tensor by name, sorted; a LoRA adapter is applied while they are read.
        revision: The Hub commit that the folder holds, None for a local folder.
        adapter_revision: The same for the adapter.
        written: Names, sizes and times of all its files when it was opened; another once one is written again.
    """

    def __init__(
        self,
        ref: ModelRef,
        folder: Path,
        config: dict[str, Any],
        weights: Weights,
        adapter: lora.Adapter | None,
        revision: str | None,
        adapter_revision: str | None,
    ) -> None:
        self.ref = ref
        self.folder = folder
        self.config = config
        self.revision = revision
        self.adapter_revision = adapter_revision
        self._weights = weights
        self._adapter = adapter
        tensors: dict[str, TensorSource] = dict(weights.tensors)
        if adapter is not None:
            tensors.update(adapter.apply(tensors, config))
        self.tensors: Mapping[str, TensorSource] = dict(sorted(tensors.items()))
        self.written = self._written()

    @property
    def pinned(self) -> ModelRef:
        """The reference with the commits that were found; local folders have none."""
        return replace(
            self.ref,
            revision=self.revision or self.ref.revision,
            adapter_revision=self.adapter_revision or self.ref.adapter_revision,
        )

    @cached_property
    def tokenizer(self) -> ModelTokenizer:
        """The tokenizer of its folder; a file of weights has none."""
        return ModelTokenizer.of_folder(self.folder) if self.config else ModelTokenizer(None)

    @property
    def files(self) -> list[Path]:
        """The weight files in name order, then the adapter's."""
        return self._weights.paths + ([] if self._adapter is None else self._adapter.files)

    @property
    def adapter_folder(self) -> Path | None:
        return None if self._adapter is None else self._adapter.files[0].parent

    @cached_property
    def contents(self) -> Contents:
        """What its files hold; all of them are read."""
        return Contents(_digest(self.files), _digest(self._settings))

    def _written(self) -> str:
        stats = [(path.name, path.stat()) for path in (*self.files, *self._settings)]
        return repr([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])

    @property
    def _settings(self) -> list[Path]:
        """What says how the weights are used; nothing beside a file of weights."""
        configs = [self.folder / "config.json", self.folder / "generation_config.json"]
        return [*filter(Path.is_file, configs), *tokenizer_files(self.folder)] if self.config else []

    @property
    def resident_bytes(self) -> int:
        """Memory that stays taken once everything was read as float32: an adapter's factors."""
        return sum(
            source.resident_bytes for source in self.tensors.values() if isinstance(source, lora.LoraTensor)
        )

    def close(self) -> None:
        self._weights.close()
        if self._adapter is not None:
            self._adapter.close()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(ref: ModelRef | str, mapped: bool = False) -> Checkpoint:
    """Open a local folder, a Hub id or a single file of weights, with the adapter of ``path+adapter`` applied.

    Args:
        ref: The model.
        mapped: Whether weights are used where the system keeps their files in memory (see `SafetensorsFile`).

    Raises:
        InputError: If it is missing, malformed, quantised, or has an adapter that cannot be applied.
    """
    if not isinstance(ref, ModelRef):
        try:
            ref = ModelRef.parse(ref)
        except ValueError as error:
            raise InputError(f"model: {error}") from None
    file = expanded(ref.path)
    if file.suffix in WEIGHT_FILES and file.is_file() and ref.revision is None and ref.adapter is None:
        with ExitStack() as opened:
            alone = opened.enter_context(closing(Weights(file.parent, [file.name], mapped)))
            refuse_tensors(file, alone.tensors)
            opened.pop_all()
        return Checkpoint(ref, file.parent, {}, alone, None, None, None)
    folder, revision = _resolve(ref.path, ref.revision, "model", ("model.safetensors", "pytorch_model.bin"))
    if not (folder / "config.json").exists():
        refuse_gguf(folder)  # such folders often have no config.json
        if (folder / "adapter_config.json").exists():
            raise InputError(f"{ref.path}: is a LoRA adapter, not a model; write BASE+{ref.path}")
    config = read_json(folder / "config.json", "is this a model folder?")
    refuse_config(folder / "config.json", config)
    refuse_links_out(folder)
    for name in _CONFIGS:  # which a merge edits when all else is written
        if (folder / name).is_file():
            read_json(folder / name)
    adapter, adapter_revision = None, None
    with ExitStack() as opened:  # closed again after an error
        weights = opened.enter_context(closing(open_weights(folder, "model", "pytorch_model", mapped)))
        refuse_tensors(folder, weights.tensors)
        if ref.adapter is not None:
            adapter_folder, adapter_revision = _resolve(
                ref.adapter, ref.adapter_revision, "adapter", ("adapter_model.safetensors", "adapter_model.bin")
            )
            adapter_config = read_json(adapter_folder / "adapter_config.json", "is this a PEFT adapter?")
            factors = opened.enter_context(closing(open_weights(adapter_folder, "adapter_model")))
            refuse_tensors(adapter_folder, factors.tensors, "adapter")
            adapter = lora.Adapter(adapter_folder, adapter_config, factors)
        checkpoint = Checkpoint(ref, folder, config, weights, adapter, revision, adapter_revision)
        opened.pop_all()
    return checkpoint


class OpenModels:
    """Opens each model once; in a ``with`` statement, which closes them all.

    Args:
        opened: Models that are open already.
        mapped: How to open others (see `open_checkpoint`).

    Attributes:
        opened: Those, and all that were asked for.
    """

    def __init__(self, opened: Mapping[ModelRef, Checkpoint] | None = None, *, mapped: bool = False) -> None:
        self.opened = dict(opened or {})
        self._mapped = mapped

    def __call__(self, ref: ModelRef) -> Checkpoint:
        if ref not in self.opened:
            self.opened[ref] = open_checkpoint(ref, self._mapped)
        return self.opened[ref]

    def __enter__(self) -> "OpenModels":
        return self

    def __exit__(self, *_: object) -> None:
        for checkpoint in self.opened.values():
            checkpoint.close()


def open_all(names: Iterable[Named], open_model: Callable[[Named], Opened]) -> dict[Named, Opened]:
    """Several models, each opened once.

    Raises:
        InputError: With the faults of all that cannot be opened.
    """
    opened: dict[Named, Opened] = {}
    faults: list[str] = []
    for name in dict.fromkeys(names):
        with collecting(faults):
            opened[name] = open_model(name)
    if faults:
        raise InputError(*faults)
    return opened


def _digest(paths: Iterable[Path]) -> str:
    """SHA-256 over names and contents of files."""
    total = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest = _file_digest(path.resolve(), stat.st_size, stat.st_mtime_ns)
        total.update(f"{digest}  {path.name}\n".encode())
    return total.hexdigest()


@cache
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file, computed once: a base is shared by all its adapters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- finding the folder -----------------------------------------------------------------------------------------


def _resolve(path: str, revision: str | None, what: str, weights: tuple[str, str]) -> tuple[Path, str | None]:
    """The local folder of a model or adapter, fetched from the Hub if need be, and its commit."""
    folder = expanded(path)
    if folder.is_dir():
        if revision is not None:
            raise InputError(
                f"{path}@{revision}: {path} is a local folder, which has no revisions; remove '@{revision}'"
            )
        return folder, None
    if folder.exists():
        refuse_gguf(folder)
        raise InputError(f"{path}: must be a {what} folder, but is a file; give the folder that holds it")
    if not HUB_ID.fullmatch(path):
        there = "" if folder.is_absolute() else f" (looked in the current folder, {Path.cwd()})"
        raise InputError(
            f"{path}: no such {what} folder; give a local folder, or a Hub id such as org/name{there}"
        )
    return fetch(path, revision, weights)
