"""The search space: its names, the recipes that its points stand for, and the baselines."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from heterosis.errors import InputError
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.space import SearchSpace, short_names
from heterosis.merge.executor import execute
from heterosis.merge.methods import methods
from heterosis.merge.planner import build_plan
from heterosis.merge.recipe import Recipe
from heterosis.merge.sinks import ModelSink

METHODS = methods()
SEARCHED = tuple(name for name, method in METHODS.items() if method.search and method.inputs[1] != 1)


def space(n_layers: int = 6, *, seed: int = 0, random_init: bool = False, **genome: Any) -> SearchSpace:
    genome = {
        "models": ["org/math", "org/code"],
        "merge_method": "task_arithmetic",
        "base_model": "org/base",
    } | genome
    data = {"genome": genome, "tasks": ["task"], "seed": seed, "random_init": random_init}
    return SearchSpace.from_config(EvolveConfig.parse(yaml.safe_dump(data)), n_layers, METHODS)


def genome_of(method: str, **more: Any) -> dict[str, Any]:
    base = "org/math" if METHODS[method].base == "input" else "org/base"
    return {"merge_method": method, "base_model": base} | more


def recipe_at(subject: SearchSpace, unit: float | None = None) -> dict[str, Any]:
    return recipe_of(subject, subject.initial if unit is None else np.full(len(subject), unit))


def recipe_of(subject: SearchSpace, point: Any) -> dict[str, Any]:
    plain = yaml.safe_load(subject.decode(subject.values(point)).to_yaml())
    assert isinstance(plain, dict)
    return plain


# --- names and coordinates --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("genome", "names"),
    [
        ({}, ["weight/math", "weight/code"]),
        ({"filters": ["mlp"], "models": ["a"]}, ["weight/a/mlp", "weight/a/*"]),
        ({"layer_granularity": 4, "models": ["a"]}, ["weight/a/layers.0-3", "weight/a/layers.4-5"]),
        ({"layer_granularity": 5, "models": ["a"]}, ["weight/a/layers.0-4", "weight/a/layers.5"]),
        (
            {"layer_granularity": 2, "smooth": True, "models": ["a"]},
            ["weight/a/depth.0", "weight/a/depth.0.5", "weight/a/depth.1"],
        ),
        ({"layer_granularity": 9}, ["weight/math", "weight/code"]),
        (genome_of("slerp", layer_granularity=3), ["t/layers.0-2", "t/layers.3-5"]),
        (genome_of("ties", models=["a"]), ["weight/a", "density/a"]),
        ({"models": ["a"], "ranges": {"lambda": [0.5, 2]}}, ["weight/a", "lambda"]),
    ],
)
def test_dimensions_are_named_after_what_they_are(genome: dict[str, Any], names: list[str]) -> None:
    assert [d.name for d in space(**genome).parameters] == names


def test_a_model_that_is_the_base_has_nothing_to_search() -> None:
    subject = space(models=["org/base", "org/math"])
    assert [d.name for d in subject.parameters] == ["weight/math"]
    assert subject.model_names == ("base", "math")


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (["org/math", "code"], ("math", "code")),
        (["base+loras/math", "base+loras/french"], ("math", "french")),
        (["experts/math/final", "experts/code/final"], ("math-final", "code-final")),
        (["x/m", "x/n", "y/m"], ("x-m", "n", "y-m")),
        (["m@one", "m@two"], ("m", "m-2")),
        (["./m/", "..\\m", "uniform"], ("m", "m-2", "uniform-2")),
        (["/", "."], ("model", "model-2")),
    ],
)
def test_models_have_short_and_unique_names(models: list[str], names: tuple[str, ...]) -> None:
    assert short_names(models, reserved=("uniform",)) == names


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_unit_vectors_and_values_are_linear_in_each_other(data: st.DataObject) -> None:
    subject = space(**genome_of("ties", layer_granularity=2, filters=["mlp"], ranges={"lambda": [-0.1, 0.7]}))
    units = st.floats(0, 1, allow_subnormal=False)
    unit = np.array(data.draw(st.lists(units, min_size=len(subject), max_size=len(subject))))
    values = subject.values(unit)
    for dimension in subject.parameters:
        assert dimension.low <= values[dimension.name] <= dimension.high
    np.testing.assert_allclose(subject.encode(values), unit, atol=1e-12)
    assert subject.decode(values) == subject.decode(dict(reversed(values.items())))


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.7), (-2.0, -0.9)])  # -2 + (-0.9 + 2) is more than -0.9
def test_the_ends_of_a_range_are_reached_exactly(low: float, high: float) -> None:
    subject = space(ranges={"weight": [low, high]})
    assert set(subject.values(np.zeros(2)).values()) == {low}
    assert set(subject.values(np.ones(2)).values()) == {high}
    np.testing.assert_array_equal(subject.encode(dict.fromkeys(subject.values(np.zeros(2)), 5.0)), [1.0, 1.0])


@pytest.mark.parametrize(
    "values", [{}, {"weight/math": 0.5}, {"weight/math": 0.5, "weight/code": 0.5, "weight/x": 0}]
)
def test_values_of_another_space_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="values must be those of the space's dimensions"):
        space().decode(values)


@pytest.mark.parametrize("value", [-0.1, 9.0, float("nan")])
def test_values_outside_their_range_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"`0\.0 <= weight/math <= 1\.5` must hold, but got"):
        space().decode({"weight/math": value, "weight/code": 0.5})


# --- where a search starts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SEARCHED)
def test_a_search_starts_at_sensible_values_off_the_boundary(method: str) -> None:
    subject = space(**genome_of(method))
    for d in subject.parameters:
        liked = d.parameter in ("weight", "density", "t") and d.low < 0.5 < d.high
        assert d.initial == (0.5 if liked else pytest.approx((d.low + d.high) / 2)), d.name
    assert np.all((subject.initial > 0) & (subject.initial < 1))


def test_a_start_that_the_range_excludes_moves_to_its_middle() -> None:
    subject = space(**genome_of("ties", ranges={"density": [0.5, 0.9], "weight": [1, 2]}))
    assert {d.parameter: d.initial for d in subject.parameters} == {"weight": 1.5, "density": pytest.approx(0.7)}


def test_a_random_start_depends_on_the_seed_alone() -> None:
    one, same, other = (space(random_init=True, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.initial, same.initial)
    assert not np.array_equal(one.initial, other.initial)
    assert one.values(one.initial) == pytest.approx({d.name: d.initial for d in one.parameters})


def test_negative_weights_make_the_range_symmetric() -> None:
    assert {(d.low, d.high) for d in space(allow_negative_weights=True).parameters} == {(-1.5, 1.5)}
    given_range = space(allow_negative_weights=True, ranges={"weight": [0, 2]})
    assert {(d.low, d.high) for d in given_range.parameters} == {(0.0, 2.0)}


# --- recipes ----------------------------------------------------------------------------------------------------


def test_one_group_is_a_list_of_models() -> None:
    assert recipe_at(space(dtype="float32", tokenizer_source="base", seed=5)) == {
        "merge_method": "task_arithmetic",
        "base_model": "org/base",
        "models": [
            {"model": "org/math", "parameters": {"weight": 0.5}},
            {"model": "org/code", "parameters": {"weight": 0.5}},
        ],
        "parameters": {"normalize": False, "lambda": 1.0},
        "dtype": "float32",
        "tokenizer_source": "base",
        "heterosis": {"seed": 5},
    }


def test_groups_of_layers_are_slices_that_list_the_base() -> None:
    subject = space(layer_granularity=4, models=["org/math"], filters=["mlp"])
    values = {d.name: index / 10 for index, d in enumerate(subject.parameters)}
    recipe = yaml.safe_load(subject.decode(values).to_yaml())
    settings_ = [[{"filter": "mlp", "value": a}, {"value": b}] for a, b in ((0.0, 0.1), (0.2, 0.3))]
    assert recipe["slices"] == [
        {
            "sources": [
                {"model": "org/math", "layer_range": layers, "parameters": {"weight": setting}},
                {"model": "org/base", "layer_range": layers},
            ]
        }
        for layers, setting in zip(([0, 4], [4, 6]), settings_, strict=True)
    ]
    assert "models" not in recipe


def test_smooth_groups_are_control_points_of_gradients() -> None:
    subject = space(layer_granularity=2, smooth=True, filters=["mlp"], models=["org/math"])
    values = {d.name: index / 10 for index, d in enumerate(subject.parameters)}
    recipe = yaml.safe_load(subject.decode(values).to_yaml())
    assert recipe["models"][0]["parameters"]["weight"] == [
        {"filter": "mlp", "value": [0.0, 0.2, 0.4]},
        {"value": [0.1, 0.3, 0.5]},
    ]
    assert "slices" not in recipe


def test_slerp_has_a_position_for_each_slice() -> None:
    subject = space(layer_granularity=3, merge_method="slerp", base_model=None)
    recipe = yaml.safe_load(subject.decode({"t/layers.0-2": 0.25, "t/layers.3-5": 0.75}).to_yaml())
    assert recipe["base_model"] == "org/math"
    assert [s["parameters"] for s in recipe["slices"]] == [{"t": 0.25}, {"t": 0.75}]
    assert [s["model"] for s in recipe["slices"][0]["sources"]] == ["org/math", "org/code"]
    assert all("parameters" not in source for s in recipe["slices"] for source in s["sources"])


def test_slerp_of_one_group_has_its_position_at_the_top() -> None:
    recipe = recipe_at(space(merge_method="slerp", base_model="org/code"), unit=0.25)
    assert recipe["base_model"] == "org/code"
    assert recipe["parameters"] == {"t": 0.25}


def test_a_base_that_has_no_role_is_not_in_the_recipe() -> None:
    recipe = recipe_at(space(merge_method="linear"))
    assert "base_model" not in recipe
    assert [m["model"] for m in recipe["models"]] == ["org/math", "org/code"]


@pytest.mark.parametrize(
    ("method", "constants"),
    [
        ("nuslerp", {"nuslerp_flatten": True, "nuslerp_row_wise": False}),
        ("multislerp", {"normalize_weights": True, "eps": 1e-8}),
    ],
)
def test_an_optional_base_is_in_the_recipe_if_there_is_one(method: str, constants: dict[str, Any]) -> None:
    with_base = recipe_at(space(merge_method=method, layer_granularity=3))
    assert with_base["base_model"] == "org/base"
    for part in with_base["slices"]:
        weights = {source["model"]: source.get("parameters", {}).get("weight") for source in part["sources"]}
        assert weights == {"org/math": 0.5, "org/code": 0.5, "org/base": None}
    without = recipe_at(space(merge_method=method, base_model=None))
    assert "base_model" not in without
    assert [m["parameters"] for m in without["models"]] == [{"weight": 0.5}] * 2
    assert without["parameters"] == constants


def test_parameters_of_the_merge_are_searched_beside_models_that_have_none() -> None:
    subject = space(merge_method="ramplus_tl", layer_granularity=3)
    assert [d.name for d in subject.parameters] == [
        f"{name}/layers.{layers}" for name in ("epsilon", "r", "alpha") for layers in ("0-2", "3-5")
    ]
    recipe = recipe_at(subject, unit=1.0)
    assert [s["parameters"] for s in recipe["slices"]] == [{"epsilon": 0.001, "r": 1.0, "alpha": 1.0}] * 2
    assert "parameters" not in recipe
    assert all("parameters" not in source for s in recipe["slices"] for source in s["sources"])


@pytest.mark.parametrize("structure", [{}, {"layer_granularity": 1}])
@pytest.mark.parametrize("method", SEARCHED)
def test_where_a_search_starts_can_be_merged(
    method: str, structure: dict[str, Any], toy_models: dict[str, Path]
) -> None:
    ann, bob, base = (str(toy_models[name]) for name in ("ann", "bob", "base"))
    base = ann if METHODS[method].base == "input" else base
    subject = space(2, merge_method=method, models=[ann, bob], base_model=base, **structure)
    for point in (subject.initial, np.ones(len(subject))):
        plan = build_plan(subject.decode(subject.values(point)))
        merged = {op.name: torch.full(op.shape, torch.nan, dtype=op.dtype) for op in plan.ops}
        execute(plan, ModelSink(merged), threads=1)
        assert all(t.isfinite().all() for t in merged.values())


@pytest.mark.parametrize(
    ("method", "normalize"),
    [("linear", True), ("ties", True), ("dare_ties", True), ("task_arithmetic", False), ("dare_linear", False)],
)
def test_what_is_not_searched_is_written_out(method: str, normalize: bool) -> None:
    constants = recipe_at(space(**genome_of(method)))["parameters"]
    assert constants.pop("normalize") == normalize
    expected: dict[str, Any] = {} if method == "linear" else {"lambda": 1.0}
    if method.startswith("dare"):
        expected["rescale"] = True
    assert {name: constants[name] for name in expected} == expected
    chosen = recipe_at(space(**genome_of(method, normalize=not normalize)))
    assert chosen["parameters"]["normalize"] == (not normalize)


def test_equal_ends_fix_a_parameter() -> None:
    subject = space(**genome_of("ties", ranges={"density": [0.3, 0.3]}, filters=["mlp"], layer_granularity=3))
    assert {d.parameter for d in subject.parameters} == {"weight"}
    recipe = recipe_at(subject)
    assert recipe["slices"][1]["sources"][0]["parameters"]["density"] == 0.3
    with pytest.raises(InputError, match="nothing is searched"):
        space(ranges={"weight": [1, 1]})


def test_lambda_is_searched_if_it_has_a_range() -> None:
    recipe = recipe_at(space(ranges={"lambda": [0.5, 2.5]}), unit=0.25)
    assert recipe["parameters"] == {"lambda": 1.0, "normalize": False}


@pytest.mark.parametrize("structure", [{}, {"layer_granularity": 4}, {"layer_granularity": 2, "smooth": True}])
@pytest.mark.parametrize("filters", [[], ["self_attn", "mlp"]])
@pytest.mark.parametrize("method", SEARCHED)
def test_mergekit_accepts_every_recipe(method: str, filters: list[str], structure: dict[str, Any]) -> None:
    config = pytest.importorskip("mergekit.config")
    subject = space(**genome_of(method, filters=filters, allow_negative_weights=True), **structure)
    recipes = [subject.decode(subject.values(np.full(len(subject), u))) for u in (0.0, 0.3, 1.0)]
    for recipe in [*recipes, *(baseline for _, baseline in subject.baselines())]:
        text = recipe.to_yaml()
        theirs = config.MergeConfiguration.model_validate(yaml.safe_load(text))
        assert theirs.merge_method == recipe.merge_method
        assert Recipe.parse(text) == recipe


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_probabilities_stay_inside_their_range_in_every_corner(method: str) -> None:
    subject = space(**genome_of(method, layer_granularity=2, smooth=True), models=["a"])
    for corner in np.ndindex(2, 2):
        ends = dict(zip(("density", "epsilon"), corner, strict=True))
        unit = [float(ends.get(d.parameter, 0)) for d in subject.parameters]
        settings_ = recipe_of(subject, unit)["models"][0]["parameters"]
        for density, epsilon in zip(settings_["density"], settings_["epsilon"], strict=True):
            assert 0 < density - epsilon <= density + epsilon < 1


def test_different_points_are_different_recipes() -> None:
    subject = space(**genome_of("dare_ties", layer_granularity=2, filters=["mlp"], allow_negative_weights=True))
    middle = np.full(len(subject), 0.5)
    texts = {subject.decode(subject.values(middle)).to_yaml()}
    for index in range(len(subject)):
        for u in (0.4, 0.6):
            point = middle.copy()
            point[index] = u
            texts.add(subject.decode(subject.values(point)).to_yaml())
    assert len(texts) == 1 + 2 * len(subject)


# --- baselines --------------------------------------------------------------------------------------------------


def test_baselines_are_the_parents_and_their_mean() -> None:
    named = dict(space(dtype="float32", out_dtype="bfloat16").baselines())
    assert list(named) == ["math", "code", "uniform"]
    assert yaml.safe_load(named["math"].to_yaml()) == {
        "merge_method": "passthrough",
        "models": [{"model": "org/math"}],
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "heterosis": {"seed": 0},
    }
    uniform = yaml.safe_load(named["uniform"].to_yaml())
    assert uniform["merge_method"] == "linear"
    assert "base_model" not in uniform
    assert [m["parameters"] for m in uniform["models"]] == [{"weight": 0.5}] * 2
    assert uniform["parameters"] == {"normalize": True}


def test_a_parent_called_uniform_is_not_taken_for_the_mean() -> None:
    assert [name for name, _ in space(models=["org/uniform", "x"]).baselines()] == ["uniform-2", "x", "uniform"]


def merged(recipe: Recipe, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """The tensor that a recipe without groups gives, by the methods' plain formulas."""
    plain = yaml.safe_load(recipe.to_yaml())
    weights = {m["model"]: m.get("parameters", {}).get("weight", 1.0) for m in plain["models"]}
    constants = plain.get("parameters", {})
    base = tensors[plain["base_model"]] if plain["merge_method"] == "task_arithmetic" else 0.0
    if plain["merge_method"] == "task_arithmetic":
        weights.pop(plain["base_model"], None)
    total = sum(w * (tensors[m] - base) for m, w in weights.items())
    divisor = sum(weights.values()) or 1.0
    return np.asarray(
        base + constants.get("lambda", 1.0) * total / (divisor if constants.get("normalize") else 1.0)
    )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("models", [["org/math", "org/code"], ["org/math", "org/base", "org/code"]])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic"])
def test_a_baselines_values_give_the_baseline(method: str, models: list[str], normalize: bool) -> None:
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=5) for name in ("org/math", "org/code", "org/base")}
    subject = space(merge_method=method, models=models, normalize=normalize)
    found = 0
    for name, recipe in subject.baselines():
        values = subject.baseline_values(name)
        if values is not None:
            found += 1
            np.testing.assert_allclose(merged(subject.decode(values), tensors), merged(recipe, tensors))
    base_is_divided_away = method == "task_arithmetic" and normalize and "org/base" in models
    assert found == (2 if base_is_divided_away else len(models) + 1)


def test_slerps_ends_are_its_parents() -> None:
    subject = space(merge_method="slerp", base_model="org/code", layer_granularity=3)
    assert subject.baseline_values("code") == {"t/layers.0-2": 0.0, "t/layers.3-5": 0.0}
    assert subject.baseline_values("math") == {"t/layers.0-2": 1.0, "t/layers.3-5": 1.0}
    assert subject.baseline_values("uniform") is None


@pytest.mark.parametrize(
    "genome",
    [
        genome_of("ties"),
        genome_of("dare_linear"),
        {"ranges": {"weight": [0.6, 1.5]}},
        {"ranges": {"lambda": [2, 3]}},
        {"ranges": {"lambda": [2, 2]}},
    ],
)
def test_a_baseline_outside_the_space_has_no_values(genome: dict[str, Any]) -> None:
    assert space(**genome).baseline_values("uniform") is None


# --- what cannot be searched ------------------------------------------------------------------------------------


def test_a_genome_that_the_method_cannot_use_is_refused_here_too() -> None:
    config = EvolveConfig.parse("genome: {models: [a, b], merge_method: linear}\ntasks: [task]")
    with pytest.raises(InputError, match="unknown method 'linear'"):
        SearchSpace.from_config(config, 4, {})
    with pytest.raises(ValueError, match="`n_layers >= 1` must hold"):
        SearchSpace.from_config(config, 0, METHODS)


@pytest.mark.parametrize("method", ["arcee_fusion", "karcher", "model_stock"])
def test_a_method_without_numbers_to_search_is_refused(method: str) -> None:
    with pytest.raises(InputError, match=f"{method!r} has no parameters to search; choose another method"):
        space(**genome_of(method))


def test_numbers_beside_a_method_are_searched_if_they_have_a_range() -> None:
    recipe = recipe_at(space(merge_method="karcher", ranges={"tol": [0.0, 0.2]}), unit=0.5)
    assert recipe["parameters"] == {"tol": 0.1, "max_iter": 10}
    with pytest.raises(InputError, match=r"genome\.ranges\.tol: `0 <= tol` must hold, but got tol=-0\.1"):
        space(merge_method="karcher", ranges={"tol": [-0.1, 0.2]})
