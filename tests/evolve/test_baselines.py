"""Baselines, where they lie in a space, and recipes read back as its points."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from heterosis.evolve.baselines import Baseline, baselines_of
from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.space.dimensions import Value
from heterosis.evolve.space.space import SearchSpace
from heterosis.merge.computing.executor import execute
from heterosis.merge.computing.sinks import ModelSink
from heterosis.merge.methods import methods
from heterosis.merge.planning.planner import build_plan
from heterosis.merge.recipe.recipe import Recipe

METHODS = methods()
SEARCHED = tuple(name for name, method in METHODS.items() if method.search and method.inputs[1] != 1)


def space(n_layers: int = 6, *, seed: int = 0, **genome: Any) -> SearchSpace:
    genome = {
        "models": ["org/math", "org/code"],
        "merge_method": "task_arithmetic",
        "base_model": "org/base",
    } | genome
    return SearchSpace.from_config(
        EvolveConfig.parse(yaml.safe_dump({"genome": genome, "tasks": ["task"], "seed": seed})), n_layers, METHODS
    )


def genome_of(method: str, **more: Any) -> dict[str, Any]:
    base = "org/math" if METHODS[method].base == "input" else "org/base"
    return {"merge_method": method, "base_model": base} | more


def named(subject: SearchSpace) -> dict[str, Baseline]:
    return {baseline.name: baseline for baseline in baselines_of(subject, extra=True)}


# --- the recipes ------------------------------------------------------------------------------------------------


def test_baselines_are_the_parents_and_their_mean() -> None:
    found = baselines_of(space(dtype="float32", out_dtype="bfloat16"))
    assert [(b.name, b.kind) for b in found] == [("math", "parent"), ("code", "parent"), ("uniform", "baseline")]
    assert yaml.safe_load(found[0].recipe.to_yaml()) == {
        "merge_method": "passthrough",
        "models": [{"model": "org/math"}],
        "dtype": "float32",
        "out_dtype": "bfloat16",
        "heterosis": {"seed": 0},
    }
    uniform = yaml.safe_load(found[2].recipe.to_yaml())
    assert uniform["merge_method"] == "linear"
    assert "base_model" not in uniform
    assert [m["parameters"] for m in uniform["models"]] == [{"weight": 0.5}] * 2
    assert uniform["parameters"] == {"normalize": True}


def test_common_fixed_recipes_join_them_where_there_is_a_base() -> None:
    found = named(space(models=["org/base", "org/math", "org/code"]))
    assert list(found) == ["base", "math", "code", "uniform", "task_arithmetic", "ties", "dare_linear"]
    plain = {name: yaml.safe_load(baseline.recipe.to_yaml()) for name, baseline in found.items()}
    assert plain["task_arithmetic"]["models"] == [
        {"model": "org/math", "parameters": {"weight": 1.0}},
        {"model": "org/code", "parameters": {"weight": 1.0}},
    ]
    assert plain["task_arithmetic"]["parameters"] == {"normalize": False, "lambda": 0.3}
    assert plain["ties"]["models"][0]["parameters"] == {"weight": 1.0, "density": 0.2}
    assert plain["ties"]["parameters"] == {"normalize": True, "lambda": 1.0}
    assert plain["dare_linear"]["models"][0]["parameters"] == {"weight": 0.5, "density": 0.5}
    assert plain["dare_linear"]["parameters"] == {"normalize": False, "rescale": True, "lambda": 1.0}
    assert list(named(space(merge_method="linear", base_model=None))) == ["math", "code", "uniform"]
    assert list(named(space(merge_method="linear", models=["org/base", "x"])))[3:] == [
        "task_arithmetic",
        "ties",
        "dare_linear",
    ]


def test_a_parent_is_never_taken_for_another_baseline() -> None:
    found = baselines_of(space(models=["org/uniform", "x", "ties"]), extra=True)
    names = [baseline.name for baseline in found]
    assert names == ["uniform-2", "x", "ties-2", "uniform", "task_arithmetic", "ties", "dare_linear"]


# --- their points -----------------------------------------------------------------------------------------------


def merged(recipe: Recipe) -> dict[str, torch.Tensor]:
    plan = build_plan(recipe)
    tensors = {op.name: torch.full(op.shape, torch.nan, dtype=op.dtype) for op in plan.ops}
    execute(plan, ModelSink(tensors), threads=1)
    return tensors


# Of the parents ann and bob, their mean, and the fixed recipes: those that have a point in each method's space.
EXPRESSED = {
    "linear": "ann bob uniform",
    "task_arithmetic": "ann bob uniform task_arithmetic",
    "dare_linear": "ann bob uniform task_arithmetic dare_linear",
    "dare_ties": "ann bob",
    "ties": "ann bob ties",
    "breadcrumbs": "ann bob uniform task_arithmetic",
    "breadcrumbs_ties": "ann bob",
    "nuslerp": "ann bob",
    "multislerp": "ann bob",
    "slerp": "ann bob",
}


@pytest.mark.parametrize("depth", [{}, {"control_points": 2}, {"layer_granularity": 1, "filters": ["mlp"]}])
@pytest.mark.parametrize("method", SEARCHED)
def test_a_baselines_values_give_its_tensors(
    method: str, depth: dict[str, Any], toy_models: dict[str, Path]
) -> None:
    ann, bob, base = (str(toy_models[name]) for name in ("ann", "bob", "base"))
    base = ann if METHODS[method].base == "input" else base
    subject = space(2, merge_method=method, models=[ann, bob], base_model=base, dtype="float32", **depth)
    found = {b.name: b for b in baselines_of(subject, extra=True) if b.values is not None}
    assert list(found) == EXPRESSED.get(method, "").split()
    for baseline in found.values():
        assert baseline.values is not None
        mine, theirs = merged(subject.decode(baseline.values)), merged(baseline.recipe)
        for name, tensor in theirs.items():
            torch.testing.assert_close(mine[name], tensor, rtol=1e-4, atol=1e-6, msg=f"{baseline.name}: {name}")


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "dare_linear"])
def test_a_base_among_the_models_has_no_weight(method: str, normalize: bool, toy_models: dict[str, Path]) -> None:
    ann, bob, base = (str(toy_models[name]) for name in ("ann", "bob", "base"))
    models = [ann, base, bob]
    subject = space(2, merge_method=method, models=models, base_model=base, dtype="float32", normalize=normalize)
    found = {b.name: b for b in baselines_of(subject) if b.values is not None}
    divided_away = method != "linear" and normalize
    assert list(found) == (["ann", "bob"] if divided_away else ["ann", "toy-base", "bob", "uniform"])
    for baseline in found.values():
        assert baseline.values is not None
        mine, theirs = merged(subject.decode(baseline.values)), merged(baseline.recipe)
        for name, tensor in theirs.items():
            torch.testing.assert_close(mine[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_subset_of_one_is_a_parent() -> None:
    subject = space(models=["a", "b", "c"], subset=2, ranges={"weight": [0.5, 1]})
    values = {baseline.name: baseline.values for baseline in baselines_of(subject)}
    assert values["b"] is not None
    assert subject.models_of(values["b"]) == ["b"]
    assert values["b"]["weight/b"] == 1.0
    assert values["uniform"] is None
    slerps = space(merge_method="slerp", base_model=None, models=["a", "b", "c"], subset=1)
    values = {baseline.name: baseline.values for baseline in baselines_of(slerps)}
    assert values["c"] == {"t": 1.0, "take/b": 0, "take/c": 1}
    assert values["a"] == {"t": 0.0, "take/b": 1, "take/c": 0}


def test_of_several_methods_the_first_that_can_gives_the_point() -> None:
    subject = space(merge_method=["sce", "ties", "task_arithmetic"])
    values = {baseline.name: baseline.values for baseline in baselines_of(subject, extra=True)}
    assert {name: v and v["merge_method"] for name, v in values.items()} == {
        "math": "ties",
        "code": "ties",
        "uniform": "task_arithmetic",
        "task_arithmetic": "task_arithmetic",
        "ties": "ties",
        "dare_linear": None,
    }


@pytest.mark.parametrize(
    "genome",
    [
        genome_of("ties"),
        genome_of("della_linear"),
        {"ranges": {"weight": [0.6, 1.5]}},
        {"ranges": {"weight": {"code": 1}}},
        {"ranges": {"lambda": [2, 3]}},
        {"ranges": {"lambda": [2, 2]}},
    ],
)
def test_a_baseline_outside_the_space_has_no_values(genome: dict[str, Any]) -> None:
    assert named(space(**genome))["uniform"].values is None


# --- recipes read back ------------------------------------------------------------------------------------------

STRUCTURES: list[dict[str, Any]] = [
    {},
    {"layer_granularity": 4},
    {"layer_granularity": 2, "smooth": True},
    {"control_points": 4, "filters": ["self_attn", "mlp"]},
    {"layer_granularity": 3, "filters": ["mlp"]},
    {"ranges": {"weight": {"low": 0.01, "high": 3, "log": True}, "lambda": [0.5, 2]}, "control_points": 3},
    {"ranges": {"weight": {"math": [0.5, 1], "*": 0.7}}, "control_points": 2},
    {"merge_method": ["ties", "task_arithmetic", "della"], "control_points": 2, "filters": ["mlp"]},
    {"models": ["a", "org/base", "b", "c"], "subset": 2, "layer_granularity": 2},
    {"merge_method": "slerp", "base_model": "org/code", "control_points": 6},
    {"merge_method": ["slerp", "nearswap"], "base_model": "org/code", "layer_granularity": 4},
    {"merge_method": ["karcher", "linear", "multislerp"], "ranges": {"max_iter": [1, 9]}},
    {"merge_method": "ramplus_tl", "control_points": 3},
]


@given(structure=st.sampled_from(STRUCTURES), data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_recipe_gives_back_the_values_that_it_was_made_from(
    structure: dict[str, Any], data: st.DataObject
) -> None:
    subject = space(**structure)
    values = subject.values([data.draw(st.floats(0, 1, allow_subnormal=False)) for _ in subject.dimensions])
    recipe = Recipe.parse(subject.decode(values).to_yaml())
    again = subject.values_of(recipe)
    assert again is not None
    method = subject.method_of(values)
    mine = {
        name
        for gene, model, filter_ in subject.places()
        if method.name in gene.methods
        and (model is None or (model in subject.models_of(values) and model in subject.weighted(method)))
        for name in subject.names(gene, model, filter_)
    }
    for dimension in subject.dimensions:
        name = dimension.name
        expected = values[name] if name in mine or dimension.parameter in ("take", "merge_method") else None
        if expected is None:  # nothing in the recipe says it
            expected = dimension.initial
        assert again[name] == (expected if isinstance(expected, str) else pytest.approx(expected, abs=1e-9)), name
    assert yaml.safe_load(subject.decode(again).to_yaml()).keys() == yaml.safe_load(recipe.to_yaml()).keys()


def recipe(text: str) -> Recipe:
    return Recipe.parse(text)


PLAIN = """
merge_method: task_arithmetic
base_model: org/base
models:
  - {model: org/math, parameters: {weight: 0.25}}
  - {model: org/code, parameters: {weight: 1}}
"""
TIES = """
merge_method: ties
base_model: org/base
parameters: {normalize: true}
models:
  - {model: org/math, parameters: {weight: 0.25, density: 0.3}}
  - {model: org/code, parameters: {weight: 1, density: 0.3}}
"""
SLICED = """
merge_method: task_arithmetic
base_model: org/base
parameters: {weight: 0.5}
slices:
  - sources:
      - {model: org/math, layer_range: [0, 2], parameters: {weight: 0.25}}
      - {model: org/base, layer_range: [0, 2]}
      - {model: org/code, layer_range: [0, 2]}
  - sources:
      - {model: org/math, layer_range: [2, 6], parameters: {weight: 1}}
      - {model: org/base, layer_range: [2, 6]}
      - {model: org/code, layer_range: [2, 6]}
"""


@pytest.mark.parametrize(
    ("text", "structure", "expected"),
    [
        (PLAIN, {}, {"weight/math": 0.25, "weight/code": 1.0}),
        (
            PLAIN,
            {"control_points": 2},
            {"weight/math/depth.0": 0.25, "weight/math/depth.1": 0.25}
            | {"weight/code/depth.0": 1.0, "weight/code/depth.1": 1.0},
        ),
        (
            PLAIN,
            {
                "layer_granularity": 3,
                "filters": ["mlp"],
                "models": ["org/math"],
                "ranges": {"weight": {"mlp": 0.25}},
            },
            None,  # another number of models
        ),
        (
            SLICED,
            {"layer_granularity": 2},
            {"weight/math/layers.0-1": 0.25, "weight/math/layers.2-3": 1.0, "weight/math/layers.4-5": 1.0}
            | {f"weight/code/layers.{layers}": 0.5 for layers in ("0-1", "2-3", "4-5")},
        ),
        (SLICED, {}, None),
        (SLICED, {"control_points": 2}, None),
        (SLICED, {"layer_granularity": 3}, None),
        (PLAIN + "parameters: {lambda: 0.5}", {}, {"weight/math": 0.125, "weight/code": 0.5}),
        (PLAIN + "parameters: {lambda: [0.5, 0.5]}", {}, {"weight/math": 0.125, "weight/code": 0.5}),
        (PLAIN + "parameters: {lambda: -1}", {"allow_negative_weights": True}, None),
        (
            PLAIN + "parameters: {lambda: 0.5}",
            {"ranges": {"lambda": [0.2, 2]}},
            {"weight/math": 0.25, "weight/code": 1.0, "lambda": 0.5},
        ),
        (PLAIN + "parameters: {normalize: true}", {}, None),
        (PLAIN + "parameters: {normalize: true}", {"normalize": True}, {"weight/math": 0.25, "weight/code": 1.0}),
        (PLAIN + "parameters: {normalize: true, lambda: 0.5}", {"normalize": True}, None),
        (PLAIN.replace("1}", "9}"), {}, None),
        (PLAIN.replace("0.25", "[0, 1.2]"), {}, None),
        (
            PLAIN.replace("0.25", "[0, 1.2]").replace("1}", "1e-1}"),
            {"control_points": 3},
            {f"weight/math/depth.{d}": v for d, v in (("0", 0.0), ("0.5", 0.6), ("1", 1.2))}
            | {f"weight/code/depth.{d}": 0.1 for d in ("0", "0.5", "1")},
        ),
        (
            PLAIN.replace("0.25", "[{filter: mlp, value: 0.5}, {value: 0.25}]"),
            {"filters": ["mlp"]},
            {"weight/math/mlp": 0.5, "weight/math/*": 0.25, "weight/code/mlp": 1.0, "weight/code/*": 1.0},
        ),
        (PLAIN.replace("0.25", "[{filter: mlp, value: 0.25}, {value: 0.25}]"), {}, None),
        (
            PLAIN.replace("org/math", "org/math@abc"),
            {"models": ["org/math@abc", "org/code"]},
            {"weight/math": 0.25, "weight/code": 1.0},
        ),
        (PLAIN.replace("org/math", "org/math@abc"), {"models": ["org/math@xyz", "org/code"]}, None),
        (PLAIN.replace("org/math", "org/other"), {}, None),
        (PLAIN.replace("org/base", "org/other"), {}, None),
        (PLAIN.replace("task_arithmetic", "ties"), {}, None),
        (TIES, {"merge_method": "ties"}, {"weight/math": 0.25, "weight/code": 1.0, "density": 0.3}),
        (
            TIES,
            {"merge_method": "ties", "per_model": ["density"]},
            {"weight/math": 0.25, "weight/code": 1.0, "density/math": 0.3, "density/code": 0.3},
        ),
        (TIES.replace("1, density: 0.3", "1, density: 0.4"), {"merge_method": "ties"}, None),
        (PLAIN.replace("0.25", "'many'"), {}, None),
        (SLICED.replace("[2, 6]", "[3, 7]"), {"layer_granularity": 2}, None),
        (SLICED.replace("[2, 6]", "[2, 5]"), {"layer_granularity": 2}, None),
        (SLICED.replace("[2, 6]", "[1, 6]"), {"layer_granularity": 2}, None),
        (SLICED.replace("[0, 2]", "[1, 2]"), {"layer_granularity": 2}, None),
        (PLAIN + "dtype: float32\ntokenizer_source: union", {}, {"weight/math": 0.25, "weight/code": 1.0}),
    ],
)
def test_recipes_of_other_hands(text: str, structure: dict[str, Any], expected: dict[str, Value] | None) -> None:
    found = space(**structure).values_of(recipe(text))
    assert found == (expected if expected is None else pytest.approx(expected))


def test_a_coarser_searchs_recipe_has_the_point_that_it_refines_to() -> None:
    coarse, fine = space(control_points=2), space(control_points=3)
    values = coarse.values(np.linspace(0.1, 0.9, len(coarse.dimensions)))
    assert fine.values_of(coarse.decode(values)) == pytest.approx(fine.refine(values, coarse))


def test_a_parent_is_no_point_of_a_merge() -> None:
    assert space().values_of(recipe("{merge_method: passthrough, models: [{model: org/math}]}")) is None
