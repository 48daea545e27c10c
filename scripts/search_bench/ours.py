"""heterosis' own search on a zoo: the whole of it, baselines, racing, finals, on the pool in this process."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from heterosis.evaluate import Split, TaskSet, split_documents
from heterosis.evolve import search
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.workers.pool import Setup
from heterosis.merge import Recipe

from .scoring import InProcessPool, Scorer
from .zoos import Home

Point = dict[str, Any]

BUDGETS = (5, 7, 10, 14, 20, 35, 60, 100)  # in full evaluations
TRIALS = 1000  # more than any of them pays for

# Each ingredient switched off alone: what is changed in the config, a section's keys one by one.
ABLATIONS: dict[str, dict[str, Any]] = {
    "probability": {"racing": {"by": "metric"}},
    "racing": {"racing": {"enabled": False}},
    "auto_optimizer": {"optimizer": {"name": "cma"}},
    "gp": {"optimizer": {"name": "tpe"}},
    "depth": {"genome": {"control_points": 1}},
    "shortlist": {"finalists": 1},
    "start": {"random_init": True},
    "one_density": {"genome": {"per_model": ["density"]}},  # of methods that have one
}


def make_split(place: Home, seed: int) -> Split:
    """The documents of a seed, the same for every contender: heterosis' own split."""
    tasks = _task_set(place)
    return split_documents(tasks.groups(), place.zoo.sizes, seed, tasks.fingerprints())


_TASK_SETS: dict[Path, TaskSet] = {}


def _task_set(place: Home) -> TaskSet:
    if place.tasks not in _TASK_SETS:
        _TASK_SETS[place.tasks] = TaskSet(place.task_names, include_path=place.tasks)
    return _TASK_SETS[place.tasks]


def config_of(place: Home, seed: int, changes: Mapping[str, Any]) -> EvolveConfig:
    """The shortest config of a zoo: models, method, tasks; the rest is default."""
    weight = 1 / len(place.task_names)
    data: dict[str, Any] = {
        "models": list(place.experts),
        "merge_method": place.zoo.method,
        "tasks": [{"name": name, "weight": weight} for name in place.task_names],
        "include_path": str(place.tasks),
        "apply_chat_template": False,
        "documents": {**asdict(place.zoo.sizes), "seed": seed},
        "dtype": place.zoo.dtype,
        "workers": 1,
        "seed": seed,
    }
    if place.zoo.method != "linear":
        data["base_model"] = place.base
    if "genome" in changes:  # a genome's keys stand at the top, or in their section, but not in both
        genome = {key: data.pop(key) for key in ("models", "merge_method", "base_model", "dtype") if key in data}
        data["genome"] = genome
    return EvolveConfig.parse(yaml.safe_dump(_changed(data, changes)), "the benchmark's config")


def _changed(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(data)
    for key, value in changes.items():
        inner = changed.get(key)
        changed[key] = _changed(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return changed


def searches(
    scorer: Scorer, seed: int, budget: int, changes: Mapping[str, Any], budgets: Sequence[float] = BUDGETS
) -> Iterator[Point]:
    """Searches with more and more documents: those of the budgets, in full evaluations, that lie within one.

    Each is a run of its own, as of a user who gave that budget, so each pays for its baselines and its finals. Its
    documents are all that the pool was asked for but the held-out ones, on which nothing is decided; these are
    counted apart.
    """
    config = config_of(scorer.place, seed, changes)
    split = make_split(scorer.place, seed)
    report = (len(scorer.place.experts) + 2) * split.size("holdout")
    for documents in (round(evaluations * split.size("search")) for evaluations in budgets):
        if documents <= budget:
            yield run(scorer, config.updated(max_documents=documents + report), TRIALS)


def run(scorer: Scorer, config: EvolveConfig, trials: int) -> Point:
    """One search, and what is true of its champion."""
    pools: list[_CountingPool] = []

    def make_pool(setup: Setup, workers: int) -> InProcessPool:
        pools.append(_CountingPool(scorer, setup.split))
        return pools[0]

    with tempfile.TemporaryDirectory(prefix="heterosis-bench-") as name:
        folder = Path(name) / "run"
        summary = search(config, folder, trials=trials, make_pool=make_pool)
        if summary["status"] != "finished":
            raise SystemExit(f"the search with {trials} trials was stopped: {summary['stopped']}")
        champion = Recipe.load(folder / "best.yaml").model_copy(update={"heterosis": {"seed": config.seed}})
        asks = [json.loads(line) for line in (folder / "asks.jsonl").read_text().splitlines()]
    (pool,) = pools
    true = scorer.true_score(champion.to_yaml())
    recipes = {ask["name"]: ask["recipe"] for ask in asks if ask["kind"] in ("parent", "baseline")}
    over_parent, over_uniform = summary["gain_over_best_parent"], summary["gain_over_uniform"]
    return {
        "trials": sum(summary["trials"][state] for state in ("complete", "pruned", "failed")),
        "documents": pool.scored - pool.reported,
        "reported": pool.reported,
        "search": summary["champion"]["search"],
        "true": true,
        "champion": summary["champion"]["name"],
        "gain_over_best_parent": over_parent and [over_parent["holdout"], *over_parent["ci95"]],
        "true_gain_over_best_parent": over_parent and true - scorer.true_score(recipes[over_parent["parent"]]),
        "gain_over_uniform": over_uniform and [over_uniform["holdout"], *over_uniform["ci95"]],
        "true_gain_over_uniform": over_uniform and true - scorer.true_score(recipes["uniform"]),
        "outcome": summary["outcome"],
        "seconds": summary["seconds"]["total"],
    }


class _CountingPool(InProcessPool):
    """Counts the documents of the report apart.

    Attributes:
        reported: Held-out documents among those scored.
    """

    def __init__(self, scorer: Scorer, split: Split) -> None:
        super().__init__(scorer)
        self._holdout = {task: set(documents) for task, documents in split.holdout.items()}
        self.reported = 0

    def submit(self, key: object, recipe: str, documents: Mapping[str, list[int]]) -> None:
        self.reported += sum(len(self._holdout[task].intersection(ids)) for task, ids in documents.items())
        super().submit(key, recipe, documents)
