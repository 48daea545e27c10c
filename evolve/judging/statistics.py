"""How sure a difference between two models is, from their scores on the same documents.

Everything here is paired: two models answer the same documents, so what makes a document hard for both
cancels, and the interval is that of the differences.

Notation: d_i difference on document i, n documents, G independent groups of documents, w_t weight of task t.
"""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from scipy.special import stdtrit

ALPHA = 0.05

Document = TypeVar("Document", bound=Hashable)


@dataclass(frozen=True)
class Interval:
    """A mean difference with its two-sided confidence interval, of 95 % unless asked otherwise.

    Attributes:
        mean: The difference itself.
        low: Lower limit.
        high: Upper limit.
        n: Documents that it was measured on.
    """

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class _Stratum:
    """One task's difference: either a variance with degrees of freedom, or limits, where there is no variance."""

    mean: float
    variance: float
    df: int
    below: float
    above: float
    n: int


def paired_difference(
    a: Mapping[Document, float],
    b: Mapping[Document, float],
    groups: Mapping[Document, Hashable] | None = None,
    span: float | None = None,
    alpha: float = ALPHA,
) -> Interval:
    """The mean of ``a - b`` over documents, with its paired t interval.

    Documents of one group (a sum asked in two ways, questions on one text) are not independent of each other.
    With ``groups`` the variance is that between groups (the cluster-robust one, which for groups of equal size
    is the t interval of the groups' means) and the degrees of freedom are G - 1. The mean stays
    that over documents, so it is the difference of the two scores that the table shows.

    When all differences are equal (or there is a single group) a t interval would have no width, as if
    nothing else could ever happen. Instead: had more than a share p of all documents another difference, then
    G in a row without one would be rarer than 2.5 %; so p <= 1 - 0.025^(1/G) (Clopper and Pearson's limit),
    and the limits are those of a share p of documents with the most extreme differences, -span and +span.

    Args:
        a: Score of each document.
        b: Score of each document; the same documents.
        groups: Group of each document; None when documents are independent.
        span: The largest difference that a document can have; None for `span_of` the scores. Only used when all
            differences are equal.
        alpha: One less the interval's level, in (0, 1).

    Raises:
        ValueError: If there are no documents, ``a`` and ``b`` are not about the same ones, a document has no
            group, or a score is not finite.
    """
    return _combine([(1.0, _stratum(a, b, groups, span, alpha))], alpha)


def objective_difference(
    a: Mapping[str, Mapping[Document, float]],
    b: Mapping[str, Mapping[Document, float]],
    weights: Mapping[str, float],
    groups: Mapping[str, Mapping[Document, str]] | None = None,
    alpha: float = ALPHA,
) -> Interval:
    """The difference of ``sum_t w_t * mean score on task t``, with its paired interval.

    Tasks are strata: the variance is sum_t w_t^2 * variance_t, with Welch and Satterthwaite's degrees
    of freedom. Tasks without variance add their conservative limits (see :func:`paired_difference`) in squares
    (Zou and Donner's MOVER, https://doi.org/10.1002/sim.3095).

    Args:
        a: Score of each document of each task.
        b: The same for the other model.
        weights: Weight of each task, used as given: for a weighted mean they sum to 1.
        groups: Group of each document of each task; a task left out has independent documents. Groups of
            different tasks are taken as different.
        alpha: See :func:`paired_difference`.

    Raises:
        ValueError: If ``a``, ``b`` and ``weights`` are not about the same tasks, or as for one task.
    """
    if not a.keys() == b.keys() == weights.keys():
        raise ValueError(
            f"the tasks must be the same, but got {sorted(a)} and {sorted(b)} with weights for {sorted(weights)}"
        )
    groups = groups or {}
    strata = [(weights[task], _stratum(a[task], b[task], groups.get(task), None, alpha)) for task in a]
    return _combine(strata, alpha)


def span_of(*scores: Mapping[Document, float]) -> float:
    """The largest difference that a document may have: 1, as of scores in [0, 1], or as far as these are apart."""
    values = [value for own in scores for value in own.values()]
    return max(1.0, max(values) - min(values))


def _stratum(
    a: Mapping[Document, float],
    b: Mapping[Document, float],
    groups: Mapping[Document, Hashable] | None,
    span: float | None,
    alpha: float,
) -> _Stratum:
    if not a:
        raise ValueError("a difference needs at least one document")
    if a.keys() != b.keys():
        raise ValueError(f"the documents must be the same, but {len(a.keys() ^ b.keys())} have only one score")
    differences = {document: a[document] - b[document] for document in a}
    if not all(map(math.isfinite, differences.values())):
        raise ValueError("scores must be finite")
    if groups is not None and not differences.keys() <= groups.keys():
        raise ValueError(
            f"every document must have a group, but {len(differences.keys() - groups.keys())} have no group"
        )

    n = len(differences)
    mean = math.fsum(differences.values()) / n
    members: dict[Hashable, list[float]] = {}
    for document, difference in differences.items():
        members.setdefault(document if groups is None else groups[document], []).append(difference)
    g = len(members)

    if g == 1 or max(differences.values()) == min(differences.values()):
        reach = max(span_of(a, b) if span is None else span, *map(abs, differences.values()))
        share = 1 - (alpha / 2) ** (1 / g)
        return _Stratum(mean, 0.0, 0, below=share * (mean + reach), above=share * (reach - mean), n=n)

    # Cluster-robust variance of a mean: sums over each group of deviations from the mean, per document.
    deviations = [math.fsum(d - mean for d in group) / n for group in members.values()]
    variance = g / (g - 1) * math.fsum(deviation**2 for deviation in deviations)
    return _Stratum(mean, variance, g - 1, below=0.0, above=0.0, n=n)


def _combine(strata: list[tuple[float, _Stratum]], alpha: float) -> Interval:
    """The weighted sum of independent means, with its interval."""
    mean = math.fsum(w * s.mean for w, s in strata)
    parts = [(w**2 * s.variance, s.df) for w, s in strata if s.variance > 0 and w != 0]
    variance = math.fsum(part for part, _ in parts)
    half = 0.0
    if variance > 0:
        df = variance**2 / math.fsum(part**2 / df for part, df in parts)  # Welch and Satterthwaite
        half = float(stdtrit(df, 1 - alpha / 2)) * math.sqrt(variance)
    below = [w * s.below if w > 0 else -w * s.above for w, s in strata]
    above = [w * s.above if w > 0 else -w * s.below for w, s in strata]
    return Interval(
        mean=mean,
        low=mean - math.hypot(half, *below),
        high=mean + math.hypot(half, *above),
        n=sum(s.n for _, s in strata),
    )
