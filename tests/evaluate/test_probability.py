"""How probable right answers are."""

import math
import types
from typing import Any

import numpy as np
import pytest

from heterosis.evaluate import probability
from heterosis.evaluate.answers import chosen
from heterosis.evaluate.probability import has_probability, rated, tokens_added

CHOICES = ["yes", "no", "perhaps"]
LOGS = [math.log(0.2), math.log(0.1), math.log(0.1)]


def task(kind: str, target: Any = 0, *, multiple_input: bool = False, process: Any = None) -> Any:
    config = types.SimpleNamespace(output_type=kind, process_results=process)
    return types.SimpleNamespace(
        config=config,
        multiple_input=multiple_input,
        doc_to_choice=lambda document: CHOICES,
        doc_to_target=lambda document: target,
        doc_to_text=lambda document: 2,
    )


def probability_of(task: Any, likelihoods: list[float], metric: str = "acc", tokens: int = 1) -> float | None:
    return probability.probability_of(task, {}, likelihoods, metric, lambda: tokens)


@pytest.mark.parametrize(
    ("kind", "metric", "expected"),
    [
        ("multiple_choice", "acc", True),
        ("multiple_choice", "acc_norm", True),
        ("multiple_choice", "f1", False),
        ("loglikelihood", "acc", True),
        ("loglikelihood", "perplexity", False),
        ("loglikelihood_rolling", "word_perplexity", False),
        ("generate_until", "exact_match", False),
    ],
)
def test_who_has_one(kind: str, metric: str, expected: bool) -> None:
    assert has_probability(task(kind), metric) is expected


def test_not_who_computes_its_metrics_itself() -> None:
    assert not has_probability(task("multiple_choice", process=lambda document, results: {"acc": 1.0}), "acc")


def test_of_a_continuation() -> None:
    assert probability_of(task("loglikelihood"), [math.log(0.3)]) == pytest.approx(0.3)
    of_four = probability_of(task("loglikelihood"), [math.log(0.3)], tokens=4)
    assert of_four == pytest.approx(0.3**0.5)


@pytest.mark.parametrize(
    ("context", "continuation", "expected"), [("ab", "cde", 3), ("ab ", "c", 2), ("", "cd", 2), ("ab", "", 1)]
)
def test_tokens_are_counted_as_they_are_rated(context: str, continuation: str, expected: int) -> None:
    lm = types.SimpleNamespace(tok_encode=list)
    assert tokens_added(lm, context, continuation) == expected


@pytest.mark.parametrize(
    ("target", "expected"), [(0, 0.5), ("no", 0.25), ([0, 2], 0.75), ([1, 7], 0.25), (np.int64(1), 0.25)]
)
def test_of_choices(target: Any, expected: float) -> None:
    assert probability_of(task("multiple_choice", target), LOGS) == pytest.approx(expected)


@pytest.mark.parametrize("target", [7, -1, "maybe", [9]])
def test_none_of_an_answer_that_there_is_not(target: Any) -> None:
    assert probability_of(task("multiple_choice", target), LOGS) is None


def test_where_the_question_is_the_choice() -> None:
    found = probability_of(task("multiple_choice", multiple_input=True), LOGS)
    assert found == pytest.approx(0.25)


def test_without_the_question() -> None:
    alone = [math.log(0.4), math.log(0.1), math.log(0.1)]
    found = probability_of(task("multiple_choice"), [*LOGS, *alone], "acc_mutual_info")
    assert found == pytest.approx(0.5 / 2.5)


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "acc_bytes"])
def test_the_likeliest_is_the_one_that_is_chosen(metric: str) -> None:
    logs = [-3.0, -2.5, -4.0]
    shares = [probability_of(task("multiple_choice", i), logs, metric) or 0.0 for i in range(3)]
    assert sum(shares) == pytest.approx(1.0)
    assert CHOICES[shares.index(max(shares))] == chosen(CHOICES, logs, metric)


def test_very_unlikely_answers_are_no_fault() -> None:
    assert probability_of(task("multiple_choice", 1), [-5000.0, -5001.0, -6000.0]) == pytest.approx(
        1 / (1 + math.e)
    )


def test_by_length_as_of_choices_of_the_mean_length() -> None:
    assert rated(["ab", "abcd"], [-1.0, -1.0], "acc_norm") == [-1.5, -0.75]
