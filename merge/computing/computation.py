"""The arithmetic of one operation: a program, merged blocks."""

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch

from heterosis.merge.computing.finite import NotFiniteError, check_finite
from heterosis.merge.computing.input_blocks import InputBlocks, viewed
from heterosis.merge.kernels import Inputs, Rounded, Values, map_loop, slice_of, widen
from heterosis.merge.methods import Bound, Program
from heterosis.merge.plan import TensorOp
from heterosis.merge.statistics import Statistics
from heterosis.merge.statistics.quantities import Segment, between, clipped, cuts_in, typed
from heterosis.merge.statistics.reductions import Reductions
from heterosis.merge.workspace import Workspace, as_array

# Where loops with random numbers begin anew.
_KEYED = 1 << 32

# Elements of a block that is read, computed and put in its place without a buffer: Python between the loops costs
# more than what leaves the cache.
PLACED_BLOCK = 1 << 24
# Those of a copy, which are read twice.
WIDENED_BLOCK = 1 << 21


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


def is_widened(op: TensorOp, dtype: torch.dtype) -> bool:
    """Whether a copy in a dtype is made of bits that lie in memory just as they are in the file."""
    (source, *others) = op.inputs
    bits = {source.dtype, op.compute, op.dtype} == {torch.bfloat16} and dtype == torch.float32
    return bits and not others and op.numel > 0 and source.view(0, 1) is not None


def widen_copy(op: TensorOp, out: torch.Tensor) -> None:
    """Fill ``out`` with the one input, as of `is_widened`.

    Raises:
        ValueError: If an element is NaN or infinite.
    """
    for start in range(0, op.numel, WIDENED_BLOCK):
        stop = min(start + WIDENED_BLOCK, op.numel)
        bits = viewed(op.inputs[0], start, stop)
        check_finite(bits)
        widen(as_array(bits), None, as_array(out[start:stop]))


class Computation:
    """Merges one tensor, block by block.

    Inputs are rounded to the compute dtype; where there is a base, methods get task vectors, rounded too, but for
    an adapter's on its own base in float32 and float64: that is the adapter's product. The result does not depend
    on blocks or budget.

    Args:
        op: What to compute; it has a method and at least one element.
        workspace: Where values are kept.
        budget: Bytes for the values of a whole tensor; without enough, blocks are read again by every reduction.
        reductions: Where to keep what does not depend on the recipe's numbers. Sources stay in memory then, for
            later recipes, whatever the budget is.
    """

    def __init__(
        self,
        op: TensorOp,
        workspace: Workspace,
        budget: int = 0,
        reductions: Reductions | None = None,
    ) -> None:
        assert op.method is not None
        self._op = op
        self._method = op.method
        self._workspace = workspace
        self._work = torch.float64 if op.compute == torch.float64 else torch.float32
        self._numpy = torch.empty(0, dtype=self._work).numpy().dtype
        self._inputs = InputBlocks(op, workspace, self._work, budget, resident=reductions is not None)
        cache = None
        if reductions is not None:
            identities = tuple(source.identity for source in op.sources)
            cache = reductions.of(identities, op.base is not None, str(op.compute))
        self._statistics = Statistics(
            self._inputs.blocks,
            self._numpy,
            len(op.inputs),
            op.shape,
            op.keys,
            workspace,
            self._inputs.owned,
            cache,
        )
        self._program: Program | None = None

    @property
    def program(self) -> Program:
        """What to do with the elements; the reductions behind it run at first use.

        Raises:
            ValueError: If the method's numbers cannot be had.
        """
        if self._program is None:  # not a cached_property: until 3.12 these share a lock, and threads would wait
            statistics = (self._statistics,) if self._method.reduces else ()
            with np.errstate(invalid="ignore"):  # infinite inputs are found in the merged values
                self._program = self._method.program(*statistics, **self._op.arguments)
        return self._program

    # ------------------------------------------------------------------ merging

    def blocks(self, place: torch.Tensor | None = None) -> Iterator[tuple[int, torch.Tensor, bool]]:
        """The merged tensor, block after block: the start, the values, and whether they are in their place.

        Elsewhere the next block overwrites them, and they are floats still to be rounded unless the output is of
        bfloat16 and the arithmetic of float32.

        Args:
            place: Where the tensor's elements may be computed at once, ``[n]``.

        Raises:
            ValueError: If a merged value is NaN or infinite, or the method's numbers cannot be had.
        """
        if place is not None and not self._may_hold(place.dtype):
            place = None
        buffered = place is None or self._takes_rows or not self._inputs.viewed
        block = self._inputs.block if buffered else PLACED_BLOCK
        for start, stop in self._inputs.ranges(self._row_length, block=block):
            merged = self._merged(start, stop, None if place is None else place[start:stop])
            yield start, merged, place is not None

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

    @property
    def _takes_rows(self) -> bool:
        """Whether a step takes whole rows, apart from the loop that merges."""
        each = self.program.each
        return each is not None and each.formula.per_row

    def _merged(self, start: int, stop: int, place: torch.Tensor | None = None) -> torch.Tensor:
        each = self.program.each
        in_place = each is not None and each is self._statistics.applied
        assert self._inputs.kept or not in_place, "what the step has put into the blocks is lost"
        inputs = self._inputs.inputs(start, stop)
        models, base = inputs
        if in_place:
            base = None
        elif each is not None and self._takes_rows:
            models, base = self._after(each, start, inputs), None
        result = self._workspace.buffer("result", stop - start, self._result_dtype) if place is None else place
        out = as_array(result) if result.dtype == self._result_dtype else Rounded(result.numpy())
        for at, end, (loop, numbers) in clipped(self._segments, start, stop):
            part = at - start, end - start
            own, onto = Inputs(models, base).part(*part), slice_of(inputs.base, *part)
            if not loop(*own, onto, at, *numbers, slice_of(out, *part)):
                raise NotFiniteError
        return result

    @cached_property
    def _segments(self) -> list[Segment[tuple[Callable[..., bool], tuple[object, ...]]]]:
        """The loop and its numbers, where the thresholds of cuts stay the same."""
        program, each = self.program, self.program.each
        if self._takes_rows or each is self._statistics.applied:
            each = None
        loop = map_loop(program.map.formula.function, None if each is None else each.formula.function)
        scale = None if program.scale is None else typed(program.scale, self._numpy)
        keys = self._op.keys if each is not None and each.formula.random else None
        cuts = [*cuts_in(program.map.numbers), *cuts_in(each.numbers if each else ())]
        segments: list[Segment[tuple[Callable[..., bool], tuple[object, ...]]]] = []
        of_steps = each and tuple(tuple(number[j] for number in each.numbers) for j in range(len(self._op.inputs)))
        length = program.map.row_length or self._op.numel
        for start, stop in between(0, self._op.numel, cuts, _KEYED if keys else None):
            steps, numbers = typed((of_steps, program.map.numbers), self._numpy, start)
            segments.append((start, stop, (loop, (length, steps, keys, scale, numbers))))
        return segments

    def _after(self, each: Bound, start: int, inputs: Inputs) -> tuple[Values, ...]:
        """What a step makes of a block of whole rows."""
        shape = len(inputs.models), inputs.size
        models = tuple(self._workspace.array("after a step", shape, self._numpy))
        for j, values in enumerate(models):
            self._statistics.step(each, j, start, inputs, values)
        return models

    @property
    def _result_dtype(self) -> torch.dtype:
        """The dtype in which results are computed."""
        narrow = self._op.dtype == torch.bfloat16 and self._work == torch.float32
        return torch.bfloat16 if narrow else self._work

    def _may_hold(self, dtype: torch.dtype) -> bool:
        """Whether results may be computed where values have this dtype, at least as wide as the output's."""
        if dtype == self._result_dtype:
            return dtype == self._op.dtype
        return dtype == torch.float32 and self._result_dtype == torch.bfloat16
