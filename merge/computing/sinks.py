"""Where merged tensors go: the parameters of a live model, or the shards of a folder (``writer.py``)."""

from collections.abc import Mapping
from typing import Protocol

import torch

from heterosis.merge.plan import TensorOp


class Sink(Protocol):
    """Takes the blocks of a plan's tensors. Calls for different tensors come from different threads."""

    def wants(self, op: TensorOp) -> bool:
        """Whether the tensor has to be computed; False if the sink holds it already."""
        ...

    def place(self, op: TensorOp) -> torch.Tensor | None:
        """The tensor, flat, contiguous and on the CPU, where elements may be put at once; None to `write` them."""
        ...

    def write(self, op: TensorOp, start: int, block: torch.Tensor) -> None:
        """Take flat elements from ``start`` on, in the output dtype. The block is reused after the call.

        The blocks of a tensor come one after the other, without gaps.
        """
        ...

    def done(self, op: TensorOp) -> None:
        """Called once all of a tensor's blocks were written."""
        ...


class ModelSink:
    """Overwrites tensors in place, such as a live model's parameters.

    It remembers how each tensor came about, and skips those that the next plan would make the same.

    Args:
        parameters: Destinations by the plan's names, contiguous; of a wider dtype or on another device they
            hold the same values.
    """

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        self._flat = {name: tensor.detach().view(-1) for name, tensor in parameters.items()}
        self._held: dict[str, tuple[object, ...]] = {}

    def wants(self, op: TensorOp) -> bool:
        if self._held.get(op.name) == op.fingerprint:
            return False
        self._held.pop(op.name, None)
        return True

    def place(self, op: TensorOp) -> torch.Tensor | None:
        tensor = self._flat[op.name]
        return tensor if tensor.device.type == "cpu" else None

    def write(self, op: TensorOp, start: int, block: torch.Tensor) -> None:
        self._flat[op.name][start : start + block.numel()].copy_(block)

    def done(self, op: TensorOp) -> None:
        self._held[op.name] = op.fingerprint
