"""An earlier merge as an input of a later one: its tensors are computed as they are read, never written."""

from collections.abc import Hashable, Mapping
from functools import cached_property
from threading import Lock

import torch

from heterosis.merge.computing.computation import Computation, read_copy
from heterosis.merge.computing.finite import NotFiniteError, cause_of, check_finite
from heterosis.merge.computing.input_blocks import STREAMING_BLOCK
from heterosis.merge.models.sources import TensorSource
from heterosis.merge.plan import MergePlan, TensorOp
from heterosis.merge.recipe.reference import ModelRef
from heterosis.merge.workspace import Workspace


class MergedTensor:
    """What one operation of a plan yields (a `TensorSource`), rounded to its output dtype."""

    exact = True

    def __init__(self, stage: str, op: TensorOp, workspace: Workspace) -> None:
        self.name = op.name
        self.shape = op.shape
        self.dtype = op.dtype
        self.identity: Hashable = ("merged", op.name, op.fingerprint)
        self._stage = stage
        self._op = op
        self._workspace = workspace
        self._lock = Lock()

    def view(self, start: int, stop: int) -> torch.Tensor | None:
        """None: it is computed while it is read."""
        return None

    def read(self, start: int, stop: int, out: torch.Tensor) -> None:
        """Fill the 1-D ``out`` with flat elements ``[start, stop)``, converted to its dtype.

        Raises:
            ValueError: Where writing the stage would have failed.
        """
        try:
            for at in range(start, stop, STREAMING_BLOCK):
                end = min(at + STREAMING_BLOCK, stop)
                block = self._merged(at, end).to(self.dtype)
                check_finite(block)
                out[at - start : end - start] = block
        except NotFiniteError as error:
            raise ValueError(f"stage {self._stage}: {error}, {cause_of(self._op)}") from error
        except ValueError as error:
            raise ValueError(f"stage {self._stage}: {error}") from error

    def _merged(self, start: int, stop: int) -> torch.Tensor:
        if self._op.method is None:
            block = self._workspace.buffer("copied", stop - start, self._op.compute)
            read_copy(self._op, start, block)
            return block
        with self._lock:
            computation = self._computation
            _ = computation.program  # its reductions run once, whoever comes first
        return computation.read(start, stop)

    @cached_property
    def _computation(self) -> Computation:
        return Computation(self._op, self._workspace)


class Stage:
    """The result of a named recipe, as a model (see `heterosis.merge.models.sources.Model`).

    Attributes:
        ref: The name that recipes use.
        plan: How it comes about.
        folder: Where companion files come from.
        config: Its config.json.
        tokenizer: Its tokenizer.
        tensors: Its tensors, computed when they are read.
    """

    def __init__(self, ref: ModelRef, plan: MergePlan) -> None:
        workspace = Workspace()
        self.ref = ref
        self.plan = plan
        self.folder = plan.donor.folder
        self.config = plan.config
        self.tokenizer = plan.tokenizer
        self.tensors: Mapping[str, TensorSource] = {
            op.name: MergedTensor(str(ref), op, workspace) for op in sorted(plan.ops, key=lambda op: op.name)
        }

    @property
    def resident_bytes(self) -> int:
        return self.plan.adapter_bytes
