"""The arithmetic of one operation: inputs as rows, a program, merged blocks."""

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, TypeGuard

import numpy as np
import torch

from heterosis.merge.checkpoint import TensorSource
from heterosis.merge.kernels import (
    Inputs,
    Rounded,
    Row,
    Subtracted,
    Unrounded,
    add_rounded,
    map_loop,
    part_of,
    subtract_base,
)
from heterosis.merge.lora import LoraTensor
from heterosis.merge.methods import Bound, Program
from heterosis.merge.plan import TensorOp
from heterosis.merge.reductions import Reductions
from heterosis.merge.statistics import Statistics, between, cuts_in, typed
from heterosis.merge.workspace import Workspace

# Elements of a block that is read once, and the bytes of its rows, which lowers it where there are many models.
# (Smaller blocks stay in the L2 cache, but Python between the loops, and the system's calls, cost more than that.)
STREAMING_BLOCK = 1 << 19
BLOCK_BYTES = 8 * 1024**2

# Where loops with random numbers begin anew.
_KEYED = 1 << 32

# Where a block may be computed at once: elements [start, stop) of the merged tensor, or None.
Places: TypeAlias = Callable[[int, int], torch.Tensor | None]


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


class Computation:
    """Merges one tensor, block by block.

    Inputs are rounded to the compute dtype; where there is a base, methods get task vectors, rounded too. Values
    of bfloat16 stay bits, which the loops widen; all else is made floats, and task vectors, while it is read.
    (Bits too are made task vectors then, if reductions read them again.) A tensor whose rows fit the budget is
    read once, and not even copied where rows are as they lie in the file. The result does not depend on blocks or
    budget.

    Args:
        op: What to compute; it has a method and at least one element.
        workspace: Where rows are kept.
        budget: Bytes for the rows of a whole tensor; without enough, blocks are read again by every reduction.
        block: Elements worked on at a time.
        reductions: Where to keep what does not depend on the recipe's numbers. Sources stay in memory then, for
            later recipes, whatever the budget is.
    """

    def __init__(
        self,
        op: TensorOp,
        workspace: Workspace,
        budget: int = 0,
        block: int | None = None,
        reductions: Reductions | None = None,
    ) -> None:
        assert op.method is not None
        self._op = op
        self._method = op.method
        self._workspace = workspace
        self._work = torch.float64 if op.compute == torch.float64 else torch.float32
        self._numpy = torch.empty(0, dtype=self._work).numpy().dtype
        self._dtypes = tuple(self._row_dtype(source) for source in self._sources)
        # What several passes read is subtracted from once; where one pass is all, the loop does it in registers.
        views = [self._is_view(*pair) for pair in zip(self._sources, self._dtypes, strict=True)]
        bits = op.base is not None and set(self._dtypes) == {torch.bfloat16} == {op.compute}
        self._subtracts = bits and self._method.reduces and (reductions is None or not any(views))
        # Of the others, rows are the sources' own memory.
        subtracted = range(len(op.inputs) if self._subtracts else 0)
        self._own = [not view or j in subtracted for j, view in enumerate(views)]
        self._missing = tuple(d for d, own in zip(self._dtypes, self._own, strict=True) if own)
        row_bytes = op.numel * sum(dtype.itemsize for dtype in self._dtypes)
        if self._missing:
            self._fits = self._method.reduces and row_bytes <= budget
        else:
            self._fits = reductions is not None or row_bytes <= budget
        fitting = BLOCK_BYTES // sum(dtype.itemsize for dtype in self._dtypes)
        self._block = block or min(STREAMING_BLOCK, 1 << fitting.bit_length() - 1)
        self._reductions = reductions
        self._statistics = self._make_statistics()
        self._program: Program | None = None

    @property
    def _sources(self) -> list[TensorSource]:
        """The inputs, then the base."""
        return [*self._op.inputs, *([self._op.base] if self._op.base else [])]

    def _is_view(self, source: TensorSource, dtype: torch.dtype) -> bool:
        """Whether a source's values lie in memory just as rows of this dtype do."""
        exact = dtype in (torch.bfloat16, self._op.compute)  # floats for float16 are rounded as they are read
        as_they_are = source.dtype == dtype and exact and (dtype == torch.bfloat16 or self._op.base is None)
        return as_they_are and source.view(0, 1) is not None

    def _row_dtype(self, source: TensorSource) -> torch.dtype:
        """What a source is kept as: bits of bfloat16 where these are its values, else floats."""
        op = self._op
        if op.compute == torch.bfloat16:
            return torch.bfloat16
        exact = op.compute == torch.float32 and source.dtype == torch.bfloat16
        return torch.bfloat16 if exact and not isinstance(source, LoraTensor) else self._work

    @property
    def program(self) -> Program:
        """What to do with the elements; the reductions behind it run at first use.

        Raises:
            ValueError: If the method's numbers cannot be had.
        """
        if self._program is None:  # not a cached_property: until 3.12 these share a lock, and threads would wait
            self._program = self._made()
        return self._program

    def _made(self) -> Program:
        op = self._op
        if not self._method.reduces:
            return self._method.function(**op.arguments)
        with np.errstate(invalid="ignore"):  # infinite inputs are found in the merged values
            return self._method.function(self._statistics, **op.arguments)

    def _make_statistics(self) -> Statistics:
        op = self._op
        # A step drops or keeps entries: of task vectors rounded to bfloat16, it makes bits of bfloat16 again.
        exact = op.base is None or op.compute == torch.bfloat16 or torch.bfloat16 not in self._dtypes
        in_place = self._fits and exact and all(self._own[: len(op.inputs)])
        keep = None
        if self._reductions is not None:
            identities = tuple(source.identity for source in self._sources)
            keep = self._reductions.of(identities, op.base is not None, str(op.compute))
        # Without a circle, which would keep plan and buffers of each candidate until the collector finds it.
        own = weakref.proxy(self)

        def blocks(row_length: int = 1, start: int = 0) -> Iterator[tuple[int, Inputs]]:
            found: Iterator[tuple[int, Inputs]] = own._blocks(row_length, start)
            return found

        return Statistics(blocks, self._numpy, len(op.inputs), op.shape, op.keys, self._workspace, in_place, keep)

    # ------------------------------------------------------------------ merging

    def blocks(self, places: Places | None = None) -> Iterator[tuple[int, torch.Tensor]]:
        """The merged tensor, block after block: the start, and values, which the next block overwrites.

        They are of the output dtype if that is bfloat16, else floats still to be rounded.

        Args:
            places: Where blocks may be computed at once, in which case these are what is given.
        """
        for start, stop in self._ranges(self._row_length):
            yield start, self._merged(start, stop, places and places(start, stop))

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Merged elements ``[start, stop)``, as of `blocks`; the next call overwrites them."""
        row = self._row_length
        first, last = start // row * row, min(-(-stop // row) * row, self._op.numel)
        return self._merged(first, last)[start - first : stop - first]

    @property
    def _row_length(self) -> int:
        """Elements of rows that a step takes as a whole."""
        each = self.program.each
        return each.row_length or 1 if each else 1

    def _merged(self, start: int, stop: int, place: torch.Tensor | None = None) -> torch.Tensor:
        each = self.program.each
        inputs = self._inputs(start, stop)
        rows, base = inputs
        if each is not None and each is self._stepped:
            base = None
        elif each is not None and each.formula.per_row:
            rows, base = self._stepped_rows(each, start, inputs), None
        result, out = self._result(stop - start, place)
        for first, last, loop, numbers in self._segments:
            if first <= start and stop <= last:
                loop(rows, base, inputs.base, start, *numbers, out)
            elif start < last and first < stop:
                at, end = max(start, first), min(stop, last)
                part = slice(at - start, end - start)
                of_rows = tuple(row[part] for row in rows)
                loop(of_rows, part_of(base, part), part_of(inputs.base, part), at, *numbers, part_of(out, part))
        return result

    @cached_property
    def _segments(self) -> list[tuple[int, int, Callable[..., None], tuple[object, ...]]]:
        """The tensor in pieces where the thresholds of cuts stay the same: where, the loop, and its numbers."""
        program, each = self.program, self.program.each
        if each is not None and (each.formula.per_row or each is self._stepped):
            each = None
        loop = map_loop(program.map.formula.function, None if each is None else each.formula.function)
        scale = None if program.scale is None else typed(program.scale, self._numpy)
        keys = self._op.keys if each is not None and each.formula.random else None
        cuts = [*cuts_in(program.map.numbers), *cuts_in(each.numbers if each else ())]
        segments: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        for start, stop in between(0, self._op.numel, cuts, _KEYED if keys else None):
            steps = each and tuple(
                typed(tuple(number[j] for number in each.numbers), self._numpy, start)
                for j in range(len(self._op.inputs))
            )
            numbers = typed(program.map.numbers, self._numpy, start)
            length = program.map.row_length or self._op.numel
            segments.append((start, stop, loop, (length, steps, keys, scale, numbers)))
        return segments

    def _stepped_rows(self, each: Bound, start: int, inputs: Inputs) -> tuple[Row, ...]:
        """What a step makes of a block of whole rows."""
        size = len(inputs.rows[0])
        rows = tuple(self._workspace.array("stepped", (len(inputs.rows), size), self._numpy))
        for j, row in enumerate(rows):
            self._statistics.step(each, j, start, inputs, row)
        return rows

    @property
    def _stepped(self) -> Bound | None:
        """The step whose results the rows hold already."""
        return self._statistics.stepped

    def _result(self, size: int, place: torch.Tensor | None) -> tuple[torch.Tensor, Row | Rounded]:
        """A block's tensor, in its place if it can be computed there, and the same as loops take it."""
        narrow = self._op.dtype == torch.bfloat16 and self._work == torch.float32
        to = torch.bfloat16 if narrow else self._work
        if place is not None and place.dtype == torch.float32 and narrow:
            return place, Rounded(place.numpy())
        if place is not None and place.dtype == to == self._op.dtype:
            return place, _array(place)
        result = self._workspace.buffer("result", size, to)
        return result, _array(result)

    def _blocks(self, row_length: int = 1, start: int = 0) -> Iterator[tuple[int, Inputs]]:
        for at, stop in self._ranges(row_length, start):
            yield at, self._inputs(at, stop)

    def _ranges(self, row_length: int, first: int = 0) -> Iterator[tuple[int, int]]:
        """The tensor in blocks of whole rows, without those before ``first``."""
        size = max(row_length, self._block // row_length * row_length)
        for start in range(first // size * size, self._op.numel, size):
            yield start, min(start + size, self._op.numel)

    # ------------------------------------------------------------------ rows

    def _inputs(self, start: int, stop: int) -> Inputs:
        """The values of a block. Rows of the whole tensor, where they fit, are filled as they are asked for."""
        first, last = (0, self._op.numel) if self._fits else (start, stop)
        rows = self._workspace.content
        if not isinstance(rows, _Rows) or (rows.of, rows.first, rows.last) != (self, first, last):
            assert self._stepped is None or not self._fits, "the rows hold what the step made of them"
            rows = self._workspace.content = self._rows(first, last)
        while rows.filled < stop:
            end = min(rows.filled + self._block, last)
            part = slice(rows.filled - first, end - first)
            self._read(rows.filled, [tensor[part] for tensor in rows.tensors])
            rows.filled = end
        return rows.inputs.part(slice(start, stop)) if self._fits else rows.inputs

    def _rows(self, first: int, last: int) -> "_Rows":
        """Rows of a range, still to be filled where they are not the sources' own memory."""
        buffers = iter(self._workspace.buffers("rows", last - first, self._missing) if self._missing else ())
        pairs = zip(self._sources, self._own, strict=True)
        tensors = [next(buffers) if own else _viewed(source, first, last) for source, own in pairs]
        return _Rows(self, first, last, tensors, self._as_inputs(tensors), first if self._missing else last)

    def _as_inputs(self, tensors: list[torch.Tensor]) -> Inputs:
        """Rows and base as loops take them."""
        arrays = tuple(map(_array, tensors))
        if self._op.base is None:
            return Inputs(arrays)
        *rows, base = arrays
        if self._subtracts:
            return Inputs(tuple(rows), Subtracted(base))
        unrounded = self._dtypes[-1] == torch.bfloat16 and self._op.compute != torch.bfloat16
        return Inputs(tuple(rows), Unrounded(base) if unrounded else base)

    def _read(self, start: int, tensors: list[torch.Tensor]) -> None:
        base = tensors[-1]
        all_of = list(zip(self._sources, tensors, self._own, strict=True))
        for source, row, own in reversed(all_of):  # the base first
            if not own:
                continue
            if self._op.base is None or row is base:
                self._read_rounded(source, start, row)
            elif row.dtype != torch.bfloat16:
                self._read_task_vector(source, start, base, row)
            elif self._subtracts:
                subtract_base(_array(self._bits(source, start, base, row)), _array(base), _array(row))
            else:
                self._read_bits(source, start, base, row)

    def _bits(self, source: TensorSource, start: int, base: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """A source's values as bits, in a buffer that stays in the cache."""
        bits = self._workspace.buffer("bits", row.numel(), torch.bfloat16)
        self._read_bits(source, start, base, bits)
        return bits

    def _read_bits(self, source: TensorSource, start: int, base: torch.Tensor, row: torch.Tensor) -> None:
        """Read a source's values as bits."""
        assert self._op.base is not None
        if isinstance(source, LoraTensor) and source.base.identity == self._op.base.identity:
            self._add_adapter(source, start, base, row)
        else:
            self._read_rounded(source, start, row)

    def _read_task_vector(self, source: TensorSource, start: int, base: torch.Tensor, row: torch.Tensor) -> None:
        """Read a source as floats, less the base."""
        assert self._op.base is not None
        if source.identity == self._op.base.identity:
            row.numpy().fill(0)  # torch would wake threads of its own for a block
        elif self._is_adapted(source, self._op.base):
            row.numpy().fill(0)
            source.add_delta(start, row)
        else:
            self._read_rounded(source, start, row)
            row.sub_(base)
            if self._op.compute not in (torch.float32, torch.float64):
                row.copy_(row.to(self._op.compute))

    def _add_adapter(self, source: LoraTensor, start: int, base: torch.Tensor, row: torch.Tensor) -> None:
        """What reading the source would give, from the base that was read already."""
        product = self._workspace.buffer("product", row.numel(), torch.float32)
        product.numpy().fill(0)
        source.add_delta(start, product)
        add_rounded(_array(base), product.numpy(), _array(row))

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


@dataclass(eq=False)
class _Rows:
    """Rows of a range of elements, which a thread's workspace keeps until others take their place.

    Attributes:
        of: Whose.
        first: Where the range begins.
        last: Where it ends.
        tensors: The values.
        inputs: The same as loops take them.
        filled: How far they are there.
    """

    of: Computation
    first: int
    last: int
    tensors: list[torch.Tensor]
    inputs: Inputs
    filled: int


def _viewed(source: TensorSource, first: int, last: int) -> torch.Tensor:
    """A source's elements where they lie in memory; a copy, should the system have no room to map them."""
    view = source.view(first, last)
    if view is None:
        view = torch.empty(last - first, dtype=source.dtype)
        source.read(first, last, view)
    return view


def _array(row: torch.Tensor) -> Row:
    """A tensor as loops take it: bfloat16 as bits."""
    return (row.view(torch.uint16) if row.dtype == torch.bfloat16 else row).numpy()
