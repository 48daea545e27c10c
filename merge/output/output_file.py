"""Files that are written behind the merge: in pieces, by threads of their own, past the page cache if that can be.

Through the page cache every byte is copied and pages are touched for the first time, by threads that should
compute; the disk has to take all of it in any case before the merge appears.
"""

import mmap
import os
import threading
from concurrent.futures import ThreadPoolExecutor
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
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._unflushed = 0
        self._lock = threading.Lock()
        try:
            os.truncate(self._descriptor, size)
        except BaseException:
            self.close()
            raise

    def write(self, data: Bytes, offset: int) -> None:
        """Write bytes, past the page cache where they fill whole pages.

        Args:
            data: In memory they begin as far from a page's begin as in the file.
            offset: Where they belong in the file.
        """
        rest = memoryview(data)  # type: ignore[arg-type]
        first = min(-offset % mmap.PAGESIZE, len(rest))
        last = first + (len(rest) - first) // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last and (written := self._write_directly(rest[first:last], offset + first)):
            self._write_cached(rest[:first], offset)
            rest, offset = rest[first + written :], offset + first + written
        self._write_cached(rest, offset)

    def _write_directly(self, whole_pages: memoryview, offset: int) -> int:
        """Write whole pages past the cache; returns how many bytes were, which are none where that cannot be."""
        try:
            # Opened for each piece: files may be many, and descriptors few.
            descriptor = os.open(self._path, os.O_WRONLY | os.O_DIRECT)
            try:
                return os.pwrite(descriptor, whole_pages, offset)
            finally:
                os.close(descriptor)
        except (OSError, AttributeError):  # not every file system can, nor every system; a full disk says so again
            return 0

    def _write_cached(self, rest: memoryview, offset: int) -> None:
        size = len(rest)
        while rest:
            written = os.pwrite(self._descriptor, rest, offset)
            rest, offset = rest[written:], offset + written
        with self._lock:
            self._unflushed += size
            if self._unflushed < FLUSH_EVERY:
                return
            self._unflushed = 0
        self.flush()

    def flush(self) -> None:
        """Wait until the disk has everything."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        os.close(self._descriptor)


class WriteBehind:
    """Threads that write pieces of files while others compute.

    Args:
        memory: Bytes of pieces that may wait for the disk, at least one piece. (A method with reductions writes in
            bursts, which are faster than the disk.)
    """

    def __init__(self, memory: int) -> None:
        self._threads = ThreadPoolExecutor(WRITERS, thread_name_prefix="write")
        self._room = threading.Semaphore(max(1, memory // PIECE))
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
            RuntimeError: If the rest was abandoned.
        """
        self._check()
        self._room.acquire()
        try:
            self._threads.submit(self._write, file, offset, buffer, begin, end)
        except BaseException:
            self._room.release()  # for the next one that waits, who has to end, too
            raise

    def _write(self, file: OutputFile, offset: int, buffer: Bytes, begin: int, end: int) -> None:
        try:
            file.write(buffer[begin:end], offset)
        except BaseException as error:
            self._error = self._error or error
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
        self._free.clear()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error


class Stream:
    """Bytes that follow each other in a file, gathered into pieces.

    Args:
        file: Where they go.
        offset: Where they begin there.
        size: How many there are.
        behind: Who writes them.
    """

    def __init__(self, file: OutputFile, offset: int, size: int, behind: WriteBehind) -> None:
        self._file, self._offset, self._size, self._behind = file, offset, size, behind
        self._taken = 0
        self._buffer: Bytes | None = None  # with those in it that are not written
        self._begin = self._end = 0

    def write(self, at: int, data: Bytes) -> None:
        """Take the bytes that come next, which begin ``at`` so many."""
        assert at == self._taken, f"byte {at} came, where {self._taken} is next"
        while len(data):
            if self._buffer is None:
                self._buffer = self._behind.buffer()
                self._begin = self._end = (self._offset + self._taken) % mmap.PAGESIZE
            size = min(len(data), PIECE - self._end)
            self._buffer[self._end : self._end + size] = data[:size]
            self._end, self._taken, data = self._end + size, self._taken + size, data[size:]
            if self._end == PIECE:
                self._write()

    def finish(self) -> None:
        """Have the rest written."""
        assert self._taken == self._size, f"{self._taken} bytes came of {self._size}"
        self._write()

    def _write(self) -> None:
        if self._buffer is not None:
            offset = self._offset + self._taken - (self._end - self._begin)
            self._behind.write(self._file, offset, self._buffer, self._begin, self._end)
            self._buffer = None
