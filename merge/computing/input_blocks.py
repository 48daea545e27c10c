"""What a computation reads: its sources as floats or bits, block after block."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeGuard

import torch

from heterosis.merge.kernels import Inputs, Subtracted, Unrounded, subtract_base
from heterosis.merge.models.lora import LoraTensor
from heterosis.merge.models.sources import TensorSource
from heterosis.merge.plan import TensorOp
from heterosis.merge.workspace import Workspace, as_array

# Elements of a block that is read once, and its bytes, which lower that where there are many models.
# (Smaller blocks stay in the L2 cache, but Python between the loops, and the system's calls, cost more than that.)
STREAMING_BLOCK = 1 << 19
BLOCK_BYTES = 8 * 1024**2


class InputBlocks:
    """Blocks of the inputs of one operation, and of its base.

    Values are rounded to the compute dtype. Those that are of bfloat16 then are bits, which the loops widen; all
    else is made floats, and with a base task vectors, while it is read. These are rounded too, but for adapters of
    that base in float32 and float64: there they are the adapter's product. (Bits too are made task vectors, if
    reductions read them again.) A tensor that fits the budget is read once, and not even copied where its values
    are as they lie in the file.

    Args:
        op: What the inputs are of; it has a method and at least one element.
        workspace: Where values are kept.
        work: The dtype of what is made floats.
        budget: Bytes for the values of a whole tensor.
        resident: Whether sources stay in memory for later recipes, whatever the budget is.

    Attributes:
        block: Elements worked on at a time.
    """

    def __init__(
        self,
        op: TensorOp,
        workspace: Workspace,
        work: torch.dtype,
        budget: int,
        resident: bool,
    ) -> None:
        assert op.method is not None
        self._op, self._workspace, self._work, self._budget = op, workspace, work, budget
        self._sources = op.sources
        self._dtypes = tuple(self._kept_dtype(source) for source in self._sources)
        self._views = [self._is_view(*pair) for pair in zip(self._sources, self._dtypes, strict=True)]
        itemsize = sum(dtype.itemsize for dtype in self._dtypes)
        fitting = BLOCK_BYTES // itemsize
        self.block = min(STREAMING_BLOCK, 1 << fitting.bit_length() - 1)
        self._resident = resident
        self._arrange()

    def _arrange(self) -> None:
        """Decide which values are copied, and whether all of the tensor is kept."""
        op = self._op
        assert op.method is not None
        # What several passes read is subtracted from once; where one pass is all, the loop does it in registers.
        bits = op.base is not None and set(self._dtypes) == {torch.bfloat16} == {op.compute}
        self._subtracts = bits and op.method.reduces and not (self._resident and any(self._views))
        # Of the others, values stay in the sources' own memory.
        subtracted = range(len(op.inputs) if self._subtracts else 0)
        self._own = [not view or j in subtracted for j, view in enumerate(self._views)]
        self._missing = tuple(d for d, own in zip(self._dtypes, self._own, strict=True) if own)
        fits = op.numel * sum(dtype.itemsize for dtype in self._dtypes) <= self._budget
        self._fits = (op.method.reduces and fits) if self._missing else (self._resident or fits)

    def owned(self, copied: bool) -> bool:
        """Whether all of the tensor is kept, in memory of its own that may be changed.

        Args:
            copied: Whether to copy there, if there is room, what has stayed in the sources' own memory.
        """
        if copied and self._resident and not self._is_owned:
            self._resident = False
            self._arrange()
            if not self._is_owned:  # there is no room
                self._resident = True
                self._arrange()
            self._workspace.release()
        return self._is_owned

    @property
    def _is_owned(self) -> bool:
        op = self._op
        # A step drops or keeps entries: of task vectors rounded to bfloat16, it makes bits of bfloat16 again.
        exact = op.base is None or op.compute == torch.bfloat16 or torch.bfloat16 not in self._dtypes
        return self._fits and exact and all(self._own[: len(op.inputs)])

    def _is_view(self, source: TensorSource, dtype: torch.dtype) -> bool:
        """Whether a source's values lie in memory just as they are kept, in this dtype."""
        exact = dtype in (torch.bfloat16, self._op.compute)  # floats for float16 are rounded as they are read
        as_they_are = source.dtype == dtype and exact and (dtype == torch.bfloat16 or self._op.base is None)
        return as_they_are and source.view(0, 1) is not None

    def _kept_dtype(self, source: TensorSource) -> torch.dtype:
        """What a source is kept as: bits where its values, rounded to the compute dtype, are of bfloat16."""
        op = self._op
        if op.compute == torch.bfloat16:
            return torch.bfloat16
        bits = op.compute == torch.float32 and source.dtype == torch.bfloat16 and source.exact
        return torch.bfloat16 if bits else self._work

    def blocks(self, row_length: int = 1, start: int = 0) -> Iterator[tuple[int, Inputs]]:
        """Blocks of whole rows, without those before ``start``: where each begins, and its values."""
        for at, stop in self.ranges(row_length, start):
            yield at, self.inputs(at, stop)

    def ranges(self, row_length: int = 1, first: int = 0, block: int | None = None) -> Iterator[tuple[int, int]]:
        """Blocks of whole rows, of ``block`` elements or the usual number, without those before ``first``."""
        size = max(row_length, (block or self.block) // row_length * row_length)
        for start in range(first // size * size, self._op.numel, size):
            yield start, min(start + size, self._op.numel)

    @property
    def viewed(self) -> bool:
        """Whether all values stay in the sources' own memory."""
        return not self._missing

    @property
    def kept(self) -> bool:
        """Whether the workspace still holds all of the tensor."""
        return self._fits and self._workspace.holds((self, 0, self._op.numel))

    def inputs(self, start: int, stop: int) -> Inputs:
        """The values of a block. Where all of the tensor fits, it is read as far as it was asked for."""
        first, last = (0, self._op.numel) if self._fits else (start, stop)
        held = self._workspace.held((self, first, last), lambda: self._unread(first, last))
        while held.filled < stop:
            end = min(held.filled + self.block, last)
            part = slice(held.filled - first, end - first)
            self._read(held.filled, [tensor[part] for tensor in held.tensors])
            held.filled = end
        return held.inputs.part(start, stop) if self._fits else held.inputs

    def _unread(self, first: int, last: int) -> "_Range":
        """A range of elements, still to be read where they are not in the sources' own memory."""
        buffers = iter(self._workspace.buffers("inputs", last - first, self._missing) if self._missing else ())
        pairs = zip(self._sources, self._own, strict=True)
        tensors = [next(buffers) if own else viewed(source, first, last) for source, own in pairs]
        return _Range(tensors, self._as_inputs(tensors), first if self._missing else last)

    def _as_inputs(self, tensors: list[torch.Tensor]) -> Inputs:
        """Inputs and base as loops take them."""
        arrays = tuple(map(as_array, tensors))
        if self._op.base is None:
            return Inputs(arrays)
        *models, base = arrays
        if self._subtracts:
            return Inputs(tuple(models), Subtracted(base))
        unrounded = self._dtypes[-1] == torch.bfloat16 and self._op.compute != torch.bfloat16
        return Inputs(tuple(models), Unrounded(base) if unrounded else base)

    def _read(self, start: int, tensors: list[torch.Tensor]) -> None:
        base = tensors[-1]
        all_of = list(zip(self._sources, tensors, self._own, strict=True))
        for source, out, own in reversed(all_of):  # the base first
            if not own:
                continue
            if self._op.base is None or out is base:
                self._read_rounded(source, start, out)
            elif out.dtype != torch.bfloat16:
                self._read_task_vector(source, start, base, out)
            elif self._subtracts:
                subtract_base(as_array(self._bits(source, start, base, out)), as_array(base), as_array(out))
            else:
                self._read_bits(source, start, base, out)

    def _bits(self, source: TensorSource, start: int, base: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """A source's values as bits, in a buffer that stays in the cache."""
        bits = self._workspace.buffer("bits", out.numel(), torch.bfloat16)
        self._read_bits(source, start, base, bits)
        return bits

    def _read_bits(self, source: TensorSource, start: int, base: torch.Tensor, out: torch.Tensor) -> None:
        """Read a source's values as bits."""
        assert self._op.base is not None
        if isinstance(source, LoraTensor) and source.base.identity == self._op.base.identity:
            source.read_onto(start, base, out)
        else:
            self._read_rounded(source, start, out)

    def _read_task_vector(self, source: TensorSource, start: int, base: torch.Tensor, out: torch.Tensor) -> None:
        """Read a source as floats, less the base."""
        assert self._op.base is not None
        if source.identity == self._op.base.identity:
            out.numpy().fill(0)  # torch would wake threads of its own for a block
        elif self._is_adapted(source, self._op.base):
            out.numpy().fill(0)
            source.add_delta(start, out)
        else:
            self._read_rounded(source, start, out)
            out.sub_(base)
            if self._op.compute not in (torch.float32, torch.float64):
                out.copy_(out.to(self._op.compute))

    def _is_adapted(self, source: TensorSource, base: TensorSource) -> TypeGuard[LoraTensor]:
        """Whether the adapter's product is the task vector itself, which needs no reading and no rounding."""
        exact = self._op.compute in (torch.float32, torch.float64)
        return isinstance(source, LoraTensor) and source.base.identity == base.identity and exact

    def _read_rounded(self, source: TensorSource, start: int, out: torch.Tensor) -> None:
        """Read a source's values, rounded to the compute dtype."""
        source.read(start, start + out.numel(), out)
        compute = self._op.compute
        is_rounded = out.dtype == compute or (source.dtype == compute and source.exact)
        if not is_rounded and compute not in (torch.float32, torch.float64):
            out.copy_(out.to(compute))


@dataclass(eq=False)
class _Range:
    """A range of elements, which a thread's workspace keeps until another takes its place.

    Attributes:
        tensors: The values, of the inputs and then the base.
        inputs: The same as loops take them.
        filled: Up to where they have been read.
    """

    tensors: list[torch.Tensor]
    inputs: Inputs
    filled: int


def viewed(source: TensorSource, first: int, last: int) -> torch.Tensor:
    """A source's elements where they lie in memory; a copy, should the system have no room to map them."""
    view = source.view(first, last)
    if view is None:
        view = torch.empty(last - first, dtype=source.dtype)
        source.read(first, last, view)
    return view
