"""The nodes of a Ray cluster on this machine, and all processes that come of them."""

import ctypes
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from .formula import AT_WORK, FormulaWorker

STORE = 80 * 1024**2  # bytes of a node's object store: the smallest that Ray takes
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of <linux/prctl.h>
GONE_SECONDS = 60.0  # in which processes that are to end have ended


def surround(folder: Path) -> Path:
    """Keep what this process starts together: its files in a folder, orphans among its children.

    Returns:
        The folder for temporary files.
    """
    temporary, at_work = folder / "tmp", folder / "at_work"
    temporary.mkdir()
    at_work.mkdir()
    scripts = str(Path(__file__).resolve().parent.parent)
    os.environ |= {
        "TMPDIR": str(temporary),
        AT_WORK: str(at_work),
        "PYTHONPATH": os.pathsep.join(filter(None, [scripts, os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        # By default Ray takes a quarter of a minute to see that a node is dead.
        "RAY_health_check_period_ms": "500",
        "RAY_health_check_failure_threshold": "4",
    }
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    return temporary


class Nodes:
    """A head node without room for workers, and nodes that can be killed.

    Args:
        count: Of the nodes that can be killed.
        cpus: Of each, as Ray counts them.
    """

    def __init__(self, count: int, cpus: int) -> None:
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._count, self._cpus = count, cpus
        self._alive: list[Any] = []
        self._dead: list[Any] = []
        while self.missing:
            self.add()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def alive(self) -> int:
        return len(self._alive)

    @property
    def missing(self) -> int:
        return self._count - len(self._alive)

    def kill_raylet(self, rng: random.Random) -> None:
        """Kill a node's raylet alone; what depends on it has to see that by itself."""
        node = self._alive.pop(rng.randrange(len(self._alive)))
        node.kill_raylet()
        self._dead.append(node)

    def add(self) -> None:
        """Let a node join; on a busy machine it may not."""
        while self._dead:
            self._cluster.remove_node(self._dead.pop(), allow_graceful=False)
        before = psutil.Process().children()
        try:
            node = self._cluster.add_node(wait=False, num_cpus=self._cpus, object_store_memory=STORE)
        except Exception:  # Ray's own has no name: its raylet did not start within half a minute
            for process in psutil.Process().children():
                if process not in before and process.name() == "raylet":
                    process.kill()
        else:
            self._alive.append(node)

    def shutdown(self) -> None:
        self._cluster.shutdown()


def workers() -> list[psutil.Process]:
    """The workers that there are, those of dead drivers too."""
    return [p for p in descendants() if _title(p).startswith(f"ray::{FormulaWorker.__name__}")]


def descendants() -> list[psutil.Process]:
    """All processes that came of this one and live, but for a database's."""
    return [p for p in psutil.Process().children(recursive=True) if _lives(p) and p.name() != "postgres"]


def lasting(processes: Callable[[], list[psutil.Process]]) -> list[str]:
    """What of some processes does not end, by their command lines."""
    until = time.monotonic() + GONE_SECONDS
    while (found := processes()) and time.monotonic() < until:
        time.sleep(0.2)
    return [f"{p.pid} {_title(p)}"[:120] for p in found]


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""
