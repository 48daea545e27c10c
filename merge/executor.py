"""Run a plan: read blocks, compute, hand them to a sink, within a memory budget and on several threads."""

import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeGuard

import torch

from heterosis.merge.checkpoint import TensorSource
from heterosis.merge.kernels import RUN, Row, map_loop
from heterosis.merge.lora import LoraTensor
from heterosis.merge.methods import Method, Program
from heterosis.merge.plan import MergePlan, TensorOp
from heterosis.merge.sinks import Sink
from heterosis.merge.statistics import Statistics, apply_each, typed

DEFAULT_MEMORY_LIMIT = 512 * 1024**2

# Elements of a block that is read once: with a handful of models, rows of this length stay in the L2 cache.
STREAMING_BLOCK = 16 * RUN


# What a thread takes however small the limit: a streaming block of a dozen models, and a reader's buffer.
THREAD_MINIMUM = 16 * 1024**2


def available_cores() -> int:
    """Cores that this process may use, which in a container or job can be fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class MergeError(RuntimeError):
    """A merge that was planned could not be completed. The message names the tensor."""


def execute(
    plan: MergePlan, sink: Sink, *, threads: int | None = None, memory_limit: int = DEFAULT_MEMORY_LIMIT
) -> None:
    """Run every operation of a plan.

    The result does not depend on ``threads`` or ``memory_limit``.

    Args:
        plan: From :func:`~heterosis.merge.plan.build_plan`.
        sink: Where the tensors go.
        threads: Tensors worked on at the same time; None takes torch's number of threads.
        memory_limit: Bytes for buffers of all threads together; with less than 16 MiB for each, threads are fewer.

    Raises:
        MergeError: If a merged tensor has NaN or infinity, or a method's numbers cannot be had.
    """
    threads = max(1, min(threads or torch.get_num_threads(), memory_limit // THREAD_MINIMUM))
    workers = _Workers(plan, sink, memory_limit // threads)
    pending = [op for op in plan.ops if sink.wants(op)]
    if threads == 1:
        for op in pending:
            workers.run(op)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="merge") as pool:
        futures = [pool.submit(workers.run, op) for op in pending]
        try:
            for future in wait(futures, return_when=FIRST_EXCEPTION).done:
                future.result()
        finally:  # after an error or Ctrl-C nothing more is begun
            pool.shutdown(wait=False, cancel_futures=True)


class _Workers:
    """Runs operations; every thread reuses buffers of its own."""

    def __init__(self, plan: MergePlan, sink: Sink, budget: int) -> None:
        self._sink = sink
        self._budget = budget
        self._local = threading.local()

    def run(self, op: TensorOp) -> None:
        try:
            if op.method is None or op.numel == 0:  # there is nothing to ask statistics of
                self._copy(op)
            else:
                self._merge(op, op.method)
            self._sink.done(op)
        except (ValueError, ArithmeticError) as error:
            raise MergeError(f"{op.name}: {error}") from error

    def _buffer(self, name: str, size: int, dtype: torch.dtype) -> torch.Tensor:
        """A 1-D buffer that lives as long as the thread; the first touch of a page is dear."""
        buffer: torch.Tensor | None = getattr(self._local, name, None)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < size:
            buffer = torch.empty(size, dtype=dtype)
            setattr(self._local, name, buffer)
        return buffer[:size]

    def _copy(self, op: TensorOp) -> None:
        """Copy one input; further inputs (of integer tensors) must be equal to it."""
        for start in range(0, op.numel, STREAMING_BLOCK):
            stop = min(start + STREAMING_BLOCK, op.numel)
            block = self._buffer("copied", stop - start, op.compute)
            op.inputs[0].read(start, stop, block)
            for other in op.inputs[1:]:
                compared = self._buffer("compared", stop - start, op.compute)
                other.read(start, stop, compared)
                if not torch.equal(block, compared):
                    raise ValueError("a tensor of integers must be the same in all models, but it differs")
            self._write(op, start, block)

    def _write(self, op: TensorOp, start: int, block: torch.Tensor) -> None:
        narrow = block
        if block.dtype != op.dtype:
            narrow = self._buffer("narrow", block.numel(), op.dtype).copy_(block)
        if op.dtype.is_floating_point and not _is_finite(narrow):
            raise ValueError("the merged tensor has NaN or infinity; check the inputs, weights and dtype")
        self._sink.write(op, start, narrow)

    def _merge(self, op: TensorOp, method: Method) -> None:
        work = torch.float64 if op.compute == torch.float64 else torch.float32
        rows = len(op.inputs) + 3  # and the base, the result, and its narrow copy or a scratch row
        if method.reduces:
            fitting = self._budget // (rows * work.itemsize)
            size = max(RUN, min(op.numel, fitting) // RUN * RUN)
        else:
            size = STREAMING_BLOCK
        if op.numel <= size + RUN:
            size = op.numel
        blocks = _Blocks(op, self._buffer("rows", rows * size, work).view(rows, size), work)
        program = self._program(op, method, blocks)
        numbers = typed(program.map.numbers, blocks.numpy_dtype)
        loop = map_loop(program.map.formula.function)
        for start, inputs in blocks():
            if program.each is not None:
                for j, row in enumerate(inputs):
                    apply_each(program.each, j, start, row)
            result = blocks.result[: len(inputs[0])]
            loop(inputs, start, numbers, result.numpy())
            if op.base is not None:
                result.add_(blocks.base[: len(result)])
            self._write(op, start, result)

    def _program(self, op: TensorOp, method: Method, blocks: "_Blocks") -> Program:
        if not method.reduces:
            return method.function(**op.arguments)
        statistics = Statistics(blocks, blocks.numpy_dtype, len(op.inputs), op.numel, op.keys)
        return method.function(statistics, **op.arguments)


def _is_finite(block: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite. A finite sum, which is the cheaper to have, shows it."""
    wide = torch.promote_types(block.dtype, torch.float32)
    return math.isfinite(block.sum(dtype=wide)) or bool(torch.isfinite(block).all())


class _Blocks:
    """The rows of one operation's inputs, block after block, each time it is called.

    Inputs are rounded to the compute dtype; where there is a base, rows hold task vectors, rounded too.
    A tensor that fits one block is read once.
    """

    def __init__(self, op: TensorOp, rows: torch.Tensor, work: torch.dtype) -> None:
        self._op = op
        self._inputs = rows[: len(op.inputs)]
        self.base = rows[len(op.inputs)]
        self.result = rows[len(op.inputs) + 1]
        self._rounds = op.compute not in (torch.float32, torch.float64)
        self._resident = False
        self.numpy_dtype = self.result.numpy().dtype

    def __call__(self) -> Iterator[tuple[int, tuple[Row, ...]]]:
        op, size = self._op, self._inputs.shape[1]
        for start in range(0, op.numel, size):
            n = min(size, op.numel - start)
            if not self._resident:
                self._read(start, n)
                self._resident = n == op.numel
            yield start, tuple(row[:n].numpy() for row in self._inputs)

    def _read(self, start: int, n: int) -> None:
        op = self._op
        if op.base is not None:
            self._read_rounded(op.base, start, self.base[:n])
        for source, whole in zip(op.inputs, self._inputs, strict=True):
            row = whole[:n]
            if op.base is not None and source.identity == op.base.identity:
                row.zero_()
                continue
            if op.base is not None and self._is_adapted(source, op.base):
                row.zero_()
                source.add_delta(start, row)
                continue
            self._read_rounded(source, start, row)
            if op.base is not None:
                row.sub_(self.base[:n])
                if self._rounds:
                    row.copy_(row.to(op.compute))

    def _is_adapted(self, source: TensorSource, base: TensorSource) -> TypeGuard[LoraTensor]:
        """Whether the adapter's product is the task vector itself, which needs no reading and no rounding."""
        return isinstance(source, LoraTensor) and source.base.identity == base.identity and not self._rounds

    def _read_rounded(self, source: TensorSource, start: int, row: torch.Tensor) -> None:
        source.read(start, start + row.numel(), row)
        if self._rounds and source.dtype != self._op.compute:
            row.copy_(row.to(self._op.compute))
