"""Plans: which parameter, layer, dtype and tensor goes where, and every fault of a recipe at once."""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from heterosis.errors import InputError
from heterosis.merge.models.checkpoint import open_checkpoint
from heterosis.merge.models.sources import TensorSource
from heterosis.merge.plan import MergePlan, TensorOp
from heterosis.merge.planning.planner import build_plan
from heterosis.merge.recipe.recipe import Recipe
from heterosis.merge.recipe.reference import ModelRef

MakeLlama = Callable[..., Path]
UP = "model.layers.{}.mlp.up_proj.weight"
Q = "model.layers.{}.self_attn.q_proj.weight"
NORM, HEAD, EMBEDDING = "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="session")
def models(make_llama: MakeLlama) -> dict[str, str]:
    base = make_llama("plan-base", seed=0, layers=3)
    made = {"base": base}
    for seed, name in enumerate("ab", 1):
        made[name] = make_llama(f"plan-{name}", seed=seed, layers=3, noise_from=base)
    made["deep"] = make_llama("plan-deep", seed=3, layers=5)
    made["wide"] = make_llama("plan-wide", seed=4, layers=3, hidden=32)
    made["untied"] = make_llama("plan-untied", seed=5, layers=3, tied=False)
    return {name: str(folder) for name, folder in made.items()}


@pytest.fixture
def copy(models: Mapping[str, str], tmp_path: Path) -> Callable[..., str]:
    """A model's folder with other tensors or config: a change to None removes what was there."""

    def make(
        name: str,
        tensors: Mapping[str, torch.Tensor | None] | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> str:
        folder = tmp_path / f"{name}-changed"
        shutil.copytree(models[name], folder)
        for path, changes, load, save in (
            (folder / "model.safetensors", tensors, load_file, save_file),
            (folder / "config.json", config, lambda p: json.loads(p.read_text()), None),
        ):
            content = {k: v for k, v in {**load(path), **(changes or {})}.items() if v is not None}
            save(content, path) if save else path.write_text(json.dumps(content))
        return str(folder)

    return make


def plan_of(models: Mapping[str, str], text: str) -> MergePlan:
    """A plan from YAML in which ``$name`` stands for a model's folder."""
    for name in sorted(models, key=len, reverse=True):
        text = text.replace(f"${name}", models[name])
    return build_plan(Recipe.parse(text))


def faults_of(models: Mapping[str, str], text: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        plan_of(models, text)
    assert all("\n" not in fault for fault in caught.value.faults)
    named = list(caught.value.faults)
    for name, folder in models.items():
        named = [fault.replace(folder, f"${name}") for fault in named]
    return named


def ops_of(models: Mapping[str, str], text: str) -> dict[str, TensorOp]:
    return {op.name: op for op in plan_of(models, text).ops}


def weights_of(models: Mapping[str, str], text: str, name: str) -> Any:
    return ops_of(models, text)[name].arguments["weight"]


# --- parameters -------------------------------------------------------------------------------------------------


def test_the_most_specific_setting_wins(models: dict[str, str]) -> None:
    text = """
merge_method: task_arithmetic
base_model: $base
slices:
  - sources:
      - {model: $a, layer_range: [0, 1], parameters: {weight: 1}}
      - {model: $b, layer_range: [0, 1]}
      - {model: $base, layer_range: [0, 1]}
    parameters: {weight: 2, lambda: 0.5}
  - sources:
      - {model: $a, layer_range: [1, 3], parameters: {weight: {filter: nowhere, value: 9}}}
      - {model: $b, layer_range: [1, 3], parameters: {weight: []}}
      - {model: $base, layer_range: [1, 3]}
parameters: {weight: 3, lambda: 0.25}
"""
    with pytest.warns(UserWarning, match="weight") as caught:
        ops = ops_of(models, text)
    texts = [str(warning.message) for warning in caught]
    assert "slices[1].sources[1].parameters.weight: the gradient is empty, so that nothing is set here" in texts
    assert any(
        text.startswith("slices[1].sources[0].parameters.weight.filter: no tensor's name") for text in texts
    )
    seen = {
        k: (ops[n].arguments["weight"], ops[n].arguments["lambda_"]) for k, n in enumerate(map(Q.format, range(3)))
    }
    assert seen == {0: ((1.0, 2.0), 0.5), 1: ((3.0, 3.0), 0.25), 2: ((3.0, 3.0), 0.25)}
    # Outside the layers: the embedding is the first slice's, the final norm the last one's.
    assert ops[EMBEDDING].arguments["weight"] == (1.0, 2.0)
    assert ops[NORM].arguments["weight"] == (3.0, 3.0)
    assert ops[Q.format(0)].arguments["normalize"] is False


SLICES = """
merge_method: {method}
slices:
  - sources:
      - {{model: $a, layer_range: [0, 1]{a}}}
      - {{model: $b, layer_range: [0, 1]{b}}}
  - sources:
      - {{model: $deep, layer_range: [2, 5]{deep}}}
      - {{model: $b, layer_range: [0, 3]}}
{rest}
"""


def test_filters_of_inputs_see_their_names_and_filters_of_the_merge_the_outputs(models: dict[str, str]) -> None:
    rest = """
parameters:
  weight: [{filter: layers.2., value: 0.2}, {filter: mlp, value: [0.5]}, {value: 0.9}]
  normalize: [{filter: layers.2., value: false}, {value: true}]
"""
    ops = ops_of(models, SLICES.format(method="linear", a="", b="", deep="", rest=rest))
    # Output layer 1 is layer 2 of `deep` and layer 0 of `b`; output layer 2 is layers 3 and 1.
    assert ops[Q.format(1)].arguments == {"weight": (0.2, 0.9), "normalize": True}
    assert ops[UP.format(1)].arguments == {"weight": (0.2, 0.5), "normalize": True}
    assert ops[Q.format(2)].arguments == {"weight": (0.9, 0.9), "normalize": False}
    assert ops[UP.format(3)].arguments == {"weight": (0.5, 0.2), "normalize": True}


def test_gradients_restart_in_every_slice_and_begin_outside_the_layers(models: dict[str, str]) -> None:
    rest = "parameters: {weight: [0, 1, 4], normalize: false}"
    ops = ops_of(models, SLICES.format(method="linear", a="", b="", deep="", rest=rest))
    at = {k: ops[UP.format(k)].arguments["weight"][0] for k in range(4)}
    assert at == {0: 4.0, 1: 0.0, 2: 1.0, 3: 4.0}  # a one-layer slice takes the last value
    assert [ops[n].arguments["weight"][0] for n in (EMBEDDING, NORM)] == [0.0, 0.0]
    whole = ops_of(
        models,
        "{merge_method: slerp, base_model: $base, models: [model: $base, model: $a], parameters: {t: [0.2, 0.8]}}",
    )
    assert [whole[Q.format(k)].arguments["t"] for k in range(3)] == [0.2, 0.5, 0.8]
    assert whole[NORM].arguments["t"] == 0.2


def test_slerp_starts_at_the_base_wherever_it_is_listed(models: dict[str, str]) -> None:
    text = "{merge_method: slerp, base_model: $b, models: [model: $a, model: $b], parameters: {t: 0.1}}"
    assert ["plan-b" in str(s.identity) for s in ops_of(models, text)[NORM].inputs] == [True, False]


# --- inputs -----------------------------------------------------------------------------------------------------


def test_the_base_is_appended_and_has_no_weight(models: dict[str, str]) -> None:
    text = "{merge_method: ties, base_model: $base, models: [model: $a, model: $b], parameters: {weight: 0.5}}"
    plan = plan_of(models, text)
    assert [str(ref) for ref in plan.checkpoints] == [models[n] for n in ("base", "a", "b")]
    for op in plan.ops:
        assert len(op.inputs) == len(op.arguments["weight"]) == len(op.keys) == 2
        assert op.base is not None
        assert "plan-base" in str(op.base.identity)
    listed = text.replace("[model: $a,", "[model: $base, model: $a,")
    assert [op.fingerprint for op in plan_of(models, listed).ops] == [op.fingerprint for op in plan.ops]


def test_a_slice_may_have_a_base_of_its_own(models: dict[str, str]) -> None:
    text = """
merge_method: task_arithmetic
base_model: $base
parameters: {weight: 1}
slices:
  - sources: [{model: $base, layer_range: [0, 2]}, {model: $a, layer_range: [0, 2]}]
  - sources: [{model: $b, layer_range: [2, 3]}, {model: $a, layer_range: [2, 3]}]
    base_model: $b
"""
    ops = ops_of(models, text)
    bases = {name: "plan-b/" in str(op.base.identity) for name, op in ops.items() if op.base}
    assert bases == {name: "layers.2." in name or name == NORM for name in ops}


def test_a_slice_takes_task_vectors_from_a_base_that_a_method_does_not_need(models: dict[str, str]) -> None:
    text = """
merge_method: nuslerp
base_model: $base
slices:
  - sources:
      - {model: $base, layer_range: [0, 3]}
      - {model: $a, layer_range: [0, 3], parameters: {weight: 0.5}}
      - {model: $b, layer_range: [0, 3], parameters: {weight: 0.5}}
"""
    ops = plan_of(models, text).ops
    assert {(len(op.inputs), op.models[-1], op.base is None) for op in ops} == {
        (2, ModelRef(models["base"]), False)
    }


def test_the_base_alone_is_copied(models: dict[str, str]) -> None:
    plan = plan_of(models, "{merge_method: ties, base_model: $base, models: [model: $base], dtype: float32}")
    assert all(op.method is None and op.base is None and len(op.inputs) == 1 for op in plan.ops)


@pytest.mark.parametrize(
    ("text", "copied"),
    [
        ("{merge_method: passthrough, models: [model: $a]}", True),
        ("{merge_method: passthrough, models: [model: $a], parameters: {scale: 0.5}}", False),
        ("{merge_method: linear, models: [{model: $a, parameters: {weight: 3}}]}", True),
        (
            "{merge_method: linear, models: [{model: $a, parameters: {weight: 3}}], parameters: {normalize: 0}}",
            False,
        ),
        (
            "{merge_method: task_arithmetic, base_model: $base, models: [{model: $a, parameters: {weight: 1}}]}",
            False,
        ),
    ],
)
def test_one_model_times_one_is_copied(models: dict[str, str], text: str, copied: bool) -> None:
    ops = plan_of(models, text).ops
    assert {op.method is None for op in ops} == {copied}
    if copied:
        assert {op.models for op in ops} == {(ModelRef(models["a"]),)}


def test_slices_are_renumbered_and_the_config_follows(models: dict[str, str], copy: Callable[..., str]) -> None:
    kinds = [f"kind{k}" for k in range(5)]
    deep = copy("deep", config={"layer_types": kinds})
    base = copy("base", config={"layer_types": ["full"] * 3})
    text = f"""
merge_method: passthrough
slices:
  - sources: [{{model: {base}, layer_range: [1, 3]}}]
  - sources: [{{model: {deep}, layer_range: [2, 4]}}]
  - sources: [{{model: {deep}, layer_range: [3, 5]}}]
"""
    plan = plan_of({}, text)
    origin = {op.name: (Path(op.inputs[0].identity[0]).parent.name, op.inputs[0].name) for op in plan.ops}  # type: ignore[index]
    taken = [("base", 1), ("base", 2), ("deep", 2), ("deep", 3), ("deep", 3), ("deep", 4)]
    for k, (model, layer) in enumerate(taken):
        assert origin[Q.format(k)] == (f"{model}-changed", Q.format(layer))
    assert origin[EMBEDDING] == ("base-changed", EMBEDDING)
    assert origin[NORM] == ("deep-changed", NORM)
    assert len(origin) == 6 * 9 + 2
    assert plan.config["num_hidden_layers"] == 6
    assert plan.config["layer_types"] == ["full", "full", *(kinds[k] for k in (2, 3, 3, 4))]


def test_a_model_without_layer_types_takes_the_donors(models: dict[str, str], copy: Callable[..., str]) -> None:
    base = copy("base", config={"layer_types": ["x", "y", "z"]})
    older = copy("a", config={"layer_types": None})
    text = f"""
merge_method: passthrough
slices:
  - sources: [{{model: {base}, layer_range: [0, 1]}}]
  - sources: [{{model: {older}, layer_range: [1, 3]}}]
"""
    assert plan_of({}, text).config["layer_types"] == ["x", "y", "z"]


# --- dtypes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("", ("bfloat16", "bfloat16")),
        (", dtype: float32", ("float32", "float32")),
        (", out_dtype: float16", ("bfloat16", "float16")),
        (", dtype: float64, out_dtype: bfloat16", ("float64", "bfloat16")),
    ],
)
def test_dtypes(models: dict[str, str], keys: str, expected: tuple[str, str]) -> None:
    plan = plan_of(models, f"{{merge_method: linear, models: [model: $a], parameters: {{weight: 1}}{keys}}}")
    assert {(str(op.compute), str(op.dtype)) for op in plan.ops} == {tuple(f"torch.{d}" for d in expected)}
    assert plan.config["dtype"] == expected[1]
    assert "torch_dtype" not in plan.config


@pytest.mark.parametrize("pair", [("float32", "bfloat16"), ("float16", "bfloat16"), ("float32", "float16")])
def test_dtypes_are_promoted_tensor_by_tensor(
    pair: tuple[str, str], models: dict[str, str], copy: Callable[..., str]
) -> None:
    stored = load_file(Path(models["a"]) / "model.safetensors")
    first, second = (getattr(torch, name) for name in pair)
    a = copy("a", {NORM: stored[NORM].to(first)})
    b = copy("b", {NORM: stored[NORM].to(second)})
    text = f"{{merge_method: linear, models: [model: {a}, model: {b}], parameters: {{weight: 1}}}}"
    dtypes = {name: op.dtype for name, op in ops_of({}, text).items()}
    assert dtypes.pop(NORM) == torch.float32
    assert set(dtypes.values()) == {torch.bfloat16}


# --- heads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "head", "tied"),
    [
        (("a", "b"), None, True),
        (("untied",), ["lm_head.weight"], False),
        (("a", "untied"), [EMBEDDING, "lm_head.weight"], False),
        (("untied", "a"), ["lm_head.weight", EMBEDDING], False),
    ],
)
def test_heads_and_the_config_agree(
    models: dict[str, str], listed: tuple[str, ...], head: list[str] | None, tied: bool
) -> None:
    entries = ", ".join(f"model: ${name}" for name in listed)
    plan = plan_of(models, f"{{merge_method: linear, models: [{entries}], parameters: {{weight: 1}}}}")
    ops = {op.name: op for op in plan.ops}
    assert ([s.name for s in ops[HEAD].inputs] if HEAD in ops else None) == head
    assert plan.config["tie_word_embeddings"] is tied


def test_a_head_of_its_own_unties_a_config_that_says_nothing(
    models: dict[str, str], copy: Callable[..., str]
) -> None:
    silent = copy("a", config={"tie_word_embeddings": None})
    text = f"{{merge_method: linear, models: [model: {silent}, model: $untied], parameters: {{weight: 1}}}}"
    assert plan_of(models, text).config["tie_word_embeddings"] is False


def test_the_last_slice_decides_about_the_head(models: dict[str, str]) -> None:
    text = """
merge_method: passthrough
slices:
  - sources: [{{model: ${0}, layer_range: [0, 2]}}]
  - sources: [{{model: ${1}, layer_range: [2, 3]}}]
"""
    with_head = plan_of(models, text.format("a", "untied"))
    assert HEAD in {op.name for op in with_head.ops}
    assert with_head.config["tie_word_embeddings"] is False
    # The last slice's model ties its head, so its embedding is the head of an output that has one.
    without = plan_of(models, text.format("untied", "a"))
    assert HEAD in {op.name for op in without.ops}
    assert without.config["tie_word_embeddings"] is False


# --- integers and buffers ---------------------------------------------------------------------------------------


def test_integers_are_copied_and_obsolete_buffers_dropped(
    models: dict[str, str], copy: Callable[..., str]
) -> None:
    inv = "model.layers.0.self_attn.rotary_emb.inv_freq"
    ids = {"model.position_ids": torch.arange(3)}
    a = copy("a", {**ids, inv: torch.ones(2)})
    b = copy("b", ids)
    text = f"{{merge_method: linear, dtype: float32, models: [model: {a}, model: {b}], parameters: {{weight: 1}}}}"
    ops = ops_of({}, text)
    assert inv not in ops
    op = ops["model.position_ids"]
    assert (op.method, op.dtype, op.compute, len(op.inputs)) == (None, torch.int64, torch.int64, 2)


# --- faults -----------------------------------------------------------------------------------------------------


def whole(method: str, *listed: str, rest: str = "") -> str:
    return f"{{merge_method: {method}, models: [{', '.join(listed)}]{rest}}}"


WEIGHT = ", parameters: {weight: 1}"
RANGE = "{{merge_method: passthrough, slices: [sources: [{{model: $a, layer_range: [{}, {}]}}]]}}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (whole("tie", "model: $a"), "merge_method: unknown method 'tie'; did you mean 'ties'?"),
        (
            whole("linear", "model: $a", rest=", parameters: {wieght: 1, weight: 1}"),
            "parameters.wieght: unknown parameter of 'linear'; did you mean 'weight'?",
        ),
        (
            whole("linear", "{model: $a, parameters: {wieght: 1}}", rest=WEIGHT),
            "models[0].parameters.wieght: unknown parameter of 'linear'; did you mean 'weight'?",
        ),
        (
            whole(
                "slerp",
                "model: $a",
                "{model: $b, parameters: {t: 1}}",
                rest=", base_model: $a, parameters: {t: 1}",
            ),
            "models[1].parameters.t: holds for the whole merge; write it under the slice or at top level",
        ),
        (
            whole("ties", "model: $a", rest=WEIGHT),
            "base_model: ties needs one; name the model that the others are compared to",
        ),
        (
            "{merge_method: ties, base_model: $b, slices: [sources: [{model: $a, layer_range: [0, 3]}]]"
            + WEIGHT
            + "}",
            "slices[0]: ties needs the base model $b among the sources; list it",
        ),
        (
            "{merge_method: multislerp, base_model: $b, slices: [sources: [{model: $a, layer_range: [0, 3]}]]"
            + WEIGHT
            + "}",
            "slices[0]: multislerp needs the base model $b among the sources; list it",
        ),
        (
            whole("slerp", "model: $a", "model: $b", rest=", base_model: $base, parameters: {t: 1}"),
            "models: slerp takes exactly 2 models, but got 3 (a base_model that is not listed counts as one)",
        ),
        (
            whole("slerp", "model: $a", rest=", base_model: $a, parameters: {t: 1}"),
            "models: slerp takes exactly 2 models, but got 1",
        ),
        (
            whole("passthrough", "model: $a", rest=", base_model: $b"),
            "models: passthrough takes exactly 1 model, but got 2 (a base_model that is not listed counts as one)",
        ),
        (
            RANGE.format(1, 4),
            "slices[0].sources[0].layer_range: `stop <= layers` must hold, but got [1, 4] of the 3 layers of $a",
        ),
    ],
)
def test_a_fault_of_the_recipe(models: dict[str, str], text: str, expected: str) -> None:
    assert faults_of(models, text) == [expected]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            whole("linear", "{model: $a, parameters: {weight: 1}}", "model: $b"),
            f"{EMBEDDING}: $b: linear needs 'weight', but no setting applies",
        ),
        (
            whole("linear", "model: $a", rest=", parameters: {weight: {filter: embed, value: 1}}"),
            f"{NORM}: $a: linear needs 'weight', but no setting applies",
        ),
        (
            whole("ties", "model: $a", rest=", base_model: $base, parameters: {weight: 1, density: -0.1}"),
            "parameters.density: `0 <= density <= 1` must hold, but got density=-0.1",
        ),
        (
            whole("ties", "model: $a", rest=", base_model: $base, parameters: {weight: 1, density: [0.5, 1.5]}"),
            "parameters.density[1]: `0 <= density <= 1` must hold, but got density=1.5",
        ),
        (
            whole("linear", "model: $a", rest=", parameters: {weight: 1, normalize: 0.5}"),
            "parameters.normalize: must be true or false, but got 0.5",
        ),
        (
            whole("linear", "{model: $a, parameters: {weight: [{filter: nowhere, value: [1, much]}]}}"),
            "models[0].parameters.weight[0].value[1]: must be a number, but got 'much'",
        ),
    ],
)
def test_a_setting_at_fault_is_named_once_with_its_first_tensor(
    models: dict[str, str], text: str, fault: str
) -> None:
    assert faults_of(models, text) == [fault]


def test_shapes_that_differ(models: dict[str, str]) -> None:
    faults = faults_of(models, whole("linear", "model: $a", "model: $wide", rest=WEIGHT))
    assert faults[0] == (
        f"{EMBEDDING}: shapes must match, but got [64, 16] in $a and [64, 32] in $wide; "
        "merge one architecture only"
    )
    assert len(faults) == 5  # as many as are useful, and how many more there are
    assert faults[-1] == "... and 25 more faults"


def test_tensors_missing_on_either_side(models: dict[str, str], copy: Callable[..., str]) -> None:
    a = copy("a", {NORM: None, "model.extra": torch.ones(1)})
    faults = faults_of({"new": a, **models}, whole("linear", "model: $new", "model: $b", rest=WEIGHT))
    assert sorted(faults) == [
        "model.extra: missing in $b, but $new has it; merge one architecture only",
        f"{NORM}: missing in $new, but $b has it; merge one architecture only",
    ]


def test_models_of_different_depth_are_no_silent_merge(models: dict[str, str]) -> None:
    faults = faults_of(models, whole("linear", "model: $a", "model: $deep", rest=WEIGHT))
    assert (
        "model.layers.3.input_layernorm.weight: missing in $a, but $deep has it; merge models of as many layers, "
        "not 3 and 5, or slices of them"
    ) in faults
    assert faults[-1] == "... and 14 more faults"  # of 9 for each layer that is missing


def test_architectures_are_named_where_they_differ(models: dict[str, str], copy: Callable[..., str]) -> None:
    new = copy("a", {NORM: None}, {"model_type": "mistral"})
    (fault,) = faults_of({"new": new, **models}, whole("linear", "model: $a", "model: $new", rest=WEIGHT))
    assert fault == f"{NORM}: missing in $new, but $a has it; merge one architecture only, not mistral and llama"


def test_an_untied_head_that_is_missing(models: dict[str, str], copy: Callable[..., str]) -> None:
    broken = copy("untied", {HEAD: None})
    faults = faults_of({"new": broken, **models}, whole("linear", "model: $untied", "model: $new", rest=WEIGHT))
    assert faults == [f"{HEAD}: missing in $new, but $untied has it; merge one architecture only"]


def test_all_faults_at_once_with_the_files_name(models: dict[str, str]) -> None:
    recipe = Recipe.parse(
        yaml.safe_dump(
            {
                "merge_method": "ties",
                "slices": [
                    {"sources": [{"model": models["a"], "layer_range": [0, 9], "parameters": {"desnity": 1}}]}
                ],
                "parameters": {"wieght": 1},
            }
        )
    )
    with pytest.raises(InputError) as caught:
        build_plan(recipe, origin="my.yaml")
    assert [fault.split(": ")[:2] for fault in caught.value.faults] == [
        ["my.yaml", "parameters.wieght"],
        ["my.yaml", "slices[0].sources[0].parameters.desnity"],
        ["my.yaml", "slices[0].sources[0].layer_range"],
        ["my.yaml", "base_model"],
    ]


def test_every_model_that_cannot_be_opened_is_named() -> None:
    recipe = Recipe.parse(whole("linear", "model: ./no/such", "model: ./nor/this", rest=WEIGHT))
    with pytest.raises(InputError) as caught:
        build_plan(recipe)
    assert [fault.split(":")[0] for fault in caught.value.faults] == ["./no/such", "./nor/this"]


def test_a_fault_that_is_found_twice_is_told_once() -> None:
    slices = [{"sources": [{"model": model, "layer_range": [0, 1]}]} for model in ("./no", "./no@v1", "./no")]
    recipe = Recipe.model_validate({"merge_method": "passthrough", "slices": slices})
    with pytest.raises(InputError) as caught:
        build_plan(recipe)
    assert len(caught.value.faults) == 1
    assert InputError("x", "y", "x").faults == ("x", "y")


def test_a_parameter_of_another_method_warns(models: dict[str, str]) -> None:
    text = whole("linear", "model: $a", rest=", parameters: {weight: 1, density: 0.5, int8_mask: true}")
    with pytest.warns(UserWarning, match=r"^parameters.density: has no effect with linear$") as caught:
        ops = ops_of(models, text)
    assert len([w for w in caught if w.category is UserWarning]) == 1
    assert "density" not in ops[NORM].arguments


def test_a_parameter_of_the_whole_merge_under_a_model_warns(models: dict[str, str]) -> None:
    under = "{model: $b, parameters: {weight: 1, normalize: false}}"
    with pytest.warns(
        UserWarning, match=r"^models\[0\].parameters.normalize: holds for the whole merge; .* no effect"
    ):
        ops = ops_of(models, whole("ties", under, rest=", base_model: $a"))
    assert ops[NORM].arguments["normalize"] is True


# --- heads of slices --------------------------------------------------------------------------------------------


def stacked(*parts: tuple[str, int, int]) -> str:
    sources = [f"{{sources: [{{model: ${name}, layer_range: [{start}, {stop}]}}]}}" for name, start, stop in parts]
    return f"{{merge_method: passthrough, slices: [{', '.join(sources)}]}}"


@pytest.mark.parametrize(
    ("parts", "layers"),
    [
        ([("long", 0, 2), ("long", 1, 2)], 3),
        ([("long", 0, 2), ("long", 1, 3)], 3),
        ([("long", 0, 3)], 2),
        ([("long", 1, 2), ("long", 2, 3), ("a", 3, 3)], 1),
        ([("a", 0, 3), ("long", 0, 3)], 5),
    ],
)
def test_layers_that_the_config_does_not_count_stay_uncounted(
    models: dict[str, str], copy: Callable[..., str], parts: list[tuple[str, int, int]], layers: int
) -> None:
    """As those that predict tokens after the next one."""
    long = copy("b", config={"num_hidden_layers": 2})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "slices: the head is tied")
        assert plan_of({"long": long, **models}, stacked(*parts)).config["num_hidden_layers"] == layers


def test_layers_that_the_config_does_not_count_come_last(models: dict[str, str], copy: Callable[..., str]) -> None:
    long = {"long": copy("b", config={"num_hidden_layers": 2}), **models}
    assert faults_of(long, stacked(("a", 0, 1), ("long", 0, 3), ("a", 1, 3))) == [
        "slices[1].sources[0].layer_range: must end at 2, the number of layers that the config of $long counts, "
        "where others follow, but got [0, 3]"
    ]


def test_a_tied_last_slice_gives_its_embedding_as_the_head_of_an_untied_output(models: dict[str, str]) -> None:
    plan = plan_of(models, stacked(("untied", 0, 1), ("a", 1, 2)))
    head = next(op for op in plan.ops if op.name == HEAD)
    with open_checkpoint(models["a"]) as a:
        assert [source.identity for source in head.inputs] == [a.tensors[EMBEDDING].identity]
    assert plan.config["tie_word_embeddings"] is False


def test_tied_slices_stay_tied_and_say_whose_embedding_it_is(models: dict[str, str]) -> None:
    with pytest.warns(UserWarning, match="the head is tied to the embedding, which comes from the first slice"):
        plan = plan_of(models, stacked(("a", 0, 1), ("b", 1, 2)))
    assert HEAD not in {op.name for op in plan.ops}
    assert plan.config["tie_word_embeddings"] is True


def test_slices_of_different_vocabularies_need_a_tokenizer(
    models: dict[str, str], copy: Callable[..., str]
) -> None:
    longer = copy("untied", {HEAD: torch.zeros(72, 16), EMBEDDING: torch.zeros(72, 16)})
    faults = faults_of({"longer": longer, **models}, stacked(("untied", 0, 1), ("longer", 1, 2)))
    assert faults == [
        f"{HEAD}: must have a row for each of the 64 of {EMBEDDING}, but has 72; their vocabularies differ: add "
        "tokenizer_source: union (or base, or a model)"
    ]


def test_a_union_of_strangers_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    listed = f"[model: {models['a']}, model: {tmp_path}/w.safetensors]"
    recipe = Recipe.parse(f"{{merge_method: linear, parameters: {{weight: 1}}, models: {listed}}}")
    with pytest.raises(InputError, match=r"w.safetensors: has no tensor in common with .*; nothing"):
        build_plan(recipe, names="union")


@pytest.mark.parametrize(
    ("names", "listed", "counted", "kinds"),
    [
        ("union", ("a", "deep"), 5, "aaadd"),
        ("union", ("deep", "a"), 5, "ddddd"),
        ("intersection", ("a", "deep"), 5, "aaa"),
        ("intersection", ("deep", "a"), 5, "ddd"),
        ("union", ("a", "deep"), 4, "aaad"),
        ("union", ("a", "deep"), 3, "aaa"),
        ("intersection", ("deep", "a"), 3, "ddd"),
    ],
)
def test_the_config_counts_the_layers_of_a_union_or_an_intersection(
    models: dict[str, str],
    copy: Callable[..., str],
    names: Literal["union", "intersection"],
    listed: tuple[str, str],
    counted: int,
    kinds: str,
) -> None:
    """Also where the deeper model counts fewer than its five layers, since others predict further tokens."""
    layers = {"a": 3, "deep": counted}
    folders = {
        name: copy(name, config={"num_hidden_layers": n, "layer_types": [name[0]] * n})
        for name, n in layers.items()
    }
    entries = [{"model": folders[name]} for name in listed]
    recipe = {"merge_method": "linear", "models": entries, "parameters": {"weight": 1}}
    config = build_plan(Recipe.model_validate(recipe), names=names).config
    assert config["num_hidden_layers"] == len(kinds)
    assert config["layer_types"] == list(kinds)


@pytest.mark.parametrize(("factor", "kept"), [(2, True), (1, False)])
def test_a_head_that_files_hold_twice_is_left_out_unless_it_is_merged_otherwise(
    models: dict[str, str], tmp_path: Path, factor: int, kept: bool
) -> None:
    folder = Path(shutil.copytree(models["a"], tmp_path / "pickled"))
    tensors = load_file(folder / "model.safetensors")
    torch.save({**tensors, HEAD: tensors[EMBEDDING]}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    scale = f"[{{filter: lm_head, value: {factor}}}, {{value: 1}}]"
    text = f"{{merge_method: passthrough, models: [model: $twice], parameters: {{scale: {scale}}}}}"
    assert (HEAD in {op.name for op in plan_of({"twice": str(folder)}, text).ops}) == kept


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        (
            "weight: [{filter: atention, value: 1}, {value: 1}]",
            "",
            "models[0].parameters.weight[0].filter: no tensor",
        ),
        (
            "weight: 1",
            "normalize: {filter: layers.9., value: true}",
            "parameters.normalize.filter: no tensor's name",
        ),
        (
            "weight: [{value: 1}, {filter: mlp, value: 3}]",
            "",
            "models[0].parameters.weight[1]: never applies after an",
        ),
        (
            "weight: [{filter: mlp, value: 1}, {filter: mlp.up, value: 2}, {value: 1}]",
            "",
            "models[0].parameters.weight[1]: never applies after the filter 'mlp'; put it before that",
        ),
        ("weight: [{filter: mlp, value: 1}, {filter: layers.2., value: 2}, {value: 1}]", "", None),
    ],
)
def test_filters_that_never_apply_warn(
    models: dict[str, str], own: str, shared: str, expected: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    ops_of(models, whole("linear", f"{{model: $a, parameters: {{{own}}}}}", rest=f", parameters: {{{shared}}}"))
    texts = [str(w.message) for w in recwarn if w.category is UserWarning]
    assert len(texts) == (expected is not None), texts
    assert expected is None or texts[0].startswith(expected)


def test_a_filter_sees_the_names_of_its_own_model(models: dict[str, str]) -> None:
    text = SLICES.format(
        method="linear",
        a="",
        b="",
        deep=", parameters: {weight: [{filter: layers.4., value: 2}, {value: 1}]}",
        rest="parameters: {weight: [{filter: layers.4., value: 1}, {value: 1}], "
        "normalize: [{filter: layers.4., value: true}, {value: true}]}",
    )
    with pytest.warns(UserWarning, match="filter") as caught:
        ops_of(models, text)
    # The deep model has a layer 4, the output has four layers.
    found = [str(w.message).split(":")[0] for w in caught if "no tensor" in str(w.message)]
    assert found == ["parameters.normalize[0].filter"]


class Walked(dict[str, TensorSource]):
    """Tensors that count how often somebody goes through their names."""

    walks = 0

    def __iter__(self) -> Iterator[str]:
        self.walks += 1
        return super().__iter__()


def test_names_are_gone_through_as_often_however_many_there_are(models: dict[str, str]) -> None:
    walks = []
    for name in ("a", "deep"):
        model = open_checkpoint(models[name])
        model.tensors = walked = Walked(model.tensors)
        text = f"{{merge_method: passthrough, models: [model: {models[name]}], tokenizer_source: union}}"
        build_plan(Recipe.parse(text), {model.ref: model}.__getitem__)
        walks.append(walked.walks)
    assert walks[0] == walks[1]
