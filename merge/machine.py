"""What this process may use of the machine."""

import os

from heterosis.errors import InputError


def available_cores() -> int:
    """Cores that this process may use, which in a container or job can be fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def check_device(name: str) -> None:
    """Refuse a device that this machine does not have.

    Raises:
        InputError: If torch does not know it, or finds none.
    """
    import torch  # a second, and not needed for the rest

    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device: unknown: {name!r}; write cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = torch.cuda.device_count()
        raise InputError(
            f"device: torch finds {there} devices of CUDA here, not {name}; write cpu, or see to CUDA"
        )
