"""Parity with mergekit 0.1.5 where a model is more than one stack of layers: modules, and experts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ..merge.architectures import build, save
from .recipes import Mergekit, Tensors, ours

pytestmark = pytest.mark.filterwarnings("ignore")

Family = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Folders of an architecture's base and two fine-tunes."""
    root = tmp_path_factory.mktemp("architectures")

    def make(name: str) -> list[str]:
        folders = [root / f"{name}-{seed}" for seed in range(3)]
        if not folders[0].exists():
            for seed, folder in enumerate(folders):
                # mergekit knows the later T5 alone, with gates.
                save(build(name, seed, **({"feed_forward_proj": "gated-gelu"} if name == "t5" else {})), folder)
        return [str(folder) for folder in folders]

    return make


def ties(folders: list[str], **keys: Any) -> dict[str, Any]:
    listed = [{"model": f, "parameters": {"weight": w}} for f, w in zip(folders[1:], (0.25, 0.75), strict=True)]
    return {"merge_method": "ties", "base_model": folders[0], "dtype": "float32", "models": listed, **keys}


def modular(recipe: dict[str, Any], *modules: str) -> dict[str, Any]:
    part = {"models": recipe["models"]}
    return {key: x for key, x in recipe.items() if key != "models"} | {"modules": dict.fromkeys(modules, part)}


def assert_same(mine: Tensors, theirs: Tensors) -> None:
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


# Others it cannot merge as transformers 5 saves them: GPT-NeoX without buffers, BERT without a pooler, Whisper.
@pytest.mark.parametrize("name", ["gpt2", "mamba", "roberta", "t5"])
def test_whole_models(name: str, family: Family, mergekit: Mergekit, tmp_path: Path) -> None:
    recipe = ties(family(name))
    assert_same(ours(recipe, tmp_path / "ours"), mergekit(recipe, tmp_path / "theirs"))


def test_modules_of_t5(family: Family, mergekit: Mergekit, tmp_path: Path) -> None:
    recipe = modular(ties(family("t5")), "encoder", "decoder", "shared")
    assert_same(ours(recipe, tmp_path / "ours"), mergekit(recipe, tmp_path / "theirs"))


def test_slices_of_t5s_modules(family: Family, mergekit: Mergekit, tmp_path: Path) -> None:
    _, one, two = family("t5")
    slices = [
        {"sources": [{"model": one, "layer_range": [0, 2]}]},
        {"sources": [{"model": two, "layer_range": [1, 2]}]},
    ]
    whole = {"slices": [{"sources": [{"model": one, "layer_range": [0, 0]}]}]}
    recipe = {
        "merge_method": "passthrough",
        "base_model": one,
        "modules": {"encoder": {"slices": slices}, "decoder": {"slices": slices}, "shared": whole},
    }
    assert_same(ours(recipe, tmp_path / "ours"), mergekit(recipe, tmp_path / "theirs"))


def test_modules_of_a_multimodal_model(family: Family, mergekit: Mergekit, tmp_path: Path) -> None:
    folders = family("gemma3_vision")
    recipe = modular(ties(folders), "text_decoder", "multi_modal_projector")
    mine, theirs = ours(recipe, tmp_path / "ours"), mergekit(recipe, tmp_path / "theirs")
    assert_same({name: x for name, x in mine.items() if not name.startswith("vision_tower.")}, theirs)
    kept = load_file(Path(folders[0]) / "model.safetensors")  # mergekit leaves out what no module names
    vision = {name: x for name, x in kept.items() if name.startswith("vision_tower.")}
    assert_same({name: x for name, x in mine.items() if name not in theirs}, vision)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_experts_which_mergekit_writes_fused(
    name: str, family: Family, mergekit: Mergekit, tmp_path: Path
) -> None:
    recipe = ties(family(name))
    assert_same(fused(ours(recipe, tmp_path / "ours")), mergekit(recipe, tmp_path / "theirs"))


def fused(stored: Tensors) -> Tensors:
    """Each layer's experts in two tensors, as transformers 5 has them in memory: gates above ups, and downs."""
    result = {}
    for name, tensor in stored.items():
        layer, _, rest = name.replace("block_sparse_moe", "mlp").partition(".experts.")
        if not rest:
            result[layer] = tensor
        elif rest in ("0.w1.weight", "0.gate_proj.weight"):
            kinds = ("w1", "w3", "w2") if "w1" in rest else ("gate_proj", "up_proj", "down_proj")
            gate, up, down = (
                torch.stack([stored[name.replace("0." + rest[2:], f"{e}.{kind}.weight")] for e in range(3)])
                for kind in kinds
            )
            result[f"{layer}.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
            result[f"{layer}.experts.down_proj"] = down
    return result
