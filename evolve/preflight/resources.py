"""What a search takes: workers and threads, memory, disk, time. Estimates, and what can be refused by them."""

import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from heterosis.errors import InputError
from heterosis.evaluate.room import memory as memory_of_machine
from heterosis.evaluate.room import place_for
from heterosis.evaluate.splits import Split
from heterosis.evolve.baselines import Baseline
from heterosis.evolve.config import RESIDENT, EvolveConfig
from heterosis.evolve.judging.finals import finals_documents
from heterosis.evolve.machine import this_machine
from heterosis.evolve.preflight.preflight import Preflight
from heterosis.evolve.preflight.rehearsal import Rehearsal
from heterosis.evolve.workers.pool import Setup
from heterosis.evolve.workers.worker import SILENCE, known_batch_size
from heterosis.merge.files import nearest_existing
from heterosis.merge.machine import available_cores
from heterosis.words import size

LIVE = 4  # bytes of a parameter in the live model, which computes in float32
# Measured with the quickstart: a worker beside its model, its requests and a batch; the driver with Ray.
WORKER, DRIVER = 600 * 2**20, 900 * 2**20
# What the run folder holds of a document's score, and of a trial beside its recipe and for each of its numbers.
DOCUMENT, TRIAL, NUMBER = 100, 8000, 300


@dataclass(frozen=True)
class Resources:
    """What a search takes, and what there is.

    Attributes:
        workers: Processes that score.
        threads: Of each.
        memory: Bytes for all processes; None where models live elsewhere.
        memory_least: The live models' alone; 0 for those of another backend.
        memory_free: Bytes.
        memory_total: Bytes.
        disk: Bytes of the run folder.
        disk_merged: Bytes of the champion, once it is merged.
        disk_free: Bytes.
        place: Where that is.
        documents: That a candidate meets, at most.
        finals: What the finals take, in candidates.
        candidate: Seconds for a candidate that meets them all; None without a rehearsal.
        seconds: For the whole search, at most; None without a rehearsal.
    """

    workers: int
    threads: int
    memory: int | None
    memory_least: int
    memory_free: int
    memory_total: int
    disk: int
    disk_merged: int
    disk_free: int
    place: str
    documents: int
    finals: float
    candidate: float | None
    seconds: float | None

    @property
    def faults(self) -> list[str]:
        """Why the search would fail."""
        found = []
        local = self.memory is not None
        if local and self.memory_least > self.memory_total:
            fitting = self.memory_total * self.workers // self.memory_least
            remedy = f"write workers: {fitting}" if fitting else "take smaller models or a larger machine"
            found.append(
                f"workers: the live models of {self.workers} need {size(self.memory_least)} of memory in float32, "
                f"but this machine has {size(self.memory_total)}; {remedy}"
            )
        if self.disk > self.disk_free:
            found.append(
                f"{self.place}: the run folder will take about {size(self.disk)}, but {size(self.disk_free)} are "
                "free; choose another place"
            )
        return found

    @property
    def warnings(self) -> list[str]:
        """What may go wrong."""
        found = []
        if self.memory is not None and self.memory > self.memory_free and not self.faults:
            fewer = "close what else is running" + (", or write fewer workers" if self.workers > 1 else "")
            found.append(
                f"memory: about {size(self.memory)} are needed, and {size(self.memory_free)} are free; {fewer}"
            )
        if self.disk < self.disk_free < self.disk_merged:
            found.append(
                f"disk: the champion takes {size(self.disk_merged)} once it is merged, and {size(self.disk_free)} "
                f"are free in {self.place}; merge it elsewhere"
            )
        return found

    def check(self) -> None:
        """Raise what would fail later.

        Raises:
            InputError: If memory or disk cannot do.
        """
        if faults := self.faults:
            raise InputError(*faults)


def workers_and_threads(config: EvolveConfig) -> tuple[int, int]:
    """How many workers there are, and how many threads each of them has."""
    cores = available_cores()
    each = config.cpus_per_worker
    workers = config.workers or max(1, int(cores / each) if each else cores // 4)
    return workers, max(1, int(each) if each else cores // workers)


def worker_setup(
    checked: Preflight,
    baselines: Iterable[Baseline],
    split: Split,
    device: str,
    run_dir: Path,
    batch_size: int | None = None,
) -> Setup:
    """What the workers of a run need to know, the batch size being one that was probed, or None."""
    config = checked.config
    threads = workers_and_threads(config)[1]
    return Setup(
        config,
        split,
        threads,
        device,
        run=str(run_dir.resolve()),
        cpus=config.cpus_per_worker or float(threads),
        gpus=(config.gpus_per_worker or 1.0) if device.startswith("cuda") else 0.0,
        models={str(ref): c.contents for ref, c in checked.checkpoints.items()},
        written={str(ref): c.written for ref, c in checked.checkpoints.items()},
        machine=this_machine(),
        silence=SILENCE,
        batch_size=batch_size or known_batch_size(config, device),
        methods=checked.own_methods(baselines),
    )


def check_workers(config: EvolveConfig, device: str) -> None:
    """Refuse more workers than this machine has room for, where their size was asked for.

    Raises:
        InputError: If they do not fit, or have processors that they would not use.
    """
    if config.gpus_per_worker and not device.startswith("cuda"):
        raise InputError(
            f"gpus_per_worker: the models live on a GPU only with --device cuda, but got --device {device}"
        )
    workers, _ = workers_and_threads(config)
    cores, each = available_cores(), config.cpus_per_worker
    if each and workers * each > cores:
        fitting = int(cores / each)
        remedy = f"write workers: {fitting}" if fitting else "give them fewer"
        raise InputError(
            f"workers: {workers} with {each:g} CPU cores each need {workers * each:g}, but this machine has "
            f"{cores}; {remedy}, or name a cluster with --ray-address"
        )


def merges_to(checked: Preflight) -> Path | None:
    """Where candidates are written on this machine for a backend that loads folders; None for a live model.

    Raises:
        InputError: If there is no room.
    """
    backend, needed = checked.config.backend.name, checked.plan.bytes_written
    if backend == RESIDENT:
        return None
    place = place_for(needed)
    if place is None:
        raise InputError(
            f"backend: {backend} loads candidates of {size(needed)} from a folder, but neither shared memory nor "
            f"{tempfile.gettempdir()} has room; set TMPDIR to a folder on a larger disk, or write resident"
        )
    return place


def resources(
    checked: Preflight, place: Path, *, local: bool = True, rehearsal: Rehearsal | None = None
) -> Resources:
    """What a search takes.

    Args:
        checked: The search.
        place: Where the run folder is, or will be.
        local: Whether its models live in this machine's memory.
        rehearsal: What a candidate took.
    """
    config, plan = checked.config, checked.plan
    workers, threads = workers_and_threads(config)
    documents = checked.split.size("search")
    parents = len(config.genome.models)
    finals = finals_documents(checked.split, parents, checked.most_finalists) / documents
    most = config.trials + finals
    if config.max_documents is not None:
        most = min(most, config.max_documents / documents)
    resident = config.backend.name == RESIDENT
    least = workers * LIVE * plan.parameters if resident else 0  # what another backend makes of a model is its own
    others = 0 if resident else 2 * workers * plan.bytes_written  # the model, and its folder while it is loaded
    free, total = memory_of_machine()
    numbers = max(len(space.dimensions) for space in checked.spaces)
    trial = 2 * len(plan.recipe.to_yaml().encode()) + TRIAL + NUMBER * numbers
    candidate = rehearsal.candidate(documents) if rehearsal else None
    seconds = None
    if rehearsal is not None and candidate is not None:
        seconds = rehearsal.start + most * candidate / workers
        seconds = seconds if config.hours is None else min(seconds, config.hours * 3600)
    return Resources(
        workers=workers,
        threads=threads,
        memory=least + others + workers * (plan.adapter_bytes + WORKER) + DRIVER if local else None,
        memory_least=least,
        memory_free=free,
        memory_total=total,
        disk=round(config.trials * trial + most * documents * DOCUMENT),
        disk_merged=plan.bytes_written,
        disk_free=shutil.disk_usage(nearest_existing(place)).free,
        place=str(place),
        documents=documents,
        finals=finals,
        candidate=candidate,
        seconds=seconds,
    )
