"""Files: those of model folders, which may be anyone's, are read with care, and texts written in one step."""

import json
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from heterosis.errors import InputError

# Endings of the files that a merge copies from a model folder, beside licences.
_COPIED = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken", ".spm"})
_LICENCES = ("LICENSE", "NOTICE")
MAX_BYTES = 100_000_000  # of a file that is read as a whole; the index of a model of 10**6 tensors fits
MAX_DEPTH = 100  # of JSON; what walks through it calls itself for every level


# What begins a pointer of Git LFS.
_POINTER = b"version https://git-lfs"


def open_ordinary(path: Path) -> BufferedReader:
    """Open a file for reading. Links are followed, since the Hub's cache is made of them.

    Raises:
        OSError: If it cannot be opened.
        InputError: If it is a folder, a pipe, which may never end, or a device.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise InputError(f"{path}: must be an ordinary file, but is {kind}")
    return path.open("rb")


def refuse_pointer(path: Path, file: BufferedReader) -> None:
    """Refuse what Git has in place of a large file until Git LFS fetches that.

    Raises:
        InputError: If it is such a pointer.
    """
    if os.pread(file.fileno(), len(_POINTER), 0) == _POINTER:
        raise InputError(f"{path}: is only a pointer of Git LFS to the weights; run `git lfs pull` in its folder")


def read_ordinary(path: Path) -> str:
    """The text of a file.

    Raises:
        OSError: If it cannot be read.
        InputError: If it is no ordinary file, too large or not UTF-8.
    """
    with open_ordinary(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise InputError(f"{path}: must have at most {MAX_BYTES:,} bytes, but has {size:,}")
        content = file.read()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: must be UTF-8 text, but byte {error.start} is not") from None


def read_json(path: Path, hint: str = "") -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InputError: If it cannot be read or is none; ``hint`` follows when the file is missing.
    """
    try:
        content = json.loads(read_ordinary(path))
        if _is_deep(content):
            raise RecursionError(f"nested more than {MAX_DEPTH} levels deep")
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path.parent}: has no {path.name}; {hint}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: must be a JSON object, but got {type(content).__name__}")
    return content


def _is_deep(content: object) -> bool:
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        inner = [entry for entry in level if isinstance(entry, dict | list)]
        level = [value for entry in inner for value in (entry.values() if isinstance(entry, dict) else entry)]
    return bool(level)


def write_text(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file in one step, so that readers see the old text or the new one.

    Args:
        path: The file.
        text: Its new content.
        durable: Whether to wait until it is on the disk.

    Raises:
        OSError: If it cannot be written; nothing has changed then.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path whose ``~`` is replaced by the home folder that it means.

    Raises:
        InputError: If there is none.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise InputError(f"{path}: no home folder of {user} is known; write the whole path") from None


def remove_torn(folder: Path) -> None:
    """Remove what `write_text` has left in a folder where its process was killed."""
    for path in folder.rglob(".*.tmp"):
        match = re.fullmatch(r"\..+\.(\d+)\.tmp", path.name)
        if match is not None and not is_other_process(int(match[1])):
            path.unlink(missing_ok=True)


def is_other_process(number: int) -> bool:
    """Whether it is a running process beside this one."""
    try:
        os.kill(number, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # someone else's
        return True
    return number != os.getpid()


def nearest_existing(path: Path) -> Path:
    """A path if it exists, else the nearest folder above it that does."""
    there = expanded(path).absolute()
    return next(found for found in (there, *there.parents) if found.exists())


def is_copied(path: Path) -> bool:
    """Whether a file of a model folder has a name of those that a merge copies."""
    return path.suffix in _COPIED or path.name.upper().startswith(_LICENCES)


def refuse_links_out(folder: Path) -> None:
    """Refuse a model folder where a file that a merge would copy is a link to something outside.

    Whoever shared the folder could choose any file of this machine, and the merge would publish it. Links within
    the folder are fine, as are those of the Hub's cache, whose ``snapshots/COMMIT`` link to ``blobs`` beside them.
    Weights may be links to anywhere: they are read as tensors and nothing else.

    Raises:
        InputError: With a line for every such link.
    """
    root = Path(os.path.realpath(folder))
    own = [root]
    if root.parent.name == "snapshots":
        own.append(Path(os.path.realpath(root.parent.parent / "blobs")))
    faults = []
    for path in sorted((*folder.iterdir(), *folder.glob("additional_chat_templates/*"))):
        real = Path(os.path.realpath(path))
        if is_copied(path) and path.is_file() and not any(real.is_relative_to(p) for p in own):
            faults.append(f"{path}: must not be a link out of the model folder; replace it by the file itself")
    if faults:
        raise InputError(*faults)
