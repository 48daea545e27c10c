"""What a recipe says of the search that found it, under ``heterosis: search:``, and how a model card tells it.

A search writes it; nothing is computed from it. It stands in recipes that come from anywhere, so whatever does not
fit is passed over in silence, and texts are shown as texts.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

_OBJECTIVES = {
    "weighted": "the weighted sum of the tasks' scores",
    "gain": "the mean gain over the parents",
    "worst": "the smallest gain over the parents",
    "pareto": "the gain in every task",
}


class HeldOut(BaseModel):
    """Scores on documents that the search and the choice of the champion never saw.

    Attributes:
        merge: The champion's.
        others: Of the parents and baselines.
        reused: Whether an earlier champion was compared on them.
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    merge: float
    others: dict[str, float]
    reused: bool = False


class Discovery(BaseModel):
    """How a recipe was found.

    Attributes:
        trial: The candidate's number.
        numbers: How many numbers the search varied; 0 for a fixed recipe.
        candidates: How many were scored.
        stopped_early: How many of these were not scored on all documents.
        optimizers: Who proposed them.
        objective: What was maximised.
        tasks: The metric of each task.
        documents: How many there were in each part: search, selection, holdout.
        held_out: Of the champion, once it was validated.
        outcome: Of the search, in a sentence; only with the champion.
        versions: Of the libraries that scores depend on.
        config: SHA-256 of the search's config.
    """

    model_config = ConfigDict(frozen=True)

    trial: int
    numbers: int = 0
    candidates: int
    stopped_early: int = 0
    optimizers: tuple[str, ...] = ()
    objective: str
    tasks: dict[str, str]
    documents: dict[str, int]
    held_out: HeldOut | None = None
    outcome: str = ""
    versions: dict[str, str] = {}
    config: str = ""

    def to_note(self) -> dict[str, Any]:
        """What stands in the recipe."""
        return self.model_dump(mode="json", exclude_defaults=True)


def found_by(heterosis: Mapping[str, object]) -> Iterator[str]:
    """The lines of a model card on the search that found a recipe; none without one.

    Args:
        heterosis: What stands under that key of the recipe.
    """
    try:
        found = Discovery.model_validate(heterosis.get("search"))
    except ValidationError:
        return
    tasks = " and ".join(f"{_code(task)} ({_code(metric)})" for task, metric in found.tasks.items())
    count = {part: found.documents.get(part, 0) for part in ("search", "selection", "holdout")}
    early = f", {found.stopped_early} of them on some of the documents only" if found.stopped_early else ""
    proposed = f", proposed by {', '.join(map(_code, found.optimizers))}" if found.optimizers else ""
    yield from ["## How it was found", ""]
    yield (
        f"A search by heterosis scored {found.candidates} candidates{early}. This is number {found.trial}: "
        + (f"a point of a space of {found.numbers} numbers{proposed}." if found.numbers else "a fixed recipe.")
    )
    yield ""
    yield f"- Searched on {count['search']} documents of {tasks}."
    yield f"- Maximised: {_OBJECTIVES.get(found.objective) or _text(found.objective)}."
    if found.held_out is None:
        yield "- Not validated: it was not compared on held-out documents. Its score in the search flatters it."
        yield ""
    else:
        yield f"- Chosen among the best candidates on {count['selection']} other documents."
        kept = "that were used before" if found.held_out.reused else "that played no part before"
        yield f"- Validated on {count['holdout']} documents {kept}:"
        yield from ["", "| Model | Held out |", "| --- | --- |"]
        yield f"| **This merge** | {found.held_out.merge:z.4f} |"
        yield from (f"| {_text(name)} | {score:z.4f} |" for name, score in found.held_out.others.items())
        yield from ["", _text(found.outcome), ""]
    if found.versions:
        versions = ", ".join(f"{_text(name)} {_text(version)}" for name, version in found.versions.items())
        config = f"; its config has the SHA-256 {_code(found.config)}" if found.config else ""
        yield from [f"The search ran with {versions}{config}.", ""]


def _text(text: str) -> str:
    """In one line, without what Markdown and HTML would read."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"
