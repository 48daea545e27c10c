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
from heterosis.evolve.baselines import baselines_of
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.optimizers import Axis
from heterosis.evolve.space.dimensions import Value
from heterosis.evolve.space.space import SearchSpace
from heterosis.merge.computing.executor import execute
from heterosis.merge.computing.sinks import ModelSink
from heterosis.merge.methods import methods
from heterosis.merge.planning.planner import build_plan
from heterosis.merge.recipe.recipe import Recipe

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
    return recipe_of(subject, subject.initial if unit is None else np.full(len(subject.dimensions), unit))


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
        (genome_of("ties"), ["weight/math", "weight/code", "density"]),
        (genome_of("ties", per_model=["density"]), ["weight/math", "weight/code", "density/math", "density/code"]),
        (
            genome_of("ties", ranges={"density": {"code": [0.1, 0.4]}}),
            ["weight/math", "weight/code", "density/math", "density/code"],
        ),
        (
            genome_of("ties", filters=["mlp"], models=["a"]),
            ["weight/a/mlp", "weight/a/*", "density/mlp", "density/*"],
        ),
        ({"models": ["a"], "ranges": {"lambda": [0.5, 2]}}, ["weight/a", "lambda"]),
    ],
)
def test_dimensions_are_named_after_what_they_are(genome: dict[str, Any], names: list[str]) -> None:
    assert [d.name for d in space(**genome).dimensions] == names


def test_a_model_that_is_the_base_has_nothing_to_search() -> None:
    subject = space(models=["org/base", "org/math"])
    assert [d.name for d in subject.dimensions] == ["weight/math"]
    assert subject.model_names == ("base", "math")


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_unit_vectors_and_values_are_linear_in_each_other(data: st.DataObject) -> None:
    subject = space(**genome_of("ties", layer_granularity=2, filters=["mlp"], ranges={"lambda": [-0.1, 0.7]}))
    units = st.floats(0, 1, allow_subnormal=False)
    unit = np.array(data.draw(st.lists(units, min_size=len(subject.dimensions), max_size=len(subject.dimensions))))
    values = subject.values(unit)
    for dimension in subject.dimensions:
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
def test_values_of_another_space_are_refused(values: dict[str, Value]) -> None:
    with pytest.raises(ValueError, match="values must be those of the space's dimensions"):
        space().decode(values)


@pytest.mark.parametrize("value", [-0.1, 9.0, float("nan")])
def test_values_outside_their_range_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"`0\.0 <= weight/math <= 1\.5` must hold, but got"):
        space().decode({"weight/math": value, "weight/code": 0.5})


@pytest.mark.parametrize(
    "genome",
    [
        {"ranges": {"weight": {"low": 0.01, "high": 2, "log": True}}},
        {"merge_method": ["ties", "task_arithmetic", "della"], "layer_granularity": 2},
        {"models": [f"org/m{i}" for i in range(6)], "subset": 2},
        {"merge_method": "karcher", "base_model": None, "ranges": {"max_iter": [1, 4], "tol": [0, 0.1]}},
        {"control_points": 3, "filters": ["mlp"], "ranges": {"lambda": [0.5, 2]}},
    ],
)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_every_point_has_values_that_keep_their_recipe(genome: dict[str, Any], data: st.DataObject) -> None:
    subject = space(**genome)
    unit = [data.draw(st.floats(0, 1, allow_subnormal=False)) for _ in subject.dimensions]
    values = subject.values(unit)
    again = subject.encode(values)
    for u, axis in zip(again, subject.axes, strict=True):
        assert axis.levels is None or u * axis.levels - 0.5 == pytest.approx(round(u * axis.levels - 0.5))
    for name, value in subject.values(again).items():
        assert value == (values[name] if isinstance(value, str) else pytest.approx(values[name], abs=1e-12))
    recipe = subject.decode(values)
    assert Recipe.parse(recipe.to_yaml()) == recipe


# --- kinds of dimensions ----------------------------------------------------------------------------------------


def test_a_log_scale_steps_by_factors() -> None:
    subject = space(models=["a"], ranges={"weight": {"low": 0.01, "high": 4, "log": True}})
    (dimension,) = subject.dimensions
    assert dimension.log
    assert [subject.values([u])["weight/a"] for u in (0.0, 0.5, 1.0)] == [0.01, pytest.approx(0.2), 4.0]
    assert subject.encode({"weight/a": 0.2}) == pytest.approx([0.5])
    assert dimension.initial == 1.0
    assert space(ranges={"weight": {"low": 2, "high": 8, "log": True}}).dimensions[0].initial == pytest.approx(4)
    assert [*subject.encode({"weight/a": 0.001}), *subject.encode({"weight/a": 9})] == [0.0, 1.0]


def test_ranges_for_a_model_a_filter_or_both() -> None:
    ranges = {"weight": {"math": [0, 1], "mlp": [0, 2], "code/mlp": 0.25, "*": [0, 3]}}
    subject = space(filters=["mlp"], ranges=ranges)
    assert {d.name: (d.low, d.high) for d in subject.dimensions} == {
        "weight/math/mlp": (0, 1),
        "weight/math/*": (0, 1),
        "weight/code/*": (0, 3),
    }
    models = recipe_at(subject, unit=1.0)["models"]
    assert [m["parameters"]["weight"] for m in models] == [
        [{"filter": "mlp", "value": 1.0}, {"value": 1.0}],
        [{"filter": "mlp", "value": 0.25}, {"value": 3.0}],
    ]


def test_a_range_for_one_model_leaves_the_others_to_the_method() -> None:
    subject = space(**genome_of("ties", ranges={"density": {"math": 0.3}}))
    assert [d.name for d in subject.dimensions] == ["weight/math", "weight/code", "density/code"]
    subject = space(ranges={"lambda": {"mlp": [0.5, 2]}}, filters=["mlp"])
    assert [d.name for d in subject.dimensions if d.parameter == "lambda"] == ["lambda/mlp"]
    recipe = recipe_at(subject, unit=1.0)
    assert recipe["parameters"]["lambda"] == [{"filter": "mlp", "value": 2.0}, {"value": 1.0}]


@pytest.mark.parametrize("depth", [{}, {"control_points": 3}, {"layer_granularity": 3, "smooth": True}])
def test_whole_numbers_have_levels_and_are_never_interpolated(depth: dict[str, Any]) -> None:
    subject = space(merge_method="karcher", ranges={"max_iter": [1, 4]}, **depth)
    assert [d.name for d in subject.dimensions] == ["max_iter"]
    assert subject.axes == (Axis(4),)
    assert [subject.values([u])["max_iter"] for u in (0.0, 0.3, 0.6, 1.0)] == [1, 2, 3, 4]
    assert subject.encode({"max_iter": 2}) == pytest.approx([1.5 / 4])
    assert recipe_at(subject, unit=1.0)["parameters"] == {"max_iter": 4, "tol": 1e-5}
    with pytest.raises(ValueError, match=r"max_iter must be a whole number, but got 1\.5"):
        subject.decode({"max_iter": 1.5})
    groups = space(merge_method="karcher", ranges={"max_iter": [1, 4]}, layer_granularity=3)
    assert [d.name for d in groups.dimensions] == ["max_iter/layers.0-2", "max_iter/layers.3-5"]


def test_the_method_is_one_choice_for_the_recipe() -> None:
    subject = space(merge_method=["task_arithmetic", "ties"], models=["a", "b"])
    assert [d.name for d in subject.dimensions] == [
        "weight/a",
        "weight/b",
        "density",
        "merge_method",
    ]
    assert subject.axes[-1] == Axis(2, ordered=False)
    values = subject.values([1, 1, 0, 0.75])
    assert values["merge_method"] == "ties"
    recipe = yaml.safe_load(subject.decode(values).to_yaml())
    assert recipe["merge_method"] == "ties"
    assert recipe["models"][0]["parameters"] == {"weight": 1.5}
    assert recipe["parameters"] == {"density": 0.05, "normalize": True, "rescale": False, "lambda": 1.0}
    recipe = yaml.safe_load(subject.decode(values | {"merge_method": "task_arithmetic"}).to_yaml())
    assert recipe["models"][0]["parameters"] == {"weight": 1.5}
    assert recipe["parameters"] == {"normalize": False, "lambda": 1.0}
    with pytest.raises(ValueError, match="merge_method must be one of task_arithmetic, ties, but got 'sce'"):
        subject.decode(values | {"merge_method": "sce"})


def test_methods_share_a_parameter_that_they_search_in_one_place() -> None:
    subject = space(merge_method=["linear", "ties", "della", "dare_ties"], models=["a"])
    found = {d.name: (d.low, d.high) for d in subject.dimensions}
    assert found == {
        "weight/a": (0.0, 1.5),  # the union of linear's and the others'
        "density@ties+dare_ties": (0.05, 1.0),
        "density@della": (0.2, 0.8),
        "epsilon": (0.0, 0.19),
        "merge_method": (0, 3),
    }
    values = subject.values(np.ones(len(subject.dimensions))) | {"merge_method": "della"}
    recipe = yaml.safe_load(subject.decode(values).to_yaml())
    assert recipe["models"][0]["parameters"] == {"weight": 1.5}
    assert recipe["parameters"].items() >= {"density": 0.8, "epsilon": 0.19}.items()
    shared = space(merge_method=["ties", "della"], models=["a"], ranges={"density": [0.3, 0.7]})
    assert [d.name for d in shared.dimensions if d.parameter == "density"] == ["density"]
    both = space(merge_method=["ram", "della"], models=["a"])  # one epsilon of the merge, one of each model
    assert [d.name for d in both.dimensions if d.parameter == "epsilon"] == ["epsilon@della", "epsilon@ram"]


@pytest.mark.parametrize("names", [["karcher", "linear"], ["model_stock", "sce"]])
def test_methods_without_numbers_may_be_chosen_among_several(names: list[str]) -> None:
    subject = space(merge_method=names)
    for name in names:
        recipe = subject.decode(subject.values(subject.initial) | {"merge_method": name})
        assert recipe.merge_method == name


MANY = [f"org/m{i}" for i in range(5)]


def test_a_subset_says_of_each_model_whether_it_takes_part() -> None:
    subject = space(models=MANY, subset=2)
    takes = [d for d in subject.dimensions if d.parameter == "take"]
    assert [d.name for d in takes] == [f"take/m{i}" for i in range(5)]
    assert [d.axis for d in takes] == [Axis(2)] * 5
    assert [d.initial for d in takes] == [1, 1, 0, 0, 0]
    assert {d.initial for d in subject.dimensions if d.parameter == "weight"} == {0.5}
    recipe = recipe_at(subject)
    assert [m["model"] for m in recipe["models"]] == ["org/m0", "org/m1"]
    values = subject.values(subject.initial)
    with pytest.raises(ValueError, match="`1 <= models that take part <= 2` must hold, but got 3"):
        subject.decode(values | {"take/m4": 1})
    with pytest.raises(ValueError, match="but got 0"):
        subject.decode(values | {"take/m0": 0, "take/m1": 0})


def test_of_too_many_or_too_few_models_the_heaviest_take_part() -> None:
    subject = space(models=MANY, subset=2)
    weights = [0.1, 0.9, 0.4, 0.3, 0.8]

    def switches(unit: list[int]) -> list[Value]:
        values = subject.values([*weights, *unit])
        return [values[f"take/m{i}"] for i in range(5)]

    assert switches([1, 1, 1, 1, 0]) == [0, 1, 1, 0, 0]
    assert switches([0, 0, 0, 0, 0]) == [0, 1, 0, 0, 0]
    assert switches([0, 0, 0, 1, 0]) == [0, 0, 0, 1, 0]


def test_a_base_always_takes_part() -> None:
    subject = space(merge_method="slerp", models=MANY, base_model=None, subset=1)
    assert [d.name for d in subject.dimensions] == ["t", *(f"take/m{i}" for i in range(1, 5))]
    recipe = recipe_at(subject, unit=0.9)
    assert recipe["base_model"] == "org/m0"
    assert [m["model"] for m in recipe["models"]] == ["org/m0", "org/m1"]
    subject = space(models=[*MANY, "org/base"], subset=3)
    assert "take/base" not in [d.name for d in subject.dimensions]
    with pytest.raises(InputError, match="'model_stock' merges at least 2, but got at most 1"):
        space(merge_method="model_stock", models=MANY, subset=1)
    assert space(merge_method="model_stock", models=MANY, subset=4).subset == (2, 4)


def test_slices_list_those_that_take_part_and_the_base() -> None:
    recipe = recipe_at(space(models=MANY, subset=2, layer_granularity=3))
    for part in recipe["slices"]:
        assert [source["model"] for source in part["sources"]] == ["org/m0", "org/m1", "org/base"]


def test_a_random_start_is_a_point_like_others() -> None:
    subject = space(models=MANY, subset=2, merge_method=["ties", "sce"], random_init=True)
    values = {d.name: d.initial for d in subject.dimensions}
    assert subject.values(subject.initial) == pytest.approx(values)
    subject.decode(values)


# --- where a search starts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", SEARCHED)
def test_a_search_starts_at_sensible_values_off_the_boundary(method: str) -> None:
    subject = space(**genome_of(method))
    for d in subject.dimensions:
        liked = d.parameter in ("weight", "density", "t") and d.low < 0.5 < d.high
        assert d.initial == (0.5 if liked else pytest.approx((d.low + d.high) / 2)), d.name
    assert np.all((subject.initial > 0) & (subject.initial < 1))


def test_a_start_that_the_range_excludes_moves_to_its_middle() -> None:
    subject = space(**genome_of("ties", ranges={"density": [0.5, 0.9], "weight": [1, 2]}))
    assert {d.parameter: d.initial for d in subject.dimensions} == {"weight": 1.5, "density": pytest.approx(0.7)}


def test_a_random_start_depends_on_the_seed_alone() -> None:
    one, same, other = (space(random_init=True, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.initial, same.initial)
    assert not np.array_equal(one.initial, other.initial)
    assert one.values(one.initial) == pytest.approx({d.name: d.initial for d in one.dimensions})


def test_negative_weights_make_the_range_symmetric() -> None:
    assert {(d.low, d.high) for d in space(allow_negative_weights=True).dimensions} == {(-1.5, 1.5)}
    given_range = space(allow_negative_weights=True, ranges={"weight": [0, 2]})
    assert {(d.low, d.high) for d in given_range.dimensions} == {(0.0, 2.0)}


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
    values = {d.name: index / 10 for index, d in enumerate(subject.dimensions)}
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
    values = {d.name: index / 10 for index, d in enumerate(subject.dimensions)}
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
    assert [d.name for d in subject.dimensions] == [
        f"{name}/layers.{layers}" for name in ("epsilon", "r", "alpha") for layers in ("0-2", "3-5")
    ]
    recipe = recipe_at(subject, unit=1.0)
    assert [s["parameters"] for s in recipe["slices"]] == [{"epsilon": 0.001, "r": 1.0, "alpha": 1.0}] * 2
    assert "parameters" not in recipe
    assert all("parameters" not in source for s in recipe["slices"] for source in s["sources"])


@pytest.mark.parametrize("structure", [{}, {"layer_granularity": 1}, {"control_points": 2}])
@pytest.mark.parametrize("method", SEARCHED)
def test_where_a_search_starts_can_be_merged(
    method: str, structure: dict[str, Any], toy_models: dict[str, Path]
) -> None:
    ann, bob, base = (str(toy_models[name]) for name in ("ann", "bob", "base"))
    base = ann if METHODS[method].base == "input" else base
    subject = space(2, merge_method=method, models=[ann, bob], base_model=base, **structure)
    for point in (subject.initial, np.ones(len(subject.dimensions))):
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
    assert {d.parameter for d in subject.dimensions} == {"weight"}
    recipe = recipe_at(subject)
    assert recipe["slices"][1]["parameters"]["density"] == 0.3
    with pytest.raises(InputError, match="nothing is searched"):
        space(ranges={"weight": [1, 1]})


def test_lambda_is_searched_if_it_has_a_range() -> None:
    recipe = recipe_at(space(ranges={"lambda": [0.5, 2.5]}), unit=0.25)
    assert recipe["parameters"] == {"lambda": 1.0, "normalize": False}


@pytest.mark.parametrize(
    "structure",
    [{}, {"layer_granularity": 4}, {"layer_granularity": 2, "smooth": True}, {"control_points": 4}],
)
@pytest.mark.parametrize("filters", [[], ["self_attn", "mlp"]])
@pytest.mark.parametrize("method", SEARCHED)
def test_mergekit_accepts_every_recipe(method: str, filters: list[str], structure: dict[str, Any]) -> None:
    config = pytest.importorskip("mergekit.config")
    subject = space(**genome_of(method, filters=filters, allow_negative_weights=True), **structure)
    recipes = [subject.decode(subject.values(np.full(len(subject.dimensions), u))) for u in (0.0, 0.3, 1.0)]
    for recipe in [*recipes, *(baseline.recipe for baseline in baselines_of(subject, extra=True))]:
        text = recipe.to_yaml()
        theirs = config.MergeConfiguration.model_validate(yaml.safe_load(text))
        assert theirs.merge_method == recipe.merge_method
        assert Recipe.parse(text) == recipe


@pytest.mark.parametrize("method", ["della", "della_linear"])
def test_probabilities_stay_inside_their_range_in_every_corner(method: str) -> None:
    subject = space(**genome_of(method, layer_granularity=2, smooth=True), models=["a"])
    for corner in np.ndindex(2, 2):
        ends = dict(zip(("density", "epsilon"), corner, strict=True))
        unit = [float(ends.get(d.parameter, 0)) for d in subject.dimensions]
        settings_ = recipe_of(subject, unit)["parameters"]
        for density, epsilon in zip(settings_["density"], settings_["epsilon"], strict=True):
            assert 0 < density - epsilon <= density + epsilon < 1


def test_different_points_are_different_recipes() -> None:
    subject = space(**genome_of("dare_ties", layer_granularity=2, filters=["mlp"], allow_negative_weights=True))
    middle = np.full(len(subject.dimensions), 0.5)
    texts = {subject.decode(subject.values(middle)).to_yaml()}
    for index in range(len(subject.dimensions)):
        for u in (0.4, 0.6):
            point = middle.copy()
            point[index] = u
            texts.add(subject.decode(subject.values(point)).to_yaml())
    assert len(texts) == 1 + 2 * len(subject.dimensions)


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
