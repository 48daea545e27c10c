"""What methods ask of tensors whatever the recipe's numbers are, kept for the next candidate of a search.

Dot products, histograms of magnitudes and the like are the same for all recipes over the same models. A search
computes them once and keeps them, as arrays in a folder that all processes of a machine map into memory.
"""

import fcntl
import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Hashable
from contextlib import ExitStack, suppress
from pathlib import Path
from stat import S_ISDIR
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Cached: TypeAlias = npt.NDArray[Any]


class Cache(Protocol):
    """`Reductions.keep` for what depends on one tensor."""

    def __call__(
        self, key: Hashable, make: Callable[[], Cached], read: Callable[[Cached], Any] = np.asarray
    ) -> Any: ...


# Of what the arrays mean; what another version left behind is not used.
VERSION = 4

# A file has a header of so many 64-bit integers, the kind and the shape; then the array. (numpy's own format is
# parsed as Python, which in Python 3.11 fails now and then when threads do so at once.)
HEADER = 4
SMALL = 1 << 16  # bytes of an array that is not mapped: a mapping takes one of the files that a process may open
KINDS = (np.dtype(np.float64), np.dtype(np.uint32))
_ATTEMPTS = 10


def node_folder(name: str) -> Path:
    """A folder that processes of this machine and user have in common, for one purpose."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).hexdigest()
    return Path(tempfile.gettempdir()) / f"heterosis-{os.getuid()}-{digest}"


def _is_own(folder: Path) -> bool:
    """Whether a folder exists now that nobody else could have filled."""
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        stat = folder.lstat()
    except OSError:
        return False
    return S_ISDIR(stat.st_mode) and stat.st_uid == os.getuid() and not stat.st_mode & 0o077


def _locked(folder: Path) -> int | None:
    """A lock on a folder, made if need be; None where it is not one's own, or others remove it again and again."""
    for _ in range(_ATTEMPTS):
        with suppress(FileNotFoundError), ExitStack() as opened:
            if not _is_own(folder):
                continue
            lock = os.open(folder, os.O_RDONLY)
            opened.callback(os.close, lock)
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(lock, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(lock), folder.stat()):  # else its last user has just removed it
                opened.pop_all()
                return lock
    return None


class Reductions:
    """Arrays by key, computed once.

    Args:
        folder: Where other processes find them, None to keep them in this one; it goes with the last process
            that closes it.
        budget: Bytes of arrays to keep at most; what does not fit is computed again every time.
    """

    def __init__(self, folder: Path | None = None, budget: int = 512 * 1024**2) -> None:
        self._lock = None if folder is None else _locked(folder)
        self._folder = None if self._lock is None else folder
        self._budget = budget
        self._kept: dict[Hashable, Any] = {}
        self._nbytes = 0

    def keep(self, key: Hashable, make: Callable[[], Cached], read: Callable[[Cached], Any] = np.asarray) -> Any:
        """What is read from the array of a key; threads and processes that meet here at first compute the same.

        Args:
            key: Everything that the array depends on, as numbers, texts and tuples of them.
            make: Computes it.
            read: What this process keeps of the array, made once; always the same for a key. By default the array.
        """
        if key not in self._kept:
            name = hashlib.blake2b(repr(key).encode(), digest_size=16).hexdigest()
            array = self._load(name)
            if array is None:
                array = make()
                if self._nbytes + array.nbytes > self._budget:
                    return read(array)
                array = self._save(name, array)
            self._kept[key] = read(array)
            self._nbytes += array.nbytes
        return self._kept[key]

    def _load(self, name: str) -> Cached | None:
        if self._folder is None:
            return None
        path = self._folder / name
        with suppress(OSError, ValueError, IndexError):  # it is not there, or not ours
            kind, *sizes = np.fromfile(path, np.int64, HEADER).tolist()
            shape = tuple(size for size in sizes if size)
            if math.prod(shape) * KINDS[kind].itemsize <= SMALL:
                return np.fromfile(path, KINDS[kind], offset=HEADER * 8).reshape(shape)
            return np.memmap(path, KINDS[kind], "r", HEADER * 8, shape)
        return None

    def _save(self, name: str, array: Cached) -> Cached:
        """Write an array to the folder, whole or not at all, and map it; without room it stays as it is."""
        if self._folder is None:
            return array
        with suppress(OSError):
            descriptor, partial = tempfile.mkstemp(dir=self._folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    sizes = array.shape + (0,) * (HEADER - 1 - array.ndim)
                    np.array([KINDS.index(array.dtype), *sizes], np.int64).tofile(file)
                    np.ascontiguousarray(array).tofile(file)
                Path(partial).replace(self._folder / name)
            except OSError:
                Path(partial).unlink()
                raise
        return array if (mapped := self._load(name)) is None else mapped

    def of(self, *tensor: Hashable) -> Cache:
        """`keep` for what depends on one operation's inputs: which they are, and how they are rounded."""
        return lambda key, *how: self.keep((VERSION, tensor, key), *how)

    def close(self) -> None:
        """Forget everything; the last process to close the folder removes it."""
        self._kept.clear()
        if self._lock is None or self._folder is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(self._folder, ignore_errors=True)
        except OSError:  # others use it
            pass
        os.close(self._lock)
        self._lock = None
