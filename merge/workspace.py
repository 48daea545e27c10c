"""Buffers that threads reuse, because touching new pages of memory is dear."""

import itertools
import math
import mmap
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

T = TypeVar("T")

MOST_VIEWS = 64  # of a buffer; more are forgotten


class Workspace(threading.local):
    """Buffers by name, of each thread its own; they live as long as the thread."""

    def __init__(self) -> None:
        self._held: tuple[object, Any] = None, None
        self._buffers: dict[str, torch.Tensor] = {}
        self._views: dict[str, dict[tuple[object, ...], Any]] = {}

    def buffer(self, name: str, size: int, dtype: torch.dtype) -> torch.Tensor:
        """A 1-D tensor with undefined values, valid until the name is asked for again."""
        return self.buffers(name, size, (dtype,))[0]

    def buffers(self, name: str, size: int, dtypes: tuple[torch.dtype, ...]) -> list[torch.Tensor]:
        """Tensors of one size in one buffer. They begin at pages, into which files are read much faster."""
        lengths = [_whole_pages(size * dtype.itemsize) for dtype in dtypes]

        def views(whole: torch.Tensor) -> list[torch.Tensor]:
            ends = itertools.accumulate(lengths)
            return [
                whole[end - length : end].view(dtype)[:size]
                for end, length, dtype in zip(ends, lengths, dtypes, strict=True)
            ]

        return self._view(name, sum(lengths), (size, dtypes), views)

    def array(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray[Any, np.dtype[Any]]:
        """The same as an array of numpy."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        return self._view(name, size, (shape, dtype), lambda whole: _shaped(whole[:size], shape, dtype))

    def held(self, key: object, make: Callable[[], T]) -> T:
        """What was made of buffers for a key; it is held until another key is asked for."""
        if not self.holds(key):
            self._held = key, make()
        made: T = self._held[1]
        return made

    def holds(self, key: object) -> bool:
        """Whether what was made for a key is still held."""
        return self._held[0] == key

    def release(self) -> None:
        """Hold nothing any more; the buffers stay."""
        self._held = None, None

    def _view(self, name: str, size: int, key: tuple[object, ...], make: Callable[[torch.Tensor], T]) -> T:
        """What is made of a buffer of at least so many bytes, made once."""
        buffer, views = self._buffers.get(name), self._views.get(name, {})
        if buffer is None or len(buffer) < size or len(views) > MOST_VIEWS:
            views = self._views[name] = {}
        if buffer is None or len(buffer) < size:
            del buffer
            self._buffers.pop(name, None)  # before there is another one
            buffer = self._buffers[name] = torch.frombuffer(pages(size), dtype=torch.uint8)
        if key not in views:
            views[key] = make(buffer)
        made: T = views[key]
        return made


def _shaped(part: torch.Tensor, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray[Any, np.dtype[Any]]:
    return part.numpy().view(dtype).reshape(shape)


def as_array(tensor: torch.Tensor) -> np.ndarray[Any, np.dtype[Any]]:
    """A tensor as loops take it: bfloat16 as bits."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def pages(size: int) -> mmap.mmap:
    """New memory of whole pages, at least so many bytes, in large pages if there are any."""
    area = mmap.mmap(-1, _whole_pages(size))
    if hasattr(mmap, "MADV_HUGEPAGE"):  # touching a page for the first time takes microseconds, whatever its size
        with suppress(OSError):  # of a kernel without them
            area.madvise(mmap.MADV_HUGEPAGE)
    return area


def _whole_pages(size: int) -> int:
    return -(-max(size, 1) // mmap.PAGESIZE) * mmap.PAGESIZE
