"""Recipes of the parity tests, and how far two results may be apart."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from heterosis.merge.api import merge_models
from heterosis.merge.recipe.recipe import Recipe

Tensors = dict[str, torch.Tensor]
Mergekit = Callable[[dict[str, Any], Path], Tensors]


def ours(recipe: dict[str, Any], out: Path) -> Tensors:
    return load_file(merge_models(Recipe.model_validate(recipe), out) / "model.safetensors")


def whole(
    method: str, *listed: tuple[str, dict[str, Any]], base: str | None = "base", **keys: Any
) -> dict[str, Any]:
    models = [{"model": name, "parameters": parameters} for name, parameters in listed]
    return {"merge_method": method, "models": models, **({"base_model": base} if base else {}), **keys}


def stack(*parts: tuple[str, list[int]], **parameters: Any) -> dict[str, Any]:
    slices = [{"sources": [{"model": name, "layer_range": layers}]} for name, layers in parts]
    return {"merge_method": "passthrough", "slices": slices, "parameters": parameters}


def located(value: Any, models: dict[str, str]) -> Any:
    """A recipe with folders for names."""
    if isinstance(value, dict):
        named = {"model", "base_model"}
        return {k: models[v] if k in named and v in models else located(v, models) for k, v in value.items()}
    return [located(entry, models) for entry in value] if isinstance(value, list) else value


def ulp(at: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The distance of neighbours of a dtype at each value."""
    return torch.finfo(dtype).eps * 2.0 ** torch.floor(torch.log2(at.abs().clamp_min(torch.finfo(dtype).tiny)))
