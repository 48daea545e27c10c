"""What a worker does: build the tasks and one live model once, then score recipe after recipe in it."""

import atexit
import faulthandler
import fcntl
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch

from heterosis.errors import InputError
from heterosis.evaluate.backends import BackendLoader, BackendModel
from heterosis.evaluate.candidates import CandidateLoader
from heterosis.evaluate.harness import TaskSet
from heterosis.evaluate.resident import ResidentModel
from heterosis.evaluate.scores import NonFiniteScore, TaskSpec
from heterosis.evolve.config import RESIDENT, EvolveConfig
from heterosis.evolve.machine import this_machine
from heterosis.evolve.workers.pool import DocumentIds, Evaluation, Failure, Setup
from heterosis.merge import MergeError, ModelRef, Recipe, Reductions
from heterosis.merge.methods import load_methods
from heterosis.merge.models.checkpoint import Contents
from heterosis.merge.statistics.reductions import node_folder

KEPT_ANSWERS = 500  # held-out documents of each task of which the answers are kept, for the report
AUTO_BATCH_SIZE = 16  # on a CPU, where cores are the limit and not memory
SILENCE = 1800.0  # seconds without a forward pass while a model is scored, after which its worker ends itself

T = TypeVar("T")


def task_set(config: EvolveConfig) -> TaskSet:
    """The tasks of a config, with their documents."""
    specs = [
        TaskSpec(t.name, weight=t.weight, metric=t.metric, group_by=config.documents.group_by)
        for t in config.tasks
    ]
    return TaskSet(specs, include_path=config.include_path, num_fewshot=config.num_fewshot, seed=config.seed)


def known_batch_size(config: EvolveConfig, device: str) -> int | str | None:
    """The batch size that a config means: ``auto`` leaves it to the backend, None must be probed first."""
    if config.batch_size != "auto" or config.backend.name != RESIDENT:
        return config.batch_size
    return None if device.startswith("cuda") else AUTO_BATCH_SIZE


class Worker:
    """Scores recipes. Whatever goes wrong with one of them is returned, not raised.

    Args:
        setup: What it needs to know.
        tasks: The config's, if they are loaded already.
    """

    def __init__(self, setup: Setup, tasks: TaskSet | None = None) -> None:
        self._setup = setup
        self._tasks = tasks
        self._kept = {task: frozenset(own[:KEPT_ANSWERS]) for task, own in setup.split.holdout.items()}
        self._batch_size = setup.batch_size or known_batch_size(setup.config, setup.device)
        self._built = False  # the requests, for a chat template
        self._chat_template: str | dict[str, str] | None = None
        self._loader: CandidateLoader | BackendLoader | None = None
        self._reductions: Reductions | None = None
        self._loaded: tuple[str, ResidentModel | BackendModel] | None = None  # a recipe, and the model of it

    def ping(self) -> None:
        """Answer."""

    def check(self) -> Failure | None:
        """Whether the methods are here, and the tasks and models are those that the driver has.

        Models are read in full, once on each machine; on the driver's own, which has read them there, it is enough
        that nothing was written since.
        """
        split = self._setup.split
        try:
            load_methods(self._setup.methods)
            with suppress(Exception):  # that passes, perhaps, and is told by who needs them
                self._tasks = self._tasks or task_set(self._setup.config)
            if self._tasks is not None and split.fingerprints:
                split.check(self._tasks.fingerprints(), "tasks")
        except InputError as error:
            return Failure(f"{platform.node()}: {error.faults[0]}")
        expected = self._setup.models
        if this_machine() == self._setup.machine:
            return self._changed()
        if not expected:
            return None
        self._open()  # which makes the folder
        marker = node_folder(self._setup.run) / "models"
        try:
            with marker.open("a+", encoding="utf-8") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # one of the machine's workers reads, the others wait
                file.seek(0)
                digest = repr(sorted(expected.items()))
                if file.read() == digest:
                    return None
                fault = self._differing(expected)
                if fault is None:
                    file.truncate(0)
                    file.write(digest)
                return fault
        except InputError as error:
            return Failure(f"{platform.node()}: {error.faults[0]}")
        except OSError:  # no folder to share, or no locks in it
            return self._differing(expected)

    def _changed(self) -> Failure | None:
        """What was written on the driver's machine since it has read it."""
        for name, written in self._setup.written.items():
            with suppress(InputError):  # told by who needs it
                if self._open().open(ModelRef.parse(name)).written != written:
                    return Failure(f"{name} was written again since the search was started; begin it anew")
        return None

    def _differing(self, expected: Mapping[str, Contents]) -> Failure | None:
        """What another machine has of the models."""
        for name, contents in expected.items():
            try:
                found = self._open().open(ModelRef.parse(name)).contents
            except InputError as error:
                return Failure(f"{platform.node()}: {error.faults[0]}")
            for what, here, there in zip(("weights", "config or tokenizer"), found, contents, strict=True):
                if here != there:
                    return Failure(
                        f"{platform.node()}: {name} has other {what} here than where the search was started "
                        f"(SHA-256 {here[:12]}…, not {there[:12]}…); copy it again, or name it by its Hub id"
                    )
        return None

    def score(self, recipe: str, documents: DocumentIds) -> Evaluation | Failure:
        """Merge a recipe into the live model and score it on documents."""
        return self._tried(lambda: self._score(recipe, documents))

    def probe(self, recipe: str) -> int | Failure:
        """Merge a recipe into the live model; the largest batch of the longest request that fits beside it."""
        return self._tried(lambda: self._probe(recipe))

    def shortened(self) -> tuple[int, dict[str, int]]:
        """The longest prompt of the model that was scored last, and how many documents of each task are longer."""
        assert self._loaded is not None
        lm, tasks = self._asked(self._loaded[1], self._batch_size)
        return int(lm.max_length), tasks.shortened(lm)

    def _tried(self, work: Callable[[], T]) -> T | Failure:
        try:
            return work()
        except (MergeError, NonFiniteScore) as error:
            return Failure(str(error))
        except InputError as error:
            return Failure(error.faults[0])
        except MemoryError as error:
            self._forget()
            return Failure(f"out of memory: {error}", retry=True)
        except (Exception, SystemExit) as error:
            out_of_memory = type(error).__name__ == "OutOfMemoryError"
            if out_of_memory:
                self._forget()
            return Failure(f"{type(error).__name__}: {error}".splitlines()[0], retry=out_of_memory)

    def _score(self, recipe: str, documents: DocumentIds) -> Evaluation:
        begun = time.perf_counter()
        candidate = self._load(recipe)
        merged = time.perf_counter()
        lm, tasks = self._asked(candidate, self._batch_size)
        with self._watched(candidate.model):
            if not candidate.logits_finite():
                raise NonFiniteScore("a short prompt", 0, float("nan"))
            scores = tasks.score(lm, documents, self._kept)
        total = time.perf_counter() - begun
        seconds = {"merge": merged - begun, "forward": scores.forward_seconds}
        seconds["other"] = total - sum(seconds.values())
        return Evaluation(scores, seconds, candidate.checksum())

    def _probe(self, recipe: str) -> int:
        load_methods(self._setup.methods)
        candidate = self._load(recipe)
        assert isinstance(candidate, ResidentModel)
        lm, tasks = self._asked(candidate, AUTO_BATCH_SIZE)
        return candidate.largest_batch(tasks.longest(lm))

    def _load(self, recipe: str) -> ResidentModel | BackendModel:
        """A recipe's model, which may still be there: a candidate goes on with more documents."""
        if self._loaded is None or self._loaded[0] != recipe:
            self._loaded = None
            self._loaded = recipe, self._open().load(Recipe.parse(recipe, "candidate"))
        return self._loaded[1]

    def _asked(self, candidate: ResidentModel | BackendModel, batch_size: int | str | None) -> tuple[Any, TaskSet]:
        """A model as lm-eval sees it, and the tasks with their requests in the form of its chat template."""
        config = self._setup.config
        assert batch_size is not None
        lm = candidate.lm(batch_size, config.max_length)
        if self._tasks is None:
            self._tasks = task_set(config)
        template = getattr(candidate.tokenizer, "chat_template", None)
        if not self._built or self._chat_template != template:  # parents may come with templates of their own
            self._built, self._chat_template = True, template
            self._tasks.build(
                self._setup.split,
                lm,
                apply_chat_template=config.apply_chat_template,
                fewshot_as_multiturn=config.fewshot_as_multiturn,
                system_instruction=config.system_instruction,
            )
        return lm, self._tasks

    def _open(self) -> CandidateLoader | BackendLoader:
        """What loads candidates, made once."""
        if self._loader is None:
            if self._reductions is None:
                self._reductions = Reductions(node_folder(self._setup.run) if self._setup.run else None)
                atexit.register(self._reductions.close)
            setup, config = self._setup, self._setup.config
            if config.backend.name == RESIDENT:
                self._loader = CandidateLoader(setup.device, setup.threads, self._reductions)
            else:
                assert self._batch_size is not None
                self._loader = BackendLoader(
                    config.backend.name,
                    config.backend.args,
                    batch_size=self._batch_size,
                    max_length=config.max_length,
                    device=setup.device,
                    threads=setup.threads,
                    reductions=self._reductions,
                )
        return self._loader

    def _forget(self) -> None:
        """Give back the live model's memory, so that another attempt begins with as much as a new worker has."""
        self._loaded = self._loader = None
        torch.cuda.empty_cache()  # does nothing without one

    @contextmanager
    def _watched(self, model: Any) -> Iterator[None]:
        """End this process, with a traceback in its log, if a model makes no forward pass for too long.

        The heartbeat of a worker: its driver sees it die at once, and knows nothing of what it does otherwise. The
        timer is the interpreter's own, and runs also where a library holds its lock. A backend that keeps its
        model to itself, in another process perhaps, is left to the driver's time limit.
        """
        if not self._setup.silence or model is None:
            yield
            return
        last = 0.0

        def beat(*_: object) -> None:
            nonlocal last
            if time.monotonic() - last > min(1.0, self._setup.silence / 10):  # a timer costs a thread
                last = time.monotonic()
                # To the descriptor: not every stderr is a file.
                faulthandler.dump_traceback_later(self._setup.silence, exit=True, file=2)

        beat()
        hook = model.register_forward_pre_hook(beat)
        try:
            yield
        finally:
            hook.remove()
            faulthandler.cancel_dump_traceback_later()
