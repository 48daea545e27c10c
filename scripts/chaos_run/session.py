"""One session of the search that is disturbed: a driver in a process of its own.

python -m chaos_run.session CONFIG RUN_DIR ADDRESS [STORAGE]
"""

import sys

from heterosis.evolve import search
from heterosis.evolve.workers.cluster import RayPool
from heterosis.evolve.workers.pool import Setup

from .formula import FormulaWorker


def main(config: str, run_dir: str, address: str, storage: str | None = None) -> None:
    def make_pool(setup: Setup, workers: int) -> RayPool:
        return RayPool(setup, workers, address=address, worker=FormulaWorker)

    summary = search(config, run_dir, ray_address=address, storage=storage, make_pool=make_pool)
    if summary["status"] != "finished":
        raise SystemExit(f"stopped: {summary['stopped']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
