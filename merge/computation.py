"""The arithmetic of one operation: inputs as rows, a program, merged blocks."""

import itertools
import math
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TypeGuard

import numpy as np
import torch

from heterosis.merge.checkpoint import TensorSource
from heterosis.merge.kernels import RUN, Inputs, Row, all_finite, map_loop
from heterosis.merge.lora import LoraTensor
from heterosis.merge.methods import Program
from heterosis.merge.plan import TensorOp
from heterosis.merge.statistics import Statistics, apply_each, typed

# Elements of a block that is read once: with a handful of models, rows of this length stay in the L2 cache.
STREAMING_BLOCK = 32 * RUN


class Workspace(threading.local):
    """Buffers by name, of each thread its own; they live as long as the thread, as touching new pages is dear.

    Attributes:
        content: What a user of the buffers left in them, for it to recognise.
        arrays: The same, as loops take it.
    """

    def __init__(self) -> None:
        self.content: object = None
        self.arrays = Inputs(())
        self._buffers: dict[str, torch.Tensor] = {}

    def buffer(self, name: str, size: int, dtype: torch.dtype) -> torch.Tensor:
        """A 1-D tensor with undefined values, valid until the name is asked for again."""
        return self.buffers(name, size, [dtype])[0]

    def buffers(self, name: str, size: int, dtypes: Sequence[torch.dtype]) -> list[torch.Tensor]:
        """Tensors of one size in one buffer. They begin at pages, into which files are read much faster."""
        lengths = [-(-size * dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE for dtype in dtypes]
        needed = max(sum(lengths), mmap.PAGESIZE)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < needed:
            buffer = self._buffers[name] = torch.frombuffer(mmap.mmap(-1, needed), dtype=torch.uint8)
        ends = list(itertools.accumulate(lengths))
        return [
            buffer[end - length : end].view(dtype)[:size]
            for dtype, length, end in zip(dtypes, lengths, ends, strict=True)
        ]


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
    """Refuse merged elements that cannot be used.

    Raises:
        ValueError: If one is NaN or infinite.
    """
    if not block.dtype.is_floating_point:
        return
    if block.dtype == torch.bfloat16:
        finite = all_finite(_bits(block))
    else:  # a finite sum, which is the cheaper to have, shows that all are
        wide = torch.promote_types(block.dtype, torch.float32)
        finite = math.isfinite(block.sum(dtype=wide)) or bool(torch.isfinite(block).all())
    if not finite:
        raise ValueError("the merged tensor has NaN or infinity; check the inputs, weights and dtype")


class Computation:
    """Merges one tensor, block by block.

    Inputs are rounded to the compute dtype; where there is a base, methods get task vectors, rounded too. Rows
    of bfloat16 stay bits, which the loops widen; all else is made floats, and task vectors, while it is read. A
    tensor whose rows fit the budget is read once. The result does not depend on blocks or budget.

    Args:
        op: What to compute; it has a method and at least one element.
        workspace: Where rows are kept.
        budget: Bytes for the rows of a whole tensor; without enough, blocks are read again by every reduction.
        block: Elements worked on at a time.
    """

    def __init__(self, op: TensorOp, workspace: Workspace, budget: int = 0, block: int | None = None) -> None:
        assert op.method is not None
        self._op = op
        self._method = op.method
        self._workspace = workspace
        self._block = block or STREAMING_BLOCK
        self._work = torch.float64 if op.compute == torch.float64 else torch.float32
        self._numpy = torch.empty(0, dtype=self._work).numpy().dtype
        self._rows = [self._row_dtype(source) for source in op.inputs]
        self._base = self._row_dtype(op.base) if op.base else None
        if self._base == torch.bfloat16 and op.compute != torch.bfloat16:
            self._base = self._work  # task vectors are rounded only if the base is bits
        row_bytes = sum(dtype.itemsize for dtype in (*self._rows, *([self._base] if self._base else [])))
        self._fits = self._method.reduces and op.numel * row_bytes <= budget

    def _row_dtype(self, source: TensorSource) -> torch.dtype:
        """What a source is kept as: bits of bfloat16 where these are its values, else floats."""
        op = self._op
        if op.compute == torch.bfloat16:
            return torch.bfloat16
        exact = op.compute == torch.float32 and source.dtype == torch.bfloat16
        return torch.bfloat16 if exact and not isinstance(source, LoraTensor) else self._work

    @cached_property
    def program(self) -> Program:
        """What to do with the elements; the reductions behind it run at first use.

        Raises:
            ValueError: If the method's numbers cannot be had.
        """
        op = self._op
        if not self._method.reduces:
            return self._method.function(**op.arguments)
        with np.errstate(invalid="ignore"):  # infinite inputs are found in the merged values
            return self._method.function(self._statistics, **op.arguments)

    @cached_property
    def _statistics(self) -> Statistics:
        return Statistics(self._blocks, self._numpy, len(self._op.inputs), self._op.shape, self._op.keys)

    def blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """The merged tensor, block after block: the start, and values that the next block overwrites.

        They are of the output dtype if that is bfloat16, else floats still to be rounded.
        """
        each = self.program.each
        for start, stop in self._ranges(each.row_length if each else 1):
            yield start, self._merged(start, stop)

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Merged elements ``[start, stop)``, as of `blocks`; the next call overwrites them."""
        each = self.program.each
        row = each.row_length if each else 1
        first, last = start // row * row, min(-(-stop // row) * row, self._op.numel)
        return self._merged(first, last)[start - first : stop - first]

    def _merged(self, start: int, stop: int) -> torch.Tensor:
        each, inputs = self.program.each, self._inputs(start, stop)
        rows = inputs.rows
        if each is not None and each.formula.per_row:
            changed = self._statistics.floats(inputs)
            for j, row in enumerate(changed):
                apply_each(each, j, start, row)
            rows = tuple(changed)
        result, array = self._result(stop - start)
        loop, steps, numbers = self._loop
        loop(rows, inputs.base, start, steps, numbers, array)
        return result

    @cached_property
    def _loop(self) -> tuple[Callable[..., None], tuple[object, ...] | None, tuple[object, ...]]:
        """The program's loop, each model's numbers of its step, and the numbers of its map."""
        each, formula = self.program.each, self.program.map.formula.function
        numbers = typed(self.program.map.numbers, self._numpy)
        if each is None or each.formula.per_row:
            return map_loop(formula), None, numbers
        steps = (typed(tuple(number[j] for number in each.numbers), self._numpy) for j in range(len(self._rows)))
        return map_loop(formula, each.formula.function), tuple(steps), numbers

    def _result(self, size: int) -> tuple[torch.Tensor, Row]:
        to = self._op.dtype if self._op.dtype == torch.bfloat16 and self._work == torch.float32 else self._work
        result = self._workspace.buffer("result", size, to)
        return result, _array(result)

    def _blocks(self, row_length: int) -> Iterator[tuple[int, Inputs]]:
        for start, stop in self._ranges(row_length):
            yield start, self._inputs(start, stop)

    def _ranges(self, row_length: int) -> Iterator[tuple[int, int]]:
        """The tensor in blocks of whole rows."""
        size = max(row_length, self._block // row_length * row_length)
        for start in range(0, self._op.numel, size):
            yield start, min(start + size, self._op.numel)

    # ------------------------------------------------------------------ rows

    def _inputs(self, start: int, stop: int) -> Inputs:
        first, last = (0, self._op.numel) if self._fits else (start, stop)
        content = (self, first, last)
        if self._workspace.content != content:
            self._workspace.content = None
            rows, base, arrays = self._buffers(last - first)
            for at in range(first, last, self._block):
                part = slice(at - first, min(at + self._block, last) - first)
                self._read(at, [row[part] for row in rows], None if base is None else base[part])
            self._workspace.content = content
            self._workspace.arrays = arrays
        arrays = self._workspace.arrays
        if self._fits:
            part = slice(start, stop)
            return Inputs(
                tuple(row[part] for row in arrays.rows), arrays.base[part] if arrays.base is not None else None
            )
        return arrays

    def _buffers(self, size: int) -> tuple[list[torch.Tensor], torch.Tensor | None, Inputs]:
        """Rows and base, and the same as loops take them."""
        dtypes = [*self._rows, *([self._base] if self._base else [])]
        buffers = self._workspace.buffers("rows", size, dtypes)
        rows, base = (buffers[:-1], buffers[-1]) if self._base else (buffers, None)
        return rows, base, Inputs(tuple(map(_array, rows)), None if base is None else _array(base))

    def _read(self, start: int, rows: list[torch.Tensor], base: torch.Tensor | None) -> None:
        op = self._op
        if op.base is not None and base is not None:
            self._read_rounded(op.base, start, base)
        for source, row in zip(op.inputs, rows, strict=True):
            if op.base is None or base is None or row.dtype == torch.bfloat16:
                self._read_rounded(source, start, row)
            elif source.identity == op.base.identity:
                row.zero_()
            elif self._is_adapted(source, op.base):
                row.zero_()
                source.add_delta(start, row)
            else:
                self._read_rounded(source, start, row)
                row.sub_(base)
                if op.compute not in (torch.float32, torch.float64):
                    row.copy_(row.to(op.compute))

    def _is_adapted(self, source: TensorSource, base: TensorSource) -> TypeGuard[LoraTensor]:
        """Whether the adapter's product is the task vector itself, which needs no reading and no rounding."""
        exact = self._op.compute in (torch.float32, torch.float64)
        return isinstance(source, LoraTensor) and source.base.identity == base.identity and exact

    def _read_rounded(self, source: TensorSource, start: int, row: torch.Tensor) -> None:
        """Read a source's values, rounded to the compute dtype."""
        source.read(start, start + row.numel(), row)
        compute = self._op.compute
        if row.dtype != compute and source.dtype != compute and compute not in (torch.float32, torch.float64):
            row.copy_(row.to(compute))


def _array(row: torch.Tensor) -> Row:
    """A tensor as loops take it: bfloat16 as bits."""
    return _bits(row) if row.dtype == torch.bfloat16 else row.numpy()


def _bits(row: torch.Tensor) -> Row:
    return row.view(torch.uint16).numpy()
