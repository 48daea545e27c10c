"""How often reported intervals contain the true gain: many cheap searches on models that are only formulas.

A recipe's quality on a task is a function of its weights, smooth but for a ripple of its own. A document is
answered rightly if quality, the document's ease and luck (of this recipe on this document) together are above 0.
Ease and luck are normal, so that the true score, the mean over infinitely many documents, is known. The search is
heterosis' own, from preflight to report; its pool of workers is a formula.
"""

import json
import math
import random
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import yaml
from scipy.special import ndtr

from heterosis.evaluate.scores import PROBABILITY, PerDocument
from heterosis.evolve import search
from heterosis.evolve.config import EvolveConfig

from .scoring import InProcessPool
from .skills import skills
from .zoos import ZOOS, Course, Home, home

TASKS, EXPERTS = "copy reverse", ("one", "two", "three")
LUCK = 0.5  # standard deviation, beside 1 for the ease of documents
RIPPLE = 0.1  # of quality, from recipe to recipe
SIZES = {"search": 40, "selection": 40, "holdout": 120}  # of a task
TRIALS = 16

Weights = tuple[float, ...]
Compared = dict[str, Any]


@dataclass(frozen=True)
class World:
    """What is true in one repetition.

    Attributes:
        seed: Of all that is random in it.
        centres: For each task the weights that are best for it.
        heights: Quality there.
    """

    seed: int
    centres: tuple[Weights, ...]
    heights: tuple[float, ...]

    @classmethod
    def draw(cls, seed: int) -> "World":
        """A world where the best weights of all tasks are the same expert's, or lie between the experts."""
        rng = random.Random(seed)
        tasks, experts = range(len(TASKS.split())), range(len(EXPERTS))
        centre = [rng.uniform(0.1, 0.9) for _ in experts]
        if rng.random() < 0.3:  # nothing to gain
            best = rng.choice(experts)
            centre = [float(i == best) for i in experts]
        spread = rng.uniform(0.0, 0.2)
        centres = tuple(tuple(c + rng.gauss(0, spread) for c in centre) for _ in tasks)
        return cls(seed, centres, tuple(rng.uniform(-0.5, 1.0) for _ in tasks))

    def quality(self, recipe: str, task: int) -> float:
        distance = math.dist(_weights(recipe), self.centres[task])
        return self.heights[task] - distance**2 + RIPPLE * self._random(recipe, task).gauss(0, 1)

    def true_score(self, recipe: str) -> float:
        """The mean over the tasks."""
        scale = math.hypot(1, LUCK)
        scores = [NormalDist().cdf(self.quality(recipe, t) / scale) for t in range(len(self.centres))]
        return sum(scores) / len(scores)

    def answered(self, recipe: str, task: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Whether each of a task's documents is answered rightly, and how probable that was, ``[count]`` each."""
        ease = np.random.default_rng([self.seed, task]).standard_normal(count)
        luck = np.random.default_rng(self._random(recipe, task).getrandbits(63)).standard_normal(count)
        sure = self.quality(recipe, task) + ease
        return (sure + LUCK * luck > 0).astype(float), ndtr(sure / LUCK)

    def _random(self, recipe: str, task: int) -> random.Random:
        digest = blake2b(f"{self.seed} {task} {recipe}".encode(), digest_size=8).digest()
        return random.Random(int.from_bytes(digest, "big"))


@lru_cache(maxsize=4096)
def _weights(recipe: str) -> Weights:
    """The weight of each expert in a recipe, over all layers, divided by their sum if that is above 1."""
    read = yaml.load(recipe, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    entries = read.get("models") or [s for part in read["slices"] for s in part["sources"]]
    weights = {name: [0.0] for name in EXPERTS}
    for entry in entries:
        if (name := Path(entry["model"]).name) in weights:
            weights[name].append(_mean((entry.get("parameters") or {}).get("weight", 1.0)))
    means = [sum(values) / max(1, len(values) - 1) for values in weights.values()]
    return tuple(mean / max(1.0, sum(means)) for mean in means)


def _mean(setting: Any) -> float:
    if isinstance(setting, list):
        return sum(map(_mean, setting)) / len(setting)
    return _mean(setting["value"]) if isinstance(setting, dict) else float(setting)


class FormulaScorer:
    """Scores recipes by a world's formulas, as `scoring.Scorer` does by models."""

    metric = "acc,none"
    checksum = ""

    def __init__(self, world: World, tasks: list[str], count: int) -> None:
        self._world, self._tasks, self._count = world, tasks, count

    def measured(self, recipe: str, documents: Mapping[str, Sequence[int]]) -> PerDocument:
        found: PerDocument = {}
        for task, ids in documents.items():
            right, probability = self._world.answered(recipe, self._tasks.index(task), self._count)
            found[task] = {d: {self.metric: float(right[d]), PROBABILITY: float(probability[d])} for d in ids}
        return found


def read_coverage(path: Path | None) -> dict[int, Compared]:
    """Repetitions by seed, from a file of JSON lines."""
    lines = path.read_text().splitlines() if path and path.exists() else []
    return {line["seed"]: line for line in map(json.loads, lines)}


def repeat(seeds: Iterable[int], folder: Path, path: Path | None, changes: Mapping[str, Any]) -> None:
    """Search once with each seed, and write down what was reported and what is true."""
    for compared in _repetitions(seeds, folder, changes):
        if path:
            with path.open("a") as file:
                file.write(json.dumps(compared) + "\n")


def _repetitions(seeds: Iterable[int], folder: Path, changes: Mapping[str, Any]) -> Iterator[Compared]:
    place = formula_place(folder)
    documents = len(place.documents(place.task_names[0]))
    for seed in seeds:
        world = World.draw(seed)
        with tempfile.TemporaryDirectory(prefix="heterosis-coverage-", dir=_memory()) as name:
            run = Path(name) / "run"
            summary = search(
                formula_config(place, seed, changes),
                run,
                make_pool=lambda setup, workers, world=world: InProcessPool(
                    FormulaScorer(world, place.task_names, documents)
                ),
            )
            yield {"seed": seed, **_compared(summary, run, world)}


def formula_place(folder: Path) -> Home:
    """Models and tasks for the preflight, hardly trained; nobody looks at their weights."""
    course = Course(skills("copy"), 1, 1e-3)
    zoo = replace(
        ZOOS["habits"],
        name="formulas",
        base=course,
        experts=dict.fromkeys(EXPERTS, (course,)),
        tasks=skills(TASKS),
        method="task_arithmetic",
        layers=2,
    )
    return home(zoo, folder)


def formula_config(place: Home, seed: int, changes: Mapping[str, Any]) -> EvolveConfig:
    data = {
        "models": place.experts,
        "base_model": place.base,
        "merge_method": place.zoo.method,
        "tasks": [{"name": name, "weight": 1 / len(place.task_names)} for name in place.task_names],
        "include_path": str(place.tasks),
        "apply_chat_template": False,
        "documents": {**SIZES, "seed": seed},
        "trials": TRIALS,
        "workers": 1,
        "seed": seed,
    }
    return EvolveConfig.parse(yaml.safe_dump({**data, **changes}), "the benchmark's config")


def _memory() -> str | None:
    """A folder in memory, where there is one: a search waits for the disk after every trial."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _compared(summary: Mapping[str, Any], run: Path, world: World) -> Compared:
    asks = [json.loads(line) for line in (run / "asks.jsonl").read_text().splitlines()]
    recipes = {ask["name"]: ask["recipe"] for ask in asks}
    champion = summary["champion"]["name"]
    true = world.true_score(recipes[champion])
    compared: Compared = {"champion": champion, "true": round(true, 6), "search": summary["champion"]["search"]}
    compared["signal"] = champion not in summary["parents"] and champion not in summary["baselines"]
    over = {"best parent": summary["gain_over_best_parent"], "uniform": summary["gain_over_uniform"]}
    for name, gain in over.items():
        other = gain.get("parent", "uniform") if gain else champion
        if other != champion:
            compared[name] = [gain["holdout"], *gain["ci95"], round(true - world.true_score(recipes[other]), 6)]
    return compared


def coverage_table(repetitions: Collection[Compared]) -> Iterator[str]:
    """How many intervals contain the true gain, for searches with and without a signal."""
    yield "| gain over | champion | searches | the interval contains it | lies below it | above | mean width |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name in ("best parent", "uniform"):
        for signal, champion in ((True, "found by the search"), (False, "a parent or baseline")):
            those = [c[name] for c in repetitions if c["signal"] is signal and name in c]
            if not those:
                continue
            n = len(those)
            below, above = (
                sum(true > high for _, _, high, true in those),
                sum(true < low for _, low, _, true in those),
            )
            inside = 1 - (below + above) / n
            half = 1.96 * math.sqrt(inside * (1 - inside) / n)
            width = sum(high - low for _, low, high, _ in those) / n
            yield (
                f"| {name} | {champion} | {n} | {inside:.1%} ± {half:.1%} | {below / n:.1%} | {above / n:.1%} | "
                f"{width:.3f} |"
            )
