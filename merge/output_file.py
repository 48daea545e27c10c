"""Files that are written behind the merge: in pieces, by threads of their own, past the page cache if that can be.

Through the page cache every byte is copied and pages are touched for the first time, by threads that should
compute; the disk has to take all of it in any case before the merge appears.
"""

import errno
import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heterosis.merge.workspace import pages

# Bytes written at a time, and by how many threads.
PIECE = 2 * 1024**2
WRITERS = 2

# After as many bytes in the page cache the disk begins to write them, while the merge goes on.
FLUSH_EVERY = 128 * 1024**2

Bytes = NDArray[np.uint8]


class OutputFile:
    """A new file of a known size, whose parts are written in any order, from any thread.

    Args:
        path: Where there is nothing yet.
        size: In bytes.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._cached = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        self._direct: int | None = None
        self._unflushed = 0
        self._lock = threading.Lock()
        try:
            os.truncate(self._cached, size)
        except BaseException:
            self.close()
            raise
        with suppress(OSError, AttributeError):  # not every file system can, nor every system
            self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT)

    def write(self, data: Bytes, offset: int) -> None:
        """Write bytes, past the page cache where they fill whole pages.

        Args:
            data: In memory they begin as far from a page's begin as in the file.
            offset: Where they belong in the file.
        """
        rest = memoryview(data)  # type: ignore[arg-type]
        first = min(-offset % mmap.PAGESIZE, len(rest))
        last = first + (len(rest) - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if self._direct is not None and first < last:
            self._write_cached(rest[:first], offset)
            first += self._write_direct(rest[first:last], offset + first)
            rest, offset = rest[first:], offset + first
        self._write_cached(rest, offset)

    def _write_direct(self, pages: memoryview, offset: int) -> int:
        """Write whole pages past the cache; returns how many bytes, which are none where that cannot be."""
        assert self._direct is not None
        try:
            return os.pwrite(self._direct, pages, offset)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # it wants other pages
                raise
            return 0

    def _write_cached(self, rest: memoryview, offset: int) -> None:
        with self._lock:
            self._unflushed += len(rest)
            flush = self._unflushed >= FLUSH_EVERY
            if flush:
                self._unflushed = 0
        while rest:
            written = os.pwrite(self._cached, rest, offset)
            rest, offset = rest[written:], offset + written
        if flush:
            os.fsync(self._cached)

    def flush(self) -> None:
        """Wait until the disk has everything."""
        os.fsync(self._cached)

    def close(self) -> None:
        for descriptor in (self._cached, self._direct):
            if descriptor is not None:
                os.close(descriptor)


class WriteBehind:
    """Threads that write pieces of files while others compute.

    Args:
        memory: Bytes of pieces that may wait for the disk. (A method with reductions writes in bursts, which are
            faster than the disk.)
    """

    def __init__(self, memory: int) -> None:
        self._threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
        self._room = threading.Semaphore(max(WRITERS, memory // PIECE))
        self._free: list[Bytes] = []
        self._error: BaseException | None = None

    def buffer(self) -> Bytes:
        """Room for a piece, which begins at a page."""
        try:
            return self._free.pop()
        except IndexError:
            return np.frombuffer(pages(PIECE), dtype=np.uint8)

    def write(self, file: OutputFile, offset: int, buffer: Bytes, begin: int, end: int) -> None:
        """Have ``buffer[begin:end]`` written, and the buffer used again; waits while many pieces wait.

        Raises:
            OSError: If one could not be written.
        """
        self._check()
        self._room.acquire()
        self._threads.submit(self._write, file, offset, buffer, begin, end)

    def _write(self, file: OutputFile, offset: int, buffer: Bytes, begin: int, end: int) -> None:
        try:
            file.write(buffer[begin:end], offset)
        except BaseException as error:
            self._error = error
        finally:
            self._free.append(buffer)
            self._room.release()

    def finish(self) -> None:
        """Wait until everything is written.

        Raises:
            OSError: If something could not be.
        """
        self._threads.shutdown()
        self._check()

    def abandon(self) -> None:
        """Wait for what is being written, and leave out the rest."""
        self._threads.shutdown(cancel_futures=True)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


class Stream:
    """Bytes that follow each other in a file, gathered into pieces.

    Args:
        file: Where they go.
        offset: Where they begin there.
        behind: Who writes them.
    """

    def __init__(self, file: OutputFile, offset: int, behind: WriteBehind) -> None:
        self._file, self._offset, self._behind = file, offset, behind
        self._buffer: Bytes | None = None
        self._begin = self._end = 0

    def write(self, data: Bytes) -> None:
        """Take the bytes that come next."""
        while len(data):
            if self._buffer is None:
                self._buffer = self._behind.buffer()
                self._begin = self._end = self._offset % mmap.PAGESIZE
            size = min(len(data), PIECE - self._end)
            self._buffer[self._end : self._end + size] = data[:size]
            self._end, data = self._end + size, data[size:]
            if self._end == PIECE:
                self.finish()

    def finish(self) -> None:
        """Have what was gathered written."""
        if self._buffer is not None:
            self._behind.write(self._file, self._offset, self._buffer, self._begin, self._end)
            self._offset += self._end - self._begin
            self._buffer = None
