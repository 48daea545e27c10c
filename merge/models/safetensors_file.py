"""A safetensors file as named tensors: a defensive reader of headers, and reads of any range of elements."""

import json
import math
import mmap
import os
import threading
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heterosis.errors import InputError
from heterosis.merge.files import open_ordinary, refuse_pointer
from heterosis.words import brief

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
_MAX_DIMENSIONS = 64  # torch's limit
_MAX_COUNT = 2**63 - 1  # torch counts in int64
_CHUNK_BYTES = 1 << 22  # bounds the buffer when a caller asks for a whole tensor at once

_local = threading.local()


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in its file. ``offset`` counts bytes from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


class SafetensorsFile:
    """An open safetensors file. Only its header is read until a tensor is asked for."""

    def __init__(self, path: Path, mapped: bool = False) -> None:
        """Open the file and check its header.

        Args:
            path: The file.
            mapped: Whether the file stays mapped into memory, which all processes share, as long as this object or
                a view of a tensor lives; else a tensor is as long as a view of it lives. Should the file be cut
                short meanwhile, the process dies.

        Raises:
            InputError: If it is missing, truncated or malformed.
        """
        self.path = path
        self._map: mmap.mmap | None = None
        try:
            self._file = open_ordinary(path)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from None
        try:
            refuse_pointer(path, self._file)
            stat = os.fstat(self._file.fileno())
            self.entries = read_header(path, self._file.fileno(), stat.st_size)
            if mapped:
                self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_COPY)
        except BaseException:
            self._file.close()
            raise
        # The real path, so that links to one file (the Hub's cache is made of them) count as one.
        self._identity = (os.path.realpath(path), stat.st_size, stat.st_mtime_ns)

    def tensors(self) -> dict[str, "FileTensor"]:
        """Every tensor of the file, in the header's order."""
        return {name: FileTensor(self, name, entry) for name, entry in self.entries.items()}

    def close(self) -> None:
        self._file.close()

    def view(self, entry: "TensorEntry", start: int, stop: int) -> Tensor | None:
        """Flat elements of a tensor where the system keeps them in memory, if they can be used there.

        Raises:
            InputError: If the file has become too short.
        """
        size = entry.dtype.itemsize
        if entry.offset % size or start == stop:
            return None
        begin, end = entry.offset + start * size, entry.offset + stop * size
        if self._map is not None:
            return torch.frombuffer(self._map, dtype=entry.dtype, count=stop - start, offset=begin)
        if os.fstat(self._file.fileno()).st_size < end:
            raise InputError(f"{self.path}: truncated: ends before byte {end}; it changed while it was read")
        page = begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        try:
            area = mmap.mmap(self._file.fileno(), end - page, access=mmap.ACCESS_COPY, offset=page)
            area.madvise(mmap.MADV_WILLNEED)  # so that a disk is read in long runs
        except (OSError, AttributeError):  # not every file system can, nor every system
            return None
        return torch.frombuffer(area, dtype=entry.dtype, count=stop - start, offset=begin - page)

    def read_bytes(self, offset: int, into: Tensor) -> None:
        """Fill a contiguous uint8 tensor from ``offset`` on. Safe to call from any thread."""
        if self._map is not None:
            np.copyto(into.numpy(), np.frombuffer(self._map, np.uint8, len(into), offset))
            return
        target = memoryview(into.numpy())  # type: ignore[arg-type]  # numpy's stubs lack the buffer protocol
        while target:
            count = os.preadv(self._file.fileno(), [target], offset)
            if count == 0:
                raise InputError(f"{self.path}: truncated: ends at byte {offset}; it changed while it was read")
            target, offset = target[count:], offset + count


class FileTensor:
    """A tensor in a safetensors file (a `TensorSource`)."""

    exact = True

    def __init__(self, file: SafetensorsFile, name: str, entry: TensorEntry) -> None:
        self.name = name
        self.shape = entry.shape
        self.dtype = entry.dtype
        self.identity: Hashable = (*file._identity, name)
        self._file = file
        self._entry = entry

    def view(self, start: int, stop: int) -> Tensor | None:
        """Flat elements ``[start, stop)`` where they lie in memory, to be read alone; None if they do not."""
        return self._file.view(self._entry, start, stop)

    def read(self, start: int, stop: int, out: Tensor) -> None:
        """Fill the 1-D ``out`` with flat elements ``[start, stop)``, converted to its dtype."""
        assert 0 <= start <= stop <= self._entry.numel
        assert out.shape == (stop - start,)
        size = self.dtype.itemsize
        offset = self._entry.offset + start * size
        if out.dtype == self.dtype and out.is_contiguous() and self.dtype != torch.bool and len(out):
            self._file.read_bytes(offset, out.view(torch.uint8))
            return
        chunk = _CHUNK_BYTES // size
        buffer = _buffer(min(chunk, stop - start) * size)
        for at in range(0, stop - start, chunk):
            part = out[at : at + chunk]
            raw = buffer[: len(part) * size]
            self._file.read_bytes(offset + at * size, raw)
            # Only 0 and 1 are valid bytes of a torch.bool, and a file may hold others.
            part.copy_(raw.ne(0) if self.dtype == torch.bool else raw.view(self.dtype))


def _buffer(size: int) -> Tensor:
    """This thread's own buffer, grown when needed. Torch aligns it to 64 bytes, whatever the file does."""
    buffer: Tensor | None = getattr(_local, "buffer", None)
    if buffer is None or len(buffer) < size:
        buffer = _local.buffer = torch.empty(size, dtype=torch.uint8)
    return buffer


def read_header(path: Path, descriptor: int, file_size: int) -> dict[str, TensorEntry]:
    """Parse and check a header: 8 bytes of length, JSON, then the data without gaps or overlaps.

    Raises:
        InputError: One line that names the file, the tensor and the rule.
    """
    prefix = os.pread(descriptor, 8, 0)
    if len(prefix) < 8:
        raise InputError(f"{path}: truncated: a safetensors file has at least 8 bytes, this has {file_size}")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise InputError(
            f"{path}: not a safetensors file: the header would have {length:,} bytes, the limit is "
            f"{MAX_HEADER_BYTES:,}"
        )
    if 8 + length > file_size:
        raise InputError(
            f"{path}: truncated: the header needs {8 + length:,} bytes, the file has {file_size:,}; "
            "download it again"
        )
    header = os.pread(descriptor, length, 8)
    try:
        fields = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a safetensors file: the header is not valid JSON: {error}") from None
    if not isinstance(fields, dict):
        raise InputError(f"{path}: not a safetensors file: the header must be a JSON object")
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path}: not a safetensors file: __metadata__ must map texts to texts")
    entries = {}
    spans = []
    for name, field in fields.items():
        entry, begin, end = _entry(f"{path}: {name}", field, 8 + length)
        entries[name] = entry
        spans.append((begin, end, name))
    _check_layout(path, sorted(spans), file_size - 8 - length)
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"key {repeated!r} is given twice")
    return result


def _entry(where: str, field: object, data_start: int) -> tuple[TensorEntry, int, int]:
    if not isinstance(field, Mapping) or field.keys() != {"dtype", "shape", "data_offsets"}:
        raise InputError(f"{where}: must have exactly dtype, shape and data_offsets")
    dtype = DTYPES.get(field["dtype"]) if isinstance(field["dtype"], str) else None
    if dtype is None:
        raise InputError(
            f"{where}: dtype {brief(field['dtype'])} is not supported; save it as one of {', '.join(DTYPES)}"
        )
    shape, offsets = field["shape"], field["data_offsets"]
    if not _are_counts(shape):
        raise InputError(f"{where}: shape must be a list of numbers >= 0, but got {brief(shape)}")
    if len(shape) > _MAX_DIMENSIONS:
        raise InputError(f"{where}: shape must have at most {_MAX_DIMENSIONS} dimensions, but has {len(shape)}")
    if not (_are_counts(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise InputError(f"{where}: data_offsets must be [begin, end] with begin <= end, but got {brief(offsets)}")
    begin, end = offsets
    entry = TensorEntry(dtype, tuple(shape), data_start + begin)
    if end - begin != entry.numel * dtype.itemsize:
        raise InputError(
            f"{where}: {field['dtype']} {brief(shape)} takes {entry.numel * dtype.itemsize:,} bytes, "
            f"but data_offsets span {end - begin:,}"
        )
    return entry, begin, end


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= _MAX_COUNT for value in values)


def _check_layout(path: Path, spans: list[tuple[int, int, str]], data_size: int) -> None:
    """Tensors must follow each other from the first to the last byte of the data."""
    position = 0
    for begin, end, name in spans:
        if begin != position:
            what = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            raise InputError(
                f"{path}: {name}: {what}: begins at byte {begin:,} of the data, expected {position:,}"
            )
        position = end
    if position > data_size:
        raise InputError(
            f"{path}: truncated: the tensors need {position:,} bytes of data, the file has {data_size:,}; "
            "download it again"
        )
    if position < data_size:
        raise InputError(f"{path}: {data_size - position:,} bytes after the last tensor belong to none")
