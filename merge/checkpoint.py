"""A model on disk or on the Hub as named, lazy tensors; opening one reads headers only."""

import hashlib
import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Hashable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import cache, cached_property
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Protocol, TypeGuard

import torch
from torch import Tensor

from heterosis.errors import InputError
from heterosis.words import brief

from . import lora
from .files import open_ordinary, read_json, refuse_links_out
from .hub import HUB_ID, fetch
from .quantised import refuse_config, refuse_gguf, refuse_tensors
from .reference import ModelRef
from .safetensors_file import DTYPES, SafetensorsFile
from .tokenizer import OutputTokenizer

# What a file of weights without a model folder may be called.
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_CONFIGS = ("generation_config.json", "tokenizer_config.json")
_MAX_FAULTS = 20  # of an index: after so many, the rest are the same
# Where training frameworks put the weights among other things that they save.
_STATE_DICTS = ("state_dict", "model_state_dict", "model", "module")


class TensorSource(Protocol):
    """A named tensor that lies somewhere and can be read in any ranges, from any thread."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def exact(self) -> bool:
        """Whether its values are of its dtype; else what a wider dtype gets of them is not rounded to it."""

    @property
    def identity(self) -> Hashable:
        """Sources of equal identity hold the same values."""

    def view(self, start: int, stop: int) -> Tensor | None:
        """Flat elements ``[start, stop)`` where they lie in memory, to be read alone; None if they do not."""

    def read(self, start: int, stop: int, out: Tensor) -> None:
        """Fill the 1-D ``out`` (``stop - start`` elements) with flat elements ``[start, stop)``.

        Values are converted to the dtype of ``out``. Any division into ranges gives the same values.
        """


class Model(Protocol):
    """Something to merge: a `Checkpoint`, or an earlier stage's result."""

    @property
    def ref(self) -> ModelRef: ...

    @property
    def folder(self) -> Path:
        """Where companion files lie."""

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json; empty for a file of weights."""

    @property
    def tensors(self) -> Mapping[str, TensorSource]: ...

    @property
    def tokenizer(self) -> OutputTokenizer: ...

    @property
    def resident_bytes(self) -> int:
        """Memory that stays taken once everything was read."""


class Checkpoint:
    """A model's tensors and config. Close it, or use it in a ``with`` statement.

    Attributes:
        ref: What was asked for.
        folder: Where config, tokenizer and weights lie.
        config: The content of config.json; empty for a file of weights.
        tensors: Every tensor by name, sorted; a LoRA adapter is applied while they are read.
        revision: The Hub commit that the folder holds, None for a local folder.
        adapter_revision: The same for the adapter.
    """

    def __init__(
        self,
        ref: ModelRef,
        folder: Path,
        config: dict[str, Any],
        weights: "Weights",
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

    @property
    def pinned(self) -> ModelRef:
        """The reference with the commits that were found; local folders have none."""
        return replace(
            self.ref,
            revision=self.revision or self.ref.revision,
            adapter_revision=self.adapter_revision or self.ref.adapter_revision,
        )

    @cached_property
    def tokenizer(self) -> OutputTokenizer:
        """The tokenizer of its folder; a file of weights has none."""
        return OutputTokenizer.of_folder(self.folder) if self.config else OutputTokenizer(None)

    @property
    def files(self) -> list[Path]:
        """The weight files in name order, then the adapter's."""
        return self._weights.paths + ([] if self._adapter is None else self._adapter.files)

    @property
    def adapter_folder(self) -> Path | None:
        return None if self._adapter is None else self._adapter.files[0].parent

    @cached_property
    def content_hash(self) -> str:
        """``sha256:<hex>`` over names and contents of `files`."""
        total = hashlib.sha256()
        for path in self.files:
            stat = path.stat()
            digest = _file_digest(path.resolve(), stat.st_size, stat.st_mtime_ns)
            total.update(f"{digest}  {path.name}\n".encode())
        return f"sha256:{total.hexdigest()}"

    @property
    def resident_bytes(self) -> int:
        """Memory that stays taken once everything was read: an adapter's factors in float32."""
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
    file = Path(ref.path).expanduser()
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
        weights = opened.enter_context(closing(_open_weights(folder, "model", "pytorch_model", mapped)))
        refuse_tensors(folder, weights.tensors)
        if ref.adapter is not None:
            adapter_folder, adapter_revision = _resolve(
                ref.adapter, ref.adapter_revision, "adapter", ("adapter_model.safetensors", "adapter_model.bin")
            )
            adapter_config = read_json(adapter_folder / "adapter_config.json", "is this a PEFT adapter?")
            factors = opened.enter_context(closing(_open_weights(adapter_folder, "adapter_model")))
            refuse_tensors(adapter_folder, factors.tensors, "adapter")
            adapter = lora.Adapter(adapter_folder, adapter_config, factors)
        checkpoint = Checkpoint(ref, folder, config, weights, adapter, revision, adapter_revision)
        opened.pop_all()
    return checkpoint


class Weights:
    """The tensors of one or more weight files of a folder.

    Attributes:
        paths: The files, in name order.
        tensors: Every tensor by name.
        file_of: The file that holds each tensor, relative to the folder.
    """

    def __init__(self, folder: Path, names: Iterable[str], mapped: bool = False) -> None:
        """Open the files.

        Raises:
            InputError: If one is missing or malformed, or two hold a tensor of one name.
        """
        self.paths: list[Path] = []
        self.tensors: dict[str, TensorSource] = {}
        self.file_of: dict[str, str] = {}
        self._files: list[SafetensorsFile | _PickleFile] = []
        try:
            for name in sorted(names):
                path = folder / name
                file = SafetensorsFile(path, mapped) if path.suffix == ".safetensors" else _PickleFile(path)
                self.paths.append(path)
                self._files.append(file)
                for tensor, source in file.tensors().items():
                    if tensor in self.tensors:
                        raise InputError(f"{folder}: {tensor}: held by both {self.file_of[tensor]} and {name}")
                    self.tensors[tensor] = source
                    self.file_of[tensor] = name
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for file in self._files:
            file.close()


@cache
def _file_digest(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file, computed once: a base is shared by all its adapters."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- finding the folder -----------------------------------------------------------------------------------------


def _resolve(path: str, revision: str | None, what: str, weights: tuple[str, str]) -> tuple[Path, str | None]:
    """The local folder of a model or adapter, fetched from the Hub if need be, and its commit."""
    folder = Path(path).expanduser()
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


# --- opening weight files ---------------------------------------------------------------------------------------


def _open_weights(folder: Path, stem: str, pickle_stem: str | None = None, mapped: bool = False) -> Weights:
    """The weights of a folder, in transformers' order of preference: safetensors before pickles."""
    expected = []
    for name in (f"{stem}.safetensors", f"{pickle_stem or stem}.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).exists():
            return Weights(folder, [name], mapped)
        if index.exists():
            return _open_sharded(folder, index, mapped)
        expected += [name, index.name]
    refuse_gguf(folder)
    raise InputError(f"{folder}: has no weights; expected one of {', '.join(expected)}")


def _open_sharded(folder: Path, index: Path, mapped: bool) -> Weights:
    # A file that is listed may be a link to anywhere, as in the Hub's cache, but its name may not lead out.
    listed = read_json(index).get("weight_map")
    if not isinstance(listed, dict) or not listed or not all(isinstance(file, str) for file in listed.values()):
        raise InputError(f"{index}: weight_map must map names of tensors to files")
    faults = []
    files = sorted(set(listed.values()))
    for file in files:
        path = PurePosixPath(file)
        if path.is_absolute() or ".." in path.parts or str(path) != file or "\0" in file:
            faults.append(f"{index}: weight_map: {brief(file)} must be a file inside the model folder")
        elif not (folder / file).is_file():
            faults.append(f"{index}: weight_map: there is no file {brief(file)}; download the model again")
    if faults:
        raise InputError(*faults[:_MAX_FAULTS])
    weights = Weights(folder, files, mapped)
    for name in sorted(listed.keys() | weights.tensors.keys()):
        held, expected = weights.file_of.get(name), listed.get(name)
        if held != expected:
            faults.append(
                f"{index}: {name}: listed in {expected}, but held by {held or 'no file'}; download the model again"
                if expected
                else f"{index}: {name}: held by {held}, but not listed; download the model again"
            )
    if faults:
        weights.close()
        raise InputError(*faults[:_MAX_FAULTS])
    return weights


class _PickleFile:
    """A PyTorch weights file. Only plain tensors are unpickled, and values stay on disk until they are read."""

    def __init__(self, path: Path) -> None:
        try:
            _check_archive(path)
            stat = path.stat()
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except InputError:
            raise
        except pickle.UnpicklingError:
            raise InputError(
                f"{path}: refused: it holds other Python objects than tensors, and loading those can run code; "
                "use a safetensors version of the model"
            ) from None
        except Exception as error:  # a damaged pickle can raise anything
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InputError(f"{path}: cannot be read as PyTorch weights: {reason}") from None
        if not isinstance(content, dict):
            raise InputError(f"{path}: must map names to tensors, but holds a {type(content).__name__}")
        nested = next((key for key in _STATE_DICTS if isinstance(content.get(key), dict)), None)
        if nested is not None:
            others = ", ".join(str(key) for key in content if key != nested)
            if others:
                warnings.warn(f"{path}: only {nested!r} is merged; it also holds {others}", stacklevel=2)
            content = content[nested]
        self._identity = (os.path.realpath(path), stat.st_size, stat.st_mtime_ns)
        self._tensors: dict[str, TensorSource] = {}
        first: dict[Hashable, str] = {}  # tied tensors are one under several names
        for name, tensor in content.items():
            if not isinstance(name, str) or name == "__metadata__":
                raise InputError(f"{path}: names of tensors must be texts, but got {brief(name)}")
            if not _is_ordinary(tensor):
                raise InputError(f"{path}: {name}: must be an ordinary dense tensor")
            if tensor.dtype not in DTYPES.values():
                known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES.values())
                raise InputError(f"{path}: {name}: {tensor.dtype} is not supported; save it as one of {known}")
            held = tensor.untyped_storage().nbytes()
            if tensor.numel() * tensor.itemsize > held:
                raise InputError(
                    f"{path}: {name}: {brief(list(tensor.shape))} takes {tensor.numel() * tensor.itemsize:,} "
                    f"bytes, but the file holds {held:,} of them, repeated; save it contiguous"
                )
            place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
            same = first.setdefault(place, name) if tensor.numel() else name
            self._tensors[name] = _LoadedTensor(name, tensor.detach(), (*self._identity, same))

    def tensors(self) -> dict[str, TensorSource]:
        return self._tensors

    def close(self) -> None:
        """Nothing to do: the mapping goes with the last tensor."""


def _check_archive(path: Path) -> None:
    """Refuse what would take more memory than the file has bytes, before torch takes it apart.

    Raises:
        OSError: If it cannot be read.
        InputError: If it is no archive as torch.save writes it.
    """
    with open_ordinary(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            archive = zipfile.ZipFile(file)
        except zipfile.BadZipFile:
            raise InputError(
                f"{path}: cannot be read as PyTorch weights: must be a zip archive, as torch.save has written "
                "since version 1.6; load it and save it again"
            ) from None
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > size:
                raise InputError(
                    f"{path}: refused: {entry.filename} is compressed, as torch.save never does; save it again"
                )
            # Of the types that torch unpickles, the one that turns a number into so many bytes.
            if entry.filename.endswith("data.pkl") and b"\nbytearray\n" in archive.read(entry):
                raise InputError(f"{path}: refused: it holds a bytearray, which no weights do; save them alone")


def _is_ordinary(tensor: object) -> TypeGuard[Tensor]:
    """Whether it is a tensor with values of its own, one beside the other."""
    return (
        isinstance(tensor, Tensor)
        and tensor.layout == torch.strided
        and not tensor.is_quantized
        and not tensor.is_nested
        and tensor.device.type == "cpu"
    )


class _LoadedTensor:
    """A tensor mapped from a PyTorch file (a `TensorSource`)."""

    exact = True

    def __init__(self, name: str, tensor: Tensor, identity: Hashable) -> None:
        self.name = name
        self.shape = tuple(tensor.shape)
        self.dtype = tensor.dtype
        self.identity = identity
        # Along the first dimension that there is more than one of.
        self._rows = tensor.reshape(1) if tensor.numel() == 1 else tensor.squeeze()
        self._width = max(1, math.prod(self._rows.shape[1:]))

    def view(self, start: int, stop: int) -> Tensor | None:
        """None: a tensor saved transposed would be a copy, and older files are not aligned."""
        return None

    def read(self, start: int, stop: int, out: Tensor) -> None:
        """Fill the 1-D ``out`` with flat elements ``[start, stop)``, converted to its dtype."""
        assert out.shape == (stop - start,)
        first, last = start // self._width, -(-stop // self._width)
        rows = self._rows[first:last].reshape(-1)  # a view, unless it was saved transposed
        out.copy_(rows[start - first * self._width : stop - first * self._width])
