"""The finals: a frozen shortlist is compared on selection documents, the champion reported on held-out ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from heterosis.evaluate.splits import Split
from heterosis.evolve.genome import UNIFORM
from heterosis.evolve.objective import Judge
from heterosis.evolve.record import Ask, Record, Trial
from heterosis.evolve.statistics import ALPHA


class FinalsFailed(RuntimeError):
    """A comparison is not possible without what could not be scored."""


@dataclass(frozen=True)
class Finalist:
    """A trial and its score on the selection documents."""

    trial: Trial
    selection: float


@dataclass(frozen=True)
class Finals:
    """What the finals found.

    Attributes:
        champion: The best finalist on the selection documents.
        best_parent: The best parent there.
        finalists: All, best first.
        front: Of several objectives, the finalists that no other is better than in everything, best first.
    """

    champion: Trial
    best_parent: Trial
    finalists: tuple[Finalist, ...]
    front: tuple[Trial, ...] = ()


def finals_cost(split: Split, parents: int, finalists: int) -> float:
    """What the finals take at most, in candidates that meet all search documents."""
    search, selection, holdout = (
        sum(map(len, part.values())) for part in (split.search, split.selection, split.holdout)
    )
    documents = (parents + 1 + finalists) * selection + (parents + 2) * holdout
    return documents / max(1, search)


def shortlist(record: Record, size: int, judge: Judge) -> list[Trial]:
    """Those that may be the best, and of the parents those that may be the best parent.

    The best candidates by search scores, the optimizer's mean, the uniform merge and the best other baseline,
    without those that the best of them beats beyond doubt on the search documents; parents likewise. Candidates
    that were stopped early are not among them. Of several objectives the candidates are those of the front, spread
    over it where there are more than twice ``size``; and all baselines stay then, and where the objective compares
    with all the parents.
    """
    complete = [t for t in record.trials if t.complete]
    ranked = sorted(complete, key=lambda t: (-(t.score or 0.0), t.number))
    parents = [t for t in ranked if t.ask.kind == "parent"]
    uniform = [t for t in ranked if t.ask.name == UNIFORM]
    others = [t for t in ranked if t.ask.kind == "baseline" and t.ask.name != UNIFORM]
    found = [t for t in ranked if t.ask.kind in ("search", "mean")]
    if ranked and len(ranked[0].losses) > 1:
        return [*_spread(front(found), 2 * size), *others[:1], *uniform, *parents]
    means = [t for t in found[size:] if t.ask.kind == "mean"]
    chosen = sorted([*found[:size], *means[-1:], *others[:1], *uniform], key=ranked.index)
    if judge.objective.needs_parents:
        return [*chosen, *parents]
    return [*_unbeaten(chosen, record, judge), *_unbeaten(parents, record, judge)]


def _unbeaten(ranked: Sequence[Trial], record: Record, judge: Judge) -> list[Trial]:
    """Those that the first does not beat beyond doubt on the search documents."""
    scored = [(t, record.scores(t.ask, "search")) for t in ranked]
    first = scored[0][1] if scored else None
    return [t for t, scores in scored if scores and first and not judge.beaten(scores, first, ALPHA)]


def front(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other is as good as in all objectives and better in one; of equals the first."""
    return [
        t
        for i, t in enumerate(trials)
        if not any(
            all(a <= b for a, b in zip(other.losses, t.losses, strict=True))
            and (other.losses != t.losses or j < i)
            for j, other in enumerate(trials)
            if j != i
        )
    ]


def _spread(trials: Sequence[Trial], most: int) -> list[Trial]:
    """Some of a front, the next always the one that is farthest from those taken, in its best objective first."""
    if len(trials) <= most:
        return list(trials)
    taken = [trials[0]]
    while len(taken) < most:
        rest = [t for t in trials if t not in taken]
        taken.append(max(rest, key=lambda t: (min(_distance(t, other) for other in taken), -t.number)))
    return taken


def _distance(a: Trial, b: Trial) -> float:
    return max(abs(x - y) for x, y in zip(a.losses, b.losses, strict=True))


def run_finals(
    record: Record,
    finalists: Sequence[Trial],
    judge: Callable[[str], Judge],
    score_on: Callable[[str, Sequence[Ask]], bool],
) -> Finals | None:
    """Find the champion.

    Args:
        record: The run's.
        finalists: From `shortlist`, and frozen before.
        judge: Of a part of the documents, once the parents are scored there.
        score_on: Scores candidates on a part; False if the search is to stop.

    Raises:
        FinalsFailed: If a parent, a baseline or the champion cannot be scored.
    """
    baselines = [t for t in finalists if t.ask.kind in ("parent", "baseline")]
    if not finalists:
        raise FinalsFailed("no candidate could be scored")
    if not score_on("selection", [t.ask for t in finalists]):
        return None
    _require(record, baselines, "selection")
    compared = [(t, record.scores(t.ask, "selection")) for t in finalists]
    judged = judge("selection")
    results = [Finalist(t, judged.score(scores)) for t, scores in compared if scores]
    ranked = sorted(results, key=lambda f: (-f.selection, -(f.trial.score or 0.0)))
    if not ranked:
        raise FinalsFailed("no finalist could be scored on the selection documents; see run.log")
    champion = ranked[0].trial
    best_parent = next((f.trial for f in ranked if f.trial.ask.kind == "parent"), champion)
    reported = [t for t in record.trials if t.complete and (t.ask.kind == "parent" or t.ask.name == UNIFORM)]
    held_out = {t.ask.number: t for t in (champion, *reported)}
    if not score_on("holdout", [t.ask for t in held_out.values()]):
        return None
    _require(record, list(held_out.values()), "holdout")
    several = len(champion.losses) > 1
    return Finals(
        champion, best_parent, tuple(ranked), tuple(_front_of(ranked, record, judged)) if several else ()
    )


def _front_of(ranked: Sequence[Finalist], record: Record, judge: Judge) -> list[Trial]:
    """The front on the selection documents."""
    found = [(f.trial, record.scores(f.trial.ask, "selection")) for f in ranked]
    judged = [Trial(t.number, t.ask, t.score, losses=judge.losses(scores)) for t, scores in found if scores]
    numbers = {t.number for t in front(judged)}
    return [f.trial for f in ranked if f.trial.number in numbers]


def _require(record: Record, trials: Sequence[Trial], part: str) -> None:
    """Refuse to report on what could not be scored: a comparison without it would flatter the champion."""
    if lost := [t.ask.name for t in trials if record.scores(t.ask, part) is None]:
        raise FinalsFailed(
            f"{', '.join(lost)} could not be scored on the {part} documents (run.log says why); "
            "the same command tries again"
        )
