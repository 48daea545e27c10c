"""How probable a model finds a document's right answer, of which being right or wrong is the coarse form."""

import copy
import math
from collections.abc import Callable, Sequence
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


def probability_of(
    task: Any, document: Any, likelihoods: Sequence[float], metric: str, tokens: Callable[[], int]
) -> float | None:
    """How probable the right answers are together, in [0, 1]; None if the document names none that there is.

    Of choices it is their share of all choices'. Of a text to be continued by n tokens it is the right one's to
    the power of ``1 / sqrt(n)``: the more tokens, the smaller the probability of all, and where it is next to
    nothing it no longer tells which model is nearer. The geometric mean, ``1 / n``, tells that best, and least
    whether the last token is right too.

    Args:
        task: lm-eval's, of which `has_probability` is true.
        document: Of the task.
        likelihoods: Of its requests (logarithms), in their order.
        metric: The metric's name.
        tokens: Counts those of the right continuation.
    """
    if str(task.config.output_type) == "loglikelihood":
        return math.exp(likelihoods[0] / math.sqrt(tokens()))
    document = copy.copy(document)
    choices = list(map(str, task.doc_to_choice(document)))
    given = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    right = {_index(own, choices) for own in (given if isinstance(given, list | tuple) else [given])} - {None}
    logits = rated(choices, likelihoods, metric)
    most = max(logits)
    shares = [math.exp(x - most) for x in logits]
    return math.fsum(shares[i] for i in right if i is not None) / math.fsum(shares) if right else None


def tokens_added(lm: Any, context: str, continuation: str) -> int:
    """How many tokens, at least one, a model takes a text to be continued by.

    Args:
        lm: lm-eval's, with a tokenizer.
        context: The text; lm-eval counts spaces at its end among what follows.
        continuation: What follows.
    """
    return max(1, len(lm.tok_encode(context + continuation)) - len(lm.tok_encode(context.rstrip())))


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
