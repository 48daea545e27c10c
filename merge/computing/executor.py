"""Run a plan: read blocks, compute, hand them to a sink, within a memory budget and on several threads."""

from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

import torch

from heterosis.merge.computing.computation import Computation, is_widened, read_copy, widen_copy
from heterosis.merge.computing.finite import NotFiniteError, cause_of, check_finite
from heterosis.merge.computing.sinks import Sink
from heterosis.merge.machine import available_cores
from heterosis.merge.plan import MergePlan, TensorOp
from heterosis.merge.statistics.reductions import Reductions
from heterosis.merge.workspace import Workspace

DEFAULT_MEMORY_LIMIT = 512 * 1024**2

# Elements of a block that is only copied.
COPIED_BLOCK = 1 << 18

# What a thread takes however small the limit: a block of all models, what is made of one and of the output, a
# reader's buffer, and counts of digits of the values.
THREAD_MINIMUM = 16 * 1024**2


class MergeError(RuntimeError):
    """A merge that was planned could not be completed. The message names the tensor."""


def execute(
    plan: MergePlan,
    sink: Sink,
    *,
    threads: int | None = None,
    memory_limit: int = DEFAULT_MEMORY_LIMIT,
    waiting: int = 0,
    reductions: Reductions | None = None,
) -> None:
    """Run every operation of a plan.

    The result does not depend on ``threads`` or ``memory_limit``.

    Args:
        plan: From :func:`~heterosis.merge.planning.planner.build_plan`.
        sink: Where the tensors go.
        threads: Tensors worked on at the same time; None takes one for each core.
        memory_limit: Bytes for buffers of all threads together; with less than 16 MiB for each, threads are fewer.
            Beside it, a method that takes whole rows of a tensor, or a number for each, has a few of them in
            memory, for all models; one that takes dot products or sums, 8 bytes for each 16384 elements and pair
            of models, or model; and models stay there as far as `Model.resident_bytes` says.
        waiting: Of these, what the sink takes for blocks that wait.
        reductions: Where to keep what further plans over the same models need again.

    Raises:
        MergeError: If a merged tensor has NaN or infinity, or a method's numbers cannot be had.
    """
    threads = max(1, min(threads or available_cores(), memory_limit // THREAD_MINIMUM))
    share = (memory_limit - waiting) // threads
    budget = max(0, share - 2 * THREAD_MINIMUM)  # of whole tensors, beside blocks and counts
    workers = _Workers(sink, budget, reductions)
    # The largest first, so that no thread is left alone with a large one.
    pending = sorted(filter(sink.wants, plan.ops), key=lambda op: op.numel, reverse=True)
    if threads == 1:
        for op in pending:
            workers.run(op)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="merge") as pool:
        futures = [pool.submit(workers.run, op) for op in pending]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                try:
                    future.result()
                finally:
                    del future
        finally:  # after an error or Ctrl-C nothing more is begun
            pool.shutdown(wait=False, cancel_futures=True)
            futures.clear()  # an error's traceback would hold what holds the error, and files stay open with it


class _Workers:
    """Runs operations; every thread reuses buffers of its own."""

    def __init__(self, sink: Sink, budget: int, reductions: Reductions | None) -> None:
        self._sink = sink
        self._budget = budget
        self._reductions = reductions
        self._workspace = Workspace()

    def run(self, op: TensorOp) -> None:
        try:
            place = self._sink.place(op)
            if op.method is None or op.numel == 0:  # there is nothing to ask statistics of
                self._copy(op, place)
            else:
                computation = Computation(op, self._workspace, self._budget, self._reductions)
                for start, block, placed in computation.blocks(place):
                    self._write(op, start, block, placed)
            self._sink.done(op)
        except NotFiniteError as error:
            raise MergeError(f"{op.name}: {error}, {cause_of(op)}") from error
        except (ValueError, ArithmeticError) as error:
            raise MergeError(f"{op.name}: {error}") from error
        finally:
            self._workspace.release()  # the sources' own memory may be among it

    def _copy(self, op: TensorOp, place: torch.Tensor | None) -> None:
        """Copy the one input, at once to its place if it has the same dtype, or a wider one than mapped bits."""
        if place is not None and is_widened(op, place.dtype):
            widen_copy(op, place)
            return
        if place is not None and not place.dtype == op.compute == op.dtype:
            place = None
        for start in range(0, op.numel, COPIED_BLOCK):
            stop = min(start + COPIED_BLOCK, op.numel)
            if place is None:
                block = self._workspace.buffer("copied", stop - start, op.compute)
            else:
                block = place[start:stop]
            read_copy(op, start, block)
            check_finite(block)
            self._write(op, start, block, place is not None)

    def _write(self, op: TensorOp, start: int, block: torch.Tensor, placed: bool) -> None:
        """Hand a block of finite values to the sink, unless it is there already."""
        if placed:
            return
        if block.dtype != op.dtype:
            block = self._workspace.buffer("narrow", block.numel(), op.dtype).copy_(block)
            check_finite(block)
        self._sink.write(op, start, block)
