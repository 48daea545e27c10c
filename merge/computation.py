"""The arithmetic of one operation: inputs as rows, a program, merged blocks."""

import math
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import TypeGuard

import numpy as np
import torch

from heterosis.merge.checkpoint import TensorSource
from heterosis.merge.kernels import RUN, Row, map_loop
from heterosis.merge.lora import LoraTensor
from heterosis.merge.methods import Program
from heterosis.merge.plan import TensorOp
from heterosis.merge.statistics import Statistics, apply_each, typed

# Elements of a block that is read once: with a handful of models, rows of this length stay in the L2 cache.
STREAMING_BLOCK = 16 * RUN


class Workspace(threading.local):
    """Buffers by name, of each thread its own; they live as long as the thread, as touching new pages is dear.

    Attributes:
        content: What a user of the buffers left in them, for it to recognise.
    """

    def __init__(self) -> None:
        self.content: object = None
        self._buffers: dict[str, torch.Tensor] = {}

    def buffer(self, name: str, size: int, dtype: torch.dtype) -> torch.Tensor:
        """A 1-D tensor with undefined values, valid until the name is asked for again."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=dtype)
        return buffer[:size]


def read_copy(op: TensorOp, start: int, out: torch.Tensor) -> None:
    """Fill ``out`` with elements of the one input, from ``start`` on; further inputs must be equal to it.

    Raises:
        ValueError: If one is not.
    """
    stop = start + out.numel()
    op.inputs[0].read(start, stop, out)
    for other in op.inputs[1:]:
        compared = torch.empty_like(out)
        other.read(start, stop, compared)
        if not torch.equal(out, compared):
            raise ValueError("a tensor of integers must be the same in all models, but it differs")


def check_finite(block: torch.Tensor) -> None:
    """Refuse merged elements that cannot be used. A finite sum, which is the cheaper to have, shows that all are.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    if not block.dtype.is_floating_point:
        return
    wide = torch.promote_types(block.dtype, torch.float32)
    if not math.isfinite(block.sum(dtype=wide)) and not bool(torch.isfinite(block).all()):
        raise ValueError("the merged tensor has NaN or infinity; check the inputs, weights and dtype")


class Computation:
    """Merges one tensor, block by block.

    Inputs are rounded to the compute dtype; where there is a base, methods get task vectors, rounded too.
    A tensor that fits one block is read once. The result does not depend on the blocks.

    Args:
        op: What to compute; it has a method and at least one element.
        workspace: Where rows are kept.
        block: Elements that fit a block.
    """

    def __init__(self, op: TensorOp, workspace: Workspace, block: int) -> None:
        assert op.method is not None
        self._op = op
        self._method = op.method
        self._workspace = workspace
        self._block = op.numel if op.numel <= block + RUN else max(RUN, block // RUN * RUN)
        self._work = torch.float64 if op.compute == torch.float64 else torch.float32
        self._numpy = torch.empty(0, dtype=self._work).numpy().dtype
        self._rounds = op.compute not in (torch.float32, torch.float64)

    @cached_property
    def program(self) -> Program:
        """What to do with the elements; the reductions behind it run at first use.

        Raises:
            ValueError: If the method's numbers cannot be had.
        """
        op = self._op
        if not self._method.reduces:
            return self._method.function(**op.arguments)
        statistics = Statistics(self._blocks, self._numpy, len(op.inputs), op.shape, op.keys)
        with np.errstate(invalid="ignore"):  # infinite inputs are found in the merged values
            return self._method.function(statistics, **op.arguments)

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The merged tensor, block after block: the start, and values that the next block overwrites."""
        each = self.program.each
        for start, stop in self._ranges(each.row_length if each else 1):
            yield start, self._merged(start, stop)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Merged elements ``[start, stop)``; the next call overwrites them."""
        each = self.program.each
        row = each.row_length if each else 1
        first, last = start // row * row, min(-(-stop // row) * row, self._op.numel)
        return self._merged(first, last)[start - first : stop - first]

    def _merged(self, start: int, stop: int) -> torch.Tensor:
        program, inputs = self.program, self._inputs(start, stop)
        if program.each is not None:
            self._workspace.content = None
            for j, row in enumerate(inputs):
                apply_each(program.each, j, start, row)
        result = self._row("result", stop - start)
        numbers = typed(program.map.numbers, self._numpy)
        map_loop(program.map.formula.function)(inputs, start, numbers, result.numpy())
        if self._op.base is not None:
            result.add_(self._row("base", stop - start))
        return result

    def _blocks(self, row_length: int) -> Iterator[tuple[int, tuple[Row, ...]]]:
        for start, stop in self._ranges(row_length):
            yield start, self._inputs(start, stop)

    def _ranges(self, row_length: int) -> Iterator[tuple[int, int]]:
        """The tensor in blocks of whole rows."""
        size = max(row_length, self._block // row_length * row_length)
        for start in range(0, self._op.numel, size):
            yield start, min(start + size, self._op.numel)

    def _row(self, name: str, size: int) -> torch.Tensor:
        return self._workspace.buffer(name, size, self._work)

    def _inputs(self, start: int, stop: int) -> tuple[Row, ...]:
        rows = [self._row(f"input {j}", stop - start) for j in range(len(self._op.inputs))]
        content = (self, start, stop)
        if self._workspace.content != content:
            self._workspace.content = None
            self._read(start, rows)
            self._workspace.content = content
        return tuple(row.numpy() for row in rows)

    def _read(self, start: int, rows: list[torch.Tensor]) -> None:
        op = self._op
        base = None
        if op.base is not None:
            base = self._row("base", len(rows[0]))
            self._read_rounded(op.base, start, base)
        for source, row in zip(op.inputs, rows, strict=True):
            if op.base is None or base is None:
                self._read_rounded(source, start, row)
            elif source.identity == op.base.identity:
                row.zero_()
            elif self._is_adapted(source, op.base):
                row.zero_()
                source.add_delta(start, row)
            else:
                self._read_rounded(source, start, row)
                row.sub_(base)
                if self._rounds:
                    row.copy_(row.to(op.compute))

    def _is_adapted(self, source: TensorSource, base: TensorSource) -> TypeGuard[LoraTensor]:
        """Whether the adapter's product is the task vector itself, which needs no reading and no rounding."""
        return isinstance(source, LoraTensor) and source.base.identity == base.identity and not self._rounds

    def _read_rounded(self, source: TensorSource, start: int, row: torch.Tensor) -> None:
        source.read(start, start + row.numel(), row)
        if self._rounds and source.dtype != self._op.compute:
            row.copy_(row.to(self._op.compute))
