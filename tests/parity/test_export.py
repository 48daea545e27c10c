"""An exported recipe, comments and all, through mergekit's own command: the same model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.record.trial import Ask, Trial
from heterosis.evolve.results.export import export_recipe
from heterosis.evolve.space.space import SearchSpace
from heterosis.merge.api import merge_models
from heterosis.merge.methods import methods
from heterosis.merge.recipe.discovery import Discovery


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("method", ["linear", "task_arithmetic", "ties"])
def test_mergekit_runs_an_exported_recipe(
    method: str, smooth: bool, toy_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    from click.testing import CliRunner
    from mergekit.scripts.run_yaml import main

    genome = {"merge_method": method, "smooth": smooth, "filters": ["mlp"], "dtype": "float32"}
    if method == "ties":  # these models have many equal magnitudes, and mergekit cuts among those at random
        genome["ranges"] = {"density": [1.0, 1.0]}
    config = EvolveConfig.model_validate(toy_config(genome=genome, random_init=True))
    space = SearchSpace.from_config(config, 2, methods())
    values = space.values(space.initial)
    ask = Ask(7, "search", "candidate 7", space.decode(values).to_yaml(), values, 5)
    provenance = {"seed": 3, "models": {name: {"sha256": "0" * 64} for name in config.genome.models}}
    recipe = tmp_path / "best.yaml"
    found = Discovery(trial=7, candidates=9, objective="weighted", tasks={"toy": "acc"}, documents={"search": 3})
    recipe.write_text(export_recipe(Trial(7, ask, 0.5), provenance, found, "The champion."))

    result = CliRunner().invoke(main, [str(recipe), str(tmp_path / "theirs"), "--no-copy-tokenizer"])
    assert result.exit_code == 0, result.output
    ours = load_file(merge_models(recipe, tmp_path / "ours") / "model.safetensors")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-5, atol=1e-6, msg=name)
