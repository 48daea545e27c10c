"""Options of several commands: what they may be, and files that they name."""

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from heterosis.errors import InputError

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def size_of(text: str) -> int:
    """Bytes from ``512MiB``, ``5GB``, ``5G`` or a plain number."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]?I?)B?\s*", text.upper())
    if not match or match[2] not in _UNITS or float(match[1]) * _UNITS[match[2]] < 1:
        raise typer.BadParameter(f"must be a size such as 512MiB or 5GB, but got {text!r}")
    return int(float(match[1]) * _UNITS[match[2]])


def positive(text: str) -> float:
    """A number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise typer.BadParameter(f"must be a number > 0, but got {text!r}")
    return number


IncludePath = Annotated[
    list[Path] | None,
    typer.Option(
        "--include-path", "--task-search-path", help="Folder with lm-eval task YAML; may be given several times."
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it exists.")]
Device = Annotated[str, typer.Option(help="Where models live while they are scored: cpu, cuda, cuda:0.")]


def names_in(tasks: Sequence[str]) -> list[str]:
    """Names that are separated by commas, or given one by one."""
    return [name.strip() for part in tasks for name in part.split(",") if name.strip()]


def check_output(path: Path, overwrite: bool) -> None:
    """Refuse a file that holds something, or could not be written after what takes long.

    Raises:
        InputError: If it is one.
    """
    if path.is_file() and not overwrite:
        raise InputError(f"{path}: exists; give another file with -o, or --overwrite")
    if path.is_dir():
        raise InputError(f"{path}: cannot be written: is a folder; name a file")
    if not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written: {path.parent} is not a folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path}: cannot be written: no permission; name another file")


def write_output(path: Path, text: str) -> None:
    """Write a file in one step, or into what is none, such as a pipe.

    Raises:
        InputError: If it cannot be written.
    """
    from heterosis.merge.files import write_text

    try:
        if path.exists() and not path.is_file():
            path.write_text(text, encoding="utf-8")
        else:
            write_text(path, text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
