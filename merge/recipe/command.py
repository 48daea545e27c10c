"""The command that merges a recipe's file."""

import shlex
from collections.abc import Iterable


def merge_command(file: str, out: str, modules: Iterable[str]) -> str:
    """How a shell is told to merge a file.

    Args:
        file: Of the recipe.
        out: Folder of the model.
        modules: Of the merge methods that are not heterosis' own; a script's, ``__main__``, cannot be imported.
    """
    return shlex.join(["heterosis", "merge", file, out, *import_options(modules)])


def import_options(modules: Iterable[str]) -> list[str]:
    """What a command needs to know the methods of some modules."""
    names = dict.fromkeys(module for module in modules if module != "__main__")
    return [option for name in names for option in ("--import", name)]
