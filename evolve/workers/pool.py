"""What the driver and its workers have to say to each other, whatever these are: Ray's actors, or a test's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from heterosis.evaluate.scores import Scores
from heterosis.evaluate.splits import Split
from heterosis.evolve.config import EvolveConfig
from heterosis.merge.models.checkpoint import Contents

# Some documents of each task.
DocumentIds: TypeAlias = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Setup:
    """What every worker of a run needs to know.

    Attributes:
        config: The run's config.
        split: All documents that will be scored.
        threads: Threads of a worker.
        device: Where its model lives.
        run: Names the run; its workers on one machine share what candidates have in common.
        cpus: Cores that a worker takes of its machine, or a fraction of one.
        gpus: The same of graphics processors.
        models: What each model's files hold, as the driver found them; none are checked without.
        written: When they were written on the driver's machine (see `Checkpoint.written`).
        machine: The driver's.
        silence: Seconds without a sign of life before a worker ends itself; 0 for no end.
        batch_size: Requests in one forward pass, as a probe has found it; None for the config's.
        methods: Modules that workers have to import for merge methods of the user's own, by the method.
    """

    config: EvolveConfig
    split: Split
    threads: int = 1
    device: str = "cpu"
    run: str = ""
    cpus: float = 1.0
    gpus: float = 0.0
    models: Mapping[str, Contents] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    silence: float = 0.0
    batch_size: int | str | None = None
    methods: Mapping[str, str] = field(default_factory=dict)


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
        cause: One line, of characters that can be written.
        retry: Whether another attempt may help.
        blameless: Whether the candidate surely had no part in it.
    """

    cause: str
    retry: bool = False
    blameless: bool = False

    def __post_init__(self) -> None:
        """Replace what is no character, as half of a surrogate pair in a document."""
        object.__setattr__(self, "cause", self.cause.encode("utf-8", "replace").decode("utf-8"))


Outcome: TypeAlias = Evaluation | Failure


class Pool(Protocol):
    """Scores recipes on any number of workers, which may come and go."""

    @property
    def size(self) -> int: ...

    @property
    def free(self) -> int: ...

    def submit(self, key: object, recipe: str, documents: DocumentIds) -> None:
        """Give work to a free worker."""
        ...

    def wait(self, timeout: float) -> list[tuple[object, Outcome]]:
        """Work that was finished, or given up; waits for some as long as ``timeout`` seconds."""
        ...

    def close(self) -> None: ...
