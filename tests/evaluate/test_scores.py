import math
import pickle
import statistics
from collections.abc import Callable

import pytest

from heterosis.errors import InputError
from heterosis.evaluate import Answer, Metric, NonFiniteScore, Scores
from heterosis.evaluate.answers import chosen

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


@pytest.mark.parametrize("kin", [Scores.values, Scores.mean, Scores.stderr])
def test_a_metric_without_its_filter_is_no_key(kin: Callable[[Scores, str, str], object]) -> None:
    """A full key may be that of a metric which the task gives for other documents only."""
    scored = Scores({"a": {0: {KEY: 1.0, "acc_norm,none": 0.0}, 1: {KEY: 0.0}}, "b": {}})
    for wrong, meant in (("acc", KEY), ("accnorm", "acc_norm,none")):
        with pytest.raises(InputError, match=f"^task 'a': unknown metric '{wrong}'; did you mean '{meant}'"):
            kin(scored, "a", wrong)
    with pytest.raises(InputError, match=f"^task 'a': unknown metric 'perplexity'; valid: {KEY}, acc_norm,none$"):
        kin(scored, "a", "perplexity")
    assert kin(scored, "a", "f1,none") in ({}, pytest.approx(math.nan, nan_ok=True))


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
    assert str(error) == ("arc: document 12 scored nan; the model's outputs are not finite, or the metric is not")


def test_answers_survive_json_and_merging() -> None:
    one = Scores({"a": {7: {KEY: 1.0}}}, answers={"a": {7: Answer("It is 3.", "3")}})
    others = {"a": {8: Answer("4")}, "b": {7: Answer("")}}
    both = one.merged(Scores({"a": {8: {KEY: 0.0}}, "b": {7: {KEY: 0.0}}}, answers=others))
    assert both.answers == {"a": {7: Answer("It is 3.", "3"), 8: Answer("4")}, "b": {7: Answer("")}}
    assert Scores.from_json(both.to_json()) == both
    assert "answers" not in scores("a", {0: 1.0}).to_json()


def test_scores_of_before_there_were_answers_can_be_read() -> None:
    written = '{"documents": {"a": {"7": {"acc,none": 1.0}}}, "forward_seconds": 1.5}'
    assert Scores.from_json(written) == scores("a", {7: 1.0})


def test_answers_are_bounded_and_can_be_written() -> None:
    answer = Answer.of(f" Let me think. {5000 * 'x'} So it is 42.\n", "42")
    assert len(answer.said) < 700
    assert answer.said.startswith(" Let me think. x")
    assert answer.said.endswith("x So it is 42.\n")
    assert answer.taken == "42"
    assert Answer.of(" 42\n", "42") == Answer(" 42\n", "42")  # a metric may not take off the blanks
    assert Answer.of(" 42\n", " 42\n") == Answer(" 42\n")
    assert Answer.of("x", ["a", "list"]) == Answer("x")
    Answer.of("half \ud800", "of a \udc00 pair").said.encode()


@pytest.mark.parametrize(
    ("metric", "expected"),
    [("acc", "no"), ("acc_norm", "perhaps"), ("acc_bytes", "ééééé"), ("acc_mutual_info", "yes"), ("mc2", "no")],
)
def test_the_choice_is_the_one_that_the_metric_counts(metric: str, expected: str) -> None:
    choices = ["yes", "no", "perhaps", "ééééé"]
    likelihoods = [-4.0, -2.0, -2.5, -2.2]  # by characters -1.33, -1, -0.36, -0.44; by bytes the last is -0.22
    without = [-9.0, -3.0, -3.0, -3.0] if metric == "acc_mutual_info" else []
    assert chosen(choices, [*likelihoods, *without], metric) == expected
