"""``summary.json``: what came of a run, for programs that read it; `search` returns the same."""

from pathlib import Path
from typing import Any, Literal, TypeAlias, TypedDict, cast

from heterosis.errors import InputError
from heterosis.evaluate.splits import Part
from heterosis.evolve.record.files import AGAIN, ASKS, SUMMARY, read_mapping

Status: TypeAlias = Literal["running", "stopped", "finished"]


class TaskOfObjective(TypedDict):
    """How a task counts."""

    metric: str
    weight: float
    lower_is_better: bool


class Maximised(TypedDict):
    """What the search maximises, and the largest loss of each task that it accepts."""

    kind: str
    constraints: dict[str, float]


class TrialCounts(TypedDict):
    """How many trials met all search documents, were stopped early, or failed; and how many there may be."""

    complete: int
    pruned: int
    failed: int
    budget: int


class PartScores(TypedDict):
    """The objective of one model on each part of the documents; None where it was not scored.

    ``estimated`` names the parts on which a race ended before it had met all documents; ``by_task`` has the mean
    of each task's metric on each part, of the documents that it met.
    """

    search: float | None
    selection: float | None
    holdout: float | None
    estimated: list[Part]
    by_task: dict[str, dict[str, float]]


class Champion(PartScores):
    """The best model: the trial that it is, and what that is called."""

    trial: int
    name: str


class Gain(TypedDict):
    """By how much the champion is better on held-out documents, with the ends of its 95 % interval."""

    holdout: float
    ci95: list[float]


class GainOverParent(Gain):
    """The same, and over which parent."""

    parent: str


class Finalist(TypedDict):
    """A trial of the shortlist, and its objective on the selection documents."""

    trial: int
    selection: float


class OfFront(TypedDict):
    """A trial of the Pareto front: the file with its recipe, and its gain in each task on selection documents."""

    trial: int
    recipe: str
    gains: dict[str, float]


class DocumentCounts(TypedDict):
    """How many documents each part has, were scored in all, and may be; if held-out ones were used before."""

    search: int
    selection: int
    holdout: int
    scored: int
    holdout_reused: bool
    budget: int | None


class Seconds(TypedDict):
    """How long the run took, the time of its workers, and how long it may take."""

    total: float
    merge: float
    forward: float
    other: float
    budget: float | None


class Summary(TypedDict):
    """What came of a run.

    Parents and other baselines are named as in the config; ``failures`` counts each cause; ``ended_by`` says which
    budget was spent, and ``stopped`` why a run ended before; ``outcome`` says it all in a sentence.
    """

    status: Status
    stopped: str | None
    outcome: str
    objective: dict[str, TaskOfObjective]
    maximised: Maximised
    optimizers: dict[str, dict[str, Any]]
    trials: TrialCounts
    champion: Champion | None
    parents: dict[str, PartScores]
    baselines: dict[str, PartScores]
    gain_over_best_parent: GainOverParent | None
    gain_over_uniform: Gain | None
    gains_by_task: dict[str, float] | None
    violated: list[str]
    finalists: list[Finalist]
    front: list[OfFront]
    documents: DocumentCounts
    failures: dict[str, int]
    ended_by: str | None
    seconds: Seconds
    environment: dict[str, Any]


# What every summary has, however old.
_SECTIONS = {"status", "trials", "champion", "parents", "baselines", "documents", "seconds"}


def read_summary(path: Path) -> Summary:
    """The summary of a run folder.

    Raises:
        InputError: If the folder is not one, or its summary was removed or damaged.
    """
    if (path / SUMMARY).exists():
        summary = read_mapping(path / SUMMARY, remedy := f"remove it, and {AGAIN}")
        if not summary.keys() >= _SECTIONS:
            raise InputError(f"{path / SUMMARY}: is damaged; {remedy}")
        return cast("Summary", summary)
    if (path / ASKS).exists():
        raise InputError(f"{path / SUMMARY}: is missing; {AGAIN}")
    raise InputError(f"{path}: not a run folder (no {SUMMARY}); give the --run-dir of a search")
