"""A candidate that was asked for, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from heterosis.evolve.space.dimensions import Value

Kind: TypeAlias = Literal["parent", "baseline", "search", "mean"]


@dataclass(frozen=True)
class Ask:
    """A candidate that was handed out.

    Attributes:
        number: From 0, in the order of asking.
        kind: ``parent``; ``baseline``, any other one; ``search``, a point that an optimizer proposed; ``mean``,
            the one that it recommends.
        name: What people call it.
        recipe: Its recipe, as YAML.
        values: Its parameters in natural units; empty for baselines.
        after: How many results were known when it was asked.
        stage: Which of the search's stages it belongs to, from 0.
        rivals: Asks of the best whose results were known then, best first: it races against the first, and
            documents on which their scores differ tell most. None where it meets all documents.
        promoted: Whether it was asked before, and was one of the best of those that have met a sample of the
            search documents: now it may meet all.
    """

    number: int
    kind: Kind
    name: str
    recipe: str
    values: Mapping[str, Value]
    after: int
    stage: int = 0
    rivals: tuple[int, ...] = ()
    promoted: bool = False

    @property
    def incumbent(self) -> int | None:
        """The ask that it races against."""
        return self.rivals[0] if self.rivals else None

    @property
    def is_candidate(self) -> bool:
        """Whether a search proposed it; baselines are there before."""
        return self.kind in ("search", "mean")

    @property
    def role(self) -> str:
        """``parent``, ``baseline`` for any other one, or ``candidate``."""
        return "candidate" if self.is_candidate else self.kind


# Where a candidate's time goes: putting it into the live model, its forward passes, all else.
TIMES = ("merge", "forward", "other")


@dataclass(frozen=True)
class Trial:
    """A candidate's result.

    Attributes:
        number: Place in the order of results, which is its number in the Optuna study.
        ask: What was asked.
        score: The objective on the search documents, larger is better; None if it failed.
        cause: Why it failed.
        seconds: Where its time went, by `TIMES`.
        losses: What an optimizer minimises; none if it failed.
        pruned: Whether it was stopped early, and the score is an estimate.
        documents: Search documents that it has met.
        share: How many documents of a random sample would tell as much, as a share of all.
        terms: What a single loss is the sum of, if it is one.
        at: When it came, in seconds since the epoch.
    """

    number: int
    ask: Ask
    score: float | None
    cause: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    pruned: bool = False
    documents: int = 0
    share: float = 1.0
    terms: tuple[float, ...] = ()
    at: float = 0.0

    @property
    def took(self) -> float:
        """Seconds of a worker."""
        return sum(self.seconds.values())

    @property
    def complete(self) -> bool:
        """Whether it has met all search documents."""
        return self.score is not None and not self.pruned

    @property
    def rank(self) -> tuple[float, int]:
        """Sorts those with a score, the best first; of equals, the one asked first."""
        assert self.score is not None
        return -self.score, self.ask.number


@dataclass(frozen=True)
class Attempt:
    """An attempt to score a candidate that came to nothing.

    Attributes:
        ask: The candidate's number.
        part: Of the split.
        met: How many documents of that part it had met before.
        cause: What happened.
        blamed: Whether the candidate may have been the cause.
    """

    ask: int
    part: str
    met: int
    cause: str
    blamed: bool
