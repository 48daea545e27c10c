"""How probable a model finds a document's right answer, of which being right or wrong is the coarse form."""

import copy
import math
from collections.abc import Sequence
from numbers import Integral
from typing import Any

# Metrics that are 1 where the likeliest choice is a right one, by the likelihoods of `rated`.
_OF_CHOICES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")


def has_probability(task: Any, metric: str) -> bool:
    """Whether a task's requests tell it, and the metric is right or wrong by it.

    Args:
        task: lm-eval's.
        metric: Its metric's name.
    """
    if callable(task.config.process_results):
        return False
    kind = str(task.config.output_type)
    return (kind == "multiple_choice" and metric in _OF_CHOICES) or (kind == "loglikelihood" and metric == "acc")


def probability_of(task: Any, document: Any, likelihoods: Sequence[float], metric: str) -> float | None:
    """How probable the right answers are together, in [0, 1]; None if the document names none that there is.

    Of a text to be continued it is the right continuation's; of choices, their share of all choices'.

    Args:
        task: lm-eval's, of which `has_probability` is true.
        document: Of the task.
        likelihoods: Of its requests (logarithms), in their order.
        metric: The metric's name.
    """
    if str(task.config.output_type) == "loglikelihood":
        return math.exp(likelihoods[0])
    document = copy.copy(document)
    choices = list(map(str, task.doc_to_choice(document)))
    given = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    right = {_index(own, choices) for own in (given if isinstance(given, list | tuple) else [given])} - {None}
    logits = rated(choices, likelihoods, metric)
    most = max(logits)
    shares = [math.exp(x - most) for x in logits]
    return math.fsum(shares[i] for i in right if i is not None) / math.fsum(shares) if right else None


def rated(choices: Sequence[str], likelihoods: Sequence[float], metric: str) -> list[float]:
    """The likelihoods by which a metric takes the largest for a model's choice.

    Those by length are of choices of the mean length, so that they are logarithms as the others.

    Args:
        choices: To choose from.
        likelihoods: Of each choice (logarithms); for ``acc_mutual_info`` those without the question after these.
        metric: The metric's name.
    """
    if metric == "acc_mutual_info":
        return [a - b for a, b in zip(likelihoods, likelihoods[len(choices) :], strict=False)]
    if metric not in ("acc_norm", "acc_bytes"):
        return list(likelihoods[: len(choices)])
    lengths = [max(1, len(c if metric == "acc_norm" else c.encode())) for c in choices]
    mean = sum(lengths) / len(lengths)
    return [mean * x / length for x, length in zip(likelihoods, lengths, strict=True)]


def _index(given: object, choices: Sequence[str]) -> int | None:
    """The number of a choice that is given by its number or its text."""
    if isinstance(given, str):
        return choices.index(given) if given in choices else None
    return int(given) if isinstance(given, Integral) and 0 <= int(given) < len(choices) else None
