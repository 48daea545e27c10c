"""Parity with the installed mergekit 0.1.5: the same recipes over the same tiny models."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from heterosis.merge.recipe.recipe import Recipe

from .recipes import Mergekit, Tensors, located, ours, stack, ulp, whole

pytestmark = pytest.mark.filterwarnings("ignore")


A, B = ("a", {"weight": 0.4}), ("b", {"weight": 0.7})
GRADIENT = [
    {"filter": "mlp", "value": [0.1, 0.9, 0.3]},
    {"filter": "layers.1.", "value": 0.25},
    {"value": [0.2, 0.8]},
]
CASES: dict[str, dict[str, Any]] = {
    "linear": whole("linear", A, B, base=None),
    "linear-sum": whole("linear", A, ("b", {"weight": -0.2}), base=None, parameters={"normalize": False}),
    "linear-gradient": whole("linear", ("a", {"weight": GRADIENT}), B, base=None),
    "linear-heads": whole("linear", A, ("untied", {"weight": 0.5}), base=None),
    "slerp": whole("slerp", ("far", {}), ("base", {}), parameters={"t": 0.3}),
    "slerp-near": whole("slerp", ("base", {}), ("a", {}), parameters={"t": 0.6}),
    "slerp-gradient": whole("slerp", ("base", {}), ("far", {}), parameters={"t": GRADIENT}),
    "task_arithmetic": whole("task_arithmetic", A, B),
    "task_arithmetic-options": whole(
        "task_arithmetic", A, ("b", {"weight": GRADIENT}), parameters={"normalize": True, "lambda": 1.2}
    ),
    "ties": whole("ties", A, B),
    "ties-sum": whole("ties", A, ("b", {"weight": -0.5}), parameters={"normalize": False, "lambda": 0.8}),
    "ties-trimmed": whole("ties", ("a", {**A[1], "density": 0.3}), ("b", {**B[1], "density": 0.55})),
    "passthrough": stack(("base", [0, 2]), ("far", [1, 3]), ("a", [2, 3])),
    "passthrough-scaled": stack(
        ("a", [0, 2]), ("b", [0, 3]), scale=[{"filter": "o_proj", "value": 0.5}, {"value": 1}]
    ),
    "passthrough-head": stack(("base", [0, 2]), ("untied", [2, 3])),
    "slices": {
        "merge_method": "linear",
        "slices": [
            {
                "sources": [{"model": name, "layer_range": layers, "parameters": p} for name, layers, p in part],
                "parameters": {"weight": GRADIENT},
            }
            for part in (
                [("a", [0, 2], {}), ("b", [1, 3], {"weight": {"filter": "layers.1.", "value": 0.6}})],
                [("far", [2, 3], {"weight": [1, 2]}), ("b", [0, 1], {})],
            )
        ],
    },
}


def at_a_cut(recipe: dict[str, Any], stored: dict[str, Tensors], name: str, dtype: torch.dtype) -> torch.Tensor:
    """Where a task vector is as large as its cut: mergekit's choice among those is a matter of the machine."""
    base = stored[recipe["base_model"]][name].to(dtype)
    result = torch.zeros(base.shape, dtype=torch.bool)
    for model in recipe["models"]:
        size = (stored[model["model"]][name].to(dtype) - base).abs()
        kept = max(1, math.floor(model["parameters"]["density"] * size.numel()))
        result |= size == size.flatten().topk(kept).values[-1]
    return result


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
def test_agrees_within_rounding(
    case: str, dtype: str, models: dict[str, str], mergekit: Mergekit, tmp_path: Path
) -> None:
    recipe = located({**CASES[case], "dtype": dtype}, models)
    theirs, mine = mergekit(recipe, tmp_path / "theirs"), ours(recipe, tmp_path / "ours")
    assert mine.keys() == theirs.keys()
    kind = getattr(torch, dtype)
    # In float64 the same rules without their rounding (tests/reference has them as naive loops).
    exact = ours({**recipe, "dtype": "float64"}, tmp_path / "exact")
    used = [str(ref) for ref in Recipe.model_validate(recipe).referenced_models()]
    stored = {folder: load_file(Path(folder) / "model.safetensors") for folder in used}
    # mergekit sums slerp's dot products in float32 and we in float64; its coefficients are off by some ulp.
    allowed = 4 if case.startswith("slerp") and dtype == "float32" else 2
    distance = {"ours": 0.0, "theirs": 0.0}
    for name, tensor in mine.items():
        other, true = theirs[name].double(), exact[name]
        assert tensor.dtype == theirs[name].dtype == kind
        assert tensor.shape == theirs[name].shape
        summands = [
            true,
            true.abs().mean().expand_as(true),
            *(t[name].double() for t in stored.values() if name in t),
        ]
        step = ulp(torch.stack(summands).abs().amax(0), kind)
        decided = ~at_a_cut(recipe, stored, name, kind) if case == "ties-trimmed" else torch.ones_like(true).bool()
        far = int((((tensor.double() - other).abs() > allowed * step) & decided).sum())
        assert far <= 2 + 0.001 * tensor.numel(), f"{name}: {far} of {tensor.numel()}"
        # Where trimming or election decides otherwise after rounding, distance says nothing about precision.
        near = (true - other).abs() < 32 * step
        distance["ours"] += float(((tensor.double() - true).abs() * near).sum())
        distance["theirs"] += float(((other - true).abs() * near).sum())
    if dtype == "bfloat16":
        assert distance["ours"] <= distance["theirs"] * 1.001, distance
    config, other_config = (json.loads((tmp_path / w / "config.json").read_text()) for w in ("ours", "theirs"))
    assert config["num_hidden_layers"] == other_config["num_hidden_layers"]
    assert config["dtype"] == other_config["dtype"] == dtype


@pytest.mark.parametrize("rescale", [True, False])
@pytest.mark.parametrize("method", ["dare_linear", "dare_ties"])
def test_random_masks_agree_in_distribution(
    method: str, rescale: bool, models: dict[str, str], mergekit: Mergekit, tmp_path: Path
) -> None:
    shared = {"parameters": {"normalize": False, "rescale": rescale}, "dtype": "float32"}
    one = whole(method, ("a", {"weight": 0.8, "density": 0.3}), **shared)
    two = whole(method, *((n, {"weight": w, "density": 0.5}) for n, w in (("a", 0.4), ("b", 0.7))), **shared)
    base = load_file(Path(models["base"]) / "model.safetensors")
    for i, recipe in enumerate((one, two)):
        located_ = located(recipe, models)
        theirs, mine = mergekit(located_, tmp_path / f"theirs{i}"), ours(located_, tmp_path / f"ours{i}")
        for name, tensor in mine.items():
            n = tensor.numel()
            if n < 1000:
                continue
            deltas = [(t[name] - base[name].float()).double() for t in (mine, theirs)]
            zero, zero_theirs = (float((d == 0).double().mean()) for d in deltas)
            assert abs(zero - zero_theirs) < 6 * math.sqrt(0.25 / n), name
            if i == 0:
                assert abs(zero - 0.7) < 4.5 * math.sqrt(0.21 / n), name
            sizes = [float(d.abs().sum()) for d in deltas]
            assert sizes[0] == pytest.approx(sizes[1], rel=1e-4 if i == 0 and rescale else 8 / math.sqrt(n)), name
            both = (deltas[0] != 0) & (deltas[1] != 0)
            if i == 0 and not rescale:
                torch.testing.assert_close(deltas[0][both], deltas[1][both], rtol=1e-4, atol=1e-6)


def test_an_adapter_equals_mergekit_on_the_model_that_peft_merged(
    models: dict[str, str], mergekit: Mergekit, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(models["base"], dtype=torch.float32)
    peft = get_peft_model(plain, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    peft.save_pretrained(tmp_path / "adapter")
    peft.merge_and_unload().save_pretrained(tmp_path / "merged")

    def recipe(adapted: str) -> dict[str, Any]:
        models_ = [
            {"model": adapted, "parameters": {"weight": 0.6, "density": 0.5}},
            {"model": models["a"], "parameters": {"weight": 0.5}},
        ]
        return {"merge_method": "ties", "base_model": models["base"], "models": models_, "dtype": "float32"}

    mine = ours(recipe(f"{models['base']}+{tmp_path / 'adapter'}"), tmp_path / "ours")
    theirs = mergekit(recipe(str(tmp_path / "merged")), tmp_path / "theirs")
    assert mine.keys() == theirs.keys()
    differing = sum(int((~torch.isclose(mine[n], theirs[n], rtol=1e-5, atol=1e-6)).sum()) for n in mine)
    assert differing <= 0.001 * sum(t.numel() for t in mine.values())
    base = load_file(Path(models["base"]) / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    assert not torch.allclose(mine[name], base[name].float(), atol=0.01)
