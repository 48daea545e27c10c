"""PyTorch's weights files, of which nothing but plain tensors is unpickled."""

import math
import os
import pickle
import warnings
import zipfile
from collections.abc import Hashable
from pathlib import Path
from typing import TypeGuard

import torch
from torch import Tensor

from heterosis.errors import InputError
from heterosis.merge.files import open_ordinary, refuse_pointer
from heterosis.merge.models.safetensors_file import DTYPES
from heterosis.merge.models.sources import TensorSource
from heterosis.words import brief, first_line

# Where training frameworks put the weights among other things that they save.
_STATE_DICTS = ("state_dict", "model_state_dict", "model", "module")


class PickleFile:
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
            raise InputError(f"{path}: cannot be read as PyTorch weights: {first_line(error)}") from None
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
            self._tensors[name] = LoadedTensor(name, tensor.detach(), (*self._identity, same))

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
        refuse_pointer(path, file)
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


class LoadedTensor:
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
