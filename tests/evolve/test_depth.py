"""Control points over depth: gradients that other tools read alike, and stages that refine each other."""

from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from heterosis.errors import InputError
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.space.depth import Depth, default_control_points, interpolation
from heterosis.evolve.space.dimensions import Value
from heterosis.evolve.space.space import SearchSpace, control_points_of, stages_of
from heterosis.merge.methods import methods
from heterosis.merge.recipe.parameters import evaluate_setting

METHODS = methods()


def config(trials: int = 100, **genome: Any) -> EvolveConfig:
    data = {"models": ["org/math", "org/code"], "base_model": "org/base", **genome}
    return EvolveConfig.parse(yaml.safe_dump({"genome": data, "tasks": ["task"], "trials": trials}))


def stages(n_layers: int, points: list[int], **genome: Any) -> tuple[SearchSpace, ...]:
    return stages_of(config(**genome), n_layers, METHODS, points)


def profile(space: SearchSpace, values: dict[str, Value], filters: tuple[str, ...] = ("",)) -> list[Any]:
    """Every setting of a recipe at every layer, and outside layers, by the recipe language's own rules."""
    recipe = space.decode(values)
    last = space.depth.n_layers - 1
    positions = [0.0, *(layer / last if last else 1.0 for layer in range(last + 1))]
    sections = [recipe.parameters, *(entry.parameters for entry in recipe.models or [])]
    return [
        evaluate_setting(setting, text, t)
        for section in sections
        for setting in section.values()
        for text in filters
        for t in positions
    ]


# --- gradients --------------------------------------------------------------------------------------------------


def test_control_points_are_gradients() -> None:
    space = SearchSpace.from_config(config(control_points=3, filters=["mlp"]), 6, METHODS)
    names = [d.name for d in space.dimensions]
    assert names[:3] == ["weight/math/depth.0/mlp", "weight/math/depth.0/*", "weight/math/depth.0.5/mlp"]
    values: dict[str, Value] = {name: index / 10 for index, name in enumerate(names)}
    recipe = yaml.safe_load(space.decode(values).to_yaml())
    assert recipe["models"][0]["parameters"]["weight"] == [
        {"filter": "mlp", "value": [0.0, 0.2, 0.4]},
        {"value": [0.1, 0.3, 0.5]},
    ]
    assert "slices" not in recipe


def test_one_control_point_is_a_plain_number() -> None:
    space = SearchSpace.from_config(config(control_points=1), 6, METHODS)
    assert [d.name for d in space.dimensions] == ["weight/math", "weight/code"]


def test_parameters_of_the_merge_are_gradients_too() -> None:
    space = SearchSpace.from_config(config(merge_method="slerp", base_model=None, control_points=2), 6, METHODS)
    recipe = yaml.safe_load(space.decode({"t/depth.0": 0.25, "t/depth.1": 0.75}).to_yaml())
    assert recipe["parameters"] == {"t": [0.25, 0.75]}


@given(points=st.lists(st.floats(-2, 2), min_size=1, max_size=7), t=st.floats(0, 1))
def test_a_gradient_is_read_as_a_recipe_is(points: list[float], t: float) -> None:
    (row,) = interpolation([t], len(points))
    assert row @ points == pytest.approx(evaluate_setting(points, "", t, float), abs=1e-12)


def test_a_config_has_the_last_of_its_stages() -> None:
    space = SearchSpace.from_config(config(control_points=[1, 3]), 6, METHODS)
    assert len(space.dimensions) == 6


# --- stages -----------------------------------------------------------------------------------------------------


@given(
    pair=st.sampled_from([(1, 2), (1, 4), (2, 3), (2, 5), (3, 5), (3, 9), (4, 7), (3, 10), (1, 10), (4, 4)]),
    method=st.sampled_from(["ties", "task_arithmetic", "slerp", ["della", "dare_linear"]]),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_a_refined_point_has_the_same_values_layer_for_layer(
    pair: tuple[int, int], method: Any, data: st.DataObject
) -> None:
    n_layers = data.draw(st.sampled_from([10, 1 + 36]) if pair[1] != 10 else st.just(10))
    base = None if method == "slerp" else "org/base"
    ranges = {} if method == "slerp" else {"lambda": [0.5, 2], "weight": {"low": 0.01, "high": 2, "log": True}}
    coarse, fine = stages(
        n_layers, list(pair), merge_method=method, base_model=base, filters=["mlp"], ranges=ranges
    )
    unit = [data.draw(st.floats(0, 1, allow_subnormal=False)) for _ in coarse.dimensions]
    values = coarse.values(unit)
    refined = fine.refine(values, coarse)
    assert refined is not None
    texts = ("mlp", "other")
    np.testing.assert_allclose(profile(fine, refined, texts), profile(coarse, values, texts), rtol=0, atol=1e-9)
    # What the chosen method does not have is kept for when another one is chosen.
    if not isinstance(method, str):
        other: dict[str, Value] = {"merge_method": next(m for m in method if m != values["merge_method"])}
        np.testing.assert_allclose(profile(fine, refined | other), profile(coarse, values | other), atol=1e-9)


def test_a_refined_subset_is_the_same_subset() -> None:
    coarse, fine = stages(6, [1, 2], models=["a", "b", "c"], subset=2)
    values = coarse.values([0.1, 0.2, 0.3, 0.9, 0.1, 0.9])
    refined = fine.refine(values, coarse)
    assert refined is not None
    assert fine.models_of(refined) == coarse.models_of(values) == ["a", "c"]
    assert refined["weight/b/depth.1"] == pytest.approx(0.3)


def test_groups_of_layers_refine_one_value_for_all() -> None:
    whole = SearchSpace.from_config(config(layer_granularity=0), 6, METHODS)
    groups = SearchSpace.from_config(config(layer_granularity=3), 6, METHODS)
    refined = groups.refine({"weight/math": 0.25, "weight/code": 1.0}, whole)
    assert refined == pytest.approx(
        {f"weight/{name}/layers.{i}": v for name, v in (("math", 0.25), ("code", 1.0)) for i in ("0-2", "3-5")}
    )
    gradient = SearchSpace.from_config(config(control_points=2), 6, METHODS)
    slope: dict[str, Value] = dict.fromkeys((d.name for d in gradient.dimensions), 0.5)
    assert groups.refine(slope | {"weight/math/depth.0": 0.0}, gradient) is None


def test_another_search_is_no_coarser_stage() -> None:
    fine = stages(6, [2])[0]
    other = SearchSpace.from_config(config(models=["x", "y"], control_points=1), 6, METHODS)
    assert fine.refine({"weight/x": 1.0, "weight/y": 1.0}, other) is None


def test_points_that_are_not_among_the_finer_ones_are_refused() -> None:
    assert len(stages(30, [1, 3, 5, 9])) == 4
    assert len(stages(30, [3, 30])) == 2  # a point for every layer refines anything
    with pytest.raises(InputError, match="3 points cannot become 4 without changing the merge; after 3 write 5"):
        stages(30, [3, 4])
    with pytest.raises(InputError, match="must be at most the number of layers, 6, but got 7"):
        stages(6, [1, 7])
    with pytest.raises(InputError, match="must be at most the number of layers, 6, but got 7"):
        SearchSpace.from_config(config(control_points=7), 6, METHODS)


def test_places_share_the_cells_that_the_recipe_language_gives_them() -> None:
    assert Depth.groups(5, 2).shares().argmax(axis=1).tolist() == [0, 0, 0, 1, 1, 2, 2]
    rows = Depth.gradient(3, 2).shares()
    assert rows.tolist() == [[1, 0], [1, 0], [0.5, 0.5], [0, 1], [1, 0]]  # the head goes with the first point
    assert Depth.gradient(1, 1).shares().tolist() == [[1], [1], [1]]
    assert Depth.groups(4, 9) == Depth.gradient(4, 1)


# --- what a config without a word on depth gets -----------------------------------------------------------------


@given(dimensions=st.integers(1, 72), n_layers=st.integers(1, 80), budget=st.integers(1, 2000))
def test_default_points_keep_the_space_small(dimensions: int, n_layers: int, budget: int) -> None:
    points = default_control_points(dimensions, n_layers, budget)
    assert len(points) == 1
    assert points[0] <= n_layers
    assert points == (1,) or points[0] * dimensions <= min(12, budget / 2)
    stages(n_layers, list(points))  # each refines the one before
    assert default_control_points(dimensions, n_layers, budget + 100)[-1] >= points[-1]


@pytest.mark.parametrize(
    ("dimensions", "n_layers", "budget", "points"),
    [
        (3, 30, 36, (3,)),
        (3, 30, 18, (3,)),
        (3, 30, 17, (1,)),
        (4, 30, 100, (3,)),
        (5, 30, 100, (1,)),
        (8, 30, 1000, (1,)),
        (2, 4, 1000, (3,)),
        (2, 2, 1000, (1,)),
        (1, 30, 1000, (3,)),
    ],
)
def test_default_points(dimensions: int, n_layers: int, budget: int, points: tuple[int, ...]) -> None:
    assert default_control_points(dimensions, n_layers, budget) == points


def test_what_a_config_says_about_depth_is_as_written() -> None:
    assert control_points_of(config(), 30, METHODS) == (3,)
    assert control_points_of(config(merge_method="slerp", base_model=None), 30, METHODS) == (3,)
    assert control_points_of(config(trials=10), 30, METHODS) == (1,)
    assert control_points_of(config(merge_method="ties", trials=18), 30, METHODS) == (3,)  # one density for all
    assert control_points_of(config(control_points=9, trials=20), 30, METHODS) == (9,)
    assert control_points_of(config(layer_granularity=0), 30, METHODS) is None
    assert control_points_of(config(layer_granularity=8, smooth=True), 30, METHODS) is None
    (grouped,) = stages_of(config(layer_granularity=8), 30, METHODS, None)
    assert len(grouped.depth) == 4
