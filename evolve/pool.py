"""What the driver needs of its workers, whatever they are: Ray's actors, or a test's."""

from typing import Protocol, TypeAlias

from heterosis.evolve.worker import DocumentIds, Evaluation, Failure

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
