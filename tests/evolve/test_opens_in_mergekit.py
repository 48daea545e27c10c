"""What a search leaves as ``best.yaml``, run by mergekit's own commands: the same model as `heterosis merge`'s."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from heterosis.evolve.config import EvolveConfig
from heterosis.evolve.driver import search
from heterosis.evolve.record.trial import Ask
from heterosis.merge import merge_models

DEPTH = {"layer_granularity": 0, "control_points": 3}
# What is searched, and what of it must be seen in the recipe.
SEARCHED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "gradients and filters": ({**DEPTH, "filters": ["self_attn", "mlp"]}, ("filter: self_attn", "weight:", "[")),
    "slices and filters": ({"layer_granularity": 2, "filters": ["mlp"]}, ("slices:", "filter: mlp")),
    # mergekit cuts at random among magnitudes that are equal, as many of these models' are.
    "ties": ({**DEPTH, "merge_method": "ties", "ranges": {"density": [1.0, 1.0]}}, ("density: 1.0", "normalize:")),
    "a layer path": (
        {"merge_method": None, "base_model": None, "layer_granularity": None, "layer_paths": True},
        ("passthrough", "layer_range:", "filter: o_proj"),
    ),
    "a merge, and a path through it": (
        {**DEPTH, "layer_paths": {"after": "parameters"}},
        ("name: champion", "task_arithmetic", "passthrough", "---"),
    ),
}


def searched_is_better(ask: Ask, part: str) -> float:
    return 2.0 + ask.stage if ask.values else 0.2


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", SEARCHED)
def test_mergekit_makes_the_same_model(
    name: str, toy_config: Callable[..., dict[str, Any]], make_llama: Any, pools: Any, tmp_path: Path
) -> None:
    from click.testing import CliRunner
    from mergekit.scripts import multimerge, run_yaml

    base = make_llama("travel-base", seed=0, layers=4)
    children = [make_llama(f"travel-{i}", seed=i, layers=4, noise_from=base, noise=0.1) for i in (1, 2)]
    genome, seen = SEARCHED[name]
    models = {"models": list(map(str, children)), "base_model": str(base), "dtype": "float32"}
    plain = toy_config(genome={**models, **genome}, trials=14, workers=1, racing=False, optimizer="random")
    plain["genome"] = {key: value for key, value in plain["genome"].items() if value is not None}
    summary = search(
        EvolveConfig.parse(yaml.safe_dump(plain)), tmp_path / "run", make_pool=pools(searched_is_better)
    )
    assert summary["champion"]["search"] > 1
    best = tmp_path / "run/best.yaml"
    text = best.read_text()
    for expected in seen:
        assert expected in text, text

    theirs = tmp_path / "theirs"
    stages = len(list(yaml.safe_load_all(text)))
    if stages == 1:
        done = CliRunner().invoke(run_yaml.main, [str(best), str(theirs), "--no-copy-tokenizer"])
    else:
        places = ["--out-path", str(theirs), "--intermediate-dir", str(tmp_path / "stages")]
        done = CliRunner().invoke(multimerge.main, [str(best), *places, "--no-copy-tokenizer"])
    assert done.exit_code == 0, done.output
    mine = load_file(merge_models(best, tmp_path / "ours") / "model.safetensors")
    other = load_file(theirs / "model.safetensors")
    assert mine.keys() == other.keys()
    for tensor in mine:
        torch.testing.assert_close(mine[tensor], other[tensor], rtol=1e-5, atol=1e-6, msg=tensor)
