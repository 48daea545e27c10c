"""Who comes to the finals, what they found, and what they take."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from heterosis.evaluate.splits import Split
from heterosis.evolve.config.genome import UNIFORM
from heterosis.evolve.judging.objective import Judge
from heterosis.evolve.judging.statistics import ALPHA
from heterosis.evolve.record.record import Record
from heterosis.evolve.record.tally import distinct
from heterosis.evolve.record.trial import Ask, Trial

RESERVE = 5  # candidates that are tried one after the other if none of the finalists can be scored


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
        best_parent: The best parent on the search documents.
        finalists: All, best first.
        front: Of several objectives, the finalists that no other is better than in everything, best first.
    """

    champion: Trial
    best_parent: Trial
    finalists: tuple[Finalist, ...]
    front: tuple[Trial, ...] = ()


def finals_documents(split: Split, parents: int, finalists: int) -> int:
    """Documents that the finals meet at most; of finalists that cannot be scored nothing is counted.

    Args:
        split: Of the documents.
        parents: How many there are.
        finalists: On the shortlist.
    """
    return finalists * split.size("selection") + (parents + 2) * split.size("holdout")


def shortlist(record: Record, size: int, judge: Judge, unknown: Collection[Ask] = ()) -> list[Trial]:
    """Those that may be the best.

    The best candidates by search scores, the optimizer's mean, the uniform merge, the best other baseline and the
    parents, without those that the best of them beats beyond doubt on the search documents. Candidates that were
    stopped early are not among them. Of several objectives the candidates are those of the front, spread over it
    where there are more than twice ``size``. Then, and where the objective compares with all the parents, nobody
    is left out for being beaten. Results of who is ``unknown`` do not count.
    """
    scored = [t for t in _scored(record) if t.ask not in unknown]
    parents = [t for t in scored if t.ask.kind == "parent"]
    ranked = [t for t in scored if t.complete]
    uniform = [t for t in ranked if t.ask.name == UNIFORM]
    others = [t for t in ranked if t.ask.kind == "baseline" and t.ask.name != UNIFORM]
    found = distinct([t for t in ranked if t.ask.is_candidate])
    if ranked and len(ranked[0].losses) > 1:
        return [*_spread(front(found), 2 * size), *others[:1], *uniform, *parents]
    means = [t for t in found[size:] if t.ask.kind == "mean"]
    chosen = sorted([*found[:size], *means[:1], *others[:1], *uniform, *parents], key=scored.index)
    if judge.objective.needs_parents:
        return chosen
    met = [(t, scores) for t in chosen if t.complete and (scores := record.scores(t.ask, "search"))]
    return [t for t, scores in met if not judge.beaten(scores, met[0][1], ALPHA)]


def _scored(record: Record) -> list[Trial]:
    """Those with a score, best first; equals in the order of asking, as that of results may differ each time."""
    scored = [t for t in record.trials if t.score is not None]
    return sorted(scored, key=lambda t: t.rank)


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
        taken.append(max(rest, key=lambda t: (min(_distance(t, other) for other in taken), -t.ask.number)))
    return taken


def _distance(a: Trial, b: Trial) -> float:
    return max(abs(x - y) for x, y in zip(a.losses, b.losses, strict=True))


def reserve(record: Record, finalists: Sequence[Trial]) -> list[Trial]:
    """The next best candidates, of which one takes part if none of the finalists can be scored."""
    candidates = [t for t in _scored(record) if t.complete and t.ask.is_candidate]
    recipes = {t.ask.recipe for t in finalists}
    return [t for t in distinct(candidates) if t.ask.recipe not in recipes][:RESERVE]
