"""Baselines: the recipes that every search has to beat, parents among them, and where they lie in its space.

Those that are no parents are of the kind ``baseline`` in records, summaries and reports.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from heterosis.evolve.config.genome import UNIFORM
from heterosis.evolve.space.dimensions import Value
from heterosis.merge.recipe.recipe import Recipe

if TYPE_CHECKING:
    from heterosis.evolve.space.space import SearchSpace

# Trials from which on common fixed recipes are baselines too: they cost a few trials.
RECIPES_BUDGET = 60

# Weighted sums of task vectors, or of models, once nothing is dropped from them.
_SUMS = ("linear", "task_arithmetic", "dare_linear", "della_linear", "breadcrumbs")
# Those that drop entries, with the settings that drop none.
NOTHING_DROPPED = {"density": 1.0, "gamma": 0.0, "epsilon": 0.0}


@dataclass(frozen=True)
class Baseline:
    """A recipe to compare with.

    Attributes:
        name: A parent's short name, or what the baseline is called.
        kind: As of `Ask`.
        recipe: What it merges.
        values: The point of the search's space that gives the same tensors (within rounding), if there is one: its
            loss is known once the baseline is scored, so an optimizer can be told it, or start there.
    """

    name: str
    kind: Literal["parent", "baseline"]
    recipe: Recipe
    values: dict[str, Value] | None

    def to_plain(self) -> dict[str, Any]:
        """What JSON can hold."""
        return {"name": self.name, "kind": self.kind, "recipe": self.recipe.to_yaml(), "values": self.values}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Baseline":
        """The same again."""
        return cls(plain["name"], plain["kind"], Recipe.parse(plain["recipe"], plain["name"]), plain["values"])


def baselines_of(space: "SearchSpace", extra: bool = False) -> list[Baseline]:
    """Each model alone, under its short name; their plain mean; and with ``extra`` the common fixed recipes.

    Those are what their authors, and most who merge, set without a search: task arithmetic with weights of 1 and
    a lambda of 0.3 (Ilharco et al. 2023, about the best for several tasks), TIES with a density of 0.2 and lambda
    1 (Yadav et al. 2023, without validation data), DARE (Yu et al. 2024) with half of the entries dropped and
    weights of 1/n. They need a base model.
    """
    genome = space.config.genome
    models, base = genome.models, genome.base_model
    found = []
    for name, model in zip(space.model_names, models, strict=True):
        recipe = space.recipe({"merge_method": "passthrough", "models": [{"model": model}]})
        shares = {other: float(other == model) for other in models}
        found.append(Baseline(name, "parent", recipe, _point(space, recipe, shares)))
    mean = dict.fromkeys(models, 1.0 / len(models))
    vectors = [model for model in models if model != base]
    recipes: list[tuple[str, Recipe, Mapping[str, float] | None]] = [
        (UNIFORM, _recipe(space, "linear", mean, {}, {"normalize": True}), mean)
    ]
    if extra and base is not None and vectors:
        ones, ties = dict.fromkeys(vectors, 1.0), {"normalize": True, "lambda": 1.0}
        shares = dict.fromkeys(vectors, 1.0 / len(vectors))
        arithmetic = _recipe(space, "task_arithmetic", ones, {}, {"normalize": False, "lambda": 0.3})
        dare = {"normalize": False, "rescale": True, "lambda": 1.0}
        recipes += [
            ("task_arithmetic", arithmetic, dict.fromkeys(vectors, 0.3)),
            ("ties", _recipe(space, "ties", ones, {"density": 0.2}, ties), None),
            ("dare_linear", _recipe(space, "dare_linear", shares, {"density": 0.5}, dare), None),
        ]
    return found + [
        Baseline(name, "baseline", recipe, _point(space, recipe, same)) for name, recipe, same in recipes
    ]


def _point(space: "SearchSpace", recipe: Recipe, shares: Mapping[str, float] | None) -> dict[str, Value] | None:
    """The first point that gives a recipe's tensors, which are also those of a sum with these shares."""
    same = [recipe, *(_sums(space, shares) if shares is not None else ())]
    return next((values for candidate in same if (values := space.values_of(candidate)) is not None), None)


def _sums(space: "SearchSpace", shares: Mapping[str, float]) -> Iterator[Recipe]:
    """Recipes for ``sum_j share_j x_j``, or for the base and ``sum_j share_j d_j``, by the space's methods."""
    chosen = [model for model, share in shares.items() if share]
    alone = len(chosen) == 1 and shares[chosen[0]] == 1.0
    for method in space.methods:
        base, constants = space.base_of(method), space.constants(method)
        if method.name == "slerp" and alone:
            # Of several models, the subset is one beside the base.
            other = next((model for model in shares if model != base), None) if chosen == [base] else chosen[0]
            if other is not None:
                position = {"t": float(chosen != [base])}
                yield _recipe(space, method.name, {base or chosen[0]: 0.0, other: 1.0}, None, position)
        if "weight" not in method.per_input or not (alone or method.name in _SUMS):
            continue
        weights = {model: share for model, share in shares.items() if model in space.weighted(method)}
        normalized = constants.get("normalize", constants.get("normalize_weights", method.name == "nuslerp"))
        if (normalized or method.name == "linear") and abs(sum(weights.values()) - 1.0) > 1e-9:
            continue  # the base has a share, but no weight
        own = {name: value for name, value in NOTHING_DROPPED.items() if name in method.per_input}
        factor = {"lambda": 1.0} if "lambda" in method.per_merge else {}
        yield _recipe(space, method.name, weights, own, constants | factor)
        present = {model: weight for model, weight in weights.items() if weight}
        if 0 < len(present) < len(weights):  # where a subset may leave out the others
            yield _recipe(space, method.name, present, own, constants | factor)


def _recipe(
    space: "SearchSpace",
    name: str,
    weights: Mapping[str, float],
    own: Mapping[str, float] | None,
    shared: Mapping[str, Any],
) -> Recipe:
    """A recipe of plain numbers: a weight for each model (with ``own`` None for methods without), and more."""
    genome = space.config.genome
    inputs = [
        {"model": model} if own is None else {"model": model, "parameters": {"weight": weight, **own}}
        for model, weight in weights.items()
    ]
    base = None if name == "linear" else genome.base_model or (genome.models[0] if name == "slerp" else None)
    return space.recipe(
        {
            "merge_method": name,
            "base_model": base,
            "models": inputs,
            "parameters": dict(shared),
            "tokenizer_source": genome.tokenizer_source,
        }
    )
