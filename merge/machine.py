"""What this process may use of the machine."""

import os


def available_cores() -> int:
    """Cores that this process may use, which in a container or job can be fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return len(affinity(0)) if affinity else os.cpu_count() or 1
