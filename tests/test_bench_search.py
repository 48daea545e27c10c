"""The search benchmark's parts, on a zoo that was hardly trained."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from heterosis.evaluate.scores import PROBABILITY

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The benchmark's script, imported as it is run."""
    import runpy

    sys.path.insert(0, str(SCRIPTS))
    yield runpy.run_path(str(SCRIPTS / "bench_search.py"))
    sys.path.remove(str(SCRIPTS))


@pytest.fixture(scope="module")
def scorer(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from search_bench.zoos import Course, skills

    brief = Course(skills("copy"), 3, 1e-2)
    experts = {name: (replace(brief, skills=skills(name)),) for name in ("copy", "parity", "reverse")}
    zoo = replace(
        bench["ZOOS"]["habits"], base=brief, experts=experts, tasks=skills("copy parity"), layers=2, granularity=1
    )
    return bench["Scorer"](bench["home"](zoo, tmp_path_factory.mktemp("zoos")))


def test_scores_are_those_of_lm_eval(bench: Any, scorer: Any) -> None:
    from search_bench.ours import config_of, make_split

    from heterosis.evolve.workers.pool import Evaluation, Setup
    from heterosis.evolve.workers.worker import Worker

    split = make_split(scorer.place, 1)
    few = {task: documents[:20] for task, documents in split.search.items()}
    recipe = next(bench["CONTENDERS"]["mergekit-evolve"](scorer.place, 1))
    evaluation = Worker(Setup(config_of(scorer.place, 1, {}), split)).score(recipe, few)
    assert isinstance(evaluation, Evaluation), evaluation
    mine = scorer.score(recipe, few)
    assert {
        task: {d: s["acc,none"] for d, s in of.items()} for task, of in evaluation.scores.documents.items()
    } == mine
    assert {d for of in mine.values() for d in of.values()} <= {0.0, 1.0}
    measured = scorer.measured(recipe, few)
    for task, of in evaluation.scores.documents.items():
        for document, own in of.items():
            assert own[PROBABILITY] == pytest.approx(measured[task][document][PROBABILITY], rel=1e-3)


def test_mergekit_evolves_decoding(bench: Any, scorer: Any) -> None:
    recipe = yaml.safe_load(next(bench["CONTENDERS"]["mergekit-evolve"](scorer.place, 0)))
    assert len(recipe["slices"]) == 2
    assert recipe["parameters"] == {"normalize": True}
    for part in recipe["slices"]:
        *experts, base = part["sources"]
        assert base["model"] == scorer.place.base
        for source in experts:
            assert source["parameters"]["weight"] >= 0
            assert 0 <= source["parameters"]["density"] <= 1


def test_a_contender_returns_its_best_noisy_sample(bench: Any, scorer: Any) -> None:
    from search_bench.ours import make_split

    curve = bench["follow"](scorer, "random", 3, make_split(scorer.place, 3).search, 6)
    assert curve[-1]["documents"] == 6 * 100
    searched = [point["search"] for point in curve]
    assert searched == sorted(searched)


def test_heterosis_runs_on_the_pool(bench: Any, scorer: Any) -> None:
    from search_bench.ours import searches

    point = next(searches(scorer, 0, 10**6, {}))
    assert point["documents"] >= 3 * 100  # parents at least
    assert point["reported"] > 0
    assert 0 <= point["true"] <= 1


def test_a_curve_has_reached_a_score_when_it_stays_there(bench: Any) -> None:
    results = bench["Results"](None)
    for seed, trues in enumerate(([0.2, 0.6, 0.4, 0.8], [0.4, 0.6, 0.6, 0.6])):
        curve = [{"documents": 10 * (i + 1), "search": 0.9, "true": true} for i, true in enumerate(trues)]
        results.add("zoo", "heterosis", seed, curve=curve)
    assert results.reaches("zoo", "heterosis", 0.5) == 20  # means 0.3, 0.6, 0.5, 0.7
    assert results.reaches("zoo", "heterosis", 0.55) == 40
    assert results.reaches("zoo", "heterosis", 0.75) is None


def test_what_is_changed_is_compared_at_its_own_budget(bench: Any) -> None:
    results = bench["Results"](None)
    for seed in range(2):
        plain = [{"documents": d, "search": 0.9, "true": d / 100 + seed / 10} for d in (10, 30, 50)]
        changed = [{"documents": d, "search": 0.9, "true": 0.25 + seed / 5} for d in (10, 40)]
        for name, curve, budget in (("heterosis", plain, 100), ("heterosis without luck", changed, 40)):
            results.add("zoo", name, seed, curve=curve, budget=budget, known={"uniform": 0.1})
    lines = list(bench["tables"](results))
    assert "| zoo | without luck | 40 | 2 | 0.350 ± 1.271 | +0.000 ± 0.635 |" in lines
    assert not any(line.startswith("| heterosis without luck") for line in lines)
