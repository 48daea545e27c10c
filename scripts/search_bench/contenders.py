"""How others search, as descriptions of their algorithms: each proposes recipes and is told their scores.

A contender is a generator: it yields a recipe (YAML) and is sent its mean score on all search documents, or None
where that recipe has no score. What it would return is the best of these noisy scores, as all of them do.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from heterosis.merge import Recipe

from .zoos import Home

Search: TypeAlias = Generator[str, float | None, None]

WORST = 0.0  # what an optimizer is told of a recipe without a score

NUMBERS = {"linear": ("weight",), "task_arithmetic": ("weight",), "ties": ("weight", "density")}
NUMBERS["dare_ties"] = NUMBERS["ties"]
NORMALIZED = ("linear", "ties", "dare_ties")


def mergekit_evolve(place: Home, seed: int) -> Search:
    """mergekit-evolve's algorithm: pycma's fmin with its defaults, from the plain mean with every density at 1.

    The genome has a weight (and a density) for each group of layers and each model; weights are taken by their
    absolute value, densities as well, and cut at 1. One generation after the other; nothing is scored twice.
    """
    import cma

    numbers = NUMBERS[place.zoo.method]
    groups = _groups(place.zoo.layers, place.zoo.granularity)
    shape = (len(groups), len(place.experts), len(numbers))
    start = np.ones(shape)
    start[..., 0] = 1 / len(place.experts)
    evolution = cma.CMAEvolutionStrategy(start.ravel(), 1 / 6, {"seed": seed + 1, "verbose": -9})
    while not evolution.stop():
        generation = evolution.ask()
        losses = []
        for genome in generation:
            values = np.abs(np.reshape(genome, shape))
            values[..., 1:] = np.minimum(values[..., 1:], 1)
            score = yield _sliced_recipe(place, groups, values, numbers)
            losses.append(-(WORST if score is None else score))
        evolution.tell(generation, losses)


def mergenetic(place: Home, seed: int) -> Search:
    """A genetic algorithm as mergenetic runs pymoo's: a weight (and a density) in [0, 1] for each model."""
    from pymoo.algorithms.soo.nonconvex.ga import GA
    from pymoo.core.evaluator import Evaluator
    from pymoo.core.problem import Problem
    from pymoo.core.termination import NoTermination
    from pymoo.operators.crossover.sbx import SBX
    from pymoo.operators.mutation.pm import PM
    from pymoo.operators.sampling.rnd import FloatRandomSampling
    from pymoo.problems.static import StaticProblem

    numbers, models = NUMBERS[place.zoo.method], len(place.experts)
    problem = Problem(n_var=models * len(numbers), n_obj=1, xl=0.0, xu=1.0)
    algorithm = GA(
        pop_size=25, sampling=FloatRandomSampling(), crossover=SBX(), mutation=PM(), eliminate_duplicates=True
    )
    algorithm.setup(problem, termination=NoTermination(), seed=seed, verbose=False)
    while algorithm.has_next():
        population = algorithm.ask()
        losses = []
        for genome in population.get("X"):
            values = np.reshape(genome, (len(numbers), models)).T
            score = yield _whole_recipe(place, values, numbers)
            losses.append(-(WORST if score is None else score))
        Evaluator().eval(StaticProblem(problem, F=np.array(losses)[:, None]), population)
        algorithm.tell(infills=population)


def random_search(place: Home, seed: int) -> Search:
    """Uniform points of the same space as `mergekit_evolve`'s, in heterosis' ranges."""
    numbers, groups, ranges = _space(place)
    rng = np.random.default_rng(seed)
    low, high = (np.array([ranges[name][end] for name in numbers]) for end in (0, 1))
    while True:
        values = rng.uniform(low, high, (len(groups), len(place.experts), len(numbers)))
        yield _sliced_recipe(place, groups, values, numbers)


def tpe(place: Home, seed: int) -> Search:
    """Optuna's TPE with its defaults, in the same space."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    numbers, groups, ranges = _space(place)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    while True:
        trial = study.ask()
        values = np.array(
            [
                [
                    [trial.suggest_float(f"{name}/{g}/{m}", *ranges[name]) for name in numbers]
                    for m in place.experts
                ]
                for g in range(len(groups))
            ]
        )
        score = yield _sliced_recipe(place, groups, values, numbers)
        study.tell(trial, score, state=None if score is not None else optuna.trial.TrialState.FAIL)


CONTENDERS: Mapping[str, Callable[[Home, int], Search]] = {
    "mergekit-evolve": mergekit_evolve,
    "mergenetic": mergenetic,
    "random": random_search,
    "tpe": tpe,
}


def _groups(layers: int, size: int) -> list[tuple[int, int]]:
    return [(start, start + size) for start in range(0, layers, size)]


def _space(place: Home) -> tuple[tuple[str, ...], list[tuple[int, int]], dict[str, tuple[float, float]]]:
    """Numbers, groups of layers, and the ranges in which heterosis would search by default."""
    from heterosis.merge.methods import methods

    numbers, search = NUMBERS[place.zoo.method], methods()[place.zoo.method].search
    ranges = {name: (float(search[name].low), float(search[name].high)) for name in numbers}
    return numbers, _groups(place.zoo.layers, place.zoo.granularity), ranges


def _sliced_recipe(
    place: Home, groups: Sequence[tuple[int, int]], values: np.ndarray, numbers: Sequence[str]
) -> str:
    """The recipe with numbers for groups of layers and models, ``[groups, models, numbers]``."""
    slices: list[dict[str, Any]] = []
    for group, of_models in zip(groups, values, strict=True):
        sources: list[dict[str, Any]] = [
            {"model": model, "layer_range": list(group), "parameters": _named(numbers, own)}
            for model, own in zip(place.experts, of_models, strict=True)
        ]
        if place.zoo.method != "linear":
            sources.append({"model": place.base, "layer_range": list(group)})
        slices.append({"sources": sources})
    return _recipe(place, {"slices": slices, "parameters": {"normalize": place.zoo.method in NORMALIZED}})


def _whole_recipe(place: Home, values: np.ndarray, numbers: Sequence[str]) -> str:
    """The recipe with numbers for models, ``[models, numbers]``."""
    models = [
        {"model": model, "parameters": _named(numbers, own)}
        for model, own in zip(place.experts, values, strict=True)
    ]
    return _recipe(place, {"models": models})


def _named(numbers: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(numbers, values, strict=True)}


def _recipe(place: Home, data: dict[str, Any]) -> str:
    base = {"base_model": place.base} if place.zoo.method != "linear" else {}
    common = {"merge_method": place.zoo.method, **base, "dtype": place.zoo.dtype}
    return Recipe.model_validate({**common, **data}).to_yaml()
