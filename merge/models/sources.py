"""What is merged: named tensors that can be read in parts, and models made of them."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from heterosis.merge.recipe.reference import ModelRef

if TYPE_CHECKING:
    from heterosis.merge.models.tokenizer import ModelTokenizer  # which reads models


class TensorSource(Protocol):
    """A named tensor that lies somewhere and can be read in any ranges, from any thread."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def exact(self) -> bool:
        """Whether its values are of its dtype; else what a wider dtype gets of them is not rounded to it."""

    @property
    def identity(self) -> Hashable:
        """Sources of equal identity hold the same values."""

    def view(self, start: int, stop: int) -> Tensor | None:
        """Flat elements ``[start, stop)`` where they lie in memory, to be read alone; None if they do not."""

    def read(self, start: int, stop: int, out: Tensor) -> None:
        """Fill the 1-D ``out`` (``stop - start`` elements) with flat elements ``[start, stop)``.

        Values are converted to the dtype of ``out``. Any division into ranges gives the same values.
        """


class Model(Protocol):
    """Something to merge: a `Checkpoint` (checkpoint.py), or an earlier stage's result."""

    @property
    def ref(self) -> ModelRef: ...

    @property
    def folder(self) -> Path:
        """Where companion files lie."""

    @property
    def config(self) -> dict[str, Any]:
        """The content of config.json; empty for a file of weights."""

    @property
    def tensors(self) -> Mapping[str, TensorSource]: ...

    @property
    def tokenizer(self) -> "ModelTokenizer": ...

    @property
    def resident_bytes(self) -> int:
        """Memory that stays taken once everything was read as float32."""
