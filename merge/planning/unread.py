"""What can be said of a method's program before any tensor is read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from heterosis.merge.methods import Method, Program


class _NotRead(Exception):
    """A method asks for what only the values of a tensor tell."""


@dataclass(frozen=True)
class _Unread:
    """In place of a tensor's `Statistics`: its shape, and how many models there are."""

    shape: tuple[int, ...]
    models: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def __getattr__(self, name: str) -> Any:
        raise _NotRead


def planned_program(
    method: Method, arguments: Mapping[str, Any], shape: tuple[int, ...], models: int
) -> Program | None:
    """A method's program for a tensor; None where it depends on the tensor's values.

    Args:
        method: The method.
        arguments: Its parameters.
        shape: Of the tensor.
        models: How many are merged.

    Raises:
        ValueError: If the method objects to its parameters.
    """
    if not method.reduces:
        return method.program(**arguments)
    if 0 in shape:  # there is nothing to ask of it
        return None
    try:
        return method.program(_Unread(shape, models), **arguments)
    except _NotRead:
        return None
