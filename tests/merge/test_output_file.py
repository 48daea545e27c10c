"""Files written behind the merge: the same bytes past the page cache and through it, and no error is lost."""

import errno
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from heterosis.merge import output_file
from heterosis.merge.output_file import PIECE, OutputFile, Stream, WriteBehind

PAGE = mmap.PAGESIZE
# Lengths of streams that follow each other: within a page, whole pages, one byte off, several pieces.
LENGTHS = (5, PAGE - 5, PAGE, 0, 1, PAGE, 3 * PAGE + 7, 2 * PIECE + 11, PIECE - 24, 2 * PIECE, 1)


def content(length: int, seed: int) -> output_file.Bytes:
    return np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8)


def written(path: Path, parts: list[output_file.Bytes], step: int) -> bytes:
    """The file after every part was written by a stream of its own, from several threads, last first."""
    behind, file = WriteBehind(0), OutputFile(path, sum(map(len, parts)))
    offsets = np.cumsum([0, *map(len, parts)])

    def put(k: int) -> None:
        stream = Stream(file, int(offsets[k]), behind)
        for at in range(0, len(parts[k]), step):
            stream.write(parts[k][at : at + step])
        stream.finish()

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(put, reversed(range(len(parts)))))
    behind.finish()
    file.flush()
    file.close()
    return path.read_bytes()


def refuse(error: int) -> Callable[..., int]:
    """A system call that fails."""

    def call(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    return call


@pytest.mark.parametrize("step", [1 << 19, 123_457])
@pytest.mark.parametrize("case", ["direct", "cannot be opened", "not on this system", "wants other pages"])
def test_every_byte_is_in_its_place(case: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    direct: list[int] = []
    open_file, pwrite = os.open, os.pwrite

    def opened(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_DIRECT and case == "cannot be opened":
            refuse(errno.EINVAL)()
        descriptor = open_file(path, flags, mode)
        if flags & os.O_DIRECT:
            direct.append(descriptor)
        return descriptor

    def put(descriptor: int, data: memoryview, offset: int) -> int:
        if descriptor in direct:
            assert len(data) % PAGE == offset % PAGE == 0
            if case == "wants other pages":
                refuse(errno.EINVAL)()
            return pwrite(descriptor, data[: max(PAGE, len(data) // 2 // PAGE * PAGE)], offset)  # not all at once
        return pwrite(descriptor, data[: max(1, len(data) // 2)], offset)

    if case == "not on this system":
        monkeypatch.delattr(os, "O_DIRECT")
    else:
        monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "pwrite", put)
    parts = [content(length, k) for k, length in enumerate(LENGTHS)]
    assert written(tmp_path / "file", parts, step) == b"".join(part.tobytes() for part in parts)
    if case in ("direct", "wants other pages") and not direct:
        pytest.skip("this file system cannot be written past the page cache")


def test_an_error_ends_all_that_write_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also threads that wait for room: nobody waits for ever."""
    behind, file = WriteBehind(0), OutputFile(tmp_path / "file", 64 * PIECE)

    def put(k: int) -> None:
        stream = Stream(file, 8 * k * PIECE, behind)
        for _ in range(8):
            stream.write(np.zeros(PIECE, np.uint8))

    with monkeypatch.context() as patch, ThreadPoolExecutor(8) as pool:
        patch.setattr(os, "pwrite", refuse(errno.ENOSPC))
        errors = [pool.submit(put, k).exception(timeout=60) for k in range(8)]
    assert all(isinstance(error, OSError) and error.errno == errno.ENOSPC for error in errors)
    with pytest.raises(OSError, match="No space left"):
        behind.finish()
    file.close()


def test_what_fails_to_reach_the_disk_early_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells of an error once; the last fsync may succeed."""
    errors = iter([OSError(errno.ENOSPC, "full")])

    def fsync(descriptor: int) -> None:
        for error in errors:
            raise error

    monkeypatch.delattr(os, "O_DIRECT")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(output_file, "FLUSH_EVERY", 8)
    with pytest.raises(OSError, match="full"):
        written(tmp_path / "file", [content(100, 0)], 10)
