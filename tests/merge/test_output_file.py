"""Files written behind the merge: the same bytes past the page cache and through it, and no error is lost."""

import errno
import mmap
import os
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from heterosis.merge.output import output_file
from heterosis.merge.output.output_file import PIECE, OutputFile, Stream, WriteBehind

PAGE = mmap.PAGESIZE
DIRECT = getattr(os, "O_DIRECT", 0)
# Lengths of streams that follow each other: within a page, whole pages, one byte off, several pieces.
LENGTHS = (5, PAGE - 5, PAGE, 0, 1, PAGE, 3 * PAGE + 7, 2 * PIECE + 11, PIECE - 24, 2 * PIECE, 1)


def content(length: int, seed: int) -> output_file.Bytes:
    return np.random.default_rng(seed).integers(0, 256, length, dtype=np.uint8)


def in_threads(functions: list[Callable[[], None]]) -> list[BaseException]:
    """What functions raise that run at the same time; fails if one does not end."""
    errors: list[BaseException] = []

    def run(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"
    return errors


def written(path: Path, parts: list[output_file.Bytes], step: int) -> bytes:
    """The file after every part was written by a stream of its own, at the same time."""
    behind, file = WriteBehind(0), OutputFile(path, sum(map(len, parts)))
    offsets = np.cumsum([0, *map(len, parts)])

    def put(k: int) -> None:
        stream = Stream(file, int(offsets[k]), len(parts[k]), behind)
        for at in range(0, len(parts[k]), step):
            stream.write(at, parts[k][at : at + step])
        stream.finish()

    errors = in_threads([lambda k=k: put(k) for k in range(len(parts))])  # type: ignore[misc]
    assert not errors
    behind.finish()
    file.flush()
    file.close()
    return path.read_bytes()


def refuse(error: int) -> Callable[..., int]:
    """A system call that fails."""

    def call(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    return call


def can_write_directly(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | DIRECT))
    except OSError:
        return False
    return bool(DIRECT)


@pytest.mark.parametrize("step", [1 << 19, 123_457])
@pytest.mark.parametrize("case", ["direct", "short", "refused", "cannot be opened", "not on this system"])
def test_every_byte_is_in_its_place(case: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    direct: dict[int, int] = {}  # descriptors, and what was written to each
    open_file, pwrite = os.open, os.pwrite
    able = can_write_directly(tmp_path)

    def opened(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & DIRECT and case == "cannot be opened":
            refuse(errno.EINVAL)()
        descriptor = open_file(path, flags, mode)
        if flags & DIRECT:
            direct[descriptor] = 0
        else:
            direct.pop(descriptor, None)
        return descriptor

    total = 0

    def put(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal total
        if descriptor not in direct:
            return pwrite(descriptor, data[: max(1, len(data) // 2)], offset)
        if case == "refused":
            refuse(errno.EINVAL)()
        done = pwrite(
            descriptor, data[: len(data) // 2 // PAGE * PAGE or PAGE] if case == "short" else data, offset
        )
        total += done
        return done

    with monkeypatch.context() as patch:
        if case == "not on this system":
            patch.delattr(os, "O_DIRECT", raising=False)
        else:
            patch.setattr(os, "open", opened)
        patch.setattr(os, "pwrite", put)
        parts = [content(length, k) for k, length in enumerate(LENGTHS)]
        assert written(tmp_path / "file", parts, step) == b"".join(part.tobytes() for part in parts)
    if case == "direct" and able:  # every page that one stream fills
        ends = np.cumsum([0, *LENGTHS])
        pages = [max(0, end // PAGE - -(-begin // PAGE)) for begin, end in pairwise(ends)]
        assert total == sum(pages) * PAGE


def test_an_error_ends_all_that_write_and_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also threads that wait for room."""
    behind, file = WriteBehind(0), OutputFile(tmp_path / "file", 64 * PIECE)

    def put(k: int) -> None:
        stream = Stream(file, 8 * k * PIECE, 8 * PIECE, behind)
        for i in range(8):
            stream.write(i * PIECE, np.zeros(PIECE, np.uint8))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", refuse(errno.ENOSPC))
        errors = in_threads([lambda k=k: put(k) for k in range(8)])  # type: ignore[misc]
    assert [error.errno for error in errors if isinstance(error, OSError)] == [errno.ENOSPC] * 8
    with pytest.raises(OSError, match="No space left"):
        behind.finish()
    file.close()


def test_who_waits_for_room_ends_when_the_rest_is_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a second Ctrl-C, which leaves threads that still compute."""
    behind, file, go = WriteBehind(4 * PIECE), OutputFile(tmp_path / "file", 64 * PIECE), threading.Event()
    pwrite = os.pwrite

    def slow(descriptor: int, data: memoryview, offset: int) -> int:
        assert go.wait(60)
        return pwrite(descriptor, data, offset)

    def put(k: int) -> None:
        stream = Stream(file, 8 * k * PIECE, 8 * PIECE, behind)
        for i in range(8):
            stream.write(i * PIECE, np.zeros(PIECE, np.uint8))

    def abandon() -> None:
        threading.Timer(0.5, go.set).start()  # while it waits for what is being written
        behind.abandon()

    monkeypatch.setattr(os, "pwrite", slow)
    errors = in_threads([*(lambda k=k: put(k) for k in range(8)), abandon])  # type: ignore[misc]
    assert [type(error) for error in errors] == [RuntimeError] * 8
    file.close()


def test_few_pieces_are_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that wait, and one that is being filled."""
    behind, file = WriteBehind(2 * PIECE), OutputFile(tmp_path / "file", 32 * PIECE)
    made, pages = [], output_file.pages
    monkeypatch.setattr(output_file, "pages", lambda size: made.append(size) or pages(size))
    stream = Stream(file, 0, 32 * PIECE, behind)
    for i in range(32):
        stream.write(i * PIECE, np.zeros(PIECE, np.uint8))
    stream.finish()
    behind.finish()
    file.close()
    assert 1 <= len(made) <= 3


def test_what_fails_to_reach_the_disk_early_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system tells of an error once; the last fsync may succeed."""
    errors = iter([OSError(errno.ENOSPC, "full")])

    def fsync(descriptor: int) -> None:
        for error in errors:
            raise error

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(output_file, "FLUSH_EVERY", 8)
    with pytest.raises(OSError, match="full"):
        written(tmp_path / "file", [content(100, 0)], 100)


def test_bytes_come_in_order_and_all_of_them(tmp_path: Path) -> None:
    behind, file = WriteBehind(0), OutputFile(tmp_path / "file", 8)
    stream = Stream(file, 0, 8, behind)
    with pytest.raises(AssertionError, match="byte 4 came, where 0 is next"):
        stream.write(4, np.zeros(4, np.uint8))
    stream.write(0, np.zeros(4, np.uint8))
    with pytest.raises(AssertionError, match="4 bytes came of 8"):
        stream.finish()
    behind.abandon()
    file.close()
