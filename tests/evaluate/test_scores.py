import math
import pickle
import statistics

import pytest

from heterosis.evaluate import Metric, NonFiniteScore, Scores

KEY = "acc,none"


def scores(task: str, values: dict[int, float]) -> Scores:
    return Scores({task: {document: {KEY: value} for document, value in values.items()}})


def test_mean_and_standard_error() -> None:
    values = [0.0, 1.0, 1.0, 0.25]
    scored = scores("a", dict(enumerate(values)))
    assert scored.mean("a", KEY) == statistics.mean(values)
    assert scored.stderr("a", KEY) == pytest.approx(statistics.stdev(values) / math.sqrt(4))


def test_below_two_documents_there_is_no_standard_error() -> None:
    assert math.isnan(scores("a", {3: 1.0}).stderr("a", KEY))
    assert math.isnan(scores("a", {}).mean("a", KEY))


def test_a_document_without_the_metric_does_not_count() -> None:
    scored = scores("a", {0: 1.0, 1: 0.0})
    scored.documents["a"][2] = {}
    assert scored.mean("a", KEY) == 0.5
    assert scored.values("a", KEY) == {0: 1.0, 1: 0.0}


def test_merged() -> None:
    both = scores("a", {0: 1.0}).merged(scores("a", {1: 0.0})).merged(scores("b", {0: 1.0}))
    assert both == Scores({"a": {0: {KEY: 1.0}, 1: {KEY: 0.0}}, "b": {0: {KEY: 1.0}}})


def test_merged_leaves_both_as_they_were() -> None:
    one, other = scores("a", {0: 1.0}), scores("a", {1: 0.0})
    one.merged(other)
    assert (one, other) == (scores("a", {0: 1.0}), scores("a", {1: 0.0}))


def test_merged_refuses_a_document_twice() -> None:
    with pytest.raises(ValueError, match=r"a: documents \[1\] are scored in both"):
        scores("a", {0: 1.0, 1: 1.0}).merged(scores("a", {1: 1.0}))


def test_json_round_trip() -> None:
    scored = Scores({"a": {7: {KEY: 1 / 3, "f1,strict": 0.1}}, "b": {}}, forward_seconds=1.5)
    again = Scores.from_json(scored.to_json())
    assert again == scored
    assert again.forward_seconds == 1.5


def test_a_metric_key_is_lm_evals() -> None:
    assert Metric("exact_match", "strict", True).key == "exact_match,strict"


def test_non_finite_score_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(NonFiniteScore("arc", 12, math.nan)))
    assert (error.task, error.document) == ("arc", 12)
    assert str(error) == "arc: document 12 scored nan; the model's outputs are not finite"
