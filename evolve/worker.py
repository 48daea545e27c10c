"""What a worker does: build the tasks and one live model once, then score recipe after recipe in it."""

import atexit
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heterosis.evaluate.scores import NonFiniteScore, Scores, TaskSpec
from heterosis.evaluate.splits import Split
from heterosis.evolve.config import EvolveConfig

if TYPE_CHECKING:
    from heterosis.evaluate.candidates import CandidateLoader
    from heterosis.evaluate.harness import TaskSet
    from heterosis.evaluate.resident import ResidentModel

DocumentIds = Mapping[str, list[int]]


@dataclass(frozen=True)
class Setup:
    """What every worker of a run needs to know.

    Attributes:
        config: The run's config.
        split: All documents that will be scored.
        threads: Threads of a worker.
        device: Where its model lives.
        run: Names the run; its workers on one machine share what candidates have in common.
    """

    config: EvolveConfig
    split: Split
    threads: int = 1
    device: str = "cpu"
    run: str = ""


@dataclass(frozen=True)
class Evaluation:
    """A candidate's scores, where the time went, and a checksum read back from the live model."""

    scores: Scores
    seconds: Mapping[str, float]
    checksum: str


@dataclass(frozen=True)
class Failure:
    """Why a candidate has no score.

    Attributes:
        cause: One line.
        retry: Whether another attempt may help.
        blameless: Whether the candidate surely had no part in it.
    """

    cause: str
    retry: bool = False
    blameless: bool = False


def task_set(config: EvolveConfig) -> "TaskSet":
    """The tasks of a config, with their documents."""
    from heterosis.evaluate.harness import TaskSet

    specs = [
        TaskSpec(t.name, weight=t.weight, metric=t.metric, group_by=config.documents.group_by)
        for t in config.tasks
    ]
    return TaskSet(specs, include_path=config.include_path, num_fewshot=config.num_fewshot, seed=config.seed)


class Worker:
    """Scores recipes. Whatever goes wrong with one of them is returned, not raised.

    Args:
        setup: What it needs to know.
        tasks: The config's, if they are loaded already.
    """

    def __init__(self, setup: Setup, tasks: "TaskSet | None" = None) -> None:
        self._setup = setup
        self._tasks = tasks
        self._built = False  # the requests, for a chat template
        self._chat_template: str | dict[str, str] | None = None
        self._loader: CandidateLoader | None = None
        self._loaded: tuple[str, ResidentModel] | None = None  # a recipe, and the live model with its tensors

    def score(self, recipe: str, documents: DocumentIds) -> Evaluation | Failure:
        """Merge a recipe into the live model and score it on documents."""
        from heterosis.errors import InputError
        from heterosis.merge import MergeError

        try:
            return self._score(recipe, documents)
        except (MergeError, NonFiniteScore) as error:
            return Failure(str(error))
        except InputError as error:
            return Failure(error.faults[0])
        except MemoryError as error:
            return Failure(f"out of memory: {error}", retry=True)
        except (Exception, SystemExit) as error:
            out_of_memory = type(error).__name__ == "OutOfMemoryError"
            return Failure(f"{type(error).__name__}: {error}".splitlines()[0], retry=out_of_memory)

    def _score(self, recipe: str, documents: DocumentIds) -> Evaluation:
        from heterosis.evaluate.candidates import CandidateLoader
        from heterosis.merge import Recipe, Reductions
        from heterosis.merge.reductions import node_folder

        config = self._setup.config
        if self._loader is None:
            reductions = Reductions(node_folder(self._setup.run) if self._setup.run else None)
            atexit.register(reductions.close)
            self._loader = CandidateLoader(self._setup.device, self._setup.threads, reductions)
        begun = time.perf_counter()
        if self._loaded is not None and self._loaded[0] == recipe:  # a candidate goes on with more documents
            resident = self._loaded[1]
        else:
            self._loaded = None
            resident = self._loader.load(Recipe.parse(recipe, "candidate"))
            self._loaded = recipe, resident
        merged = time.perf_counter()
        lm = resident.lm(config.batch_size, config.max_length)
        if self._tasks is None:
            self._tasks = task_set(config)
        template = resident.tokenizer.chat_template
        if not self._built or self._chat_template != template:  # parents may come with templates of their own
            self._built, self._chat_template = True, template
            self._tasks.build(
                self._setup.split,
                lm,
                apply_chat_template=config.apply_chat_template,
                fewshot_as_multiturn=config.fewshot_as_multiturn,
            )
        if not resident.logits_finite():
            raise NonFiniteScore("a short prompt", 0, float("nan"))
        scores = self._tasks.score(lm, documents)
        total = time.perf_counter() - begun
        seconds = {"merge": merged - begun, "forward": scores.forward_seconds}
        seconds["other"] = total - sum(seconds.values())
        return Evaluation(scores, seconds, resident.checksum())
