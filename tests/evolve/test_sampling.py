"""Candidates meet a sample of the search documents and are compared by probabilities; the best meet all."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from heterosis.evaluate import Split
from heterosis.evolve import search
from heterosis.evolve.config import EvolveConfig, Racing
from heterosis.evolve.judging.objective import Objective
from heterosis.evolve.judging.sampling import PROMOTED, sample_of
from heterosis.evolve.record.record import read_asks, read_scores, read_trials
from heterosis.evolve.record.tally import Tally
from heterosis.evolve.record.trial import Ask, Trial
from heterosis.evolve.results.table import read_outlines
from heterosis.evolve.watching.progress import view
from heterosis.evolve.watching.standing import Standing, Watcher

SIZES = {"search": 48, "selection": 12, "holdout": 12}
SAMPLE = 24

Run = Callable[..., Any]


@pytest.fixture
def run(toy_config: Callable[..., dict[str, Any]], pools: Any, tmp_path: Path) -> Run:
    def go(folder: str = "run", judge: Any = pools.hill, pool: dict[str, Any] | None = None, **config: Any) -> Any:
        plain = toy_config(**{"workers": 1, "optimizer": "cma", "racing": True, "documents": SIZES, **config})
        make_pool = pools(judge, **(pool or {}))
        return search(EvolveConfig.parse(yaml.safe_dump(plain)), tmp_path / folder, make_pool=make_pool)

    return go


def trials_of(folder: Path) -> list[Trial]:
    return sorted(read_trials(folder), key=lambda t: t.ask.number)


def test_candidates_meet_the_same_sample_and_the_best_of_them_more(run: Run, tmp_path: Path) -> None:
    summary = run(trials=20)
    trials = trials_of(tmp_path / "run")
    sampled = [t for t in trials if t.ask.is_candidate and not t.ask.promoted]
    promoted = [t for t in trials if t.ask.promoted]
    assert {t.documents for t in sampled} == {SAMPLE}
    assert all(t.pruned for t in sampled)
    scores = read_scores(tmp_path / "run")
    met = {tuple(scores[t.ask.number, "search"].documents["toy_choice"]) for t in sampled}
    assert len(met) == 1
    assert 1 <= len(promoted) <= 2 * PROMOTED
    ranked = sorted(sampled, key=lambda t: (t.losses, t.ask.number))
    assert [t.ask.recipe for t in promoted] == [t.ask.recipe for t in ranked[: len(promoted)]]
    assert any(t.documents == SIZES["search"] for t in promoted)
    assert summary["champion"]["name"] in {t.ask.name for t in promoted}
    assert summary["trials"]["complete"] >= 2  # the uniform merge and the first that was promoted


def test_the_budget_of_trials_counts_who_is_promoted_once(run: Run, tmp_path: Path) -> None:
    run(trials=15)
    assert sum(not ask.promoted for ask in read_asks(tmp_path / "run")) == 15


def test_counts_and_the_best_estimate_are_of_who_is_not_promoted_yet(run: Run, tmp_path: Path) -> None:
    summary = run(trials=20, pool={"luck": 0.0})
    counts = summary["trials"]
    assert counts["complete"] + counts["pruned"] == 20
    tally = Tally()
    trials = read_trials(tmp_path / "run")
    first = next(t.number for t in trials if t.ask.promoted)
    for trial in trials[:first]:
        tally.add(trial)
    sampled = [t for t in trials[:first] if t.pruned]
    assert tally.ahead == min(sampled, key=lambda t: t.rank)
    for trial in trials[first:]:
        tally.add(trial)
    assert tally.ahead is None or tally.ahead.ask.promoted
    assert tally.counted == 20


def test_a_run_folder_shows_who_may_be_ahead_and_who_was_promoted(run: Run, tmp_path: Path) -> None:
    run(trials=20, pool={"luck": 0.0})
    trials = read_trials(tmp_path / "run")
    outlines = read_outlines(tmp_path / "run")
    assert [t.ask.promoted for t in outlines] == [t.ask.promoted for t in trials]
    summary = Watcher(tmp_path / "run").look().summary
    first = next(t.number for t in trials if t.ask.promoted)
    ahead = Standing(summary, outlines[:first]).tally.ahead
    assert ahead is not None
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(view(Standing(summary, outlines[:first])))
    text = console.export_text()
    assert f"perhaps ahead: trial {ahead.number}, on {SAMPLE} of them" in text
    assert f"about {ahead.score:.4f} on {SAMPLE} documents" in text


def test_an_optimizer_is_told_probabilities_and_people_the_metric(run: Run, tmp_path: Path) -> None:
    run(trials=12, pool={"luck": 0.0})
    scores = read_scores(tmp_path / "run")
    for trial in trials_of(tmp_path / "run"):
        own = scores[trial.ask.number, "search"].documents["toy_choice"]
        if trial.ask.is_candidate and not trial.ask.promoted:
            told = sum(values["probability,none"] for values in own.values()) / len(own)
            assert trial.losses == (pytest.approx(-told),)
        if trial.complete:
            assert trial.score == pytest.approx(sum(values["acc,none"] for values in own.values()) / len(own))


def test_who_has_no_probabilities_fails_by_name(run: Run, tmp_path: Path) -> None:
    """As where no document of the sample names an answer that there is."""
    names = [ask.name for ask in (run("other", trials=12), read_asks(tmp_path / "other"))[1] if ask.is_candidate]
    summary = run(trials=12, pool={"probable": lambda name: name != names[2]})
    assert summary["status"] == "finished"
    failed = [t for t in trials_of(tmp_path / "run") if t.score is None]
    assert {t.ask.name for t in failed} == {names[2]}
    assert all("NaN" in str(t.cause) for t in failed)


def test_who_leads_by_the_metric_is_the_champion(run: Run, tmp_path: Path) -> None:
    """The most probable answers need not be the most right ones: of those promoted the metric chooses."""

    summary = run(trials=16, pool={"luck": 1.0})
    promoted = [t for t in trials_of(tmp_path / "run") if t.ask.promoted and t.complete]
    best = max(promoted, key=lambda t: t.score or 0.0)
    assert summary["champion"]["name"] == best.ask.name


@pytest.mark.parametrize("crash_after", [3, 9, 16, 19, 21])
def test_a_run_that_was_killed_goes_on_as_if_it_was_not(
    run: Run, pools: Any, tmp_path: Path, crash_after: int
) -> None:
    run("whole", trials=16)
    with pytest.raises(pools.crash):
        run(trials=16, pool={"crash_after": crash_after})
    run(trials=16)

    def asked(name: str) -> list[tuple[str, str, bool]]:
        return [(ask.kind, ask.recipe, ask.promoted) for ask in read_asks(tmp_path / name)]

    assert asked("run") == asked("whole")


def test_a_run_that_is_extended_promotes_the_best_of_all(run: Run, tmp_path: Path) -> None:
    run(trials=10)
    before = [t.ask.recipe for t in trials_of(tmp_path / "run") if t.ask.promoted]
    run(trials=30)
    trials = trials_of(tmp_path / "run")
    after = [t.ask.recipe for t in trials if t.ask.promoted]
    assert after[: len(before)] == before
    assert len(after) == len(set(after)) > len(before)


def test_runs_of_before_go_on_racing(run: Run, pools: Any, tmp_path: Path) -> None:
    with pytest.raises(pools.crash):
        run(trials=16, pool={"crash_after": 1})
    path = tmp_path / "run/run.json"
    state = json.loads(path.read_text())
    assert state.pop("sample") == {"toy_choice": SAMPLE}
    path.write_text(json.dumps(state))
    run(trials=16)
    trials = trials_of(tmp_path / "run")
    assert not any(t.ask.promoted for t in trials)
    assert any(t.complete for t in trials if t.ask.is_candidate)


def test_a_run_keeps_its_sample(run: Run, tmp_path: Path) -> None:
    run(trials=10, max_documents=500)
    run(trials=500, max_documents=9000, optimizer="cma")
    sampled = [t for t in trials_of(tmp_path / "run") if t.ask.is_candidate and not t.ask.promoted]
    assert len(sampled) > 160
    assert {t.documents for t in sampled} == {SAMPLE}


def test_none_where_the_metric_is_asked_for(run: Run, tmp_path: Path) -> None:
    run(trials=12, racing={"by": "metric"})
    trials = trials_of(tmp_path / "run")
    assert not any(t.ask.promoted for t in trials)
    assert any(t.complete for t in trials if t.ask.is_candidate)


@pytest.mark.parametrize("most", [500, 640, 900])
def test_a_budget_of_documents_is_kept(run: Run, tmp_path: Path, most: int) -> None:
    summary = run(trials=200, max_documents=most)
    assert summary["status"] == "finished"
    assert most - 4 * SAMPLE - SIZES["search"] <= summary["documents"]["scored"] <= most
    assert any(t.ask.promoted for t in trials_of(tmp_path / "run"))


def test_the_ordered_mode_promotes_the_same_for_any_number_of_workers(run: Run, tmp_path: Path) -> None:
    options = {"trials": 20, "ordered": 3, "optimizer": "random"}
    run("one", **options)
    run("three", **options, workers=3, pool={"last_first": True})
    one, three = ([(a.recipe, a.rivals) for a in read_asks(tmp_path / f) if a.promoted] for f in ("one", "three"))
    assert one == three != []


def test_common_recipes_meet_the_sample_too(run: Run, tmp_path: Path) -> None:
    def judge(ask: Ask, part: str) -> float:
        return 0.9 if ask.name == "ties" else 0.2

    summary = run(judge=judge, trials=60, optimizer="random")
    trials = [t for t in trials_of(tmp_path / "run") if t.ask.name == "ties"]
    assert [t.ask.promoted for t in trials] == [False, True]
    assert trials[0].documents == SAMPLE
    assert summary["champion"]["name"] == "ties"
    assert "candidate" not in summary["champion"]["name"]


def test_workers_for_all_baselines_at_once(run: Run, tmp_path: Path) -> None:
    """Then no baseline is known that others could be compared with."""
    run(trials=64, workers=8, optimizer="random")
    assert {t.documents for t in trials_of(tmp_path / "run") if t.ask.name == "ties" and not t.ask.promoted} == {
        SAMPLE
    }


class TestWhereThereIsASample:
    OBJECTIVE = Objective({"a": 1.0}, {"a": "acc,none"}, {"a": {}}, probable=frozenset("a"))

    def sample(
        self,
        objective: Objective = OBJECTIVE,
        documents: int = 100,
        trials: int = 100,
        budget: int | None = None,
        **racing: Any,
    ) -> Any:
        nothing: dict[str, list[int]] = {"a": []}
        split = Split({"a": list(range(documents))}, nothing, nothing)
        return sample_of(objective, split, Racing.model_validate(racing), trials, budget)

    def test_a_quarter(self) -> None:
        assert self.sample(documents=200) == {"a": list(range(50))}

    def test_at_least_24_documents_and_twelve_of_each_task(self) -> None:
        assert self.sample(documents=48) == {"a": list(range(24))}
        weights = dict.fromkeys("abc", 1.0)
        metrics = dict.fromkeys("abc", "acc,none")
        three = Objective(weights, metrics, {task: {} for task in "abc"}, probable=frozenset("abc"))
        nothing: dict[str, list[int]] = {task: [] for task in "abc"}
        split = Split({task: list(range(30)) for task in "abc"}, nothing, nothing)
        assert sample_of(three, split, Racing(), 100) == {task: list(range(12)) for task in "abc"}

    @pytest.mark.parametrize(
        ("trials", "budget", "size"),
        [
            (100, None, 50),
            (160, None, 50),
            (240, None, 75),
            (1000, None, 100),
            (1000, 8000, 50),
            (1000, 12000, 75),
        ],
    )
    def test_more_of_large_budgets(self, trials: int, budget: int | None, size: int) -> None:
        assert len(self.sample(documents=200, trials=trials, budget=budget)["a"]) == size

    def test_no_more_than_half(self) -> None:
        assert self.sample(documents=47) == {}

    def test_not_by_the_metric_or_without_races(self) -> None:
        assert self.sample(by="metric") == {}
        assert self.sample(enabled=False) == {}

    @pytest.mark.parametrize(
        "changes",
        [{"probable": frozenset()}, {"kind": "pareto"}, {"kind": "worst"}, {"constraints": {"a": 0.0}}],
    )
    def test_only_for_weighted_sums_of_probable_tasks(self, changes: dict[str, Any]) -> None:
        assert self.sample(dataclasses.replace(self.OBJECTIVE, **changes)) == {}

    def test_a_task_that_does_not_count_needs_none(self) -> None:
        more = {"weights": {"a": 1.0, "b": 0.0}, "metrics": {"a": "acc,none", "b": "crc,none"}}
        assert dataclasses.replace(self.OBJECTIVE, **more).by_probability is not None
