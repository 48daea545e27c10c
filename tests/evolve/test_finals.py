"""Finals: who is on the shortlist, and how finalists race on the selection documents."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from heterosis.evaluate.scores import Scores
from heterosis.evolve.faults import SearchFailed
from heterosis.evolve.judging.finals import Finals, shortlist
from heterosis.evolve.judging.objective import Judge, Objective
from heterosis.evolve.judging.races import Races
from heterosis.evolve.judging.racing import Schedule
from heterosis.evolve.record.trial import Ask, Trial

KEY = "acc,none"
OBJECTIVE = Objective({"task": 1.0}, {"task": KEY}, {})
DOCUMENTS = {"task": list(range(64))}
STOPPED = 16  # search documents after which the parents lost against the uniform merge
RIGHT = {  # of 64 documents, the shares that each answers rightly, in search and in selection
    "ann": (0.3, 0.3),
    "bob": (0.4, 0.3),
    "eve": (0.02, 0.02),
    "uniform": (0.4, 0.4),
    "good": (0.9, 0.8),
    "lucky": (0.95, 0.5),
    "bad": (0.5, 0.5),
}
KINDS = {"uniform": "baseline", "good": "search", "lucky": "search", "bad": "search"}


def scores(name: str, part: str, documents: Sequence[int]) -> Scores:
    """The documents that a model answers rightly are spread evenly; which they are differs by model."""
    share, own = RIGHT[name][part != "search"], 9 * list(RIGHT).index(name)
    return Scores({"task": {d: {KEY: float((d * 29 + own) % 64 < 64 * share)} for d in documents}})


class Table:
    """A record that is only looked at, and what scores candidates for it."""

    def __init__(self, failing: Mapping[str, int] | None = None) -> None:
        self.failing = failing or {}
        asks = [Ask(i, KINDS.get(name, "parent"), name, name, {}, 0) for i, name in enumerate(RIGHT)]
        self.trials = [
            Trial(a.number, a, RIGHT[a.name][0], losses=(-RIGHT[a.name][0],), pruned=a.kind == "parent")
            for a in asks
        ]
        self.known = {
            (t.ask.number, "search"): scores(
                t.ask.name, "search", DOCUMENTS["task"][: STOPPED if t.pruned else None]
            )
            for t in self.trials
        }
        self.met: dict[str, int] = {}  # selection documents

    def scores(self, ask: Ask, part: str) -> Scores | None:
        return self.known.get((ask.number, part))

    def score_on(self, part: str, asks: Sequence[Ask], documents: Mapping[str, Sequence[int]] | None) -> bool:
        for ask in asks:
            wanted = (documents or DOCUMENTS)["task"]
            if part != "holdout" and len(wanted) > self.failing.get(ask.name, 64):
                continue
            if part == "selection":
                self.met[ask.name] = len(wanted)
            self.known[ask.number, part] = scores(ask.name, part, wanted)
        return True


def names(trials: Sequence[Trial]) -> list[str]:
    return [t.ask.name for t in trials]


def judge(part: str = "search") -> Judge:
    return OBJECTIVE.judge([])


def finals(table: Table, race: bool = True) -> Finals:
    chosen = shortlist(table, 3, judge())  # type: ignore[arg-type]
    finalists_race = Schedule.of(DOCUMENTS, enabled=race)
    referee = SimpleNamespace(judge=judge, parents_race=Schedule.of(DOCUMENTS), finalists_race=finalists_race)
    races = Races(table, referee, table.score_on, lambda champion: None)  # type: ignore[arg-type]
    found = races.finals(chosen)
    assert found is not None
    return found


def test_the_shortlist_has_who_may_be_the_best() -> None:
    assert names(shortlist(Table(), 3, judge())) == ["lucky", "good"]  # type: ignore[arg-type]


def test_equals_stand_in_the_order_of_asking() -> None:
    """Whose result came first is chance."""
    table = Table()
    table.trials = [replace(t, number=n, score=0.9) for n, t in enumerate(reversed(table.trials)) if t.complete]
    assert names(shortlist(table, 2, judge())) == ["uniform", "good", "lucky"]  # type: ignore[arg-type]


def test_a_parent_that_may_be_the_best_is_on_the_shortlist() -> None:
    table = Table()
    table.trials = [replace(t, pruned=False) for t in table.trials if t.ask.name in ("bob", "uniform", "eve")]
    for trial in table.trials:
        table.known[trial.ask.number, "search"] = scores(trial.ask.name, "search", DOCUMENTS["task"])
    assert names(shortlist(table, 3, judge())) == ["bob", "uniform"]  # type: ignore[arg-type]


def test_all_baselines_stay_where_the_objective_needs_the_parents() -> None:
    table = Table()
    gain = Objective({"task": 1.0}, {"task": KEY}, {}, "gain").judge([table.known[0, "search"]])
    assert {"ann", "bob", "eve", "uniform"} <= set(names(shortlist(table, 3, gain)))  # type: ignore[arg-type]


@pytest.mark.parametrize("race", [True, False])
def test_selection_finds_the_champion_and_the_best_parent(race: bool) -> None:
    table = Table()
    found = finals(table, race)
    assert (found.champion.ask.name, found.best_parent.ask.name) == ("good", "bob")
    assert found.finalists[0].trial is found.champion
    ann, bob, eve = (len(table.known[t.ask.number, "search"].documents["task"]) for t in table.trials[:3])
    assert ann == bob == 64 > eve, "who may be the best parent meets all search documents"
    everybody = {"ann", "bob", "eve", "uniform", "good"}
    assert {t.ask.name for t in table.trials if table.scores(t.ask, "holdout")} == everybody


def test_a_race_is_cheaper_and_its_estimates_are_paired() -> None:
    raced, whole = Table(), Table()
    found, exact = finals(raced), finals(whole, race=False)
    assert sum(raced.met.values()) < sum(whole.met.values())
    assert raced.met["lucky"] < 64
    estimate, true = (
        next(f.selection for f in of.finalists if f.trial.ask.name == "lucky") for of in (found, exact)
    )
    assert estimate == pytest.approx(true, abs=0.15)


def test_a_finalist_that_fails_half_way_is_out_and_a_parent_that_does_ends_the_finals() -> None:
    table = Table({"good": 16})
    assert finals(table, race=False).champion.ask.name == "lucky"
    half_way = finals(Table({"good": 16}))
    assert "good" not in [f.trial.ask.name for f in half_way.finalists], "who dropped out because it failed"
    with pytest.raises(SearchFailed, match="bob could not be scored on the search documents"):
        finals(Table({"bob": 0}))
