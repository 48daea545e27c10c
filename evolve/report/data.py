"""Everything that a report shows, gathered from a run folder as plain data. Nothing is scored or opened here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from heterosis.errors import InputError
from heterosis.evaluate.answers import Answer
from heterosis.evaluate.documents import DocumentText
from heterosis.evaluate.scores import Scores
from heterosis.evaluate.splits import PARTS, Split
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.config.genome import UNIFORM
from heterosis.evolve.judging.objective import Judge, Objective
from heterosis.evolve.judging.statistics import Interval, paired_difference
from heterosis.evolve.record.files import BEST
from heterosis.evolve.record.record import read_scores, read_trials
from heterosis.evolve.record.state import RunState
from heterosis.evolve.record.summary_file import Summary
from heterosis.evolve.record.trial import Ask, Trial
from heterosis.evolve.report.documents import Known
from heterosis.evolve.report.importance import Importance, importance
from heterosis.evolve.report.shape import Shape, shapes_of
from heterosis.evolve.results.export import read_best
from heterosis.evolve.results.summary import Conclusion, conclusion_of
from heterosis.evolve.watching.standing import Standing, Watcher
from heterosis.merge.recipe.recipe import ModelRef, Recipe

EXAMPLES = 3  # documents of each task that are shown, won and lost each
_MOST_EXAMPLES = 24


@dataclass(frozen=True)
class Contender:
    """A model that scores are shown of: a baseline, or the best candidate.

    Attributes:
        name: What people call it.
        role: As of `Ask`.
        champion: Whether it is the champion, or the best so far.
        scores: Of its documents, by part of the split.
    """

    name: str
    role: str
    champion: bool
    scores: Mapping[str, Scores]


@dataclass(frozen=True)
class TaskRow:
    """One contender's mean scores on a task, by part of the split, with intervals over its documents."""

    contender: Contender
    parts: Mapping[str, Interval]


@dataclass(frozen=True)
class TaskResult:
    """A task's results.

    Attributes:
        name: Of the task.
        metric: Its key.
        weight: In the objective.
        lower_is_better: Whether it is.
        rows: Of the contenders that were scored on it.
    """

    name: str
    metric: str
    weight: float
    lower_is_better: bool
    rows: tuple[TaskRow, ...]


@dataclass(frozen=True)
class Example:
    """A document that one of two models answers better.

    Attributes:
        document: Its number in the task.
        mine: The champion's score.
        theirs: The best parent's score.
        my_answer: What the champion answered, if that was kept.
        their_answer: What the best parent answered.
    """

    document: int
    mine: float
    theirs: float
    my_answer: Answer | None = None
    their_answer: Answer | None = None


@dataclass(frozen=True)
class Duel:
    """The champion against the best parent on one task, document by document.

    Attributes:
        task: Its name.
        gain: Mean difference, turned so that more is better.
        won: Documents that the champion answers better.
        lost: Documents that the parent answers better.
        tied: The others.
        wins: Some of those won, the clearest first, then in the split's random order.
        losses: Some of those lost.
        ties: Some of the others, where there are only such.
    """

    task: str
    gain: Interval
    won: int
    lost: int
    tied: int
    wins: tuple[Example, ...]
    losses: tuple[Example, ...]
    ties: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Duels:
    """The champion against the best parent.

    Attributes:
        parent: The parent's name.
        part: The part of the documents: ``holdout``, or ``search`` before the end.
        tasks: Task by task.
    """

    parent: str
    part: str
    tasks: tuple[Duel, ...]


@dataclass(frozen=True)
class FrontPoint:
    """A finalist's gain over the best parent in every task, on the selection documents.

    Attributes:
        label: What to call it.
        role: As of `Ask`.
        gains: By task.
        on_front: Whether no other is better in everything.
        recipe: File of its recipe in the run folder, if it is on the front.
        champion: Whether it is the champion.
    """

    label: str
    role: str
    gains: Mapping[str, float]
    on_front: bool
    recipe: str | None
    champion: bool


@dataclass(frozen=True)
class Report:
    """What a report shows.

    Attributes:
        folder: The run folder, as it was given.
        summary: The run's ``summary.json``.
        lost: Whether its driver is gone without having said so.
        conclusion: What the run came to.
        config: The frozen config.
        fingerprint: Hash of what decides what a score means.
        split: Which documents went where.
        trials: All results, in the order of their coming.
        tasks: Scores by task.
        duels: Against the best parent; None if there is nothing to compare yet, or the champion is that parent.
        shapes: The champion's recipe over depth, its stages first.
        recipe: The champion's recipe as YAML; empty before there is one.
        modules: Of the merge methods that are not heterosis' own.
        importance: Which parameters mattered.
        stage: The stage of the search that this is about.
        front: Finalists of a run with several objectives.
        known: What the tasks said of their documents.
    """

    folder: Path
    summary: Summary
    lost: bool
    conclusion: Conclusion
    config: EvolveConfig
    fingerprint: str
    split: Split
    trials: tuple[Trial, ...]
    tasks: tuple[TaskResult, ...]
    duels: Duels | None
    shapes: tuple[Shape, ...]
    recipe: str
    modules: tuple[str, ...]
    importance: Importance
    stage: int
    front: tuple[FrontPoint, ...]
    known: Known

    @property
    def name(self) -> str:
        """The run's name."""
        return self.folder.resolve().name

    @property
    def champion(self) -> Trial | None:
        """The champion, or the best so far."""
        return _champion_trial(self.summary, self.trials)

    @property
    def examples(self) -> dict[str, list[int]]:
        """The documents that are shown, by task."""
        duels = self.duels.tasks if self.duels else ()
        return {duel.task: [e.document for e in (*duel.wins, *duel.losses, *duel.ties)] for duel in duels}

    def text(self, task: str, document: int) -> DocumentText | None:
        """What a document asks, if that is known."""
        return self.known.texts.get(task, {}).get(document)

    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of tasks that a front has."""
        return list(combinations([task.name for task in self.tasks if task.weight], 2))


def gather(folder: Path, known: Known | None = None, storage: str | None = None) -> Report:
    """Read a run folder.

    Args:
        folder: The run folder; a driver may be writing in it.
        known: What the tasks say of their documents; None for what the folder has of that.
        storage: Optuna storage URL of the study, if it is not in the folder.

    Raises:
        InputError: If it is no run folder, or files of it are missing or cannot be read.
    """
    standing = Watcher(folder).look()
    try:
        return _gather(folder, standing, known or Known.load(folder), storage)
    except (OSError, LookupError, AttributeError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        what = f"{type(error).__name__}: {error}"
        raise InputError(f"{folder}: cannot be reported on, its files do not fit together ({what})") from error


def _gather(folder: Path, standing: Standing, known: Known, storage: str | None) -> Report:
    summary, state = standing.summary, RunState.load(folder)
    config = EvolveConfig.load(folder / "config.yaml")
    trials, scores = read_trials(folder), read_scores(folder)
    own = summary["objective"]
    objective = Objective(
        {task: entry["weight"] for task, entry in own.items()},
        {task: entry["metric"] for task, entry in own.items()},
        known.groups,
        summary["maximised"]["kind"],
        summary["maximised"]["constraints"],
        frozenset(task for task, entry in own.items() if entry["lower_is_better"]),
    )
    contenders = _contenders(summary, trials, scores)
    champion = next((c for c in contenders if c.champion), None)
    best_parent = _best_parent(summary, contenders)
    recipe = (read_best(folder) if champion else None) or ""
    last = _champion_trial(summary, trials)
    searched = [t for t in trials if t.ask.values and t.score is not None]
    stage = last.ask.stage if last and last.ask.values else max((t.ask.stage for t in searched), default=0)
    ours = [t for t in searched if t.ask.stage == stage]
    shapes = shapes_of(Recipe.parse(recipe, BEST), _naming(config), state.layers) if recipe else ()
    return Report(
        folder=folder,
        summary=summary,
        lost=standing.lost,
        conclusion=conclusion_of(summary),
        config=config,
        fingerprint=config.fingerprint(),
        split=Split.load(folder / "splits.json"),
        trials=tuple(trials),
        tasks=tuple(_task_result(task, objective, contenders) for task in objective.metrics),
        duels=_duels(champion, best_parent, objective),
        shapes=shapes,
        recipe=recipe,
        modules=tuple(state.provenance.get("methods", {}).values()),
        importance=importance(folder, state.study, ours, storage),
        stage=stage,
        front=_front(summary, trials, scores, objective, contenders),
        known=known,
    )


def _champion_trial(summary: Summary, trials: Sequence[Trial]) -> Trial | None:
    champion = summary["champion"]
    return None if champion is None else next((t for t in trials if t.number == champion["trial"]), None)


def _contenders(
    summary: Summary, trials: Sequence[Trial], scores: Mapping[tuple[int, str], Scores]
) -> tuple[Contender, ...]:
    """Parents, other baselines that met all search documents, and the champion, each once."""
    champion = _champion_trial(summary, trials)

    def contender(ask: Ask) -> Contender:
        parts: dict[str, Scores] = {part: found for part in PARTS if (found := scores.get((ask.number, part)))}
        return Contender(ask.name, ask.role, champion is not None and ask == champion.ask, parts)

    scored = [t for t in trials if t.complete or (t.pruned and t.ask.kind == "parent")]
    found = {t.ask.name: t.ask for t in scored if not t.ask.is_candidate}
    ordered = sorted(found.values(), key=lambda ask: (ask.kind != "parent", ask.name != UNIFORM, ask.number))
    if champion is not None and champion.ask not in ordered:
        ordered.append(champion.ask)
    return tuple(map(contender, ordered))


def _best_parent(summary: Summary, contenders: Sequence[Contender]) -> Contender | None:
    """The parent that the run reports on; before it does, the best on the search documents."""
    gain = summary.get("gain_over_best_parent")
    on_search = {name: r["search"] for name, r in summary["parents"].items() if r["search"] is not None}
    name = gain["parent"] if gain else max(on_search, key=on_search.__getitem__, default=None)
    return next((c for c in contenders if c.role == "parent" and c.name == name), None)


def _task_result(task: str, objective: Objective, contenders: Sequence[Contender]) -> TaskResult:
    rows = []
    for contender in contenders:
        parts = {}
        for part, scores in contender.scores.items():
            values = scores.values(task, objective.metrics[task]) if task in scores.documents else {}
            if values:
                parts[part] = _mean(values, objective.groups.get(task))
        rows.append(TaskRow(contender, parts))
    of_objective = objective.metrics[task], objective.weights[task], task in objective.lower
    return TaskResult(task, *of_objective, tuple(rows))


def _mean(values: Mapping[int, float], groups: Mapping[int, str] | None) -> Interval:
    """A mean over documents with its interval; of scores in [0, 1] it stays in there."""
    interval = paired_difference(values, dict.fromkeys(values, 0.0), groups)
    if all(0 <= value <= 1 for value in values.values()):
        return replace(interval, low=max(0.0, interval.low), high=min(1.0, interval.high))
    return interval


def _duels(champion: Contender | None, parent: Contender | None, objective: Objective) -> Duels | None:
    if champion is None or parent is None or champion == parent:
        return None
    part = next((p for p in ("holdout", "search") if p in champion.scores and p in parent.scores), None)
    if part is None:
        return None
    mine, theirs = (objective.values(own.scores[part]) for own in (champion, parent))
    answers = tuple(own.scores[part].answers for own in (champion, parent))
    duels = [_duel(task, mine[task], theirs[task], objective, answers) for task in objective.metrics]
    return Duels(parent.name, part, tuple(duel for duel in duels if duel is not None))


def _duel(
    task: str,
    mine: Mapping[int, float],
    theirs: Mapping[int, float],
    objective: Objective,
    answers: tuple[Mapping[str, Mapping[int, Answer]], ...],
) -> Duel | None:
    """A task's documents that both have met, turned so that larger is better; None without any."""
    both = [document for document in mine if document in theirs]
    if not both:
        return None
    a, b = {d: mine[d] for d in both}, {d: theirs[d] for d in both}
    shown = max(1, min(EXAMPLES, _MOST_EXAMPLES // (2 * len(objective.metrics))))
    sign = objective.sign(task)

    def examples(documents: Sequence[int]) -> tuple[Example, ...]:
        clearest = sorted(documents, key=lambda d: -abs(a[d] - b[d]))[:shown]
        said = {d: [own.get(task, {}).get(d) for own in answers] for d in clearest}
        return tuple(Example(d, sign * a[d], sign * b[d], *said[d]) for d in clearest)

    won, lost = [d for d in both if a[d] > b[d]], [d for d in both if a[d] < b[d]]
    gain = paired_difference(a, b, objective.groups.get(task))
    tied = len(both) - len(won) - len(lost)
    ties = () if won or lost else examples(both)
    return Duel(task, gain, len(won), len(lost), tied, examples(won), examples(lost), ties)


def _front(
    summary: Summary,
    trials: Sequence[Trial],
    scores: Mapping[tuple[int, str], Scores],
    objective: Objective,
    contenders: Sequence[Contender],
) -> tuple[FrontPoint, ...]:
    parents = [c.scores["selection"] for c in contenders if c.role == "parent" and "selection" in c.scores]
    if objective.kind != "pareto" or not summary["finalists"] or not parents:
        return ()
    judge = Judge(objective, tuple(parents))
    recipes = {entry["trial"]: entry["recipe"] for entry in summary["front"]}
    points = []
    for entry in summary["finalists"]:
        trial = trials[entry["trial"]]
        found = scores.get((trial.ask.number, "selection"))
        if found is None:
            continue
        champion = summary["champion"] is not None and trial.number == summary["champion"]["trial"]
        gains = {task: gain for task, gain in judge.gains(found).items() if math.isfinite(gain)}
        on_front = trial.number in recipes
        points.append(
            FrontPoint(
                trial.ask.name, trial.ask.role, gains, on_front, recipes.get(trial.number), champion=champion
            )
        )
    return tuple(points)


def _naming(config: EvolveConfig) -> Any:
    """Short names for a recipe's models, as in the names of parameters; pinned ones mean the same."""
    shorts = dict(zip(config.genome.models, config.genome.model_names, strict=True))
    known = {_unpinned(ModelRef.parse(model)): short for model, short in shorts.items()}

    def name(ref: ModelRef) -> str:
        plain = _unpinned(ref)
        return known.get(plain) or (plain.adapter or plain.path).rstrip("/").rpartition("/")[2]

    return name


def _unpinned(ref: ModelRef) -> ModelRef:
    return replace(ref, revision=None, adapter_revision=None)
