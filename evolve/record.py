"""The record of a run: who was asked what, and what came of it. Only the driver writes it.

Four places, in the order of writing:

* ``asks.jsonl``: every candidate before it is handed to a worker, with its recipe and the number of results
  known at that moment;
* ``attempts.jsonl``: attempts to score a candidate that came to nothing through no failure of its merge;
* ``scores.jsonl``: the scores of every document of a candidate, chunk by chunk, before they are used, and its
  answers to held-out documents;
* an Optuna study: one finished trial for each result, in the order of their coming, written in one
  transaction. A trial exists there completely or not at all, so a crash leaves nothing half-told.

Repeating the asks and tells in their recorded order rebuilds an optimizer.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from heterosis.evaluate.scores import Scores
from heterosis.evolve.dimensions import Dimension, Value
from heterosis.evolve.faults import disk_faults
from heterosis.evolve.folder import ASKS
from heterosis.evolve.storage import StudyWriter

SCORES = "scores.jsonl"
ATTEMPTS = "attempts.jsonl"
STUDY = "study.db"


@dataclass(frozen=True)
class Ask:
    """A candidate that was handed out.

    Attributes:
        number: From 0, in the order of asking.
        kind: ``parent``, ``baseline``, ``search`` or ``mean`` (the optimizer's centre).
        name: What people call it.
        recipe: Its recipe, as YAML.
        values: Its parameters in natural units; empty for parents and baselines.
        after: How many results were known when it was asked.
        stage: Which of the search's stages it belongs to, from 0.
        incumbent: The ask that it races against, the best one whose result was known then.
    """

    number: int
    kind: str
    name: str
    recipe: str
    values: Mapping[str, Value]
    after: int
    stage: int = 0
    incumbent: int | None = None


@dataclass(frozen=True)
class Trial:
    """A candidate's result.

    Attributes:
        number: Place in the order of results, which is its number in the Optuna study.
        ask: What was asked.
        score: The objective on the search documents, larger is better; None if it failed.
        cause: Why it failed.
        seconds: Where its time went.
        losses: What an optimizer minimises; none if it failed.
        pruned: Whether it was stopped early, and the score is an estimate.
        documents: Search documents that it has met.
    """

    number: int
    ask: Ask
    score: float | None
    cause: str | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    pruned: bool = False
    documents: int = 0

    @property
    def complete(self) -> bool:
        """Whether it has met all search documents."""
        return self.score is not None and not self.pruned


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


class Record:
    """The record of one run.

    Args:
        folder: The run folder.
        storage: Optuna storage URL.
        study_name: The study's name there.
        dimensions: Of all stages of the search.
        objectives: How many losses a result has.

    Attributes:
        guard: Called before anything is written; raises if this is not the one driver any more.

    Raises:
        InputError: If the storage cannot be used.
    """

    def __init__(
        self, folder: Path, storage: str, study_name: str, dimensions: Iterable[Dimension], objectives: int = 1
    ) -> None:
        self._distributions: dict[str, BaseDistribution] = {}
        self.add_dimensions(dimensions)
        self.study = StudyWriter(folder, storage, study_name, objectives)
        self._folder = folder
        self.guard: Callable[[], None] = lambda: None
        self.asks = {ask.number: ask for ask in read_asks(folder)}
        self._scores = read_scores(folder)
        self.attempts = [Attempt(**line) for line in _read_lines(folder / ATTEMPTS)]
        self.trials = [self._trial(t) for t in self.study.trials]
        self._by_recipe = {t.ask.recipe: t for t in self.trials if t.score is not None}

    def _trial(self, frozen: FrozenTrial) -> Trial:
        known = frozen.user_attrs
        result = known["result"]
        return Trial(
            frozen.number,
            self.asks[known["ask"]],
            result["score"],
            known.get("cause"),
            result["seconds"],
            tuple(result["losses"]),
            frozen.state is TrialState.PRUNED,
            result["documents"],
        )

    def add_dimensions(self, dimensions: Iterable[Dimension]) -> None:
        """Make more dimensions known, of a stage whose space was not known before."""
        self._distributions |= {d.name: _distribution(d) for d in dimensions}

    @property
    def open_asks(self) -> list[Ask]:
        """Candidates without a result, in the order of asking."""
        told = {t.ask.number for t in self.trials}
        return [ask for number, ask in sorted(self.asks.items()) if number not in told]

    @property
    def baselines(self) -> dict[str, Ask]:
        """The last ask of each parent and baseline, by name; one that failed is asked again in a later session."""
        asks = (ask for _, ask in sorted(self.asks.items()))
        return {ask.name: ask for ask in asks if ask.kind in ("parent", "baseline")}

    @property
    def parents(self) -> list[Ask]:
        """The last ask of each parent."""
        return [ask for ask in self.baselines.values() if ask.kind == "parent"]

    def ask(
        self,
        kind: str,
        name: str,
        recipe: str,
        values: Mapping[str, Value],
        *,
        stage: int = 0,
        incumbent: int | None = None,
    ) -> Ask:
        """Record a candidate before it is handed out."""
        ask = Ask(len(self.asks), kind, name, recipe, dict(values), len(self.trials), stage, incumbent)
        self._append(ASKS, asdict(ask))
        self.asks[ask.number] = ask
        return ask

    def add_attempt(self, ask: Ask, part: str, cause: str, *, blamed: bool) -> None:
        """Keep that an attempt to score a candidate came to nothing."""
        attempt = Attempt(ask.number, part, self.met(ask, part), cause, blamed)
        self._append(ATTEMPTS, asdict(attempt))
        self.attempts.append(attempt)

    def result_of(self, recipe: str) -> Trial | None:
        """The last result of a recipe, if it was asked and scored before."""
        return self._by_recipe.get(recipe)

    def copy_scores(self, source: Ask, ask: Ask, part: str) -> None:
        """Take over the scores that the same recipe was given when it was asked before."""
        assert source.recipe == ask.recipe
        scores = self.scores(source, part)
        assert scores is not None
        self._add_scores(ask, part, scores, same_as=source.number)

    def add_scores(self, ask: Ask, part: str, scores: Scores, checksum: str | None = None) -> None:
        """Keep the scores of some of a candidate's documents of one part of the split.

        Args:
            ask: The candidate.
            part: Of the split.
            scores: Of documents that were not scored before.
            checksum: Of the live model that they were scored with.

        Raises:
            ValueError: If a document is scored already.
        """
        self._add_scores(ask, part, scores, **({"checksum": checksum} if checksum else {}))

    def _add_scores(self, ask: Ask, part: str, scores: Scores, **more: object) -> None:
        _keep(self._scores, (ask.number, part), scores)
        line = {"ask": ask.number, "part": part, "scores": json.loads(scores.to_json())}
        self._append(SCORES, line | more)

    def scores(self, ask: Ask, part: str) -> Scores | None:
        """What :meth:`add_scores` kept, of all chunks together."""
        return self._scores.get((ask.number, part))

    def met(self, ask: Ask, part: str) -> int:
        """How many documents of a part a candidate has met."""
        scores = self._scores.get((ask.number, part))
        return sum(map(len, scores.documents.values())) if scores else 0

    def documents_scored(self) -> int:
        """Documents of all parts, counted once for every recipe."""
        met: dict[tuple[str, str], int] = {}
        for number, part in self._scores:
            ask = self.asks[number]
            met[ask.recipe, part] = max(met.get((ask.recipe, part), 0), self.met(ask, part))
        return sum(met.values())

    def tell(
        self,
        ask: Ask,
        score: float | None,
        losses: tuple[float, ...] = (),
        *,
        cause: str | None = None,
        pruned: bool = False,
        documents: int = 0,
        seconds: Mapping[str, float] | None = None,
    ) -> Trial:
        """Record a candidate's result: score and losses, or the cause of its failure."""
        assert (score is None) == (cause is not None) == (not losses)
        times = {k: round(v, 4) for k, v in (seconds or {}).items()}
        # Each attribute costs a query.
        result = {"score": score, "losses": losses, "seconds": times, "documents": documents}
        attributes: dict[str, Any] = {"ask": ask.number, "name": ask.name, "result": result}
        if cause is not None:
            attributes["cause"] = cause
        trial = create_trial(
            state=TrialState.FAIL if score is None else TrialState.PRUNED if pruned else TrialState.COMPLETE,
            values=[-loss for loss in losses] or None,
            params=dict(ask.values),
            distributions={name: self._distributions[name] for name in ask.values},
            user_attrs=attributes,
        )
        trial.datetime_start = datetime.now() - timedelta(seconds=sum(times.values()))
        self.guard()
        self.study.add(trial)
        told = Trial(len(self.trials), ask, score, cause, times, losses, pruned, documents)
        self.trials.append(told)
        if score is not None:
            self._by_recipe[ask.recipe] = told
        return told

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        self.guard()
        with disk_faults(self._folder):
            _append(self._folder / name, line)


def _distribution(dimension: Dimension) -> BaseDistribution:
    """A dimension as Optuna knows it."""
    if dimension.choices:
        return CategoricalDistribution(dimension.choices)
    if dimension.integer:
        return IntDistribution(int(dimension.low), int(dimension.high))
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def study_url(folder: Path) -> str:
    """The Optuna storage URL of a run folder's own study."""
    return f"sqlite:///{folder.resolve() / STUDY}"


def read_asks(folder: Path) -> Iterator[Ask]:
    """The candidates of a run folder, in the order of asking."""
    for line in _read_lines(folder / ASKS):
        yield Ask(**line)


def read_scores(folder: Path) -> dict[tuple[int, str], Scores]:
    """The scores of a run folder, all chunks together, by the ask's number and the part of the split."""
    found: dict[tuple[int, str], Scores] = {}
    for line in _read_lines(folder / SCORES):
        _keep(found, (line["ask"], line["part"]), Scores.from_json(json.dumps(line["scores"])))
    return found


def _keep(found: dict[tuple[int, str], Scores], key: tuple[int, str], scores: Scores) -> None:
    known = found.get(key)
    found[key] = known.merged(scores) if known else scores


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """Add a line, durably. What a crash left of the line before it is cut off."""
    data = (json.dumps(line, ensure_ascii=False) + "\n").encode()
    with path.open("ab+") as file:
        file.seek(0, os.SEEK_END)
        if file.tell() and not _ends_whole(file):
            file.truncate(_whole_lines(path))
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _ends_whole(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    return path.read_bytes().rfind(b"\n") + 1


def _read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file; a torn last one was never acted upon."""
    if path.exists():
        content = path.read_bytes()
        for line in content[: content.rfind(b"\n") + 1].splitlines():
            yield json.loads(line)
