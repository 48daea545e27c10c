"""What a worker's memory does: over hundreds of candidates, and when a second worker comes to its machine."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from bench.checkpoints import Setting, make_models
from search_bench.coverage import formula_config, formula_place
from search_bench.skills import save_tokenizer

from heterosis.evolve.preflight.preflight import preflight
from heterosis.evolve.workers.pool import Evaluation, Setup
from heterosis.evolve.workers.worker import Worker
from heterosis.merge import Reductions
from heterosis.merge.statistics.reductions import node_folder

SMALL, LARGE = "10MB", "270MB"  # of a model's file
EXPERTS = 3
DOCUMENTS = {"search": 8, "selection": 4, "holdout": 4}  # of a task
WARM_UP = 20  # candidates: caches fill, and the allocator finds its size
LOOKS = 20  # candidates between two looks
MB = 1e6


def work(setup: Setup, recipes: Sequence[str], looks: int, pipe: Connection) -> None:
    """A worker's process: scores recipes, and has itself looked at after so many."""
    import torch

    torch.set_num_threads(1)
    worker = Worker(setup)
    documents = {task: sorted(ids) for task, ids in setup.split.search.items()}
    for number, recipe in enumerate(recipes, 1):
        outcome = worker.score(recipe, documents)
        assert isinstance(outcome, Evaluation), outcome
        if number % looks == 0:
            pipe.send(number)
            pipe.recv()
    pipe.send(None)


class Watched:
    """A worker in a process of its own, stopped whenever its memory can be looked at."""

    def __init__(self, setup: Setup, recipes: Sequence[str], looks: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(setup, recipes, looks, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def reach(self) -> int | None:
        """How many candidates are done at its next stop; None at the end."""
        number: int | None = self._pipe.recv()
        return number

    def go_on(self) -> None:
        self._pipe.send(None)

    @property
    def memory(self) -> dict[str, int]:
        """Bytes: resident, its own alone, these with its share of what it shares, and those of no file.

        Pages of files are its own alone as long as no other process happens to have them.
        """
        found = psutil.Process(self._process.pid).memory_full_info()
        lines = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text().splitlines()
        anonymous = next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
        return {"rss": found.rss, "uss": found.uss, "pss": found.pss, "anonymous": 1024 * anonymous}

    def end(self) -> None:
        self._process.kill()
        self._process.join()


def end(setup: Setup, workers: Sequence[Watched]) -> None:
    """End workers, and remove what they shared."""
    for worker in workers:
        worker.end()
    Reductions(node_folder(setup.run)).close()


def prepare(size: str, folder: Path, models: Path, count: int) -> tuple[Setup, list[str], dict[str, float]]:
    """What workers need for a search of merges of random models, and so many candidates of it."""
    base, *experts = make_models(models, Setting("ties", size, parents=EXPERTS))
    for model in (base, *experts):
        save_tokenizer(model)
    changes = {"models": list(map(str, experts)), "base_model": str(base), "merge_method": "ties"}
    home = formula_place(folder)
    config = formula_config(home, 0, changes | {"documents": {**DOCUMENTS, "seed": 0}, "trials": 100})
    checked = preflight(config)
    rng = np.random.default_rng(0)
    recipes = [
        checked.space.decode(checked.space.values(rng.random(len(checked.space.dimensions)))) for _ in range(count)
    ]
    files = sum(file.stat().st_size for model in (base, *experts) for file in model.glob("*.safetensors"))
    sizes = {"parents_mb": files / MB, "live_mb": 4 * checked.plan.parameters / MB}
    setup = Setup(config, checked.split, threads=1, run=f"bench_driver {os.getpid()}")
    return setup, [recipe.to_yaml() for recipe in recipes], sizes


def growth(folder: Path, models: Path, count: int) -> dict[str, Any]:
    """How much more memory a worker has for itself after so many candidates than after the first ones."""
    setup, recipes, _ = prepare(SMALL, folder, models, count)
    worker, own = Watched(setup, recipes, LOOKS), dict[int, int]()
    try:
        while number := worker.reach():
            own[number] = worker.memory["anonymous"]
            worker.go_on()
    finally:
        end(setup, [worker])
    first, last = own[WARM_UP], own[max(own)]
    return {
        "what": "growth",
        "model": SMALL,
        "candidates": count,
        "warm_up": WARM_UP,
        "first_mb": round(first / MB, 2),
        "last_mb": round(last / MB, 2),
        "growth_percent": round(100 * (last - first) / first, 3),
        "own_mb": {str(number): round(found / MB, 2) for number, found in own.items()},
    }


def sharing(size: str, folder: Path, models: Path) -> dict[str, Any]:
    """What a second worker adds to the memory of a machine that has one."""
    setup, recipes, sizes = prepare(size, folder, models, 3)
    workers = [Watched(setup, recipes, len(recipes))]
    try:
        workers[0].reach()
        alone = workers[0].memory
        workers.append(Watched(setup, recipes, len(recipes)))
        workers[1].reach()
        both = [worker.memory for worker in workers]
    finally:
        end(setup, workers)
    added = sum(found["pss"] for found in both) - alone["pss"]
    return {
        "what": "sharing",
        "model": size,
        **{key: round(value, 1) for key, value in sizes.items()},
        "alone_mb": {key: round(value / MB, 1) for key, value in alone.items()},
        "second_mb": {key: round(value / MB, 1) for key, value in both[1].items()},
        "added_mb": round(added / MB, 1),
    }


def memory_tables(lines: Sequence[dict[str, Any]]) -> Iterator[str]:
    for line in (line for line in lines if line["what"] == "growth"):
        yield (
            f"Memory of no file after {line['warm_up']} candidates {line['first_mb']:.1f} MB, after "
            f"{line['candidates']} {line['last_mb']:.1f} MB: {line['growth_percent']:+.2f} %."
        )
        yield ""
    yield "| a model's file | all parents | live model | a worker alone, resident | its own | a second adds |"
    yield "| --- " + "| ---: " * 5 + "|"
    for line in (line for line in lines if line["what"] == "sharing"):
        alone = line["alone_mb"]
        numbers = (line["parents_mb"], line["live_mb"], alone["rss"], alone["uss"], line["added_mb"])
        yield f"| {line['model']} | " + " | ".join(f"{number:,.0f} MB" for number in numbers) + " |"
