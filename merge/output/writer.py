"""Safetensors shards, laid out beforehand and written in place, published as a folder at once.

The format is safetensors 0.x: eight bytes of header length, a JSON header, and the tensors' bytes.
"""

import errno
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Lock

import numpy as np
import torch

from heterosis.errors import InputError
from heterosis.merge.files import is_copied, is_other_process, nearest_existing
from heterosis.merge.models.safetensors_file import DTYPES
from heterosis.merge.models.tokenizer import MORE_TEMPLATES, tokenizer_files
from heterosis.merge.output.output_file import OutputFile, Stream, WriteBehind
from heterosis.merge.plan import TensorOp

DEFAULT_SHARD_SIZE = 5_000_000_000

_NO_ROOM = "make room or choose another disk"
# What to do when the system refuses to write; none of these comes from reading.
_REMEDIES = {
    errno.ENOSPC: _NO_ROOM,
    errno.EDQUOT: _NO_ROOM,
    errno.EFBIG: "pass a smaller --shard-size, or raise the limit of files' sizes (ulimit -f)",
    errno.EROFS: "choose another place",
}

# What a merge writes besides the tokenizer's files and those that it copies; the last is mergekit's recipe.
_WEIGHTS = "model*.safetensors"
_WRITTEN = ("README.md", "recipe.yaml", "mergekit_config.yml")

SAFETENSORS_DTYPES = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsSink:
    """Writes tensors to ``folder`` in any order, from any thread; the blocks of one in their order.

    Args:
        folder: An existing folder.
        ops: Every tensor that will be written, in the order of the files.
        shard_size: Bytes of tensors in a shard at most, unless one tensor alone is larger.
        file_name: What the file is called if there is only one.
        waiting: Bytes that may wait for the disk; at least one piece does.
        progress: Called with the bytes taken so far and those of all tensors.
    """

    def __init__(
        self,
        folder: Path,
        ops: Sequence[TensorOp],
        shard_size: int = DEFAULT_SHARD_SIZE,
        file_name: str = "model.safetensors",
        waiting: int = 0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._taken, self._total = 0, sum(map(_nbytes, ops))
        self._progress, self._lock = progress, Lock()
        self._behind = WriteBehind(waiting)
        self._files: list[OutputFile] = []
        self._streams: dict[str, Stream] = {}  # of the tensors that are not done
        try:
            self._create_all(folder, ops, list(_shards(ops, shard_size)), file_name)
        except BaseException:
            self.close()
            raise
        self._take(0)

    def _create_all(
        self, folder: Path, ops: Sequence[TensorOp], shards: Sequence[Sequence[TensorOp]], file_name: str
    ) -> None:
        weight_map = {}
        for i, shard in enumerate(shards):
            name = file_name if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
            self._create(folder / name, shard)
            weight_map.update({op.name: name for op in shard})
        if len(shards) > 1:
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(weight_map.items()))}
            (folder / "model.safetensors.index.json").write_text(
                json.dumps(index, indent=2) + "\n", encoding="utf-8"
            )

    def _create(self, path: Path, shard: Sequence[TensorOp]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for op in shard:
            start, end = end, end + _nbytes(op)
            dtype = SAFETENSORS_DTYPES[op.dtype]
            header[op.name] = {"dtype": dtype, "shape": list(op.shape), "data_offsets": [start, end]}
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # so that tensors are aligned
        prefix = len(text).to_bytes(8, "little") + text
        file = OutputFile(path, len(prefix) + end)
        self._files.append(file)
        before = Stream(file, 0, len(prefix), self._behind)
        before.write(0, np.frombuffer(prefix, dtype=np.uint8))
        before.finish()
        offset = len(prefix)
        for op in shard:
            self._streams[op.name] = Stream(file, offset, _nbytes(op), self._behind)
            offset += _nbytes(op)

    def wants(self, op: TensorOp) -> bool:
        return True

    def place(self, op: TensorOp) -> torch.Tensor | None:
        return None

    def write(self, op: TensorOp, start: int, block: torch.Tensor) -> None:
        self._streams[op.name].write(start * op.dtype.itemsize, block.view(torch.uint8).numpy())
        self._take(block.nbytes)

    def _take(self, nbytes: int) -> None:
        if self._progress is not None:
            with self._lock:
                self._taken += nbytes
                self._progress(self._taken, self._total)

    def done(self, op: TensorOp) -> None:
        self._streams.pop(op.name).finish()

    def finish(self) -> None:
        """Flush to the disk. Call it when all tensors are done."""
        assert not self._streams, f"tensors were planned but not written: {sorted(self._streams)[:3]}"
        self._behind.finish()
        for file in self._files:
            file.flush()

    def close(self) -> None:
        """Close the files."""
        self._behind.abandon()
        with ExitStack() as files:
            while self._files:
                files.callback(self._files.pop().close)


def _nbytes(op: TensorOp) -> int:
    return op.numel * op.dtype.itemsize


def _shards(ops: Sequence[TensorOp], limit: int) -> Iterator[list[TensorOp]]:
    shard: list[TensorOp] = []
    size = 0
    for op in ops:
        if shard and size + _nbytes(op) > limit:
            yield shard
            shard, size = [], 0
        shard.append(op)
        size += _nbytes(op)
    if shard:
        yield shard


def refuse_occupied(out: Path, overwrite: bool) -> None:
    """Refuse a folder that may not be written.

    Raises:
        InputError: If it exists and may not be replaced, or is something else than a model folder, or if there can
            be none there.
    """
    try:
        place = nearest_existing(out.absolute().parent)
        with suppress(FileNotFoundError, NotADirectoryError):
            (place / _beside(out, "replaced").name).lstat()  # the longest name that will be needed
    except OSError as error:
        raise InputError(f"{out}: cannot be created: {error.strerror}; choose another place or name") from error
    if not place.is_dir():
        raise InputError(f"{out}: cannot be created: {place} is a file; choose another place")
    if not out.exists():
        return
    if out.resolve() in (here := Path.cwd().resolve(), *here.parents):
        what = "is the current folder" if out.samefile(here) else "holds the current folder"
        raise InputError(f"{out}: {what}, which cannot be replaced; choose a folder inside it")
    if out.is_mount():
        raise InputError(f"{out}: is where a disk is mounted, which cannot be replaced; choose a folder inside it")
    if out.suffix == ".safetensors" and out.is_dir():
        raise InputError(f"{out}: is a folder, but the merge would be a file of that name; choose another name")
    if out.is_dir() and not any(out.iterdir()):
        return
    if not overwrite:
        raise InputError(f"{out}: exists already; choose another folder, or pass --overwrite")
    if out.suffix == ".safetensors":
        if not out.is_file():
            raise InputError(f"{out}: is not a file, so it is not overwritten; choose another name")
    elif not out.is_dir():
        raise InputError(f"{out}: is not a model folder, so it is not overwritten; choose another")
    elif others := _others(out):
        raise InputError(
            f"{out}: holds what no merge writes ({', '.join(others[:3])}), which would be lost, so it is not "
            "overwritten; choose another"
        )
    elif not any(out.glob(_WEIGHTS)):
        raise InputError(f"{out}: is not a model folder, so it is not overwritten; choose another")


def _others(folder: Path) -> list[str]:
    """What a folder holds that no merge leaves there; code, logs and checkpoints are nobody's to delete."""
    tokenizer = tokenizer_files(folder)

    def is_written(path: Path) -> bool:
        if path.is_dir():
            return path.name == MORE_TEMPLATES
        return path.match(_WEIGHTS) or path.name in _WRITTEN or is_copied(path) or path in tokenizer

    return sorted(path.name for path in folder.iterdir() if not is_written(path))


@contextmanager
def published_folder(out: Path, *, overwrite: bool = False, file: str | None = None) -> Iterator[Path]:
    """A folder to fill that appears at ``out`` complete or not at all.

    With ``file``, what appears there is the one file of that name in the folder.

    Raises:
        InputError: If ``out`` holds something and ``overwrite`` is not given, or it cannot be created or filled.
    """
    refuse_occupied(out, overwrite)
    partial, replaced = _beside(out, "partial"), _beside(out, "replaced")
    new = partial / file if file else partial
    try:
        above = [out.parent, *(made.parent for made in (out.parent, *out.parent.parents) if not made.exists())]
        out.parent.mkdir(parents=True, exist_ok=True)
        _clear_up(out)
        refuse_occupied(out, overwrite)  # something may have been put back
        partial.mkdir()
        held = _hold(partial)
    except OSError as error:
        raise InputError(f"{out}: cannot be created: {error.strerror}") from error
    try:
        yield partial
        refuse_occupied(out, overwrite)  # something may have come there in the meantime
        for path in (*partial.rglob("*"), partial):
            _sync(path)
        if overwrite and out.exists():
            out.rename(replaced)
        try:
            new.rename(out)  # a folder takes the place of an empty one only
        except OSError:
            refuse_occupied(out, overwrite)
            raise
        for folder in above:
            _sync(folder)
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        raise InputError(f"{out}: cannot be written: {error.strerror}; {_REMEDIES[error.errno]}") from error
    finally:
        if replaced.exists():
            if new.exists():  # whatever kept it from its place, the old one goes back there
                with suppress(OSError):  # else the next merge to there tries again
                    replaced.rename(out)
            else:
                _remove(replaced)
        shutil.rmtree(partial, ignore_errors=True)
        os.close(held)


def _beside(out: Path, what: str) -> Path:
    return out.parent / f".{out.name}.{what}-{os.getpid()}"


def _hold(folder: Path) -> int:
    """Lock a folder until the descriptor is closed, at the latest when this process ends, however it does."""
    descriptor = os.open(folder, os.O_RDONLY)
    with suppress(OSError):  # not every file system has locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _clear_up(out: Path) -> None:
    """Put back what a killed exchange took away, and remove what else killed merges to ``out`` left behind.

    What a running process is filling stays, also where its number means nothing here, as in another container:
    it holds a lock.
    """
    left: dict[str, dict[str, Path]] = {"partial": {}, "replaced": {}}
    for path in out.parent.iterdir():
        match = re.fullmatch(re.escape(f".{out.name}.") + r"(partial|replaced)-(\d+)", path.name)
        if match and not is_other_process(int(match[2])):
            left[match[1]][match[2]] = path
    for path in left["partial"].values():
        if path.is_dir() and not path.is_symlink():
            with suppress(OSError):
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _remove(path)
                finally:
                    os.close(descriptor)
    held = {number for number, path in left["partial"].items() if path.exists()}
    ended = [path for number, path in left["replaced"].items() if number not in held]
    ended.sort(key=lambda path: path.lstat().st_ctime_ns)
    if ended and not out.exists():
        ended.pop().rename(out)
    for path in ended:
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file, or which files a folder has, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
