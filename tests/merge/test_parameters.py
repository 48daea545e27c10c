"""Settings: gradients, filters, precedence and coercion, by the numbers of recipe-language.md section 3."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heterosis.merge.recipe.parameters import (
    as_bool,
    as_number,
    evaluate_setting,
    filters,
    lookup,
    scalars,
    setting_faults,
)

NAME = "model.layers.3.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("t", "expected"), [(0.0, 1.0), (0.25, 0.5), (0.5, 0.0), (0.75, 2.0), (1.0, 4.0), (0.625, 1.0)]
)
def test_gradient_of_numbers_is_interpolated(t: float, expected: float) -> None:
    assert evaluate_setting([1, 0, 4], NAME, t) == expected
    assert evaluate_setting(["1", 0.0, "4e0"], NAME, t) == expected


@pytest.mark.parametrize("values", [[True, False, True], ["a", "b", "c"], ["on", "off", "on"]])
def test_gradient_of_other_values_is_stepped(values: list[Any]) -> None:
    steps = [evaluate_setting(values, NAME, t) for t in (0.0, 0.49, 0.5, 0.99, 1.0)]
    assert steps == [values[i] for i in (0, 0, 1, 1, 2)]


def test_kind_decides_how_a_gradient_is_read() -> None:
    assert evaluate_setting([0, 1], NAME, 0.5) == 0.5
    assert evaluate_setting([0, 1], NAME, 0.5, bool) is False
    assert evaluate_setting([0, 1], NAME, 1.0, bool) is True
    assert evaluate_setting([True, 0.5], NAME, 0.5, float) == 0.75
    assert evaluate_setting([1, 3], NAME, 0.5, int) == 2
    with pytest.raises(ValueError, match=r"whole number, but got 1\.5"):
        evaluate_setting([1, 2], NAME, 0.5, int)


@given(
    st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=8), st.floats(0, 1, allow_nan=False)
)
def test_gradient_stays_between_its_points_and_meets_its_ends(values: list[float], t: float) -> None:
    result = evaluate_setting(values, NAME, t)
    assert isinstance(result, float)
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= result <= max(values) + slack
    assert evaluate_setting(values, NAME, 0.0) == values[0]
    assert evaluate_setting(values, NAME, 1.0) == values[-1]


def test_first_matching_filter_wins() -> None:
    setting = [{"filter": "mlp", "value": [0, 1]}, {"filter": "up_proj", "value": 7}, {"value": 9}]
    assert evaluate_setting(setting, NAME, 0.5) == 0.5
    assert evaluate_setting(setting, "a.up_proj", 0.5) == 7
    assert evaluate_setting(setting, "lm_head.weight", 0.5) == 9
    assert evaluate_setting([{"filter": "*", "value": 3}, {"value": 4}], NAME, 0) == 3
    assert evaluate_setting({"filter": None, "value": 3}, NAME, 0) == 3
    # A filter is part of a name: no patterns, and case counts.
    assert evaluate_setting({"filter": "m.p", "value": 3}, NAME, 0) is None
    assert evaluate_setting({"filter": "MLP", "value": 3}, NAME, 0) is None


def test_lookup_falls_through_levels_that_yield_nothing() -> None:
    levels: list[dict[str, Any]] = [{"weight": {"filter": "attn", "value": 1}}, {"weight": []}, {}, {"weight": 0}]
    assert lookup(levels, "weight", NAME, 0) == 0
    assert lookup(levels, "weight", "self_attn", 0) == 1
    assert lookup(levels, "density", NAME, 0) is None
    # The first match decides, even if its value is an empty list: the level is passed over.
    assert lookup([{"w": [{"value": []}, {"value": 1}]}, {"w": 2}], "w", NAME, 0) == 2


def test_lookup_names_the_parameter() -> None:
    with pytest.raises(ValueError, match=r"parameters\.weight: must be a number, but got 'much'"):
        lookup([{"weight": "much"}], "weight", NAME, 0, float)


def test_coercion() -> None:
    assert evaluate_setting("2e-1", NAME, 0) == 0.2
    assert evaluate_setting("union", NAME, 0) == "union"
    assert evaluate_setting(True, NAME, 0) is True
    assert evaluate_setting(3, NAME, 0, float) == 3.0
    assert as_number(True) == 1
    for value in (True, "yes", "ON", 1, "1", 1.0, "true"):
        assert as_bool(value) is True
    for value in (False, "no", "off", 0, "0", "False"):
        assert as_bool(value) is False
    for value in (2, 0.5, "maybe", ""):
        with pytest.raises(ValueError, match="must be true or false"):
            as_bool(value)
    for value in (math.nan, math.inf, "nan", "-inf", 10**400):
        with pytest.raises(ValueError, match="finite"):
            as_number(value)


@pytest.mark.parametrize("setting", [1, 0.5, "x", True, [], [1, 2], {"value": 1}, [{"filter": "a", "value": [1]}]])
def test_good_settings_have_no_faults(setting: object) -> None:
    assert list(setting_faults(setting)) == []


@pytest.mark.parametrize(
    ("setting", "place"),
    [
        (None, ()),
        ([1, None], (1,)),
        ([[1]], (0,)),
        ([1, {"value": 2}], ()),
        ({"value": math.nan}, ("value",)),
        ({"value": [0, "inf"]}, ("value", 1)),
        ({"filter": "a"}, ("value",)),
        ([{"value": 1}, {"filter": 3, "value": 1}], (1, "filter")),
        ([{"value": 1, "fliter": "x"}], (0, "fliter")),
        ({"value": {"value": 1}}, ("value",)),
        (10**400, ()),
    ],
)
def test_faults_of_settings_are_placed(setting: object, place: tuple[object, ...]) -> None:
    assert [found for found, _ in setting_faults(setting)] == [place]


def test_every_value_and_filter_of_a_setting_has_its_place() -> None:
    assert list(scalars("x")) == [((), "x")]
    assert list(scalars([])) == list(filters(0.5)) == list(filters([0.5, 1])) == []
    setting: list[Any] = [{"filter": "mlp", "value": [0, 1]}, {"filter": "*", "value": 2}, {"value": True}]
    assert list(scalars(setting)) == [
        ((0, "value", 0), 0),
        ((0, "value", 1), 1),
        ((1, "value"), 2),
        ((2, "value"), True),
    ]
    assert list(filters(setting)) == [((0,), "mlp"), ((1,), None), ((2,), None)]
    assert list(filters(setting[0])) == [((), "mlp")]
