"""Races: which documents come when, and how often the better one is stopped."""

import random
import statistics
from typing import Any

import pytest

from heterosis.evaluate.scores import Scores
from heterosis.evolve.judging.comparison import Strata
from heterosis.evolve.judging.objective import Judge, Objective
from heterosis.evolve.judging.racing import Schedule, by_disagreement, interleaved

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
        order = interleaved(SHUFFLED, by_disagreement(BEST, {}))["a"]
        assert sorted(order) == list(range(200))
        assert sum(d < 40 for d in order[:40]) == 20
        assert all(d >= 40 for d in order[80:])

    def test_estimates_have_no_bias(self) -> None:
        strata = by_disagreement(BEST, {})
        order = interleaved(SHUFFLED, strata)["a"]
        incumbent = Scores({"a": {d: {"acc,none": 0.5} for d in range(200)}})
        candidate = Scores({"a": {d: {"acc,none": 0.0 if d < 40 else 0.6} for d in order[:40]}})
        objective = Objective({"a": 1.0}, {"a": "acc,none"}, {})
        truth = 0.2 * 0.0 + 0.8 * 0.6
        assert objective.judge([], strata).estimate(candidate, incumbent).score == pytest.approx(truth)
        assert objective.judge([]).estimate(candidate, incumbent).score < truth - 0.15
        difference = objective.judge([], strata).difference(candidate, incumbent)
        assert difference.mean == pytest.approx(truth - 0.5)


def test_a_group_of_documents_is_in_one_stratum() -> None:
    groups = {"a": {d: f"pair {d // 2}" for d in range(200)}}
    models = [{"a": {d: float(d == 6) for d in range(200)}}, {"a": dict.fromkeys(range(200), 0.0)}]
    strata = by_disagreement(models, groups)["a"]
    assert {d for d, stratum in strata.items() if stratum == "differing"} == {6, 7}


class TestForecast:
    """Of what all documents will say, from those that were met."""

    @staticmethod
    def of(values: dict[str, list[float]]) -> Scores:
        return Scores({task: {d: {"acc,none": x} for d, x in enumerate(own)} for task, own in values.items()})

    @staticmethod
    def judge(*tasks: str, strata: Strata | None = None, **more: Any) -> Judge:
        weights = dict.fromkeys(tasks, 1 / len(tasks))
        return Objective(weights, dict.fromkeys(tasks, "acc,none"), {}, **more).judge([], strata)

    def test_a_random_part_of_the_documents_counts_as_that_part(self) -> None:
        own = random.Random(0)
        met, incumbent = (self.of({"a": [float(own.random() < 0.5) for _ in range(200)]}) for _ in range(2))
        part = met.only({"a": range(50)})
        forecast = self.judge("a").forecast(part, incumbent)
        assert forecast.share == pytest.approx(1 / 4)
        assert forecast.mean == pytest.approx(self.judge("a").difference(part, incumbent).mean)

    def test_all_documents_leave_nothing_open(self) -> None:
        a, b = self.of({"a": [0.0, 1.0, 1.0]}), self.of({"a": [1.0, 1.0, 1.0]})
        forecast = self.judge("a").forecast(a, b)
        assert (forecast.mean, forecast.missing, forecast.share) == (pytest.approx(-1 / 3), 0.0, 1.0)

    @pytest.mark.parametrize(
        ("sizes", "telling"),
        [((200, 200), (0.2, 0.2)), ((1000, 100), (0.1, 0.9)), ((1000, 50), (0.2, 0.2))],
    )
    def test_says_how_sure_it_is(self, sizes: tuple[int, int], telling: tuple[float, float]) -> None:
        """In units of its own standard deviation it misses as a normal number does, whatever the tasks' sizes."""
        own, missed = random.Random(0), []
        documents = {task: list(range(n)) for task, n in zip("ab", sizes, strict=True)}
        shares, rates = dict(zip("ab", telling, strict=True)), {"differing": 0.3, "equal": 0.02}
        for _ in range(300):
            strata = {
                task: {d: "differing" if own.random() < shares[task] else "equal" for d in ids}
                for task, ids in documents.items()
            }
            incumbent = self.of({task: [0.0] * len(ids) for task, ids in documents.items()})
            candidate = self.of(
                {
                    task: [own.choice([-1.0, 1.0]) * (own.random() < rates[strata[task][d]]) for d in ids]
                    for task, ids in documents.items()
                }
            )
            order = interleaved(documents, strata)
            part = candidate.only({task: ids[: len(ids) // 4] for task, ids in order.items()})
            judge = self.judge("a", "b", strata=strata)
            forecast, truth = judge.forecast(part, incumbent), judge.difference(candidate, incumbent).mean
            missed.append((forecast.mean - truth) / forecast.missing**0.5)
        assert statistics.stdev(missed) == pytest.approx(1, abs=0.2)
        for side in (-1, 1):
            assert sum(side * z > 1.2816 for z in missed) == pytest.approx(30, abs=16)  # a tenth of them

    def test_strata_count_by_their_sizes(self) -> None:
        strata = {"a": {d: "differing" if d < 40 else "equal" for d in range(200)}}
        incumbent = self.of({"a": [0.5] * 200})
        part = self.of({"a": [0.0] * 40 + [0.6] * 160}).only({"a": [*range(20), *range(40, 60)]})
        assert self.judge("a", strata=strata).forecast(part, incumbent).mean == pytest.approx(-0.02)
        assert self.judge("a").forecast(part, incumbent).mean == pytest.approx(-0.2)

    def test_dependent_documents_count_as_one(self) -> None:
        own = random.Random(0)
        values = [float(own.random() < 0.5) for _ in range(100)]
        candidate = self.of({"a": [x for x in values for _ in range(2)]})
        incumbent, part = self.of({"a": [0.5] * 200}), {"a": range(100)}
        pairs = {"a": {d: str(d // 2) for d in range(200)}}
        alone = self.judge("a").forecast(candidate.only(part), incumbent)
        objective = Objective({"a": 1.0}, {"a": "acc,none"}, pairs)
        paired = objective.judge([]).forecast(candidate.only(part), incumbent)
        assert paired.missing == pytest.approx(2 * alone.missing, rel=0.05)

    @pytest.mark.parametrize("lower", [frozenset[str](), frozenset({"a"})])
    def test_log_likelihoods_are_told_apart_soon(self, lower: frozenset[str]) -> None:
        """They lie far apart, but differ little from one model to the other."""
        own, worse = random.Random(0), -1.0 if lower else 1.0
        theirs = [own.gauss(-120, 60) for _ in range(200)]
        candidate = self.of({"a": [x - worse * own.gauss(2, 3) for x in theirs]})
        judge, incumbent = self.judge("a", lower=lower), self.of({"a": theirs})
        assert judge.behind(candidate.only({"a": range(25)}), incumbent, 0.05)
        assert not judge.behind(incumbent.only({"a": range(25)}), incumbent, 0.05)

    def test_who_is_behind_would_seldom_have_been_ahead(self) -> None:
        own, judge, wrong, ahead, stopped = random.Random(0), self.judge("a"), 0, 0, 0
        for _ in range(1000):
            flips = [own.choice([-1.0, 1.0]) * (own.random() < 0.3) for _ in range(100)]
            candidate, incumbent = self.of({"a": flips}), self.of({"a": [0.0] * 100})
            behind = judge.behind(candidate.only({"a": range(50)}), incumbent, 0.2)
            stopped += behind
            ahead += sum(flips) > 0
            wrong += behind and sum(flips) > 0
        assert stopped > 200
        assert 10 < wrong < 0.2 * ahead  # neither never nor oftener than said

    def test_where_means_do_not_add_up_only_the_beaten_are_behind(self) -> None:
        candidate, incumbent = self.of({"a": [0.0] * 3 + [1.0] * 47}), self.of({"a": [1.0] * 100})
        assert self.judge("a").behind(candidate, incumbent, 0.2)
        objective = Objective({"a": 1.0}, {"a": "acc,none"}, {}, kind="worst")
        assert not objective.judge([incumbent]).beaten(candidate, incumbent, 0.01)
        assert not objective.judge([incumbent]).behind(candidate, incumbent, 0.01)

    def test_documents_that_tell_apart_are_worth_more(self) -> None:
        """Two models differ on a fifth of those that others differ on, and hardly on the rest."""
        differ = {*range(0, 40, 5), SHUFFLED["a"][-1]}
        incumbent = self.of({"a": [1.0] * 200})
        candidate = self.of({"a": [float(d not in differ) for d in range(200)]})
        strata = by_disagreement(BEST, {})
        met = candidate.only({"a": interleaved(SHUFFLED, strata)["a"][:80]})
        assert self.judge("a", strata=strata).forecast(met, incumbent).share > 1.4 * 80 / 200

    def test_several_looks_share_the_error(self) -> None:
        candidate, incumbent = self.of({"a": [0.0] * 2 + [1.0] * 62}), self.of({"a": [1.0] * 128})
        judge, alpha = self.judge("a"), 0.2
        assert judge.behind(candidate, incumbent, alpha)
        one, many = (Schedule.of({"a": list(range(128))}, first=first) for first in (64, 1))
        assert len(many.looks) > 6
        assert one.is_behind(judge, candidate, incumbent, alpha)
        assert not many.is_behind(judge, candidate, incumbent, alpha / 10)
