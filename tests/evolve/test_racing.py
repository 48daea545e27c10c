"""Races: which documents come when, and how often the better one is stopped."""

import random
from typing import ClassVar

import pytest

from heterosis.evaluate.scores import Scores
from heterosis.evolve.objective import Objective
from heterosis.evolve.racing import Schedule, by_disagreement, interleaved

DOCUMENTS = {"a": list(range(100, 200)), "b": list(range(28))}


def met(documents: dict[str, list[int]]) -> Scores:
    return Scores({task: {d: {"acc,none": 1.0} for d in own} for task, own in documents.items()})


def test_chunks_follow_the_order_and_leave_nothing_out() -> None:
    schedule = Schedule.of(DOCUMENTS)
    seen = Scores({})
    chunks = []
    while chunk := schedule.next(seen):
        chunks.append(sum(map(len, chunk.values())))
        seen = seen.merged(met(chunk))
        for task, own in seen.documents.items():
            assert list(own) == DOCUMENTS[task][: len(own)]
    assert {task: list(own) for task, own in seen.documents.items()} == DOCUMENTS
    assert chunks[0] == pytest.approx(128 / 8, abs=2)
    assert len(chunks) == 4
    assert chunks[-1] == max(chunks)


@pytest.mark.parametrize(
    ("options", "looks"),
    [
        ({"enabled": False}, 1),
        ({"first": 128}, 1),
        ({"first": 100}, 1),  # the last chunk would be smaller than the first
        ({"first": 16, "factor": 4.0}, 2),
        ({"first": 1}, 8),
        ({"first": 1, "factor": 1 + 1e-9}, 128),  # each adds a document
    ],
)
def test_looks(options: dict[str, float], looks: int) -> None:
    schedule = Schedule.of(DOCUMENTS, **options)  # type: ignore[arg-type]
    assert len(schedule.looks) == looks
    assert schedule.looks[-1] == {"a": 100, "b": 28}
    assert all(min(look.values()) >= 1 for look in schedule.looks)


def test_a_chunk_that_was_half_recorded_is_completed() -> None:
    schedule = Schedule.of(DOCUMENTS)
    first = schedule.next(None)
    half = {"a": first["a"][:5]}
    rest = schedule.next(met(half))
    assert rest == {"a": first["a"][5:], "b": first["b"]}


def test_all_looks_together_stop_an_equal_no_oftener_than_alpha() -> None:
    documents = {"a": list(range(256))}
    judge = Objective({"a": 1.0}, {"a": "acc,none"}, {}).judge([])
    schedule, alpha, lost, worse_met = Schedule.of(documents), 0.1, 0, []
    for seed in range(300):
        own = random.Random(seed)
        incumbent = Scores({"a": {d: {"acc,none": float(own.random() < 0.6)} for d in range(256)}})
        for chance in (0.6, 0.3):
            seen = Scores({})
            while chunk := schedule.next(seen):
                seen = seen.merged(
                    Scores({"a": {d: {"acc,none": float(own.random() < chance)} for d in chunk["a"]}})
                )
                if schedule.next(seen) and schedule.is_lost(judge, seen, incumbent, alpha):
                    lost += chance == 0.6
                    break
            if chance == 0.3:
                worse_met.append(len(seen.documents["a"]))
    assert lost <= 300 * alpha + 3 * (300 * alpha * (1 - alpha)) ** 0.5
    assert lost > 0
    assert sum(worse_met) / len(worse_met) < 100


def test_a_candidate_that_answers_as_the_incumbent_does_stops_half_way() -> None:
    judge = Objective({"a": 1.0, "b": 1.0}, {"a": "acc,none", "b": "acc,none"}, {}).judge([])
    schedule = Schedule.of({"a": list(range(64)), "b": list(range(32))})

    def answered(share: float, differing: int | None = None) -> Scores:
        return Scores(
            {
                task: {d: {"acc,none": float((d % 3 == 0) != (d == differing))} for d in range(int(share * n))}
                for task, n in (("a", 64), ("b", 32))
            }
        )

    assert not schedule.is_drawn(judge, answered(1 / 4), answered(1))
    assert schedule.is_drawn(judge, answered(1 / 2), answered(1))
    assert not schedule.is_drawn(judge, answered(1 / 2), answered(1, differing=20))
    assert schedule.is_drawn(judge, answered(1 / 2), answered(1, differing=40))


SHUFFLED = {"a": random.Random(0).sample(range(200), 200)}
BEST = [{"a": {d: float(d < 40) for d in range(200)}}, {"a": dict.fromkeys(range(200), 0.0)}]


class TestInformativeOrder:
    """The best differ on documents 0 to 39 of 200: there the candidate is worse by 0.5, else better by 0.1."""

    def test_begins_with_what_the_best_differ_on(self) -> None:
        order = interleaved(SHUFFLED, by_disagreement(BEST))["a"]
        assert sorted(order) == list(range(200))
        assert sum(d < 40 for d in order[:40]) == 20
        assert all(d >= 40 for d in order[80:])

    def test_estimates_have_no_bias(self) -> None:
        strata = by_disagreement(BEST)
        order = interleaved(SHUFFLED, strata)["a"]
        incumbent = Scores({"a": {d: {"acc,none": 0.5} for d in range(200)}})
        candidate = Scores({"a": {d: {"acc,none": 0.0 if d < 40 else 0.6} for d in order[:40]}})
        objective = Objective({"a": 1.0}, {"a": "acc,none"}, {})
        truth = 0.2 * 0.0 + 0.8 * 0.6
        assert objective.judge([], strata).estimate(candidate, incumbent).score == pytest.approx(truth)
        assert objective.judge([]).estimate(candidate, incumbent).score < truth - 0.15
        difference = objective.judge([], strata).difference(candidate, incumbent)
        assert difference.mean == pytest.approx(truth - 0.5)


class TestForecast:
    """Of what all documents will say, from those that were met."""

    documents: ClassVar = {"a": list(range(200)), "b": list(range(100))}
    objective = Objective({"a": 0.5, "b": 0.5}, {"a": "acc,none", "b": "acc,none"}, {})

    def scores(self, chance: float, seed: int) -> Scores:
        own = random.Random(seed)
        return Scores(
            {
                task: {d: {"acc,none": float(own.random() < chance)} for d in ids}
                for task, ids in self.documents.items()
            }
        )

    def test_a_random_part_of_the_documents_counts_as_that_part(self) -> None:
        met, incumbent = self.scores(0.5, 1), self.scores(0.5, 2)
        part = met.only({"a": range(50), "b": range(25)})
        forecast = self.objective.judge([]).forecast(part, incumbent)
        assert forecast.share == pytest.approx(1 / 4)
        assert forecast.mean == pytest.approx(self.objective.judge([]).difference(part, incumbent).mean)

    def test_all_documents_leave_nothing_open(self) -> None:
        forecast = self.objective.judge([]).forecast(self.scores(0.4, 1), self.scores(0.5, 2))
        assert (forecast.missing, forecast.share) == (0.0, 1.0)

    def test_how_often_one_who_is_behind_would_have_been_ahead(self) -> None:
        judge, wrong, stopped = self.objective.judge([]), 0, 0
        for seed in range(600):
            candidate, incumbent = self.scores(0.5, 2 * seed), self.scores(0.52, 2 * seed + 1)
            part = candidate.only({"a": range(100), "b": range(50)})
            behind = judge.behind(part, incumbent, 0.1)
            stopped += behind
            wrong += behind and judge.score(candidate) > judge.score(incumbent)
        assert stopped > 100
        assert wrong <= 0.1 * 600

    def test_documents_that_tell_apart_are_worth_more(self) -> None:
        """Two models differ on a fifth of those that others differ on, and hardly on the rest."""
        differ = {*range(0, 40, 5), SHUFFLED["a"][-1]}
        incumbent = Scores({"a": {d: {"acc,none": 1.0} for d in range(200)}})
        candidate = Scores({"a": {d: {"acc,none": float(d not in differ)} for d in range(200)}})
        objective, strata = Objective({"a": 1.0}, {"a": "acc,none"}, {}), by_disagreement(BEST)
        met = candidate.only({"a": interleaved(SHUFFLED, strata)["a"][:80]})
        assert objective.judge([], strata).forecast(met, incumbent).share > 1.4 * 80 / 200
