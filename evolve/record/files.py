"""Files of a run folder: what the small ones are called, which are read whole and replaced whole."""

import json
from pathlib import Path
from typing import Any

from heterosis.errors import InputError

ASKS = "asks.jsonl"
STATE = "run.json"
SUMMARY = "summary.json"
CONFIG = "config.yaml"
SPLITS = "splits.json"
STUDY = "study.db"
BEST = "best.yaml"

RESTORE = "restore it, or choose another --run-dir"  # what is to be done about a file that was removed or damaged
AGAIN = "the same evolve command writes it again"
REMOVE = f"remove it and {SUMMARY}, and {AGAIN}"  # what is to be done about one that is made from the others


def front_recipe(number: int | str) -> str:
    """Where the recipe of a trial on the front is, within a run folder."""
    return f"front/trial-{number}.yaml"


def read_text(path: Path, remedy: str) -> str:
    """The text of a file.

    Args:
        path: The file.
        remedy: What is to be done where it is damaged.

    Raises:
        InputError: If it cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; {remedy}") from error
    except ValueError as error:
        raise InputError(f"{path}: is damaged; {remedy}") from error


def read_mapping(path: Path, remedy: str) -> dict[str, Any]:
    """The mapping in a JSON file.

    Args:
        path: The file.
        remedy: What is to be done where it is damaged.

    Raises:
        InputError: If it cannot be read, or is damaged.
    """
    text = read_text(path, remedy)
    try:
        read = json.loads(text)
    except ValueError:
        read = None
    if not isinstance(read, dict):
        raise InputError(f"{path}: is damaged; {remedy}")
    return read
